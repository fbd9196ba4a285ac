"""Which files of CUDA's libraries Caffe is linked with, and their versions, for `doctor` and for bug reports.

cuDNN loads its parts (libcudnn_ops, libcudnn_cnn, …) itself, from the folder of libcudnn or from the library path. With
parts of another version it fails with CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH, so they are named here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

NAMES = {"libcudart": "CUDA runtime", "libcublas": "cuBLAS", "libcudnn": "cuDNN", "libnccl": "NCCL"}


class Library(NamedTuple):
    """A library: its name, the file that is loaded, its version as far as the file's name has it, what is wrong."""

    name: str
    file: str
    version: str
    problem: str = ""


def resolved(libraries: Mapping[str, str], library_path: str = "") -> list[Library]:
    """The libraries of CUDA among those of a program; ``library_path`` is the folders of LD_LIBRARY_PATH.

    ``libraries`` has a file for each name, as `installation.Caffe.libraries`.
    """
    found = []
    for prefix, name in NAMES.items():
        file = next(
            (path for library, path in sorted(libraries.items()) if re.fullmatch(f"{prefix}(-.*)?", library)), ""
        )
        if not file:
            continue
        real = os.path.realpath(file)
        if os.path.exists(real):
            found.append(Library(name, real, version_of(real)))
        else:
            found.append(Library(name, "not found", "", "not found by the loader"))
    cudnn = next((library for library in found if library.name == "cuDNN" and not library.problem), None)
    if cudnn:
        others = _other_parts(Path(cudnn.file), cudnn.version, library_path)
        if others:
            mixed = f"parts of another version are found too, and may be loaded with it: {', '.join(others)}"
            found[found.index(cudnn)] = cudnn._replace(problem=mixed)
    return found


def version_of(file: str) -> str:
    """The version in a library's file name; empty where there is none.

    >>> version_of("/usr/lib/libcudnn.so.9.1.0"), version_of("/opt/libcublas.so")
    ('9.1.0', '')
    """
    return re.sub(r"^.*\.so\.?", "", os.path.basename(file))


def _other_parts(cudnn: Path, version: str, library_path: str) -> list[str]:
    """Parts of cuDNN with another version than ``version``: in libcudnn's folder and on the library path.

    Those of another major version do not count: it is in the names by which cuDNN looks for its parts.
    """
    folders = [cudnn.parent, *(Path(folder) for folder in library_path.split(os.pathsep) if folder)]
    pattern = f"libcudnn*.so.{version.partition('.')[0]}*"
    parts = {path.resolve() for folder in folders for path in folder.glob(pattern)}
    return sorted(str(part) for part in parts if not _is_same(version, version_of(str(part))))


def _is_same(version: str, other: str) -> bool:
    """Whether two versions agree as far as both are given: a file may be named by its major version alone.

    >>> _is_same("9.1.0", "9"), _is_same("9.1.0", "9.2.0")
    (True, False)
    """
    return all(one == another for one, another in zip(version.split("."), other.split("."), strict=False))

"""Where Caffe is, and what it was built with. Standard library only: the builder uses it before anything is installed.

bonecaffe uses the first Caffe it finds, in this order: ``CAFFE_ROOT``; the one that ``make setup`` found or built and
noted in the environment's ``share/bonecaffe/caffe.json``; without such a note, programs on PATH with an importable pycaffe.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bonecaffe.errors import CaffeError

PROGRAMS = ("caffe", "convert_imageset", "compute_image_mean")
NOTE = Path(sys.prefix) / "share" / "bonecaffe" / "caffe.json"
REMEDY = "Run `make setup`, or set CAFFE_ROOT to an installed Caffe."


@dataclass(frozen=True)
class Caffe:
    """An installed Caffe: the folder of its programs, the folder of its pycaffe, where it came from."""

    bin: Path
    python: Path | None  # None: already importable
    origin: str
    root: Path | None = None
    build: dict[str, str] = field(default_factory=dict)

    def program(self, name: str) -> Path:
        """The path of one of Caffe's programs; CaffeError when it is not there."""
        path = self.bin / name
        if not os.access(path, os.X_OK):
            raise CaffeError(f"{path}: no such program in this Caffe ({self.origin}). {REMEDY}")
        return path

    @functools.cached_property
    def libraries(self) -> dict[str, str]:
        """What the caffe program is linked with: a library's name and the file it resolves to."""
        try:
            said = subprocess.run(
                ["ldd", str(self.program("caffe"))], capture_output=True, text=True, check=False
            ).stdout
        except OSError:
            return {}
        return dict(re.findall(r"^\s*(\S+)\.so\S* => (\S+)", said, flags=re.MULTILINE))

    @property
    def has_gpu(self) -> bool:
        """Whether this build can use a GPU at all."""
        return any(name.startswith("libcudart") or name.startswith("libcublas") for name in self.libraries)

    @property
    def has_cudnn(self) -> bool:
        """Whether this build uses cuDNN."""
        return any(name.startswith("libcudnn") for name in self.libraries)

    @property
    def has_nccl(self) -> bool:
        """Whether this build can train on several GPUs."""
        return any(name.startswith("libnccl") for name in self.libraries)

    @property
    def blas(self) -> str:
        """The file of the BLAS it computes with."""
        for name in ("libopenblas", "libatlas", "libmkl_rt", "libcblas", "libblas"):
            for library, path in self.libraries.items():
                if library.startswith(name):
                    return os.path.realpath(path)
        return "unknown"

    @functools.cached_property
    def version(self) -> str:
        """What ``caffe --version`` says."""
        try:
            done = subprocess.run(
                [str(self.program("caffe")), "--version"], capture_output=True, text=True, errors="replace", check=False
            )
        except OSError as error:
            raise CaffeError(f"{self.bin / 'caffe'}: cannot be started: {error.strerror}. {REMEDY}") from error
        found = re.search(r"version (\S+)", done.stdout + done.stderr)
        if done.returncode or not found:
            raise CaffeError(f"{self.bin / 'caffe'}: does not start: {last_lines(done.stderr)}. {REMEDY}")
        return found.group(1)


def last_lines(output: str, count: int = 3) -> str:
    """The last lines of a program's output, in one."""
    lines = [line.strip() for line in output.strip().splitlines() if line.strip()]
    return " | ".join(lines[-count:]) or "it printed nothing"


def find() -> Caffe:
    """The Caffe that serves; CaffeError with the remedy when there is none."""
    root = os.environ.get("CAFFE_ROOT")
    if root:
        caffe = _at(Path(root), "CAFFE_ROOT")
        if caffe is None:
            raise CaffeError(f"CAFFE_ROOT={root}: no bin/caffe with a pycaffe there. {REMEDY}")
        return caffe
    noted = _noted()
    if noted is not None:
        return noted
    on_path = [shutil.which(name) for name in PROGRAMS]
    if all(on_path) and importlib.util.find_spec("caffe"):
        return Caffe(Path(str(on_path[0])).parent, None, "programs on PATH")
    raise CaffeError(
        f"no Caffe found: CAFFE_ROOT is not set, this environment has no note of one by `make setup`, and "
        f"{', '.join(PROGRAMS)} with an importable pycaffe are not on PATH. {REMEDY}"
    )


def _noted() -> Caffe | None:
    """The Caffe that `make setup` chose for this environment; None when there is no note, or it says PATH."""
    try:
        note = json.loads(NOTE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if note["root"] == "PATH":
        return None
    caffe = _at(Path(note["root"]), note["origin"])
    if caffe is None:
        raise CaffeError(f"{note['root']}: the Caffe that `make setup` noted is gone. {REMEDY}")
    return caffe


def _at(root: Path, origin: str) -> Caffe | None:
    """The Caffe of an install prefix, or of a source folder built in place."""
    root = root.absolute()
    binaries = [
        folder for folder in (root / "bin", root / "build" / "tools", root) if os.access(folder / "caffe", os.X_OK)
    ]
    patterns = ("lib/python3*/dist-packages", "lib/python3*/site-packages", "python")
    pythons = [
        folder
        for pattern in patterns
        for folder in sorted(root.glob(pattern))
        if (folder / "caffe" / "__init__.py").is_file()
    ]
    if not binaries or not pythons:
        return None
    try:
        build = json.loads((root / "bonecaffe-build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        build = {}
    return Caffe(binaries[0], pythons[0], origin, root, build)

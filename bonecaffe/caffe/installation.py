"""Where Caffe is, whether it works, and what it was built with.

bonecaffe uses the first Caffe it finds, in this order: ``CAFFE_ROOT``; the one that ``make setup`` found or built and
noted in the environment's ``share/bonecaffe/caffe.json``; without such a note, programs on PATH with an importable
pycaffe. ``make setup`` itself takes ``CAFFE_ROOT``, then PATH, and otherwise builds one. A packed Caffe that was
unpacked (bundle.py) is used like any other, once it is known to be whole and to fit this machine. Standard library
only: scripts/build_caffe.py uses this module before anything is installed.
"""

from __future__ import annotations

import functools
import importlib.machinery
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from bonecaffe import files
from bonecaffe.caffe import bundle
from bonecaffe.errors import CaffeError, FilesError

PROGRAMS = ("caffe", "convert_imageset", "compute_image_mean")
NOTE = Path(sys.prefix) / "share" / "bonecaffe" / "caffe.json"
"""Which Caffe this environment uses, as ``make setup`` chose it: ``root`` (a folder, or PATH) and ``origin``."""
PTH = Path(sysconfig.get_path("purelib")) / "bonecaffe-pycaffe.pth"
"""Puts that Caffe's pycaffe on this environment's path, so that ``import caffe`` works in it."""
OTHER_ROOT = "Fix it, or unset CAFFE_ROOT and run `make setup`, which builds a Caffe."
"""The remedy when the Caffe at ``CAFFE_ROOT`` does not work."""
BUILD_RECORD = "bonecaffe-build.json"
"""The file in a Caffe built by scripts/build_caffe.py that records how it was built."""
ON_PATH = "PATH"
"""The note's ``root`` for programs on PATH."""
REMEDY = "Run `make setup`, or set CAFFE_ROOT to an installed Caffe."


@dataclass(frozen=True)
class Caffe:
    """An installed Caffe: the folder of its programs, the folder of its pycaffe, where it came from."""

    bin: Path
    python: Path
    origin: str
    root: Path | None = None  # None: programs on PATH
    build: dict[str, str] = field(default_factory=dict)
    bundle: bundle.Bundle | None = None  # where it was packed with its libraries

    def program(self, name: str) -> Path:
        """The path of one of Caffe's programs; CaffeError when it is missing."""
        path = self.bin / name
        if not os.access(path, os.X_OK):
            raise CaffeError(f"{path}: no such program in this Caffe ({self.origin}). {REMEDY}")
        return path

    @functools.cached_property
    def libraries(self) -> dict[str, str]:
        """What the caffe program is linked with: a library's name and the file it resolves to."""
        try:
            done = subprocess.run(["ldd", str(self.program("caffe"))], capture_output=True, text=True, check=False)
        except OSError:
            return {}
        return dict(re.findall(r"^\s*(\S+)\.so\S* => (\S+)", done.stdout, flags=re.MULTILINE))

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
    def is_own_build(self) -> bool:
        """Whether bonecaffe built it, so that it reads bonecaffe's variables about cuDNN (scripts/caffe_cuda.h)."""
        return "edits_sha256" in self.build

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
        """What ``caffe --version`` reports."""
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
    """The last lines of a program's output, joined into one."""
    lines = [line.strip() for line in output.strip().splitlines() if line.strip()]
    return " | ".join(lines[-count:]) or "it printed nothing"


# ---- finding -----------------------------------------------------------------------------------------------------


def find() -> Caffe:
    """The Caffe that bonecaffe uses; CaffeError with the remedy when there is none. `problem` checks that it works."""
    caffe = _from_root() or _noted() or _on_path()
    if caffe is None:
        raise CaffeError(
            f"no Caffe found: CAFFE_ROOT is not set, `make setup` has not chosen one for this environment, and "
            f"{', '.join(PROGRAMS)} with an importable pycaffe are not on PATH. {REMEDY}"
        )
    return caffe


def given() -> Caffe | None:
    """The Caffe that the user has: at ``CAFFE_ROOT``, else on PATH; None when there is none and one must be built."""
    return _from_root() or _on_path()


def at(root: Path, origin: str) -> Caffe:
    """The Caffe of an install prefix, or of a source folder built in place; CaffeError naming what is missing.

    An unpacked bundle must be whole. `find`, `given` and `problem` check whether it fits this machine.
    """
    root = root.absolute()
    packed = bundle.read(root)
    damage = packed.damage() if packed else ""
    if damage:
        raise CaffeError(damage)
    binaries = [
        folder for folder in (root / "bin", root / "build" / "tools", root) if os.access(folder / "caffe", os.X_OK)
    ]
    if not binaries:
        raise CaffeError(f"no bin/caffe or build/tools/caffe in {root}")
    patterns = ("lib/python3*/dist-packages", "lib/python3*/site-packages", "python")
    pythons = [
        folder
        for pattern in patterns
        for folder in sorted(root.glob(pattern))
        if (folder / "caffe" / "__init__.py").is_file()
    ]
    if not pythons:
        raise CaffeError(f"no pycaffe (python/caffe) in {root}")
    return Caffe(binaries[0], pythons[0], origin, root, _read_json(root / BUILD_RECORD), packed)


def _fitting(root: Path, origin: str) -> Caffe:
    """The same; CaffeError for a bundle that does not fit this machine, too, before a program of it fails to start."""
    caffe = at(root, origin)
    misfit = caffe.bundle.misfit(bundle.Machine.this()) if caffe.bundle else ""
    if misfit:
        raise CaffeError(misfit)
    return caffe


def _from_root() -> Caffe | None:
    """The Caffe at ``CAFFE_ROOT``; None when that is not set. A Caffe that the user names is never ignored silently."""
    root = os.environ.get("CAFFE_ROOT")
    if not root:
        return None
    try:
        return _fitting(Path(root), "CAFFE_ROOT")
    except CaffeError as error:
        raise CaffeError(f"CAFFE_ROOT={root} does not work: {error}. {OTHER_ROOT}") from None


def _noted() -> Caffe | None:
    """The Caffe that `make setup` chose for this environment; None when there is no note, or it names PATH."""
    note = _read_json(NOTE)
    root, origin = note.get("root", ON_PATH), note.get("origin", "chosen by `make setup`")
    if root == ON_PATH:
        return None
    try:
        return _fitting(Path(root), origin)
    except CaffeError as error:
        raise CaffeError(f"{root}: the Caffe that `make setup` chose no longer works: {error}. {REMEDY}") from None


def _on_path() -> Caffe | None:
    """Caffe's programs on PATH with a pycaffe on Python's path; None when one of them is missing."""
    programs = [shutil.which(name) for name in PROGRAMS]
    spec = importlib.machinery.PathFinder.find_spec("caffe", _python_path()) if all(programs) else None
    if spec is None or spec.origin is None:
        return None
    return Caffe(Path(str(programs[0])).parent, Path(spec.origin).parent.parent, "programs on PATH")


def _python_path() -> list[str]:
    """Python's path without what `write_note` added: the pycaffe of an earlier Caffe does not count as on the path."""
    try:
        noted = files.read_text(PTH, "settings").splitlines()
    except (OSError, FilesError):
        return sys.path
    by_user = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [folder for folder in sys.path if folder not in noted or folder in by_user]


# ---- whether it works --------------------------------------------------------------------------------------------


def problem(caffe: Caffe) -> str:
    """Why a Caffe does not work here: a bundle for another machine, a missing program, a pycaffe that does not import.

    Empty where it works.
    """
    misfit = caffe.bundle.problem() if caffe.bundle else ""
    if misfit:
        return misfit
    for name in PROGRAMS:
        if not os.access(caffe.bin / name, os.X_OK):
            return f"no program {caffe.bin / name}"
    try:
        pycaffe_version(caffe)
    except CaffeError as error:
        return str(error)
    return ""


def pycaffe_version(caffe: Caffe) -> str:
    """The version of pycaffe; CaffeError when it does not import.

    It is imported in a separate process, because an old build can crash the interpreter.
    """
    path = os.pathsep.join(filter(None, (str(caffe.python), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import caffe; print(getattr(caffe, '__version__', 'of unknown version'))"],
        env={**os.environ, "PYTHONPATH": path, "GLOG_minloglevel": "2"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        crash = f"it crashed ({signal.Signals(-done.returncode).name})" if done.returncode < 0 else ""
        reason = crash or last_lines(done.stderr, 1)
        raise CaffeError(f"pycaffe in {caffe.python} does not import into {sys.executable}: {reason}")
    return done.stdout.strip()


# ---- this environment's note -------------------------------------------------------------------------------------


def write_note(caffe: Caffe) -> None:
    """Make a Caffe the one of this environment: bonecaffe finds it, and ``import caffe`` works."""
    if caffe.root is None:
        files.remove(PTH)
    else:
        files.write_text(PTH, f"{caffe.python}\n", parents=True)
    note = {"root": str(caffe.root or ON_PATH), "origin": caffe.origin}
    files.write_text(NOTE, json.dumps(note, ensure_ascii=False) + "\n", parents=True)


def _read_json(path: Path) -> dict[str, str]:
    """A JSON object of texts; empty when the file is missing or holds something else."""
    try:
        content = json.loads(files.read_text(path, "settings"))
    except (OSError, ValueError, RecursionError, FilesError):
        return {}
    return content if isinstance(content, dict) else {}

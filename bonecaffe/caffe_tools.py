"""The only door to Caffe's programs: find them, ask what they are, call them.

Where Caffe is, first that serves: ``CAFFE_ROOT``; what ``make setup`` found or built and noted in the environment's
``share/bonecaffe/caffe.json``; without such a note, programs on PATH with an importable pycaffe.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from bonecaffe.errors import CaffeError

PROGRAMS = ("caffe", "convert_imageset", "compute_image_mean")
NOTE = Path(sys.prefix) / "share" / "bonecaffe" / "caffe.json"
UNLESS_SET = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # cards are numbered as nvidia-smi numbers them
    "GOMP_SPINCOUNT": "1000",  # a thread that waits gives its core away soon: on a busy machine twice as fast, else as fast
}
"""What Caffe's programs and pycaffe find in their environment, unless the user has set it otherwise."""
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
        done = _run([str(self.program("caffe")), "--version"])
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


def import_pycaffe() -> ModuleType:
    """Import pycaffe without its chatter; CaffeError when it does not import. Only `predict` makes nets of it."""
    for name, value in {"GLOG_minloglevel": "2", **UNLESS_SET}.items():
        os.environ.setdefault(name, value)
    caffe = find()
    if caffe.python is not None and str(caffe.python) not in sys.path:
        sys.path.insert(0, str(caffe.python))
    try:
        return importlib.import_module("caffe")
    except Exception as error:  # an old build fails in many ways: ImportError, TypeError from protobuf, …
        raise CaffeError(
            f"pycaffe does not import into {sys.executable}: {last_lines(str(error), 1)}. {REMEDY}"
        ) from error


def caffe_pb2() -> ModuleType:
    """Caffe's protocol (NetParameter, Datum, …) as the installed Caffe has it."""
    import_pycaffe()
    return importlib.import_module("caffe.proto.caffe_pb2")


def _run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; CaffeError when it cannot be started at all."""
    try:
        return subprocess.run(
            command, cwd=cwd, env=_environment(), capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise CaffeError(f"{command[0]}: cannot be started: {error.strerror}. {REMEDY}") from error


def _environment() -> dict[str, str]:
    """Caffe's log whole and to stderr alone; by default glog leaves files in /tmp too."""
    return {**UNLESS_SET, **os.environ, "GLOG_logtostderr": "1", "GLOG_minloglevel": "0"}


def call(program: str, arguments: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of Caffe's programs to its end; CaffeError with command, code and its last words when it fails."""
    command = [str(find().program(program)), *arguments]
    done = _run(command, cwd)
    if done.returncode:
        raise CaffeError(
            f"{program} failed with exit status {done.returncode}: {fatal_line(done.stderr)}\n  command: {' '.join(command)}"
        )
    return done


Process = subprocess.Popen[bytes]
"""A running program of Caffe's."""


def start(command: list[str], cwd: Path, log: BinaryIO, holding: tuple[int, ...] = ()) -> Process:
    """Start ``caffe`` with its log going straight into a file, so that the log is whole whatever becomes of us.

    It gets a session of its own, so that a terminal's Ctrl-C reaches only us, and the open files ``holding`` (a lock,
    which lasts as long as it does). Should we be killed, the kernel sends it SIGINT: it snapshots and stops.
    """
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=holding,
        preexec_fn=functools.partial(_stop_with, os.getpid(), ctypes.CDLL(None, use_errno=True)),
    )


def _stop_with(parent: int, libc: ctypes.CDLL) -> None:
    """In the child: ask for SIGINT when the parent ends; if it has ended already, don't begin.

    SIGINT acts in it, even if the parent is a script's background job, in which it is ignored: Caffe sets a handler of its
    own only after it has started, and a stop that comes earlier would be lost.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    libc.prctl(1, int(signal.SIGINT))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def nvidia_smi(fields: str) -> str:
    """What nvidia-smi says of the cards, a line each, comma-separated; empty where it is not there or fails."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def pycaffe_version() -> str:
    """The version of pycaffe, imported in a process of its own, so that its crash would not be ours; CaffeError."""
    code = "from bonecaffe import caffe_tools; print(caffe_tools.import_pycaffe().__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CaffeError(f"pycaffe does not import: {last_lines(done.stderr, 1)}. {REMEDY}")
    return done.stdout.strip()


_FATAL = re.compile(r"^F\d{4,8} \d\d:\d\d:\d\d\.\d+ +\d+ (?P<place>\S+)\] (?P<message>.*)$", re.MULTILINE)


def fatal_line(output: str) -> str:
    """Caffe's own fatal line (glog's ``F…``) without its preamble, or the last lines of the output.

    >>> fatal_line("F1123 18:00:00.123456  77 net.cpp:757] Cannot copy param 0 weights from layer 'fc8'")
    "Cannot copy param 0 weights from layer 'fc8' (net.cpp:757)"
    """
    found = _FATAL.search(output)
    return f"{found['message']} ({found['place']})" if found else last_lines(output)

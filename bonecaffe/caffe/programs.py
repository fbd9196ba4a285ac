"""Calling and starting Caffe's programs, and importing pycaffe: the only place that starts a process."""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from bonecaffe.caffe import installation
from bonecaffe.caffe.arithmetic import Arithmetic
from bonecaffe.caffe.installation import REMEDY, last_lines
from bonecaffe.errors import CaffeError
from bonecaffe.files import scratch_file

UNLESS_SET = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # GPUs are numbered as nvidia-smi numbers them
    # a waiting thread gives up its core soon: twice as fast on a busy machine, equally fast on an idle one
    "GOMP_SPINCOUNT": "1000",
    # OpenCV's reader of images starts GDAL, which would load this machine's plugins into a bundle's other GDAL
    "GDAL_DRIVER_PATH": "disable",
}
"""Environment variables for Caffe's programs and pycaffe, where the user has not set them."""


def import_pycaffe() -> ModuleType:
    """Import pycaffe without its log output; CaffeError when it does not import. Only `predict` makes nets with it."""
    os.environ.update({"GLOG_minloglevel": "2", **_unless_set(), **os.environ})
    Arithmetic.read().apply(os.environ)
    caffe = installation.find()
    if str(caffe.python) not in sys.path:
        sys.path.insert(0, str(caffe.python))
    try:
        return importlib.import_module("caffe")
    except Exception as error:  # an old build fails in many ways: ImportError, TypeError from protobuf, …
        raise CaffeError(
            f"pycaffe does not import into {sys.executable}: {last_lines(str(error), 1)}. {REMEDY}"
        ) from error


def caffe_pb2() -> ModuleType:
    """The installed Caffe's protocol (NetParameter, Datum, …)."""
    import_pycaffe()
    return importlib.import_module("caffe.proto.caffe_pb2")


def _unless_set() -> dict[str, str]:
    """`UNLESS_SET`, without what contradicts the user's own way for OpenMP's threads to wait."""
    chosen = "OMP_WAIT_POLICY" in os.environ
    return {name: value for name, value in UNLESS_SET.items() if not (chosen and name == "GOMP_SPINCOUNT")}


def _environment() -> dict[str, str]:
    """The environment in which Caffe logs everything, to stderr only; by default glog also leaves files in /tmp.

    CaffeError when a variable about a GPU's arithmetic has a value that is none.
    """
    environment = {**_unless_set(), **os.environ, "GLOG_logtostderr": "1", "GLOG_minloglevel": "0"}
    Arithmetic.read().apply(environment)
    return environment


class Call:
    """One of Caffe's programs, started: wait for its end with `finish`, or end it with `stop`.

    It ends when this process is killed. CaffeError when it cannot be started.
    """

    def __init__(self, program: str, arguments: list[str], cwd: Path | None = None) -> None:
        self._name = program
        self._command = [str(installation.find().program(program)), *arguments]
        self._output = scratch_file()
        try:
            self._process = subprocess.Popen(
                self._command,
                cwd=cwd,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._output,
                preexec_fn=functools.partial(_end_with, os.getpid(), signal.SIGKILL, ctypes.CDLL(None)),
            )
        except OSError as error:
            self._output.close()
            if error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR):
                raise CaffeError(f"{self._command[0]}: cannot be started: {error.strerror}. {REMEDY}") from error
            raise  # short of memory, processes or files: not the program's fault

    def finish(self) -> str:
        """Wait for its end and return its stderr; CaffeError with the command and the last message when it failed."""
        status = self._process.wait()
        self._output.seek(0)
        output = self._output.read().decode("utf-8", "replace")
        if status:
            raise CaffeError(
                f"{self._name} failed with exit status {status}: {fatal_line(output)}\n"
                f"  command: {' '.join(self._command)}"
            )
        return output

    def stop(self) -> None:
        """End it at once if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._output.close()


def call(program: str, arguments: list[str], cwd: Path | None = None) -> str:
    """Run one of Caffe's programs to its end and return its stderr; see `Call`."""
    running = Call(program, arguments, cwd)
    try:
        return running.finish()
    finally:
        running.stop()


Process = subprocess.Popen[bytes]
"""One of Caffe's programs, running."""


def start(command: list[str], cwd: Path, log: BinaryIO, holding: tuple[int, ...] = ()) -> Process:
    """Start ``caffe`` with its log going straight into a file, so that the log is complete even if this process dies.

    Caffe gets its own session, so that a terminal's Ctrl-C reaches only this process. It also gets the open files
    ``holding``: a lock then lasts as long as Caffe does. If this process is killed, the kernel sends Caffe SIGINT: it
    writes a snapshot and stops.
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
        preexec_fn=functools.partial(_end_with, os.getpid(), signal.SIGINT, ctypes.CDLL(None)),
    )


def _end_with(parent: int, how: signal.Signals, libc: ctypes.CDLL) -> None:
    """In the child: ask for a signal when the parent ends; if it has ended already, exit.

    SIGINT is reset to its default and unblocked. The parent may ignore it (as a script's background job) or block it
    while it starts the child. Caffe sets its own handler only after it has started, so an earlier stop would be lost.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    libc.prctl(1, int(how))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def nvidia_smi(fields: str) -> str:
    """What nvidia-smi reports about the GPUs, one line each, comma-separated; empty where it is missing or fails."""
    program = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"  # Windows' own, under WSL2
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


_COUNT = """
import ctypes
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
print(count.value)
"""


def cuda_count() -> int | None:
    """How many GPUs CUDA's driver gives to a program; None where it cannot be asked. A process of its own asks it."""
    command = [sys.executable, "-I", "-c", _COUNT]
    try:
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=60, check=False)
        return int(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


_FATAL = re.compile(r"^F\d{4,8} \d\d:\d\d:\d\d\.\d+ +\d+ (?P<place>\S+)\] (?P<message>.*)$", re.MULTILINE)


def fatal_line(output: str) -> str:
    """Caffe's own fatal line (glog's ``F…``) without its preamble, or the last lines of the output.

    >>> fatal_line("F1123 18:00:00.123456  77 net.cpp:757] Cannot copy param 0 weights from layer 'fc8'")
    "Cannot copy param 0 weights from layer 'fc8' (net.cpp:757)"
    """
    found = _FATAL.search(output)
    return f"{found['message']} ({found['place']})" if found else last_lines(output)

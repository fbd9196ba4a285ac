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
from bonecaffe.caffe.installation import REMEDY, last_lines
from bonecaffe.errors import CaffeError
from bonecaffe.files import scratch_file

UNLESS_SET = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # GPUs are numbered as nvidia-smi numbers them
    # a thread that waits gives its core away soon: twice as fast on a busy machine, as fast on an idle one
    "GOMP_SPINCOUNT": "1000",
    # OpenCV's reader of images starts GDAL, which would load this machine's plugins into a bundle's other GDAL
    "GDAL_DRIVER_PATH": "disable",
}
"""What Caffe's programs and pycaffe find in their environment, unless the user has set it otherwise."""


def import_pycaffe() -> ModuleType:
    """Import pycaffe without its chatter; CaffeError when it does not import. Only `predict` makes nets of it."""
    for name, value in {"GLOG_minloglevel": "2", **UNLESS_SET}.items():
        os.environ.setdefault(name, value)
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
    """Caffe's protocol (NetParameter, Datum, …) as the installed Caffe has it."""
    import_pycaffe()
    return importlib.import_module("caffe.proto.caffe_pb2")


def _environment() -> dict[str, str]:
    """Caffe's log whole and to stderr alone; by default glog leaves files in /tmp too."""
    return {**UNLESS_SET, **os.environ, "GLOG_logtostderr": "1", "GLOG_minloglevel": "0"}


class Call:
    """One of Caffe's programs, started: wait for its end with `finish`, or end it with `stop`.

    It is ended when we are killed. CaffeError when it cannot be started.
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
            raise  # short of memory, processes or files: no fault of the program

    def finish(self) -> str:
        """Wait for its end and give what it wrote to stderr; CaffeError with command and last words when it failed."""
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
    """Run one of Caffe's programs to its end and give what it wrote to stderr; see `Call`."""
    running = Call(program, arguments, cwd)
    try:
        return running.finish()
    finally:
        running.stop()


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
        preexec_fn=functools.partial(_end_with, os.getpid(), signal.SIGINT, ctypes.CDLL(None)),
    )


def _end_with(parent: int, how: signal.Signals, libc: ctypes.CDLL) -> None:
    """In the child: ask for a signal when the parent ends; if it has ended already, don't begin.

    SIGINT acts in it, even if the parent is a script's background job, in which it is ignored, or holds it back while
    it starts us: Caffe sets a handler of its own only after it has started, and a stop that comes earlier would be
    lost.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    libc.prctl(1, int(how))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def nvidia_smi(fields: str) -> str:
    """What nvidia-smi reports of the GPUs, a line each, comma-separated; empty where it is not installed or fails."""
    program = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"  # Windows' own, under WSL2
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


_FATAL = re.compile(r"^F\d{4,8} \d\d:\d\d:\d\d\.\d+ +\d+ (?P<place>\S+)\] (?P<message>.*)$", re.MULTILINE)


def fatal_line(output: str) -> str:
    """Caffe's own fatal line (glog's ``F…``) without its preamble, or the last lines of the output.

    >>> fatal_line("F1123 18:00:00.123456  77 net.cpp:757] Cannot copy param 0 weights from layer 'fc8'")
    "Cannot copy param 0 weights from layer 'fc8' (net.cpp:757)"
    """
    found = _FATAL.search(output)
    return f"{found['message']} ({found['place']})" if found else last_lines(output)

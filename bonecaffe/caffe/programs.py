"""Calling and starting Caffe's programs, and importing pycaffe: the only place that starts a process."""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from bonecaffe.caffe import installation
from bonecaffe.caffe.installation import REMEDY, last_lines
from bonecaffe.errors import CaffeError

UNLESS_SET = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # GPUs are numbered as nvidia-smi numbers them
    "GOMP_SPINCOUNT": "1000",  # a thread that waits gives its core away soon: on a busy machine twice as fast, else as fast
}
"""What Caffe's programs and pycaffe find in their environment, unless the user has set it otherwise."""


def import_pycaffe() -> ModuleType:
    """Import pycaffe without its chatter; CaffeError when it does not import. Only `predict` makes nets of it."""
    for name, value in {"GLOG_minloglevel": "2", **UNLESS_SET}.items():
        os.environ.setdefault(name, value)
    caffe = installation.find()
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


def _run(
    command: list[str], cwd: Path | None = None, stop: threading.Event | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, or until ``stop`` is set or we are interrupted, when it is killed; it never outlives us.

    CaffeError when it cannot be started for a reason of its own; OSError when the machine is short of something.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C is for us to handle
            preexec_fn=_end_with_us(signal.SIGKILL),
        )
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise CaffeError(f"{command[0]}: cannot be started: {error.strerror}. {REMEDY}") from error
    with process:
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=None if stop is None else 0.1)
                    return subprocess.CompletedProcess(command, process.returncode, out, err)
                except subprocess.TimeoutExpired:
                    if stop is not None and stop.is_set():
                        process.kill()
        except BaseException:
            process.kill()
            raise


def _environment() -> dict[str, str]:
    """Caffe's log whole and to stderr alone; by default glog leaves files in /tmp too."""
    return {**UNLESS_SET, **os.environ, "GLOG_logtostderr": "1", "GLOG_minloglevel": "0"}


def call(
    program: str, arguments: list[str], cwd: Path | None = None, stop: threading.Event | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of Caffe's programs to its end; CaffeError with command, code and its last words when it fails.

    Where another thread may want it to end early, ``stop`` is what that thread sets; the program is killed then.
    """
    command = [str(installation.find().program(program)), *arguments]
    done = _run(command, cwd, stop)
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
        preexec_fn=_end_with_us(signal.SIGINT),
    )


def _end_with_us(number: signal.Signals) -> Callable[[], None]:
    """What a child calls before it becomes the program, so that the kernel sends it a signal when we end.

    More exactly when the thread that started it ends: start a program in a thread that waits for it.
    """
    return functools.partial(_stop_with, os.getpid(), ctypes.CDLL(None, use_errno=True), int(number))


def _stop_with(parent: int, libc: ctypes.CDLL, number: int) -> None:
    """In the child: ask for the signal when the parent ends; if it has ended already, don't begin."""
    libc.prctl(1, number)  # PR_SET_PDEATHSIG
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
    code = "from bonecaffe.caffe import programs; print(programs.import_pycaffe().__version__)"
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

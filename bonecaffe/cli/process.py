"""The command as a process: Ctrl-C ends it within two seconds, and a closed output pipe never ends it.

Only the command owns its process. None of this applies when Python code calls ``main(["prepare", …])``.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TextIO

from bonecaffe.cli import make

LIMIT_S = 1.5
"""Seconds from Ctrl-C until the process ends, whatever it is waiting for."""
SENTENCE = (
    "bonecaffe: interrupted. prepare, repeat, locate and train-locator continue where they stopped when called again, "
    "train with --resume."
)
_READER_GONE = {errno.EPIPE, errno.EBADF, errno.EIO, errno.ECONNRESET}

_interrupts: list[int] = []  # signals received; a list, because an Event's lock would hang a handler inside a handler
_printed = threading.Lock()  # acquired by the thread that prints SENTENCE; no thread waits for it


def interrupted() -> bool:
    """Whether this process received a Ctrl-C. False while Caffe trains: the signal then goes to Caffe."""
    return bool(_interrupts)


def run(command: Callable[[], object]) -> NoReturn:
    """Run a command as this process and end the process with the command's exit status."""
    _own_streams()
    ignored = (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    )  # set by a caller such as nohup: left as it is
    if not ignored:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _quiet_after_interrupt(sys.unraisablehook)
    try:
        code = _status(command)
        if not ignored:
            signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))
        _flush()
        if not code and (failure := _write_failure(sys.stdout)):
            sys.stderr.write(
                f"bonecaffe: the work is done, but its output could not be written: {failure.strerror}. "
                "Run it again and send the output somewhere else.\n"
            )
            code = 1
        if not interrupted():
            sys.exit(code)
    except KeyboardInterrupt:
        code = 130
    if code:
        print_interrupted()
    _flush()
    os._exit(130 if code else 0)  # a normal exit would wait for the libraries' threads without a limit


def _status(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


# ---- Ctrl-C ------------------------------------------------------------------------------------------------------


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C: unwind and exit in time. Later ones are ignored, because they would disturb that.

    The signal can arrive anywhere, even inside `threading` or this function: nothing here waits for a lock.
    """
    _interrupts.append(number)
    signal.signal(signal.SIGINT, _no_more)
    try:
        _thread.start_new_thread(_end_in_time, ())
    except RuntimeError:  # no more threads: the kernel ends the process instead
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    raise KeyboardInterrupt


def _no_more(number: int, frame: FrameType | None) -> None:
    """Ignore a later Ctrl-C. With SIG_IGN, Python prints a traceback for one that arrived just before it was set."""


def _quiet_after_interrupt(
    hook: Callable[[sys.UnraisableHookArgs], object],
) -> Callable[[sys.UnraisableHookArgs], object]:
    """A hook for exceptions that no code can catch, for example in a library's fork handler; silent after Ctrl-C.

    A KeyboardInterrupt can be swallowed there. `_end_in_time` still ends the process.
    """
    return lambda unraisable: None if interrupted() else hook(unraisable)


def _end_in_time() -> None:
    time.sleep(LIMIT_S)
    with contextlib.suppress(OSError):
        if select.select([], [2], [], 0)[1]:  # do not wait for a reader that has stopped reading
            if os.isatty(2):
                os.write(2, b"\x1b[?25h")  # show the cursor, which a progress bar hides
            if _printed.acquire(blocking=False):
                os.write(2, f"{make.explained(SENTENCE)}\n".encode())
    os._exit(130)


def print_interrupted() -> None:
    """Print SENTENCE once."""
    if _printed.acquire(blocking=False):
        print(make.explained(SENTENCE), file=sys.stderr, flush=True)


# ---- standard output and error -----------------------------------------------------------------------------------


class _Unfailing(io.FileIO):
    """An output that can always be written to. Once its reader is gone or its disk is full, the rest is discarded."""

    failure: OSError | None = None

    def write(self, content) -> int:  # type: ignore[no-untyped-def]
        """Write, or store why that failed."""
        while self.failure is None:
            try:
                written = super().write(content)
                if written is not None:
                    return written
                select.select([], [self], [])  # a pipe that another process made non-blocking
            except OSError as failure:
                self.failure = failure
        return len(content)


def _own_streams() -> None:
    """Open all three standard streams; writing to the two outputs never fails."""
    while True:  # the next file opened would get the number of a closed stream (`>&-`), and output would go into it
        number = os.open(os.devnull, os.O_RDWR)
        if number > 2:
            os.close(number)
            break
        os.set_inheritable(number, True)
    sys.stdout = _unfailing(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _unfailing(sys.stderr, sys.__stderr__, 2)


def _unfailing(stream: TextIO | None, own: TextIO | None, number: int) -> TextIO:
    if stream is not own:  # a caller, such as a test, has replaced it
        assert stream is not None
        return stream
    raw = _Unfailing(number, "w", closefd=False)
    # A character that the output's encoding lacks must not end the work either.
    kept = {"strict": "backslashreplace"}
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else "utf-8",
        errors=kept.get(stream.errors or "strict", stream.errors) if stream else "backslashreplace",
        line_buffering=number == 2 or raw.isatty(),
    )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _write_failure(stream: TextIO) -> OSError | None:
    """Why the output was not written; None if it was, or if its reader closed the pipe."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, _Unfailing) else None
    return None if failure is None or failure.errno in _READER_GONE else failure

"""The command as a process: Ctrl-C ends it within two seconds, and whoever reads its output never ends it.

Only the command owns its process. Called from Python, as ``main(["prepare", …])``, none of this is in force.
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
"""Seconds after a Ctrl-C when the process ends, whatever it still waits for."""
SENTENCE = (
    "bonecaffe: interrupted. prepare, repeat, locate and train-locator pick up where they stopped when called again, "
    "train with --resume."
)
_READER_GONE = {errno.EPIPE, errno.EBADF, errno.EIO, errno.ECONNRESET}

_interrupts: list[int] = []  # that came to us; a list, because an Event's lock would hang a handler in a handler
_told = threading.Lock()  # taken by who prints the sentence, never waited for


def interrupted() -> bool:
    """Whether a Ctrl-C came to us; while Caffe trains, it is Caffe that stops, and this is False."""
    return bool(_interrupts)


def run(command: Callable[[], object]) -> NoReturn:
    """Run a command as this process, and end the process with its exit status."""
    _own_streams()
    ignored = signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # by nohup-like callers: stays so
    if not ignored:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _quiet_after_interrupt(sys.unraisablehook)
    try:
        code = _status(command)
        if not ignored:
            signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))
        _flush()
        if not code and (failure := _lost(sys.stdout)):
            sys.stderr.write(
                f"bonecaffe: the work is done, but what it printed could not be written: {failure.strerror}. "
                "Call it again with its output somewhere else.\n"
            )
            code = 1
        if not interrupted():
            sys.exit(code)
    except KeyboardInterrupt:
        code = 130
    if code:
        tell_interrupted()
    _flush()
    os._exit(130 if code else 0)  # the interpreter's own end joins the threads of libraries, for as long as they take


def _status(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


# ---- Ctrl-C ------------------------------------------------------------------------------------------------------


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C: unwind, and be gone in time. A second one would only disturb that.

    The work may be interrupted anywhere, in `threading` and in this function too: nothing here waits for a lock.
    """
    _interrupts.append(number)
    signal.signal(signal.SIGINT, _no_more)
    try:
        _thread.start_new_thread(_end_in_time, ())
    except RuntimeError:  # no more threads: the kernel ends us
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    raise KeyboardInterrupt


def _no_more(number: int, frame: FrameType | None) -> None:
    """A later Ctrl-C. With SIG_IGN instead, Python prints a traceback for one that came just before it was set."""


def _quiet_after_interrupt(
    hook: Callable[[sys.UnraisableHookArgs], object],
) -> Callable[[sys.UnraisableHookArgs], object]:
    """A hook for exceptions that nobody can catch, as in what a library does around a fork; silent once we end.

    The KeyboardInterrupt that is lost there is made up for by `_end_in_time`.
    """
    return lambda unraisable: None if interrupted() else hook(unraisable)


def _end_in_time() -> None:
    time.sleep(LIMIT_S)
    with contextlib.suppress(OSError):
        if select.select([], [2], [], 0)[1]:  # a reader that has stopped reading does not keep us
            if os.isatty(2):
                os.write(2, b"\x1b[?25h")  # the cursor, which a progress bar hides
            if _told.acquire(blocking=False):
                os.write(2, f"{make.explained(SENTENCE)}\n".encode())
    os._exit(130)


def tell_interrupted() -> None:
    """Print the sentence, once."""
    if _told.acquire(blocking=False):
        print(make.explained(SENTENCE), file=sys.stderr, flush=True)


# ---- standard output and error -----------------------------------------------------------------------------------


class _Unfailing(io.FileIO):
    """An output that can always be written to. Once its reader is gone or its disk is full, the rest is dropped."""

    failure: OSError | None = None

    def write(self, content) -> int:  # type: ignore[no-untyped-def]
        """Write, or remember why not."""
        while self.failure is None:
            try:
                written = super().write(content)
                if written is not None:
                    return written
                select.select([], [self], [])  # a pipe that another process has set to not wait
            except OSError as failure:
                self.failure = failure
        return len(content)


def _own_streams() -> None:
    """Have all three standard streams open, and the two for output unfailing."""
    while True:  # a stream that was closed (`>&-`) would be the next file that is opened, and be written into
        number = os.open(os.devnull, os.O_RDWR)
        if number > 2:
            os.close(number)
            break
        os.set_inheritable(number, True)
    sys.stdout = _unfailing(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _unfailing(sys.stderr, sys.__stderr__, 2)


def _unfailing(stream: TextIO | None, own: TextIO | None, number: int) -> TextIO:
    if stream is not own:  # someone has put another in its place
        assert stream is not None
        return stream
    raw = _Unfailing(number, "w", closefd=False)
    kept = {"strict": "backslashreplace"}  # an output that has no letter for what we print does not end the work either
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


def _lost(stream: TextIO) -> OSError | None:
    """Why the output was not written, unless its reader has gone and wants no more."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, _Unfailing) else None
    return None if failure is None or failure.errno in _READER_GONE else failure

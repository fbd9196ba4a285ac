"""Run programs: for their output, or as a step of the build with the output in a log."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bonecaffe import files
from bonecaffe.errors import CaffeError

STOPS_WITHIN_S = 10


def say(message: str) -> None:
    """Print one line for the user on stderr; stdout is for the result."""
    print(f"caffe: {message}", file=sys.stderr, flush=True)


def ask(command: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program and capture its output. As in a shell, the exit status is 127 if it cannot be started."""
    try:
        return subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: {error.strerror}")


def tenth(line: bytes) -> int | None:
    """Tenths of the work done, from a line of make's output; None for a line without a percentage.

    >>> tenth(b"[ 42%] Building CXX object net.cpp.o"), tenth(b"Scanning dependencies")
    (4, None)
    """
    found = re.match(rb"\[ *(\d+)%\]", line)
    return int(found[1]) // 10 if found else None


def last_lines(path: Path, count: int) -> str:
    """The end of a log."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


@dataclass(frozen=True)
class Steps:
    """Runs the steps of a build, one after another, with their output in one log.

    A step inherits the open file ``lock``. If the builder is killed, the lock stays held until its steps have ended.
    """

    log: Path
    lock: int

    def run(self, command: Sequence[str], **environment: str) -> None:
        """Run a step and print a message for each tenth of make's work. CaffeError with the log's end on failure."""
        with files.open_append(self.log) as log, self._started(command, environment) as process:
            last = -1
            for line in process.stdout or ():
                log.write(line)
                log.flush()  # lets the user follow the log while the step runs
                done = tenth(line)
                if done is not None and done > last:
                    last = done
                    say(f"{done * 10} %")
        if process.returncode:
            end = last_lines(self.log, 30)
            raise CaffeError(f"failed: {shlex.join(command)}\n{end}\ncaffe: the whole log: {self.log}")

    @contextlib.contextmanager
    def _started(self, command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """A running step. It is stopped when the block is interrupted."""
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(self.lock,),
        )
        try:
            yield process
            process.wait()
        except BaseException:
            _stop(process)
            raise


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a step; make passes the signal on to its compilers."""
    process.terminate()
    try:
        process.wait(STOPS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

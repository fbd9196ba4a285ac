"""Run ``caffe train`` to its end: watch its log, pass signals on, report exactly how it ended.

Caffe writes its log to the file itself, and this module reads it there. So the log is complete, and Caffe can finish
its snapshot, even when this process is killed.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from bonecaffe.caffe import installation, log, programs, snapshots
from bonecaffe.caffe.fatal import explain
from bonecaffe.files import open_append, open_regular, write_text
from bonecaffe.records import Launch, State
from bonecaffe.run import RunDir
from bonecaffe.training.alarms import Alarms, Silence
from bonecaffe.training.preflight import Schedule

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler's stop, a closed terminal


@dataclass
class Standing:
    """The progress of a training; passed to the watcher with every event."""

    max_iter: int
    started_at: int  # iteration
    test_interval: int = 0
    images: int = 0  # per iteration
    event: log.Event | None = None
    iteration: int = 0
    train_loss: float = math.nan
    test_loss: float = math.nan
    rate: float = math.nan  # learning rate
    alarms: list[str] = field(default_factory=list)
    _first: tuple[int, float] | None = None  # iteration and time of the first one shown
    iterations_per_s: float = math.nan

    @property
    def images_per_s(self) -> float:
        """Images trained on per second; the time includes test passes."""
        return self.iterations_per_s * self.images

    @property
    def eta_s(self) -> float:
        """Seconds to the last iteration at the speed so far; nan before it is known."""
        return self._seconds_to(self.max_iter)

    @property
    def eta_test_s(self) -> float:
        """Seconds to the next test pass; nan before it is known, or when there is none."""
        if self.test_interval <= 0:
            return math.nan
        return self._seconds_to(min(self.max_iter, (self.iteration // self.test_interval + 1) * self.test_interval))

    def _seconds_to(self, iteration: int) -> float:
        return (iteration - self.iteration) / self.iterations_per_s if self.iterations_per_s > 0 else math.nan

    def note(self, event: log.Event, now: float) -> None:
        """Add an event, seen at ``now`` (seconds)."""
        self.event = event
        if event.kind == "train_loss" and event.iteration is not None:
            self.iteration, self.train_loss = event.iteration, event.value
            if self._first is None:
                self._first = event.iteration, now
            done, seconds = event.iteration - self._first[0], now - self._first[1]
            if done > 0 and seconds > 0:
                self.iterations_per_s = done / seconds
        elif event.kind == "test_output" and event.text == "loss":
            self.test_loss = event.value
        elif event.kind == "lr":
            self.rate = event.value


Watcher = Callable[[Standing], None]
Say = Callable[[str], None]
"""Called with a sentence that a person should read."""


def silent(sentence: str) -> None:
    """Prints nothing; the default of ``say``."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended: ``finished``, ``interrupted``, ``diverged``, ``died`` or ``killed``; why; its alarms."""

    state: State
    iteration: int
    why: str
    seconds: float
    alarms: tuple[str, ...] = ()


def now() -> str:
    """The time of day, for records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def drive(
    run: RunDir,
    schedule: Schedule,
    launch: Launch,
    started_at: int,
    lock: int,
    alarms: Alarms,
    watch: Watcher | None = None,
    say: Say = silent,
) -> Outcome:
    """Run Caffe until it ends, and update curve.csv meanwhile. Caffe inherits the open file ``lock``."""
    progress = Standing(schedule.max_iter, started_at, schedule.test_interval, schedule.images, iteration=started_at)
    began = time.monotonic()
    ending = _Ending()
    arguments = launch.argv(installation.find().program("caffe"))
    with open_append(run.caffe_log) as written:
        _begin_attempt(written, arguments)
        curve = _earlier_curve(run)
        offset = written.seek(0, os.SEEK_END)
        with _passing_signals(ending) as pass_to, contextlib.ExitStack() as stack:
            process = programs.start(arguments, run.path, written, (lock,))
            stack.enter_context(_not_left_behind(process))
            pass_to(process)
            silence = Silence(log_interval=schedule.log_interval)

            def raise_alarm(alarm: str) -> None:
                progress.alarms.append(alarm)
                with contextlib.suppress(Exception):
                    say(f"ALARM: {alarm}")

            def idle() -> None:
                for alarm in silence.idle():
                    raise_alarm(alarm)

            lines = silence.listen(follow(run.caffe_log, offset, process, idle))
            for event in log.parse(ending.keeping_tail(lines)):
                curve.add(event)
                ending.note(event)
                progress.note(event, time.monotonic())
                if ending.diverged:
                    process.kill()
                for alarm in alarms.hear(event):
                    raise_alarm(alarm)
                if event.kind in ("testing", "snapshot"):
                    _renew_curve(run, curve, progress, say)
                if watch:
                    with contextlib.suppress(Exception):  # a broken display never stops a training
                        watch(progress)
            code = process.wait()
    _renew_curve(run, curve, progress, say)
    state, iteration, why = _judge(run, schedule.max_iter, code, ending, progress.iteration)
    why = why.replace(f"{run.path}{os.sep}", "")  # recorded in the manifest: no path of this machine
    return Outcome(state, iteration, why, time.monotonic() - began, tuple(progress.alarms))


def _renew_curve(run: RunDir, curve: log.Curve, progress: Standing, say: Say) -> None:
    """Write curve.csv. A full disk is no reason to stop Caffe: the log still holds everything."""
    try:
        write_text(run.curve, curve.csv())
    except OSError as error:
        alarm = f"{run.curve.name} cannot be written: {error.strerror}. Caffe continues; free some space."
        if alarm not in progress.alarms:
            progress.alarms.append(alarm)
            with contextlib.suppress(Exception):
                say(f"ALARM: {alarm}")


def _begin_attempt(written: BinaryIO, arguments: list[str]) -> None:
    """Write a line that separates the attempts; it starts on a new line, however the last attempt ended."""
    end = written.seek(0, os.SEEK_END)
    if end:
        written.seek(end - 1)
        if written.read(1) != b"\n":
            written.write(b"\n")
    written.write(f"{log.ATTEMPT}{now()}: {shlex.join(arguments)}\n".encode())
    written.flush()


def _earlier_curve(run: RunDir) -> log.Curve:
    with io.TextIOWrapper(open_regular(run.caffe_log), encoding="utf-8", errors="replace") as lines:
        return log.Curve(log.parse(lines))


def follow(
    path: Path, offset: int, process: programs.Process, idle: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """The lines that a running program adds to a file, as they come, until it has ended and all are read.

    ``idle`` is called again and again while there is none.
    """
    rest = b""
    with open_regular(path) as file:
        file.seek(offset)
        while True:
            over = process.poll() is not None  # before reading, so that nothing written before the end is missed
            chunk = file.read()
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace")
            if over:
                if rest:
                    yield rest.decode("utf-8", "replace")
                return
            if not chunk:
                idle()
                time.sleep(0.05)


@dataclass
class _Ending:
    """The observations that decide how a training ended."""

    stopped: bool = False
    done: bool = False
    diverged: bool = False
    fatal: str = ""
    tail: str = ""
    signals: int = 0  # stopping signals received

    def note(self, event: log.Event) -> None:
        self.stopped |= event.kind == "stopped_early"
        self.done |= event.kind == "done"
        self.fatal = self.fatal or (event.text if event.kind == "fatal" else "")
        self.diverged |= event.kind in ("train_loss", "test_output") and not math.isfinite(event.value)

    def keeping_tail(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            self.tail = line.strip() or self.tail
            yield line


def _judge(run: RunDir, max_iter: int, code: int, ending: _Ending, iteration: int) -> tuple[State, int, str]:
    """State, iteration and reason. Finished only when done, without an early stop, with a complete last snapshot.

    A GPU's driver may abort a program that has finished its work, while its libraries are unloaded (BVLC/caffe#5416).
    Then the exit status is not 0, and the model is complete all the same.
    """
    if ending.diverged:
        return State.DIVERGED, iteration, "the loss is nan or inf. Lower solver.base_lr in the recipe."
    last = next((snapshot for snapshot in snapshots.find(run.snapshots) if snapshot.iteration == max_iter), None)
    if code == 0 and not ending.stopped:
        flaw = last.flaw() if last else f"{run.snapshots}: no snapshot of iteration {max_iter}."
        if flaw is None:
            return State.FINISHED, max_iter, ""
        return (
            State.DIED,
            iteration,
            f"caffe train reported that it was done, but {flaw} The whole log: {run.caffe_log}",
        )
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    if ending.done and not ending.stopped and last and last.flaw() is None:
        tail = f": {ending.fatal or ending.tail}" if ending.fatal or ending.tail else ""
        return (
            State.FINISHED,
            max_iter,
            f"the model is complete. Afterwards, while it exited, caffe train failed: {how}{tail}",
        )
    newest = snapshots.newest_complete(run.snapshots)
    remedy = "Continue with --resume." if newest else "There is no complete snapshot yet: train again."
    if ending.stopped:
        at = newest.iteration if newest else iteration
        return State.INTERRUPTED, at, f"stopped early; Caffe wrote a snapshot. {remedy}"
    if code == -signal.SIGINT and ending.signals == 1:
        return State.INTERRUPTED, newest.iteration if newest else 0, f"stopped before Caffe had begun. {remedy}"
    if code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
        origin = (
            "at your second signal"
            if ending.signals > 1
            else "sent by another program, such as the kernel when memory is short"
        )
        return State.KILLED, iteration, f"caffe train: {how}, {origin}. {remedy} The whole log: {run.caffe_log}"
    message = ending.fatal or ending.tail or "it printed nothing"
    meaning = explain(message)
    cause = f"{message}. Meaning: {meaning}" if meaning else message
    return State.DIED, iteration, f"caffe train: {how}: {cause}. {remedy} The whole log: {run.caffe_log}"


@contextlib.contextmanager
def _passing_signals(ending: _Ending) -> Iterator[Callable[[programs.Process], None]]:
    """Pass the first stopping signal to Caffe as SIGINT, so that it writes a snapshot and stops; a second one kills it.

    Yields the function to call with Caffe's process as soon as it runs. A signal that comes earlier waits for that: an
    exception raised while Caffe is being forked would be lost. A signal mask would not help: another thread would
    receive the signal.
    """
    started: list[programs.Process] = []

    def handle(number: int, frame: object) -> None:
        ending.signals += 1
        stop()

    def stop() -> None:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT if ending.signals == 1 else signal.SIGKILL)

    def pass_to(process: programs.Process) -> None:
        started.append(process)
        if ending.signals:
            stop()

    try:
        # nohup ignores one of them
        handled = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, handle) for number in handled}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield pass_to
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _not_left_behind(process: programs.Process) -> Iterator[None]:
    """If the driver fails meanwhile (for example because the disk is full), stop Caffe before the run is released."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()

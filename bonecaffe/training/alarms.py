"""What a person who watches a training wants to know at once. Events of the log in, sentences out.

Each alarm is a small listener with one method, ``hear``, and yields its sentence once. `Alarms` combines them. nan and
inf have no alarm: they end the training (`drive`).
"""

from __future__ import annotations

import re
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bonecaffe.caffe.log import Event, rmse_months

GROWN = 2.0
"""The training loss has grown when it is this many times its first value (median of the last five displayed)."""
GROWN_TEST = 1.1
"""The same for the loss of a whole test pass, which hardly fluctuates."""
ALIKE = 0.03
"""How close, as a fraction, the test error must be to that of a constant prediction, in two successive tests."""
BETTER = 0.99
"""A test loss below this share of the best so far is an improvement."""
SILENT, SHORTEST_SILENCE_S, KNOWN_AFTER = 10.0, 300.0, 3
"""A pause in the log is an alarm when it is this many times the longest before, and at least this long, in seconds. The
rhythm is known when the log has named this many different iterations."""
FIRST_SILENCE_S, SLOW_ITERATION_S = 1800.0, 90.0
"""Until then, a pause is an alarm after this time, or after this time for each iteration until the next line."""
LOOK_EVERY_S = 10.0
"""Seconds between checks of the free disk space, at least."""


@dataclass(frozen=True)
class Constant:
    """The mean squared error, in months², of one predicted age for all test hands.

    ``best``: of the age with the least error. ``guess``: of the mean training age.
    """

    best: float
    guess: float

    @classmethod
    def of(cls, train: Sequence[float], test: Sequence[float]) -> Constant:
        """From the ages of both splits, in months."""
        variance = statistics.pvariance(test)
        return cls(variance, variance + (statistics.fmean(test) - statistics.fmean(train)) ** 2)

    def matches(self, test_loss: float) -> bool:
        """Whether a test loss (half a mean square) is that of a constant prediction."""
        return self.best * (1 - ALIKE) <= 2 * test_loss <= self.guess * (1 + ALIKE)


class Listener(Protocol):
    """One alarm."""

    def hear(self, event: Event) -> Iterator[str]:
        """The sentence of the alarm that an event raises, if any."""


class Alarms:
    """Several alarms as one."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    @classmethod
    def of_training(cls, constant: Constant, patience: int, folder: Path, snapshot_bytes: int) -> Alarms:
        """All the alarms of a training; ``patience`` in iterations, and folder and size of the next snapshot."""
        advice = Once()
        return cls(
            GrownTrainLoss(advice),
            GrownTestLoss(advice),
            ConstantAnswer(constant),
            Plateau(patience),
            DiskRoom(folder, snapshot_bytes),
        )

    def hear(self, event: Event) -> Iterator[str]:
        """The alarms that an event raises, as sentences."""
        for listener in self._listeners:
            yield from listener.hear(event)


class Once:
    """Lets one sentence through. Two alarms with the same advice share one, so that the advice appears once."""

    def __init__(self) -> None:
        self._open = True

    def __call__(self, sentence: str) -> Iterator[str]:
        """The sentence, the first time."""
        if self._open:
            self._open = False
            yield sentence

    def again(self) -> None:
        """Let the next sentence through, too."""
        self._open = True


class GrownTrainLoss:
    """The median of the last five training losses is more than twice the first loss."""

    def __init__(self, once: Once | None = None) -> None:
        self._once = once or Once()
        self._first: float | None = None
        self._recent: deque[float] = deque(maxlen=5)

    def hear(self, event: Event) -> Iterator[str]:
        """As in `Listener`."""
        if not _is_train_loss(event):
            return
        if self._first is None:
            self._first = event.value
        self._recent.append(event.value)
        if len(self._recent) < 5:
            return
        now = statistics.median(self._recent)
        if now > GROWN * self._first:
            yield from self._once(
                f"iteration {event.iteration}: the training loss has grown past its start "
                f"(RMSE {rmse_months(now):.1f} months, {rmse_months(self._first):.1f} at first). Lower solver.base_lr."
            )


class GrownTestLoss:
    """A test loss is more than a tenth above the first one."""

    def __init__(self, once: Once | None = None) -> None:
        self._once = once or Once()
        self._first: float | None = None

    def hear(self, event: Event) -> Iterator[str]:
        """As in `Listener`."""
        if not _is_test_loss(event):
            return
        if self._first is None:
            self._first = event.value
        if event.value > GROWN_TEST * self._first:
            yield from self._once(
                f"iteration {event.iteration}: the test loss has grown past its start "
                f"(RMSE {rmse_months(event.value):.1f} months, {rmse_months(self._first):.1f} at first). "
                "Lower solver.base_lr."
            )


class ConstantAnswer:
    """Two successive tests have the error of a constant prediction; the first test, of an untrained net, is ignored."""

    def __init__(self, constant: Constant) -> None:
        self._constant, self._once = constant, Once()
        self._tested = self._alike_before = False

    def hear(self, event: Event) -> Iterator[str]:
        """As in `Listener`."""
        if not _is_test_loss(event):
            return
        alike = self._tested and self._constant.matches(event.value)
        if alike and self._alike_before:
            yield from self._once(
                f"iteration {event.iteration}: the test error is the spread of the ages "
                f"(RMSE {rmse_months(event.value):.1f} months): the net predicts the mean age for every hand. "
                "Check the learning rate, the initial weights and the mean."
            )
        self._tested, self._alike_before = True, alike


class Plateau:
    """No test loss has improved on the best by at least 1 % for ``patience`` iterations."""

    def __init__(self, patience: int) -> None:
        self._patience, self._once = patience, Once()
        self._best: tuple[float, int] | None = None  # the loss and its iteration

    def hear(self, event: Event) -> Iterator[str]:
        """As in `Listener`."""
        if not _is_test_loss(event) or event.iteration is None:
            return
        if self._best is None or event.value < BETTER * self._best[0]:
            self._best = event.value, event.iteration
        loss, iteration = self._best
        if event.iteration - iteration >= self._patience:
            yield from self._once(
                f"iteration {event.iteration}: the test error has not improved since iteration {iteration} "
                f"(RMSE {rmse_months(loss):.1f} months): a plateau, as the paper saw from iteration 1000 of 3000."
            )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


class DiskRoom:
    """The disk has no room for the next snapshot of ``snapshot_bytes``; repeated if space was freed and used up."""

    def __init__(
        self,
        folder: Path,
        snapshot_bytes: int,
        free: Callable[[Path], int] = _free_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._needed, self._free, self._clock = folder, snapshot_bytes, free, clock
        self._once = Once()
        self._looked = float("-inf")

    def hear(self, event: Event) -> Iterator[str]:
        """As in `Listener`."""
        if not _is_train_loss(event) or self._clock() - self._looked < LOOK_EVERY_S:
            return
        self._looked = self._clock()
        try:
            free = self._free(self._folder)
        except OSError:
            return
        if free < self._needed:
            yield from self._once(
                f"the disk has {free / 1e6:.0f} MB left and the next snapshot takes {self._needed / 1e6:.0f} MB; "
                "Caffe will abort while writing it. Free some space."
            )
        else:
            self._once.again()


class Silence:
    """The log has been silent for much longer than ever before. The program may hang; no line reports that.

    On several GPUs NCCL can wait for ever (BVLC/caffe#4563). The pause before the first iteration is another matter: a
    GPU may compile its code for minutes, and the weights are read. Lines are not counted but iterations, because one
    iteration has two lines (loss and rate) without a pause between them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, log_interval: int = 1) -> None:
        self._clock = clock
        self._first_s = max(FIRST_SILENCE_S, SLOW_ITERATION_S * log_interval)
        self._last = clock()
        self._longest = 0.0  # of the pauses since the first iteration
        self._iterations: set[str] = set()
        self._once = Once()

    def listen(self, lines: Iterator[str]) -> Iterator[str]:
        """The lines, as they come; the pauses between them are measured."""
        for line in lines:
            now = self._clock()
            if self._iterations:
                self._longest = max(self._longest, now - self._last)
            self._last = now
            if len(self._iterations) < KNOWN_AFTER and (iteration := re.search(r"Iteration (\d+)", line)):
                self._iterations.add(iteration[1])
            self._once.again()
            yield line

    def idle(self) -> Iterator[str]:
        """The alarm, if the present pause is much longer than each before."""
        silent = self._clock() - self._last
        least = SHORTEST_SILENCE_S if len(self._iterations) == KNOWN_AFTER else self._first_s
        if silent > max(least, SILENT * self._longest):
            yield from self._once(
                f"caffe.log has had no new line for {silent / 60:.0f} minutes, and the longest pause before was "
                f"{self._longest:.0f} seconds. It may hang: see nvidia-smi, or top. Ctrl-C asks it for a snapshot, a "
                "second Ctrl-C ends it; then continue with --resume."
            )


def _is_train_loss(event: Event) -> bool:
    return event.kind == "train_loss" and event.iteration is not None


def _is_test_loss(event: Event) -> bool:
    return event.kind == "test_output" and event.text == "loss" and event.iteration is not None

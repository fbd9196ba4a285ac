"""What a person watching a training would want to be woken for. Events in, sentences out; each is said once.

nan and inf are not here: they end the training (`drive`).
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bonecaffe.caffe.log import Event, rmse_months

GROWN = 2.0
"""A training loss that is this many times its first value has grown (median of the last five displayed)."""
GROWN_TEST = 1.1
"""The same for the loss of a whole test pass, which hardly fluctuates."""
ALIKE = 0.03
"""How near, as a share, the test error must come to that of a constant answer, twice running."""
BETTER = 0.99
"""A test loss below this share of the best so far is an improvement."""


@dataclass(frozen=True)
class Constant:
    """The mean squared error, in months², of answering one age for every test hand: the best such age, and the mean training age."""

    best: float
    guess: float

    @classmethod
    def of(cls, train: Sequence[float], test: Sequence[float]) -> Constant:
        """From the ages of both splits, in months."""
        variance = statistics.pvariance(test)
        return cls(variance, variance + (statistics.fmean(test) - statistics.fmean(train)) ** 2)

    def matches(self, test_loss: float) -> bool:
        """Whether a test loss (half a mean square) is what a constant answer gives."""
        return self.best * (1 - ALIKE) <= 2 * test_loss <= self.guess * (1 + ALIKE)


class Alarms:
    """Listens to a training. ``patience`` is in iterations; ``snapshot_bytes`` what the next snapshot will take."""

    def __init__(
        self,
        constant: Constant | None = None,
        patience: int | None = None,
        folder: Path | None = None,
        snapshot_bytes: int = 0,
        free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._constant, self._patience = constant, patience
        self._folder, self._needed, self._free = folder, snapshot_bytes, free
        self._clock, self._looked = clock, float("-inf")
        self._said: set[str] = set()
        self._first_loss = self._first_test = self._best = float("nan")
        self._best_at = -1
        self._recent: deque[float] = deque(maxlen=5)
        self._constant_before = False

    def hear(self, event: Event) -> Iterator[str]:
        """The alarms that an event raises, as sentences."""
        if event.iteration is None:
            return
        if event.kind == "train_loss":
            yield from self._training(event)
            yield from self._disk()
        elif event.kind == "test_output" and event.text == "loss":
            yield from self._test(event)

    def _once(self, kind: str, sentence: str) -> Iterator[str]:
        if kind not in self._said:
            self._said.add(kind)
            yield sentence

    def _training(self, event: Event) -> Iterator[str]:
        if self._first_loss != self._first_loss:
            self._first_loss = event.value
        self._recent.append(event.value)
        if len(self._recent) == self._recent.maxlen:
            now = statistics.median(self._recent)
            if now > GROWN * self._first_loss:
                yield from self._once(
                    "growing",
                    f"iteration {event.iteration}: the training loss has grown past its start (RMSE {rmse_months(now):.1f} months, "
                    f"{rmse_months(self._first_loss):.1f} at first). Lower solver.base_lr.",
                )

    def _test(self, event: Event) -> Iterator[str]:
        months = f"{rmse_months(event.value):.1f} months"
        first = self._first_test != self._first_test
        if first:
            self._first_test = event.value
        elif event.value > GROWN_TEST * self._first_test:
            yield from self._once(
                "growing",
                f"iteration {event.iteration}: the test loss has grown past its start (RMSE {months}, "
                f"{rmse_months(self._first_test):.1f} at first). Lower solver.base_lr.",
            )
        if self._constant is not None:
            alike = not first and self._constant.matches(event.value)
            if alike and self._constant_before:
                yield from self._once(
                    "constant",
                    f"iteration {event.iteration}: the test error is the spread of the ages (RMSE {months}): the net answers the "
                    "mean age for every hand. Look at the rate, the initial weights, the mean.",
                )
            self._constant_before = alike
        if not event.value >= self._best * BETTER:  # the first, too
            self._best, self._best_at = event.value, event.iteration or 0
        elif self._patience and (event.iteration or 0) - self._best_at >= self._patience:
            yield from self._once(
                "plateau",
                f"iteration {event.iteration}: the test error has not improved since iteration {self._best_at} "
                f"(RMSE {rmse_months(self._best):.1f} months): a plateau, as the paper saw from iteration 1000 of 3000.",
            )

    def _disk(self) -> Iterator[str]:
        """Whether the next snapshot has room; looked at every ten seconds at most."""
        if self._folder is None or not self._needed or self._clock() - self._looked < 10:
            return
        self._looked = self._clock()
        try:
            free = self._free(self._folder)
        except OSError:
            return
        if free < self._needed:
            yield from self._once(
                "disk",
                f"the disk has {free / 1e6:.0f} MB left and the next snapshot takes {self._needed / 1e6:.0f} MB; Caffe will die "
                f"writing it. Make room.",
            )
        else:
            self._said.discard("disk")

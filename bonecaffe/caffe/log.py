"""Caffe's log, line by line: text in, events out. Pure: no files, no processes.

glog's preamble (``I1123 18:00:00.123456  77 solver.cpp:218] ``) is optional; numbers may be nan or inf; other lines
are skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bonecaffe.files import table_text

_NUMBER = r"(?P<value>[-+]?(?:nan|inf|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?))"
# ASCII: otherwise \d matches any script's digits, and "inf" without case the Turkish "ınf", which is not a number
_FLAGS = re.IGNORECASE | re.ASCII
_PREAMBLE = re.compile(r"^F\d{4,8} \d\d:\d\d:\d\d\.\d+ +\d+ \S+\] ", re.ASCII)
_ITERATION = re.compile(r"Iteration (?P<iteration>\d+)(?P<rate> \([^)]*\))?, (?P<what>loss|lr) = " + _NUMBER, _FLAGS)
_TESTING = re.compile(r"Iteration (?P<iteration>\d+), Testing net \(#(?P<net>\d+)\)", re.ASCII)
_OUTPUT = re.compile(r"(?P<phase>Train|Test) net output #(?P<index>\d+): (?P<name>\S+) = " + _NUMBER, _FLAGS)
_SNAPSHOT = re.compile(r"Snapshotting to (?:binary proto|HDF5) file (?P<file>.+)$")
_RESTORED = re.compile(r"(?:Resuming|Restoring previous solver status) from (?P<file>.+)$")


@dataclass(frozen=True)
class Event:
    """What a line reports: ``kind`` is one of attempt, train_loss, train_output, test_output, testing, lr, snapshot,
    restored, stopped_early, done or fatal. ``iteration`` is the one the line belongs to, None before the first."""

    kind: str
    iteration: int | None = None
    value: float = math.nan
    text: str = ""


LONGEST = 1 << 14
"""Characters of a line that are searched. Caffe's lines have a hundred, and a search can take quadratic time."""
ATTEMPT = "# bonecaffe "
"""Begins the line that the driver writes into caffe.log before each attempt."""


def parse(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a log, in order. Never raises on any text."""
    iteration: int | None = None
    testing: int | None = None
    for line in lines:
        if len(line) > LONGEST:
            line = line[:LONGEST]
        if line.startswith(ATTEMPT):
            iteration = testing = None
            yield Event("attempt", text=line[len(ATTEMPT) :].rstrip())
            continue
        if line.startswith("F") and (preamble := _PREAMBLE.match(line)):
            yield Event("fatal", iteration, text=line[preamble.end() :].rstrip())
            continue
        # a test for the words takes a tenth of the time of the expression, and most lines have none of them
        if "Iteration " in line:
            if found := _TESTING.search(line):
                testing = _integer(found["iteration"])
                yield Event("testing", testing)
            elif found := _ITERATION.search(line):
                iteration = _integer(found["iteration"])
                yield Event("train_loss" if found["what"].lower() == "loss" else "lr", iteration, float(found["value"]))
        elif " net output #" in line:
            if found := _OUTPUT.search(line):
                train = found["phase"].lower() == "train"
                yield Event(
                    "train_output" if train else "test_output",
                    iteration if train else testing,
                    float(found["value"]),
                    found["name"],
                )
        elif "Snapshotting to" in line:
            if found := _SNAPSHOT.search(line.rstrip()):
                yield Event("snapshot", iteration, text=found["file"])
        elif " from " in line:
            if found := _RESTORED.search(line.rstrip()):
                yield Event("restored", iteration, text=found["file"])
        elif "Optimization stopped early" in line:
            yield Event("stopped_early", iteration)
        elif "Optimization Done" in line:
            yield Event("done", iteration)


def _integer(digits: str) -> int:
    return int(digits[:18])


ROUNDING = 1e-3
"""How far below 0 a smoothed loss may be because of rounding, in squared months."""


def rmse_months(loss: float) -> float:
    """Root mean squared error in months of an EuclideanLoss, which is the sum of d² over 2N.

    Caffe smooths the printed training loss by adding and subtracting, so rounding can make it slightly negative: that
    counts as 0. Any other loss below 0 gives nan.

    >>> rmse_months(200.0), rmse_months(-1.7e-06)
    (20.0, 0.0)
    """
    return math.sqrt(2 * max(loss, 0.0)) if loss >= -ROUNDING else math.nan


@dataclass(frozen=True)
class CurvePoint:
    """One row of curve.csv: a loss of the training batch or of the test pass at an iteration."""

    iteration: int
    phase: str
    loss: float

    @property
    def rmse(self) -> float:
        """The loss as root mean squared error in months."""
        return rmse_months(self.loss)


class Curve:
    """Error against iteration, for training and test. Where a resumed log repeats an iteration, the last one counts."""

    def __init__(self, events: Iterable[Event] = (), loss_name: str = "loss") -> None:
        self._points: dict[tuple[int, str], CurvePoint] = {}
        self._loss_name = loss_name
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Add an event, if it reports a loss."""
        if event.iteration is None:
            return
        if event.kind == "train_loss":
            self._put(event, "train")
        elif event.kind == "test_output" and event.text == self._loss_name:
            self._put(event, "test")

    def _put(self, event: Event, phase: str) -> None:
        assert event.iteration is not None
        self._points[event.iteration, phase] = CurvePoint(event.iteration, phase, event.value)

    def points(self) -> list[CurvePoint]:
        """The points in order of iteration, test before training."""
        return [self._points[key] for key in sorted(self._points)]

    def csv(self) -> str:
        """The text of curve.csv: ``iteration,phase,loss,rmse_months``."""
        rows = ((p.iteration, p.phase, f"{p.loss:.9g}", f"{p.rmse:.6g}") for p in self.points())
        return table_text(("iteration", "phase", "loss", "rmse_months"), rows)

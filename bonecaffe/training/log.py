"""Caffe's log, line by line: text in, events out. Pure: no files, no processes.

glog's preamble (``I1123 18:00:00.123456  77 solver.cpp:218] ``) may be there or not; numbers may be nan or inf;
lines that say nothing to us give no event.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_NUMBER = r"(?P<value>[-+]?(?:nan|inf|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?))"
_PREAMBLE = re.compile(r"^(?P<level>[IWEF])\d{4,8} \d\d:\d\d:\d\d\.\d+ +\d+ \S+\] ")
_ITERATION = re.compile(
    r"Iteration (?P<iteration>\d+)(?P<rate> \([^)]*\))?, (?P<what>loss|lr) = " + _NUMBER, re.IGNORECASE
)
_TESTING = re.compile(r"Iteration (?P<iteration>\d+), Testing net \(#(?P<net>\d+)\)")
_OUTPUT = re.compile(r"(?P<phase>Train|Test) net output #(?P<index>\d+): (?P<name>\S+) = " + _NUMBER, re.IGNORECASE)
_SNAPSHOT = re.compile(r"Snapshotting to (?:binary proto|HDF5) file (?P<file>.+)$")
_RESTORED = re.compile(r"(?:Resuming|Restoring previous solver status) from (?P<file>.+)$")


@dataclass(frozen=True)
class Event:
    """What a line said: ``kind`` is one of train_loss, train_output, test_output, testing, lr, snapshot, restored,
    stopped_early, done or fatal. ``iteration`` is the one the line belongs to, None before the first."""

    kind: str
    iteration: int | None = None
    value: float = math.nan
    text: str = ""


def parse(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a log, in order. Never raises on any text."""
    iteration: int | None = None
    testing: int | None = None
    for line in lines:
        line = line.rstrip("\r\n")
        preamble = _PREAMBLE.match(line)
        body = line[preamble.end() :] if preamble else line
        if preamble and preamble["level"] == "F":
            yield Event("fatal", iteration, text=body)
            continue
        if found := _TESTING.search(body):
            testing = _integer(found["iteration"])
            yield Event("testing", testing)
        elif found := _ITERATION.search(body):
            iteration = _integer(found["iteration"])
            yield Event("train_loss" if found["what"].lower() == "loss" else "lr", iteration, float(found["value"]))
        elif found := _OUTPUT.search(body):
            train = found["phase"].lower() == "train"
            yield Event(
                "train_output" if train else "test_output",
                iteration if train else testing,
                float(found["value"]),
                found["name"],
            )
        elif found := _SNAPSHOT.search(body):
            yield Event("snapshot", iteration, text=found["file"].strip())
        elif found := _RESTORED.search(body):
            yield Event("restored", iteration, text=found["file"].strip())
        elif "Optimization stopped early" in body:
            yield Event("stopped_early", iteration)
        elif "Optimization Done" in body:
            yield Event("done", iteration)


def _integer(digits: str) -> int:
    return int(digits[:18])


def rmse_months(loss: float) -> float:
    """Root mean squared error in months of an EuclideanLoss, which is the sum of d² over 2N.

    >>> rmse_months(200.0)
    20.0
    """
    return math.sqrt(2 * loss) if loss >= 0 else math.nan


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


def curve(events: Iterable[Event], loss_name: str = "loss") -> list[CurvePoint]:
    """Error against iteration, for training and test; what a resumed log repeats replaces what it said before."""
    points: dict[tuple[int, str], CurvePoint] = {}
    for event in events:
        if event.iteration is None:
            continue
        if event.kind == "train_loss":
            points[event.iteration, "train"] = CurvePoint(event.iteration, "train", event.value)
        elif event.kind == "test_output" and event.text == loss_name:
            points[event.iteration, "test"] = CurvePoint(event.iteration, "test", event.value)
    return [points[key] for key in sorted(points)]

"""Snapshots: which of the files that Caffe left can be trusted.

If Caffe is killed while it writes, a caffemodel or solverstate is cut off; and as text, ``_iter_900`` sorts after
``_iter_10000``. So numbers are compared, and every file is read to its end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bonecaffe.caffe import caffemodel
from bonecaffe.errors import WeightsError

_NAME = re.compile(r"_iter_(\d+)\.(?:caffemodel|solverstate)$")


@dataclass(frozen=True)
class Snapshot:
    """A caffemodel and its solverstate, both of one iteration."""

    iteration: int
    caffemodel: Path

    @property
    def solverstate(self) -> Path:
        """The file from which Caffe resumes."""
        return self.caffemodel.with_suffix(".solverstate")

    def flaw(self) -> str | None:
        """What is wrong with the pair, as a sentence; None when both files are complete."""
        return self.model_flaw() or self._state_flaw()

    def model_flaw(self) -> str | None:
        """What is wrong with the caffemodel alone; None when it is complete."""
        try:
            with caffemodel.Caffemodel(self.caffemodel):
                return None
        except WeightsError as error:
            return str(error)

    def _state_flaw(self) -> str | None:
        if not self.solverstate.is_file():
            return f"{self.solverstate}: missing."
        try:
            iteration, histories = caffemodel.solver_state(self.solverstate)
        except WeightsError as error:
            return str(error)
        with caffemodel.Caffemodel(self.caffemodel) as model:
            blobs = sum(len(shapes) for shapes in model.shapes().values())
        if iteration != self.iteration or histories < blobs:
            return f"{self.solverstate}: cut off: iteration {iteration}, {histories} of {blobs} histories."
        return None


def iteration_of(name: str) -> int | None:
    """The iteration that Caffe put into the name of a caffemodel or solverstate; None for another file.

    >>> iteration_of("snapshots/SNAPSHOT_iter_900.solverstate"), iteration_of("caffe.log")
    (900, None)
    """
    match = _NAME.search(name)
    return int(match[1]) if match else None


def find(folder: Path) -> list[Snapshot]:
    """All snapshots in a folder by iteration, the newest last; complete or not."""
    numbered = ((iteration_of(path.name), path) for path in folder.glob("*.caffemodel"))
    found = [Snapshot(iteration, path) for iteration, path in numbered if iteration is not None]
    return sorted(found, key=lambda snapshot: snapshot.iteration)


def newest_complete(folder: Path) -> Snapshot | None:
    """The newest snapshot whose caffemodel and solverstate are complete."""
    return next((snapshot for snapshot in reversed(find(folder)) if snapshot.flaw() is None), None)

"""bonecaffe's own points.csv, read like another tool's file: a bad row does not affect the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bonecaffe.errors import PointsError
from bonecaffe.hands.formats.marks import Hand, Marks, Reading, Unmarked, collect, size_of
from bonecaffe.hands.reference_points import COLUMNS, POINT_NAMES, read_points_table


def read(path: Path) -> Reading:
    """The hands of a table; ValueError when it is not a table of points."""
    try:
        table = read_points_table(path)
    except PointsError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from error
    if "verdict" in table.columns:
        raise ValueError(
            "everything that bonecaffe locate found, including uncertain points; these are not marked points. "
            "Give the table that locate wrote next to it"
        )
    return collect("row", table.rows(), _read, lambda row: row["id"])


def _read(row: dict[str, str]) -> Iterator[Hand]:
    if not any(row[column] for column in COLUMNS[3:]):
        raise Unmarked("not marked")
    marks = Marks()
    for name in POINT_NAMES:
        x, y = row[f"{name}_x"], row[f"{name}_y"]
        if x or y:
            marks.put(name, x, y)
    yield Hand(row["id"], size_of(row["width"], row["height"]), marks.points, is_id=True)

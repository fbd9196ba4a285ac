"""The seven reference points of a hand: their table, their validation, their rectangle (paper II.1, figure 2).

"Two points located towards the distal ends of ulna and radius and five points on proximal ends of the phalangeal
bones." A point is ``(x, y)`` in pixels of the hand's image, x to the right, y down, pixel centres at whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from bonecaffe.errors import PointsError, Problems
from bonecaffe.files import Table, followed, number, quoted, table_text, write_text
from bonecaffe.hands import ids

POINT_NAMES = ("ulna", "radius", "phalanx1", "phalanx2", "phalanx3", "phalanx4", "phalanx5")
"""In the order of the table; phalanx1 is the thumb's."""

COLUMNS = ("id", "width", "height", *(f"{name}_{axis}" for name in POINT_NAMES for axis in "xy"))

REMEDY = (
    "Fix these rows, in bonecaffe annotate or by hand; leave all fourteen coordinates of a row empty when the hand is "
    "not marked yet."
)


SIDE_LIMIT = 1_000_000
"""In pixels. No image has a longer side."""


@dataclass(frozen=True)
class Rectangle:
    """Whole pixels, ends included: columns left…right, rows top…bottom."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.right - self.left + 1

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.bottom - self.top + 1


@dataclass(frozen=True)
class ReferencePoints:
    """The seven points of one hand, in the order of `POINT_NAMES`, and the size of their image."""

    id: str
    width: int
    height: int
    points: tuple[tuple[float, float], ...]

    def rectangle(self, margin: float = 0.0) -> Rectangle:
        """The smallest axis-aligned rectangle that holds all seven points (paper II.1).

        Whole pixels by floor and ceil. ``margin`` widens each side by that fraction of the rectangle's own size, but
        not beyond the image; the paper's is 0.

        >>> hand = ReferencePoints("1", 100, 200, ((10.5, 180), (30, 190.2), *[(20, 50)] * 5))
        >>> hand.rectangle()
        Rectangle(left=10, top=50, right=30, bottom=191)
        """
        xs, ys = zip(*self.points, strict=True)
        wide, high = (max(xs) - min(xs)) * margin, (max(ys) - min(ys)) * margin
        return Rectangle(
            max(0, math.floor(min(xs) - wide)),
            max(0, math.floor(min(ys) - high)),
            min(self.width - 1, math.ceil(max(xs) + wide)),
            min(self.height - 1, math.ceil(max(ys) + high)),
        )

    def problems(self) -> list[str]:
        """The faults of these points, as phrases; empty when there are none."""
        found = []
        for name, (x, y) in zip(POINT_NAMES, self.points, strict=True):
            if not (0 <= x <= self.width - 1 and 0 <= y <= self.height - 1):
                found.append(f"{name} at ({x:g}, {y:g}) is outside the image of {self.width} x {self.height}")
        if not found:  # as a table stores it, to a tenth: a table that was read and written can be read again
            tenths = tuple((round(x, 1), round(y, 1)) for x, y in self.points)
            rectangle = replace(self, points=tenths).rectangle()
            if rectangle.width < 8 or rectangle.height < 8:
                found.append(
                    f"the rectangle of the points is {rectangle.width} x {rectangle.height} pixels, "
                    "too small to be a hand"
                )
        return found


def read_points_table(path: str | Path) -> Table:
    """The cells of a table of points as text; PointsError when a column is missing."""
    table = ids.read_table(path, PointsError)
    if missing := [column for column in COLUMNS if column not in table.columns]:
        raise PointsError(f"{path}: no column {', '.join(missing)}. The header must be {','.join(COLUMNS)}.")
    return table


def read_points(
    path: str | Path, guesses: bool = False, faulty: dict[str, str] | None = None
) -> dict[str, ReferencePoints]:
    """Read ``points.csv``: the marked hands by id. Rows without any coordinate are not marked yet, and left out.

    The table of everything that `locate` found, with its verdicts, is read only with ``guesses``. Raises PointsError
    naming the file and every faulty row: a missing column, a duplicate id, some but not all coordinates, a text that is
    not a number, a point outside the image. With ``faulty``, a hand with a fault is only left out: its id is added to
    ``faulty``, with a sentence that gives the reason. A row without an id is still an error.
    """
    table = read_points_table(path)
    if "verdict" in table.columns and not guesses:
        raise PointsError(
            f"{path}: everything that bonecaffe locate found, including uncertain points; these are not marked points. "
            "Give the table that locate wrote next to it, which contains only the confident ones."
        )
    hands: dict[str, ReferencePoints] = {}
    first_row: dict[str, int] = {}
    problems = Problems()

    def at_fault(case_id: str, problem: str) -> None:
        if faulty is None or not case_id:
            problems.add(problem)
        else:
            faulty.setdefault(case_id, f"{path}: {problem}. {REMEDY}")

    for row_number, row in table.rows():
        where = f"row {row_number} (id {ids.shown(row['id'])})"
        try:
            hand = _hand(row)
        except ValueError as error:
            at_fault(row["id"], f"{where}: {error}")
            continue
        if row["id"] in first_row:
            at_fault(row["id"], f"{where}: the id is already in row {first_row[row['id']]}")
            continue
        first_row[row["id"]] = row_number
        if hand is None:
            continue
        for problem in hand.problems():
            at_fault(row["id"], f"{where}: {problem}")
        hands[hand.id] = hand
    problems.raise_if_any(PointsError, str(path), REMEDY)
    return {case_id: hand for case_id, hand in hands.items() if case_id not in (faulty or ())}


def lock_file(table: Path) -> Path:
    """The lock that a program holds while it writes a table of points; see `bonecaffe.files.held`.

    It is next to the file itself, so that programs that use one table under two names, one of them a link, share it.
    """
    table = followed(table)
    return table.with_name(f".{table.name}.lock")


def _hand(row: dict[str, str]) -> ReferencePoints | None:
    """A row as points; None when it is not marked yet. ValueError with the fault."""
    ids.check(row["id"])
    coordinates = [row[column] for column in COLUMNS[3:]]
    if not any(coordinates):
        return None
    empty = [column for column in COLUMNS[1:] if not row[column]]
    if empty:
        raise ValueError(f"missing {', '.join(empty)}")
    numbers = {}
    for column in COLUMNS[1:]:
        try:
            numbers[column] = number(row[column])
        except ValueError as error:
            raise ValueError(f"{column} is {error}") from None
    for column in ("width", "height"):
        if numbers[column] != int(numbers[column]) or not 1 <= numbers[column] <= SIDE_LIMIT:
            raise ValueError(f"{column} is {quoted(row[column])}, not a number of pixels")
    points = tuple((numbers[f"{name}_x"], numbers[f"{name}_y"]) for name in POINT_NAMES)
    return ReferencePoints(row["id"], int(numbers["width"]), int(numbers["height"]), points)


def coordinate_text(value: float) -> str:
    """A coordinate as in points.csv, to a tenth of a pixel.

    >>> coordinate_text(30.04), coordinate_text(30.06)
    ('30', '30.1')
    """
    return f"{value:.1f}".removesuffix(".0")


def write_points(path: str | Path, hands: Iterable[ReferencePoints]) -> None:
    """Write ``points.csv`` whole or not at all; coordinates to a tenth of a pixel."""
    rows = (
        [hand.id, hand.width, hand.height, *(coordinate_text(value) for point in hand.points for value in point)]
        for hand in hands
    )
    write_text(Path(path), table_text(COLUMNS, rows), parents=True)

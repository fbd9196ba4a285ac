"""Where the points of a table come from: marked by hand, accepted suggestions, or found by a program.

`bonecaffe locate` writes everything it found next to its table of points (``points.found.csv``). `bonecaffe annotate`
writes notes on each hand (``points.notes.csv``), including suggested places of which some were accepted. A point of the
table at such a place was not marked by a person; the hand's other points may have been.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bonecaffe.errors import AnnotateError, LocateError
from bonecaffe.files import check_tree, followed, open_append, table_text, write_text
from bonecaffe.hands import ids
from bonecaffe.hands.reference_points import COLUMNS, POINT_NAMES, ReferencePoints, coordinate_text

FOUND_COLUMNS = (*COLUMNS, "confidence", "verdict", "key", "remarks")


@dataclass(frozen=True)
class FoundHand:
    """The result of `locate` for one image: points, confidence, verdict.

    The points are a guess where the verdict is not ``confident``, and None where there are none. ``key`` names image
    and model. ``remarks`` is what is unusual about a usable hand: that it is turned, or has dark bones.
    """

    id: str
    width: int
    height: int
    points: tuple[tuple[float, float], ...] | None
    confidence: float
    verdict: str
    key: str
    remarks: str = ""

    @property
    def confident(self) -> bool:
        """Whether the points are good enough to use without a check."""
        return self.verdict == "confident"

    def hand(self) -> ReferencePoints | None:
        """The points as points.csv has them; None when there are none."""
        return ReferencePoints(self.id, self.width, self.height, self.points) if self.points else None

    def row(self) -> list[str]:
        """The hand as a row of points.csv."""
        coordinates = [coordinate_text(value) for point in self.points or () for value in point]
        return [self.id, str(self.width or ""), str(self.height or ""), *(coordinates or [""] * 14)]


def found_file(table: Path) -> Path:
    """The file next to the points with everything that was found: confidences, verdicts, guesses."""
    table = followed(table)
    return table.with_name(f"{table.stem}.found.csv")


def notes_file(table: Path) -> Path:
    """The file next to the points in which `annotate` keeps its notes."""
    table = followed(table)
    return table.with_name(f"{table.stem}.notes.csv")


def read_found(table: Path) -> dict[str, FoundHand]:
    """Earlier results of `locate` for a table of points, by id; empty when there are none."""
    path = found_file(table)
    check_tree(path.parent, [path.name], LocateError)  # a link may point anywhere
    if not path.exists():
        return {}
    hands = {}
    for number, row in ids.read_table(path, LocateError).rows():
        try:
            values = [row[column] for column in COLUMNS[3:]]
            pairs = zip(values[::2], values[1::2], strict=True)
            points = tuple((float(x), float(y)) for x, y in pairs) if values[0] else None
            size = int(row["width"] or 0), int(row["height"] or 0)
            confidence, remarks = float(row["confidence"]), row.get("remarks", "")
            hand = FoundHand(row["id"], *size, points, confidence, row["verdict"], row["key"], remarks)
            hands[hand.id] = hand
        except (KeyError, ValueError) as error:
            raise LocateError(
                f"{path}: row {number}: not in the form that locate writes ({error}). "
                "Remove the file; locate makes a new one."
            ) from None
    return hands


def write_found(table: Path, hands: Mapping[str, FoundHand]) -> None:
    """Write what was found for a table of points, whole or not at all."""
    rows = [_found_row(hand) for _, hand in sorted(hands.items())]
    write_text(found_file(table), table_text(FOUND_COLUMNS, rows))


@contextlib.contextmanager
def appending_found(table: Path) -> Iterator[Callable[[FoundHand], None]]:
    """Yield a function that stores one more hand after those that `write_found` wrote.

    Each row goes to the operating system in one write, so a hand is kept even if this process is killed. There is no
    wait for the disk, so a call takes microseconds.
    """
    with open_append(found_file(table)) as file:

        def append(hand: FoundHand) -> None:
            _, row = table_text(FOUND_COLUMNS, [_found_row(hand)]).split("\n", 1)
            file.write(row.encode("utf-8"))
            file.flush()

        yield append


def _found_row(hand: FoundHand) -> list[str]:
    return [*hand.row(), f"{hand.confidence:.3f}", hand.verdict, hand.key, hand.remarks]


def read_notes(table: Path) -> dict[str, dict[str, str]]:
    """The notes of `annotate` on each hand of a table, by id; empty when there are none."""
    path = notes_file(table)
    check_tree(path.parent, [path.name], AnnotateError)
    if not path.exists():
        return {}
    return {row["id"]: row for _, row in ids.read_table(path, AnnotateError).rows() if row.get("id")}


# ---- points that nobody marked -----------------------------------------------------------------------------------

Place = tuple[float, float]


def suggested_text(places: Iterable[Place]) -> str:
    """Suggested places as a note stores them.

    >>> suggested_text([(10, 20.04), (30.5, 7)])
    '10,20;30.5,7'
    """
    return ";".join(",".join(map(coordinate_text, place)) for place in dict.fromkeys(places))


def suggested_places(text: str, row: Mapping[str, str]) -> list[Place]:
    """The places that `suggested_text` wrote; for a note of 0.1, which is ``yes``, all points of the hand's row."""
    if text == "yes":
        return [place for place in _places(row) if place]
    try:
        return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split(";") if pair)]
    except ValueError:  # edited by hand
        return []


def untouched(points: Iterable[Place | None], places: Iterable[Place]) -> tuple[bool, ...]:
    """For each point, whether it is at one of these places, to a tenth of a pixel: suggested or found, and not moved.

    >>> untouched([(1, 2), None, (3.02, 4)], [(3, 4)])
    (False, False, True)
    """
    known = {tuple(map(coordinate_text, place)) for place in places}
    return tuple(point is not None and tuple(map(coordinate_text, point)) in known for point in points)


def unmarked(table: Path) -> dict[str, tuple[str, ...]]:
    """The points that a program found or suggested and nobody moved, by hand: names of points by the hand's id.

    Hands all of whose points were marked are left out.
    """
    return _untouched(table, read_found(table), read_notes(table))


def count_found(table: Path) -> int:
    """How many hands of a table have at least one point that `locate` found and wrote next to it."""
    return len(_untouched(table, read_found(table), {}))


def count_accepted(table: Path) -> int:
    """How many hands of a table have at least one suggested point that was accepted in `annotate` without a change."""
    return len(_untouched(table, {}, read_notes(table)))


def count_unmarked(table: Path) -> int:
    """How many hands of a table have at least one point that a program found or suggested and nobody moved."""
    return len(unmarked(table))


def _untouched(
    table: Path, found: Mapping[str, FoundHand], notes: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[str, ...]]:
    if not (found or notes) or not table.is_file():
        return {}
    unmoved = {}
    for _, row in ids.read_table(table, AnnotateError).rows():
        case_id = row.get("id", "")
        places = list((found[case_id].points or ()) if case_id in found else ())
        places += suggested_places(notes.get(case_id, {}).get("suggested", ""), row)
        names = [name for name, same in zip(POINT_NAMES, untouched(_places(row), places), strict=True) if same]
        if names:
            unmoved[case_id] = tuple(names)
    return unmoved


def _places(row: Mapping[str, str]) -> tuple[Place | None, ...]:
    """The points of a row of points.csv; None where a point is missing or not a number."""

    def place(name: str) -> Place | None:
        try:
            return float(row[f"{name}_x"]), float(row[f"{name}_y"])
        except (KeyError, ValueError):
            return None

    return tuple(map(place, POINT_NAMES))

"""Where the points of a table come from: marked by a hand, accepted suggestions, or found by a program.

`bonecaffe locate` writes what it found beside the table it makes (``points.found.csv``). `bonecaffe annotate` writes
what it has to remember of each hand (``points.notes.csv``), among it the suggested places of which some were taken. A
point of the table that is at such a place was marked by nobody; the hand's other points may well have been.
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
    """One image looked at by `locate`: points, confidence, verdict.

    The points are a guess where the verdict is not ``confident``, and None where there are none. ``key`` names image
    and model. ``remarks`` tells what is unusual about a hand that can be used: turned, dark bones.
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
        """Whether the points are good enough to be used unseen."""
        return self.verdict == "confident"

    def hand(self) -> ReferencePoints | None:
        """The points as points.csv has them; None when there are none."""
        return ReferencePoints(self.id, self.width, self.height, self.points) if self.points else None

    def row(self) -> list[str]:
        """The hand as a row of points.csv."""
        coordinates = [coordinate_text(value) for point in self.points or () for value in point]
        return [self.id, str(self.width or ""), str(self.height or ""), *(coordinates or [""] * 14)]


def found_file(table: Path) -> Path:
    """Where all that was found is kept beside the points: confidences, verdicts, guesses."""
    table = followed(table)
    return table.with_name(f"{table.stem}.found.csv")


def notes_file(table: Path) -> Path:
    """Where `annotate` keeps what it remembers beside the points."""
    table = followed(table)
    return table.with_name(f"{table.stem}.notes.csv")


def read_found(table: Path) -> dict[str, FoundHand]:
    """What `locate` found before for a table of points, by id; empty when it found nothing yet."""
    path = found_file(table)
    check_tree(path.parent, [path.name], LocateError)  # a link may lead anywhere
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
                f"{path}: row {number}: not as locate writes it ({error}). Remove the file; it is made again."
            ) from None
    return hands


def write_found(table: Path, hands: Mapping[str, FoundHand]) -> None:
    """Write what was found for a table of points, whole or not at all."""
    rows = [_found_row(hand) for _, hand in sorted(hands.items())]
    write_text(found_file(table), table_text(FOUND_COLUMNS, rows))


@contextlib.contextmanager
def appending_found(table: Path) -> Iterator[Callable[[FoundHand], None]]:
    """Give a function that stores one more hand behind those that `write_found` wrote.

    The hand survives the death of this process: its row leaves the process whole, in one write. The disk is not waited
    for, so that it costs microseconds.
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
    """What `annotate` noted of each hand of a table, by id; empty when it noted nothing yet."""
    path = notes_file(table)
    check_tree(path.parent, [path.name], AnnotateError)
    if not path.exists():
        return {}
    return {row["id"]: row for _, row in ids.read_table(path, AnnotateError).rows() if row.get("id")}


# ---- which points nobody marked ----------------------------------------------------------------------------------

Place = tuple[float, float]


def suggested_text(places: Iterable[Place]) -> str:
    """Suggested places as a note keeps them.

    >>> suggested_text([(10, 20.04), (30.5, 7)])
    '10,20;30.5,7'
    """
    return ";".join(",".join(map(coordinate_text, place)) for place in dict.fromkeys(places))


def suggested_places(text: str, row: Mapping[str, str]) -> list[Place]:
    """What `suggested_text` wrote; of a note of 0.1, which is ``yes``, all places of the hand's row."""
    if text == "yes":
        return [place for place in _places(row) if place]
    try:
        return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split(";") if pair)]
    except ValueError:  # edited by somebody
        return []


def untouched(points: Iterable[Place | None], places: Iterable[Place]) -> tuple[bool, ...]:
    """Which of some points are at one of these places, to a tenth of a pixel: suggested or found, and left there.

    >>> untouched([(1, 2), None, (3.02, 4)], [(3, 4)])
    (False, False, True)
    """
    there = {tuple(map(coordinate_text, place)) for place in places}
    return tuple(point is not None and tuple(map(coordinate_text, point)) in there for point in points)


def unmarked(table: Path) -> dict[str, tuple[str, ...]]:
    """The points of each hand of a table that a program found or suggested and nobody moved, by the hand's id.

    Hands all of whose points were marked are left out.
    """
    return _untouched(table, read_found(table), read_notes(table))


def count_found(table: Path) -> int:
    """How many hands of a table have points, one at least, that `locate` found and wrote beside it."""
    return len(_untouched(table, read_found(table), {}))


def count_accepted(table: Path) -> int:
    """How many hands of a table have points of a suggestion, one at least, accepted in `annotate` as they were."""
    return len(_untouched(table, {}, read_notes(table)))


def count_unmarked(table: Path) -> int:
    """How many hands of a table have points, one at least, that a program found or suggested and nobody moved."""
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
    """The points of a row of points.csv; None where there is none, or no number."""

    def place(name: str) -> Place | None:
        try:
            return float(row[f"{name}_x"]), float(row[f"{name}_y"])
        except (KeyError, ValueError):
            return None

    return tuple(map(place, POINT_NAMES))

"""Where the points of a table come from: marked by a hand, accepted suggestions, or found by a program.

`bonecaffe locate` writes what it found beside the table it makes (``points.found.csv``). `bonecaffe annotate` writes
what it has to remember of each hand (``points.notes.csv``). Both tell a reader of the table which points nobody marked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bonecaffe.errors import AnnotateError, LocateError
from bonecaffe.files import check_tree, open_append, read_table, table_text, write_text
from bonecaffe.hands.reference_points import COLUMNS, ReferencePoints, coordinate_text

FOUND_COLUMNS = (*COLUMNS, "confidence", "verdict", "key")


@dataclass(frozen=True)
class FoundHand:
    """One image looked at by `locate`: points, confidence, verdict.

    The points are a guess where the verdict is not ``sure``, and None where there are none. ``key`` names image and
    model.
    """

    id: str
    width: int
    height: int
    points: tuple[tuple[float, float], ...] | None
    confidence: float
    verdict: str
    key: str

    @property
    def sure(self) -> bool:
        """Whether the points are good enough to be used unseen."""
        return self.verdict == "sure"

    def hand(self) -> ReferencePoints | None:
        """The points as points.csv has them; None when there are none."""
        return ReferencePoints(self.id, self.width, self.height, self.points) if self.points else None

    def row(self) -> list[str]:
        """The hand as a row of points.csv."""
        coordinates = [coordinate_text(value) for point in self.points or () for value in point]
        return [self.id, str(self.width or ""), str(self.height or ""), *(coordinates or [""] * 14)]


def found_file(table: Path) -> Path:
    """Where all that was found is kept beside the points: confidences, verdicts, guesses."""
    return table.with_name(f"{table.stem}.found.csv")


def notes_file(table: Path) -> Path:
    """Where `annotate` keeps what it remembers beside the points."""
    return table.with_name(f"{table.stem}.notes.csv")


def read_found(table: Path) -> dict[str, FoundHand]:
    """What `locate` found before for a table of points, by id; empty when it found nothing yet."""
    path = found_file(table)
    check_tree(path.parent, [path.name], LocateError)  # a link may lead anywhere
    if not path.exists():
        return {}
    hands = {}
    for number, row in read_table(path, LocateError).rows():
        try:
            values = [row[column] for column in COLUMNS[3:]]
            pairs = zip(values[::2], values[1::2], strict=True)
            points = tuple((float(x), float(y)) for x, y in pairs) if values[0] else None
            size = int(row["width"] or 0), int(row["height"] or 0)
            hands[row["id"]] = FoundHand(row["id"], *size, points, float(row["confidence"]), row["verdict"], row["key"])
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
    return [*hand.row(), f"{hand.confidence:.3f}", hand.verdict, hand.key]


def count_found(table: Path) -> int:
    """How many hands of a table have the very points that `locate` found and wrote beside it."""
    found = read_found(table)
    if not found or not table.is_file():
        return 0
    rows = {row["id"]: row for _, row in read_table(table, LocateError).rows() if "id" in row}
    expected = {hand.id: dict(zip(COLUMNS, hand.row(), strict=True)) for hand in found.values() if hand.sure}
    return sum(rows.get(case_id) == row for case_id, row in expected.items())


def read_notes(table: Path) -> dict[str, dict[str, str]]:
    """What `annotate` noted of each hand of a table, by id; empty when it noted nothing yet."""
    path = notes_file(table)
    check_tree(path.parent, [path.name], AnnotateError)
    if not path.exists():
        return {}
    return {row["id"]: row for _, row in read_table(path, AnnotateError).rows() if row.get("id")}


def count_accepted(table: Path) -> int:
    """How many hands of a table have the points of a suggestion, accepted in `annotate` as they were."""
    notes = read_notes(table)
    if not notes or not table.is_file():
        return 0
    marked = {row["id"] for _, row in read_table(table, AnnotateError).rows() if row.get("id") and row.get("ulna_x")}
    return sum(bool(row.get("suggested")) and case_id in marked for case_id, row in notes.items())


def count_unmarked(table: Path) -> int:
    """How many hands of a table have points that a program found or suggested, and nobody moved."""
    return max(count_found(table), count_accepted(table))

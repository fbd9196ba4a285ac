"""The hands that are being marked: read from points.csv, written back after every click, nothing of it lost.

points.csv keeps its form; a hand marked in part has some of its coordinates, and whoever reads it says so. What else
is to be remembered of a hand is kept beside it in ``points.notes.csv``: skipped and why, flagged, seconds, the points
of a hand that is skipped (its row in points.csv is empty, so that nobody uses it), whether the points are a
suggestion's, accepted.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from bonecaffe.errors import AnnotateError, PointsError, Problems
from bonecaffe.files import check_tree, held, sha256, table_text, write_text
from bonecaffe.hands.images import find_images, image_size
from bonecaffe.hands.provenance import notes_file, read_notes
from bonecaffe.hands.reference_points import (
    COLUMNS,
    POINT_NAMES,
    ReferencePoints,
    coordinate_text,
    lock_file,
    read_points_table,
)

NOTE_COLUMNS = ("id", "skipped", "flagged", "seconds", "points", "suggested")

Places = tuple[tuple[float, float] | None, ...]
"""The seven points in the order of `POINT_NAMES`; None where not set yet."""

NONE_SET: Places = (None,) * len(POINT_NAMES)


@dataclass(frozen=True)
class Marks:
    """What is known of one hand. ``skipped`` is the reason, empty when it is not skipped.

    ``version`` names the state that these marks were made from, by its content: the same before and after a restart.
    """

    points: Places = NONE_SET
    skipped: str = ""
    flagged: bool = False
    seconds: float = 0.0
    version: str = ""

    def content_version(self) -> str:
        """The name of this state; empty for a hand of which nothing is known. The seconds do not count."""
        known = (self.points, self.skipped, self.flagged)
        return "" if known == (NONE_SET, "", False) else sha256(json.dumps(known))[:16]

    @property
    def state(self) -> str:
        """``done``, ``skipped``, ``begun`` or ``open``."""
        if self.skipped:
            return "skipped"
        count = sum(point is not None for point in self.points)
        return "done" if count == len(POINT_NAMES) else "begun" if count else "open"


class Conflict(AnnotateError):
    """A hand was changed elsewhere since it was shown."""


@dataclass
class _File:
    """points.csv as text: every row kept, ours and others', in its order, with columns that are not ours."""

    columns: tuple[str, ...] = COLUMNS
    rows: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> _File:
        if not path.exists() or (path.is_file() and path.stat().st_size == 0):
            return cls()
        table = read_points_table(path)
        rows: dict[str, dict[str, str]] = {}
        problems = Problems()
        for number, row in table.rows():
            where = f"row {number} (id {row['id'] or 'missing'})"
            if not row["id"] or row["id"] in rows:
                problems.add(f"{where}: {'the id stands there twice' if row['id'] else 'no id'}")
                continue
            rows[row["id"]] = row
            try:
                _places(row)
            except ValueError as error:
                problems.add(f"{where}: {error}")
        problems.raise_if_any(PointsError, str(path), "Fix these rows.")
        return cls(table.columns, rows)

    def text(self) -> str:
        return table_text(self.columns, ([row.get(c, "") for c in self.columns] for row in self.rows.values()))


def _places(row: Mapping[str, str]) -> Places:
    """The points of a row, some of which may be empty; ValueError for a half or no number."""
    places: list[tuple[float, float] | None] = []
    for name in POINT_NAMES:
        x, y = row[f"{name}_x"], row[f"{name}_y"]
        if bool(x) != bool(y):
            raise ValueError(f"{name} has only one coordinate")
        if not x:
            places.append(None)
            continue
        try:
            place = float(x), float(y)
        except ValueError:
            raise ValueError(f"{name} at ({x}, {y}) is no number") from None
        if not all(map(math.isfinite, place)):
            raise ValueError(f"{name} at ({x}, {y}) is not finite")
        places.append(place)
    return tuple(places)


def _signature(path: Path) -> tuple[int, ...]:
    """What changes when a file does; empty when there is none."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _kept_text(points: Places) -> str:
    """The points of a skipped hand, as its note keeps them: ``x,y`` seven times, empty where not set.

    Empty for none.
    """
    return ";".join(",".join(map(coordinate_text, place)) if place else "" for place in points) if any(points) else ""


def _kept(text: str) -> Places:
    """What `_kept_text` wrote; none where it is not that."""
    numbers = [[float(number) for number in pair.split(",")] if pair else [] for pair in text.split(";")]
    if len(numbers) != len(POINT_NAMES) or not all(len(pair) in (0, 2) for pair in numbers):
        return NONE_SET
    return tuple((pair[0], pair[1]) if pair else None for pair in numbers)


class Marking:
    """The images of a folder and what is marked in them, in the order of their ids.

    One program at a time works on a table; in it, any number of pages. Raises ImageError, PointsError or AnnotateError
    for a folder or table that cannot be used, and for points marked in an image of another size.
    """

    def __init__(self, images: Path, table: Path, suggestions: Mapping[str, ReferencePoints] | None = None) -> None:
        inside = Path(images).resolve()
        found = find_images(images)
        self.images = {case_id: path for case_id, path in found.items() if path.resolve().is_relative_to(inside)}
        self.left_out = sorted(found.keys() - self.images.keys())
        if not self.images:
            raise AnnotateError(
                f"{images}: all its images are links that lead out of it, which are not shown. "
                "Give the folder they lead to."
            )
        self.ids = sorted(
            self.images, key=lambda case_id: (len(case_id), case_id) if case_id.isdigit() else (99, case_id)
        )
        self.table = Path(table)
        self.notes = notes_file(self.table)
        self.suggestions = dict(suggestions or {})
        self._mutex = threading.RLock()
        self._signature: tuple[int, ...] | None = None
        self._file = _File()
        self._notes: dict[str, dict[str, str]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        with ExitStack() as stack:
            self.table.parent.mkdir(parents=True, exist_ok=True)
            check_tree(self.table.parent, [self.notes.name, lock_file(self.table).name], AnnotateError)
            stack.enter_context(held(lock_file(self.table), "annotate", self._busy))
            self._refresh()
            self._held = stack.pop_all()

    def _busy(self, holder: str) -> AnnotateError:
        return AnnotateError(
            f"{self.table}: is being marked by {holder or 'another program'}. "
            "Open the page it printed, or stop it; to mark in two places, mark two tables."
        )

    def close(self) -> None:
        """Let the table go."""
        self._held.close()

    # ---- reading -------------------------------------------------------------------------------------------------

    def size(self, case_id: str) -> tuple[int, int]:
        """Width and height of an image, from its header."""
        if case_id not in self._sizes:
            self._sizes[case_id] = image_size(self.images[case_id])
        return self._sizes[case_id]

    def marks(self, case_id: str) -> Marks:
        """What is known of a hand now."""
        with self._mutex:
            self._refresh()
            return self._marks(case_id)

    def all(self) -> Iterator[tuple[str, Marks]]:
        """Every hand of the folder with its marks."""
        with self._mutex:
            self._refresh()
            yield from [(case_id, self._marks(case_id)) for case_id in self.ids]

    def _marks(self, case_id: str) -> Marks:
        row, note = self._file.rows.get(case_id), self._notes.get(case_id, {})
        points, skipped, seconds = _places(row) if row else NONE_SET, note.get("skipped", ""), 0.0
        with suppress(ValueError):
            seconds = float(note.get("seconds") or 0)
        if skipped and not any(points):
            with suppress(ValueError):
                points = _kept(note.get("points", ""))
        marks = Marks(points, skipped, bool(note.get("flagged")), seconds)
        return replace(marks, version=marks.content_version())

    def _refresh(self) -> None:
        """Take up what another program wrote into the table since."""
        signature = _signature(self.table)
        if signature == self._signature:
            return
        file = _File.read(self.table)
        self._check_sizes(file)
        self._file, self._signature = file, signature
        self._notes = read_notes(self.table)

    def _check_sizes(self, file: _File) -> None:
        problems = Problems()
        for case_id in self.ids:
            row = file.rows.get(case_id)
            if row and any(_places(row)):
                marked, real = (row["width"], row["height"]), tuple(map(str, self.size(case_id)))
                if marked != real:
                    problems.add(
                        f"id {case_id}: marked in {' x '.join(marked) or 'no size'}, "
                        f"but the image is {' x '.join(real)}"
                    )
        problems.raise_if_any(
            PointsError, str(self.table), "Scale them with: bonecaffe points import OLD --images … --out NEW"
        )

    # ---- writing -------------------------------------------------------------------------------------------------

    def change(self, case_id: str, marks: Marks) -> Marks:
        """Put a hand's marks on disk, whole or not at all, and return them with their new version.

        Raises Conflict when the hand is not of the version that ``marks`` was made from, AnnotateError for a point
        outside the image.
        """
        with self._mutex:
            self._refresh()
            before = self._marks(case_id)
            if marks.version != before.version:
                raise Conflict(f"id {case_id}: changed elsewhere since it was shown here")
            width, height = self.size(case_id) if any(marks.points) else (1, 1)  # an unreadable one can be skipped
            for name, place in zip(POINT_NAMES, marks.points, strict=True):
                if place and not (0 <= place[0] <= width - 1 and 0 <= place[1] <= height - 1):
                    raise AnnotateError(f"id {case_id}: {name} lies outside the image of {width} x {height}")
            reason = "".join(character if character.isprintable() else " " for character in marks.skipped)
            marks = replace(marks, skipped=" ".join(reason.split()))
            points = _rounded(marks.points)
            if points == _rounded(before.points):
                points = before.points  # not rounded again, when somebody wrote them finer
            suggestion, noted = self.suggestions.get(case_id), self._notes.get(case_id, {}).get("suggested")
            accepted = (suggestion and points == _rounded(suggestion.points)) or (noted and points == before.points)
            note = {
                "id": case_id,
                "skipped": marks.skipped,
                "flagged": "yes" if marks.flagged else "",
                "seconds": f"{marks.seconds:.1f}",
                "points": _kept_text(points) if marks.skipped else "",
                "suggested": "yes" if accepted and any(points) else "",
            }
            # in the order in which a crash between the two loses nothing
            if marks.skipped:  # its points are noted before its row is emptied
                self._write_note(note)
                self._write_points(case_id, NONE_SET)
            else:
                self._write_points(case_id, points)
                self._write_note(note)
            return self._marks(case_id)

    def _write_points(self, case_id: str, points: Places) -> None:
        row = dict(self._file.rows.get(case_id, {}))
        if points == (_places(row) if row else NONE_SET):
            return
        width, height = self.size(case_id)
        row.update(id=case_id, width=str(width), height=str(height))
        for name, place in zip(POINT_NAMES, points, strict=True):
            row[f"{name}_x"], row[f"{name}_y"] = map(coordinate_text, place) if place else ("", "")
        written = _File(self._file.columns, {**self._file.rows, case_id: row})
        write_text(self.table, written.text())
        self._file = written  # only now: what could not be written is not believed
        self._signature = _signature(self.table)

    def _write_note(self, note: Mapping[str, str]) -> None:
        empty = {"id": note["id"], "seconds": "0.0"}
        if {**dict.fromkeys(NOTE_COLUMNS, ""), **self._notes.get(note["id"], empty)} == note:
            return
        notes = {**self._notes, note["id"]: dict(note)}
        rows = ([each.get(column, "") for column in NOTE_COLUMNS] for each in notes.values())
        write_text(self.notes, table_text(NOTE_COLUMNS, rows))
        self._notes = notes


def _rounded(points: Places) -> Places:
    return tuple(
        (float(coordinate_text(place[0])), float(coordinate_text(place[1]))) if place else None for place in points
    )


def opened(
    images: Path, table: Path, suggestions: Mapping[str, ReferencePoints] | None = None
) -> AbstractContextManager[Marking]:
    """A `Marking` that is let go at the end."""
    return closing(Marking(images, table, suggestions))

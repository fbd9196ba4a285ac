"""The hands that are being marked: read from points.csv and written back after every click, without any loss.

The form of points.csv does not change. A partly marked hand has some of its coordinates, and readers of the table
report it. Everything else about a hand is in ``points.notes.csv``, in the same folder: whether it is skipped and why,
whether it is flagged, the seconds spent, the points of a skipped hand (its row in points.csv is empty, so that nobody
uses it), the suggested places if at least one was accepted, and which points were confirmed although they look
implausible.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from bonecaffe.annotate import remarks
from bonecaffe.annotate.shared_table import Row, SharedTable, signature
from bonecaffe.errors import AnnotateError, ImageError, PointsError, Problems
from bonecaffe.files import Table, check_tree, held, open_inside, read_bytes, sha256
from bonecaffe.hands import ids
from bonecaffe.hands.images import Image, decode, find_images, image_size
from bonecaffe.hands.provenance import notes_file, suggested_places, suggested_text, untouched
from bonecaffe.hands.reference_points import (
    COLUMNS,
    POINT_NAMES,
    ReferencePoints,
    coordinate_text,
    lock_file,
    read_points_table,
)

NOTE_COLUMNS = ("id", "skipped", "flagged", "seconds", "points", "suggested", "confirmed")

_WRITES = 50

Places = tuple[tuple[float, float] | None, ...]
"""The seven points in the order of `POINT_NAMES`; None where not set yet."""

NONE_SET: Places = (None,) * len(POINT_NAMES)


@dataclass(frozen=True)
class Marks:
    """The marks of one hand. ``skipped`` is the reason, empty when the hand is not skipped.

    ``version`` names the state that these marks were made from. It depends on the content alone, so it stays the same
    after a restart.
    """

    points: Places = NONE_SET
    skipped: str = ""
    flagged: bool = False
    seconds: float = 0.0
    version: str = ""
    confirmed: bool = False
    """Whether somebody has confirmed that exactly these points are right, although they look implausible."""
    untouched: tuple[bool, ...] = (False,) * len(POINT_NAMES)
    """Which points are exactly where a program suggested them: accepted and never moved."""

    def content_version(self) -> str:
        """The name of this state; empty for a hand without any marks.

        Seconds and the confirmation do not count: they cannot conflict with changes by somebody else.
        """
        known = (self.points, self.skipped, self.flagged)
        return "" if known == (NONE_SET, "", False) else sha256(json.dumps(known))[:16]

    @property
    def state(self) -> str:
        """``done``, ``skipped``, ``partial`` or ``unmarked``."""
        if self.skipped:
            return "skipped"
        count = sum(point is not None for point in self.points)
        return "done" if count == len(POINT_NAMES) else "partial" if count else "unmarked"


class Conflict(AnnotateError):
    """A hand was changed elsewhere since it was shown."""


def _places(row: Mapping[str, str]) -> Places:
    """The points of a row, some of which may be empty. ValueError for a point with one coordinate or no number."""
    return _parsed(tuple(row[column] for column in COLUMNS[3:]))


@lru_cache(maxsize=1 << 16)
def _parsed(cells: tuple[str, ...]) -> Places:
    places: list[tuple[float, float] | None] = []
    for name, x, y in zip(POINT_NAMES, cells[::2], cells[1::2], strict=True):
        if bool(x) != bool(y):
            raise ValueError(f"{name} has only one coordinate")
        if not x:
            places.append(None)
            continue
        try:
            place = float(x), float(y)
        except ValueError:
            raise ValueError(f"{name} at ({x}, {y}) is not a number") from None
        if not all(map(math.isfinite, place)):
            raise ValueError(f"{name} at ({x}, {y}) is not finite")
        places.append(place)
    return tuple(places)


def _read_notes(path: Path) -> Table:
    check_tree(path.parent, [path.name], AnnotateError)  # a link may lead anywhere
    return ids.read_table(path, AnnotateError)


def _kept_text(points: Places) -> str:
    """The points of a skipped hand as its note stores them: ``x,y`` seven times, empty where not set.

    Empty if no point is set.
    """
    return ";".join(",".join(map(coordinate_text, place)) if place else "" for place in points) if any(points) else ""


def _kept(text: str) -> Places:
    """The points in a text that `_kept_text` wrote; no points for any other text."""
    numbers = [[float(number) for number in pair.split(",")] if pair else [] for pair in text.split(";")]
    if len(numbers) != len(POINT_NAMES) or not all(len(pair) in (0, 2) for pair in numbers):
        return NONE_SET
    return tuple((pair[0], pair[1]) if pair else None for pair in numbers)


class Marking:
    """The images of a folder and the points marked in them, in the order of their ids.

    One program at a time works on a table. It may serve any number of pages. Raises ImageError, PointsError or
    AnnotateError for a folder or table that cannot be used, and for points marked in an image of another size.
    """

    def __init__(self, images: Path, table: Path, suggestions: Mapping[str, ReferencePoints] | None = None) -> None:
        inside = Path(images).resolve()
        found = find_images(images)
        self.images = {case_id: path for case_id, path in found.items() if path.resolve().is_relative_to(inside)}
        self.left_out = sorted(found.keys() - self.images.keys())
        if not self.images:
            raise AnnotateError(
                f"{images}: all images in it are links that lead out of the folder. Such links are not shown. "
                "Give the folder that they lead to."
            )
        self.ids = sorted(
            self.images, key=lambda case_id: (len(case_id), case_id) if case_id.isdigit() else (99, case_id)
        )
        self._folder = inside
        self.table = Path(table)
        self.notes = notes_file(self.table)
        self.suggestions = dict(suggestions or {})
        self._mutex = threading.RLock()
        self._indexed: Mapping[str, Row] | None = None
        self._index: dict[Places, list[str]] = {}
        self._sizes: dict[str, tuple[tuple[int, ...], tuple[int, int]]] = {}
        with ExitStack() as stack:
            self.table.parent.mkdir(parents=True, exist_ok=True)
            self._points = SharedTable(self.table, COLUMNS, read_points_table, _places, PointsError)
            self._notes = SharedTable(self.notes, NOTE_COLUMNS, _read_notes, lambda row: None, AnnotateError)
            lock = lock_file(self.table)
            check_tree(lock.parent, [self.notes.name, lock.name], AnnotateError)
            stack.enter_context(held(lock, "annotate", self._busy))
            self._refresh()
            self._held = stack.pop_all()

    def _busy(self, holder: str) -> AnnotateError:
        return AnnotateError(
            f"{self.table}: is being marked by {holder or 'another program'}. "
            "Open the address that it printed, or stop it. To mark in two places, use two tables."
        )

    def close(self) -> None:
        """Release the table, so that another program can mark it."""
        self._held.close()

    # ---- reading -------------------------------------------------------------------------------------------------

    def size(self, case_id: str) -> tuple[int, int]:
        """Width and height of an image, from its header."""
        path = self.images[case_id]
        with self._errors(case_id):
            now = signature(path)
        if case_id not in self._sizes or self._sizes[case_id][0] != now:
            with self._errors(case_id), open_inside(path, self._folder, ImageError):
                self._sizes[case_id] = now, image_size(path)
        return self._sizes[case_id][1]

    def image(self, case_id: str) -> Image:
        """The pixels. ImageError if the file cannot be read, or has become a link that leads out of the folder."""
        path = self.images[case_id]
        with self._errors(case_id):
            return decode(read_bytes(path, "image", ImageError, self._folder), str(path))

    @contextmanager
    def _errors(self, case_id: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ImageError(f"{self.images[case_id]}: {error.strerror or error}.") from error

    def remarks(self, case_id: str, points: Places) -> list[str]:
        """What is implausible about a complete hand, in sentences; empty while points are missing."""
        whole = tuple(place for place in points if place)
        if len(whole) < len(POINT_NAMES):
            return []
        try:
            hand = ReferencePoints(case_id, *self.size(case_id), whole)
        except ImageError:  # the page gets this error when it asks for the image
            return []
        with self._mutex:
            return remarks.about(hand, [other for other in self._ids_by_points(whole) if other != case_id])

    def in_doubt(self, case_id: str, marks: Marks) -> bool:
        """Whether a hand is done and implausible, and has not been confirmed."""
        return marks.state == "done" and not marks.confirmed and bool(self.remarks(case_id, marks.points))

    def _ids_by_points(self, whole: Places) -> list[str]:
        rows = self._points.rows
        if self._indexed is not rows:
            self._indexed, self._index = rows, {}
            for case_id, row in rows.items():
                self._index.setdefault(_places(row), []).append(case_id)
        return self._index.get(_rounded(whole), [])

    def marks(self, case_id: str) -> Marks:
        """The current marks of a hand."""
        with self._mutex:
            self._refresh()
            return self._marks(case_id)

    def all(self) -> Iterator[tuple[str, Marks]]:
        """Every hand of the folder with its current marks."""
        with self._mutex:
            self._refresh()
            yield from [(case_id, self._marks(case_id)) for case_id in self.ids]

    def _marks(self, case_id: str) -> Marks:
        row, note = self._points.rows.get(case_id), self._notes.rows.get(case_id, {})
        points, skipped, seconds = _places(row) if row else NONE_SET, note.get("skipped", ""), 0.0
        with suppress(ValueError):
            seconds = float(note.get("seconds") or 0)
        if skipped and not any(points):
            with suppress(ValueError):
                points = _kept(note.get("points", ""))
        marks = Marks(points, skipped, bool(note.get("flagged")), seconds)
        return replace(
            marks,
            version=marks.content_version(),
            confirmed=bool(note.get("confirmed")) and note["confirmed"] == _points_version(points),
            untouched=untouched(points, self._suggested(case_id)),
        )

    def _suggested(self, case_id: str) -> list[tuple[float, float]]:
        """The suggested places noted for a hand, of which at least one was accepted."""
        text = self._notes.rows.get(case_id, {}).get("suggested", "")
        return suggested_places(text, self._points.rows.get(case_id, {}))

    def _refresh(self) -> None:
        """Read what other programs have written into the tables since the last look."""
        self._points.refresh(self._check_sizes)
        self._notes.refresh()

    def _check_sizes(self, rows: Mapping[str, Row]) -> None:
        problems = Problems()
        for case_id in self.ids:
            row = rows.get(case_id)
            if row and any(_places(row)):
                try:
                    real = tuple(map(str, self.size(case_id)))
                except ImageError:  # the page shows why; this hand can be skipped, and the others are not affected
                    continue
                marked = row["width"], row["height"]
                if marked != real:
                    problems.add(
                        f"id {case_id}: marked in {' x '.join(marked) or 'an image of unknown size'}, "
                        f"but the image is {' x '.join(real)}"
                    )
        problems.raise_if_any(
            PointsError, str(self.table), "Scale them with: bonecaffe points import OLD --images … --out NEW"
        )

    # ---- writing -------------------------------------------------------------------------------------------------

    def change(self, case_id: str, marks: Marks) -> Marks:
        """Write a hand's marks to disk, completely or not at all, and return them with their new version.

        Raises Conflict if the hand has changed since the version that ``marks`` was made from, and AnnotateError for a
        point outside the image.
        """
        with self._mutex:
            self._refresh()
            before = self._marks(case_id)
            if marks.version != before.version:
                raise Conflict(f"id {case_id}: changed elsewhere since it was shown here")
            width, height = (
                self.size(case_id) if any(marks.points) else (1, 1)
            )  # a hand without a readable image can still be skipped
            for name, place in zip(POINT_NAMES, marks.points, strict=True):
                if place and not (0 <= place[0] <= width - 1 and 0 <= place[1] <= height - 1):
                    raise AnnotateError(f"id {case_id}: {name} is outside the image of {width} x {height}")
            reason = "".join(character if character.isprintable() else " " for character in marks.skipped)
            marks = replace(marks, skipped=" ".join(reason.split()))
            points = _rounded(marks.points)
            if points == _rounded(before.points):
                points = before.points  # unchanged, so keep the finer digits that another program may have written
            same = points == before.points
            confirmed = same and (
                marks.confirmed or before.confirmed
            )  # only points that are on disk already have been seen
            known = self._points.rows.get(case_id, {}), self._notes.rows.get(case_id, {})
            note = {
                "id": case_id,
                "skipped": marks.skipped,
                "flagged": "yes" if marks.flagged else "",
                "seconds": f"{marks.seconds:.1f}",
                "points": _kept_text(points) if marks.skipped else "",
                "suggested": suggested_text(self._taken(case_id, points)),
                "confirmed": _points_version(points) if confirmed else "",
            }
            # in this order, a crash between the two writes loses nothing
            if marks.skipped:  # note the points before the row is emptied
                self._write_note(note, known[1])
                self._write_points(case_id, NONE_SET, known[0])
            else:
                self._write_points(case_id, points, known[0])
                self._write_note(note, known[1])
            return self._marks(case_id)

    def _taken(self, case_id: str, points: Places) -> list[tuple[float, float]]:
        """The suggested places to note for a hand: those noted before, and the suggestion if a point was accepted."""
        noted, suggestion = self._suggested(case_id), self.suggestions.get(case_id)
        taken = suggestion is not None and any(untouched(points, suggestion.points))
        return [*noted, *(suggestion.points if suggestion and taken else ())]

    def _write_points(self, case_id: str, points: Places, known: Row) -> None:
        if points == (_places(known) if known else NONE_SET):
            return
        width, height = self.size(case_id)
        cells = {"id": case_id, "width": str(width), "height": str(height)}
        for name, place in zip(POINT_NAMES, points, strict=True):
            cells[f"{name}_x"], cells[f"{name}_y"] = map(coordinate_text, place) if place else ("", "")
        self._write(self._points, case_id, cells, known)

    def _write_note(self, note: Row, known: Row) -> None:
        existing = {"id": note["id"], "seconds": "0.0", **known}
        if any(existing.get(column, "") != note[column] for column in NOTE_COLUMNS):
            self._write(self._notes, note["id"], note, known)

    def _write(self, table: SharedTable, case_id: str, cells: Row, known: Row) -> None:
        """Write our cells of a hand, even while other programs write to the same table.

        ``known`` is the row as it was. Raises Conflict if another program has changed one of these cells since.
        """
        for _ in range(_WRITES):
            now = table.rows.get(case_id, {})
            if any(now.get(column, "") != known.get(column, "") for column in cells):
                raise Conflict(f"id {case_id}: changed elsewhere since it was shown here")
            if table.put(case_id, {**now, **cells}):
                return
            time.sleep(random.uniform(0, 0.01))  # a random pause, to get out of step with the other program
            self._refresh()
        raise AnnotateError(f"{table.path}: another program keeps writing to it. Stop that program.")


def _points_version(points: Places) -> str:
    """A name for seven points, derived from their places; empty for fewer points, which cannot be confirmed."""
    return sha256(_kept_text(points))[:16] if all(points) else ""


def _rounded(points: Places) -> Places:
    return tuple(
        (float(coordinate_text(place[0])), float(coordinate_text(place[1]))) if place else None for place in points
    )


def opened(
    images: Path, table: Path, suggestions: Mapping[str, ReferencePoints] | None = None
) -> AbstractContextManager[Marking]:
    """A `Marking` as a context manager, which releases the table at the end."""
    return closing(Marking(images, table, suggestions))

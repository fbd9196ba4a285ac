"""The content of a tool's file: hands with named points, and what is left out, with the reason.

A tool's module yields one piece per hand; `collect` reads them one by one, so that an error of any kind in one piece
does not affect the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from bonecaffe.hands import ids
from bonecaffe.hands.fingers import Incomplete
from bonecaffe.hands.reference_points import POINT_NAMES

Point = tuple[float, float]
Size = tuple[float, float]

_FINGERS = ("thumb", "index", "middle", "ring", "little")
_OTHER_NAMES = {
    **{name: f"phalanx{number}" for number, name in enumerate(_FINGERS, start=1)},
    **{f"{name}finger": f"phalanx{number}" for number, name in enumerate(_FINGERS, start=1)},
    **{f"finger{number}": f"phalanx{number}" for number in range(1, 6)},
    "pinky": "phalanx5",
    "distalulna": "ulna",
    "distalradius": "radius",
}
_SHOWN = 60  # characters of a file's text in an error
_LARGEST_SIDE = 100_000
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


def point_name(label: Any) -> str | None:
    """bonecaffe's name for a point with another tool's label; None for a label of none of the seven.

    >>> point_name("Ulna"), point_name("Thumb"), point_name("finger 5"), point_name("Wrist")
    ('ulna', 'phalanx1', 'phalanx5', None)
    """
    if not isinstance(label, str):
        return None
    bare = re.sub(r"[^a-z0-9]", "", label.lower())
    return bare if bare in POINT_NAMES else _OTHER_NAMES.get(bare)


# ---- hands, and what is left out ---------------------------------------------------------------------------------


@dataclass
class Marks:
    """Points of one hand, by bonecaffe's names, and the labels that bonecaffe does not know, for errors."""

    points: dict[str, Point] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def put(self, label: Any, x: Any, y: Any) -> None:
        """Store a point, if its label is known. ValueError when it already exists, or x or y is not a number."""
        name = point_name(label)
        if name is None:
            self.others.append(shown(label))
            return
        if name in self.points:
            raise ValueError(f"{name} is marked twice. One hand per image is expected")
        self.points[name] = number(x), number(y)


@dataclass(frozen=True)
class Hand:
    """One hand of an image as a tool marked it.

    ``image`` is the image's name or address as the tool writes it, empty where it writes none. ``size`` is the width
    and height in which the tool showed it; None where the file does not hold them. ``points`` are in pixels of that
    size, or, with ``percent``, in percent of it. With ``upload``, the name may begin with the eight characters that
    Label Studio puts before the name of an uploaded file; with ``is_id``, it is already an id. ``where`` is the place
    in the file, for errors.
    """

    image: str
    size: Size | None
    points: dict[str, Point]
    others: tuple[str, ...] = ()
    percent: bool = False
    upload: bool = False
    is_id: bool = False
    where: str = ""


class Kind(Enum):
    """How something that was left out is counted."""

    UNMARKED = "nothing to import"
    INCOMPLETE = "a hand that lacks points or its image"
    WRONG = "an error"


@dataclass(frozen=True)
class LeftOut:
    """Something in a file that did not give a hand: where, and the reason as a phrase that follows a number.

    ``detail`` is the whole error, or the evidence for what is only counted.
    """

    kind: Kind
    reason: str
    where: str = ""
    detail: str = ""
    path: Path | None = None

    def __str__(self) -> str:
        """File, place and what is wrong, for one line."""
        path = shown(str(self.path), at_most=1000) if self.path else ""
        return ": ".join(part for part in (path, self.where, self.detail or self.reason) if part)


@dataclass
class Reading:
    """What a file holds."""

    hands: list[Hand] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


class Unmarked(Exception):
    """Raised by a reader for a piece without anything to import, with the reason, as in `LeftOut`, and the evidence."""

    def __init__(self, reason: str, evidence: str = "") -> None:
        super().__init__(reason)
        self.evidence = evidence


class NoImage(Incomplete):
    """A hand whose image is not in the folder given."""


def left_out(error: Exception, where: str = "") -> LeftOut:
    """A reader's exception as an entry of what was left out."""
    detail = str(error).rstrip(".")
    if isinstance(error, Unmarked):
        return LeftOut(Kind.UNMARKED, detail, where, error.evidence)
    if isinstance(error, NoImage):
        return LeftOut(Kind.INCOMPLETE, "without their image", where, detail)
    if isinstance(error, Incomplete):
        return LeftOut(Kind.INCOMPLETE, "without all seven points", where, detail)
    return LeftOut(Kind.WRONG, "with errors", where, detail)


FAULTS = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
"""What a reader may raise for a file of unexpected structure. Only ValueErrors have messages for users."""

Piece = TypeVar("Piece")


def collect(
    what: str,
    pieces: Iterable[tuple[int, Piece]],
    read: Callable[[Piece], Iterable[Hand | LeftOut]],
    name: Callable[[Piece], Any],
) -> Reading:
    """Read the numbered pieces of a file one by one.

    ``what`` is the word for a piece, empty where a file has only one, and ``name`` gives its image, for errors.
    An exception of ``read`` does not affect the other pieces.
    """
    reading = Reading()
    for count, piece in pieces:
        where = f"{what} {count}" if what else ""
        try:
            if image := name(piece):
                image = shown(image)
                where = f"{where} ({image})" if where else f"image {image}"
        except FAULTS:
            pass  # the number is enough
        try:
            for found in read(piece):
                if isinstance(found, Hand):
                    reading.hands.append(replace(found, where=where))
                else:
                    reading.left_out.append(replace(found, where=where))
        except (Unmarked, ValueError) as error:
            reading.left_out.append(left_out(error, where))
        except FAULTS as error:
            reading.left_out.append(left_out(ValueError(f"of unexpected structure ({type(error).__name__})"), where))
    return reading


# ---- values from other tools' files ------------------------------------------------------------------------------


def shown(value: Any, at_most: int = _SHOWN) -> str:
    r"""A value from a file for an error message: on one line, printable, shortened when it is long.

    >>> shown("1001.png"), shown("a\tb"), shown([1]), shown(None)
    ('1001.png', "'a\\tb'", 'a list', 'nothing')
    """
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = value if isinstance(value, str) else repr(value)
    cut = text if len(text) <= at_most else f"{text[:at_most]} …"
    return cut if cut and cut.isprintable() else repr(cut)


def listed(labels: Iterable[str]) -> str:
    """The first few of several labels, each once."""
    return ids.listed(dict.fromkeys(labels))


def member(node: Any, key: str, kind: type[Piece]) -> Piece:
    """``node[key]`` of a parsed JSON object; ValueError naming the key when it is missing or of another type."""
    if not isinstance(node, dict):
        raise ValueError(f"{shown(node)}, where an object with {key!r} is expected")
    if key not in node:
        raise ValueError(f"no {key!r}")
    if not isinstance(node[key], kind):
        expected = {"list": "a list", "dict": "an object", "str": "a text"}[kind.__name__]
        raise ValueError(f"{key!r} is {shown(node[key])}, not {expected}")
    found: Piece = node[key]
    return found


def number(value: Any) -> float:
    """A finite number, or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{shown(value)} is not a number")
    # float() would accept 1_2, and digits of other scripts
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise ValueError(f"{shown(value)} is not a number")
    try:
        found = float(value)
    except OverflowError:
        raise ValueError(f"{shown(value)} is not a number of pixels") from None
    if not math.isfinite(found):
        raise ValueError(f"{shown(value)} is not a finite number")
    return found


def size_of(width: Any, height: Any) -> Size | None:
    """The size of the image as a tool wrote it; None where it wrote none, or 0, which means unknown.

    ValueError for an impossible size.
    """
    if any(side is None or (isinstance(side, str) and not side.strip()) for side in (width, height)):
        return None
    sides = number(width), number(height)
    if 0 in sides:
        return None
    if not all(1 <= side <= _LARGEST_SIDE for side in sides):
        raise ValueError(f"its size, {sides[0]:g} x {sides[1]:g} pixels, is impossible")
    return sides

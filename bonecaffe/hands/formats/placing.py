"""Convert a hand as a tool marked it to pixels of its upright image, or refuse it with a reason.

Tools that show images in a browser, and labelme, apply an image's Exif orientation, as bonecaffe does. Others mark the
stored pixels. Where the orientation swaps the axes, the size shows which was done. Where it does not (upside down,
mirrored), the file does not show it; the image is then assumed to have been marked upright.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from bonecaffe.errors import ImageError
from bonecaffe.files import open_regular
from bonecaffe.hands.fingers import Incomplete
from bonecaffe.hands.formats.marks import Hand, NoImage, Point, Size, Unmarked, listed
from bonecaffe.hands.formats.names import ImageNames, guess
from bonecaffe.hands.ids import composed, flaw
from bonecaffe.hands.image_headers import read_header
from bonecaffe.hands.image_source import of_file
from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints

_SHAPE_TOLERANCE = 0.01  # of the aspect, for images that were scaled to whole pixels
_BORDER_PX = 1.0
"""Other tools' coordinates may reach the width, bonecaffe's the width - 1; a point is moved in by at most this much."""

SCALED = "marked in another size, and scaled to the image"
MOVED_IN = "with a point on the border, moved in by at most one pixel"
TURNED = "marked on the unrotated image, and turned upright by the image's orientation"
TAKEN_AS_UPRIGHT = "of images that are stored in another orientation, assumed to be marked upright; check them"


class Stored(NamedTuple):
    """An image as it is stored, before its orientation is applied; ``orientation`` is 1 to 8, as Exif has it."""

    width: int
    height: int
    orientation: int

    @property
    def swaps(self) -> bool:
        """Whether rows become columns when it is turned upright."""
        return self.orientation >= 5

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return (self.height, self.width) if self.swaps else (self.width, self.height)

    def turn(self, point: Point) -> Point:
        """A point of the stored image in the upright one.

        >>> Stored(650, 500, 6).turn((0, 499)), Stored(650, 500, 8).turn((649, 0))
        ((0, 0), (0, 0))
        """
        (x, y), right, bottom = point, self.width - 1, self.height - 1
        return {
            2: (right - x, y),
            3: (right - x, bottom - y),
            4: (x, bottom - y),
            5: (y, x),
            6: (bottom - y, x),
            7: (bottom - y, right - x),
            8: (y, right - x),
        }.get(self.orientation, (x, y))


def stored(path: str | os.PathLike[str]) -> Stored:
    """Size and orientation from an image's header; ImageError when it is not one that bonecaffe reads."""
    try:
        with open_regular(path, ImageError) as file:
            header = read_header(of_file(file.fileno(), os.fspath(path)))
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}.") from error
    return Stored(header.width, header.height, header.orientation)


def place(hand: Hand, images: ImageNames | None) -> tuple[ReferencePoints, list[str]]:
    """All seven points in pixels of the upright image, to a tenth as in points.csv, and notes on them.

    Raises Unmarked for a hand without points, Incomplete where points or the image are missing, and ValueError or
    ImageError for anything else that is wrong with it.
    """
    if not hand.points:
        raise Unmarked("with other labels only", listed(hand.others)) if hand.others else Unmarked("not marked")
    if missing := [name for name in POINT_NAMES if name not in hand.points]:
        more = f" (other labels: {listed(hand.others)})" if hand.others else ""
        raise Incomplete(f"not marked: {', '.join(missing)}{more}")
    hand_id = _identify(hand, images)
    notes = []
    if images is not None:
        image = stored(images.path(hand_id))
    elif hand.size is not None:
        image = Stored(round(hand.size[0]), round(hand.size[1]), 1)
    else:
        raise ValueError("the size of its image is not in the file. Give the folder of images with --images")
    unrotated = _is_unrotated(hand.size, image)
    if image.orientation != 1 and not _is_shown_by(hand.size, image):
        notes.append(TAKEN_AS_UPRIGHT)
    width, height = frame = (image.width, image.height) if unrotated else image.upright
    units = (100.0, 100.0) if hand.percent else hand.size or frame
    if hand.size is not None and (round(hand.size[0]), round(hand.size[1])) != frame:
        notes.append(SCALED)
    points = []
    for name in POINT_NAMES:
        x, y = hand.points[name][0] * width / units[0], hand.points[name][1] * height / units[1]
        inside = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
        if max(abs(inside[0] - x), abs(inside[1] - y)) > _BORDER_PX + 1e-6:
            raise ValueError(f"{name} at ({x:g}, {y:g}) is outside the image of {width} x {height}")
        if inside != (x, y) and MOVED_IN not in notes:
            notes.append(MOVED_IN)
        points.append(image.turn(inside) if unrotated else inside)
    if unrotated:
        notes.append(TURNED)
    # as they will be read back: a rectangle of eight pixels may have seven after rounding
    rounded = tuple((round(x, 1), round(y, 1)) for x, y in points)
    placed = ReferencePoints(hand_id, *image.upright, rounded)
    if problems := placed.problems():
        raise ValueError(problems[0])
    return placed, notes


def _identify(hand: Hand, images: ImageNames | None) -> str:
    if not hand.image.strip():
        raise ValueError("no id" if hand.is_id else "the name of its image is missing")
    if images is not None:
        found = images.with_id(hand.image) if hand.is_id else images.find(hand.image, hand.upload)
        if found is None:
            raise NoImage("no such image in the folder given")
    else:
        found = composed(hand.image) if hand.is_id else guess(hand.image, hand.upload)
    if (reason := flaw(found)) is not None:
        raise ValueError(f"{found[:80]!r} cannot be an id: {reason}. Rename the image")
    return found


def _is_unrotated(size: Size | None, image: Stored) -> bool:
    """Whether an image was marked as it is stored, before its orientation swaps the axes.

    ValueError when the size in which it was marked has neither shape.
    """
    if size is None or size == image.upright:
        return False
    raw = (image.width, image.height)
    if image.swaps and size == raw:
        return True
    if _same_shape(size, image.upright):
        return False
    if image.swaps and _same_shape(size, raw):
        return True
    raise ValueError(
        f"marked in {size[0]:g} x {size[1]:g}, but the image is {image.upright[0]} x {image.upright[1]}, "
        "a different shape"
    )


def _is_shown_by(size: Size | None, image: Stored) -> bool:
    """Whether the size in which an image was marked shows if it was turned upright then."""
    raw = (image.width, image.height)
    if size is None or raw == image.upright:
        return False
    return size in (raw, image.upright) or not _same_shape(raw, image.upright)


def _same_shape(a: Size, b: Size) -> bool:
    return abs((a[0] * b[1]) / (a[1] * b[0]) - 1) <= _SHAPE_TOLERANCE

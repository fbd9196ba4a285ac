"""Two markings of the same hands against each other: how far apart the points are, and what it does to the rectangle.

Done twice by one person, this is the repeat-marking error that the paper does not give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from bonecaffe.errors import PointsError
from bonecaffe.hands.reference_points import POINT_NAMES, Rectangle, ReferencePoints


class Difference(NamedTuple):
    """One hand marked twice: each point's distance in pixels and in percent of the `palm`; the rectangles' overlap."""

    id: str
    pixels: tuple[float, ...]
    percent: tuple[float, ...]
    iou: float


def palm(hand: ReferencePoints) -> float:
    """Pixels from the middle between ulna and radius to the middle finger's point.

    The length that a hand's own points give, so that hands of every size and scan can be compared.
    """
    (ulna_x, ulna_y), (radius_x, radius_y) = hand.points[:2]
    return math.dist(((ulna_x + radius_x) / 2, (ulna_y + radius_y) / 2), hand.points[POINT_NAMES.index("phalanx3")])


def overlap(a: Rectangle, b: Rectangle) -> float:
    """Intersection over union of two rectangles, in whole pixels.

    >>> overlap(Rectangle(0, 0, 9, 9), Rectangle(5, 0, 14, 9))
    0.3333333333333333
    """
    wide = min(a.right, b.right) - max(a.left, b.left) + 1
    high = min(a.bottom, b.bottom) - max(a.top, b.top) + 1
    both = max(0, wide) * max(0, high)
    return both / (a.width * a.height + b.width * b.height - both)


def compare(first: Mapping[str, ReferencePoints], second: Mapping[str, ReferencePoints]) -> list[Difference]:
    """The differences for the hands that both hold, by id.

    Raises PointsError when they share none, or an image's size differs.
    """
    found = []
    for case_id in sorted(first.keys() & second.keys()):
        a, b = first[case_id], second[case_id]
        if (a.width, a.height) != (b.width, b.height):
            raise PointsError(
                f"id {case_id}: marked in {a.width} x {a.height} and in {b.width} x {b.height}; "
                "the same image is needed."
            )
        length = palm(a)
        if length == 0:
            raise PointsError(f"id {case_id}: the wrist and the middle finger are marked at the same place.")
        pixels = tuple(math.dist(p, q) for p, q in zip(a.points, b.points, strict=True))
        percent = tuple(100 * distance / length for distance in pixels)
        found.append(Difference(case_id, pixels, percent, overlap(a.rectangle(), b.rectangle())))
    if not found:
        raise PointsError("the two tables share no marked hand.")
    return found

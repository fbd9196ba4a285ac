"""Compare two markings of the same hands: the distance between points, and the overlap of the rectangles.

Where one person marked both, this is the repeat-marking error, which the paper does not report.
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
    """Pixels from the midpoint of ulna and radius to the middle finger's point.

    Distances are given relative to it, so that hands of different sizes and scans can be compared.
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
    """The differences for the hands that are marked in both, by id.

    Raises PointsError when no hand is marked in both, or when the sizes of an image differ.
    """
    found = []
    for case_id in sorted(first.keys() & second.keys()):
        a, b = first[case_id], second[case_id]
        if (a.width, a.height) != (b.width, b.height):
            raise PointsError(
                f"id {case_id}: marked in an image of {a.width} x {a.height} and in one of "
                f"{b.width} x {b.height} pixels. Mark the same image both times."
            )
        length = palm(a)
        if length == 0:
            raise PointsError(f"id {case_id}: the wrist and the middle finger are marked at the same place.")
        pixels = tuple(math.dist(p, q) for p, q in zip(a.points, b.points, strict=True))
        percent = tuple(100 * distance / length for distance in pixels)
        found.append(Difference(case_id, pixels, percent, overlap(a.rectangle(), b.rectangle())))
    if not found:
        raise PointsError("no hand is marked in both tables.")
    return found

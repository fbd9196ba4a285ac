"""Whether found points may be used without a check: one rule for the command line and for Python. Pure."""

from __future__ import annotations

import numpy as np

from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints
from bonecaffe.hands.standard_view import askew
from bonecaffe.locate.frames import Places

CONFIDENT = "confident"
_OUTSIDE = 0.02
"""Part of the image's height. If a point is found further outside, the hand is taken for cut off."""
_AT_BORDER = 0.10
"""Part of `wrist_to_knuckles`. A point found nearer to the border than this may be cut off; the nets have not learnt to
look beyond the border."""


def wrist_to_knuckles(points: Places) -> float:
    """Pixels from the middle between ulna and radius to the mean of the four fingers' points (7, 2), thumb left out.

    A mean of four is steadier than one point, and these points are a net's guesses. The palm of a marked hand
    (`bonecaffe.hands.agreement.palm`) ends at the middle finger's point instead, and is a little longer.
    """
    return float(np.hypot(*(points[3:].mean(axis=0) - points[:2].mean(axis=0)))) + 1e-6


def inside(points: Places, shape: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """Points (7, 2) moved into an image (height, width), to a tenth of a pixel."""
    height, width = shape
    clipped = np.stack([np.clip(points[:, 0], 0, width - 1), np.clip(points[:, 1], 0, height - 1)], axis=1)
    return tuple((round(float(x), 1), round(float(y), 1)) for x, y in clipped)


def verdict(points: Places, confidence: float, shape: tuple[int, int], others: int = 0) -> str:
    """``confident``, or why not, for points (7, 2) found in an image (height, width) with ``others`` more hands."""
    height, width = shape
    x, y = points[:, 0], points[:, 1]
    beyond = np.maximum.reduce([-x, -y, x - (width - 1), y - (height - 1)])
    outermost = POINT_NAMES[int(beyond.argmax())]
    problems = ReferencePoints("", width, height, inside(points, shape)).problems()
    if confidence < 0.5:
        return "uncertain: the points found from several views disagree; perhaps no hand, or not in the usual position"
    if others:
        return f"uncertain: {others + 1} hands on one film; cut the image so that it shows one"
    if beyond.max() > _OUTSIDE * height:
        return f"cut off: {outermost} would be outside the image"
    if beyond.max() > -_AT_BORDER * wrist_to_knuckles(points):
        return f"uncertain: {outermost} is at the image's border; perhaps the hand is cut off there"
    problems += askew(points.tolist())
    return f"uncertain: {problems[0]}" if problems else CONFIDENT

"""Turn a radiograph to its standard view: the hand upright, its bones bright, by its pixels and seven points. Pure.

The paper uses hands as RSNA stores them, all in this view. Another scan may be on its side, upside down, or show dark
bones. A net that has never seen such a crop would give a wrong age without a warning. Quarter turns and inversion lose
nothing: they give exactly the pixels of the same scan stored as usual.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from bonecaffe.hands.images import Image
from bonecaffe.hands.reference_points import ReferencePoints

TILT = 35
"""Degrees of tilt beyond which a crop along the image's sides does not look like the paper's; phantoms reach 28."""
_PALM = 64
"""Pixels of the palm, from the middle of the wrist to the middle of the knuckles, where brightness is compared."""
_CLEAR, _HINT = 0.6, 0.3
"""Absolute scores, of at most 3, from which the polarity is clear, and from which there is a hint of it.

The polarity of 64 real hands and of 2,000 phantoms is always clear, as they are and inverted.
"""


class Polarity(StrEnum):
    """How bones look: bright as usual, dark, or unclear (doubtful); or no hand is visible at the points (unseen)."""

    BRIGHT = "bright"
    DARK = "dark"
    DOUBTFUL = "doubtful"
    UNSEEN = "unseen"


def tilt(points: Sequence[Sequence[float]]) -> float:
    """Degrees by which a hand, seven points (x, y), is turned clockwise from upright: from -180 to 180.

    >>> round(tilt([(0, 0), (10, 0), (30, 20), (18, 60), (9, 65), (0, 62), (-10, 55)]))  # fingers down
    -179
    """
    x, y = _up(np.asarray(points, float))
    return math.degrees(math.atan2(x, -y))


def _up(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector (x, y) from the middle of the wrist to the middle of the knuckles, of seven points (7, 2)."""
    return np.asarray(points[3:].mean(axis=0) - points[:2].mean(axis=0))


def quarters(points: Sequence[Sequence[float]]) -> int:
    """Quarter turns counter-clockwise, 0 to 3, that bring a hand nearest to upright, as `numpy.rot90` counts them."""
    return round(tilt(points) / 90) % 4


def pose(points: Sequence[Sequence[float]]) -> list[str]:
    """How a hand, seven points (x, y), is turned, as phrases; empty when it is upright."""
    return turn_remarks(quarters(points)) + askew(points)


def askew(points: Sequence[Sequence[float]]) -> list[str]:
    """How far a hand is from upright and from every quarter turn, as a phrase; empty up to `TILT` degrees."""
    off = abs((tilt(points) + 45) % 90 - 45)
    return [f"the hand is tilted by {off:.0f} degrees; much of its crop does not show the hand"] if off > TILT else []


def turn_remarks(count: int) -> list[str]:
    """The turn that ``count`` quarter turns counter-clockwise undo, as a phrase; empty for none."""
    how = {1: "90 degrees clockwise", 2: "180 degrees", 3: "90 degrees counter-clockwise"}
    return [f"the hand is turned by {how[count]}; it is set upright for the crop"] if count else []


def turned(hand: ReferencePoints, count: int) -> ReferencePoints:
    """The points after quarter turns of their image counter-clockwise, as by `numpy.rot90`.

    >>> turned(ReferencePoints("1", 100, 200, ((10, 20),) * 7), 1).points[0]
    (20.0, 89.0)
    """
    for _ in range(count % 4):
        points = tuple((float(y), round(hand.width - 1.0 - x, 6)) for x, y in hand.points)  # 119.2, not 119.19999
        hand = replace(hand, width=hand.height, height=hand.width, points=points)
    return hand


class StandardView(NamedTuple):
    """An image (height, width) with its points, upright and with bright bones, and how it was changed."""

    image: Image
    points: ReferencePoints
    quarters: int
    """Quarter turns counter-clockwise."""
    polarity: Polarity
    """Of the original image."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was changed or noticed, as phrases; empty for an ordinary radiograph."""
        return (*turn_remarks(self.quarters), *askew(self.points.points), *polarity_remarks(self.polarity))


def polarity_remarks(polarity: Polarity) -> list[str]:
    """What is unusual about how bones look, as a phrase; empty when they are bright."""
    return {
        Polarity.BRIGHT: [],
        Polarity.DARK: ["bones are dark; the image is inverted for the crop"],
        Polarity.DOUBTFUL: ["it is unclear whether bones are bright or dark; the hand is refused"],
        Polarity.UNSEEN: ["a hand is hardly visible at the points; check them"],
    }[polarity]


def standard_view(image: Image, hand: ReferencePoints) -> StandardView:
    """A radiograph (height, width) with the hand upright and bright bones; ValueError when polarity is doubtful."""
    polarity = polarity_of(image, hand.points)
    if polarity is Polarity.DOUBTFUL:
        raise ValueError(
            "it is unclear whether bones are bright or dark here. Check the points; save the image with bright "
            "bones, or leave the hand out"
        )
    if polarity is Polarity.DARK:
        image = np.subtract(np.uint8(255), image)
    count = quarters(hand.points)
    if count:
        image = np.ascontiguousarray(np.rot90(image, count))
    return StandardView(image, turned(hand, count), count, polarity)


# ---- polarity ------------------------------------------------------------------------------------------------------


def polarity_of(image: Image, points: Sequence[Sequence[float]]) -> Polarity:
    """How the bones of a hand look in an image (height, width), seven points (x, y) in pixels."""
    ulnar, radial, rays = evidence(image, points)
    framed = ulnar * radial < -0.25  # one side is beyond the film's exposed part: neither is evidence
    against_film = 0.0 if framed else (ulnar + radial) / 2
    score = against_film + (5 if framed else 2) * rays
    if abs(score) >= _CLEAR:
        return Polarity.BRIGHT if score > 0 else Polarity.DARK
    contradiction = min(abs(against_film) / 0.4, abs(rays) / 0.1) >= 1  # both are clear, and they disagree
    return Polarity.DOUBTFUL if contradiction or score < -_HINT else Polarity.UNSEEN


def evidence(image: Image, points: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Signs of bright bones, from -1 to 1, negative where they are dark: the palm against the film, bone against flesh.

    The first two are how often a place in the palm is brighter than one next to the hand, on the ulna's and on the
    radius' side. The third is how well brightness across the palm follows its four metacarpals: one wave per finger.
    """
    around, at = _around(image, np.asarray(points, float))
    ulna, radius, thumb, fingers = at[0], at[1], at[2], at[3:]
    wrist, middle = (ulna + radius) / 2, fingers[1]
    soft = np.asarray(cv2.blur(around, (9, 9), borderType=cv2.BORDER_REPLICATE), np.float32)
    palm = _read(soft, [finger + (wrist - finger) * t for finger in fingers for t in (0.1, 0.2, 0.3, 0.4, 0.5)])
    brighter = []
    for start, end, first in ((ulna, fingers[3], 0.1), (radius, thumb, 0.0)):
        along = end - start
        out = np.array([along[1], -along[0]]) / max(1e-6, math.hypot(*along)) * _PALM
        if out @ (middle - start) > 0:
            out = -out
        places = itertools.product(np.linspace(first, 0.9, 9), (0.32, 0.40, 0.48))
        film = _read(soft, [start + along * t + out * far for t, far in places])
        brighter.append(float(np.sign(palm[:, None] - film[None]).mean()))

    blurred = cv2.GaussianBlur(around, (0, 0), 5, borderType=cv2.BORDER_REPLICATE)
    sharp = np.asarray(around - blurred, np.float32)
    across = np.linspace(-0.1, 1.1, 61)  # from the little finger's ray, 0, to the index finger's, 1
    down = np.linspace(0.12, 0.55, 12)
    little, index = (fingers[number] + (wrist - fingers[number]) * down[:, None] for number in (3, 0))
    profiles = _read(sharp, (little[:, None] + (index - little)[:, None] * across[:, None]).reshape(-1, 2))
    profiles = profiles.reshape(len(down), len(across))
    profiles -= profiles.mean(axis=1, keepdims=True)
    profiles /= profiles.std(axis=1, keepdims=True) + 0.5
    rays = float((profiles * np.cos(2 * math.pi * 3 * across)).mean())
    return brighter[0], brighter[1], rays


def _around(image: Image, points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The part of an image around the points, scaled so that the palm has `_PALM` pixels; and the points in it."""
    height, width = image.shape
    palm = max(1.0, float(np.hypot(*_up(points))))
    room = 0.6 * palm
    left, top = (int(max(0, math.floor(low - room))) for low in points.min(axis=0))
    right, bottom = (math.ceil(high + room) + 1 for high in points.max(axis=0))
    part = image[top : min(bottom, height), left : min(right, width)]
    scale = min(_PALM / palm, 8 * _PALM / max(part.shape))  # points may be anywhere, so the size is limited
    size = [max(1, round(side * scale)) for side in part.shape[::-1]]
    small = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    scales = np.array(size) / part.shape[::-1]
    return small.astype(np.float32), (points - (left, top) + 0.5) * scales - 0.5


def _read(picture: NDArray[np.float32], places: Any) -> NDArray[np.float32]:
    """The brightness at places (n, 2); outside the image, that of its border."""
    at = np.asarray(places, np.float32)[None]
    read = cv2.remap(picture, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(read[0], np.float32)

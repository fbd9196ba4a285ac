"""What a locator's net sees: a square of the image, turned, mirrored, scaled, its local contrast made even. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from bonecaffe.hands.images import Image

Places = NDArray[np.float64]
"""Points (…, 2), each (x, y): pixels of an image, or sides of a square from its middle."""
SIDE = 128
"""Pixels of the square, each way."""
READ_SIDE = 640
"""Pixels of the longer side to which a radiograph is made smaller before squares are cut from it."""
LABEL_SCALE = 5.0
"""The net's outputs are positions in the square, from its middle, in sides, times this: numbers of about 1."""
ROOM = 1.05
"""The square about a whole image, relative to the image's longer side."""
HAND_SHARE = 0.50
"""Part of the square that the hand's seven points take when it is seen from near."""


@dataclass(frozen=True)
class Frame:
    """A square in an image: its middle (x, y) and side in pixels, its turn in radians, whether it is mirrored.

    The net's x runs along ``angle`` (against it when mirrored), its y a quarter turn further.
    """

    x: float
    y: float
    size: float
    angle: float = 0.0
    mirror: bool = False

    def _turn(self) -> NDArray[np.float64]:
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if self.mirror else 1.0, 1.0])

    def to_image(self, places: Places) -> Places:
        """Places in the square, from its middle in sides (…, 2), as pixels of the image."""
        return np.asarray(places) @ (self.size * self._turn()).T + (self.x, self.y)

    def to_square(self, points: Places) -> Places:
        """Pixels of the image (…, 2) as places in the square; the way back of `to_image`."""
        return (np.asarray(points) - (self.x, self.y)) @ self._turn() / self.size

    def shifted(self, across: float = 0, down: float = 0, turn: float = 0, scale: float = 1) -> Frame:
        """The frame moved by parts of its own side, turned by radians, scaled."""
        x, y = self.to_image(np.array([across, down]))
        return replace(self, x=float(x), y=float(y), angle=self.angle + turn, size=self.size * scale)


def whole(shape: tuple[int, int], angle: float = 0.0) -> Frame:
    """The frame of a whole image (height, width)."""
    height, width = shape
    return Frame((width - 1) / 2, (height - 1) / 2, max(height, width) * ROOM, angle)


def near(points: Places) -> Frame:
    """The frame of a hand by its seven points (7, 2): the palm upright, the thumb to the right."""
    ulna, radius, thumb, *fingers = np.asarray(points, float)
    wrist, knuckles = (ulna + radius) / 2, np.mean(fingers, axis=0)
    up = knuckles - wrist
    length = float(np.hypot(*up)) + 1e-6
    angle = math.atan2(up[0], -up[1])  # of "up" from the image's own
    across = thumb - wrist
    mirror = float(up[0] * across[1] - up[1] * across[0]) < 0  # thumb to the left of the way up
    middle = wrist + 0.52 * up
    return Frame(float(middle[0]), float(middle[1]), length / HAND_SHARE, angle, mirror)


def smaller(image: Image) -> tuple[Image, float]:
    """An image as the nets look at it and learn from it, its longer side `READ_SIDE` at most; and the scale of it."""
    scale = min(1.0, READ_SIDE / max(image.shape))
    if scale == 1:
        return image, scale
    if min(image.shape) * scale < 1:  # a line; of it, one pixel is kept
        size = tuple(max(1, round(side * scale)) for side in image.shape[::-1])
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), scale
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)  # exactly this scale, both ways
    return np.asarray(small, np.uint8), scale


def even(square: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Local contrast made even, float32 in, uint8 out: what is left is structure, whatever the exposure."""
    square = square.astype(np.float32)
    spread = square.shape[0] / 10
    rest = square - cv2.GaussianBlur(square, (0, 0), spread)
    power = cv2.GaussianBlur(rest * rest, (0, 0), spread)
    scale = np.sqrt(power) + 0.35 * math.sqrt(float(power.mean())) + 0.25
    return np.clip(rest / scale * 44 + 128, 0, 255).astype(np.uint8)


def cut(image: Image, frame: Frame, bend: Places | None = None) -> NDArray[np.float32]:
    """The pixels of a frame, float32 (SIDE, SIDE); black outside the image.

    ``bend`` (SIDE, SIDE, 2), in sides, moves the places that are looked at, for variation.
    """
    scale = min(1.0, SIDE / frame.size)
    if scale < 1:
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    places = _GRID if bend is None else _GRID + bend
    at = ((frame.to_image(places) + 0.5) * scale - 0.5).astype(np.float32)
    return cv2.remap(image, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderValue=0).astype(np.float32)


_ALONG = (np.arange(SIDE) - (SIDE - 1) / 2) / SIDE
_GRID = np.stack(np.meshgrid(_ALONG, _ALONG), axis=-1)

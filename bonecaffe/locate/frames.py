"""What a locator's net sees: a square of the image, turned, mirrored, scaled, with even local contrast. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from bonecaffe.hands.images import Image

Picture = NDArray[np.float32]
"""Brightness, (height, width), 0 to 255, not rounded."""
Places = NDArray[np.float64]
"""Points (…, 2), each (x, y): pixels of an image, or sides of a square from its middle."""
SIDE = 128
"""Pixels of the square, each way."""
_FADE = SIDE / 16
"""Pixels of the square over which the border of an image, continued outside, fades by two thirds to the film's grey."""
_BLUR = 0.45
"""In pixels of the square: the blur that removes everything finer than such a pixel."""
LABEL_SCALE = 5.0
"""The net's outputs are positions in the square, from its middle, in sides, times this: numbers of about 1."""
ROOM = 1.05
"""The square around a whole image, relative to the image's longer side."""
HAND_SHARE = 0.50
"""Part of the square that the hand's seven points fill in the view from near."""


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
        """Pixels of the image (…, 2) as places in the square; the inverse of `to_image`."""
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
    angle = math.atan2(up[0], -up[1])  # between the hand's "up" and the image's
    across = thumb - wrist
    mirror = float(up[0] * across[1] - up[1] * across[0]) < 0  # the thumb is left of the hand's axis
    middle = wrist + 0.52 * up
    return Frame(float(middle[0]), float(middle[1]), length / HAND_SHARE, angle, mirror)


def halves(shape: tuple[int, int]) -> list[Frame]:
    """The frames of an image's halves (height, width): left and right, upper and lower."""
    height, width = shape
    found = []
    for part in (0.25, 0.75):
        found.append(Frame(width * part - 0.5, (height - 1) / 2, max(height, width / 2) * ROOM))
        found.append(Frame((width - 1) / 2, height * part - 0.5, max(height / 2, width) * ROOM))
    return found


def surroundings(shape: tuple[int, int], points: Places) -> list[Frame]:
    """The frames of the parts of an image (height, width) left, right, above and below a hand, where there is room.

    They are turned like the hand. There is room from half the width and height of the rectangle of the hand's points.
    """
    height, width = shape
    (left, top), (right, bottom) = np.clip([points.min(axis=0), points.max(axis=0)], 0, (width - 1, height - 1))
    wide, high = right - left, bottom - top
    angle = round(near(points).angle / (math.pi / 2)) * math.pi / 2
    found = []
    for x, y, w, h in (
        (0, 0, left, height),
        (right, 0, width - right, height),
        (0, 0, width, top),
        (0, bottom, width, height - bottom),
    ):
        if w >= wide / 2 and h >= high / 2:
            found.append(Frame(x + (w - 1) / 2, y + (h - 1) / 2, max(w, h) * ROOM, angle))
    return found


def _halved(image: Picture) -> Picture:
    """An image of half the size, each pixel the mean of four; the border of an odd side counts twice."""
    height, width = image.shape
    whole_pairs = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(whole_pairs, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.float32)


class Pyramid:
    """An image in octaves, float32: itself, half its size, a quarter, and so on.

    Squares are cut from the octave that has two to four pixels for one of the square's. All of it is continuous in the
    frame and never resized to a rounded number of pixels, so a hand that is moved in its image gives the same square.
    """

    def __init__(self, image: Image | Picture) -> None:
        self.shape = image.shape
        self._octaves = [image.astype(np.float32)]
        self.film = float(np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])))

    def soft(self, size: float) -> tuple[Picture, int]:
        """The image without details finer than the pixels of a square of ``size``; and its octave, a power of 2."""
        step = size / SIDE
        number = max(0, math.floor(math.log2(step / 2))) if step > 0 else 0
        while len(self._octaves) <= number and min(self._octaves[-1].shape) > 1:
            self._octaves.append(_halved(self._octaves[-1]))
        number = min(number, len(self._octaves) - 1)
        step /= 2**number
        picture = self._octaves[number]
        if step > 1:
            blur = min(_BLUR * math.sqrt(step**2 - 1), max(picture.shape))  # a guess may be far outside the image
            picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), blur), np.float32)
        return picture, 2**number


def even(square: Picture) -> Picture:
    """Even local contrast, around 128, between 0 and 255: only structure is left, whatever the exposure."""
    spread = square.shape[0] / 10
    rest = square - _wide_blur(square, spread)
    power = _wide_blur(rest * rest, spread)
    scale = np.sqrt(power) + 0.35 * math.sqrt(float(power.mean())) + 0.25
    return np.asarray(np.clip(rest / scale * 44 + 128, 0, 255), np.float32)


def _wide_blur(square: Picture, spread: float) -> Picture:
    """A Gaussian blur by many pixels, computed at half the size: within a grey level of the same, in a quarter of the
    time."""
    half = cv2.GaussianBlur(cv2.resize(square, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), (0, 0), spread / 2)
    return np.asarray(cv2.resize(half, square.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def cut(image: Pyramid, frames: Sequence[Frame], bend: Places | None = None) -> Picture:
    """The pixels of frames of about one size, float32 (n, SIDE, SIDE).

    Outside the image its border continues and fades to the film's grey: black would draw an edge that moves when the
    image is cut by a pixel, and the points with it. ``bend`` (SIDE, SIDE, 2), in sides, moves the sampled places, for
    variation.
    """
    picture, octave = image.soft(math.exp(np.mean([math.log(frame.size) for frame in frames])))
    last_y, last_x = (side - 1 for side in picture.shape)
    places = _GRID if bend is None else _GRID + bend
    squares = []
    for frame in frames:
        x, y = np.moveaxis(((frame.to_image(places) + 0.5) / octave - 0.5).astype(np.float32), -1, 0)
        square = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if min(x.min(), y.min(), last_x - x.max(), last_y - y.max()) < 0:
            outside = np.maximum.reduce([-x, x - last_x, -y, y - last_y, np.zeros_like(x)])
            square = image.film + (square - image.film) * np.exp(-outside * (octave * SIDE / frame.size / _FADE))
        squares.append(square)
    return np.asarray(squares, np.float32)


_ALONG = (np.arange(SIDE) - (SIDE - 1) / 2) / SIDE
_GRID = np.stack(np.meshgrid(_ALONG, _ALONG), axis=-1)

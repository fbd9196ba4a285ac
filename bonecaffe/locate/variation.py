"""What a locator learns from: a hand with its points, bent, turned, exposed and covered at random.

Phantoms are more alike than real hands. The variations are differences between radiographs that do not matter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from bonecaffe.locate import frames
from bonecaffe.locate.frames import SIDE, Frame, Picture, Places, Pyramid


class Sample(NamedTuple):
    """One thing to learn: what the net sees, uint8 (SIDE, SIDE), and the points' places in it, (7, 2) in sides."""

    square: NDArray[np.uint8]
    places: Places


def draw(image: Pyramid, points: Places, view: str, rng: np.random.Generator) -> Sample:
    """One variation of a hand for the net of a ``view``, ``whole`` or ``near``; points in pixels (7, 2)."""
    frame = _frame(image, points, view, rng)
    bend = _bend(rng, 0.024 if view == "whole" else 0.028)
    (square,) = frames.cut(image, [frame], bend)
    places = _unbent(frame.to_square(points), bend)
    return Sample(np.round(frames.even(_expose(square, rng))).astype(np.uint8), places)


def _frame(image: Pyramid, points: Places, view: str, rng: np.random.Generator) -> Frame:
    if view == "whole":
        frame = frames.whole(image.shape)
        turn = rng.normal(0, 0.30) if rng.random() < 0.75 else rng.uniform(-0.9, 0.9)
        scale = float(rng.uniform(0.82, 1.35))
        across, down = rng.normal(0, 0.055, 2)
        frame = frame.shifted(across, down, float(turn), scale)
        return Frame(frame.x, frame.y, frame.size, frame.angle, bool(rng.random() < 0.5))
    frame = frames.near(points)
    wild = 1.6 if rng.random() < 0.3 else 0.8
    across, down = rng.normal(0, 0.055 * wild, 2)
    turn = float(rng.uniform(-np.pi, np.pi) if rng.random() < 0.08 else rng.normal(0, 0.16 * wild))
    frame = frame.shifted(across, down, turn, float(np.exp(rng.normal(0, 0.12 * wild))))
    if rng.random() < 0.2:  # a wrong guess that the net has to see through: the thumb is on the other side
        frame = replace(frame, mirror=not frame.mirror)
    return frame


def _smooth(rng: np.random.Generator, knots: int) -> Picture:
    """A smooth random field of about unit size, (SIDE, SIDE)."""
    coarse = rng.standard_normal((knots, knots)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), np.float32)


def _bend(rng: np.random.Generator, strength: float) -> Places:
    """A smooth displacement (SIDE, SIDE, 2), in sides: other fingers, other proportions; with a stretch and a shear."""
    amount = strength * rng.uniform(0.2, 1.0)
    field = np.stack([_smooth(rng, 5), _smooth(rng, 5)], axis=-1) * amount
    field += np.stack([_smooth(rng, 9), _smooth(rng, 9)], axis=-1) * (amount * 0.22)
    stretch = rng.normal(0, 0.08, (2, 2)) * (1.0, 0.6)
    return field + frames._GRID @ stretch


def _unbent(places: Places, bend: Places) -> Places:
    """Where the points are after bending: the place p that shows q satisfies p + bend(p) = q."""
    found = places.copy()
    for _ in range(12):
        at = ((found + 0.5) * SIDE - 0.5).astype(np.float32)
        moved = cv2.remap(
            bend.astype(np.float32), at[None, :, 0], at[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        found = places - moved[0]
    return found


def _expose(square: Picture, rng: np.random.Generator) -> Picture:
    """Another film: gamma, shading, letters, collimation, haze, noise, blur, a clipped scale, inverted grey."""
    low, high = float(square.min()), float(square.max())
    picture = (square - low) / max(1.0, high - low)
    if rng.random() < 0.25:  # a background masked to black
        picture = np.where(cv2.GaussianBlur(picture, (0, 0), 2) < rng.uniform(0.02, 0.12), 0, picture).astype(
            np.float32
        )
    picture = picture ** float(np.exp(rng.normal(0, 0.45)))
    if rng.random() < 0.6:
        picture = picture * (1 + 0.35 * rng.random() * _smooth(rng, 4)) + 0.12 * rng.random() * _smooth(rng, 3)
    if rng.random() < 0.5:  # flesh as bright as bone, or nearly
        soft = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(2, 7)))
        picture = picture + float(rng.uniform(-0.5, 1.2)) * soft
    if rng.random() < 0.45:
        _cover(picture, rng)
    if rng.random() < 0.35:
        _edge(picture, rng)
    if rng.random() < 0.5:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.3, 1.3))), np.float32)
    if rng.random() < 0.4:  # sharpened, as many readers do
        picture = picture + float(rng.uniform(0.2, 1.2)) * (picture - cv2.GaussianBlur(picture, (0, 0), 1.2))
    if rng.random() < 0.3:
        picture = np.minimum(picture, float(np.quantile(picture, rng.uniform(0.85, 1.0))))
    picture = picture + rng.normal(0, rng.uniform(0.0, 0.03), picture.shape)
    if rng.random() < 0.25:
        picture = -picture
    span = float(rng.uniform(20, 240))  # an underexposed film has few levels
    return np.round((picture - picture.min()) / max(1e-6, float(np.ptp(picture))) * span).astype(np.float32)


def _cover(picture: NDArray[np.floating[Any]], rng: np.random.Generator) -> None:
    """Letters, plates, markers."""
    for _ in range(int(rng.integers(1, 4))):
        at = tuple(int(v) for v in rng.integers(-5, SIDE, 2))
        bright = float(rng.choice([rng.uniform(0.7, 1.3), rng.uniform(0, 0.3)]))
        kind = rng.random()
        if kind < 0.5:
            text = "".join(chr(65 + int(v)) for v in rng.integers(0, 26, int(rng.integers(1, 4))))
            cv2.putText(
                picture,
                text,
                at,
                cv2.FONT_HERSHEY_SIMPLEX,
                float(rng.uniform(0.25, 0.8)),
                bright,
                int(rng.integers(1, 3)),
                cv2.LINE_AA,
            )
        elif kind < 0.8:
            corners = cv2.boxPoints((at, tuple(float(v) for v in rng.uniform(4, 22, 2)), float(rng.uniform(0, 180))))
            cv2.fillPoly(picture, [corners.astype(np.int32)], bright, cv2.LINE_AA)
        else:
            cv2.circle(picture, at, int(rng.integers(1, 7)), bright, -1, cv2.LINE_AA)


def _edge(picture: NDArray[np.floating[Any]], rng: np.random.Generator) -> None:
    """A collimator's or a cassette's edge: beyond a straight line near a border the film is of one grey.

    With or without a rim.
    """
    for _ in range(int(rng.integers(1, 4))):
        angle, reach = float(rng.choice([0, 90, 180, 270]) + rng.normal(0, 5)), float(rng.uniform(0.36, 0.55))
        normal = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
        beyond = (frames._GRID @ normal) > reach
        grey = float(rng.choice([0.0, rng.uniform(0, 1.2)]))
        picture[beyond] = grey
        if rng.random() < 0.5:
            rim = np.abs(frames._GRID @ normal - reach) < rng.uniform(0.004, 0.012)
            picture[rim] = float(rng.uniform(0, 1.3))

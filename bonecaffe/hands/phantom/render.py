"""What an X-ray of a skeleton looks like: thickness of flesh and bone, then film, markers, collimation, noise.

Bone is drawn as a hollow body: along a ray, a cortical shell of thickness c adds most where the ray grazes it, the
spongy inside adds little and unevenly. Everything is float32 in whole-image or small-window arrays of OpenCV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from bonecaffe.hands.images import Image
from bonecaffe.hands.phantom.skeleton import Bone, Skeleton, Vector

Picture = NDArray[np.float32]
"""Attenuation or brightness, ``[row, column]``."""
_SUB = 4  # fractional bits of OpenCV's polygon coordinates
_TILE = 1024


@dataclass(frozen=True)
class View:
    """From the hand's frame to pixels: scale, rotation, mirroring, the place of the origin."""

    width: int
    height: int
    unit_px: float
    angle: float
    mirror: bool
    origin: tuple[float, float]

    def px(self, points: Vector) -> Vector:
        """Points of the hand's frame (…, 2) as pixels (x to the right, y down)."""
        points = np.asarray(points, float)
        x = -points[..., 0] if self.mirror else points[..., 0]
        y = -points[..., 1]
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.stack(
            [self.origin[0] + self.unit_px * (c * x - s * y), self.origin[1] + self.unit_px * (s * x + c * y)], axis=-1
        )


@dataclass(frozen=True)
class Look:
    """How the film came out. Brightnesses are fractions of full white."""

    contrast: float
    gamma: float
    flesh: float  # attenuation of the palm's flesh
    bone: float
    base: float  # brightness of unattenuated film
    haze: float  # scattered light
    noise: float
    blur_px: float
    ceiling: float  # brightest value of the hand
    shading: tuple[float, float]  # slope of the background's brightness across and down
    frame: tuple[float, float, float, float] | None  # collimation: left, top, right, bottom, as fractions of the image
    frame_value: float
    frame_angle: float
    frame_edge: float  # brightness of the border line
    marker: tuple[str, str] | None
    marker_at: tuple[tuple[float, float], ...]  # places to choose from
    marker_angle: float
    marker_size: float
    marker_plate: float


def _noise_tile(seed: int, low_px: float, high_px: float) -> Picture:
    """A tile of band-passed noise, unit variance; the same for the same seed."""
    noise = np.random.default_rng(seed).standard_normal((_TILE, _TILE)).astype(np.float32)
    fine = cv2.GaussianBlur(noise, (0, 0), low_px, borderType=cv2.BORDER_REFLECT)
    band = fine - cv2.GaussianBlur(noise, (0, 0), high_px, borderType=cv2.BORDER_REFLECT)
    return band / band.std()


_tiles: dict[str, Picture] = {}


def _tile(kind: str) -> Picture:
    if kind not in _tiles:
        low, high, seed = {"spongy": (1.1, 4.0, 11), "grain": (0.6, 1.6, 12), "mottle": (8.0, 40.0, 13)}[kind]
        _tiles[kind] = _noise_tile(seed, low, high)
    return _tiles[kind]


def _sample(kind: str, shape: tuple[int, int], rng: np.random.Generator, scale: float = 1.0) -> Picture:
    """A window of a noise tile at a random place, stretched to ``shape``."""
    if 0.75 < scale < 1.4:
        scale = 1.0  # near enough; a stretch of every bone costs more than it shows
    rows, columns = (max(2, min(_TILE, math.ceil(side / scale))) for side in shape)
    top, left = int(rng.integers(0, _TILE - rows + 1)), int(rng.integers(0, _TILE - columns + 1))
    window = _tile(kind)[top : top + rows, left : left + columns]
    if window.shape == tuple(shape):
        return window
    return np.asarray(cv2.resize(window, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.float32)


def _window(corners: Vector, shape: tuple[int, int], margin: int) -> tuple[int, int, int, int] | None:
    """The part of the image that an outline covers: left, top, right, bottom (exclusive); None when it is outside."""
    left, top = np.floor(corners.min(axis=0)).astype(int) - margin
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + margin + 1
    left, top, right, bottom = max(0, left), max(0, top), min(shape[1], right), min(shape[0], bottom)
    return (left, top, right, bottom) if right - left > 2 and bottom - top > 2 else None


def _fill(mask: Image, corners: Vector, offset: tuple[int, int], value: int = 255) -> None:
    fixed = np.round((corners - offset) * (1 << _SUB)).astype(np.int32)
    cv2.fillPoly(mask, [fixed], value, lineType=cv2.LINE_AA, shift=_SUB)


def draw_bone(picture: Picture, bone: Bone, view: View, rng: np.random.Generator) -> None:
    """Add a bone's attenuation to ``picture`` (height, width), float32."""
    corners = view.px(bone.outline)
    window = _window(corners, picture.shape, 3)
    if window is None:
        return
    left, top, right, bottom = window
    mask = np.zeros((bottom - top, right - left), np.uint8)
    _fill(mask, corners, (left, top))
    depth = cv2.distanceTransform((mask > 100).astype(np.uint8), cv2.DIST_L2, 3)
    thick = float(depth.max())
    if thick < 0.5:
        return
    cortex = max(1.2, bone.cortex * view.unit_px)
    start, end = view.px(bone.start) - (left, top), view.px(bone.end) - (left, top)
    axis = end - start
    length2 = float(axis @ axis) + 1e-6
    columns = (np.arange(mask.shape[1], dtype=np.float32) - start[0]) * np.float32(axis[0] / length2)
    rows = (np.arange(mask.shape[0], dtype=np.float32) - start[1]) * np.float32(axis[1] / length2)
    along = np.add.outer(rows, columns)
    middle = np.clip(4 * along * (1 - along), 0, 1)  # 1 at mid-shaft, 0 at the ends
    shell = cortex * (0.34 + 0.66 * middle)
    grazing = np.exp(-(((depth - 0.75 * shell) / (0.85 * shell)) ** 2))
    body = np.sqrt(np.minimum(depth * np.float32(1 / (0.6 * thick)), 1))
    spongy = 1 + (0.13 - 0.07 * middle) * _sample("spongy", mask.shape, rng, max(0.8, view.unit_px / 300))
    bulk = 0.52 * body * spongy * (1.0 - 0.34 * middle * np.clip((depth - 1.6 * shell) / (0.6 * thick + 1), 0, 1))
    wall = (0.32 + 0.36 * middle) * grazing
    density = bulk + wall
    for position, brightness in bone.lines:
        spread = np.float32(0.02 * view.unit_px / math.sqrt(length2) * 0.75)
        density += brightness * 0.38 * np.exp(-(((along - position) / spread) ** 2)) * np.minimum(1, body * 1.6)
    picture[top:bottom, left:right] += (bone.density * density * (mask * np.float32(1 / 255))).astype(np.float32)


def draw_flesh(skeleton: Skeleton, view: View) -> Picture:
    """Thickness of the soft tissue, about 1 in the palm, (height, width) float32.

    Worked out at a quarter of the size.
    """
    quarter = (-(-view.height // 4), -(-view.width // 4))
    mask = np.zeros(quarter, np.uint8)
    for line, radii in skeleton.limbs:
        centre, radius = view.px(line) / 4, np.asarray(radii) * view.unit_px / 4
        for (a, ra), (b, rb) in zip(
            zip(centre[:-1], radius[:-1], strict=True), zip(centre[1:], radius[1:], strict=True), strict=True
        ):
            across = np.array([b[1] - a[1], a[0] - b[0]])
            across = across / (np.hypot(*across) + 1e-9)
            _fill(mask, np.array([a + ra * across, b + rb * across, b - rb * across, a - ra * across]), (0, 0))
            for at, r in ((a, ra), (b, rb)):
                cv2.circle(mask, tuple(int(v * 16) for v in at), int(r * 16), 255, -1, cv2.LINE_AA, 4)
    _fill(mask, view.px(skeleton.palm) / 4, (0, 0))
    unit = view.unit_px / 4
    # round the outline off: grow, then shrink, so that webs form between fingers
    inside = cv2.GaussianBlur(mask, (0, 0), max(1.0, 0.045 * unit))
    silhouette = (inside > 88).astype(np.uint8)
    edge = np.clip((inside.astype(np.float32) - 84) / 60, 0, 1)
    depth = cv2.distanceTransform(silhouette, cv2.DIST_L2, 5)
    limb, palm = 0.17 * unit, 0.55 * unit
    thickness = (
        0.58 * np.sqrt(np.clip(depth / limb, 0, 1) * (2 - np.clip(depth / limb, 0, 1)))
        + 0.42 * np.clip(depth / palm, 0, 1) ** 0.8
    )
    thickness = cv2.GaussianBlur(thickness.astype(np.float32) * edge, (0, 0), max(0.8, 0.010 * unit))
    return np.asarray(cv2.resize(thickness, (view.width, view.height), interpolation=cv2.INTER_LINEAR), np.float32)


def render(skeleton: Skeleton, view: View, look: Look, rng: np.random.Generator) -> Image:
    """The radiograph, uint8 (height, width), bones bright."""
    shape = (view.height, view.width)
    flesh = draw_flesh(skeleton, view)
    bone = np.zeros(shape, np.float32)
    for piece in skeleton.bones:
        draw_bone(bone, piece, view, rng)
    blurred = cv2.GaussianBlur(bone, (0, 0), look.blur_px)
    mottle = _sample("mottle", shape, rng, max(1.0, view.unit_px / 160))
    uneven = cv2.addWeighted(mottle, 0.018 * look.flesh, mottle, 0, look.flesh)
    attenuation = cv2.addWeighted(cv2.multiply(flesh, uneven), 1.0, blurred, look.bone, 0.0)
    hand = _film(np.asarray(attenuation, np.float32), look.gamma)
    haze = cv2.resize(
        cv2.GaussianBlur(
            cv2.resize(hand, (view.width // 16, view.height // 16), interpolation=cv2.INTER_AREA), (0, 0), 3.0
        ),
        (view.width, view.height),
    )
    picture = np.asarray(cv2.addWeighted(hand, look.contrast, haze, look.haze, look.base), np.float32)
    across = np.linspace(0, look.shading[0], view.width, dtype=np.float32)
    down = np.linspace(0, look.shading[1], view.height, dtype=np.float32)
    picture += across + down[:, None]
    if look.marker is not None:
        _stamp(picture, look, look.marker, flesh)
    if look.frame is not None:
        picture = _collimate(picture, look, look.frame)
    grain = _sample("grain", shape, rng)
    level = cv2.sqrt(_positive(picture))  # quantum noise grows with the square root of the exposure
    cv2.accumulateProduct(grain, cv2.addWeighted(level, look.noise, level, 0, 0.35 * look.noise), picture)
    grey = np.asarray(cv2.convertScaleAbs(_positive(picture), alpha=255.0), np.uint8)
    return np.minimum(grey, np.uint8(255 * look.ceiling))


def _positive(picture: Picture) -> Picture:
    return np.asarray(cv2.max(picture, 0.0), np.float32)  # type: ignore[call-overload]  # the stubs lack numbers


def _film(attenuation: Picture, gamma: float) -> Picture:
    """Film saturates: (1 - exp(-attenuation)) ** gamma, looked up in a table of 1/1000 steps."""
    table = ((1 - np.exp(-np.arange(8000) / 1000)) ** gamma).astype(np.float32)
    return table[np.minimum(attenuation * np.float32(1000), 7999).astype(np.uint16)]


def _stamp(picture: Picture, look: Look, marker: tuple[str, str], flesh: Picture) -> None:
    """A lead letter with the radiographer's initials, on its plate, turned, where it covers least of the hand."""
    height, width = picture.shape
    letter, initials = marker
    size = max(24, int(look.marker_size * width))
    letters = np.zeros((2 * size, 2 * size), np.float32)
    thick = max(2, size // 7)
    cv2.putText(
        letters,
        letter,
        (int(0.68 * size), int(1.05 * size)),
        cv2.FONT_HERSHEY_SIMPLEX,
        size / 32,
        1.0,
        thick,
        cv2.LINE_AA,
    )
    cv2.putText(
        letters,
        initials,
        (int(0.52 * size), int(1.5 * size)),
        cv2.FONT_HERSHEY_SIMPLEX,
        size / 78,
        1.0,
        max(1, thick // 2),
        cv2.LINE_AA,
    )
    plate = np.zeros_like(letters)
    cv2.rectangle(plate, (int(0.42 * size), int(0.1 * size)), (int(1.5 * size), int(1.62 * size)), 1.0, -1, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((size, size), look.marker_angle, 1.0)
    letters, plate = (
        np.asarray(cv2.warpAffine(layer, turn, (2 * size, 2 * size)), np.float32) for layer in (letters, plate)
    )
    corners = [(int(x * width) - size, int(y * height) - size) for x, y in look.marker_at]
    windows = [(max(0, x), max(0, y), min(width, x + 2 * size), min(height, y + 2 * size)) for x, y in corners]
    covered = [
        float((flesh[y0:y1:8, x0:x1:8] > 0.05).mean()) if x1 - x0 > 8 and y1 - y0 > 8 else 2.0
        for x0, y0, x1, y1 in windows
    ]
    best = int(np.argmin(covered))
    if covered[best] > 0.3:
        return
    (left, top), (x0, y0, x1, y1) = corners[best], windows[best]
    part = picture[y0:y1, x0:x1]
    letters, plate = (
        letters[y0 - top : y1 - top, x0 - left : x1 - left],
        plate[y0 - top : y1 - top, x0 - left : x1 - left],
    )
    part += look.marker_plate * plate
    part[...] = part * (1 - letters) + 0.97 * letters


def _collimate(picture: Picture, look: Look, frame: tuple[float, float, float, float]) -> Picture:
    """What is outside the collimator's opening: nearly unexposed film, with a border line."""
    height, width = picture.shape
    left, top, right, bottom = frame
    corners = np.array(
        [
            (left * width, top * height),
            (right * width, top * height),
            (right * width, bottom * height),
            (left * width, bottom * height),
        ]
    )
    middle = corners.mean(axis=0)
    c, s = math.cos(look.frame_angle), math.sin(look.frame_angle)
    corners = (corners - middle) @ np.array([[c, s], [-s, c]]) + middle
    mask = np.zeros(picture.shape, np.uint8)
    _fill(mask, corners, (0, 0))
    opening = cv2.GaussianBlur(mask, (0, 0), 1.5).astype(np.float32) / 255
    framed = picture * opening + look.frame_value * (1 - opening)
    line = np.zeros(picture.shape, np.uint8)
    cv2.polylines(line, [np.round(corners * 16).astype(np.int32)], True, 255, max(2, width // 250), cv2.LINE_AA, 4)
    return np.asarray(framed + look.frame_edge * line.astype(np.float32) / 255, np.float32)

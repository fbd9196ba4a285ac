"""Where every bone of a hand is, at an age, a sex and a pose: outlines in units of the third metacarpal.

The hand's frame: origin at the base of the third metacarpal, x towards the thumb, y towards the fingers. Proportions
were measured on published atlas plates; a toddler's fingers are longer and its bones plumper relative to the palm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bonecaffe.hands.phantom import ossification
from bonecaffe.hands.phantom.ossification import CARPALS, EPIPHYSES

Vector = NDArray[np.float64]
"""A place or a direction (2,), a line (n, 2), or numbers along one (n,), in the hand's frame."""
Outline = NDArray[np.float64]  # (n, 2)


@dataclass(frozen=True)
class Bone:
    """A piece of ossified bone: its outline, the axis of its shaft, and what it is like."""

    name: str
    outline: Outline
    start: Vector  # of the axis, (2,)
    end: Vector
    cortex: float  # thickness of the cortical shell at mid-shaft, in units
    density: float = 1.0
    lines: tuple[tuple[float, float], ...] = ()  # (position along the axis 0…1, brightness): growth plates, scars


@dataclass
class Skeleton:
    """All bones of a hand, the soft tissue around them, the seven reference points."""

    unit_mm: float
    bones: list[Bone] = field(default_factory=list)
    limbs: list[tuple[Vector, Vector]] = field(default_factory=list)  # (centre line (n, 2), radii (n,))
    palm: Outline = field(default_factory=lambda: np.zeros((0, 2)))
    points: list[Vector] = field(default_factory=list)


@dataclass(frozen=True)
class Pose:
    """How the hand is held. Angles in radians."""

    spread: float  # of the fingers, relative: 1 is relaxed
    bends: tuple[float, ...]  # sideways angle of each finger
    thumb: float  # further abduction of the thumb
    wrist: float  # angle of the forearm
    proportions: Vector  # relative length of each of the 19 long bones, about 1
    slender: float  # relative width of bones, about 1
    plump: float  # relative thickness of soft tissue, about 1
    timing: Vector  # deviation of each centre's timing, in months


# infant, adult: lengths joint to joint, in units of the third metacarpal
_METACARPAL = {1: (0.64, 0.70), 2: (1.0, 1.05), 3: (1.0, 1.0), 4: (0.88, 0.88), 5: (0.80, 0.81)}
_PROXIMAL = {1: (0.60, 0.48), 2: (0.74, 0.62), 3: (0.83, 0.68), 4: (0.77, 0.635), 5: (0.62, 0.50)}
_MIDDLE = {2: (0.44, 0.37), 3: (0.53, 0.445), 4: (0.51, 0.42), 5: (0.36, 0.30)}
_DISTAL = {1: (0.45, 0.345), 2: (0.34, 0.265), 3: (0.37, 0.285), 4: (0.37, 0.29), 5: (0.33, 0.26)}
_BASE = {1: (0.47, -0.14), 2: (0.19, 0.0), 3: (0.0, 0.0), 4: (-0.175, -0.02), 5: (-0.33, -0.07)}
_ANGLE = {1: -0.80, 2: -0.20, 3: -0.01, 4: 0.19, 5: 0.36}  # of the metacarpals, from y
_FAN = {1: 0.22, 2: 0.02, 3: 0.0, 4: -0.03, 5: -0.02}  # how the finger turns back at its knuckle
_FINGER_SPREAD = {1: 0.10, 2: -0.13, 3: 0.0, 4: 0.11, 5: 0.26}

_CARPAL_AT = {
    "capitate": (-0.02, -0.23), "hamate": (-0.25, -0.19), "triquetrum": (-0.36, -0.41), "lunate": (-0.10, -0.50),
    "scaphoid": (0.16, -0.41), "trapezium": (0.37, -0.22), "trapezoid": (0.21, -0.14), "pisiform": (-0.37, -0.36),
}  # fmt: skip
_CARPAL_SHAPE = {
    "capitate": [
        (-0.10, 0.17), (0.02, 0.20), (0.11, 0.17), (0.09, 0.03), (0.12, -0.09), (0.05, -0.20), (-0.06, -0.20),
        (-0.11, -0.06),
    ],
    "hamate": [(-0.13, 0.14), (0.05, 0.17), (0.12, 0.14), (0.10, -0.04), (0.06, -0.17), (-0.03, -0.14), (-0.13, -0.02)],
    "triquetrum": [(-0.10, 0.06), (0.0, 0.11), (0.10, 0.05), (0.09, -0.07), (-0.02, -0.11), (-0.11, -0.05)],
    "lunate": [(-0.13, 0.05), (-0.05, 0.11), (0.05, 0.10), (0.13, 0.04), (0.12, -0.07), (0.0, -0.12), (-0.11, -0.08)],
    "scaphoid": [
        (-0.13, -0.03), (-0.06, 0.05), (0.03, 0.12), (0.14, 0.16), (0.18, 0.08), (0.11, -0.04), (0.02, -0.12),
        (-0.09, -0.12),
    ],
    "trapezium": [(-0.09, 0.10), (0.03, 0.13), (0.13, 0.03), (0.09, -0.10), (-0.05, -0.11), (-0.11, -0.02)],
    "trapezoid": [(-0.09, 0.10), (0.06, 0.11), (0.09, 0.0), (0.04, -0.10), (-0.06, -0.08)],
    "pisiform": [(-0.06, 0.06), (0.05, 0.07), (0.07, -0.03), (0.0, -0.08), (-0.07, -0.04)],
}  # fmt: skip

CENTRES = [*CARPALS, *EPIPHYSES]


def smooth_polygon(corners: Vector, rounds: int = 3) -> Outline:
    """Round a polygon's corners by Chaikin's corner cutting."""
    outline = np.asarray(corners, float)
    for _ in range(rounds):
        following = np.roll(outline, -1, axis=0)
        outline = np.stack([0.75 * outline + 0.25 * following, 0.25 * outline + 0.75 * following], axis=1).reshape(
            -1, 2
        )
    return outline


def _direction(angle: float) -> Vector:
    """The unit vector at ``angle`` to the left of y."""
    return np.array([-math.sin(angle), math.cos(angle)])


_ALONG = np.concatenate([np.linspace(0, 0.14, 14), np.linspace(0.16, 0.84, 22), np.linspace(0.86, 1, 14)])


def _shaft(
    start: Vector, end: Vector, knots: list[tuple[float, float]], round_start: float, round_end: float
) -> Outline:
    """The outline of a long bone: half-widths at positions along its axis, its ends rounded over part of its length."""
    at, half = (np.array(values) for values in zip(*knots, strict=True))
    s = _ALONG
    piece = np.clip(np.searchsorted(at, s, side="right") - 1, 0, len(at) - 2)
    t = (s - at[piece]) / (at[piece + 1] - at[piece])
    width = half[piece] + (half[piece + 1] - half[piece]) * t * t * (3 - 2 * t)
    width *= (1 - np.clip(1 - s / round_start, 0, 1) ** 2.6) ** (1 / 2.6)
    width *= (1 - np.clip(1 - (1 - s) / round_end, 0, 1) ** 2.6) ** (1 / 2.6)
    axis = end - start
    across = np.array([axis[1], -axis[0]]) / np.hypot(*axis)
    line = start + s[:, None] * axis
    return np.concatenate([line + width[:, None] * across, (line - width[:, None] * across)[::-1]])


def _disc(centre: Vector, along: Vector, half_width: float, half_length: float, flat: float) -> Outline:
    """An epiphysis: a lens across the axis, flatter on the side of the growth plate, which is towards ``along``."""
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    power = 2 / 2.8
    x = half_width * np.sign(c) * np.abs(c) ** power
    y = half_length * np.sign(s) * np.abs(s) ** power
    y = np.where(y > 0, y * flat, y)
    across = np.array([along[1], -along[0]])
    return centre + x[:, None] * across + y[:, None] * along


class _Builder:
    """Puts one hand together; holds what all its bones share."""

    def __init__(self, age_months: float, male: bool, pose: Pose) -> None:
        self.age, self.male, self.pose = age_months, male, pose
        self.mature = ossification.maturity(age_months, male)
        self.hand = Skeleton(ossification.metacarpal3_mm(age_months, male))
        self.timing = dict(zip(CENTRES, pose.timing, strict=True))

    def age_of(self, name: str) -> float:
        """The age that this centre shows: the hand's, with the centre's own small deviation."""
        return self.age + float(self.timing[name])

    def between(self, pair: tuple[float, float]) -> float:
        infant, adult = pair
        return infant + (adult - infant) * self.mature

    # ---- long bones ----

    def long_bone(
        self, name: str, base: Vector, angle: float, length: float, girth: float, kind: str, plate_at_base: bool
    ) -> Vector:
        """Add a long bone from joint to joint with its epiphysis; return the middle of its growth plate."""
        along = _direction(angle)
        state = ossification.epiphysis(EPIPHYSES[name], self.age_of(name), self.male)
        girth *= self.pose.slender
        cartilage = 0.02 + 0.05 * (1 - self.mature)  # unossified, at either joint
        plate = (0.135 if plate_at_base else 0.195) + 0.025 * (1 - self.mature)  # from the joint, of the length
        open_gap = (0.017 + 0.02 * (1 - self.mature)) * (1 - state.fused)
        near = 0.016 + 0.022 * (1 - self.mature)
        if plate_at_base:
            first, last = (plate, 1 - cartilage) if state.fused < 1 else (near, 1 - cartilage)
        else:
            first, last = (cartilage * 0.8, 1 - plate) if state.fused < 1 else (cartilage * 0.8, 1 - near)
        joint = state.fused >= 1
        knots, round_start, round_end = self._profile(kind, girth, joint)
        start, end = base + first * length * along, base + last * length * along
        lines: list[tuple[float, float]] = []
        if not joint:
            lines.append((0.012, 0.55) if plate_at_base else (0.988, 0.55))
        elif state.scar > 0:
            at = (plate - first) / (last - first) if plate_at_base else (1 - plate - first) / (last - first)
            lines.append((at, 0.8 * state.scar))
        cortex = (0.021 + 0.012 * self.mature) * (0.75 if kind == "distal" else 1.0)
        self.hand.bones.append(
            Bone(
                name,
                _shaft(start, end, knots, round_start, round_end),
                start,
                end,
                cortex,
                0.8 + 0.2 * self.mature,
                tuple(lines),
            )
        )
        middle = base + (plate - open_gap / 2 if plate_at_base else 1 - plate + open_gap / 2) * length * along
        if state.width > 0 and not joint:
            room = plate - near - open_gap
            half_length = 0.5 * room * min(1.0, 0.35 + 0.65 * state.width) * length
            end_width = knots[0][1] if plate_at_base else knots[-1][1]
            half_width = end_width * state.width
            half_length = min(half_length, (0.62 if plate_at_base else 0.95) * half_width)
            side = 1 if plate_at_base else -1
            at = (
                (plate - open_gap) * length - half_length * 0.8
                if plate_at_base
                else (1 - plate + open_gap) * length + half_length * 0.8
            )
            centre = base + at * along
            outline = _disc(centre, side * along, half_width, half_length, 0.78)
            self.hand.bones.append(
                Bone(
                    f"{name} epiphysis",
                    outline,
                    centre - half_length * along,
                    centre + half_length * along,
                    0.016,
                    0.75 + 0.2 * self.mature,
                )
            )
        return middle

    def _profile(self, kind: str, girth: float, joint: bool) -> tuple[list[tuple[float, float]], float, float]:
        """Half-widths along the shaft and the rounding of its ends, by the kind of bone."""
        stout = 1 - self.mature  # an infant's shafts are barely waisted
        if kind == "metacarpal":
            head = 0.128 if joint else 0.112
            return (
                [
                    (0, 0.115 * girth),
                    (0.1, 0.118 * girth),
                    (0.45, (0.068 + 0.022 * stout) * girth),
                    (0.75, 0.078 * girth),
                    (0.92, head * girth),
                    (1, head * girth),
                ],
                0.10,
                0.20 if joint else 0.07,
            )
        if kind == "thumb":
            return (
                [
                    (0, 0.125 * girth),
                    (0.12, 0.12 * girth),
                    (0.5, (0.075 + 0.02 * stout) * girth),
                    (0.85, 0.10 * girth),
                    (1, 0.105 * girth),
                ],
                0.08,
                0.16,
            )
        if kind == "distal":
            return (
                [
                    (0, 0.100 * girth),
                    (0.15, 0.082 * girth),
                    (0.55, 0.042 * girth),
                    (0.85, 0.056 * girth),
                    (1, 0.05 * girth),
                ],
                0.12,
                0.16,
            )
        base = 0.128 if kind == "proximal" else 0.112
        waist, head = (0.073, 0.088) if kind == "proximal" else (0.066, 0.078)
        return (
            [
                (0, base * girth),
                (0.1, base * 0.93 * girth),
                (0.55, (waist + 0.02 * stout) * girth),
                (0.88, head * girth),
                (1, head * 0.98 * girth),
            ],
            0.10 if joint else 0.055,
            0.12,
        )

    # ---- parts ----

    def finger(self, number: int) -> None:
        """The metacarpal and phalanges of one finger, their soft tissue and reference point."""
        pose, thumb = self.pose, number == 1
        which = (number - 1) * 4
        lengths = [
            self.between(table[number]) for table in (_METACARPAL, _PROXIMAL, *(() if thumb else (_MIDDLE,)), _DISTAL)
        ]
        lengths = [length * float(scale) for length, scale in zip(lengths, pose.proportions[which:], strict=False)]
        angle = _ANGLE[number] * (0.85 + 0.15 * pose.spread) - (pose.thumb if thumb else 0.0)
        base = np.array(_BASE[number])
        girth = {1: 1.08, 2: 1.02, 3: 1.04, 4: 0.94, 5: 0.88}[number] * (1.12 - 0.12 * self.mature)
        self.long_bone(
            f"metacarpal{number}",
            base,
            angle,
            lengths[0],
            girth,
            "thumb" if thumb else "metacarpal",
            plate_at_base=thumb,
        )
        knuckle = base + lengths[0] * _direction(angle)
        angle += _FAN[number] + _FINGER_SPREAD[number] * (pose.spread - 0.6) + pose.bends[number - 1]
        line, at = [base + 0.55 * (knuckle - base), knuckle], knuckle
        names = ["proximal", "distal"] if thumb else ["proximal", "middle", "distal"]
        for index, (kind, length) in enumerate(zip(names, lengths[1:], strict=True)):
            middle = self.long_bone(
                f"{kind}{number}", at, angle, length, girth * (1.04 if thumb else 1.0), kind, plate_at_base=True
            )
            if kind == "proximal":
                self.hand.points.append(middle)
            at = at + length * _direction(angle)
            line.append(at)
            angle += pose.bends[number - 1] * 0.25 * (-1) ** index
        line[-1] = at + 0.045 * _direction(angle)
        radius = (0.215 - 0.05 * self.mature) * pose.plump * girth / 1.02
        tapers = [1.25, 1.1, 1.0, 0.86] if thumb else [1.2, 1.08, 1.0, 0.92, 0.78]
        self.hand.limbs.append((np.array(line), radius * np.array(tapers)))
        if thumb and self.age >= ossification.SESAMOID.appears[0 if self.male else 1]:
            centre = knuckle + np.array([-0.11, -0.06])
            self.hand.bones.append(
                Bone("sesamoid", _disc(centre, _direction(0.4), 0.035, 0.028, 1.0), centre, centre + 0.01, 0.012, 0.8)
            )

    def carpals(self) -> None:
        """The carpals that have appeared, round at first, then of their own shape."""
        lower = 1 + 0.38 * (1 - self.mature)  # an infant's wrist is longer: more cartilage
        for name, centre in CARPALS.items():
            size = ossification.carpal_size(centre, self.age_of(name), self.male)
            if size == 0:
                continue
            corners = np.array(_CARPAL_SHAPE[name])
            shaped = smooth_polygon(corners)
            angle = np.arctan2(shaped[:, 1], shaped[:, 0])
            radius = np.hypot(shaped[:, 0], shaped[:, 1]).mean()
            circle = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
            shape = size * (circle + (shaped - circle) * min(1.0, size**1.6)) * (1.16 if self.male else 1.12)
            at = np.array(_CARPAL_AT[name]) * (1.0, lower)
            self.hand.bones.append(
                Bone(
                    name,
                    at + shape,
                    at - np.array([0.0, 0.1]),
                    at + np.array([0.0, 0.1]),
                    0.018,
                    (0.5 if name == "pisiform" else 0.78) + 0.12 * self.mature,
                )
            )

    def forearm(self) -> None:
        """Radius and ulna with their epiphyses, the soft tissue of the forearm, two reference points."""
        mature, pose = self.mature, self.pose
        turn = pose.wrist
        across, along = np.array([math.cos(turn), math.sin(turn)]), np.array([-math.sin(turn), math.cos(turn)])
        reach = 2.6
        pivot = np.array([0.0, -0.45 - 0.18 * (1 - mature)])

        def at(x: float, y: float) -> Vector:
            return pivot + x * across + y * along

        thick = pose.slender * (1.06 - 0.06 * mature)
        for name, x, y, end, shaft, drift in (
            ("ulna", -0.34, -0.235, 0.098, 0.088, 0.10),
            ("radius", 0.055, -0.245, 0.225, 0.115, -0.04),
        ):
            state = ossification.epiphysis(EPIPHYSES[name], self.age_of(name), self.male)
            y -= 0.05 * (1 - mature)
            end, shaft = end * thick, shaft * thick * (1.1 - 0.1 * mature)
            gap = (0.032 + 0.02 * (1 - mature)) * (1 - state.fused)
            fused = state.fused >= 1
            top = at(x, y + (0.055 if fused else 0.0))
            bottom = at(x - drift * 2.0, y - reach)
            knots = [
                (0, end),
                (0.02, end * 0.98),
                (0.10, shaft + 0.45 * (end - shaft)),
                (0.22, shaft * 1.06),
                (0.5, shaft),
                (1, shaft),
            ]
            lines = [] if fused else [(0.003, 0.6)]
            if fused and state.scar > 0:
                lines.append((0.03, 0.8 * state.scar))
            self.hand.bones.append(
                Bone(
                    name, _shaft(top, bottom, knots, 0.02, 0.01), top, bottom, 0.034 + 0.01 * mature, 1.05, tuple(lines)
                )
            )
            if state.width > 0:
                half = end * min(1.03, state.width)
                height = (0.135 if name == "radius" else 0.10) * min(1.0, 0.3 + 0.7 * state.width)
                low = y + gap
                if name == "radius":  # a wedge, higher at the styloid on the thumb's side
                    corners = [
                        (x - half, low + 0.2 * height),
                        (x - 0.9 * half, low),
                        (x + 0.9 * half, low),
                        (x + 1.04 * half, low + 0.3 * height),
                        (x + 0.98 * half, low + 1.25 * height * min(1, state.width)),
                        (x + 0.3 * half, low + 0.85 * height),
                        (x - 0.5 * half, low + 0.62 * height),
                        (x - 0.98 * half, low + 0.62 * height),
                    ]
                else:  # flat, with its styloid away from the thumb
                    corners = [
                        (x - half, low + 0.3 * height),
                        (x - 0.85 * half, low),
                        (x + 0.9 * half, low),
                        (x + half, low + 0.4 * height),
                        (x + 0.7 * half, low + 0.75 * height),
                        (x - 0.2 * half, low + 0.6 * height),
                        (x - 0.6 * half, low + 1.5 * height * min(1, state.width)),
                        (x - 0.98 * half, low + 1.3 * height * min(1, state.width)),
                    ]
                outline = smooth_polygon(np.array([at(*corner) for corner in corners]), 2)
                self.hand.bones.append(
                    Bone(f"{name} epiphysis", outline, at(x, low), at(x, low + height), 0.018, 0.72 + 0.2 * mature)
                )
            self.hand.points.insert(0 if name == "ulna" else 1, at(x, y + gap / 2))
        radius = (0.62 - 0.10 * mature) * (0.5 + 0.5 * pose.plump)
        line = np.array([at(-0.10, 0.15), at(-0.12, -0.3), at(-0.13, -1.0), at(-0.13, -reach)])
        self.hand.limbs.append((line, radius * np.array([0.93, 0.92, 1.06, 1.2])))

    def flesh(self) -> None:
        """The palm between wrist and knuckles."""
        plump, lower = self.pose.plump, 0.3 * (1 - self.mature)
        heads = {
            n: np.array(_BASE[n])
            + self.between(_METACARPAL[n]) * _direction(_ANGLE[n] * (0.85 + 0.15 * self.pose.spread))
            for n in (2, 3, 4, 5)
        }
        thumb = np.array(_BASE[1]) + 0.75 * self.between(_METACARPAL[1]) * _direction(_ANGLE[1] - self.pose.thumb)
        edge = (0.17 + 0.06 * (1 - self.mature)) * plump
        self.hand.palm = np.array(
            [
                heads[5] + (-edge, 0.02),
                heads[4] + (-0.03, 0.14),
                heads[3] + (0, 0.16),
                heads[2] + (edge, 0.02),
                (heads[2] + thumb) / 2 + (-0.06, -0.16),
                thumb + np.array([0.06, -0.10]),
                np.array([0.50 + edge, -0.20]),
                np.array([0.44 + 0.3 * edge, -0.55 - lower]),
                np.array([-0.46 - 0.4 * edge, -0.60 - lower]),
                np.array([-0.46 - 0.7 * edge, -0.12]),
            ]
        )


def build(age_months: float, male: bool, pose: Pose) -> Skeleton:
    """The skeleton of a left hand seen from its back, at an age in months."""
    builder = _Builder(age_months, male, pose)
    for number in (1, 2, 3, 4, 5):
        builder.finger(number)
    builder.forearm()
    builder.carpals()
    builder.flesh()
    return builder.hand

"""Find the seven points of a hand: a guess from afar for each orientation, refined from near, with a confidence.

>>> from bonecaffe import Locator                         # doctest: +SKIP
>>> Locator().find("hand.png").points                     # doctest: +SKIP
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bonecaffe.caffe import nets as engines
from bonecaffe.errors import LocateError
from bonecaffe.hands import fingers
from bonecaffe.hands.images import Image, read_image
from bonecaffe.locate import frames
from bonecaffe.locate.frames import Frame, Picture, Places, Pyramid
from bonecaffe.locate.network import OUTPUTS
from bonecaffe.locate.verdict import CONFIDENT, verdict, wrist_to_knuckles
from bonecaffe.trees import read_json

MODEL = Path(__file__).parent / "model"
"""The locator that comes with bonecaffe, trained on phantoms alone."""
_TURNS = (0.0, 0.5 * math.pi, math.pi, 1.5 * math.pi)
"""The orientations that are tried; the nets have learnt to see the angles between them."""
Look = tuple[float, float, float, float, bool]
"""One look at a hand: moved across and down (in sides), turned (radians), scaled; whether it is inverted."""


def _around(across: float, down: float, turn: float, size: float) -> list[Look]:
    """Eight looks from all sides, half of them inverted: two steps of each kind, every pair of kinds balanced."""
    sides = itertools.product((-1, 1), repeat=3)
    return [(a * across, d * down, t * turn, math.exp(a * d * t * size), a * d > 0) for a, d, t in sides]


_LOOKS = _around(0.06, 0.06, 0.12, 0.09) + _around(0.03, 0.03, -0.06, -0.045)
"""Looks whose mean gives the hand's points. A single look answers a small move of the hand with a larger one, and does
not settle when it is repeated. The mean of these does (each round brings two guesses nearer by a third or less)."""
_ROUNDS = 4
_CHECKS: tuple[Look, ...] = (
    (0, 0, 0, 1, False),
    (0.07, 0, 0.12, 1.1, False),
    (-0.07, 0, -0.12, 0.91, False),
    (0, 0.07, -0.12, 1.1, False),
    (0, -0.07, 0.12, 0.91, False),
    (0, 0, 0, 1, True),
)
"""Looks whose disagreement gives the confidence. They are far enough apart to expose a net that gives the same answer
whatever it sees."""
_HALF = 0.06
_OTHER_SIZE = (0.5, 2.0)
"""The range of another hand's length on the same film, relative to the first hand's."""


class Found(NamedTuple):
    """What was found in an image: seven points (7, 2) in pixels, and how far looks at the hand disagree.

    ``spread`` is the median distance of the looks from their median, ``steady`` that of the last two rounds from each
    other, both in parts of `wrist_to_knuckles`.
    """

    points: Places
    spread: float
    steady: float
    shape: tuple[int, int] = (0, 0)  # of the image: height, width
    others: tuple[Places, ...] = ()  # points of other hands that are seen on the film

    @property
    def confidence(self) -> float:
        """1 where the looks agree, 0.5 at a spread of `_HALF`, towards 0 beyond. Not a probability."""
        return 1 / (1 + (self.spread / _HALF) ** 3)

    @property
    def verdict(self) -> str:
        """``confident``, or why the points need a check; the command line refuses points that are not confident."""
        return verdict(self.points, self.confidence, self.shape, len(self.others))

    @property
    def confident(self) -> bool:
        """Whether the points are good enough to use without a check."""
        return self.verdict == CONFIDENT


class Locator:
    """A trained locator: two nets in a folder. ``engine``: see `nets.make`.

    LocateError when the folder has none, CaffeError when the engine is not installed.
    """

    def __init__(self, model: Path = MODEL, engine: engines.Kind | None = None) -> None:
        try:
            self.facts = read_json(model / "locator.json", "settings", LocateError)
        except (OSError, LocateError) as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "it has no locator.json" if missing else str(error).rstrip(".")
            raise LocateError(
                f"{model}: no locator here ({reason}). Train one with: bonecaffe train-locator {model}"
            ) from None
        self._nets = {}
        for view in ("whole", "near"):
            weights = model / f"{view}.caffemodel"
            for path in (model / "deploy.prototxt", weights):
                if not path.is_file():
                    raise LocateError(f"{path}: no such file. Train the locator again, or install bonecaffe again.")
            self._nets[view] = engines.make(engine, model / "deploy.prototxt", weights)

    def find(self, image: str | os.PathLike[str] | Image) -> Found:
        """The seven points of the hand in a radiograph, a file or uint8 (height, width).

        Check `Found.confident` before you use them. Raises ImageError for a file that cannot be read.
        """
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        film = Pyramid(pixels)
        points, steady, spread = self._hand(film, [frames.whole(pixels.shape, turn) for turn in _TURNS])
        if spread >= _HALF or _strange(points):  # perhaps two hands, with the guess between them
            halves = (self._hand(film, [part.shifted(turn=t) for t in _TURNS]) for part in frames.halves(pixels.shape))
            for hand in halves:
                if hand[2] < min(_HALF, spread) and not _strange(hand[0]):
                    points, steady, spread = hand
                    break
        return Found(points, spread, steady, pixels.shape, self._others(film, points))

    def _hand(self, film: Pyramid, places: list[Frame]) -> tuple[Places, float, float]:
        """The hand seen in squares of one part of the film: points (7, 2), steadiness and spread as in `Found`."""
        points, steady = self._settle(film, self._guess(film, places))
        return points, steady, self._spread(film, points)

    def _guess(self, film: Pyramid, places: list[Frame]) -> Places:
        """The best guess (7, 2) from afar, in squares of one size."""
        return self._best(film, self._answers("whole", frames.cut(film, places), places))

    def _best(self, film: Pyramid, guesses: Places) -> Places:
        """The best of guesses (n, 7, 2), after two looks at each from near: in order, and moving least."""
        before = guesses
        for _ in range(2):
            before, places = guesses, [frames.near(points) for points in guesses]
            squares = np.concatenate([frames.cut(film, [place]) for place in places])  # each has its own size
            guesses = self._answers("near", squares, places)
        moves = [_apart(a, b) for a, b in zip(before, guesses, strict=True)]
        return guesses[min(range(len(moves)), key=lambda number: (_strange(guesses[number]), moves[number]))]

    def _settle(self, film: Pyramid, points: Places) -> tuple[Places, float]:
        """The mean of many looks, repeated to settle: points (7, 2), and how far the last round moved them."""
        moved = 0.0
        for _ in range(_ROUNDS):
            before, points = points, self._look(film, points, _LOOKS).mean(axis=0)
            moved = _apart(before, points)
        return points, moved

    def _spread(self, film: Pyramid, points: Places) -> float:
        """How far looks that are far apart disagree about a hand, in parts of `wrist_to_knuckles`."""
        seen = self._look(film, points, _CHECKS)
        middle = np.median(seen, axis=0)
        return float(np.median([_apart(middle, other) for other in seen]))

    def _others(self, film: Pyramid, points: Places) -> tuple[Places, ...]:
        """Other hands left, right, above or below the first one, if they are found with confidence."""
        found: list[Places] = []
        for place in frames.surroundings(film.shape, points):
            guess = self._guess(film, [place])
            size = wrist_to_knuckles(guess) / wrist_to_knuckles(points)
            if _strange(guess) or not _OTHER_SIZE[0] <= size <= _OTHER_SIZE[1] or _share(guess, points) > 0.2:
                continue
            guess, _ = self._settle(film, guess)
            known = [points, *found]
            if max(_share(guess, hand) for hand in known) <= 0.2 and self._spread(film, guess) < _HALF:
                found.append(guess)
        return tuple(found)

    def _look(self, film: Pyramid, points: Places, looks: Sequence[Look]) -> Places:
        """The net's answers to looks at a hand near these points: points (n, 7, 2)."""
        here = frames.near(points)
        places = [here.shifted(*look[:4]) for look in looks]
        return self._answers("near", frames.cut(film, places), places, [look[4] for look in looks])

    def _answers(
        self, view: str, squares: Picture, places: Sequence[Frame], inverted: Sequence[bool] | None = None
    ) -> Places:
        """A net's answers to squares (n, SIDE, SIDE) that were cut at ``places``: points in pixels (n, 7, 2)."""
        squares = np.stack([frames.even(square) for square in squares])
        if inverted is not None:
            squares[inverted] = 255 - squares[inverted]
        outputs = self._nets[view].forward((squares[:, None] - np.float32(128)) / np.float32(64))
        found = outputs.reshape(len(places), OUTPUTS // 2, 2) / frames.LABEL_SCALE
        return np.stack([frame.to_image(at) for frame, at in zip(places, found, strict=True)])


def _apart(a: Places, b: Places) -> float:
    """Mean distance of two guesses' points, in parts of the first one's `wrist_to_knuckles`."""
    return float(np.hypot(*(a - b).T).mean()) / wrist_to_knuckles(a)


def _strange(points: Places) -> bool:
    """Whether the points are in an order that no hand has."""
    ulna, radius, *joints = ((float(x), float(y)) for x, y in points)
    try:
        return fingers.order(ulna, radius, joints) != joints
    except ValueError:
        return True


def _share(a: Places, b: Places) -> float:
    """How much of the smaller of two hands' rectangles the other one covers, 0 to 1."""
    low = np.maximum(a.min(axis=0), b.min(axis=0))
    both = np.clip(np.minimum(a.max(axis=0), b.max(axis=0)) - low, 0, None).prod()
    return float(both / max(1e-6, min(np.ptp(a, axis=0).prod(), np.ptp(b, axis=0).prod())))

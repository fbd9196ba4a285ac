"""Find the seven points of a hand: a guess from afar for each way up, made better from near, with a confidence.

>>> from bonecaffe import Locator                         # doctest: +SKIP
>>> Locator().find("hand.png").points                     # doctest: +SKIP
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bonecaffe.caffe import nets as engines
from bonecaffe.errors import LocateError
from bonecaffe.hands import fingers
from bonecaffe.hands.images import Image, read_image
from bonecaffe.locate import frames
from bonecaffe.locate.frames import Frame, Places
from bonecaffe.locate.network import OUTPUTS
from bonecaffe.locate.verdict import SURE, verdict, wrist_to_knuckles
from bonecaffe.trees import read_json

MODEL = Path(__file__).parent / "model"
"""The locator that comes with bonecaffe, trained on phantoms alone."""
_TURNS = (0.0, 0.5 * math.pi, math.pi, 1.5 * math.pi)
"""The ways up that an image may have; between them, the nets have learnt to see."""
_LOOKS = (
    (0, 0, 0, 1),
    (0.07, 0, 0.12, 1.1),
    (-0.07, 0, -0.12, 0.91),
    (0, 0.07, -0.12, 1.1),
    (0, -0.07, 0.12, 0.91),
    (0, 0, 0, 1),
)
"""How the hand is looked at in the end: moved across and down (in sides), turned (radians), scaled.

The last one is inverted. They are so wide apart that a net which answers the same whatever it sees is found out.
"""
_HALF = 0.06


class Found(NamedTuple):
    """What was found in an image: seven points (7, 2) in pixels, and how far looks at the hand disagree.

    ``spread`` is the median distance of the looks from the points, ``steady`` that of the last two steps from each
    other, both in parts of `wrist_to_knuckles`.
    """

    points: Places
    spread: float
    steady: float
    shape: tuple[int, int] = (0, 0)  # of the image: height, width

    @property
    def confidence(self) -> float:
        """1 where the looks agree, 0.5 at a spread of `_HALF`, towards 0 beyond. Not a probability."""
        return 1 / (1 + (self.spread / _HALF) ** 3)

    @property
    def verdict(self) -> str:
        """``sure``, or why the points should not be used unseen; the command line refuses what is not sure."""
        return verdict(self.points, self.confidence, self.shape)

    @property
    def sure(self) -> bool:
        """Whether the points are good enough to be used unseen."""
        return self.verdict == SURE


class Locator:
    """A trained locator: two nets in a folder. Raises LocateError when there is none, CaffeError without Caffe."""

    def __init__(self, model: Path = MODEL, engine: engines.Kind = "caffe") -> None:
        try:
            self.facts = read_json(model / "locator.json", "settings", LocateError)
        except (OSError, LocateError) as error:
            reason = str(error).rstrip(".")
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

        Look at `Found.sure` before you use them. Raises ImageError for a file that cannot be read.
        """
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        small, scale = frames.smaller(pixels)
        guesses = self._see("whole", small, [frames.whole(small.shape, turn) for turn in _TURNS])
        steps = [guesses]
        for _ in range(3):
            steps.append(self._see("near", small, [frames.near(points) for points in steps[-1]]))
        moves = np.array([_apart(a, b) for a, b in zip(steps[-2], steps[-1], strict=True)])
        best = min(range(len(moves)), key=lambda number: (_strange(steps[-1][number]), moves[number]))
        here = frames.near((steps[-1][best] + steps[-2][best]) / 2)
        looks = [here.shifted(*look) for look in _LOOKS]
        seen = self._see("near", small, looks, inverted=len(looks) - 1)
        points = np.median(seen, axis=0)
        spread = float(np.median([_apart(points, other) for other in seen]))
        height, width = pixels.shape
        return Found((points + 0.5) / scale - 0.5, spread, float(moves[best]), (height, width))

    def _see(self, view: str, image: Image, places: list[Frame], inverted: int = -1) -> Places:
        """What a net says of squares of the image: points in pixels (n, 7, 2)."""
        squares = np.stack([frames.even(frames.cut(image, frame)) for frame in places]).astype(np.float32)
        if inverted >= 0:
            squares[inverted] = 255 - squares[inverted]
        outputs = self._nets[view].forward((squares[:, None] - np.float32(128)) / np.float32(64))
        found = outputs.reshape(len(places), OUTPUTS // 2, 2) / frames.LABEL_SCALE
        return np.stack([frame.to_image(at) for frame, at in zip(places, found, strict=True)])


def _apart(a: Places, b: Places) -> float:
    """Mean distance of two guesses' points, in parts of the first one's `wrist_to_knuckles`."""
    return float(np.hypot(*(a - b).T).mean()) / wrist_to_knuckles(a)


def _strange(points: Places) -> bool:
    """Whether the points are in no order that a hand has."""
    ulna, radius, *joints = ((float(x), float(y)) for x, y in points)
    try:
        return fingers.order(ulna, radius, joints) != joints
    except ValueError:
        return True

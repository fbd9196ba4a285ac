"""Radiographs for the page: as JPEG for the eye, and the 224 x 224 image that the network will see."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from bonecaffe.hands.images import Image, encode_png, read_image
from bonecaffe.hands.reference_points import ReferencePoints
from bonecaffe.prepare.normalize import normalize
from bonecaffe.recipe import Preparation

_KEPT = 6
_QUALITY = 92


class Pictures:
    """The last few images, decoded once; safe for many threads."""

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self._kept: OrderedDict[Path, tuple[Image, bytes]] = OrderedDict()
        self._mutex = threading.Lock()
        self._busy: dict[Path, threading.Lock] = {}

    def _get(self, path: Path) -> tuple[Image, bytes]:
        import cv2

        with self._mutex:
            busy = self._busy.setdefault(path, threading.Lock())
        with busy:  # asked for twice at once, it is decoded once
            with self._mutex:
                if path in self._kept:
                    self._kept.move_to_end(path)
                    return self._kept[path]
            image = read_image(path)
            _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
            with self._mutex:
                self._kept[path] = image, content.tobytes()
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
                self._busy.pop(path, None)
                return self._kept[path]

    def jpeg(self, path: Path) -> bytes:
        """An image as JPEG of its full size; ImageError when it cannot be read."""
        return self._get(path)[1]

    def thumbnail(self, path: Path, points: Sequence[tuple[float, float]]) -> bytes:
        """What the network would see of an image with these points, by `normalize` itself, as PNG.

        Raises ValueError for too few points.
        """
        image = self._get(path)[0]
        if len(points) < 2:
            raise ValueError("two points at least span a rectangle")
        filled = (*points, *[points[0]] * (7 - len(points)))
        hand = ReferencePoints(path.stem, image.shape[1], image.shape[0], filled)
        if problems := hand.problems():
            raise ValueError(problems[0])
        return encode_png(normalize(image, hand, self._preparation))

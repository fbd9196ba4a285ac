"""Radiographs for the page: a JPEG to look at, and the 224 x 224 image that the network will see."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from bonecaffe.annotate import remarks
from bonecaffe.annotate.marking import Marking, Places
from bonecaffe.annotate.shared_table import signature
from bonecaffe.errors import ImageError
from bonecaffe.hands.images import Image, encode_png
from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints
from bonecaffe.hands.standard_view import Polarity, StandardView, polarity_of, polarity_remarks
from bonecaffe.prepare.normalize import normalize_viewed, viewed
from bonecaffe.recipe import Preparation

_KEPT = 6
_QUALITY = 92


class Pictures:
    """A cache of the last few decoded images, safe for many threads."""

    def __init__(self, marking: Marking, preparation: Preparation) -> None:
        self._marking, self._preparation = marking, preparation
        self._kept: OrderedDict[tuple[str, tuple[int, ...]], tuple[Image, bytes]] = OrderedDict()
        self._mutex = threading.Lock()
        self._busy: dict[tuple[str, tuple[int, ...]], threading.Lock] = {}

    def _get(self, case_id: str) -> tuple[Image, bytes]:
        import cv2

        key = case_id, signature(self._marking.images[case_id])
        with self._mutex:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:  # two requests at once decode the image only once
            with self._mutex:
                self._busy.pop(key, None)
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            image = self._marking.image(case_id)
            _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
            with self._mutex:
                self._kept[key] = image, content.tobytes()
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
                return self._kept[key]

    def jpeg(self, case_id: str) -> bytes:
        """An image as a JPEG in full size. ImageError if it cannot be read."""
        return self._get(case_id)[1]

    def remarks(self, case_id: str, points: Places) -> list[str]:
        """Remarks about how bones look at seven points; empty if they are bright, or while points are missing."""
        whole = [place for place in points if place]
        if len(whole) < len(POINT_NAMES):
            return []
        try:
            image = self._get(case_id)[0]
        except ImageError:  # the page gets this error when it asks for the image
            return []
        return remarks.sentences(polarity_remarks(polarity_of(image, whole)))

    def thumbnail(self, case_id: str, points: Sequence[tuple[float, float]]) -> bytes:
        """The image that the network would see for these points, computed by `normalize` itself, as a PNG.

        Raises ValueError for too few points.
        """
        image = self._get(case_id)[0]
        if len(points) < 2:
            raise ValueError("a rectangle needs at least two points")
        filled = (*points, *[points[0]] * (7 - len(points)))
        hand = ReferencePoints(case_id, image.shape[1], image.shape[0], filled)
        if problems := hand.problems():
            raise ValueError(problems[0])
        whole = len(points) == len(POINT_NAMES)  # the direction of the hand is unclear from fewer points
        view = viewed(image, hand) if whole else StandardView(image, hand, 0, Polarity.BRIGHT)
        return encode_png(normalize_viewed(view, self._preparation))

"""Contact sheets: hands side by side, each with its points and rectangle, for a quick check by eye."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bonecaffe.errors import ImageError, PointsError
from bonecaffe.files import write_bytes
from bonecaffe.hands.images import Image, encode_png, read_image
from bonecaffe.hands.reference_points import ReferencePoints

_SIDE = 320
_CAPTION = 54
_GROUND, _WHITE, _GREY = (40, 40, 40), (255, 255, 255), (190, 190, 190)
_POINTS, _OTHERS = (0, 214, 255), (255, 190, 60)  # yellow and blue, in OpenCV's order of channels
_AROUND = 0.3


def write_sheet(
    path: Path,
    hands: Iterable[ReferencePoints],
    images: Mapping[str, Path],
    captions: Mapping[str, str],
    others: Mapping[str, ReferencePoints] | None = None,
    columns: int = 5,
) -> None:
    """Write hands as one PNG, cropped to what their points span, each under its id and caption.

    Points are yellow dots, those of ``others`` blue crosses. Raises PointsError when no hand to show.
    """
    others = others or {}
    cells = [_cell(_image(images[hand.id]), hand, others.get(hand.id), captions.get(hand.id, "")) for hand in hands]
    if not cells:
        raise PointsError(f"{path}: no hand to show.")
    columns = min(columns, len(cells))
    cells += [np.full_like(cells[0], _GROUND)] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    write_bytes(path, encode_png(np.vstack(rows), 6), parents=True)


def _image(path: Path) -> Image:
    """The image, or black where it cannot be read: the caption has the reason."""
    try:
        return read_image(path)
    except ImageError:
        return np.zeros((64, 64), np.uint8)


def _cell(image: Image, hand: ReferencePoints, other: ReferencePoints | None, caption: str) -> Image:
    import cv2

    def places(marked: ReferencePoints) -> NDArray[np.float64]:  # in the image's own pixels
        return np.array(marked.points) * (image.shape[1] / marked.width, image.shape[0] / marked.height)

    marks = [(places(hand), _POINTS)] + ([(places(other), _OTHERS)] if other else [])
    spanned = np.concatenate([points for points, _ in marks])
    room = _AROUND * float(np.ptp(spanned, axis=0).max())
    left, top = np.maximum(0, np.floor(spanned.min(axis=0) - room)).astype(int)
    right, bottom = np.ceil(spanned.max(axis=0) + room).astype(int)
    cut = image[top : bottom + 1, left : right + 1]
    part = cv2.normalize(cut, np.empty_like(cut), 0, 255, cv2.NORM_MINMAX)
    scale = _SIDE / max(part.shape)
    size = tuple(max(1, round(side * scale)) for side in part.shape[::-1])
    resized = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    shown = cv2.cvtColor(resized, cv2.COLOR_GRAY2BGR)
    for points, colour in reversed(marks):
        here = np.round((points - (left, top)) * scale).astype(int)
        cv2.rectangle(shown, here.min(axis=0).tolist(), here.max(axis=0).tolist(), colour, 1)
        for number, place in enumerate(here.tolist()):
            if colour == _OTHERS:
                cv2.drawMarker(shown, place, colour, cv2.MARKER_TILTED_CROSS, 10, 2)
                continue
            cv2.circle(shown, place, 4, (0, 0, 0), -1)
            cv2.circle(shown, place, 3, colour, -1)
            label_at = place[0] + 5, place[1] - 4
            cv2.putText(shown, "UR12345"[number], label_at, cv2.FONT_HERSHEY_PLAIN, 1, colour, 1, cv2.LINE_AA)
    cell = np.full((_SIDE + _CAPTION + 6, _SIDE + 8, 3), _GROUND, np.uint8)
    cell[_CAPTION : _CAPTION + shown.shape[0], 4 : 4 + shown.shape[1]] = shown
    cv2.putText(cell, hand.id[:30], (4, 16), cv2.FONT_HERSHEY_PLAIN, 1.1, _WHITE, 1, cv2.LINE_AA)
    for number, line in enumerate(textwrap.wrap(caption, 46, max_lines=2, placeholder=" ...")):
        cv2.putText(cell, line, (4, 32 + 14 * number), cv2.FONT_HERSHEY_PLAIN, 0.8, _GREY, 1, cv2.LINE_AA)
    return cell

"""Doubts about marked hands: not wrong enough to refuse, but strange enough to check."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from bonecaffe.errors import ImageError
from bonecaffe.hands import fingers
from bonecaffe.hands.agreement import palm
from bonecaffe.hands.images import read_image
from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints
from bonecaffe.hands.standard_view import polarity_of, polarity_remarks, pose
from bonecaffe.progress import Progress, unseen

ASPECT = (0.5, 1.6)
"""Range of the rectangle's width over its height. Phantoms are between 0.75 and 1.05; turned hands vary more."""
SHORT_PALM = 0.1
"""Part of the image's longer side. A shorter `palm` suggests that the image shows something other than a hand."""
CLOSE = 0.03
"""Part of the palm. Two points closer than this are probably one point marked twice."""
BORDER = 2
"""Pixels from the image's border."""


def doubts(hand: ReferencePoints) -> list[str]:
    """The doubts about one hand, as phrases; empty when there are none."""
    ulna, radius, *joints = hand.points
    found = []
    try:
        if fingers.order(ulna, radius, joints) != joints:
            found.append("the fingers are not in order from thumb to little finger, seen from the wrist")
    except ValueError as error:
        found.append(str(error))
    found += pose(hand.points)
    aspect = hand.rectangle().width / hand.rectangle().height
    if not ASPECT[0] <= aspect <= ASPECT[1]:
        found.append(f"the rectangle is {aspect:.2f} times as wide as it is high")
    if palm(hand) < SHORT_PALM * max(hand.width, hand.height):
        found.append(f"the palm is {palm(hand):.0f} pixels long in an image of {hand.width} x {hand.height}")
    for number, (name, point) in enumerate(zip(POINT_NAMES, hand.points, strict=True)):
        for other, place in zip(POINT_NAMES[number + 1 :], hand.points[number + 1 :], strict=True):
            if math.dist(point, place) < CLOSE * max(palm(hand), 1):
                found.append(f"{name} and {other} are at the same place")
        x, y = point
        if min(x, y, hand.width - 1 - x, hand.height - 1 - y) < BORDER:
            found.append(f"{name} is on the image's border")
    return found


def doubts_about_image(hand: ReferencePoints, path: Path | None) -> list[str]:
    """The doubts about the image file of a hand, as phrases; ``path`` is None when there is no file."""
    if path is None:
        return ["it has no image"]
    try:
        image = read_image(path)
    except ImageError as error:
        return [str(error).rstrip(".")]
    if image.shape != (hand.height, hand.width):
        return [f"marked in {hand.width} x {hand.height}, but the image is {image.shape[1]} x {image.shape[0]}"]
    return polarity_remarks(polarity_of(image, hand.points))


def all_doubts(
    hands: Mapping[str, ReferencePoints], images: Mapping[str, Path] | None = None, progress: Progress = unseen
) -> dict[str, list[str]]:
    """The doubts about each hand, by id; hands without any are left out. The same points under two ids are a doubt too.

    With ``images``, files by id, each hand's image is checked too.
    """
    found = {case_id: doubts(hand) for case_id, hand in hands.items()}
    first: dict[tuple[tuple[float, float], ...], str] = {}
    for case_id, hand in hands.items():
        if (twin := first.setdefault(hand.points, case_id)) != case_id:
            found[case_id].append(f"the same points as id {twin}")
    if images is not None:
        for done, (case_id, hand) in enumerate(hands.items(), start=1):
            found[case_id] += doubts_about_image(hand, images.get(case_id))
            progress(done, len(hands))
    return {case_id: strange for case_id, strange in found.items() if strange}

"""Find out which joint belongs to which finger, from the positions of five MCP joints, ulna and radius. Pure.

Seen from the wrist, midway between ulna and radius, the joints form a fan. However the hand is turned or mirrored, the
thumb is at the radius end of the fan, and it is further from its neighbour than the little finger is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from bonecaffe.hands.reference_points import POINT_NAMES

Point = tuple[float, float]


class Incomplete(ValueError):
    """A hand whose image is missing, or that does not have each of its seven points exactly once."""


BONES = ("ulna", "radius", "mcp", "mcpfirst")
"""Names of boxes from which points are made."""


def _bare(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def is_bone(name: str) -> bool:
    """Whether a box's name is one of those that `boxes_to_points` needs.

    >>> is_bone("MCP First"), is_bone("Wrist")
    (True, False)
    """
    return _bare(name) in BONES


def boxes_to_points(boxes: Sequence[tuple[str, Point]]) -> dict[str, Point]:
    """The seven points from named boxes' centres: MCP (five, or four and MCPFirst), Radius, Ulna.

    Other names are ignored. Raises Incomplete for a bone that is missing or given too often, ValueError when the
    fingers cannot be distinguished.
    """
    by_name: dict[str, list[Point]] = {}
    for name, centre in boxes:
        by_name.setdefault(_bare(name), []).append(centre)
    joints, thumbs = by_name.get("mcp", []), by_name.get("mcpfirst", [])
    for name in ("radius", "ulna"):
        if len(by_name.get(name, [])) != 1:
            raise Incomplete(f"{len(by_name.get(name, []))} boxes named {name}; one is needed")
    if len(joints) + len(thumbs) != 5 or len(thumbs) > 1:
        raise Incomplete(f"{len(joints)} MCP and {len(thumbs)} MCPFirst boxes; five joints are needed")
    (ulna,), (radius,) = by_name["ulna"], by_name["radius"]
    fan = order(ulna, radius, [*joints, *thumbs])
    if thumbs and fan[0] != thumbs[0]:
        raise ValueError("MCPFirst is not the joint at the radius end of the fan; are radius and ulna swapped?")
    return dict(zip(POINT_NAMES, (ulna, radius, *fan), strict=True))


def order(ulna: Point, radius: Point, joints: Sequence[Point]) -> list[Point]:
    """Sort five joints from the thumb to the little finger. ValueError when the order is unclear.

    >>> order((0, 0), (10, 0), [(30, 20), (-10, 55), (18, 60), (9, 65), (0, 62)])[0]
    (30, 20)
    """
    wrist = (ulna[0] + radius[0]) / 2, (ulna[1] + radius[1]) / 2
    across = radius[0] - ulna[0], radius[1] - ulna[1]
    if math.hypot(*across) == 0:
        raise ValueError("radius and ulna are at the same place")
    if len(set(joints)) != len(joints):
        raise ValueError("two joints are at the same place")
    middle = sum(x for x, _ in joints) / len(joints) - wrist[0], sum(y for _, y in joints) / len(joints) - wrist[1]
    if math.hypot(*middle) == 0:
        raise ValueError("the joints surround the wrist")
    side = math.copysign(1.0, middle[0] * across[1] - middle[1] * across[0])

    def angle(joint: Point) -> float:  # from the fan's middle, towards the radius
        x, y = joint[0] - wrist[0], joint[1] - wrist[1]
        return side * math.atan2(middle[0] * y - middle[1] * x, middle[0] * x + middle[1] * y)

    fan = sorted(joints, key=angle, reverse=True)
    if math.dist(fan[0], fan[1]) <= math.dist(fan[3], fan[4]):
        raise ValueError(
            "the joint at the radius end is too close to its neighbour to be the thumb's; are radius and ulna swapped?"
        )
    return fan

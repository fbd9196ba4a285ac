"""Fingers distinguished by position: hands laid out by hand, in a frame where the answer is known."""

from __future__ import annotations

import itertools
import math

import pytest

from bonecaffe.hands.fingers import Incomplete, boxes_to_points, order
from bonecaffe.hands.reference_points import POINT_NAMES

# The wrist is at 0, the fingers point up, the radius is to the right; the thumb's joint is furthest to the right.
ULNA, RADIUS = (-10, 0), (10, 0)
FAN = [(40, 25), (18, 60), (3, 66), (-12, 62), (-24, 52)]
TURNS = {
    "as it is": 1,
    "a quarter": 1j,
    "half": -1,
    "three quarters": -1j,
    "by 3-4-5": 0.6 + 0.8j,
    "by 5-12-13": (12 - 5j) / 13,
}


def laid(points, turn=1, mirrored=False, to=0):
    """Points as complex numbers, mirrored, turned and moved."""
    found = []
    for x, y in points:
        z = turn * complex(-x if mirrored else x, y) + to
        found.append((z.real, z.imag))
    return found


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("to", [0, 1000 + 2000j, -300 + 40j])
def test_thumb_to_little_finger_wherever_the_hand_is(turn, mirrored, to):
    """Turned, mirrored and moved, whatever the order in which the joints come."""
    ulna, radius, *fan = laid([ULNA, RADIUS, *FAN], turn, mirrored, to)
    for shuffled in itertools.islice(itertools.permutations(fan), 0, 120, 7):
        assert order(ulna, radius, shuffled) == fan
    with pytest.raises(ValueError, match="too close to its neighbour"):
        order(radius, ulna, fan)


def test_wide_hand_has_its_corners_at_right_angles():
    """Joints all around: 90°, 45°, 0°, -45° and -90° from the middle, seen from the wrist at (100, 50)."""
    fan = [(190, 50), (130, 80), (100, 95), (75, 75), (80, 50)]
    # the middle is (115, 70): up and to the right of the wrist; none of the angles from it reaches 180°
    for mirror, turn in itertools.product((1, -1), (1, 1j, -1, -1j)):
        moved = [turn * complex(mirror * (x - 100), y - 50) for x, y in [(90, 50), (110, 50), *fan]]
        ulna, radius, *joints = [(z.real, z.imag) for z in moved]
        assert order(ulna, radius, joints[::-1]) == joints


def test_thumb_must_stand_further_apart_than_the_little_finger():
    """The same distance, sqrt(800), at both ends of a symmetric fan: refused; one pixel more: accepted."""
    fan = [(40, 60), (20, 80), (0, 90), (-20, 80), (-40, 60)]
    with pytest.raises(ValueError, match="too close to its neighbour"):
        order(ULNA, RADIUS, fan)
    assert order(ULNA, RADIUS, [(41, 60), *fan[1:]])[0] == (41, 60)


def test_only_neighbours_are_compared():
    """Far from its neighbour, though near the third; and the little finger far from the third."""
    fan = [(30, 30), (30, 60), (10, 44), (-30, 60), (-40, 50)]
    assert order(ULNA, RADIUS, fan[::-1]) == fan


def test_wrist_is_between_ulna_and_radius():
    """A joint at the height of the wrist, 2 to its right: seen from the middle of the two it is the thumb."""
    assert order((-4, 0), (8, 0), [(30, -2), (12, 30), (4, 32), (-6, 30), (-12, 26)])[0] == (30, -2)
    # seen from 2 pixels lower or higher, the two joints near the wrist would change places
    near = [(9, 1), (5, 9), (1, 10), (-1, 9), (-3, 8)]
    assert order((-1, 0), (1, 0), near[::-1]) == near


def test_ambiguous_positions_are_refused():
    """Radius on the ulna, a joint on a joint, joints around the wrist; a difference of one pixel is enough."""
    with pytest.raises(ValueError, match="radius and ulna are at the same place"):
        order((5, 5), (5, 5), FAN)
    assert order((-0.5, 0), (0.5, 0), FAN) == FAN
    with pytest.raises(ValueError, match="two joints"):
        order(ULNA, RADIUS, [*FAN[:4], FAN[0]])
    around = [(6, -3), (3, 1), (0, 2), (-4, 0), (-5, 0)]  # their sum is (0, 0)
    with pytest.raises(ValueError, match="surround the wrist"):
        order((-1, 0), (1, 0), around)
    # the middle one pixel from the wrist, straight up: angles of 117, 72, 0, -63 and -68 degrees
    off = [(6, -3), (3, 1), (0, 3), (-4, 2), (-5, 2)]
    assert order((-1, 0), (1, 0), off[::-1]) == off


NAMED = [("Ulna", ULNA), ("Radius", RADIUS), *[("MCP", joint) for joint in FAN]]


def test_seven_boxes_become_seven_points():
    """By name, in any spelling; other bones are ignored."""
    expected = dict(zip(POINT_NAMES, [ULNA, RADIUS, *FAN], strict=True))
    assert boxes_to_points(NAMED[::-1]) == expected
    names = ["ULNA", "radius ", "MCP-First", "mcp 2", "MCP3", "Mcp_4", "MCP"]
    other = [("PIP", (1, 1)), ("MCPSecond", (2, 2))]
    assert boxes_to_points([*other, *zip(names, [ULNA, RADIUS, *FAN], strict=True)]) == expected


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (NAMED[1:], "0 boxes named ulna; one is needed"),
        ([*NAMED, ("ulna", (0, 1))], "2 boxes named ulna"),
        ([NAMED[0], *NAMED[2:]], "0 boxes named radius"),
        ([*NAMED, NAMED[1]], "2 boxes named radius"),
        (NAMED[:-1], "4 MCP and 0 MCPFirst boxes; five joints are needed"),
        ([*NAMED, ("MCP", (0, 50))], "6 MCP and 0 MCPFirst"),
        ([*NAMED, ("MCPFirst", (50, 50))], "5 MCP and 1 MCPFirst"),
        ([*NAMED[:5], ("MCPFirst", FAN[3]), ("MCPFirst", FAN[4])], "3 MCP and 2 MCPFirst"),
    ],
)
def test_missing_or_duplicate_bones_are_counted(boxes, message):
    """A hand of impossible shape is left out, not guessed."""
    with pytest.raises(Incomplete, match=message):
        boxes_to_points(boxes)


def test_first_joint_must_be_at_the_radius_end():
    """MCPFirst elsewhere in the fan: refused."""
    for place in range(1, 5):
        boxes = [*NAMED[:2], *[("MCPFirst" if at == place else "MCP", joint) for at, joint in enumerate(FAN)]]
        with pytest.raises(ValueError, match="MCPFirst is not the joint at the radius end"):
            boxes_to_points(boxes)
    assert math.dist(FAN[0], FAN[1]) > math.dist(FAN[3], FAN[4])  # what the layout above is made for

"""The position of a hand and the look of its bones are found from points and pixels; the crop is always the same."""

from __future__ import annotations

import contextlib
import itertools

import cv2
import numpy as np
import pytest

from bonecaffe.hands.phantom import dataset
from bonecaffe.hands.reference_points import ReferencePoints
from bonecaffe.hands.standard_view import Polarity, pose, quarters, standard_view, tilt, turned


@pytest.fixture(scope="module")
def phantoms():
    sizes = itertools.cycle([(300, 390), (500, 650), (200, 260)])
    return [dataset.make(31, number, size) for number, size in zip(range(40), sizes, strict=False)]


def stored(image, hand, count, inverted):
    """An image stored turned by quarters counter-clockwise, and inverted, with its points in its own pixels."""
    image = np.ascontiguousarray(np.rot90(image, count))
    return (255 - image if inverted else image), turned(hand, count)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("count", range(4))
def test_however_it_is_stored_the_crop_is_the_same(phantoms, count, inverted):
    """All four turns and both polarities of 40 hands give exactly the pixels and points of the standard view."""
    for phantom in phantoms:
        image, hand = stored(phantom.image, phantom.points, count, inverted)
        view = standard_view(image, hand)
        assert np.array_equal(view.image, phantom.image)
        assert view.points == phantom.points  # to the last digit: floor and ceil follow
        assert view.polarity is (Polarity.DARK if inverted else Polarity.BRIGHT)
        assert (view.quarters + count) % 4 == 0
        assert len(view.remarks) == bool(count) + inverted


def test_exposure_does_not_look_like_polarity(phantoms):
    """Dark, bright, flat and steep exposures, a collimator's frame, letters: bones stay bright."""
    for phantom in phantoms[:12]:
        grey = phantom.image / 255
        framed = phantom.image.copy()
        framed[: framed.shape[0] // 20] = framed[-framed.shape[0] // 20 :] = 255
        cv2.putText(framed, "L", (5, framed.shape[0] // 3), cv2.FONT_HERSHEY_SIMPLEX, 1, 255, 3)
        white_side = phantom.image.copy()  # unexposed film, white, up to the hand's side
        white_side[:, : max(1, int(min(x for x, _ in phantom.points.points) - white_side.shape[1] // 10))] = 255
        for image in (grey**3 * 255, grey**0.4 * 255, grey * 40 + 5, grey * 60 + 195, framed, white_side):
            view = standard_view(np.round(image).astype(np.uint8), phantom.points)
            assert view.polarity is Polarity.BRIGHT


def test_doubtful_polarity_is_refused(phantoms):
    """Half of the hand inverted along its middle: neither way is right, so neither is used."""
    refused = 0
    for phantom in phantoms[:12]:
        image = phantom.image.copy()
        _ys, xs = np.mgrid[: image.shape[0], : image.shape[1]]
        knuckle = np.mean([phantom.points.points[i] for i in (3, 4, 5, 6)], axis=0)
        left = xs < knuckle[0]
        image[left] = 255 - image[left]
        try:
            view = standard_view(image, phantom.points)
            refused += view.polarity is Polarity.UNSEEN
        except ValueError as error:
            assert "bright or dark" in str(error)
            refused += 1
    assert refused >= 10


def test_no_hand_is_not_inverted():
    """Noise and flat grey at the points: no hand is visible there, which is reported, and nothing is changed."""
    rng = np.random.default_rng(0)
    hand = dataset.make(31, 0, (200, 260)).points
    for image in (np.full((260, 200), 90, np.uint8), np.zeros((260, 200), np.uint8)):
        view = standard_view(image, hand)
        assert (
            view.polarity is Polarity.UNSEEN
            and np.array_equal(view.image, image)
            and "hardly visible" in view.remarks[0]
        )
    changed = 0
    for _ in range(50):
        with contextlib.suppress(ValueError):
            changed += standard_view(rng.integers(0, 256, (260, 200), np.uint8), hand).polarity is Polarity.DARK
    assert changed == 0


@pytest.mark.parametrize("degrees", [-44, -30, 0, 30, 44, 46, 89, 135.5, 179, -91, -134])
def test_turn_is_found_from_points(degrees):
    """The tilt is the angle by which a hand was turned; the nearest quarter brings it upright."""
    points = np.array(dataset.make(31, 1, (300, 390)).points.points)
    angle = np.radians(degrees - tilt(points))
    c, s = np.cos(angle), np.sin(angle)
    moved = points @ np.array([[c, -s], [s, c]]).T
    assert tilt(moved) == pytest.approx(degrees, abs=1e-6)
    assert quarters(moved) == round(degrees / 90) % 4
    assert bool(quarters(moved)) == any("turned by" in text for text in pose(moved))
    assert any("tilted" in text for text in pose(moved)) == (abs((degrees + 45) % 90 - 45) > 35)


def test_four_quarters_are_none():
    """Turned four times, points are where they were; once, the upper right corner is the upper left one."""
    hand = ReferencePoints("1", 100, 200, ((99.0, 0.0), *[(10.0, 20.5)] * 6))
    assert turned(hand, 4) == hand and turned(turned(hand, 3), 1) == hand
    once = turned(hand, 1)
    assert (once.width, once.height, once.points[0]) == (200, 100, (0.0, 0.0))


def test_points_anywhere_cost_little():
    """Impossible points, at one place or at the corners of a large image, neither fail nor fill the memory."""
    image = np.zeros((3000, 3000), np.uint8)
    for points in (
        [(5, 5)] * 7,
        [(0, 0), (2999, 2999), (2999, 0), *[(1499.5, 1499.5)] * 4],
        [(0, 0)] * 3 + [(1, 0)] * 4,
    ):
        hand = ReferencePoints("1", 3000, 3000, tuple((float(x), float(y)) for x, y in points))
        assert standard_view(image, hand).polarity is Polarity.UNSEEN

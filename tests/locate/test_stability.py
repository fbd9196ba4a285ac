"""Points depend only on the hand: moved by a pixel, by another engine, turned, next to another hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from bonecaffe.cli import main
from bonecaffe.hands import standard_view
from bonecaffe.hands.agreement import overlap
from bonecaffe.hands.images import find_images, read_image
from bonecaffe.hands.phantom import dataset
from bonecaffe.hands.provenance import found_file, read_found
from bonecaffe.hands.reference_points import read_points
from bonecaffe.locate import frames
from bonecaffe.locate import locate as finding
from bonecaffe.locate.frames import Frame
from bonecaffe.locate.locator import Locator
from bonecaffe.locate.verdict import wrist_to_knuckles


@pytest.fixture(scope="module")
def locator():
    return Locator()


@pytest.fixture(scope="module")
def phantoms():
    return [dataset.make(91, number, size) for size in ((500, 650), (400, 520), (900, 1170)) for number in range(5)]


def apart(a, b, phantom):
    """The largest distance of two hands' points, in percent of the palm."""
    return 100 * np.hypot(*(a - b).T) / wrist_to_knuckles(np.array(phantom.points.points))


@pytest.mark.parametrize("by", [(1, 0), (0, 1), (-1, -1)])
def test_moved_by_a_pixel_points_move_by_a_pixel(locator, phantoms, by):
    """A hand moved in its image takes its points along: 0.2 % of the palm in the median of the points' mean error."""
    errors = []
    for phantom in phantoms:
        height, width = phantom.image.shape
        around = cv2.copyMakeBorder(phantom.image, 4, 4, 4, 4, cv2.BORDER_REPLICATE)
        moved = np.ascontiguousarray(around[4 - by[1] : 4 - by[1] + height, 4 - by[0] : 4 - by[0] + width])
        errors.append(apart(locator.find(moved).points - by, locator.find(phantom.image).points, phantom).mean())
    assert np.median(errors) < 0.1 and np.quantile(errors, 0.8) < 0.2 and max(errors) < 1, np.round(errors, 3)


@pytest.mark.parametrize("engine", ["onnx", "opencv"])
def test_engines_find_the_same_points(locator, phantoms, engine):
    """Engines differ in the last digits of a forward pass; points differ by 0.1 % of the palm at most."""
    other = Locator(engine=engine)
    for phantom in phantoms:
        found, theirs = locator.find(phantom.image), other.find(phantom.image)
        assert apart(found.points, theirs.points, phantom).max() < 0.1
        assert found.confidence == pytest.approx(theirs.confidence, abs=0.01)


def test_a_square_is_continuous_in_its_frame():
    """A frame that is moved, turned or scaled a little sees much the same, at any size."""
    image = frames.Pyramid(dataset.make(3, 2, (900, 1170)).image)
    for size in np.geomspace(100, 3000, 40):
        here = Frame(450, 600, float(size), 0.1)
        (square,) = frames.cut(image, [here])
        for change in ({"across": 1e-4}, {"down": 1e-4}, {"turn": 1e-4}, {"scale": 1.0001}):
            (other,) = frames.cut(image, [here.shifted(**change)])
            difference = np.abs(other - square)
            assert difference.max() < 4 and difference.mean() < 0.15, (size, change)


def test_turned_points_are_the_turned_points(locator, phantoms):
    """An image stored in a quarter turn gives the same hand: the rectangle of its points, turned back, is the same."""
    overlaps = []
    for phantom in phantoms[:10]:
        for count in range(4):
            image = np.ascontiguousarray(np.rot90(phantom.image, count))
            hand = finding.judge("x", image.shape, locator.find(image), image=image)
            if hand.hand() is None:
                overlaps.append(0.0)
                continue
            assert (standard_view.quarters(hand.points) + count) % 4 == 0
            assert ("turned by" in hand.remarks) == (count > 0)
            upright = standard_view.turned(hand.hand(), -count % 4)
            overlaps.append(overlap(upright.rectangle(), phantom.points.rectangle()))
    assert np.median(overlaps) > 0.92 and np.mean(np.array(overlaps) > 0.7) >= 0.95


def pair(a, b, how):
    """Two hands on one film."""
    second = b.image[:, ::-1] if "mirrored" in how else b.image
    if "smaller" in how:
        small = cv2.resize(second, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
        second = np.zeros_like(second)
        second[-small.shape[0] :, : small.shape[1]] = small
    film = np.vstack([a.image, second]) if "above" in how else np.hstack([a.image, second])
    return np.ascontiguousarray(np.rot90(film) if "turned" in how else film)


@pytest.mark.parametrize("how", ["side by side", "mirrored", "smaller", "above", "turned"])
def test_two_hands_on_one_film_are_noticed(locator, how):
    """bonecaffe does not guess which is meant: the film is refused, because it shows two hands."""
    for number in range(6):
        a, b = (dataset.make(92, 2 * number + which, (400, 520)) for which in (0, 1))
        found = locator.find(pair(a, b, how))
        assert not found.confident
        assert found.verdict.startswith("uncertain: 2 hands on one film"), (number, found.verdict)


def test_one_hand_is_one_hand(locator, phantoms):
    """With much film around it, in a corner, with letters: no second hand is seen."""
    for phantom in phantoms[:8]:
        height, width = phantom.image.shape
        film = np.full((height * 2, width * 2), int(np.median(phantom.image[0])), np.uint8)
        film[height // 2 : height // 2 + height, width // 2 : width // 2 + width] = phantom.image
        cv2.putText(film, "L 12:40", (20, height), cv2.FONT_HERSHEY_SIMPLEX, 2, 255, 5)
        for image in (phantom.image, film):
            assert len(locator.find(image).others) == 0


def test_real_hands_are_found_as_well_as_before(locator, real_hands):
    """Median overlap of the rectangles 0.92, and 98 % above 0.70; every single hand is one."""
    images, truth = find_images(real_hands / "images"), read_points(real_hands / "points.csv")
    overlaps = []
    for case_id, marked in truth.items():
        image = read_image(images[case_id])
        found = locator.find(image)
        hand = finding.judge(case_id, image.shape, found, image=image)
        assert len(found.others) == 0
        assert "dark" not in hand.remarks and "turned" not in hand.remarks
        overlaps.append(overlap(hand.hand().rectangle(), marked.rectangle()) if hand.hand() else 0.0)
    assert np.median(overlaps) >= 0.92 and np.mean(np.array(overlaps) > 0.70) >= 0.98


def test_locate_reports_how_hands_are_stored(hands, tmp_path):
    """Dark bones and turned hands are named, in print and in NAME.found.csv; points are those of the stored image."""
    images = tmp_path / "images"
    images.mkdir()
    files = find_images(hands / "images")
    for case_id, change in {"1001": lambda i: i, "1002": lambda i: 255 - i, "1003": lambda i: i[::-1, ::-1]}.items():
        cv2.imwrite(str(images / f"{case_id}.png"), change(read_image(files[case_id])))
    done = CliRunner().invoke(main, ["locate", str(images), "--points", str(tmp_path / "points.csv")])
    assert done.exit_code == 0, done.output
    assert "1002: bones are dark" in done.output and "1003: the hand is turned by 180 degrees" in done.output
    assert "1001:" not in done.output
    kept = read_found(tmp_path / "points.csv")
    assert [bool(kept[case_id].remarks) for case_id in ("1001", "1002", "1003")] == [False, True, True]
    assert found_file(tmp_path / "points.csv").is_file()
    checked = CliRunner().invoke(main, ["points", "check", str(tmp_path / "points.csv"), "--images", str(images)])
    assert checked.exit_code == 1 and "1001" not in checked.output
    assert "1002: bones are dark" in checked.output and "1003: the hand is turned" in checked.output

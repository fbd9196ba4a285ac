"""The seven points: their table, their validation, their rectangle."""

from __future__ import annotations

import pytest

from bonecaffe.errors import PointsError
from bonecaffe.hands.reference_points import COLUMNS, Rectangle, ReferencePoints, read_points, write_points

HAND = ReferencePoints(
    "9", 400, 500, ((120, 450.5), (180, 460), (330.2, 300), (260, 210), (200, 200), (150, 215), (99.9, 240))
)


def table(tmp_path, *rows):
    path = tmp_path / "points.csv"
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


ROW = "9,400,500,120,450.5,180,460,330.2,300,260,210,200,200,150,215,99.9,240"


def test_points_are_read_and_written(tmp_path):
    """A round trip."""
    path = tmp_path / "points.csv"
    write_points(path, [HAND])
    assert path.read_text().splitlines() == [",".join(COLUMNS), ROW]
    assert read_points(path) == {"9": HAND}


def test_rectangle_is_the_smallest_that_holds_all_points():
    """Whole pixels by floor and ceil, ends included; a margin widens it as far as the image reaches."""
    assert HAND.rectangle() == Rectangle(99, 200, 331, 460)
    assert (HAND.rectangle().width, HAND.rectangle().height) == (233, 261)
    assert HAND.rectangle(0.1) == Rectangle(76, 174, 354, 486)
    assert HAND.rectangle(1.0) == Rectangle(0, 0, 399, 499)


def test_empty_row_is_a_hand_not_marked_yet(tmp_path):
    """Such a row is left out, with or without its size."""
    path = table(tmp_path, ROW, "10,400,500" + "," * 14, "11" + "," * 16)
    assert list(read_points(path)) == ["9"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ROW.replace("99.9,240", ",240"), "missing phalanx5_x"),
        (ROW.replace("450.5", ""), "missing ulna_y"),
        (ROW.replace("450.5", "499.5"), r"ulna at \(120, 499.5\) lies outside the image of 400 x 500"),
        (ROW.replace("330.2", "-1"), "phalanx1 .* outside"),
        (ROW.replace("330.2", "left"), "phalanx1_x is 'left', not a number"),
        (ROW.replace("330.2", "inf"), "not a finite number"),
        (ROW.replace("400", "399.5", 1), "not a number of pixels"),
        ("9,400,500" + ",50" * 14, "too small to be a hand"),
        (ROW[1:], "no id"),
    ],
)
def test_bad_row_is_named(tmp_path, row, said):
    """A missing point, one outside, a word for a number: file, row and point stand in the error."""
    path = table(tmp_path, ROW.replace("9,", "8,", 1), row)
    with pytest.raises(PointsError, match=said) as error:
        read_points(path)
    assert "points.csv: row 3" in str(error.value)


def test_all_bad_rows_are_named_at_once(tmp_path):
    """One run of a command, one list of what to mend."""
    path = table(tmp_path, ROW, ROW, ROW.replace("9,", "8,", 1).replace("450.5", "900"))
    with pytest.raises(PointsError) as error:
        read_points(path)
    assert "row 3 (id 9): the id stands in row 2 already" in str(error.value)
    assert "row 4 (id 8): ulna" in str(error.value)


def test_missing_column_is_named(tmp_path):
    """Not a KeyError."""
    path = tmp_path / "points.csv"
    path.write_text("id,width,height\n")
    with pytest.raises(PointsError, match="no column ulna_x"):
        read_points(path)


def test_real_points_are_valid(real_hands):
    """Hand-marked points on real radiographs pass, sizes included."""
    from bonecaffe.hands.images import find_images, image_size

    images = find_images(real_hands / "images")
    hands = read_points(real_hands / "points.csv")
    assert len(hands) == 64
    for hand in hands.values():
        assert image_size(images[hand.id]) == (hand.width, hand.height)

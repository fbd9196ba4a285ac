"""The seven points: their table, their validation, their rectangle."""

from __future__ import annotations

from dataclasses import replace

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
    """Whole pixels by floor and ceil, ends included; a margin widens it up to the image's border."""
    assert HAND.rectangle() == Rectangle(99, 200, 331, 460)
    assert (HAND.rectangle().width, HAND.rectangle().height) == (233, 261)
    assert HAND.rectangle(0.1) == Rectangle(76, 174, 354, 486)
    assert HAND.rectangle(1.0) == Rectangle(0, 0, 399, 499)


def test_empty_row_is_a_hand_not_marked_yet(tmp_path):
    """Such a row is left out, with or without its size."""
    path = table(tmp_path, ROW, "10,400,500" + "," * 14, "11" + "," * 16)
    assert list(read_points(path)) == ["9"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW.replace("99.9,240", ",240"), "missing phalanx5_x"),
        (ROW.replace("450.5", ""), "missing ulna_y"),
        (ROW.replace("450.5", "499.5"), r"ulna at \(120, 499.5\) is outside the image of 400 x 500"),
        (ROW.replace("330.2", "-1"), "phalanx1 .* outside"),
        (ROW.replace("330.2", "left"), "phalanx1_x is 'left', not a number"),
        (ROW.replace("330.2", "inf"), "phalanx1_x is 'inf', not a number"),
        (ROW.replace("400", "399.5", 1), "not a number of pixels"),
        ("9,400,500" + ",50" * 14, "too small to be a hand"),
        (ROW[1:], "no id"),
    ],
)
def test_bad_row_is_named(tmp_path, row, message):
    """A missing point, one outside, a word for a number: the error names file, row and point."""
    path = table(tmp_path, ROW.replace("9,", "8,", 1), row)
    with pytest.raises(PointsError, match=message) as error:
        read_points(path)
    assert "points.csv: row 3" in str(error.value)


def test_all_bad_rows_are_named_at_once(tmp_path):
    """One run of a command gives one list of everything to fix."""
    path = table(tmp_path, ROW, ROW, ROW.replace("9,", "8,", 1).replace("450.5", "900"))
    with pytest.raises(PointsError) as error:
        read_points(path)
    assert "row 3 (id 9): the id is already in row 2" in str(error.value)
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


def test_points_on_the_border_are_inside():
    """Pixel centres reach from 0 to width - 1 and height - 1; half a pixel beyond is outside."""
    rest = [(20.0, 20.0)] * 5
    for corner in ((0, 0), (99, 0), (0, 49), (99, 49)):
        assert ReferencePoints("1", 100, 50, (corner, (50, 30), *rest)).problems() == []
    for outside in ((-0.5, 0), (0, -0.5), (99.5, 0), (0, 49.5)):
        assert ReferencePoints("1", 100, 50, (outside, (50, 30), *rest)).problems() == [
            f"ulna at ({outside[0]:g}, {outside[1]:g}) is outside the image of 100 x 50"
        ]


def test_all_points_outside_are_named():
    """One by one, and without a remark on the size of their rectangle."""
    hand = ReferencePoints("1", 100, 50, ((100, 1), (1, 50), *[(20.0, 20.0)] * 5))
    assert [problem.split(" at ")[0] for problem in hand.problems()] == ["ulna", "radius"]


@pytest.mark.parametrize(
    ("width", "height", "small"), [(8, 8, False), (7, 8, True), (8, 7, True), (7, 7, True), (9, 30, False)]
)
def test_hand_of_eight_pixels_is_the_smallest(width, height, small):
    """Both ends included: from 10 to 17 are eight."""
    hand = ReferencePoints("1", 100, 100, ((10, 10), (9 + width, 9 + height), *[(11.0, 11.0)] * 5))
    assert (hand.rectangle().width, hand.rectangle().height) == (width, height)
    assert hand.problems() == (
        [f"the rectangle of the points is {width} x {height} pixels, too small to be a hand"] if small else []
    )


def test_margin_by_hand():
    """A tenth of 60 and of 30 on each side: from 20 - 6 to 80 + 6, from 10 - 3 to 40 + 3; at the border it ends."""
    hand = ReferencePoints("1", 100, 50, ((20, 10), (80, 40), *[(50.0, 20.0)] * 5))
    assert hand.rectangle(0.1) == Rectangle(14, 7, 86, 43)
    assert hand.rectangle(1 / 3) == Rectangle(0, 0, 99, 49)
    touching = ReferencePoints("1", 100, 50, ((0.5, 0.5), (98.5, 48.5), *[(50.0, 20.0)] * 5))
    assert touching.rectangle() == Rectangle(0, 0, 99, 49)
    assert touching.rectangle(0.5) == Rectangle(0, 0, 99, 49)
    assert len({touching, HAND, HAND, Rectangle(0, 0, 1, 1), Rectangle(0, 0, 1, 1)}) == 3  # values


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW.replace("9,400", "a/9,400", 1), "the id cannot be the name of an image: it contains a slash"),
        (ROW.replace("9,400", "a\\9,400", 1), "the id cannot be the name of an image: it contains a slash"),
        (ROW.replace("400", "0", 1), "width is '0', not a number of pixels"),
        (ROW.replace("500", "-1", 1), "height is '-1', not a number of pixels"),
        (ROW.replace("500", "499.5", 1), "height is '499.5', not a number of pixels"),
        (ROW.replace("400", "", 1), "missing width"),
        (ROW.replace("400", "nan", 1), "width is 'nan', not a number"),
        (ROW.replace("99.9", "x"), "phalanx5_x is 'x', not a number"),
        (ROW.replace("500", "wide", 1), "height is 'wide', not a number"),
        ("9,400,500,1" + "," * 13, "missing ulna_y, radius_x, radius_y, phalanx1_x"),
    ],
)
def test_fault_of_a_row_is_described(tmp_path, row, message):
    """With the column and its text."""
    with pytest.raises(PointsError, match=message.replace("\\", "\\\\")):
        read_points(table(tmp_path, row))


def test_rows_after_a_bad_one_are_read(tmp_path):
    """A row that cannot be read, a duplicate, one that is not marked: the rest is still read."""
    other = [ROW.replace("9,", f"{number},", 1) for number in range(4)]
    with pytest.raises(PointsError) as error:
        read_points(
            table(
                tmp_path, ROW[1:], other[0], other[0], "7" + "," * 16, "7" + "," * 16, other[1].replace("450.5", "-1")
            )
        )
    named = [line.strip().split(":")[0] for line in str(error.value).splitlines()[1:-1]]
    assert named == ["row 2 (id missing)", "row 4 (id 0)", "row 6 (id 7)", "row 7 (id 1)"]
    empty = "8,400,500" + "," * 14
    assert list(read_points(table(tmp_path, other[2], empty, other[1]))) == ["2", "1"]
    one = ReferencePoints("5", 1, 1, ((0.0, 0.0),) * 7)
    with pytest.raises(PointsError, match="too small to be a hand"):
        read_points(table(tmp_path, "5,1,1" + ",0" * 14))
    assert "outside" not in str(one.problems())


def test_guesses_are_read_only_on_request(tmp_path):
    """The table of everything that was found has verdicts; it is not a table of marked points."""
    path = tmp_path / "found.csv"
    path.write_text(",".join([*COLUMNS, "verdict"]) + f"\n{ROW},uncertain\n")
    with pytest.raises(PointsError, match="these are not marked points"):
        read_points(path)
    assert read_points(path, guesses=True) == {"9": HAND}


def test_table_is_written_into_a_new_folder(tmp_path):
    """To a tenth of a pixel; whole ones without a point."""
    hand = ReferencePoints("a", 10, 20, ((1, 2.04), (3.06, 4.96), *[(5.5, 6.0)] * 5))
    write_points(tmp_path / "new" / "p.csv", [hand])
    assert (tmp_path / "new" / "p.csv").read_text().splitlines()[1] == "a,10,20,1,2,3.1,5" + ",5.5,6" * 5


def test_id_need_not_be_a_number(tmp_path):
    """It is an image's name."""
    assert read_points(table(tmp_path, ROW.replace("9,", "left hand,", 1))) == {
        "left hand": replace(HAND, id="left hand")
    }


def test_points_are_seven_pairs():
    """A caller's mistake is not silently cut to fit."""
    with pytest.raises(ValueError, match="shorter"):
        ReferencePoints("1", 100, 100, HAND.points[:6]).problems()
    with pytest.raises(ValueError, match="shorter|longer"):
        ReferencePoints("1", 100, 100, ((1.0, 2.0, 3.0), *HAND.points[1:])).rectangle()


@pytest.mark.parametrize("text", ["1_20", "+120", "1.2e2", "\uff11\uff12\uff10", "nan", '"120,5"'])
def test_coordinate_that_only_looks_like_a_number_is_refused(tmp_path, text):
    """`float` accepts most of these."""
    with pytest.raises(PointsError, match=r"row 2 \(id 9\): ulna_x is '.*', not a number"):
        read_points(table(tmp_path, ROW.replace("120", text, 1)))


def test_side_that_no_image_has(tmp_path):
    """A million pixels is the limit."""
    assert read_points(table(tmp_path, ROW.replace("400", "1000000", 1)))["9"].width == 1_000_000
    with pytest.raises(PointsError, match="width is '1000001', not a number of pixels"):
        read_points(table(tmp_path, ROW.replace("400", "1000001", 1)))


def test_smallest_hand_is_judged_as_it_is_written(tmp_path):
    """To a tenth of a pixel: a table that was read can be written and read again."""
    fine = "9,400,500,10.04,20,17.01,30" + ",12,25" * 5
    hands = read_points(table(tmp_path, fine))
    write_points(tmp_path / "again.csv", hands.values())
    assert list(read_points(tmp_path / "again.csv")) == ["9"]
    with pytest.raises(PointsError, match="7 x 11 pixels, too small"):
        read_points(table(tmp_path, fine.replace("17.01", "16.04")))
    with pytest.raises(PointsError, match="21 x 7 pixels, too small"):
        read_points(table(tmp_path, "9,400,500,20,10.04,40,16.04" + ",30,12" * 5))
    for tenths in ("10.6,20,16.6,30" + ",12,25" * 5, "20,10.6,40,16.6" + ",30,12" * 5):  # from 10 to 17 are eight
        assert list(read_points(table(tmp_path, f"9,400,500,{tenths}"))) == ["9"]

"""Other tools' files: read correctly or refused with a reason; written and read back; two markings compared."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, SAMPLE
from foreign import HANDS, WRITERS, voc

from bonecaffe.cli import main
from bonecaffe.errors import PointsError
from bonecaffe.hands import agreement, formats, plausibility
from bonecaffe.hands.fingers import order
from bonecaffe.hands.formats import coco, labelme, names
from bonecaffe.hands.reference_points import ReferencePoints, read_points, write_points

VOC_BOXES = REPOSITORY.parent / "shared" / "voc_boxes"


def close(a: ReferencePoints, b: ReferencePoints, within: float = 0.06) -> bool:
    pairs = zip(a.points, b.points, strict=True)
    return (a.id, a.width, a.height) == (b.id, b.width, b.height) and all(
        abs(p[i] - q[i]) <= within for p, q in pairs for i in (0, 1)
    )


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_points(tmp_path, name):
    """Each of twelve hands, through each format, comes back unchanged."""
    for hand in HANDS.values():
        path = tmp_path / f"{hand.id}_{name}"
        path.write_text(WRITERS[name](hand))
        (found,) = formats.read([path]).hands
        assert close(found, hand), (found, hand)


def test_fingers_are_distinguished_in_any_position():
    """Turned by any angle, mirrored, shuffled: the same order."""
    import math

    dice = random.Random(1)
    for hand in HANDS.values():
        for _ in range(20):
            angle, mirror = dice.uniform(0, 2 * math.pi), dice.choice((1, -1))

            def turn(point, angle=angle, mirror=mirror):
                x, y = point[0] * mirror, point[1]
                return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)

            ulna, radius, *joints = map(turn, hand.points)
            muddled = joints.copy()
            dice.shuffle(muddled)
            assert order(ulna, radius, muddled) == joints


def test_swapped_forearm_is_noticed(tmp_path):
    """Radius and ulna the wrong way round: refused, not read as a hand with its little finger for a thumb."""
    hand = next(iter(HANDS.values()))
    ulna, radius, *joints = hand.points
    with pytest.raises(ValueError, match="swapped"):
        order(radius, ulna, joints)
    path = tmp_path / "a.xml"
    path.write_text(voc(hand).replace("Ulna", "X").replace("Radius", "Ulna").replace("X", "Radius"))
    with pytest.raises(PointsError, match=r"a\.xml: .*swapped"):
        formats.read([path])


def test_public_boxes_are_read():
    """The twelve public VOC files next to the project: seven points each, thumb on the radius' side."""
    if not VOC_BOXES.is_dir():
        pytest.skip("no VOC files next to the project")
    hands = formats.read(sorted(VOC_BOXES.glob("*.xml"))).hands
    assert len(hands) == 12
    for hand in hands:
        ulna, radius, thumb, *_, little = hand.points
        assert abs(thumb[0] - radius[0]) < abs(thumb[0] - ulna[0])
        assert abs(little[0] - ulna[0]) < abs(little[0] - radius[0])
        index = hand.points[3]
        across = [
            (x - index[0]) * (little[0] - index[0]) + (y - index[1]) * (little[1] - index[1])
            for x, y in hand.points[3:]
        ]
        assert across == sorted(across) and min(b - a for a, b in itertools.pairwise(across)) > 0.1 * across[-1]


def test_incomplete_hands_can_be_left_out(tmp_path):
    """One box or point missing: an error, or left out on request; the others are read, in a file and among files."""
    a, b, c = itertools.islice(HANDS.values(), 3)
    (tmp_path / "a.xml").write_text(voc(a))
    (tmp_path / "b.xml").write_text(voc(b).replace(">Ulna<", ">Wrist<"))
    whole, partial = coco.tree([c]), coco.tree([b])
    partial["annotations"][0]["keypoints"][2] = 0
    for part in ("images", "annotations"):
        whole[part].insert(0, {**partial[part][0], **({"id": 7} if part == "images" else {"id": 7, "image_id": 7})})
    (tmp_path / "c.json").write_text(json.dumps(whole))
    out = tmp_path / "points.csv"
    refused = CliRunner().invoke(main, ["points", "import", str(tmp_path), "--out", str(out)])
    assert refused.exit_code == 1 and "b.xml" in refused.output and "skip-incomplete" in refused.output
    assert set(read_points(out)) == {a.id, c.id}
    out.unlink()
    done = CliRunner().invoke(main, ["points", "import", str(tmp_path), "--out", str(out), "--skip-incomplete"])
    assert done.exit_code == 0, done.output
    assert (
        "left out: " in done.output
        and f"b.xml: image {b.id}.png: 0 boxes named ulna" in done.output
        and "not marked: ulna" in done.output
    )
    assert set(read_points(out)) == {a.id, c.id}


@pytest.mark.parametrize(
    ("address", "stem"),
    [
        ("/data/local-files/?d=set/10%2001.png", "10 01"),
        ("/data/upload/3/1a2b3c4d-1001.png", "1001"),
        ("https://films.example/a%20b/1001.png?token=x.y", "1001"),
        ("C:\\films\\1001.png", "1001"),
        ("films/5 ü#%41.png", "5 ü#%41"),
    ],
)
def test_names_of_images_in_label_studio(address, stem):
    """Local storage, uploads, the web, another system's paths."""
    assert names.guess(address) == stem


def test_an_id_with_a_path_in_it_is_refused(tmp_path):
    """A foreign table cannot cause files to be written outside the folder that was named."""
    table = tmp_path / "points.csv"
    hand = next(iter(HANDS.values()))
    write_points(table, [ReferencePoints("../../x", hand.width, hand.height, hand.points)])
    done = CliRunner().invoke(
        main, ["points", "export", str(table), "--format", "labelme", "--out", str(tmp_path / "a" / "b")]
    )
    assert done.exit_code == 1 and "without folder" in done.output and not (tmp_path / "x.json").exists()


def test_marked_in_another_size_is_scaled(tmp_path):
    """Annotated at half the size: scaled to the image. Another shape, or no image: refused."""
    hand = next(iter(HANDS.values()))
    half = ReferencePoints(hand.id, hand.width // 2, hand.height // 2, tuple((x / 2, y / 2) for x, y in hand.points))
    path = tmp_path / "a.json"
    path.write_text(json.dumps(labelme.tree(half)))
    (found,) = formats.read([path], SAMPLE / "images").hands
    assert close(found, hand, within=1.0)
    path.write_text(json.dumps(labelme.tree(ReferencePoints(hand.id, hand.width, hand.height // 2, half.points))))
    with pytest.raises(PointsError, match="a different shape"):
        formats.read([path], SAMPLE / "images")
    path.write_text(json.dumps({**labelme.tree(half), "imagePath": "nowhere.png"}))
    with pytest.raises(PointsError, match=r"image nowhere\.png: no such image"):
        formats.read([path], SAMPLE / "images")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("phalanx3", "carpal"), "not marked: phalanx3"),
        (lambda t: t.replace("phalanx3", "phalanx4"), "phalanx4 is marked twice"),
        (lambda t: t.replace('"imageWidth": ', '"imageWidth": -'), "is impossible"),
        (lambda t: "{", "readable as JSON"),
        (lambda t: "[" * 100000, "readable as JSON"),
        (lambda t: "{}", "an unknown format"),
        (lambda t: "<a/>", "XML of <a>"),
        (lambda t: '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "document type"),
        (lambda t: "<annotation>", "readable as XML"),
        (lambda t: '{"shapes": 5, "imagePath": "a.png"}', "'shapes' is 5, not a list"),
    ],
)
def test_faults_are_reported(tmp_path, change, message):
    """File, image and reason; nothing written."""
    path, out = tmp_path / "a.json", tmp_path / "points.csv"
    path.write_text(change(json.dumps(labelme.tree(next(iter(HANDS.values()))))))
    done = CliRunner().invoke(main, ["points", "import", str(path), "--out", str(out)])
    assert done.exit_code == 1 and message in done.output and "a.json" in done.output, done.output
    assert not out.exists()


def test_out_and_in_again_by_command(tmp_path):
    """export to each format, import, compare: no difference; nothing is written over."""
    for kind in ("coco", "labelme", "csv"):
        out, back = tmp_path / f"{kind}.out", tmp_path / f"{kind}.csv"
        out = tmp_path / ("coco.json" if kind == "coco" else "tidy.csv" if kind == "csv" else "labelme")
        export = ["points", "export", str(SAMPLE / "points.csv"), "--format", kind, "--out", str(out)]
        assert CliRunner().invoke(main, export).exit_code == 0
        assert CliRunner().invoke(main, export).exit_code == 1
        done = CliRunner().invoke(main, ["points", "import", str(out), "--out", str(back)])
        assert done.exit_code == 0 and "12 hands" in done.output, done.output
        assert read_points(back) == HANDS
        done = CliRunner().invoke(main, ["points", "compare", str(SAMPLE / "points.csv"), str(back)])
        assert "12 hands" in done.output and "median 1.000, smallest 1.000" in done.output
    assert CliRunner().invoke(main, ["points", "import", str(out), "--out", str(back)]).exit_code == 1


def test_differences_worked_out_by_hand(tmp_path):
    """One point moved by (3, 4): five pixels, so much of the palm; a rectangle a tenth wider."""
    points = ((10.0, 110.0), (30.0, 110.0), (109.0, 60.0), (60.0, 12.0), (20.0, 10.0), (30.0, 15.0), (11.0, 30.0))
    a = ReferencePoints("1", 200, 200, points)
    b = ReferencePoints("1", 200, 200, (*points[:5], (33.0, 19.0), points[6]))
    (found,) = agreement.compare({"1": a}, {"1": b, "2": b})
    assert agreement.palm(a) == 100
    assert found.pixels == (0, 0, 0, 0, 0, 5.0, 0) and found.percent[5] == 5.0 and found.iou == 1
    c = ReferencePoints("1", 200, 200, (*points[:2], (119.0, 60.0), *points[3:]))
    assert agreement.compare({"1": a}, {"1": c})[0].iou == pytest.approx(100 / 110)
    with pytest.raises(PointsError, match="no hand is marked in both"):
        agreement.compare({"1": a}, {"2": b})
    with pytest.raises(PointsError, match="the same image"):
        agreement.compare({"1": a}, {"1": ReferencePoints("1", 300, 200, points)})
    write_points(tmp_path / "a.csv", [a])
    write_points(tmp_path / "b.csv", [b])
    cv2.imwrite(str(tmp_path / "1.png"), np.full((200, 200), 60, np.uint8))
    sheet = ["--images", str(tmp_path), "--sheet", str(tmp_path / "sheet.png")]
    drawn = CliRunner().invoke(main, ["points", "compare", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), *sheet])
    assert drawn.exit_code == 0, drawn.output
    blue, _, red = np.moveaxis(cv2.imread(str(tmp_path / "sheet.png")).astype(int), 2, 0)
    assert ((red - blue) > 150).sum() > 50 and ((blue - red) > 100).sum() > 50  # A's points and B's
    done = CliRunner().invoke(main, ["points", "compare", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--json"])
    assert json.loads(done.output)["percent"][5] == 5.0


def test_folder_is_read_whole(tmp_path):
    """A folder of files in several formats; an image with two markings is refused; an empty folder too."""
    hands = list(HANDS.values())
    (tmp_path / "a.xml").write_text(voc(hands[0]))
    (tmp_path / "b.json").write_text(json.dumps(coco.tree(hands[1:4])))
    (tmp_path / "notes.txt").write_text("x")
    assert [hand.id for hand in formats.read([tmp_path]).hands] == sorted(hand.id for hand in hands[:4])
    (tmp_path / "c.xml").write_text(voc(hands[2]))
    again = formats.read([tmp_path])
    assert len(again.hands) == 4 and not again.errors and again.counts() == "1 identical to one already read"
    (tmp_path / "d.json").write_text(json.dumps(labelme.tree(replace(hands[2], points=hands[3].points))))
    twice = formats.read([tmp_path])
    assert hands[2].id not in [hand.id for hand in twice.hands] and len(twice.hands) == 3
    assert len(twice.errors) == 3 and "also in" in str(twice.errors[0])
    with pytest.raises(PointsError, match="no annotation files"):
        formats.read([Path(tmp_path / "empty").mkdir() or tmp_path / "empty"])
    with pytest.raises(PointsError, match="no such file"):
        formats.read([tmp_path / "nowhere"])


def test_doubts_are_listed_with_a_sheet(tmp_path):
    """Each kind of implausible marking is named; good hands are not; the sheet shows the doubtful ones."""
    import cv2

    assert plausibility.all_doubts(HANDS) == {}
    ids = list(HANDS)
    ulna, radius, *joints = HANDS[ids[0]].points

    def changed(case_id, points):
        return replace(HANDS[case_id], points=tuple(points))

    strange = {
        ids[0]: (changed(ids[0], [ulna, radius, *joints[:2], joints[3], joints[2], joints[4]]), "not in order"),
        ids[1]: (
            changed(ids[1], [HANDS[ids[1]].points[1], HANDS[ids[1]].points[0], *HANDS[ids[1]].points[2:]]),
            "swapped",
        ),
        ids[2]: (changed(ids[2], [*HANDS[ids[2]].points[:2], (299, 200), *HANDS[ids[2]].points[3:]]), "border"),
        ids[3]: (
            changed(ids[3], [*HANDS[ids[3]].points[:5], HANDS[ids[3]].points[4], HANDS[ids[3]].points[6]]),
            "same place",
        ),
        ids[4]: (replace(HANDS[ids[4]], width=4000, height=4000), "palm"),
        ids[5]: (changed(ids[5], [(x, 200 + (y - 200) * 0.3) for x, y in HANDS[ids[5]].points]), "times as wide"),
        ids[7]: (changed(ids[7], HANDS[ids[6]].points), f"points as id {ids[6]}"),
    }
    hands = {**HANDS, **{case_id: hand for case_id, (hand, _) in strange.items()}}
    found = plausibility.all_doubts(hands)
    assert set(found) == set(strange)
    for case_id, (_, message) in strange.items():
        assert message in "; ".join(found[case_id])
    write_points(tmp_path / "p.csv", hands.values())
    sheet = tmp_path / "sheet.png"
    command = ["points", "check", str(tmp_path / "p.csv"), "--images", str(SAMPLE / "images"), "--sheet", str(sheet)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and "12 hands, 7 in doubt" in done.output
    assert cv2.imread(str(sheet)).shape == (2 * 380, 5 * 328, 3)
    assert CliRunner().invoke(main, ["points", "check", str(SAMPLE / "points.csv")]).exit_code == 0

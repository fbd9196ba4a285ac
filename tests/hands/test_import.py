"""Other tools' files in practice: odd but legal ones are read correctly, faulty hands named, other hands kept."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import PIL.Image
import pytest
from click.testing import CliRunner
from foreign import HANDS, cvat, label_studio, voc

from bonecaffe.cli import main
from bonecaffe.errors import PointsError
from bonecaffe.hands import formats
from bonecaffe.hands.formats import coco, labelme, names, placing
from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints, read_points

A, B, C = itertools.islice(HANDS.values(), 3)
POINTS = (
    (250.0, 580.0),
    (310.0, 566.0),
    (395.0, 346.0),
    (283.0, 268.0),
    (225.0, 284.0),
    (180.0, 325.0),
    (146.0, 365.0),
)


def hand(hand_id: str, width: int = 500, height: int = 650) -> ReferencePoints:
    return ReferencePoints(hand_id, width, height, POINTS)


def write(path: Path, content: object, **how: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), **how)
    return path


def images(folder: Path, *files: str, size: tuple[int, int] = (500, 650), orientation: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    exif = PIL.Image.Exif()
    exif[274] = orientation
    for name in files:
        suffix = Path(name).suffix.lower()
        PIL.Image.new("L", size, 60).save(folder / name, "JPEG" if suffix in (".jpg", ".jpeg") else "PNG", exif=exif)
    return folder


def ids(imported: formats.Imported) -> list[str]:
    return [hand.id for hand in imported.hands]


def command(*arguments: object):
    return CliRunner().invoke(main, ["points", *map(str, arguments)])


# ---- a faulty hand does not affect the others --------------------------------------------------------------------


def three(kind: str) -> tuple[object, object]:
    """Three hands in one file, and the file with a fault in the second."""
    if kind == "coco":
        good, bad = coco.tree([A, B, C]), coco.tree([A, B, C])
        bad["annotations"][1]["keypoints"][0] = "x"
    elif kind == "studio":
        good, bad = ([json.loads(label_studio(one))[0] for one in (A, B, C)] for _ in range(2))
        bad[1]["annotations"][0]["result"][0]["value"]["x"] = None
    elif kind == "cvat":
        parts = [cvat(one).removeprefix("<annotations>").removesuffix("</annotations>") for one in (A, B, C)]
        good = f"<annotations>{''.join(parts)}</annotations>"
        parts[1] = parts[1].replace('label="ulna" outside="0" points="', 'label="ulna" outside="0" points="x')
        bad = f"<annotations>{''.join(parts)}</annotations>"
    else:
        header = ",".join(["id", "width", "height", *(f"{name}_{axis}" for name in POINT_NAMES for axis in "xy")])
        rows = [[one.id, one.width, one.height, *itertools.chain(*one.points)] for one in (A, B, C)]
        good = "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"
        rows[1][3] = "1_2"
        bad = "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"
    return good, bad


@pytest.mark.parametrize(
    ("kind", "name"), [("coco", "a.json"), ("studio", "a.json"), ("cvat", "a.xml"), ("csv", "a.csv")]
)
def test_a_faulty_hand_does_not_affect_the_others(tmp_path, kind, name):
    """The other hands of the file and of other files are written; the fault is reported with file and place; exit 1."""
    good, bad = three(kind)
    other = hand("other")
    write(tmp_path / "in" / "b.json", labelme.tree(other))
    write(tmp_path / "in" / name, good)
    assert ids(formats.read([tmp_path / "in"])) == sorted([A.id, B.id, C.id, "other"])
    write(tmp_path / "in" / name, bad)
    write(tmp_path / "in" / "c.json", "{")
    done = command("import", tmp_path / "in", "--out", tmp_path / "points.csv")
    assert done.exit_code == 1 and "Traceback" not in done.output, done.output
    assert sorted(read_points(tmp_path / "points.csv")) == sorted([A.id, C.id, "other"])
    (line,) = [line for line in done.output.splitlines() if line.startswith("not imported: ") and name in line]
    assert B.id in line and "is not a number" in line
    assert "c.json: neither XML nor readable as JSON" in done.output and "2 could not be imported" in done.output


def test_when_no_hand_is_left_nothing_is_written(tmp_path):
    """An empty table is of no use; the errors are the message."""
    done = command("import", write(tmp_path / "a.json", "{"), "--out", tmp_path / "points.csv")
    assert done.exit_code == 1 and "Nothing was written" in done.output and not (tmp_path / "points.csv").exists()
    empty = write(tmp_path / "b.json", [{"data": {"image": "1.png"}, "annotations": []}])
    with pytest.raises(PointsError, match=r"b\.json: no marked hands \(1 not marked\)"):
        formats.read([empty])


def test_two_markings_of_one_image_are_refused(tmp_path):
    """In one file, or in two: it is unclear which is meant. Equal ones, as in overlapping exports, count as one."""
    moved = ReferencePoints(A.id, A.width, A.height, tuple((x + 5, y) for x, y in A.points))
    both = write(tmp_path / "a.json", coco.tree([A, moved, B]))
    found = formats.read([both])
    assert (
        ids(found) == [B.id] and [f"image {A.id} is marked 2 times" in str(one) for one in found.errors] == [True] * 2
    )
    first, second = write(tmp_path / "b.json", coco.tree([A, B])), write(tmp_path / "c.xml", voc(A))
    again = formats.read([first, second, first])
    assert ids(again) == [A.id, B.id] and not again.errors and again.counts() == "1 identical to one already read"


# ---- COCO --------------------------------------------------------------------------------------------------------


def test_coco_entries_without_a_hand_are_counted(tmp_path):
    """Boxes, annotations with nothing marked, other categories, images without annotations: counted."""
    tree = coco.tree([A, B])
    tree["categories"].append({"id": 2, "name": "person", "keypoints": ["nose", "left_eye"]})
    tree["images"].append({"id": 3, "file_name": "c.png", "width": 5, "height": 5})
    tree["annotations"] += [
        {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]},
        {"id": 8, "image_id": 1, "category_id": 2, "keypoints": [1, 2, 2, 3, 4, 2]},
        {"id": 9, "image_id": 2, "category_id": 1, "keypoints": [0, 0, 0] * 7},
        {"id": 10, "image_id": 2, "category_id": 1, "keypoints": []},
    ]
    done = command("import", write(tmp_path / "a.json", tree), "--out", tmp_path / "points.csv")
    assert done.exit_code == 0 and sorted(read_points(tmp_path / "points.csv")) == sorted([A.id, B.id]), done.output
    for counted in ("2 without key points", "1 with key points of another category (nose, left_eye)", "2 not marked"):
        assert counted in done.output


def test_coco_ids_that_several_images_have(tmp_path):
    """The annotation could belong to either: refused, naming both. Others are read; an equal entry is the same."""
    tree = coco.tree([A, B])
    tree["images"] += [{**tree["images"][0], "file_name": "else.png"}, tree["images"][1]]
    found = formats.read([write(tmp_path / "a.json", tree)])
    assert ids(found) == [B.id]
    (error,) = found.errors
    assert f"{A.id}.png" in str(error) and "else.png" in str(error)
    tree = coco.tree([A, B])
    tree["categories"].append({"id": 1, "name": "mirrored", "keypoints": list(reversed(POINT_NAMES))})
    with pytest.raises(PointsError, match="two categories with different key points have the id 1"):
        formats.read([write(tmp_path / "b.json", tree)])


def test_coco_ids_may_be_texts_in_one_place(tmp_path):
    """Some tools put quotation marks around one of the two."""
    tree = coco.tree([A])
    tree["annotations"][0] |= {"image_id": "1", "category_id": "1"}
    assert ids(formats.read([write(tmp_path / "a.json", tree)])) == [A.id]


def test_coco_of_label_studio_loses_its_prefix(tmp_path):
    """Its export names the tool; another tool's name is unchanged, unless only the name without prefix exists."""
    tree = coco.tree([hand("1001")], {"1001": "images/0a1b2c3d-1001.png"})
    path = write(tmp_path / "a.json", tree)
    assert ids(formats.read([path])) == ["0a1b2c3d-1001"]
    assert ids(formats.read([path], images(tmp_path / "images", "1001.png"))) == ["1001"]
    write(path, {**tree, "info": {"contributor": "Label Studio"}})
    assert ids(formats.read([path])) == ["1001"]


# ---- Label Studio ------------------------------------------------------------------------------------------------


def task(one: ReferencePoints, **changes: object) -> dict:
    made = json.loads(label_studio(one))[0]
    made["data"] = changes.pop("data", made["data"])
    for result in made["annotations"][0]["result"]:
        result.update({"to_name": "image", **changes})
    return made


def test_label_studio_uses_the_last_annotation_that_was_not_cancelled(tmp_path):
    """Marked, then skipped: marked. Marked twice: the last. What is left out is counted."""
    moved = ReferencePoints(B.id, B.width, B.height, tuple((x + 5, y) for x, y in B.points))
    cancelled = {"was_cancelled": True, "result": []}
    first, second, third = task(A), task(moved), task(C)
    first["annotations"].append(cancelled)
    second["annotations"] += task(B)["annotations"]
    third["annotations"] = [{**third["annotations"][0], "was_cancelled": True}]
    unmarked = {"data": {"image": "d.png"}, "annotations": [{"result": []}]}
    predicted = {"data": {"image": "e.png"}, "annotations": [], "predictions": [{"result": []}]}
    path = write(tmp_path / "a.json", [first, second, third, unmarked, predicted])
    found = formats.read([path])
    assert ids(found) == sorted([A.id, B.id]) and not found.errors
    (hand_b,) = [one for one in found.hands if one.id == B.id]
    assert abs(hand_b.points[0][0] - B.points[0][0]) < 0.1
    counted = (
        "2 cancelled, 1 replaced by a later annotation of the same task, 1 not marked, 1 only predicted, not marked"
    )
    assert found.counts() == counted


@pytest.mark.parametrize(
    ("data", "to_name", "expected"),
    [
        ({"xray": "1001.png"}, "image", "1001"),
        ({"xray": "1001.png", "image": "other.png"}, "xray", "1001"),
        ({"xray": "other.png", "image": "1001.png"}, "img", "1001"),
        ({"patient": "7", "age": "12", "film": "films/1001.png?v=2"}, "x", "1001"),
        ({"patient": "7", "film": "s3://films/1001"}, "x", "1001"),
        ({"film": "a/1001.png", "thumbnail": "b/1001.png"}, "x", "1001"),
        ({"left": "1001.png", "right": "1002.png"}, "x", "its image could be any of left, right"),
        ({"age": 12}, "x", "no image in its 'data'"),
    ],
)
def test_label_studio_finds_the_image_among_the_data(tmp_path, data, to_name, expected):
    """By the labelling's to_name, otherwise by convention, otherwise the only one; never one of several."""
    path = write(tmp_path / "a.json", [task(B), task(hand("1001"), data=data, to_name=to_name)])
    found = formats.read([path])
    if expected == "1001":
        assert ids(found) == sorted(["1001", B.id])
    else:
        assert ids(found) == [B.id] and expected in str(found.errors[0])


def test_label_studio_sizes_and_rotation(tmp_path):
    """Percentages need no size where the image has one. On an image turned in the tool, the points are elsewhere."""
    unsized = task(hand("1001"))
    for result in unsized["annotations"][0]["result"]:
        result["original_width"] = result["original_height"] = 0
    path = write(tmp_path / "a.json", [unsized, task(A, image_rotation=90)])
    with pytest.raises(PointsError, match=r"(?s)give the folder of images with --images.*turned by 90°|--images"):
        formats.read([path])
    folder = images(tmp_path / "images", "1001.png", f"{A.id}.png")
    found = formats.read([path], folder)
    assert ids(found) == ["1001"] and found.hands[0].points == POINTS and "turned by 90°" in str(found.errors[0])


def test_label_studio_forms_that_are_read_or_named(tmp_path):
    """One task, an old version's completions; JSON-MIN is named with the remedy."""
    assert ids(formats.read([write(tmp_path / "a.json", task(A))])) == [A.id]
    old = task(B)
    old["completions"] = old.pop("annotations")
    assert ids(formats.read([write(tmp_path / "b.json", [old])])) == [B.id]
    with pytest.raises(PointsError, match="not as JSON-MIN"):
        formats.read([write(tmp_path / "c.json", [{"image": "1.png", "kp": []}])])


# ---- VOC, labelme, CVAT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["1.2.840.113", "1.2.840.113.png", "C:\\films\\1.2.840.113.JPG", "1.2.840.113.dcm"])
def test_dots_in_names_are_no_suffixes(tmp_path, name):
    """Only an image's suffix is removed, with and without the folder of images."""
    one = hand("1.2.840.113")
    path = write(tmp_path / "a.xml", voc(one).replace("1.2.840.113.png", name))
    folder = images(tmp_path / "images", "1.2.840.png", "1.2.840.113.jpg")
    assert ids(formats.read([path])) == ids(formats.read([path], folder)) == [one.id]


def test_a_file_that_names_no_image_has_the_images_name(tmp_path):
    """VOC and labelme have one file per image, with the same name."""
    path = write(tmp_path / "1001.xml", voc(hand("x")).replace("x.png", " "))
    assert ids(formats.read([path])) == ["1001"]
    path = write(tmp_path / "1002.json", {**labelme.tree(hand("x")), "imagePath": None})
    assert ids(formats.read([path])) == ["1002"]


@pytest.mark.parametrize("form", ["voc", "labelme", "labelme without", "cvat", "coco"])
def test_sizes_come_from_the_images(tmp_path, form):
    """A size of 0, or none: read with --images; without, an error that names the remedy."""
    one = hand("1001")
    if form == "voc":
        content: object = voc(one).replace(">500<", ">0<").replace(">650<", ">0<")
    elif form == "cvat":
        content = cvat(one).replace('width="500" height="650"', "")
    elif form == "coco":
        content = coco.tree([one])
        content["images"][0] |= {"width": None, "height": 0}
    else:
        content = {**labelme.tree(one), "imageWidth": None}
        if form == "labelme without":
            del content["imageWidth"], content["imageHeight"]
    path = write(tmp_path / ("a.xml" if form in ("voc", "cvat") else "a.json"), content)
    with pytest.raises(PointsError, match="Give the folder of images with --images"):
        formats.read([path])
    (found,) = formats.read([path], images(tmp_path / "images", "1001.png")).hands
    assert (found.width, found.height, found.points) == (500, 650, POINTS)


def test_boxes_of_other_bones_may_be_faulty(tmp_path):
    """A wrist without a box does not matter for the seven points."""
    broken = voc(A).replace("<object>", "<object><name>Wrist</name></object><object>", 1)
    assert ids(formats.read([write(tmp_path / "a.xml", broken)])) == [A.id]


def test_cvat_points_that_are_outside_are_not_marked(tmp_path):
    """Single ones, and a whole hand in one."""
    path = write(tmp_path / "a.xml", cvat(A).replace('label="ulna" outside="0"', 'label="ulna" outside="1"'))
    with pytest.raises(PointsError, match="not marked: ulna"):
        formats.read([path])
    pairs = ";".join(f"{x},{y}" for x, y in A.points)
    hidden = f'<image name="a.png" width="9" height="9"><points label="hand" outside="1" points="{pairs}"/></image>'
    write(path, f"<annotations>{hidden}</annotations>")
    with pytest.raises(PointsError, match=r"no marked hands \(1 not marked\)"):
        formats.read([path])


def test_cvat_two_hands_on_one_image_are_an_error(tmp_path):
    """Two skeletons, and two sets of single points: not one hand out of both."""
    moved = ReferencePoints(A.id, A.width, A.height, tuple((x + 5, y) for x, y in A.points))
    skeletons = [cvat(one).split("<skeleton")[1].split("</skeleton>")[0] for one in (A, moved)]
    head = f'<image name="{A.id}.png" width="{A.width}" height="{A.height}">'
    for tag in ("skeleton", "g"):
        both = "".join(f"<{tag}{inner}</{tag}>" for inner in skeletons)
        other = cvat(B).removeprefix("<annotations>")
        found = formats.read([write(tmp_path / "a.xml", f"<annotations>{head}{both}</image>{other}")])
        assert ids(found) == [B.id] and ("marked 2 times" if tag == "skeleton" else "marked twice") in str(found.errors)
    with pytest.raises(PointsError, match='Export it as "CVAT for images"'):
        formats.read([write(tmp_path / "b.xml", "<annotations><track><points/></track></annotations>")])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("declared", ["", '<?xml version="1.0"?>', '<?xml version="1.0" encoding="utf-8"?>'])
def test_xml_and_json_in_every_unicode_encoding(tmp_path, encoding, declared):
    """With and without byte order mark, whatever the file declares: a converter may leave the declaration unchanged."""
    one = hand("손1001")
    for name, text in (("a.xml", declared + cvat(one)), ("b.xml", declared + voc(one))):
        assert ids(formats.read([write(tmp_path / name, text, encoding=encoding)])) == [one.id]
    path = write(tmp_path / "a.json", json.dumps(labelme.tree(one), ensure_ascii=False), encoding=encoding)
    assert ids(formats.read([path])) == [one.id]


def test_xml_in_the_encoding_that_it_declares(tmp_path):
    """Latin-1, and the encodings of Korea, China and Japan, which the parser does not know by itself."""
    for encoding, name in (("iso-8859-1", "é"), ("euc-kr", "손"), ("gb18030", "手"), ("shift_jis", "手")):
        text = f'<?xml version="1.0" encoding="{encoding}"?>{voc(hand(name))}'
        assert ids(formats.read([write(tmp_path / "a.xml", text, encoding=encoding)])) == [name]
    with pytest.raises(PointsError, match="not readable as XML"):
        formats.read([write(tmp_path / "a.xml", f'<?xml version="1.0" encoding="nonsense"?>{voc(A)}')])


# ---- names, borders, ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "files", "expected"),
    [
        ("/data/local-files/?d=hands/20180101-1.png", ["20180101-1.png", "1.png"], "20180101-1"),
        ("/data/local-files/?d=hands/20180101-1.png", ["1.png"], None),  # another image; a date is no prefix
        ("20180101-1.png", ["1.png"], None),
        ("/data/local-files/?d=hands/0a1b2c3d-1.png", ["1.png"], None),
        ("hands/0a1b2c3d-1.png", ["1.png"], "1"),
        ("/data/upload/1/20180101-1.png", ["1.png"], "1"),
        ("/data/upload/1/0a1b2c3d-1.png", ["1.png"], "1"),
        ("/data/upload/1/0a1b2c3d-1.png", ["0a1b2c3d-1.jpg", "1.png"], "0a1b2c3d-1"),
        ("a/1001", ["1001.JPG"], "1001"),
        ("1001.png", ["1001.jpg"], "1001"),
        ("1001.png", ["1001.png.jpg"], "1001.png"),
        ("cafe\u0301.png", ["caf\u00e9.png"], "caf\u00e9"),
        ("http://[", ["1.png"], None),
    ],
)
def test_an_image_that_exists_decides_what_a_name_means(tmp_path, address, files, expected):
    """Prefix, suffix and dots are guessed only where no image has the whole name."""
    from bonecaffe.hands.images import find_images

    known = names.ImageNames(find_images(images(tmp_path / "images", *files)))
    assert known.find(address) == expected


@pytest.mark.parametrize("form", ["cvat", "labelme", "coco", "studio"])
@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_points_on_the_far_border_are_moved_in(tmp_path, form, edge):
    """0 and the width inclusive are legal in other tools; more than a pixel out is that hand's error."""
    for beyond in (0.0, 1.5):
        x, y = (500 + beyond, 650 + beyond) if edge else (-beyond, -beyond)
        one = ReferencePoints("1001", 500, 650, ((x, y), *POINTS[1:]))
        content = {
            "cvat": lambda one=one: cvat(one),
            "labelme": lambda one=one: labelme.tree(one),
            "coco": lambda: coco.tree([hand("1001")]),
            "studio": lambda one=one: label_studio(one),
        }[form]()
        if form == "coco":
            content["annotations"][0]["keypoints"][:2] = [x, y]
        path = write(tmp_path / ("a.xml" if form == "cvat" else "a.json"), content)
        other = write(tmp_path / "b.json", labelme.tree(hand("other")))
        found = formats.read([path, other])
        if beyond:
            assert ids(found) == ["other"] and "ulna at" in str(found.errors[0]) and "outside" in str(found.errors[0])
        else:
            assert found.hands[0].points[0] == ((499, 649) if edge else (0, 0))
            assert found.noted() == ([f"1 hand {placing.MOVED_IN}: 1001"] if edge else [])


def test_a_border_point_is_moved_by_a_pixel_of_the_image_not_of_the_annotation(tmp_path):
    """Marked at half the size, on its far border: the last pixel of the image."""
    one = ReferencePoints("1001", 250, 325, ((125.0, 325.0), *((x / 2, y / 2) for x, y in POINTS[1:])))
    path = write(tmp_path / "a.json", labelme.tree(one))
    found = formats.read([path], images(tmp_path / "images", "1001.png"))
    assert found.hands[0].points[0] == (250, 649) and found.hands[0].points[1:] == POINTS[1:]
    assert len(found.noted()) == 2 and placing.SCALED in found.noted()[0]


BAD_IDS = [" 1001", "1001 ", "\u20281001", "10\x0b01", "10\x8501", "", ".1001", "..", "\ud800", "a\tb", "x" * 300]


@pytest.mark.parametrize("bad", BAD_IDS, ids=map(ascii, BAD_IDS))
def test_nothing_is_written_that_cannot_be_read_back(tmp_path, bad):
    """An id that a table or file would change is that hand's error; message and table can be printed and read back."""
    tree = coco.tree([A, B])
    tree["images"][1]["file_name"] = f"{bad}.png" if bad not in ("", "..") else bad
    done = command("import", write(tmp_path / "a.json", tree), "--out", tmp_path / "points.csv")
    assert done.exit_code == 1 and "1 could not be imported" in done.output, done.output
    assert list(read_points(tmp_path / "points.csv")) == [A.id]


def test_a_rectangle_is_large_enough_as_it_is_written(tmp_path):
    """From 10.96 to 17.04 are nine whole pixels; from 11.0 to 17.0, as in the table, only seven."""
    xs = (10.96, 17.04, 12.0, 13.0, 14.0, 15.0, 16.0)
    small = ReferencePoints("small", 500, 650, tuple((x, y) for x, (_, y) in zip(xs, POINTS, strict=True)))
    assert small.rectangle().width == 9
    path = write(tmp_path / "a.json", coco.tree([small, A]))
    done = command("import", path, "--out", tmp_path / "points.csv")
    assert done.exit_code == 1 and "too small to be a hand" in done.output
    assert list(read_points(tmp_path / "points.csv")) == [A.id]


# ---- orientation -------------------------------------------------------------------------------------------------


def turned(orientation: int) -> tuple[tuple[float, float], ...]:
    """The points as they are on the stored pixels of an image whose upright form is 500 x 650, by Pillow itself."""
    from PIL import ImageOps

    width, height = (650, 500) if orientation >= 5 else (500, 650)
    found = []
    for x, y in POINTS:
        upright = PIL.Image.new("L", (500, 650))
        upright.putpixel((round(x), round(y)), 255)
        for candidate in range(1, 9):  # the transposition that Pillow undoes
            stored = upright if candidate == 1 else upright.transpose(_TRANSPOSE[candidate])
            exif = stored.getexif()
            exif[274] = orientation
            if stored.size == (width, height) and ImageOps.exif_transpose(stored).tobytes() == upright.tobytes():
                box = stored.getbbox()
                found.append((float(box[0]), float(box[1])))
                break
    return tuple(found)


_TRANSPOSE = dict(zip(range(2, 9), PIL.Image.Transpose, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_are_in_the_upright_image(tmp_path, orientation):
    """Marked upright, as browsers show it: unchanged. Marked on the stored pixels, as the size shows: turned."""
    size = (650, 500) if orientation >= 5 else (500, 650)
    folder = images(tmp_path / "images", "1001.jpg", size=size, orientation=orientation)
    path = write(tmp_path / "a.json", labelme.tree(hand("1001")))
    found = formats.read([path], folder)
    assert (found.hands[0].width, found.hands[0].height, found.hands[0].points) == (500, 650, POINTS)
    notes = [note for _, note in found.notes]
    assert notes == ([placing.TAKEN_AS_UPRIGHT] if orientation in (2, 3, 4) else [])
    for factor in (1, 0.5) if orientation >= 5 else ():
        stored = tuple((x * factor, y * factor) for x, y in turned(orientation))
        raw = ReferencePoints("1001", round(650 * factor), round(500 * factor), stored)
        found = formats.read([write(path, labelme.tree(raw))], folder)
        assert (found.hands[0].width, found.hands[0].height, found.hands[0].points) == (500, 650, POINTS)
        assert placing.TURNED in [note for _, note in found.notes]


@pytest.mark.parametrize("orientation", [2, 6])
def test_an_orientation_that_no_size_shows_is_noted(tmp_path, orientation):
    """A square image, and a file without a size: taken as upright, and named, so that a person can check."""
    square = ReferencePoints("1001", 650, 650, POINTS)
    folder = images(tmp_path / "images", "1001.jpg", size=(650, 650), orientation=orientation)
    found = formats.read([write(tmp_path / "a.json", labelme.tree(square))], folder)
    assert found.hands == [square] and found.noted() == [f"1 hand {placing.TAKEN_AS_UPRIGHT}: 1001"]
    folder = images(
        tmp_path / "2", "1001.jpg", size=(650, 500) if orientation == 6 else (500, 650), orientation=orientation
    )
    unsized = {**labelme.tree(square), "imageWidth": None}
    found = formats.read([write(tmp_path / "a.json", unsized)], folder)
    assert found.hands == [hand("1001")] and found.noted() == [f"1 hand {placing.TAKEN_AS_UPRIGHT}: 1001"]


def test_an_image_that_is_nearly_square(tmp_path):
    """The exact size shows it; a scaled one does not: taken as upright, and named."""
    upright = ReferencePoints("1001", 648, 650, POINTS)
    folder = images(tmp_path / "images", "1001.jpg", size=(650, 648), orientation=8)
    for size, note in (((648, 650), None), ((650, 648), placing.TURNED), ((324, 325), placing.TAKEN_AS_UPRIGHT)):
        scale = size[0] / 648 if note is placing.TAKEN_AS_UPRIGHT else 1.0
        # turned by a quarter to the left when it is shown: the upright (x, y) is stored at (649 - y, x)
        marked = (
            [(649 - y, x) for x, y in POINTS] if note is placing.TURNED else [(x * scale, y * scale) for x, y in POINTS]
        )
        path = write(tmp_path / "a.json", labelme.tree(ReferencePoints("1001", *size, tuple(marked))))
        found = formats.read([path], folder)
        assert found.hands == [upright] and (note is None or note in [text for _, text in found.notes])
        assert note is not None or not found.notes


def test_other_labels_are_evidence(tmp_path):
    """Only points with unknown labels: counted, with the labels. With known ones too: an error, with the labels."""
    foreign = (
        json.dumps(labelme.tree(A)).replace("phalanx", "Finger ").replace("ulna", "Elle").replace("radius", "Speiche")
    )
    other = json.loads(foreign.replace("Finger ", "Knochen "))
    found = formats.read([write(tmp_path / "a.json", other), write(tmp_path / "b.json", labelme.tree(B))])
    assert (
        found.counts() == "1 with other labels only (Elle, Speiche, Knochen 1, Knochen 2, Knochen 3 …)"
        and not found.errors
    )
    with pytest.raises(PointsError, match=r"not marked: ulna, radius \(other labels: Elle, Speiche\)"):
        formats.read([write(tmp_path / "a.json", foreign)])


def test_an_archive_is_named_as_one(tmp_path):
    """Label Studio and CVAT export them."""
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(PointsError, match=r"a\.zip: a zip archive\. Unpack it"):
        formats.read([tmp_path / "a.zip"])


def test_a_size_of_neither_shape_is_refused(tmp_path):
    """Sideways without such an orientation: another image."""
    folder = images(tmp_path / "images", "1001.jpg", "1002.jpg")
    tree = coco.tree([hand("1001"), hand("1002")])
    tree["images"][0] |= {"width": 650, "height": 500}
    found = formats.read([write(tmp_path / "a.json", tree)], folder)
    assert ids(found) == ["1002"] and "marked in 650 x 500, but the image is 500 x 650" in str(found.errors[0])


def test_an_unreadable_image_affects_only_its_hand(tmp_path):
    """The size of the other images is known."""
    folder = images(tmp_path / "images", "1001.png", "1002.png")
    (folder / "1001.png").write_bytes(b"")
    found = formats.read([write(tmp_path / "a.json", coco.tree([hand("1001"), hand("1002")]))], folder)
    assert ids(found) == ["1002"] and "1001.png" in str(found.errors[0])


# ---- export ------------------------------------------------------------------------------------------------------


def test_export_names_the_images_own_suffixes(tmp_path):
    """As they are in the folder; an image that is missing is named, and nothing is written."""
    from bonecaffe.hands.reference_points import write_points

    write_points(tmp_path / "points.csv", [hand("1001"), hand("1002")])
    folder = images(tmp_path / "images", "1001.jpg", "1002.PNG")
    for kind, out in (("labelme", "lm"), ("coco", "coco.json")):
        arguments = ("export", tmp_path / "points.csv", "--format", kind, "--out", tmp_path / out)
        assert command(*arguments, "--images", folder).exit_code == 0
        back = formats.read([tmp_path / out], folder)
        assert [one.points for one in back.hands] == [POINTS, POINTS] and not back.left_out
    assert json.loads((tmp_path / "lm" / "1001.json").read_text())["imagePath"] == "1001.jpg"
    assert [entry["file_name"] for entry in json.loads((tmp_path / "coco.json").read_text())["images"]] == [
        "1001.jpg",
        "1002.PNG",
    ]
    (folder / "1002.PNG").unlink()
    arguments = ("export", tmp_path / "points.csv", "--format", "labelme", "--out", tmp_path / "lm2")
    refused = command(*arguments, "--images", folder)
    assert refused.exit_code == 1 and "no image of 1 hand" in refused.output and not (tmp_path / "lm2").exists()


@pytest.mark.parametrize(
    "strange",
    ["0a1b2c3d-1001", "20180101-1", "1.2.840", "a?b", "50%20x", "http:x", "a:b", "1001.png", "손 é", "-x", "#"],
)
def test_every_id_comes_back_from_an_export(tmp_path, strange):
    """What looks like a prefix, a suffix, an address or a query in an id is part of it."""
    one = hand(strange)
    for content in (labelme.tree(one), coco.tree([one])):
        assert ids(formats.read([write(tmp_path / "a.json", content)])) == [strange]

"""Damaged files of other tools: no traceback, nothing that could not be read back, and no effect on other hands.

``BONECAFFE_FUZZ`` is the number of damaged files per format, 2,000 for a thorough run.
"""

from __future__ import annotations

import copy
import json
import os
import random
from xml.etree import ElementTree

import pytest
from foreign import HANDS, WRITERS, cvat, label_studio

from bonecaffe.errors import PointsError
from bonecaffe.files import table_text
from bonecaffe.hands import formats
from bonecaffe.hands.formats import coco, labelme
from bonecaffe.hands.reference_points import COLUMNS, ReferencePoints, read_points, write_points

FILES = int(os.environ.get("BONECAFFE_FUZZ", "150"))
FIRST, MIDDLE, LAST = list(HANDS.values())[:3]
OTHER = ReferencePoints("another hand", FIRST.width, FIRST.height, FIRST.points)


def csv(hand: ReferencePoints) -> str:
    coordinates = [value for point in hand.points for value in point]
    return table_text(COLUMNS, [[hand.id, hand.width, hand.height, *coordinates]])


def damaged(dice: random.Random, text: bytes) -> bytes:
    """Bytes removed, repeated, changed, cut off, or replaced by text that breaks parsers."""
    content = bytearray(text)
    for _ in range(dice.choice((1, 1, 2, 4))):
        if not content:
            break
        at, length = dice.randrange(len(content)), dice.choice((1, 1, 4, 40))
        match dice.choice(("lost", "repeated", "digit", "digit", "digit", "byte", "cut", "odd")):
            case "lost":
                del content[at : at + length]
            case "repeated":
                content[at:at] = content[at : at + length]
            case "digit":
                digits = [i for i, byte in enumerate(content) if 48 <= byte < 58]
                content[dice.choice(digits or [at])] = dice.randrange(48, 58)
            case "byte":
                content[at] = dice.randrange(256)
            case "cut":
                del content[max(at, 1 + len(content) // 2) :]
            case "odd":
                content[at : at + 1] = dice.choice(
                    (b"-", b"1e999", b"NaN", b"null", b'"', b"<", b"\0", b"[]", b"\\ud8")
                )
    return bytes(content)


@pytest.mark.parametrize("name", [*WRITERS, "own.csv"])
def test_a_damaged_file_does_not_affect_another(tmp_path, name):
    """A clear error, or hands that make sense; the other file's hand is always imported; files are not touched."""
    dice = random.Random(f"{name} 2018")
    writer = WRITERS.get(name, csv)
    texts = [writer(hand).encode() for hand in (FIRST, MIDDLE, LAST)]
    path, other, table = tmp_path / f"damaged_{name}", tmp_path / "other.json", tmp_path / "points.csv"
    other.write_text(json.dumps(labelme.tree(OTHER)))
    whole = 0
    for number in range(FILES):
        content = damaged(dice, texts[number % 3])
        path.write_bytes(content)
        found = formats.read([path, other])
        whole += len(found.hands) > 1
        assert OTHER.id in [hand.id for hand in found.hands]
        assert all(path.name in str(error) for error in found.errors)
        "\n".join(map(str, [*found.errors, *found.noted(), found.counts()])).encode()  # can be printed
        assert path.read_bytes() == content
        if len(found.hands) > 1 and number % 10 == 0:
            write_points(table, found.hands)
            assert sorted(read_points(table)) == sorted(hand.id for hand in found.hands)
    assert 0.1 < whole / FILES < 0.95


JUNK = (
    None, -1, -0.5, 0, 1e999, float("nan"), 10**400, 10**9, True, "", " ", "x", "\ud800", "\u2028", "../..", "http://[",
    "/data/upload/1/x", [], {}, [[]], [None], {"x": []}, [1, 2, 3],
)  # fmt: skip

ODD_ATTRIBUTES = ("", "-1", "nan", "1e999", "x", ",", "1,2;3,4", "1;2", "1,2,3", "ulna", "1", "../")
ODD_CELLS = ("", "-1", "nan", "1e999", "x", "1_2", "１２", "../x", " ", "0", "1e3")


def places(node):
    """Every place in a parsed JSON value: the container and the key."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(value, dict | list):
            yield from places(value)


def spoil(dice: random.Random, piece: object) -> None:
    """Remove or replace one or two values of a hand's part of a file."""
    for _ in range(dice.choice((1, 1, 2))):
        if not (all_places := list(places(piece))):
            return
        node, key = dice.choice(all_places)
        if dice.random() < 0.3:
            del node[key]
        else:
            node[key] = copy.deepcopy(dice.choice(JUNK))


def spoiled_coco(dice: random.Random) -> str:
    tree = coco.tree([FIRST, MIDDLE, LAST])
    spoil(dice, tree[dice.choice(("annotations", "images"))][1])
    if dice.random() < 0.1:
        tree["annotations"][1] = dice.choice(JUNK)
    return json.dumps(tree)


def spoiled_tasks(dice: random.Random) -> str:
    tasks = [json.loads(label_studio(hand))[0] for hand in (FIRST, MIDDLE, LAST)]
    spoil(dice, tasks[1])
    if dice.random() < 0.1:
        tasks[1] = dice.choice(JUNK)
    return json.dumps(tasks)


def spoiled_cvat(dice: random.Random) -> str:
    root = ElementTree.Element("annotations")
    for hand in (FIRST, MIDDLE, LAST):
        root.append(ElementTree.fromstring(cvat(hand)).find("image"))
    for _ in range(dice.choice((1, 1, 2))):
        node = dice.choice(list(root[1].iter()))
        if node.attrib and dice.random() < 0.8:
            key = dice.choice(list(node.attrib))
            node.set(key, dice.choice(ODD_ATTRIBUTES))
        elif len(node):
            node.remove(dice.choice(list(node)))
        else:
            node.attrib.clear()
    return ElementTree.tostring(root, "unicode")


def spoiled_csv(dice: random.Random) -> str:
    header, *rows = [csv(hand).splitlines() for hand in (FIRST, MIDDLE, LAST)]
    rows = [header[1], rows[0][1], rows[1][1]]
    cells = rows[1].split(",")
    for _ in range(dice.choice((1, 1, 2))):
        cells[dice.randrange(len(cells))] = dice.choice(ODD_CELLS)
    return "\n".join([header[0], rows[0], ",".join(cells), rows[2]]) + "\n"


@pytest.mark.parametrize("damaged", [spoiled_coco, spoiled_tasks, spoiled_cvat, spoiled_csv])
def test_a_damaged_hand_does_not_affect_the_others_of_its_file(tmp_path, damaged):
    """Any value of a hand's part removed or replaced: the hands before and after it are unchanged."""
    dice = random.Random(f"{damaged.__name__} 2018")
    path = tmp_path / ("a.xml" if damaged is spoiled_cvat else "a.csv" if damaged is spoiled_csv else "a.json")
    errors = 0
    for _ in range(FILES):
        path.write_text(damaged(dice))
        found = formats.read([path])
        hands = {hand.id: hand for hand in found.hands}
        for hand in (FIRST, LAST):
            assert hands[hand.id].points == tuple((round(x, 1), round(y, 1)) for x, y in hand.points)
        errors += bool(found.errors)
        "\n".join(map(str, [*found.errors, *found.noted(), found.counts()])).encode()
    assert errors > FILES / 4


def test_an_unreadable_file_is_an_error(tmp_path):
    """Where nothing else is imported, the fault of the damaged file is the error."""
    (tmp_path / "a.json").write_bytes(json.dumps(labelme.tree(FIRST)).encode()[:100])
    with pytest.raises(PointsError, match=r"a\.json: neither XML nor readable as JSON"):
        formats.read([tmp_path])

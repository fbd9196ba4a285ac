"""Hands as other tools write them, for tests."""

from __future__ import annotations

import json
import random

from conftest import SAMPLE

from bonecaffe.hands.formats import coco, labelme
from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints, read_points

HANDS = read_points(SAMPLE / "points.csv")


def voc(hand: ReferencePoints, thumb: str = "MCP", flip: bool = False) -> str:
    """Boxes of 20 pixels around the points, in a muddled order, with bones that don't matter among them."""
    names = ["Ulna", "Radius", thumb, "MCP", "MCP", "MCP", "MCP"]
    places = [((hand.width - 1 - x) if flip else x, y) for x, y in hand.points]
    boxes = [*zip(names, places, strict=True), ("Wrist", (50, 50)), ("PIP", (60, 60)), ("DistalPhalanx", (70, 70))]
    random.Random(hand.id).shuffle(boxes)
    objects = "".join(
        f"<object><name>{n}</name><bndbox><xmin>{x - 10}</xmin><ymin>{y - 10}</ymin>"
        f"<xmax>{x + 10}</xmax><ymax>{y + 10}</ymax></bndbox></object>"
        for n, (x, y) in boxes
    )
    size = f"<size><width>{hand.width}</width><height>{hand.height}</height></size>"
    return f"<annotation><filename>{hand.id}.png</filename>{size}{objects}</annotation>"


def cvat(hand: ReferencePoints) -> str:
    nodes = "".join(
        f'<points label="{n}" outside="0" points="{x},{y}"/>'
        for n, (x, y) in zip(POINT_NAMES, hand.points, strict=True)
    )
    image = f'<image id="0" name="set/{hand.id}.png" width="{hand.width}" height="{hand.height}">'
    other = "<image id='1' name='empty.png' width='5' height='5'/>"
    skeleton = f"<skeleton label='hand'>{nodes}</skeleton>"
    return f"<annotations><version>1.1</version>{image}{skeleton}</image>{other}</annotations>"


def cvat_in_one(hand: ReferencePoints) -> str:
    pairs = ";".join(f"{x},{y}" for x, y in hand.points)
    image = f'<image id="0" name="{hand.id}.png" width="{hand.width}" height="{hand.height}">'
    return f'<annotations>{image}<points label="hand" points="{pairs}"/></image></annotations>'


def label_studio(hand: ReferencePoints) -> str:
    labels = ["Ulna", "Radius", "Thumb", "Index", "Middle", "Ring", "Little"]
    result = [
        {
            "type": "keypointlabels",
            "original_width": hand.width,
            "original_height": hand.height,
            "value": {"x": 100 * x / hand.width, "y": 100 * y / hand.height, "keypointlabels": [label]},
        }
        for label, (x, y) in zip(labels, hand.points, strict=True)
    ]
    done = {"data": {"image": f"/data/upload/1/0a1b2c3d-{hand.id}.png"}, "annotations": [{"result": result}]}
    return json.dumps([done, {"data": {"image": "later.png"}, "annotations": []}])


WRITERS = {
    "voc.xml": voc,
    "voc_first.xml": lambda hand: voc(hand, thumb="MCPFirst"),
    "cvat.xml": cvat,
    "cvat_in_one.xml": cvat_in_one,
    "labelme.json": lambda hand: json.dumps(labelme.tree(hand)),
    "coco.json": lambda hand: json.dumps(coco.tree([hand])),
    "studio.json": label_studio,
}

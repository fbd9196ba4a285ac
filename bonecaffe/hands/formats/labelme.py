"""labelme: a JSON file per image, with shapes of type point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bonecaffe.hands.formats.marks import Hand, Marks, Reading, collect, member, point_name, shown, size_of
from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints


def read(tree: dict[str, Any], file_name: str) -> Reading:
    """The hand of a file. Older versions of labelme write no size.

    A file that does not name its image is taken to have the image's name.
    """
    return collect("", [(1, tree)], lambda tree: _read(tree, file_name), lambda tree: tree.get("imagePath"))


def _read(tree: dict[str, Any], file_name: str) -> Iterator[Hand]:
    marks = Marks()
    for shape in member(tree, "shapes", list):
        label = shape.get("label") if isinstance(shape, dict) else None
        if point_name(label) is None:
            marks.others.append(shown(label))
            continue
        points = member(shape, "points", list)
        if shape.get("shape_type") not in (None, "point"):
            marks.others.append(f"{shown(label)} as a {shown(shape['shape_type'])}")
            continue
        if len(points) != 1 or not isinstance(points[0], list) or len(points[0]) != 2:
            raise ValueError(f"{shown(label)} is not one point with two coordinates")
        marks.put(label, *points[0])
    image = member(tree, "imagePath", str) if tree.get("imagePath") is not None else ""
    yield Hand(
        image if image.strip() else file_name,
        size_of(tree.get("imageWidth"), tree.get("imageHeight")),
        marks.points,
        tuple(marks.others),
    )


def tree(hand: ReferencePoints, image: str | None = None) -> dict[str, Any]:
    """A hand in labelme's format, without its image. ``image`` is the image's file name, by default the id and .png."""
    shapes: list[dict[str, Any]] = [
        {"label": name, "points": [[x, y]], "group_id": None, "shape_type": "point", "flags": {}}
        for name, (x, y) in zip(POINT_NAMES, hand.points, strict=True)
    ]
    return {
        "version": "5.0.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image or f"{hand.id}.png",
        "imageData": None,
        "imageHeight": hand.height,
        "imageWidth": hand.width,
    }

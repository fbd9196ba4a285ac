"""CVAT's own XML, "CVAT for images"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from xml.etree.ElementTree import Element

from bonecaffe.hands.formats.marks import Hand, Marks, Reading, collect, point_name, shown, size_of
from bonecaffe.hands.reference_points import POINT_NAMES


class _Group(NamedTuple):
    """The <points> of one hand in an <image>."""

    image: Element
    nodes: list[Element]


def read(tree: Element) -> Reading:
    """The hands of all images: seven <points> by label, in a skeleton or not, or one <points> of seven, as in
    points.csv.

    Each skeleton, and each <points> of seven, is one hand. What CVAT marks as outside is not in the image.
    """
    if tree.find("image") is None and tree.find("track") is not None:
        raise ValueError('CVAT for video, which does not name images. Export it as "CVAT for images"')
    return collect("image", enumerate(_groups(tree), 1), _read, lambda group: group.image.get("name"))


def _groups(tree: Element) -> Iterator[_Group]:
    for image in tree.iter("image"):
        skeletons = list(image.iter("skeleton"))
        in_skeletons = {node for skeleton in skeletons for node in skeleton.iter("points")}
        loose = [node for node in image.iter("points") if node not in in_skeletons]
        groups = [list(skeleton.iter("points")) for skeleton in skeletons]
        groups += [[node] for node in loose if len(_pairs(node)) == len(POINT_NAMES)]
        singles = [node for node in loose if len(_pairs(node)) != len(POINT_NAMES)]
        if singles or not groups:
            groups.append(singles)
        for nodes in groups:
            yield _Group(image, nodes)


def _pairs(node: Element) -> list[str]:
    return node.get("points", "").split(";")


def _read(group: _Group) -> Iterator[Hand]:
    marks = Marks()
    for node in group.nodes:
        if node.get("outside") == "1":
            continue
        label, pairs = node.get("label", ""), _pairs(node)
        labels: tuple[str, ...] = (label,)
        if len(pairs) == len(POINT_NAMES):
            labels = POINT_NAMES
        elif point_name(label) is None:
            marks.others.append(shown(label))
            continue
        elif len(pairs) != 1:
            raise ValueError(f"{label} has {len(pairs)} points; one is expected")
        for name, pair in zip(labels, pairs, strict=True):
            x, comma, y = pair.partition(",")
            if not comma:
                raise ValueError(f"{shown(pair)} is not a pair of coordinates")
            marks.put(name, x, y)
    image = group.image
    size = size_of(image.get("width"), image.get("height"))
    yield Hand(image.get("name", ""), size, marks.points, tuple(marks.others))

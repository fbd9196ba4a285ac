"""Pascal VOC: an XML file per image with boxes of bones, whose centres give the points."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from bonecaffe.hands.fingers import boxes_to_points, is_bone
from bonecaffe.hands.formats.marks import Hand, Reading, Unmarked, collect, listed, number, shown, size_of


def read(tree: Element, file_name: str) -> Reading:
    """The hand of a file: MCP, Radius and Ulna boxes, in either of two public vocabularies. Other boxes are ignored.

    A file that does not name its image is taken to have the image's name.
    """
    return collect("", [(1, tree)], lambda tree: _read(tree, _name(tree) or file_name), _name)


def _name(tree: Element) -> str:
    return (tree.findtext("filename") or tree.findtext("path") or "").strip()


def _read(tree: Element, image: str) -> Iterator[Hand]:
    boxes, others = [], []
    for node in tree.iter("object"):
        name = (node.findtext("name") or "").strip()
        if not is_bone(name):
            others.append(shown(name))
            continue
        left, top, right, bottom = (_side(node, name, side) for side in ("xmin", "ymin", "xmax", "ymax"))
        if left > right or top > bottom:
            raise ValueError(f"a {name} box that ends before it begins")
        boxes.append((name, ((left + right) / 2, (top + bottom) / 2)))
    if not boxes:
        raise Unmarked("with other labels only", listed(others)) if others else Unmarked("not marked")
    size = size_of(tree.findtext("size/width"), tree.findtext("size/height"))
    yield Hand(image, size, boxes_to_points(boxes))


def _side(node: Element, name: str, side: str) -> float:
    text = node.findtext(f"bndbox/{side}")
    if text is None or not text.strip():
        raise ValueError(f"a {name} box without <{side}>")
    return number(text)

"""COCO keypoints: a JSON file of images, categories and annotations that name both by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bonecaffe.hands.formats.marks import (
    Hand,
    Kind,
    LeftOut,
    Marks,
    Reading,
    Unmarked,
    collect,
    listed,
    member,
    number,
    point_name,
    shown,
    size_of,
)
from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints


def read(tree: dict[str, Any]) -> Reading:
    """The hands of a file, one per annotation with key points; a key point of visibility 0 is not marked.

    An id that two images of different names share, or two categories of different key points, is an error in the
    annotations that use it.
    """
    file = _File(tree)
    annotations = member(tree, "annotations", list)
    reading = collect("annotation", enumerate(annotations, 1), file.read, file.image_name)
    used = {_key(annotation.get("image_id")) for annotation in annotations if isinstance(annotation, dict)}
    for key, entries in file.images.items():
        if key not in used:
            where = f"image {shown(entries[0].get('file_name'))}"
            reading.left_out.append(LeftOut(Kind.UNMARKED, "not marked", where))
    return reading


def _key(value: Any) -> str:
    """An id as a text: some tools write numbers in quotation marks in one place and without in another."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | str) else ""


def _by_id(entries: list[Any]) -> dict[str, list[dict[str, Any]]]:
    """Entries by id. Invalid entries are ignored; an annotation that refers to one is an error."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        if isinstance(entry, dict) and (key := _key(entry.get("id"))):
            found.setdefault(key, []).append(entry)
    return found


class _File:
    """The images and categories of a file, which its annotations refer to."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.images = _by_id(member(tree, "images", list))
        self.categories = _by_id(member(tree, "categories", list))
        info = tree.get("info")
        # Label Studio exports COCO too, and uploaded files keep its prefix
        self.upload = isinstance(info, dict) and info.get("contributor") == "Label Studio"

    def image_name(self, annotation: Any) -> Any:
        """What the image of an annotation is called, for errors."""
        (image,) = self.images[_key(annotation["image_id"])]  # of several, none is named
        return image["file_name"]

    def read(self, annotation: Any) -> Iterator[Hand]:
        """The hand of one annotation."""
        if not isinstance(annotation, dict):
            raise ValueError(f"{shown(annotation)}, where an object is expected")
        if not annotation.get("keypoints"):
            raise Unmarked("without key points")
        values = member(annotation, "keypoints", list)
        labels = self._labels(annotation)
        if not any(point_name(label) for label in labels):
            raise Unmarked("with key points of another category", listed(map(shown, labels)))
        if len(values) != 3 * len(labels):
            raise ValueError(f"{len(values)} numbers for {len(labels)} key points; three each are needed")
        marks = Marks()
        for label, x, y, visibility in zip(labels, values[0::3], values[1::3], values[2::3], strict=True):
            if point_name(label) and number(visibility) > 0:
                marks.put(label, x, y)
        image = self._image(annotation)
        size = size_of(image.get("width"), image.get("height"))
        yield Hand(member(image, "file_name", str), size, marks.points, tuple(marks.others), upload=self.upload)

    def _labels(self, annotation: dict[str, Any]) -> list[Any]:
        """The names of an annotation's key points."""
        key = _key(annotation.get("category_id"))
        lists = [entry.get("keypoints") for entry in self.categories.get(key, [])]
        if not lists:
            raise ValueError(f"its category {shown(annotation.get('category_id'))} is not in the file")
        if any(names != lists[0] for names in lists):
            raise ValueError(f"two categories with different key points have the id {key}. Give each its own")
        if not isinstance(lists[0], list):
            raise ValueError(f"its category {shown(annotation.get('category_id'))} does not name its key points")
        return lists[0]

    def _image(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """The entry of an annotation's image."""
        key = _key(annotation.get("image_id"))
        entries = self.images.get(key, [])
        if not entries:
            raise ValueError(f"its image {shown(annotation.get('image_id'))} is not in the file")
        if any(entry.get("file_name") != entries[0].get("file_name") for entry in entries):
            names = " and ".join(shown(entry.get("file_name")) for entry in entries[:5])
            raise ValueError(f"several images have the id {shown(key)}: {names}. Give each its own")
        return entries[0]


def tree(hands: Iterable[ReferencePoints], images: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The hands as COCO keypoints. ``images`` gives the files' names by id; by default the id and .png."""
    entries, annotations = [], []
    for count, hand in enumerate(hands, start=1):
        name = images[hand.id] if images is not None else f"{hand.id}.png"
        entries.append({"id": count, "file_name": name, "width": hand.width, "height": hand.height})
        box = hand.rectangle()
        annotations.append(
            {
                "id": count,
                "image_id": count,
                "category_id": 1,
                "num_keypoints": len(POINT_NAMES),
                "keypoints": [value for x, y in hand.points for value in (x, y, 2)],
                "bbox": [box.left, box.top, box.width, box.height],
                "area": box.width * box.height,
                "iscrowd": 0,
            }
        )
    category = {"id": 1, "name": "hand", "keypoints": list(POINT_NAMES), "skeleton": []}
    return {"images": entries, "annotations": annotations, "categories": [category]}

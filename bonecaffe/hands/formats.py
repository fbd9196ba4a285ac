"""The seven points out of other tools' files, and into them: VOC boxes, COCO keypoints, labelme, Label Studio, CVAT.

A reader turns one file into `Hand`s, one an image; `read` picks the reader by what the file holds. A text that is not
what it should be is a PointsError that names the file; nothing is written by reading.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree

from bonecaffe.errors import ImageError, PointsError, Problems
from bonecaffe.files import read_bytes
from bonecaffe.hands.fingers import Incomplete, boxes_to_points
from bonecaffe.hands.images import find_images, image_size
from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints, read_points

_FINGERS = ("thumb", "index", "middle", "ring", "little")
_OTHER_NAMES = {
    **{name: f"phalanx{number}" for number, name in enumerate(_FINGERS, start=1)},
    **{f"{name}finger": f"phalanx{number}" for number, name in enumerate(_FINGERS, start=1)},
    **{f"finger{number}": f"phalanx{number}" for number in range(1, 6)},
    "pinky": "phalanx5",
    "distalulna": "ulna",
    "distalradius": "radius",
}
SUFFIXES = (".xml", ".json", ".csv")


@dataclass(frozen=True)
class Hand:
    """An image as another tool marked it: its name without suffix, its size there, the points by our names."""

    id: str
    width: float
    height: float
    points: dict[str, tuple[float, float]]


def point_name(label: str) -> str | None:
    """Our name of a point by what others call it; None for a label that is none of the seven.

    >>> point_name("Ulna"), point_name("Thumb"), point_name("finger 5"), point_name("Wrist")
    ('ulna', 'phalanx1', 'phalanx5', None)
    """
    bare = re.sub(r"[^a-z0-9]", "", str(label).lower())
    return bare if bare in POINT_NAMES else _OTHER_NAMES.get(bare)


# ---- reading ---------------------------------------------------------------------------------------------------


def read(
    sources: Iterable[Path], images: Path | None = None, left_out: list[str] | None = None
) -> list[ReferencePoints]:
    """The hands of annotation files, or of folders of them, by id.

    With ``left_out``, hands whose points are not all marked, or whose image is not there, are named in it and left out.

    With ``images`` the points are scaled to each image file where the annotated size is another one of the same
    shape. Raises PointsError naming file and image for anything not understood: another format, a point missing or
    twice, a point outside, an image twice, a size of another shape.
    """
    found = find_images(images) if images is not None else None
    hands: dict[str, ReferencePoints] = {}
    problems = Problems()

    def incomplete(path: Path, error: Incomplete) -> None:
        if left_out is None:
            problems.add(f"{path}: {error}")
        else:
            left_out.append(f"{path}: {error}")

    for path in _files(sources):
        try:
            for hand in _parse(path):
                try:
                    points = _whole(hand, found)
                except Incomplete as error:  # the next hand of the file may be whole
                    incomplete(path, error)
                    continue
                if points.id in hands:
                    raise ValueError(f"image {points.id} was read already")
                hands[points.id] = points
        except Incomplete as error:
            incomplete(path, error)
        except (ValueError, ImageError) as error:
            problems.add(f"{path}: {str(error).rstrip('.')}")
    problems.raise_if_any(
        PointsError,
        "import",
        "Fix these files or take them away (--skip-incomplete leaves out hands that lack points or their image); "
        "nothing was written.",
    )
    if not hands:
        raise PointsError(f"no marked hands in {', '.join(map(str, sources))}.")
    return [hands[key] for key in sorted(hands)]


def _files(sources: Iterable[Path]) -> list[Path]:
    files = []
    for source in sources:
        if source.is_dir():
            files += sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        elif source.exists():
            files.append(source)
        else:
            raise PointsError(f"{source}: no such file or folder.")
    if not files:
        raise PointsError(f"no annotation files ({', '.join(SUFFIXES)}) there.")
    return files


def _parse(path: Path) -> Iterator[Hand]:
    """The hands of one file; ValueError, in words, for what is not understood."""
    if path.suffix.lower() == ".csv":
        try:
            for hand in read_points(path).values():
                yield Hand(hand.id, hand.width, hand.height, dict(zip(POINT_NAMES, hand.points, strict=True)))
        except PointsError as error:
            raise ValueError(str(error).removeprefix(f"{path}: ")) from error
        return
    try:
        content = read_bytes(path, "record", PointsError)
    except PointsError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from error
    except OSError as error:
        raise ValueError(error.strerror) from error
    reader, tree = _reader(content)
    try:
        yield from reader(tree)
    except ValueError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"not built as {_FORMATS[reader]} files are: {type(error).__name__}: {error}") from error


def _reader(content: bytes) -> tuple[Callable[[Any], Iterator[Hand]], Any]:
    """Which reader understands a file, and the file parsed; ValueError when none does."""
    if content.lstrip()[:1] == b"<":
        try:
            tree = defusedxml.ElementTree.fromstring(content, forbid_dtd=True)
        except defusedxml.DefusedXmlException:
            raise ValueError("XML with a document type; no annotation tool writes one, and it is not read") from None
        except (ParseError, ValueError, LookupError) as error:
            raise ValueError(f"not readable as XML: {error}") from error
        if tree.tag == "annotation":
            return _voc, tree
        if tree.tag == "annotations":
            return _cvat, tree
        raise ValueError(f"XML of <{tree.tag}>; Pascal VOC has <annotation>, CVAT has <annotations>")
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"neither XML nor readable as JSON: {error}") from error
    if isinstance(tree, dict) and "shapes" in tree:
        return _labelme, tree
    if isinstance(tree, dict) and {"images", "annotations", "categories"} <= tree.keys():
        return _coco, tree
    if isinstance(tree, list):
        return _label_studio, tree
    raise ValueError("JSON of no format we know: COCO keypoints, labelme, Label Studio")


def _stem(name: Any) -> str:
    """An image's name without folders and suffix, from whatever system."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError("an image without a name")
    address = urlsplit(name)
    local = parse_qs(address.query).get("d")  # Label Studio's local storage: /data/local-files/?d=folder/1001.png
    if local:
        name = local[0]
    elif address.scheme in ("http", "https", "s3", "gs") or name.startswith("/data/"):
        name = unquote(address.path)
    return PurePosixPath(PureWindowsPath(name.split("?")[0]).name).stem


def _number(value: Any) -> float:
    """A finite number, or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _put(points: dict[str, tuple[float, float]], label: Any, x: Any, y: Any, image: str) -> None:
    name = point_name(label)
    if name is None:
        return
    if name in points:
        raise ValueError(f"image {image}: {name} is marked twice")
    points[name] = _number(x), _number(y)


def _text(node: Element, path: str) -> str:
    found = node.findtext(path)
    if found is None or not found.strip():
        raise ValueError(f"no <{path}> in <{node.tag}>")
    return found.strip()


def _voc(tree: Element) -> Iterator[Hand]:
    """Pascal VOC boxes of bones: centres of MCP, Radius and Ulna (two public vocabularies)."""
    boxes = []
    for node in tree.iter("object"):
        sides = [_number(_text(node, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        if sides[0] > sides[2] or sides[1] > sides[3]:
            raise ValueError(f"a {_text(node, 'name')} box that ends before it begins")
        boxes.append((_text(node, "name"), ((sides[0] + sides[2]) / 2, (sides[1] + sides[3]) / 2)))
    width, height = (_number(_text(tree, f"size/{side}")) for side in ("width", "height"))
    yield Hand(_stem(_text(tree, "filename")), width, height, boxes_to_points(boxes))


def _cvat(tree: Element) -> Iterator[Hand]:
    """CVAT for images: seven <points> by label, in a skeleton or not, or one <points> of seven pairs in our order."""
    for image in tree.iter("image"):
        name = _stem(image.get("name"))
        points: dict[str, tuple[float, float]] = {}
        for node in image.iter("points"):
            pairs = [pair.split(",") for pair in node.get("points", "").split(";")]
            if len(pairs) == len(POINT_NAMES):
                for label, (x, y) in zip(POINT_NAMES, pairs, strict=True):
                    _put(points, label, x, y, name)
            elif len(pairs) == 1 and point_name(node.get("label", "")) and node.get("outside") != "1":
                x, y = pairs[0]
                _put(points, node.get("label"), x, y, name)
        if points:
            yield Hand(name, _number(image.get("width")), _number(image.get("height")), points)


def _labelme(tree: dict[str, Any]) -> Iterator[Hand]:
    """labelme: shapes of type point."""
    name = _stem(tree["imagePath"])
    points: dict[str, tuple[float, float]] = {}
    for shape in tree["shapes"]:
        if shape.get("shape_type", "point") == "point":
            ((x, y),) = shape["points"]
            _put(points, shape["label"], x, y, name)
    yield Hand(name, _number(tree["imageWidth"]), _number(tree["imageHeight"]), points)


def _coco(tree: dict[str, Any]) -> Iterator[Hand]:
    """COCO keypoints: one annotation an image; a keypoint of visibility 0 is not marked."""
    names = {category["id"]: category.get("keypoints") for category in tree["categories"]}
    images = {image["id"]: image for image in tree["images"]}
    for annotation in tree["annotations"]:
        image = images[annotation["image_id"]]
        name = _stem(image["file_name"])
        labels, values = names[annotation["category_id"]], annotation["keypoints"]
        if not labels or len(values) != 3 * len(labels):
            raise ValueError(
                f"image {name}: {len(values)} numbers for {len(labels or ())} keypoints; three each are needed"
            )
        points: dict[str, tuple[float, float]] = {}
        for label, x, y, seen in zip(labels, values[0::3], values[1::3], values[2::3], strict=True):
            if _number(seen) > 0:
                _put(points, label, x, y, name)
        yield Hand(name, _number(image["width"]), _number(image["height"]), points)


def _label_studio(tree: list[Any]) -> Iterator[Hand]:
    """Label Studio: key points in percent of the image; of several annotations of a task, the last."""
    for task in tree:
        if not task.get("annotations"):
            continue
        address = next((v for k, v in task["data"].items() if k in ("image", "img", "ocr", "url")), None)
        # an uploaded file's name is led by eight characters of Label Studio's own
        name = re.sub(r"^[0-9a-f]{8}-", "", _stem(address))
        points: dict[str, tuple[float, float]] = {}
        size = None
        for result in task["annotations"][-1]["result"]:
            if result.get("type") != "keypointlabels":
                continue
            size = _number(result["original_width"]), _number(result["original_height"])
            (label,) = result["value"]["keypointlabels"]
            x, y = (_number(result["value"][axis]) * side / 100 for axis, side in zip("xy", size, strict=True))
            _put(points, label, x, y, name)
        if size is not None:
            yield Hand(name, *size, points)


_FORMATS = {
    _voc: "Pascal VOC",
    _cvat: "CVAT",
    _labelme: "labelme",
    _coco: "COCO keypoints",
    _label_studio: "Label Studio",
}


def _whole(hand: Hand, images: dict[str, Path] | None) -> ReferencePoints:
    """All seven points in the pixels of the image; ValueError with what is wrong."""
    missing = [name for name in POINT_NAMES if name not in hand.points]
    if missing:
        raise Incomplete(f"image {hand.id}: not marked: {', '.join(missing)}")
    if not (1 <= hand.width <= 100_000 and 1 <= hand.height <= 100_000):
        raise ValueError(f"image {hand.id}: its size is {hand.width:g} x {hand.height:g}")
    width, height = round(hand.width), round(hand.height)
    if images is not None:
        if hand.id not in images:
            raise Incomplete(f"image {hand.id}: no such image in the folder given")
        width, height = image_size(images[hand.id])
    wide, high = width / hand.width, height / hand.height
    if abs(wide / high - 1) > 0.01:
        raise ValueError(
            f"image {hand.id}: marked in {hand.width:g} x {hand.height:g}, but it is {width} x {height}, another shape"
        )
    points = ReferencePoints(
        hand.id, width, height, tuple((hand.points[n][0] * wide, hand.points[n][1] * high) for n in POINT_NAMES)
    )
    if problems := points.problems():
        raise ValueError(f"image {hand.id}: {problems[0]}")
    return points


# ---- writing ---------------------------------------------------------------------------------------------------


def coco(hands: Iterable[ReferencePoints]) -> dict[str, Any]:
    """The hands as COCO keypoints; an image is named by its id and .png."""
    hands = list(hands)
    annotations = [
        {
            "id": number,
            "image_id": number,
            "category_id": 1,
            "num_keypoints": len(POINT_NAMES),
            "keypoints": [value for x, y in hand.points for value in (x, y, 2)],
            "bbox": [hand.rectangle().left, hand.rectangle().top, hand.rectangle().width, hand.rectangle().height],
            "area": hand.rectangle().width * hand.rectangle().height,
            "iscrowd": 0,
        }
        for number, hand in enumerate(hands, start=1)
    ]
    images = [
        {"id": number, "file_name": f"{hand.id}.png", "width": hand.width, "height": hand.height}
        for number, hand in enumerate(hands, start=1)
    ]
    category = {"id": 1, "name": "hand", "keypoints": list(POINT_NAMES), "skeleton": []}
    return {"images": images, "annotations": annotations, "categories": [category]}


def labelme(hand: ReferencePoints) -> dict[str, Any]:
    """A hand as a labelme file; the image is not in it."""
    shapes: list[dict[str, Any]] = [
        {"label": name, "points": [[x, y]], "group_id": None, "shape_type": "point", "flags": {}}
        for name, (x, y) in zip(POINT_NAMES, hand.points, strict=True)
    ]
    return {
        "version": "5.0.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"{hand.id}.png",
        "imageData": None,
        "imageHeight": hand.height,
        "imageWidth": hand.width,
    }

"""Parse a file and find out which tool wrote it: XML and JSON in any Unicode encoding, or bonecaffe's own CSV."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree

from bonecaffe.errors import PointsError
from bonecaffe.files import read_bytes
from bonecaffe.hands.formats import coco, cvat, label_studio, labelme, own_table, pascal_voc
from bonecaffe.hands.formats.marks import FAULTS, Reading, shown

SUFFIXES = (".xml", ".json", ".csv")

_BOMS = (  # the longer first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_EAST_ASIAN = re.compile(
    rb"""^\s*<\?xml[^>]*encoding=["']((?:gb|big5|euc|shift|cp9|iso-2022)[\w-]*)["']""", re.IGNORECASE
)


def parse(path: Path) -> Reading:
    """The hands of one file, and what is left out of it; ValueError for a file of unknown content."""
    if path.suffix.lower() == ".csv":
        return own_table.read(path)
    try:
        content = read_bytes(path, "record", PointsError)
    except PointsError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from error
    except OSError as error:
        raise ValueError(error.strerror) from error
    try:
        return _parse(content, path.stem)
    except ValueError:
        raise
    except FAULTS as error:
        raise ValueError(f"not the structure of an annotation tool's file ({type(error).__name__})") from error


def _parse(content: bytes, name: str) -> Reading:
    if not content.strip():
        raise ValueError("the file is empty")
    if content.startswith(b"PK\x03\x04"):
        raise ValueError("a zip archive. Unpack it, and give the file that holds the annotations")
    text = _decoded(content)
    start = text.lstrip()[:1] if text is not None else content.lstrip()[:1].decode("latin-1")
    if start == "<":
        tree = _xml(content if text is None else text)
        if tree.tag == "annotation":
            return pascal_voc.read(tree, name)
        if tree.tag == "annotations":
            return cvat.read(tree)
        raise ValueError(f"XML of <{shown(tree.tag)}>; Pascal VOC has <annotation>, CVAT has <annotations>")
    try:
        return _json(json.loads(content if text is None else text), name)
    except RecursionError as error:
        raise ValueError("neither XML nor readable as JSON: nested too deeply") from error
    except (json.JSONDecodeError, UnicodeError) as error:
        raise ValueError(f"neither XML nor readable as JSON: {error}") from error


def _decoded(content: bytes) -> str | None:
    """The text of a file with a byte order mark, or in UTF-16 without one; None for any other.

    The encoding that an XML file declares is then ignored: programs that convert a file leave the declaration
    unchanged.
    """
    encoding = next((name for bom, name in _BOMS if content.startswith(bom)), None)
    if encoding is None and content[1:2] == b"\0" and content[:1] != b"\0":
        encoding = "utf-16-le"
    elif encoding is None and content[:1] == b"\0" and content[1:2] != b"\0":
        encoding = "utf-16-be"
    if encoding is None:
        return None
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in {encoding.upper()}: {error.reason}") from error


def _xml(content: bytes | str) -> Element:
    try:
        if isinstance(content, bytes) and (declared := _EAST_ASIAN.match(content)):  # the parser knows none of these
            content = content.decode(declared[1].decode("ascii"))
        tree: Element = defusedxml.ElementTree.fromstring(content, forbid_dtd=True)
    except defusedxml.DefusedXmlException:
        raise ValueError("XML with a document type, which no annotation tool writes; it is not read") from None
    except (ParseError, ValueError, LookupError) as error:
        raise ValueError(f"not readable as XML: {error}") from error
    return tree


def _json(tree: Any, name: str) -> Reading:
    """The content of a parsed JSON file; ValueError for an unknown format. ``name`` is the file's without suffix."""
    if isinstance(tree, dict):
        if "shapes" in tree:
            return labelme.read(tree, name)
        if {"images", "annotations", "categories"} <= tree.keys():
            return coco.read(tree)
        if "data" in tree and {"annotations", "completions"} & tree.keys():
            return label_studio.read(tree)
    elif isinstance(tree, list):
        return label_studio.read(tree)
    raise ValueError("JSON in an unknown format; known are COCO keypoints, labelme and Label Studio")

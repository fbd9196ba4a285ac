"""Caffe's LMDBs without convert_imageset, for a Caffe that was built without OpenCV and so has none.

The records are the ones that convert_imageset writes, byte for byte: the key ``%08d_path``, a Datum of three equal
channels. The file is LMDB's data format 1 for 64-bit little-endian machines, as liblmdb 0.9 reads it (mdb.c: MDB_meta,
MDB_page, MDB_node): two meta pages, one page after the other of leaves, whose values are on overflow pages, and a root.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path
from typing import BinaryIO, Iterator, List, Tuple

from gpucheck.nets import SIDE_PX
from gpucheck.outcome import Failed

PAGE = 4096
_HEADER = 16
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_NONE = 2**64 - 1
_PNG = b"\x89PNG\r\n\x1a\n"


def convert(images: Path, listed: Path, target: Path) -> int:
    """Write the images of a list as an LMDB; the number of records. Failed for an image that is not ours."""
    lines = listed.read_text(encoding="utf-8").splitlines()

    def records() -> Iterator[Tuple[bytes, bytes]]:
        for number, line in enumerate(lines):
            name, _, label = line.rpartition(" ")
            try:
                pixels = grey((images / name).read_bytes())
            except (OSError, ValueError, struct.error, zlib.error) as error:
                raise Failed(f"{name}: no grey PNG of {SIDE_PX} x {SIDE_PX} pixels: {error}") from error
            yield f"{number:08d}_{name}".encode("utf-8"), datum(pixels, int(label))

    write(target, records())
    return len(lines)


def datum(pixels: bytes, label: int) -> bytes:
    """A serialized Datum: channels = 1, height = 2, width = 3, data = 4, label = 5, encoded = 7."""
    data = 3 * pixels
    side = _varint(SIDE_PX)
    head = b"\x08\x03\x10" + side + b"\x18" + side + b"\x22" + _varint(len(data))
    return head + data + b"\x28" + _varint(label) + b"\x38\x00"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def grey(png: bytes) -> bytes:
    """The pixels of a grey 8-bit PNG without interlace, row by row; ValueError for any other."""
    if not png.startswith(_PNG):
        raise ValueError("no PNG")
    at, packed = len(_PNG), b""
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        content = png[at + 8 : at + 8 + length]
        if kind == b"IHDR" and struct.unpack(">IIBBBBB", content) != (SIDE_PX, SIDE_PX, 8, 0, 0, 0, 0):
            raise ValueError("another size or kind")
        packed += content if kind == b"IDAT" else b""
        at += length + 12
    lines = zlib.decompress(packed)
    if len(lines) != SIDE_PX * (SIDE_PX + 1):
        raise ValueError("cut off")
    rows, above = [], bytes(SIDE_PX)
    for start in range(0, len(lines), SIDE_PX + 1):
        above = _unfiltered(lines[start], lines[start + 1 : start + 1 + SIDE_PX], above)
        rows.append(above)
    return b"".join(rows)


def _unfiltered(kind: int, line: bytes, above: bytes) -> bytes:
    """A row, from its filter (PNG specification, section 9) and the row above it."""
    if kind == 0:
        return line
    if kind == 2:
        return bytes([(value + up) & 255 for value, up in zip(line, above)])
    row, left, corner = bytearray(), 0, 0
    for value, up in zip(line, above):
        if kind == 1:
            left = (value + left) & 255
        elif kind == 3:
            left = (value + (left + up) // 2) & 255
        elif kind == 4:
            a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
            left = (value + (left if a <= b and a <= c else up if b <= c else corner)) & 255
        else:
            raise ValueError("an unknown filter")
        corner = up
        row.append(left)
    return bytes(row)


# ---- LMDB ----------------------------------------------------------------------------------------------------------


def write(target: Path, records: Iterator[Tuple[bytes, bytes]]) -> None:
    """Write an LMDB of records in the order of their keys, each value longer than half a page.

    Failed on a machine of another byte order, or for more records than two levels of pages hold (some 10,000).
    """
    if sys.byteorder != "little" or sys.maxsize < 2**32:
        raise Failed("this machine cannot use the LMDB that is written here: it is no 64-bit little-endian one")
    target.mkdir()
    with open(str(target / "data.mdb"), "wb") as file:
        file.write(bytes(2 * PAGE))
        entries, overflow, page = [], 0, 2
        for key, value in records:
            pages = -(-(_HEADER + len(value)) // PAGE)
            _put(file, struct.pack("<QHHI", page, 0, _OVERFLOW, pages) + value, pages)
            entries.append((key, struct.pack("<HHHH", len(value) & 0xFFFF, len(value) >> 16, 1, len(key)), page))
            overflow, page = overflow + pages, page + pages
        leaves: List[Tuple[bytes, int]] = []
        nodes: List[bytes] = []
        first = b""
        for key, head, at in entries:
            node = _even(head + key + struct.pack("<Q", at))
            if nodes and not _fits([*nodes, node]):
                leaves.append((first, page))
                _put(file, _page(page, _LEAF, nodes), 1)
                nodes, page = [], page + 1
            first = first if nodes else key
            nodes.append(node)
        leaves.append((first, page))
        _put(file, _page(page, _LEAF, nodes), 1)
        depth, root = 1, page
        if len(leaves) > 1:
            depth, root = 2, page + 1
            branch = [  # the first node's key is not looked at and is empty
                _even(struct.pack("<HHHH", at & 0xFFFF, at >> 16 & 0xFFFF, at >> 32, len(key)) + key)
                for key, at in [(b"", leaves[0][1]), *leaves[1:]]
            ]
            if not _fits(branch):
                raise Failed(f"{target.name}: too many records for the LMDB that is written here")
            _put(file, _page(root, _BRANCH, branch), 1)
        empty = struct.pack("<IHHQQQQQ", PAGE, 0, 0, 0, 0, 0, 0, _NONE)
        main = struct.pack("<IHHQQQQQ", 0, 0, depth, depth - 1, len(leaves), overflow, len(entries), root)
        size = (root + 1) * PAGE
        for number in (0, 1):
            meta = struct.pack("<IIQQ", 0xBEEFC0DE, 1, 0, size) + empty + main + struct.pack("<QQ", root, number)
            file.seek(number * PAGE)
            file.write(struct.pack("<QHHI", number, 0, _META, 0) + meta)
        file.flush()
        os.fsync(file.fileno())


def _put(file: BinaryIO, content: bytes, pages: int) -> None:
    file.write(content.ljust(pages * PAGE, b"\0"))


def _even(node: bytes) -> bytes:
    return node + b"\0" * (len(node) % 2)


def _fits(nodes: List[bytes]) -> bool:
    return _HEADER + sum(2 + len(node) for node in nodes) <= PAGE


def _page(number: int, kind: int, nodes: List[bytes]) -> bytes:
    """A page of nodes: header, their offsets, free space, and from its end on the nodes."""
    offsets, at = [], PAGE
    for node in nodes:
        at -= len(node)
        offsets.append(at)
    head = struct.pack("<QHHHH", number, 0, kind, _HEADER + 2 * len(nodes), at)
    head += struct.pack(f"<{len(offsets)}H", *offsets)
    return head.ljust(at, b"\0") + b"".join(reversed(nodes))

"""Caffe's caffemodel files without protobuf: names, shapes and numbers of the weights (protobuf's wire format).

NetParameter: layer = 100 {name = 1, type = 2, blobs = 7 {data = 5, packed float; shape = 7 {dim = 1}}}, as in Caffe's
caffe.proto. Only what this Caffe writes itself is read: the newer format, in single precision.
"""

from __future__ import annotations

import operator
import struct
import sys
from array import array
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Sequence, Tuple

Weights = Dict[str, List[bytes]]
"""By layer, its blobs as little-endian float32."""


def _varint(data: memoryview, at: int) -> Tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7


def _fields(data: memoryview) -> Iterator[Tuple[int, memoryview]]:
    """Number and content of each field with a length; other fields are passed over."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError("a field runs past the end")
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError(f"a field of the unknown kind {kind}")


def read(path: Path) -> Weights:
    """The weights of a caffemodel; ValueError with the path when it is none."""
    try:
        return parse(path.read_bytes())
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: no caffemodel of this Caffe ({error})") from error


def parse(content: bytes) -> Weights:
    """The weights in the bytes of a caffemodel; ValueError or IndexError when it is none."""
    weights: Weights = {}
    for number, layer in _fields(memoryview(content)):
        if number != 100:
            continue
        name, blobs = "", []
        for inner, value in _fields(layer):
            if inner == 1:
                name = bytes(value).decode("utf-8")
            elif inner == 7:
                blobs.append(b"".join(bytes(data) for field, data in _fields(value) if field == 5))
        if blobs:
            weights[name] = blobs
    if not weights:
        raise ValueError("it holds no weights")
    return weights


def numbers(blob: bytes) -> array[float]:
    """A blob's numbers."""
    values = array("f")
    values.frombytes(blob)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _as_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _message(number: int, content: bytes) -> bytes:
    return _as_varint(number << 3 | 2) + _as_varint(len(content)) + content


def caffemodel(layers: Mapping[str, Sequence[Tuple[Sequence[int], array[float]]]]) -> bytes:
    """A caffemodel of the given blobs, each a shape and its numbers, for ``caffe train --weights``."""
    content = b""
    for name, blobs in layers.items():
        layer = _message(1, name.encode("utf-8"))
        for shape, values in blobs:
            dims = _message(7, _message(1, b"".join(map(_as_varint, shape))))
            layer += _message(7, dims + _message(5, struct.pack(f"<{len(values)}f", *values)))
        content += _message(100, layer)
    return content


def largest_difference(one: Weights, other: Weights) -> Tuple[float, str]:
    """The largest difference of two models' weights and its layer; (0.0, "") when they are equal bit for bit.

    nan when a number is none. ValueError when the models have other layers or other shapes.
    """
    if {name: list(map(len, blobs)) for name, blobs in one.items()} != {
        name: list(map(len, blobs)) for name, blobs in other.items()
    }:
        raise ValueError("the models have different layers")
    largest, where = 0.0, ""
    for name in one:
        for a, b in zip(one[name], other[name]):
            if a == b:
                continue
            difference = max_abs(map(operator.sub, numbers(a), numbers(b)))
            if not difference <= largest or not where:
                largest, where = difference, name
            if difference != difference:
                return difference, name
    return largest, where


def max_abs(values: object) -> float:
    """The largest absolute value; nan when one of them is nan.

    >>> max_abs([1.0, -3.0]), max_abs([1.0, float("nan"), 2.0])
    (3.0, nan)
    """
    absolute = array("d", map(abs, values))  # type: ignore[call-overload]
    total = sum(absolute)  # nan if one of them is, which max() would miss
    return total if total != total else max(absolute, default=0.0)

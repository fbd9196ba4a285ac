"""A caffemodel in, a caffemodel without fc8 out (paper II.3, appendix 1).

The paper keeps the name ``fc8`` for a layer with one output; the ImageNet weights hold an fc8 of 1000 x 4096; and
Caffe aborts on a layer with the same name and another shape. So that layer is removed from the weights. Everything
else is copied byte for byte, in both formats: the old one (V1, ``layers``) and the new one (V2, ``layer``).

A caffemodel is a NetParameter in protobuf's wire format. It is read here without decoding its numbers, so 244 MB take
a moment and no memory.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonecaffe.errors import WeightsError
from bonecaffe.files import open_regular, writing

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_V1_LAYERS, _V2_LAYER = 2, 100  # fields of NetParameter
_NAME_FIELD = {_V1_LAYERS: 4, _V2_LAYER: 1}
_BLOBS_FIELD = {_V1_LAYERS: 6, _V2_LAYER: 7}
_HDF5 = b"\x89HDF"
_IN_HDF5 = "HDF5, which bonecaffe does not read. Save it with snapshot_format: BINARYPROTO."


class _Field(NamedTuple):
    number: int
    wire: int
    start: int  # of the tag
    value: int  # where the value begins, after tag and length
    end: int


@dataclass(frozen=True)
class StoredLayer:
    """A layer with the shapes of its weights, and where it is in the file."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    start: int
    end: int


class StoredBlob(NamedTuple):
    """One blob of weights: its shape and numbers, and where they are in the file as plain little-endian float32.

    ``offset`` is None where the file has them in another form, such as double precision.
    """

    shape: tuple[int, ...]
    values: NDArray[np.float32]
    offset: int | None


def _varint(data: mmap.mmap | bytes, at: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
    raise ValueError("a number is cut off")


def _fields(data: mmap.mmap | bytes, at: int, end: int) -> Iterator[_Field]:
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == _VARINT:
            value, (_, at) = at, _varint(data, at, end)
        elif wire == _FIXED64:
            value, at = at, at + 8
        elif wire == _FIXED32:
            value, at = at, at + 4
        elif wire == _BYTES:
            length, value = _varint(data, at, end)
            at = value + length
        else:
            raise ValueError(f"a field of the unknown kind {wire}")
        if at > end or tag >> 3 == 0:
            raise ValueError("a field runs past the end")
        yield _Field(tag >> 3, wire, start, value, at)


def _shape(data: mmap.mmap | bytes, blob: _Field) -> tuple[int, ...]:
    """The shape of a BlobProto: ``shape`` in V2; ``num, channels, height, width`` in V1, which takes precedence."""
    legacy = {1: 0, 2: 0, 3: 0, 4: 0}
    is_legacy = False
    dims: list[int] = []
    for field in _fields(data, blob.value, blob.end):
        if field.number in legacy and field.wire == _VARINT:
            legacy[field.number], _ = _varint(data, field.value, field.end)
            is_legacy = True
        elif field.number == 7 and field.wire == _BYTES:
            for dim in _fields(data, field.value, field.end):
                if dim.number == 1 and dim.wire == _BYTES:  # packed
                    at = dim.value
                    while at < dim.end:
                        number, at = _varint(data, at, dim.end)
                        dims.append(number)
                elif dim.number == 1 and dim.wire == _VARINT:
                    dims.append(_varint(data, dim.value, dim.end)[0])
    return tuple(legacy.values()) if is_legacy else tuple(dims)


def read_blob(data: bytes) -> tuple[tuple[int, ...], NDArray[np.float32]]:
    """A BlobProto's shape and its numbers, float32; ValueError when it is not a BlobProto.

    As Caffe's Blob::FromProto reads it: double-precision numbers, if there are any, take precedence over single ones.
    """
    blob = _Field(0, _BYTES, 0, 0, len(data))
    for number, wire, kind in ((8, _FIXED64, "<f8"), (5, _FIXED32, "<f4")):
        parts = [
            data[field.value : field.end]
            for field in _fields(data, 0, len(data))
            if field.number == number and field.wire in (_BYTES, wire)
        ]
        numbers = b"".join(parts)
        if len(numbers) % np.dtype(kind).itemsize:
            raise ValueError("its numbers are cut off")
        if numbers:
            break
    return _shape(data, blob), np.frombuffer(numbers, kind).astype(np.float32)


def _stored_blob(data: mmap.mmap | bytes, blob: _Field) -> StoredBlob:
    parts = [field for field in _fields(data, blob.value, blob.end) if field.number in (5, 8)]
    offset = parts[0].value if [(part.number, part.wire) for part in parts] == [(5, _BYTES)] else None
    shape, values = read_blob(data[blob.value : blob.end])
    if values.size != math.prod(shape):
        raise ValueError(f"{values.size} numbers for a shape of {' x '.join(map(str, shape))}")
    return StoredBlob(shape, values, offset)


def _blob_fields(data: mmap.mmap | bytes, layer: StoredLayer) -> Iterator[_Field]:
    """The blobs of a stored layer."""
    (whole,) = _fields(data, layer.start, layer.end)
    for field in _fields(data, whole.value, whole.end):
        if field.number == _BLOBS_FIELD[whole.number] and field.wire == _BYTES:
            yield field


def write_blob(values: NDArray[np.float32]) -> bytes:
    """A BlobProto of four old-style dimensions (``num, channels, height, width``), which every Caffe reads.

    Fewer dimensions get ones in front. compute_image_mean writes a mean image in the same way.
    """
    shape = (1,) * (4 - values.ndim) + values.shape
    dims = b"".join(_tag(number, _VARINT) + _as_varint(size) for number, size in enumerate(shape, start=1))
    numbers = np.ascontiguousarray(values, "<f4").tobytes()
    return dims + _tag(5, _BYTES) + _as_varint(len(numbers)) + numbers


def _blob_head(shape: tuple[int, ...]) -> bytes:
    """A BlobProto up to its numbers, which follow as float32."""
    dims = b"".join(map(_as_varint, shape))
    packed = _bytes_field(1, len(dims)) + dims
    return _bytes_field(7, len(packed)) + packed + _bytes_field(5, 4 * math.prod(shape))


def _bytes_field(number: int, length: int) -> bytes:
    return _tag(number, _BYTES) + _as_varint(length)


def _tag(number: int, wire: int) -> bytes:
    return _as_varint(number << 3 | wire)


def _as_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _layers(data: mmap.mmap | bytes) -> list[StoredLayer]:
    found = []
    for field in _fields(data, 0, len(data)):
        if field.number not in _NAME_FIELD or field.wire != _BYTES:
            continue
        name, shapes = "", []
        for part in _fields(data, field.value, field.end):
            if part.number == _NAME_FIELD[field.number] and part.wire == _BYTES:
                name = bytes(data[part.value : part.end]).decode("utf-8")
            elif part.number == _BLOBS_FIELD[field.number] and part.wire == _BYTES:
                shapes.append(_shape(data, part))
        found.append(StoredLayer(name, tuple(shapes), field.start, field.end))
    return found


class Caffemodel:
    """A caffemodel opened for reading; use it in a ``with`` block.

    Raises WeightsError naming the file when it is missing, empty, an HTML page, HDF5, cut off or no caffemodel.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open_regular(self.path, WeightsError) as file:
                head = file.read(512)
                if not head:
                    raise WeightsError(f"{self.path}: the file is empty. Download it again.")
                if head.lstrip()[:1] == b"<" or b"<html" in head.lower():
                    raise WeightsError(
                        f"{self.path}: an HTML page, not a caffemodel; the server sent a web page instead of the file. "
                        "Download it again."
                    )
                if head.startswith(_HDF5):
                    raise WeightsError(f"{self.path}: a caffemodel in {_IN_HDF5}")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise WeightsError(f"{self.path}: {error.strerror}.") from error
        try:
            self.layers = _layers(self._data)
        except (ValueError, UnicodeDecodeError, IndexError) as error:
            self._data.close()
            raise WeightsError(f"{self.path}: cut off, or not a caffemodel ({error}). Download it again.") from error
        if not any(layer.shapes for layer in self.layers):
            self._data.close()
            raise WeightsError(f"{self.path}: holds no weights: not a caffemodel of a network.")

    def __enter__(self) -> Caffemodel:
        return self

    def __exit__(self, *exception: object) -> None:
        self._data.close()

    def shapes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """The shapes of the weights of each layer that has any."""
        return {layer.name: layer.shapes for layer in self.layers if layer.shapes}

    def blobs(self, name: str) -> list[StoredBlob]:
        """The weights of a layer, in their order; WeightsError when a blob's numbers do not fit its shape.

        Of two layers of one name the last one counts, as for Caffe.
        """
        layer = next(each for each in reversed(self.layers) if each.name == name and each.shapes)
        try:
            return [_stored_blob(self._data, field) for field in _blob_fields(self._data, layer)]
        except (ValueError, IndexError) as error:
            raise WeightsError(f"{self.path}: layer {name}: {error}. Download it again.") from error

    def write_weights(self, weights: Mapping[str, Sequence[tuple[int, ...]]], out: BinaryIO) -> None:
        """Write a caffemodel of only these layers' weights, by name, with these shapes; WeightsError as for `blobs`."""
        for name, shapes in weights.items():
            blobs = self.blobs(name)
            named = _bytes_field(1, len(encoded := name.encode())) + encoded
            heads = [_blob_head(shape) for shape in shapes]
            heads = [_bytes_field(7, len(h) + 4 * b.values.size) + h for h, b in zip(heads, blobs, strict=True)]
            size = len(named) + sum(len(head) + 4 * blob.values.size for head, blob in zip(heads, blobs, strict=True))
            out.write(_bytes_field(_V2_LAYER, size) + named)
            for head, blob in zip(heads, blobs, strict=True):
                out.write(head)
                out.write(np.ascontiguousarray(blob.values, "<f4").data)

    def write_without(self, names: set[str], target: Path) -> None:
        """Copy the file to ``target`` without these layers, every other byte as it is, whole or not at all."""
        with writing(target) as out:
            at = 0
            for layer in self.layers:
                if layer.name in names:
                    out.write(memoryview(self._data)[at : layer.start])
                    at = layer.end
            out.write(memoryview(self._data)[at:])


def initial_weights(weights: Path, target: Path, head: str, head_shape: tuple[int, int]) -> str:
    """Write the weights that ``caffe train --weights`` accepts together with the paper's ``fc8``; return what was done.

    ``head`` is the regression layer's name and ``head_shape`` its (outputs, inputs). A stored layer of that name is
    kept when its shape agrees, and removed otherwise.
    """
    with Caffemodel(weights) as model:
        shapes = model.shapes()
        if "conv1" not in shapes or "fc7" not in shapes:
            raise WeightsError(
                f"{weights}: not CaffeNet's weights: it has {', '.join(list(shapes)[:6])}, … "
                "but conv1 and fc7 are needed."
            )
        stored = shapes.get(head)
        if stored is None:
            model.write_without(set(), target)
            return f"{head} is not in {weights.name}; it starts from its filler"
        size = tuple(dim for dim in stored[0] if dim != 1) if head_shape[0] == 1 else stored[0][-2:]
        if size == tuple(dim for dim in head_shape if dim != 1):
            model.write_without(set(), target)
            return f"{head} of {weights.name} has the right shape and is kept"
        model.write_without({head}, target)
        shown = " x ".join(map(str, stored[0]))
        return f"{head} ({shown}) removed from {weights.name}; it starts from its filler"


def solver_state(path: Path) -> tuple[int, int]:
    """The iteration of a solverstate and the number of histories it holds; WeightsError when it is cut off."""
    try:
        with open_regular(path, WeightsError) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _refuse_hdf5(path, data[:4])
            iteration = histories = 0
            for field in _fields(data, 0, len(data)):
                if field.number == 1 and field.wire == _VARINT:
                    iteration, _ = _varint(data, field.value, field.end)
                elif field.number == 3 and field.wire == _BYTES:
                    histories += 1
            return iteration, histories
    except (OSError, ValueError, IndexError) as error:
        raise WeightsError(f"{path}: cut off, or not a solverstate ({error}).") from error


def _refuse_hdf5(path: Path, head: bytes) -> None:
    if head.startswith(_HDF5):
        raise WeightsError(f"{path}: a solverstate in {_IN_HDF5}")


def learned_net(path: Path) -> str:
    """The caffemodel that a solverstate names; WeightsError when it cannot be read."""
    try:
        with open_regular(path, WeightsError) as file:
            data = file.read(65536)
        _refuse_hdf5(path, data)
        for field in _fields(data, 0, len(data)):
            if field.number == 2 and field.wire == _BYTES:
                return data[field.value : field.end].decode("utf-8")
    except (OSError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: cut off, or not a solverstate ({error}).") from error
    raise WeightsError(f"{path}: names no caffemodel; not a solverstate.")

"""The shapes of a net's blobs, computed from its prototxt as Caffe does, without building the net.

Knows the layer types of CaffeNet. At a layer of another type the computation stops, without an error.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

Shape = tuple[int, ...]


class Flow(NamedTuple):
    """The result of following a net: shapes of blobs and weights, what does not fit, and whether all was followed."""

    blobs: dict[str, Shape]
    weights: dict[str, list[Shape]]
    problems: list[str]
    complete: bool
    unknown: str = ""
    """The first layer of an unknown type, where following stopped."""


class _DoesNotFit(Exception):
    """Why Caffe would refuse a layer, as text."""


class _DataMissing(Exception):
    """An LMDB that does not exist; the caller that looked for it reports it."""


def phase_of(layer: Any, phase: int) -> bool:
    """Whether a layer takes part in a phase (0 TRAIN, 1 TEST), by its include and exclude rules."""
    if layer.include:
        return any(not rule.HasField("phase") or rule.phase == phase for rule in layer.include)
    return not any(rule.HasField("phase") and rule.phase == phase for rule in layer.exclude)


def follow(net: Any, phase: int, data: dict[str, Shape]) -> Flow:
    """Follow a parsed NetParameter through a phase.

    ``data`` maps each LMDB's path, as written in the net, to the shape of its images: (channels, height, width).
    """
    blobs: dict[str, Shape] = {}
    weights: dict[str, list[Shape]] = {}
    problems: list[str] = []
    for layer in net.layer:
        if not phase_of(layer, phase):
            continue
        unknown = [bottom for bottom in layer.bottom if bottom not in blobs]
        if unknown:
            problems.append(f"layer {layer.name}: no earlier layer makes its bottom {unknown[0]}")
            return Flow(blobs, weights, problems, False)
        bottoms = [blobs[bottom] for bottom in layer.bottom]
        try:
            rule = _TYPES[layer.type]
        except KeyError:
            return Flow(blobs, weights, problems, False, f"{layer.name} ({layer.type})")
        try:
            tops, params = rule(layer, bottoms, data)
        except _DataMissing:
            return Flow(blobs, weights, problems, False)
        except _DoesNotFit as error:
            problems.append(f"layer {layer.name}: {error}")
            return Flow(blobs, weights, problems, False)
        except (ValueError, IndexError, ZeroDivisionError):
            problems.append(f"layer {layer.name}: its bottoms and parameters do not fit a {layer.type} layer")
            return Flow(blobs, weights, problems, False)
        blobs.update(zip(layer.top, tops, strict=False))
        if params:
            weights[layer.name] = params
    return Flow(blobs, weights, problems, True)


def _pair(repeated: Any, high: int, wide: int, default: int) -> tuple[int, int]:
    values = list(repeated)
    if high or wide:
        return high, wide
    if not values:
        return default, default
    return values[0], values[-1]


def _data(layer: Any, bottoms: list[Shape], data: dict[str, Shape]) -> tuple[list[Shape], list[Shape]]:
    batch = layer.data_param.batch_size
    stored = data.get(layer.data_param.source)
    if stored is None:
        raise _DataMissing
    crop = layer.transform_param.crop_size
    size = (crop, crop) if crop else stored[1:]
    return [(batch, stored[0], *size), (batch,)], []


def _input(layer: Any, bottoms: list[Shape], data: dict[str, Shape]) -> tuple[list[Shape], list[Shape]]:
    return [tuple(shape.dim) for shape in layer.input_param.shape], []


def _convolution(layer: Any, bottoms: list[Shape], data: dict[str, Shape]) -> tuple[list[Shape], list[Shape]]:
    p, (n, channels, height, width) = layer.convolution_param, bottoms[0]
    kernel = _pair(p.kernel_size, p.kernel_h, p.kernel_w, 0)
    stride, pad = _pair(p.stride, p.stride_h, p.stride_w, 1), _pair(p.pad, p.pad_h, p.pad_w, 0)
    if channels % p.group or p.num_output % p.group:
        raise _DoesNotFit(f"{channels} channels in and {p.num_output} out cannot be divided into {p.group} groups")
    high, wide = (
        (side + 2 * b - k) // s + 1 for side, b, k, s in zip((height, width), pad, kernel, stride, strict=True)
    )
    if high < 1 or wide < 1:
        raise _DoesNotFit(f"its input of {height} x {width} is smaller than its kernel of {kernel[0]} x {kernel[1]}")
    params: list[Shape] = [(p.num_output, channels // p.group, *kernel)]
    return [(n, p.num_output, high, wide)], params + ([(p.num_output,)] if p.bias_term else [])


def _pooling(layer: Any, bottoms: list[Shape], data: dict[str, Shape]) -> tuple[list[Shape], list[Shape]]:
    p, (n, channels, height, width) = layer.pooling_param, bottoms[0]
    if p.global_pooling:
        return [(n, channels, 1, 1)], []
    sides = []
    for side in (height, width):
        out = math.ceil((side + 2 * p.pad - p.kernel_size) / p.stride) + 1  # Caffe rounds up
        sides.append(out - 1 if p.pad and (out - 1) * p.stride >= side + p.pad else out)
    if min(sides) < 1:
        raise _DoesNotFit(f"its input of {height} x {width} is smaller than its window of {p.kernel_size}")
    return [(n, channels, *sides)], []


def _inner_product(layer: Any, bottoms: list[Shape], data: dict[str, Shape]) -> tuple[list[Shape], list[Shape]]:
    p = layer.inner_product_param
    params: list[Shape] = [(p.num_output, math.prod(bottoms[0][1:]))]
    return [(bottoms[0][0], p.num_output)], params + ([(p.num_output,)] if p.bias_term else [])


def _loss(layer: Any, bottoms: list[Shape], data: dict[str, Shape]) -> tuple[list[Shape], list[Shape]]:
    answer, label = bottoms
    if answer[0] != label[0] or math.prod(answer[1:]) != math.prod(label[1:]):
        names = list(layer.bottom)
        raise _DoesNotFit(
            f"{names[0]} gives {math.prod(answer[1:])} numbers per image and {names[1]} {math.prod(label[1:])}: "
            "EuclideanLoss needs the same number. Set num_output of the last layer to 1"
        )
    return [()], []


def _same(layer: Any, bottoms: list[Shape], data: dict[str, Shape]) -> tuple[list[Shape], list[Shape]]:
    return [bottoms[0]], []


_TYPES = {
    "Data": _data,
    "Input": _input,
    "Convolution": _convolution,
    "Pooling": _pooling,
    "InnerProduct": _inner_product,
    "EuclideanLoss": _loss,
    **dict.fromkeys(("ReLU", "LRN", "Dropout", "Sigmoid", "TanH", "ELU", "AbsVal", "Power", "Exp", "BNLL"), _same),
}

"""A deploy file and its weights as an ONNX net: the same arithmetic, for ONNX Runtime and other tools.

Two things differ between Caffe and ONNX. Caffe's pooling rounds the number of windows up and drops a window that would
start in the padding behind the image; here the numbers of windows are Caffe's (`shapes.follow`), and the padding is
stated explicitly. Caffe's AVE pooling divides by the part of a window within the padded image, so ONNX's average is
multiplied by a constant where that part is smaller (pooling_layer.cpp).

The net's input is Caffe's input: float32 (n, channels, height, width), less the mean. The same deploy file and weights
give the same bytes. Needs the package onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonecaffe.caffe.caffemodel import Caffemodel
from bonecaffe.caffe.deploy import INPUT, Deploy
from bonecaffe.caffe.shapes import Shape
from bonecaffe.errors import CaffeError

OPSET, IR_VERSION = 17, 8
"""Of ONNX 1.12 (2022): old enough for any runtime in use."""
INSTALL = "Install it with: pip install onnx onnxruntime"
_HANDS = "hands"


@dataclass
class Converted:
    """An ONNX net: its bytes, and by name the weights that it refers to."""

    graph: bytes
    weights: Mapping[str, NDArray[np.float32]]


@dataclass
class _Graph:
    """A graph that is being made, and the current value of each of Caffe's blobs: layers in place overwrite them."""

    helper: Any
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node; returns its output."""
        self.nodes.append(self.helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output


def convert(deploy: Deploy, model: Caffemodel, weights_file: str) -> Converted:
    """The net as ONNX, with its weights as external data.

    ``weights_file`` is the caffemodel's name where the ONNX file will be used: the same folder. The weights are those
    bytes of the caffemodel and stored only once. Numbers that it does not hold as plain float32 are put into the net.
    Raises ModelError or WeightsError when weights and net do not fit, CaffeError without the package onnx.
    """
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise CaffeError(f"the package onnx is not usable here ({error}). {INSTALL}.") from error

    deploy.check_weights(model)
    graph = _Graph(helper, values={INPUT: INPUT})
    initializers, weights = [], {}
    for name, shapes in deploy.weights.items():
        for stored, shape, part in zip(model.blobs(name), shapes, ("weights", "bias"), strict=False):
            tensor = f"{name}/{part}"
            if stored.offset is not None:
                weights[tensor] = stored.values.reshape(shape)
            initializers.append(_initializer(tensor, shape, stored.values, stored.offset, weights_file))
    for layer in deploy.layers:
        if layer.type != "Input":
            _convert_layer(graph, layer, deploy)
    output = graph.values[deploy.output]
    made = helper.make_graph(
        graph.nodes,
        "bonecaffe",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [_HANDS, *deploy.input])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [_HANDS, *deploy.blobs[deploy.output][1:]])],
        [*initializers, *graph.constants],
    )
    net = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="bonecaffe",
    )
    return Converted(net.SerializeToString(deterministic=True), weights)


def _initializer(name: str, shape: Shape, values: NDArray[np.float32], offset: int | None, weights_file: str) -> Any:
    """A tensor of weights: where its numbers are in the caffemodel, or the numbers themselves."""
    from onnx import TensorProto

    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    if offset is None:
        tensor.raw_data = np.ascontiguousarray(values, "<f4").tobytes()
        return tensor
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", weights_file), ("offset", offset), ("length", values.size * 4)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _convert_layer(graph: _Graph, layer: Any, deploy: Deploy) -> None:
    (bottom,), (top,) = layer.bottom, layer.top
    taken = graph.values[bottom]
    name = top if top == layer.name and top not in graph.values.values() else f"{layer.name}/{top}"
    graph.values[top] = _TYPES[layer.type](graph, layer, taken, name, deploy)


def _convolution(graph: _Graph, layer: Any, taken: str, name: str, deploy: Deploy) -> str:
    p = layer.convolution_param
    stride, pad = (_pair(getattr(p, f"{what}"), p, what, default) for what, default in (("stride", 1), ("pad", 0)))
    shapes = deploy.weights[layer.name]
    inputs = [taken, *(f"{layer.name}/{part}" for part in ("weights", "bias")[: len(shapes)])]
    kernel = list(shapes[0][2:])
    return graph.add("Conv", inputs, name, group=p.group, kernel_shape=kernel, strides=list(stride), pads=[*pad, *pad])


def _pair(repeated: Any, parameters: Any, what: str, default: int) -> tuple[int, int]:
    """Height and width of a convolution's stride or pad, as Caffe takes them."""
    high, wide = getattr(parameters, f"{what}_h"), getattr(parameters, f"{what}_w")
    if high or wide:
        return high, wide
    values = list(repeated) or [default]
    return values[0], values[-1]


def _relu(graph: _Graph, layer: Any, taken: str, name: str, deploy: Deploy) -> str:
    slope = layer.relu_param.negative_slope
    return graph.add("LeakyRelu", [taken], name, alpha=slope) if slope else graph.add("Relu", [taken], name)


def _lrn(graph: _Graph, layer: Any, taken: str, name: str, deploy: Deploy) -> str:
    p = layer.lrn_param  # both divide alpha by the number of channels
    return graph.add("LRN", [taken], name, size=p.local_size, alpha=p.alpha, beta=p.beta, bias=p.k)


def _pooling(graph: _Graph, layer: Any, taken: str, name: str, deploy: Deploy) -> str:
    p, (before, after) = layer.pooling_param, _shapes_around(layer, deploy)
    if p.global_pooling:
        return graph.add("GlobalAveragePool" if p.pool else "GlobalMaxPool", [taken], name)
    behind = [max(0, (o - 1) * p.stride + p.kernel_size - i - p.pad) for i, o in zip(before, after, strict=True)]
    windows = {
        "kernel_shape": [p.kernel_size] * 2,
        "strides": [p.stride] * 2,
        "pads": [p.pad, p.pad, *behind],
    }
    if not p.pool:
        return graph.add("MaxPool", [taken], name, **windows)
    parts = [_parts(i, o, p.pad, p.kernel_size, p.stride) for i, o in zip(before, after, strict=True)]
    factor = (p.kernel_size**2 / np.outer(parts[0], parts[1])).astype(np.float32)
    if (factor == 1).all():
        return graph.add("AveragePool", [taken], name, **windows, count_include_pad=1)
    average = graph.add("AveragePool", [taken], f"{name}/whole", **windows, count_include_pad=1)
    constant = graph.helper.make_tensor(f"{name}/factor", 1, factor.shape, factor.astype("<f4").tobytes(), raw=True)
    graph.constants.append(constant)
    return graph.add("Mul", [average, constant.name], name)


def _parts(side: int, out: int, pad: int, kernel: int, stride: int) -> list[int]:
    """The length of each window along one side, within the padded image: what Caffe's AVE pooling divides by."""
    return [min(n * stride + kernel, side + 2 * pad) - n * stride for n in range(out)]


def _inner_product(graph: _Graph, layer: Any, taken: str, name: str, deploy: Deploy) -> str:
    shapes = deploy.weights[layer.name]
    flat = graph.add("Flatten", [taken], f"{name}/flat", axis=1)
    inputs = [flat, *(f"{layer.name}/{part}" for part in ("weights", "bias")[: len(shapes)])]
    return graph.add("Gemm", inputs, name, transB=1)


def _dropout(graph: _Graph, layer: Any, taken: str, name: str, deploy: Deploy) -> str:
    return taken  # in use it passes its input on


def _shapes_around(layer: Any, deploy: Deploy) -> tuple[Shape, Shape]:
    """Height and width before and after a layer that is not in place."""
    return deploy.blobs[layer.bottom[0]][2:], deploy.blobs[layer.top[0]][2:]


_TYPES = {
    "Convolution": _convolution,
    "ReLU": _relu,
    "LRN": _lrn,
    "Pooling": _pooling,
    "InnerProduct": _inner_product,
    "Dropout": _dropout,
}

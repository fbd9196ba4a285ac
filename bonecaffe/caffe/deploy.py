"""A deploy file and its weights, read and checked without Caffe: for ONNX, and before a stranger's net is loaded.

Caffe ends its process at a net or at weights that it cannot use, and ignores what it does not find in the weights. So a
net is parsed here, followed layer by layer, and compared with its weights. Only the layers and parameters of
bonecaffe's own nets are known (CaffeNet's and the locator's). Anything else is refused by name.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bonecaffe.caffe import shapes
from bonecaffe.caffe.caffemodel import Caffemodel
from bonecaffe.caffe.shapes import Shape
from bonecaffe.errors import ModelError

INPUT = "data"
"""The name of the input in every deploy file of bonecaffe."""
TYPES = ("Input", "Convolution", "ReLU", "LRN", "Pooling", "InnerProduct", "Dropout")
MOST_NUMBERS = 1 << 30
"""The most numbers in the weights of a net and in its blobs for one image. The paper's net has 57 million weights."""
MOST_LAYERS = 1000
_TEST = 1

_MESSAGES = {
    "NetParameter": "name:string layer:LayerParameter*",
    "LayerParameter": "name:string type:string bottom:string* top:string* phase:Phase param:ParamSpec* "
    "include:NetStateRule* exclude:NetStateRule* input_param:InputParameter "
    "convolution_param:ConvolutionParameter relu_param:ReLUParameter lrn_param:LRNParameter "
    "pooling_param:PoolingParameter inner_product_param:InnerProductParameter dropout_param:DropoutParameter",
    "ParamSpec": "name:string lr_mult:float decay_mult:float",
    "NetStateRule": "phase:Phase",
    "BlobShape": "dim:int64*",
    "InputParameter": "shape:BlobShape*",
    "FillerParameter": "type:string value:float min:float max:float mean:float std:float sparse:int32 "
    "variance_norm:VarianceNorm",
    "ConvolutionParameter": "num_output:uint32 bias_term:bool=true pad:uint32* kernel_size:uint32* stride:uint32* "
    "pad_h:uint32 pad_w:uint32 kernel_h:uint32 kernel_w:uint32 stride_h:uint32 stride_w:uint32 group:uint32=1 "
    "weight_filler:FillerParameter bias_filler:FillerParameter engine:Engine",
    "ReLUParameter": "negative_slope:float=0 engine:Engine",
    "LRNParameter": "local_size:uint32=5 alpha:float=1 beta:float=0.75 k:float=1 norm_region:NormRegion engine:Engine",
    "PoolingParameter": "pool:PoolMethod pad:uint32=0 kernel_size:uint32 stride:uint32=1 global_pooling:bool "
    "engine:Engine",
    "InnerProductParameter": "num_output:uint32 bias_term:bool=true weight_filler:FillerParameter "
    "bias_filler:FillerParameter",
    "DropoutParameter": "dropout_ratio:float=0.5",
}
"""The part of caffe.proto that bonecaffe's nets use: the fields of each message, ``*`` repeated, ``=`` the default."""
_ENUMS = {
    "Phase": ("TRAIN", "TEST"),
    "Engine": ("DEFAULT", "CAFFE", "CUDNN"),
    "NormRegion": ("ACROSS_CHANNELS", "WITHIN_CHANNEL"),
    "PoolMethod": ("MAX", "AVE", "STOCHASTIC"),
    "VarianceNorm": ("FAN_IN", "FAN_OUT", "AVERAGE"),
}


@dataclass(frozen=True)
class Deploy:
    """A net in use: its layers in the TEST phase, the shapes of its blobs and weights, its one input and output.

    The shapes of the blobs are those of the file, whose number of images does not count.
    """

    where: str
    layers: tuple[Any, ...]
    blobs: Mapping[str, Shape]
    weights: Mapping[str, tuple[Shape, ...]]
    output: str

    @property
    def input(self) -> Shape:
        """The input's shape for one image: (channels, height, width)."""
        return self.blobs[INPUT][1:]

    def check_weights(self, model: Caffemodel) -> None:
        """ModelError unless a caffemodel has exactly the weights that the net needs.

        Layers of the caffemodel that the net does not have are ignored, as Caffe ignores them.
        """
        stored = model.shapes()
        for name, needed in self.weights.items():
            if name not in stored:
                raise ModelError(f"{model.path}: no weights for layer {name} of {self.where}. {_OTHER_NET}")
            found = stored[name]
            if len(found) != len(needed) or not all(map(fits, found, needed)):
                raise ModelError(
                    f"{model.path}: layer {name} has weights of {_shown(found)}, but {self.where} needs "
                    f"{_shown(needed)}. {_OTHER_NET}"
                )


_OTHER_NET = "The weights are of another net: take both files from one run."


def fits(stored: Shape, needed: Shape) -> bool:
    """Whether Caffe accepts a stored blob: equal dimensions, or old files' four, with dimensions of 1 in front.

    >>> fits((1, 1, 4096, 9216), (4096, 9216)), fits((4096, 9216, 1, 1), (4096, 9216))
    (True, False)
    """
    return stored == needed or (len(stored) == 4 and stored == (1,) * (4 - len(needed)) + needed)


def _shown(found: tuple[Shape, ...]) -> str:
    return " and ".join(" x ".join(map(str, shape)) for shape in found)


def parse(text: str, where: str) -> Deploy:
    """The net of a deploy file's text; ModelError beginning with ``where`` for what is not one, or is not known."""
    net = _message(text, where)
    if len(net.layer) > MOST_LAYERS:
        raise ModelError(f"{where}: {len(net.layer)} layers; a net has at most {MOST_LAYERS}.")
    layers = tuple(layer for layer in net.layer if shapes.phase_of(layer, _TEST))
    for layer in layers:
        _check(layer, where)
    _check_names(layers, where)
    inputs = [layer for layer in layers if layer.type == "Input"]
    sizes = [tuple(shape.dim) for layer in inputs for shape in layer.input_param.shape]
    if [top for layer in inputs for top in layer.top] != [INPUT] or len(sizes) != 1 or len(sizes[0]) != 4:
        raise ModelError(f"{where}: needs one layer of type Input with one top, {INPUT}, and a shape of 4 dim.")
    if not all(1 <= dim <= 1 << 20 for dim in sizes[0]):
        raise ModelError(f"{where}: the input's shape is {' x '.join(map(str, sizes[0]))}; no such image exists.")
    flow = shapes.follow(net, _TEST, {})
    if flow.problems or not flow.complete:
        raise ModelError(f"{where}: {flow.problems[0] if flow.problems else f'unknown layer {flow.unknown}'}.")
    weights = {name: tuple(found) for name, found in flow.weights.items()}
    if not weights:
        raise ModelError(f"{where}: no layer with weights.")
    numbers = sum(math.prod(shape) for found in weights.values() for shape in found)
    numbers += sum(math.prod(shape[1:]) for shape in flow.blobs.values())
    if numbers > MOST_NUMBERS:
        raise ModelError(f"{where}: a net of {numbers:.2g} numbers; more than {MOST_NUMBERS:.2g} are not computed.")
    return Deploy(where, layers, flow.blobs, weights, _output(layers, where))


def _output(layers: tuple[Any, ...], where: str) -> str:
    """The blob that no layer takes: what Caffe calls the net's output."""
    open_blobs: dict[str, None] = {}
    for layer in layers:
        for bottom in layer.bottom:
            open_blobs.pop(bottom, None)
        open_blobs.update(dict.fromkeys(layer.top))
    if len(open_blobs) != 1:
        raise ModelError(f"{where}: needs one output; it has {', '.join(open_blobs) or 'none'}.")
    return next(iter(open_blobs))


def _check_names(layers: tuple[Any, ...], where: str) -> None:
    """ModelError where two layers have one name, or make one blob; ReLU and Dropout may replace their own bottom."""
    names: set[str] = set()
    tops: set[str] = set()
    for layer in layers:
        if layer.name in names:
            raise ModelError(f"{where}: two layers are named {layer.name}.")
        made = set(layer.top) - (set(layer.bottom) if layer.type in ("ReLU", "Dropout") else set())
        if made & tops:
            raise ModelError(f"{where}: layer {layer.name}: another layer makes its top {', '.join(made & tops)} too.")
        names.add(layer.name)
        tops |= made


def _check(layer: Any, where: str) -> None:
    """ModelError for a layer of an unknown type, or with parameters that no net of bonecaffe has."""
    name = f"{where}: layer {layer.name} ({layer.type})"
    if layer.type not in TYPES:
        raise ModelError(f"{name}: its type is not one of {', '.join(TYPES)}. Other layers are not computed.")
    if len(layer.top) != 1 or len(layer.bottom) != (layer.type != "Input"):
        raise ModelError(f"{name}: needs one bottom and one top.")
    if layer.type == "LRN":
        p = layer.lrn_param
        if p.norm_region or p.local_size % 2 == 0:
            raise ModelError(f"{name}: only normalization across an odd number of channels is known.")
    if layer.type == "Pooling":
        p = layer.pooling_param
        if p.pool > 1:
            raise ModelError(f"{name}: only MAX and AVE are known.")
        if not p.global_pooling and not (1 <= p.stride <= p.kernel_size and p.pad < p.kernel_size):
            raise ModelError(f"{name}: needs a kernel_size that is at least the stride and larger than the pad.")
        if p.global_pooling and (p.pad or p.stride != 1):
            raise ModelError(f"{name}: global pooling takes no pad and no stride.")
    if layer.type == "Convolution" and not layer.convolution_param.group:
        raise ModelError(f"{name}: needs at least one group.")
    if layer.type in ("Convolution", "InnerProduct"):
        p = layer.convolution_param if layer.type == "Convolution" else layer.inner_product_param
        if not p.num_output:
            raise ModelError(f"{name}: needs num_output.")


# ---- the text ----------------------------------------------------------------------------------------------------


def _message(text: str, where: str) -> Any:
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, _net_parameter()())
    except text_format.ParseError as error:
        raise ModelError(f"{where}: not a net that bonecaffe knows: {_in_words(str(error))}.") from None
    except (RecursionError, ValueError, OverflowError) as error:
        raise ModelError(f"{where}: not a net: {_in_words(str(error))}.") from None


def _in_words(message: str) -> str:
    """An error of protobuf's parser, in one line, without the name of our own package."""
    return " ".join(message.replace("bonecaffe_deploy.", "").split()).rstrip(".")[:300]


@functools.cache
def _net_parameter() -> Any:
    """The class of a NetParameter with the fields of `_MESSAGES`. Caffe's own is in pycaffe, which may be missing."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="bonecaffe_deploy.proto", package="bonecaffe_deploy")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, each in enumerate(fields.split(), start=1):
            _add_field(message, number, each)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.NetParameter"))


def _add_field(message: Any, number: int, text: str) -> None:
    """Add a field, such as ``stride:uint32=1`` or ``layer:LayerParameter*``, to a message's descriptor."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    name, _, kind = text.partition(":")
    kind, _, default = kind.partition("=")
    field = message.field.add(name=name, number=number)
    repeated = kind.endswith("*")
    field.label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    kind = kind.removesuffix("*")
    if kind in _MESSAGES or kind in _ENUMS:
        field.type = FieldDescriptorProto.TYPE_MESSAGE if kind in _MESSAGES else FieldDescriptorProto.TYPE_ENUM
        field.type_name = f".bonecaffe_deploy.{kind}"
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    if default:
        field.default_value = default

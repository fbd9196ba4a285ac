"""The three definition files: train_val, solver and deploy (paper II.3, appendices 1 and 2, figure 4).

`train_val`, `deploy` and `solver` are pure: a recipe in, text out. A few helpers build the network, so that `_caffenet`
reads top to bottom like the figure. Comments in the files name the source of each value.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Union

from bonecaffe.files import write_text
from bonecaffe.network import mean
from bonecaffe.recipe import Recipe

Value = Union[str, int, float, bool, "Enum", "Block"]


class Enum(str):
    """A name of an enumeration in Caffe's protocol, written without quotes: ``MAX``, ``LMDB``, ``GPU``."""


class Block(list[tuple[str, "Value"]]):
    """A message: (field, value) pairs in the order of printing; a field may repeat."""

    def __init__(self, *pairs: tuple[str, Value]) -> None:
        super().__init__(pairs)


def text(message: Iterable[tuple[str, Value]], indent: str = "") -> str:
    """Print a message in protobuf's text format.

    >>> print(text(Block(("name", "fc8"), ("param", Block(("lr_mult", 1.0))))), end="")
    name: "fc8"
    param {
      lr_mult: 1
    }
    """
    lines = []
    for field, value in message:
        if isinstance(value, Block):
            lines.append(f"{indent}{field} {{\n{text(value, indent + '  ')}{indent}}}\n")
        else:
            lines.append(f"{indent}{field}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, float):
        return f"{value:.12f}".rstrip("0").rstrip(".")  # 0.000003 as the paper prints it, not 3e-06
    return str(value)


# ---- layers ----------------------------------------------------------------------------------------------------


def layer(name: str, kind: str, bottoms: Iterable[str], tops: Iterable[str], *rest: tuple[str, Value]) -> Block:
    """A layer of type ``kind`` with its bottoms, tops and further fields."""
    return Block(("name", name), ("type", kind), *[("bottom", b) for b in bottoms], *[("top", t) for t in tops], *rest)


def rates(lr_mult: Iterable[float], decay_mult: Iterable[float]) -> list[tuple[str, Value]]:
    """The two ``param`` blocks of a layer with weights and biases."""
    return [
        ("param", Block(("lr_mult", lr), ("decay_mult", decay))) for lr, decay in zip(lr_mult, decay_mult, strict=True)
    ]


class _Fillers(NamedTuple):
    """How a stock layer's weights and biases start: ``std`` of the Gaussian, value of the constant."""

    std: float
    bias: float


_STOCK = {  # models/bvlc_reference_caffenet/train_val.prototxt
    "conv1": _Fillers(0.01, 0.0),
    "conv2": _Fillers(0.01, 1.0),
    "conv3": _Fillers(0.01, 0.0),
    "conv4": _Fillers(0.01, 1.0),
    "conv5": _Fillers(0.01, 1.0),
    "fc6": _Fillers(0.005, 1.0),
    "fc7": _Fillers(0.005, 1.0),
}


def _fillers(recipe: Recipe, layer: str) -> list[tuple[str, Value]]:
    stock, net = _STOCK[layer], recipe.network
    if net.weight_filler == "stock":
        weight = Block(("type", "gaussian"), ("std", stock.std))
    else:
        weight = Block(("type", net.weight_filler))
    bias = stock.bias if net.bias_filler == "stock" else 0.0
    return [("weight_filler", weight), ("bias_filler", Block(("type", "constant"), ("value", bias)))]


def _caffenet(recipe: Recipe, trained: bool) -> list[Block]:
    """CaffeNet from ``data`` to ``fc8``; fillers and rates only where it is trained."""
    net = recipe.network
    layers: list[Block] = []

    def learn(name: str) -> list[tuple[str, Value]]:
        return rates((1, 2), (1, 0)) if trained else []

    def start(name: str) -> list[tuple[str, Value]]:
        return _fillers(recipe, name) if trained else []

    def conv(index: int, bottom: str, kernel: int, pad: int = 0, stride: int = 1) -> str:
        name, group = f"conv{index}", net.conv_groups[index - 1]
        shape: list[tuple[str, Value]] = [("num_output", net.conv_outputs[index - 1])]
        shape += [("pad", pad)] if pad else []
        shape += [("kernel_size", kernel)]
        shape += [("group", group)] if group > 1 else []
        shape += [("stride", stride)] if stride > 1 else []
        layers.append(
            layer(
                name, "Convolution", [bottom], [name], *learn(name), ("convolution_param", Block(*shape, *start(name)))
            )
        )
        layers.append(layer(f"relu{index}", "ReLU", [name], [name]))
        return name

    def pool(index: int, bottom: str) -> str:
        shape = Block(("pool", Enum("MAX")), ("kernel_size", 3), ("stride", 2))
        layers.append(layer(f"pool{index}", "Pooling", [bottom], [f"pool{index}"], ("pooling_param", shape)))
        return f"pool{index}"

    def norm(index: int, bottom: str) -> str:
        shape = Block(("local_size", 5), ("alpha", 0.0001), ("beta", 0.75))
        layers.append(layer(f"norm{index}", "LRN", [bottom], [f"norm{index}"], ("lrn_param", shape)))
        return f"norm{index}"

    def fc(index: int, bottom: str) -> str:
        name = f"fc{index}"
        shape = Block(("num_output", net.fc_outputs[index - 6]), *start(name))
        layers.append(layer(name, "InnerProduct", [bottom], [name], *learn(name), ("inner_product_param", shape)))
        layers.append(layer(f"relu{index}", "ReLU", [name], [name]))
        if net.dropout:
            layers.append(
                layer(
                    f"drop{index}", "Dropout", [name], [name], ("dropout_param", Block(("dropout_ratio", net.dropout)))
                )
            )
        return name

    top = norm(1, pool(1, conv(1, "data", kernel=11, stride=net.conv1_stride)))
    top = norm(2, pool(2, conv(2, top, kernel=5, pad=2)))
    top = conv(3, top, kernel=3, pad=1)
    top = conv(4, top, kernel=3, pad=1)
    top = pool(5, conv(5, top, kernel=3, pad=1))
    top = fc(7, fc(6, top))
    layers.append(_regression(recipe, top, trained))
    return layers


def _regression(recipe: Recipe, bottom: str, trained: bool) -> Block:
    """Appendix 1: the final layer, re-defined for regression."""
    net = recipe.network
    learn = rates(net.fc8_lr_mult, net.fc8_decay_mult) if trained else []
    shape = Block(("num_output", net.fc8_outputs))
    if trained:
        shape.append(("weight_filler", Block(("type", "gaussian"), ("std", net.fc8_weight_std))))
        shape.append(("bias_filler", Block(("type", "constant"), ("value", net.fc8_bias))))
    return layer(net.fc8_name, "InnerProduct", [bottom], [net.fc8_name], *learn, ("inner_product_param", shape))


def _data(recipe: Recipe, phase: str, split: str, batch: int, mirror: bool) -> list[Block]:
    """The Data layer of a phase; with exact labels, a second one feeds the ages in the order of the images."""
    exact = recipe.data.labels == "exact"

    def source(name: str) -> tuple[str, Value]:
        return "data_param", Block(("source", name), ("batch_size", batch), ("backend", Enum("LMDB")))

    include = ("include", Block(("phase", Enum(phase))))
    transform = ("transform_param", Block(("mirror", mirror), *mean.fields(recipe)))
    tops = ["data"] if exact else ["data", "label"]
    layers = [layer("data", "Data", [], tops, include, transform, source(f"{split}_lmdb"))]
    if exact:
        layers.append(layer("label", "Data", [], ["label"], include, source(f"{split}_labels_lmdb")))
    return layers


def layers(recipe: Recipe) -> list[Block]:
    """The layers of the network in use, from the image to the months, without its data."""
    return _caffenet(recipe, trained=False)


# ---- the three files -------------------------------------------------------------------------------------------


def _heading(recipe: Recipe, what: str) -> str:
    """The comment at the top; the files of one recipe name the mean in the same words."""
    return (
        f"# {what}, recipe {recipe.name}: {recipe.description}.\n"
        f"# Mean subtracted from the input: {mean.words(recipe)}.\n"
        "# Written by `bonecaffe prototxt`; change the recipe, not this file.\n"
    )


def train_val(recipe: Recipe) -> str:
    """The network in training, with its two data layers and the loss. LMDBs are named relative to the file."""
    net = recipe.network
    layers = [
        *_data(recipe, "TRAIN", "train", net.train_batch, net.mirror),
        *_data(recipe, "TEST", "test", net.test_batch, False),
        *_caffenet(recipe, trained=True),
        layer("loss", net.loss, [net.fc8_name, "label"], ["loss"]),
    ]
    body = text(Block(("name", net.name), *[("layer", layer) for layer in layers]))
    return _heading(recipe, "The network in training (paper II.3, appendix 1)") + body


def deploy(recipe: Recipe) -> str:
    """The network in use: an input of 1 x 3 x height x width (BGR less the mean) and fc8, the age in months."""
    size = recipe.preparation
    shape = Block(*[("dim", dim) for dim in (1, 3, size.height, size.width)])
    data = layer("data", "Input", [], ["data"], ("input_param", Block(("shape", shape))))
    body = text(
        Block(
            ("name", recipe.network.name),
            ("layer", data),
            *[("layer", layer) for layer in _caffenet(recipe, trained=False)],
        )
    )
    return _heading(recipe, "The network in use (paper II.3); fc8 is the bone age in months") + body


def solver(recipe: Recipe, snapshot_prefix: str | None = None) -> str:
    """The training schedule (appendix 2), each line with its source; ``snapshot_prefix`` replaces the recipe's."""
    schedule = recipe.solver
    values: dict[str, Value] = {field: getattr(schedule, field) for field in type(schedule).model_fields}
    values["solver_mode"] = Enum(schedule.solver_mode)
    if schedule.lr_policy == "fixed":
        del values["gamma"], values["stepsize"]
    if schedule.iter_size == 1:
        del values["iter_size"]
    if snapshot_prefix is not None:
        values["snapshot_prefix"] = snapshot_prefix
    lines = []
    for field, value in values.items():
        source = recipe.source_of(f"solver.{field}")
        lines.append(f"{field}: {_scalar(value)}".ljust(36) + f"# {source}\n")
    return _heading(recipe, "The training schedule (paper II.4, appendix 2)") + "".join(lines)


def write(folder: Path, recipe: Recipe, snapshot_prefix: str | None = None) -> list[Path]:
    """Write train_val, solver and deploy into a folder, each moved into place whole; return their paths."""
    texts = {
        "train_val.prototxt": train_val(recipe),
        "solver.prototxt": solver(recipe, snapshot_prefix),
        "deploy.prototxt": deploy(recipe),
    }
    os.makedirs(folder, exist_ok=True)
    for name, content in texts.items():
        write_text(folder / name, content, parents=True)
    return [folder / name for name in texts]

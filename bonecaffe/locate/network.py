"""The locator's net: six convolutions and two full layers, 14 outputs under EuclideanLoss. Text for Caffe, pure."""

from __future__ import annotations

from collections.abc import Iterable

from bonecaffe.locate.frames import SIDE
from bonecaffe.network.prototxt import Block, Enum, Value, layer, rates, text

OUTPUTS = 14
_CONVOLUTIONS = (
    (24, 5, 2, True),
    (32, 3, 1, False),
    (48, 3, 1, True),
    (64, 3, 1, False),
    (64, 3, 1, True),
    (64, 3, 1, False),
)
"""Maps, kernel, stride, whether a pooling by two follows."""
_FULL = 192


def _fillers(bias: float = 0.0) -> list[tuple[str, Value]]:
    return [("weight_filler", Block(("type", "msra"))), ("bias_filler", Block(("type", "constant"), ("value", bias)))]


def _body(trained: bool) -> list[Block]:
    learn = rates((1, 2), (1, 0)) if trained else []
    start = _fillers() if trained else []
    layers, top = [], "data"
    for number, (maps, kernel, stride, pooled) in enumerate(_CONVOLUTIONS, start=1):
        name = f"conv{number}"
        shape = Block(("num_output", maps), ("pad", kernel // 2), ("kernel_size", kernel), ("stride", stride), *start)
        layers += [layer(name, "Convolution", [top], [name], *learn, ("convolution_param", shape))]
        layers += [layer(f"relu{number}", "ReLU", [name], [name])]
        top = name
        if pooled:
            pooling = Block(("pool", Enum("MAX")), ("kernel_size", 2), ("stride", 2))
            layers += [layer(f"pool{number}", "Pooling", [top], [f"pool{number}"], ("pooling_param", pooling))]
            top = f"pool{number}"
    for name, bottom, outputs in (("full", top, _FULL), ("points", "full", OUTPUTS)):
        shape = Block(("num_output", outputs), *start)
        layers += [layer(name, "InnerProduct", [bottom], [name], *learn, ("inner_product_param", shape))]
        if name == "full":
            layers += [layer("relu_full", "ReLU", [name], [name])]
    return layers


def _net(view: str, layers: Iterable[Block]) -> str:
    return text(Block(("name", f"locator_{view}"), *[("layer", each) for each in layers]))


def train_val(view: str, batch: int) -> str:
    """The net in training: two databases per phase, squares and labels, read in parallel."""
    transform = ("transform_param", Block(("scale", 1 / 64), ("mean_value", 128)))
    data = []
    for phase, split in (("TRAIN", "train"), ("TEST", "test")):
        include = ("include", Block(("phase", Enum(phase))))
        for top, source, how in (("data", f"{split}_lmdb", [transform]), ("label", f"{split}_labels_lmdb", [])):
            database = Block(("source", source), ("batch_size", batch), ("backend", Enum("LMDB")))
            data.append(layer(top, "Data", [], [top], include, *how, ("data_param", database)))
    flat = layer("flat", "Flatten", ["label"], ["places"])
    return _net(view, [*data, flat, *_body(True), layer("loss", "EuclideanLoss", ["points", "places"], ["loss"])])


def deploy() -> str:
    """The net in use: squares less 128, over 64, in; 14 numbers out, x and y of each point in points.csv's order."""
    shape = Block(*[("dim", dim) for dim in (1, 1, SIDE, SIDE)])
    return _net(
        "deploy", [layer("data", "Input", [], ["data"], ("input_param", Block(("shape", shape)))), *_body(False)]
    )


def solver(iterations: int, rate: float, test_iter: int, seed: int) -> str:
    """Adam, with a rate that falls linearly to zero."""
    return text(
        Block(
            ("net", "train_val.prototxt"),
            ("type", "Adam"),
            ("base_lr", rate),
            ("momentum", 0.9),
            ("lr_policy", "poly"),
            ("power", 1.0),
            ("weight_decay", 0.0001),
            ("max_iter", iterations),
            ("display", 20),
            ("test_iter", test_iter),
            ("test_interval", max(1, iterations // 8)),
            ("test_initialization", False),
            ("snapshot", max(1, iterations // 8)),
            ("snapshot_prefix", "snapshots/SNAPSHOT"),
            ("solver_mode", Enum("CPU")),
            ("random_seed", seed),
        )
    )

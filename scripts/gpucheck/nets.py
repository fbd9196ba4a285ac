"""The networks and solvers of the check, as prototxt.

The net is the paper's (paper II.3, appendix 1): the same layers as prototxt/paper/train_val.prototxt, which a test
compares. From scratch, the stock fillers and the paper's SGD learn nothing in 200 iterations; so the training of the
check takes msra fillers and Adam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Tuple

SIDE_PX = 224
MEAN = (104, 117, 123)


@dataclass(frozen=True)
class Sizes:
    """Outputs of the five convolutions and of fc6 and fc7, images a batch, and how the weights begin."""

    convolutions: Tuple[int, ...] = (96, 256, 384, 384, 256)
    inner: Tuple[int, ...] = (4096, 4096)
    batch: int = 256
    stock_fillers: bool = False
    dropout: float = 0.5


PAPER = Sizes()
QUICK = Sizes(convolutions=(8, 8, 8, 8, 8), inner=(16, 16), batch=8, dropout=0.0)

_KERNELS = ((11, 4, 0, 1), (5, 1, 2, 2), (3, 1, 1, 1), (3, 1, 1, 2), (3, 1, 1, 2))  # side, stride, pad, group
_BIASES = (0, 1, 0, 1, 1)  # of the stock net


def _layer(name: str, kind: str, bottoms: Sequence[str], top: str | None, body: str = "") -> str:
    wires = "".join(f' bottom: "{bottom}"' for bottom in bottoms) + (f' top: "{top}"' if top else "")
    return f'layer {{ name: "{name}" type: "{kind}"{wires}{" " + body if body else ""} }}\n'


def _weights(sizes: Sizes, std: float, bias: float) -> str:
    if sizes.stock_fillers:
        return f'weight_filler {{ type: "gaussian" std: {std} }} bias_filler {{ type: "constant" value: {bias} }}'
    return 'weight_filler { type: "msra" } bias_filler { type: "constant" value: 0 }'


_LEARNED = "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }"


def data(database: str, phase: str, batch: int) -> str:
    """A Data layer over an LMDB; mirrored in training, as the paper's recipe has it."""
    mean = " ".join(f"mean_value: {value}" for value in MEAN)
    return (
        f'layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: {phase} }} '
        f"transform_param {{ mirror: {'true' if phase == 'TRAIN' else 'false'} {mean} }} "
        f'data_param {{ source: "{database}" batch_size: {batch} backend: LMDB }} }}\n'
    )


def body(sizes: Sizes) -> str:
    """From data to fc8, the age in months."""
    text, below = "", "data"
    for number, (outputs, kernel) in enumerate(zip(sizes.convolutions, _KERNELS), start=1):
        side, stride, pad, group = kernel
        name = f"conv{number}"
        shape = f"num_output: {outputs} kernel_size: {side}"
        shape += f" stride: {stride}" if stride > 1 else ""
        shape += f" pad: {pad}" if pad else ""
        shape += f" group: {group}" if group > 1 else ""
        fillers = _weights(sizes, 0.01, _BIASES[number - 1])
        text += _layer(name, "Convolution", [below], name, f"{_LEARNED} convolution_param {{ {shape} {fillers} }}")
        text += _layer(f"relu{number}", "ReLU", [name], name)
        below = name
        if number in (1, 2, 5):
            pool = f"pool{number}"
            text += _layer(pool, "Pooling", [name], pool, "pooling_param { pool: MAX kernel_size: 3 stride: 2 }")
            below = pool
        if number in (1, 2):
            norm = f"norm{number}"
            text += _layer(norm, "LRN", [below], norm, "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")
            below = norm
    for number, outputs in enumerate(sizes.inner, start=6):
        name = f"fc{number}"
        text += _inner(name, below, outputs, _weights(sizes, 0.005, 1))
        text += _layer(f"relu{number}", "ReLU", [name], name)
        if sizes.dropout:
            text += _layer(
                f"drop{number}", "Dropout", [name], name, f"dropout_param {{ dropout_ratio: {sizes.dropout} }}"
            )
        below = name
    last = _weights(sizes, 0.01, 0)
    if not sizes.stock_fillers:  # near the mean age of the phantoms, so that the loss is about their differences
        last = 'weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 100 }'
    return text + _inner("fc8", below, 1, last)


def _inner(name: str, below: str, outputs: int, fillers: str) -> str:
    return _layer(
        name, "InnerProduct", [below], name, f"{_LEARNED} inner_product_param {{ num_output: {outputs} {fillers} }}"
    )


def train_val(sizes: Sizes, train: str, test: str, test_batch: int) -> str:
    """The net in training and test, over two LMDBs."""
    return (
        'name: "CaffeNet"\n'
        + data(train, "TRAIN", sizes.batch)
        + data(test, "TEST", test_batch)
        + body(sizes)
        + _layer("loss", "EuclideanLoss", ["fc8", "label"], "loss")
    )


def predicting(sizes: Sizes, test: str, batch: int) -> str:
    """The net whose outputs are the ages and the labels: ``caffe test`` logs each of their values."""
    return 'name: "CaffeNet"\n' + data(test, "TEST", batch) + body(sizes)


def solver(net: str, prefix: str, gpu: bool, iterations: int, display: int, test: Tuple[int, int], rate: float) -> str:
    """Adam, with which the paper's net learns from scratch; ``test`` is test_iter and test_interval."""
    return (
        f'net: "{net}"\ntype: "Adam"\nbase_lr: {rate}\nlr_policy: "fixed"\nmomentum: 0.9\nmomentum2: 0.999\n'
        f"weight_decay: 0.0005\ntest_iter: {test[0]}\ntest_interval: {test[1]}\ntest_initialization: false\n"
        f'display: {display}\nmax_iter: {iterations}\nsnapshot: 1000000\nsnapshot_prefix: "{prefix}"\n'
        f"solver_mode: {'GPU' if gpu else 'CPU'}\nrandom_seed: 2018\n"
    )


# ---- one convolution and its gradients -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Convolution:
    """A grouped convolution of CaffeNet with the size of its input in this net; stride 1."""

    name: str
    channels: int
    outputs: int
    side: int
    kernel: int
    pad: int
    group: int = 2

    @property
    def per_group(self) -> int:
        """Input channels that one output sees."""
        return self.channels // self.group


GROUPED = (
    Convolution("conv2", 96, 256, 27, 5, 2),
    Convolution("conv4", 384, 384, 13, 3, 1),
    Convolution("conv5", 384, 256, 13, 3, 1),
)
GAIN = 1024
"""Learning rate of input, weights and bias, so that what is left of their values rounds away next to the gradient."""


def gradients(layers: Sequence[Convolution], batch: int) -> str:
    """A net whose one step of SGD leaves outputs and gradients in its weights, where a caffemodel shows them.

    A Parameter layer is the input, another one, p = 0, the target of EuclideanLoss. The gradient of the loss in p is
    (p - y) / batch, so that a step at learning rate ``batch`` makes p the convolution's output y. The gradient in y is
    y / batch, from which those of input, weights and bias follow.
    """
    text = 'name: "gradients"\n'
    for one in layers:
        text += _parameter(one.name + "_x", GAIN, (batch, one.channels, one.side, one.side))
        text += _parameter(one.name + "_y", batch, (batch, one.outputs, one.side, one.side))
        text += _layer(
            one.name,
            "Convolution",
            [one.name + "_x"],
            one.name,
            f"param {{ lr_mult: {GAIN} }} param {{ lr_mult: {GAIN} }} convolution_param {{ num_output: {one.outputs} "
            f"kernel_size: {one.kernel} pad: {one.pad} group: {one.group} }}",
        )
        text += _layer(one.name + "_loss", "EuclideanLoss", [one.name, one.name + "_y"], one.name + "_loss")
    return text


def _parameter(name: str, rate: int, shape: Sequence[int]) -> str:
    dims: List[str] = [f"dim: {size}" for size in shape]
    return _layer(
        name, "Parameter", [], name, f"param {{ lr_mult: {rate} }} parameter_param {{ shape {{ {' '.join(dims)} }} }}"
    )


def one_step(net: str, prefix: str, gpu: bool) -> str:
    """A single step of plain SGD, and a snapshot."""
    return (
        f'net: "{net}"\ntype: "SGD"\nbase_lr: 1\nlr_policy: "fixed"\nmomentum: 0\nweight_decay: 0\nmax_iter: 1\n'
        f'display: 1\nsnapshot_prefix: "{prefix}"\nsolver_mode: {"GPU" if gpu else "CPU"}\nrandom_seed: 1\n'
    )

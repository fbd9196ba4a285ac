"""Part 3: CaffeNet's grouped convolutions on the device against the CPU, forward and backward.

Both start from the same numbers, drawn here. `caffe train` makes one step; `nets.gradients` tells why the snapshot then
holds output and gradients. Single values are compared with exact sums too, so that an error on both sides shows.
"""

from __future__ import annotations

import math
import operator
import random
from array import array
from typing import Any, Dict, List, Tuple

from gpucheck import nets, wire
from gpucheck.check import Check
from gpucheck.outcome import Failed, Result
from gpucheck.store import remove, write

ROUNDING = 2.0**-24
"""Half of float32's spacing at 1."""
SAFETY = 20
BOUND = (
    "20 * 2^-24 * sqrt(products in a sum), 3e-05 to 7e-05. On CPUs, other OpenBLAS kernels differ by up to 7e-07. "
    "Factors rounded to TF32's 11 bits give 2e-04 to 3e-04"
)
"""Measured with OPENBLAS_CORETYPE=PRESCOTT, HASWELL and ZEN against NEHALEM, and with rounded factors, batch 4."""


def compare(check: Check) -> Result:
    """The largest difference of each convolution's output and gradients, relative to their largest value."""
    batch = 2 if check.options.quick else 4
    layers = nets.GROUPED[1:2] if check.options.quick else nets.GROUPED
    start = _start(layers, batch)
    (check.work / "gradients.caffemodel").write_bytes(wire.caffemodel(start))
    write(check.work / "gradients.prototxt", nets.gradients(layers, batch))
    reference = _step(check, "cpu", False, {})
    figures: Dict[str, Any] = {"bound": BOUND, "batch": batch, "layers": {}}
    faults: List[str] = []
    for name, extra in [(check.device.lower(), {})] + ([("tf32", TF32_ON)] if check.gpu else []):
        other = _step(check, f"device-{name}", check.gpu, extra)
        for one in layers:
            for quantity, layer, blob, products in _quantities(one, batch):
                expected, found = wire.numbers(reference[layer][blob]), wire.numbers(other[layer][blob])
                largest = wire.max_abs(expected)
                difference = wire.max_abs(map(operator.sub, expected, found)) / (largest or 1.0)
                bound = SAFETY * ROUNDING * math.sqrt(products)
                entry = figures["layers"].setdefault(one.name, {}).setdefault(quantity, {"bound": bound})
                entry["tf32" if name == "tf32" else "difference"] = difference
                if name != "tf32" and not (difference <= bound and largest > 0):
                    faults.append(f"{one.name} {quantity}: {difference:.2g} over {bound:.2g}")
    for one in layers:
        wrong = _exact(one, batch, start, reference)
        figures["layers"][one.name]["cpu_against_exact_sums"] = wrong
        if not wrong <= SAFETY * ROUNDING * math.sqrt(one.per_group * one.kernel**2):
            faults.append(f"{one.name}: the CPU's own output differs from exact sums by {wrong:.2g}")
    worst, place = max(
        (entry["difference"], f"{name} {quantity}")
        for name, entries in figures["layers"].items()
        for quantity, entry in entries.items()
        if isinstance(entry, dict)
    )
    figures["largest_difference"] = worst
    for path in check.work.glob("gradients*.caffemodel"):
        remove(path)
    for path in check.work.glob("gradients*.solverstate"):
        remove(path)
    if faults:
        raise Failed("; ".join(faults), figures)
    where = f"{check.device} against CPU: largest relative difference {worst:.2g} ({place})"
    return Result("ok", f"{where}; all under their bounds", figures)


TF32_ON = {"BONECAFFE_TF32": "1"}
"""What allows TF32; figures with it are for information."""


def _quantities(one: nets.Convolution, batch: int) -> List[Tuple[str, str, int, int]]:
    """What, in which layer's blob it is, and how many products one of its sums has."""
    area = batch * one.side**2
    return [
        ("output", one.name + "_y", 0, one.per_group * one.kernel**2),
        ("input gradient", one.name + "_x", 0, one.outputs // one.group * one.kernel**2),
        ("weight gradient", one.name, 0, area),
        ("bias gradient", one.name, 1, area),
    ]


def _start(layers: Any, batch: int) -> Dict[str, List[Tuple[Tuple[int, ...], array[float]]]]:
    """Input, weights and bias of each convolution, uniform in -0.5 to 0.5, always the same."""
    rng = random.Random(1801)

    def drawn(*shape: int) -> Tuple[Tuple[int, ...], array[float]]:
        return shape, array("f", [rng.random() - 0.5 for _ in range(math.prod(shape))])

    start = {}
    for one in layers:
        start[one.name + "_x"] = [drawn(batch, one.channels, one.side, one.side)]
        start[one.name] = [drawn(one.outputs, one.per_group, one.kernel, one.kernel), drawn(one.outputs)]
    return start


def _step(check: Check, name: str, gpu: bool, extra: Dict[str, str]) -> wire.Weights:
    prefix = f"gradients-{name}"
    write(check.work / f"{prefix}.solver.prototxt", nets.one_step("gradients.prototxt", prefix, gpu))
    device = check.on_device() if gpu else []
    arguments = ["train", "-solver", f"{prefix}.solver.prototxt", "-weights", "gradients.caffemodel", *device]
    check.run_caffe(arguments, prefix, extra)
    try:
        return wire.read(check.work / f"{prefix}_iter_1.caffemodel")
    except (OSError, ValueError) as error:
        raise Failed(f"the snapshot of one step cannot be read: {error}") from error


def _exact(one: nets.Convolution, batch: int, start: Any, found: wire.Weights) -> float:
    """The largest difference of 24 of the CPU's outputs from sums without rounding, relative to the largest output."""
    rng = random.Random(7)
    x, weights, bias = start[one.name + "_x"][0][1], start[one.name][0][1], start[one.name][1][1]
    outputs = wire.numbers(found[one.name + "_y"][0])
    side, kernel, worst = one.side, one.kernel, 0.0
    for _ in range(24):
        n, o, row, column = rng.randrange(batch), rng.randrange(one.outputs), rng.randrange(side), rng.randrange(side)
        first = o // (one.outputs // one.group) * one.per_group
        products = [float(bias[o])]
        for c in range(one.per_group):
            for i in range(kernel):
                for j in range(kernel):
                    y, z = row + i - one.pad, column + j - one.pad
                    if 0 <= y < side and 0 <= z < side:
                        products.append(
                            x[((n * one.channels + first + c) * side + y) * side + z]
                            * weights[((o * one.per_group + c) * kernel + i) * kernel + j]
                        )
        got = outputs[((n * one.outputs + o) * side + row) * side + column]
        worst = max(worst, abs(got - math.fsum(products)))
    return worst / (wire.max_abs(outputs) or 1.0)

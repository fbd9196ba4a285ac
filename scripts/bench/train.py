"""train: the paper's net as it trains, batch 32, forward and backward: against Caffe's own loops, PyTorch and sgemm."""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bonecaffe.caffe import installation, programs

from .workbench import Row, Workbench, best, built_caffe, seconds_of

BATCH = 32
TURNS = 3
OURS, STOCK, PYTORCH = "bonecaffe's Caffe", "Caffe's own loops", "PyTorch"


def measure(bench: Workbench) -> list[Row]:
    """Images per second, and how much faster or slower the same pass is elsewhere; each engine in turn, three times."""
    run = bench.full_net()
    times = _side_by_side(_engines(run))
    own = times.pop(OURS)
    speed = f"{BATCH / own:.1f} images/s forward and backward, full-size net, batch {BATCH} ({own:.2f} s)"
    rows = [Row("train", speed)]
    for name, seconds in times.items():
        faster = f"{seconds / own:.2f} times as fast ({name}: {BATCH / seconds:.1f} images/s)"
        rows.append(Row(f"train, {name}", faster))
    rows.append(_against_sgemm(run, own))
    if PYTORCH not in times:
        rows.append(Row(f"train, {PYTORCH}", "not installed; nothing to compare with"))
    return rows


def _engines(run: Path) -> dict[str, Callable[[], float]]:
    """What computes the same pass here: name, and a function that gives its seconds."""
    ours = installation.find().program("caffe")
    engines = {OURS: lambda: _caffe_time(ours, run)}
    stock = _stock_caffe()
    if stock is not None:
        engines[STOCK] = lambda: _caffe_time(stock, run)
    pytorch = _pytorch()
    if pytorch is not None:
        engines[PYTORCH] = pytorch
    return engines


def _side_by_side(engines: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The best seconds of each engine; they take turns, so that a busy minute meets all of them."""
    times = dict.fromkeys(engines, float("inf"))
    for _ in range(TURNS):
        for name, engine in engines.items():
            times[name] = min(times[name], engine())
    return times


def _caffe_time(program: Path, run: Path) -> float:
    """Seconds of a forward and backward pass of a run's own training net and LMDB, by `caffe time`."""
    command = [str(program), "time", "-model", "train_val.prototxt", "-iterations", str(TURNS)]
    loud = {**programs.UNLESS_SET, **os.environ, "GLOG_minloglevel": "0"}
    log = subprocess.run(command, cwd=run, env=loud, capture_output=True, text=True, check=True).stderr
    return float(log.split("Average Forward-Backward: ")[1].split()[0]) / 1000


def _stock_caffe() -> Path | None:
    """The caffe program of a build with Caffe's own loops (FAST=0), built when it is missing.

    None when the Caffe in use is the user's own.
    """
    caffe = installation.find()
    if "USE_OPENMP=ON" not in str(caffe.build.get("flags", "")):
        return None
    return built_caffe(BONECAFFE_FAST="0", BONECAFFE_GPU="1" if caffe.has_gpu else "0") / "bin" / "caffe"


# ---- PyTorch -------------------------------------------------------------------------------------------------------


def _pytorch() -> Callable[[], float] | None:
    """A function that gives the seconds of a pass of the same net in PyTorch; None when it is not installed."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    net = _pytorch_net(torch.nn)
    data = torch.randn(BATCH, 3, 224, 224) * 50

    def once() -> None:
        net.zero_grad(set_to_none=False)  # as Caffe, which clears its sums and keeps their memory
        net(data).square().mean().backward()

    def turns() -> None:
        for _ in range(TURNS):
            once()

    def seconds() -> float:
        once()
        return seconds_of(turns) / TURNS

    return seconds


def _pytorch_net(nn: Any) -> Any:
    """The paper's net, layer by layer."""

    def conv(a: int, b: int, kernel: int, **more: int) -> list[Any]:
        return [nn.Conv2d(a, b, kernel, **more), nn.ReLU(inplace=True)]

    def pool() -> Any:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        *(*conv(3, 96, 11, stride=4), pool(), nn.LocalResponseNorm(5)),
        *(*conv(96, 256, 5, padding=2, groups=2), pool(), nn.LocalResponseNorm(5)),
        *conv(256, 384, 3, padding=1),
        *conv(384, 384, 3, padding=1, groups=2),
        *(*conv(384, 256, 3, padding=1, groups=2), pool(), nn.Flatten()),
        *(nn.LazyLinear(4096), nn.ReLU(inplace=True), nn.Dropout()),
        *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()),
        nn.Linear(4096, 1),
    )


# ---- sgemm ---------------------------------------------------------------------------------------------------------


def _against_sgemm(run: Path, seconds: float) -> Row:
    flops, peak = _multiplications(programs.import_pycaffe(), run), _sgemm_peak()
    limit = flops / peak
    work = f"{limit:.2f} s: {flops / 1e9:.0f} GFLOP at {peak / 1e9:.0f} GFLOP/s"
    return Row("train, sgemm", f"{limit / seconds:.0%} of what sgemm alone would take ({work})")


def _multiplications(caffe: ModuleType, run: Path) -> float:
    """Floating-point operations of the matrix products of a pass; the first layer passes no gradient on."""
    net = caffe.Net(str(run / "deploy.prototxt"), 1)
    one = [2 * blobs[0].data.size * (net.blobs[name].data[0, 0].size) for name, blobs in net.params.items()]
    return BATCH * (3.0 * float(sum(one)) - float(one[0]))


def _sgemm_peak() -> float:
    """Multiplications and additions per second of NumPy's BLAS, on a product of 4096 x 4096 and all cores."""
    a = np.ones((4096, 4096), np.float32)
    return 2 * 4096**3 / best(lambda: a @ a, 4)

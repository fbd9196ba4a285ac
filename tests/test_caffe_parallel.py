"""Caffe on all cores (scripts/caffe_parallel.hpp): any number of threads gives the same predictions and updates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from conftest import REPOSITORY, prepare_run, tiny

from bonecaffe.caffe import installation, programs, snapshots
from bonecaffe.network import definitions, prototxt
from bonecaffe.run import RunDir
from bonecaffe.training import train

FORWARD = """
import json, os, sys
import numpy as np
from bonecaffe.caffe import programs
caffe = programs.import_pycaffe()
caffe.set_random_seed(3)
net = caffe.Net(sys.argv[1], caffe.TEST)
def months(count):
    net.blobs["data"].reshape(count, 3, 224, 224)
    net.blobs["data"].data[...] = np.random.default_rng(count).normal(0, 50, (count, 3, 224, 224))
    return net.forward()["fc8"].ravel().tolist()
found = {str(count): months(count) for count in (1, 2, 3, 8, 13)}
if len(sys.argv) > 2:  # once more, in a fork
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0
    else:
        same = np.allclose(months(8), found["8"], rtol=1e-5)
        os._exit(0 if same else 1)
print(json.dumps(found))
"""


def forward(deploy, threads: int, *more: str) -> dict[str, list[float]]:
    done = subprocess.run(
        [sys.executable, "-c", FORWARD, str(deploy), *more],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def deploy(tmp_path_factory):
    """The paper's net with random weights, full size."""
    path = tmp_path_factory.mktemp("net") / "deploy.prototxt"
    text = prototxt.deploy(tiny(network__conv_outputs=(96, 256, 384, 384, 256), network__conv_groups=(1, 2, 1, 2, 2)))
    for kind in ("convolution", "inner_product"):
        text = text.replace(f"{kind}_param {{", f'{kind}_param {{\n    weight_filler {{ type: "msra" }}')
    path.write_text(text)
    return path


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_predictions_do_not_depend_on_threads(deploy, threads):
    """One image or several, fewer or more than threads: the same months except for rounding."""
    alone, together = forward(deploy, 1), forward(deploy, threads)
    for count, months in alone.items():
        assert np.allclose(months, together[count], rtol=1e-4, atol=1e-4), count


def test_a_fork_computes_too(deploy):
    """OpenMP's threads do not survive in a forked process; Caffe must not wait for them there."""
    forward(deploy, 2, "fork")


WIDE = {
    "network__fc_outputs": (1024, 512),
    "network__conv_outputs": (24, 32, 48, 48, 32),
    "network__conv_groups": (1, 2, 1, 2, 2),
}
"""Wide enough that the products of full layers, sums, scalings and powers are shared by threads too."""


def in_caffe(code: str, threads: int, run: RunDir, *arguments: str) -> dict[str, np.ndarray]:
    """The arrays that a program with pycaffe hands back, called in a run's folder on so many threads."""
    with tempfile.NamedTemporaryFile(suffix=".npz") as out:
        done = subprocess.run(
            [sys.executable, "-c", PYCAFFE + code, out.name, *arguments],
            cwd=run.path,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return dict(np.load(out.name))


PYCAFFE = """
import sys
import numpy as np
from bonecaffe.caffe import programs
caffe = programs.import_pycaffe()
caffe.set_random_seed(3)
rng = np.random.default_rng(1)
"""

ONE_PASS = """
picture, images, nudge = sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
net = caffe.Net("train_val.prototxt", caffe.TRAIN)
net.forward()
data, label = net.blobs["data"], net.blobs["label"]
if picture != "hands":
    data.reshape(images, 3, 224, 224)
    label.reshape(images)
    label.data[...] = np.linspace(60, 180, images)
if picture == "noise":
    data.data[...] = rng.normal(0, 50, data.data.shape)
if picture == "tied":
    data.data[:, 0] = np.tile(rng.normal(0, 50, (images, 224, 16)), 14)
    data.data[:, 1] = np.roll(data.data[:, 0], 8, axis=2)
    data.data[:, 2] = 0
    net.params["conv1"][0].data[:, 1] = net.params["conv1"][0].data[:, 0]
for blob in [blob for name in net.params for blob in net.params[name]]:
    blob.data[...] *= 1 + nudge * rng.choice([-1, 1], blob.data.shape)
net.forward(start="conv1")
net.backward()
arrays = {}
for name, blob in net.blobs.items():
    arrays[name] = blob.data
for name, (weights, bias) in net.params.items():
    arrays[f"{name} weights"], arrays[f"{name} bias"] = weights.diff, bias.diff
np.savez(sys.argv[1], **arrays)
"""
"""One forward and backward pass from seeded weights, which ``nudge`` changes by that part of themselves.

``hands`` is the first batch of phantoms. ``noise`` has no ties: no pooling window has two values at its maximum.
``tied`` has many: every eight columns, two colour channels with equal weights swap, so that the first convolution's
values are equal in exact arithmetic, and rounding decides between them.
"""

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
POOLS = {"conv1": "pool1", "conv2": "pool2", "conv5": "pool5"}
ROUNDING = 1e-5
"""Of the largest number in a blob. Measured: at most 2e-6."""


@pytest.fixture(scope="module")
def wide_run(hands, tmp_path_factory) -> RunDir:
    run = prepare_run(tmp_path_factory.mktemp("wide") / "run", hands, tiny(**WIDE))
    definitions.write(run, run.recipe())
    return run


def agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= ROUNDING * np.abs(theirs).max())


def windows(values: np.ndarray) -> np.ndarray:
    """Max pooling's windows of three by three at every second place, nine numbers each, as Caffe lays them out."""
    size = -(-(values.shape[2] - 3) // 2) * 2 + 3
    padded = np.pad(values, [(0, 0), (0, 0), *[(0, size - values.shape[2])] * 2], constant_values=-np.inf)
    found = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    return found.reshape(*found.shape[:4], 9)


def flips(one: dict, other: dict, layer: str) -> int:
    """Where the gradient takes another way in two passes: another maximum in a window, or a ReLU on the other side.

    Fails when such a place is not a tie: the values between which the passes decide differ by rounding only.
    """
    if layer == "fc8":
        return 0
    scale = ROUNDING * np.abs(one[layer]).max()
    changed_side = (one[layer] > 0) != (other[layer] > 0)
    assert np.abs(one[layer][changed_side]).max(initial=0) <= scale
    if layer not in POOLS:
        return int(changed_side.sum())
    ours, theirs = windows(one[layer]), windows(other[layer])
    assert np.array_equal(ours.max(-1), one[POOLS[layer]])
    place, other_place = ours.argmax(-1)[..., None], theirs.argmax(-1)[..., None]
    gap = ours.max(-1, keepdims=True) - np.take_along_axis(ours, other_place, -1)
    assert gap.max() <= scale
    return int((place != other_place).sum() + changed_side.sum())


def compare(one: dict, other: dict) -> tuple[int, list[str]]:
    """How many flips two passes differ by, and the layers whose gradients differ by more than rounding.

    Fails when a blob differs by more than rounding, or a gradient does without a flip in its layer or above.
    """
    for name in (name for name in one if " " not in name):
        assert agree(one[name], other[name]), name
    count, differing = 0, []
    for layer in reversed(LAYERS):
        count += flips(one, other, layer)
        for name in (f"{layer} weights", f"{layer} bias"):
            assert np.abs(one[name]).max() > 0
            if not agree(one[name], other[name]):
                assert count, f"the gradient of {name} differs, and no maximum has moved"
                differing.append(layer)
    return count, differing


@pytest.mark.parametrize(("picture", "images"), [("hands", 4), ("noise", 4), ("noise", 2), ("tied", 4), ("tied", 2)])
def test_threads_change_a_pass_by_rounding_and_flips_only(wide_run, picture, images):
    """One thread and three, more images than threads and fewer: the same blobs, the same gradients except for flips."""
    one, three = (in_caffe(ONE_PASS, threads, wide_run, picture, str(images), "0") for threads in (1, 3))
    count, differing = compare(one, three)
    if picture == "noise":
        assert (count, differing) == (0, [])
    if picture == "hands":
        assert count <= 10  # of 96,224 windows, two of which are ties


def test_rounding_flips_ties(wide_run):
    """Weights that differ by rounding give the same blobs, but other gradients where windows hold ties, and only there.

    This is why trainings on one thread and on three part ways: their first gradients are summed in another order.
    """
    for picture, flipped in (("noise", False), ("tied", True)):
        plain, nudged = (in_caffe(ONE_PASS, 3, wide_run, picture, "4", nudge) for nudge in ("0", "1e-7"))
        count, differing = compare(plain, nudged)
        assert bool(count) == flipped and set(differing) == ({"conv1"} if flipped else set())


UPDATES = """
solver = caffe.get_solver("solver.prototxt")
blobs = {f"{name} {i}": blob for name in solver.net.params for i, blob in enumerate(solver.net.params[name])}
before = {name: blob.data.copy() for name, blob in blobs.items()}
for _ in range(3):
    for blob in blobs.values():
        blob.diff[...] = rng.normal(size=blob.diff.shape)
    solver.apply_update()
np.savez(sys.argv[1], **{name: blob.data - before[name] for name, blob in blobs.items()})
"""


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_equal_gradients_give_equal_updates(wide_run, tmp_path, kind):
    """Three steps of the solver from the same weights and gradients: the same changes on one thread and on three."""
    run = RunDir(shutil.copytree(wide_run.path, tmp_path / "run"))
    definitions.write(run, tiny(solver__type=kind, **WIDE))
    run.snapshots.mkdir()
    one, three = (in_caffe(UPDATES, threads, run) for threads in (1, 3))
    for name, change in one.items():
        assert np.abs(change).max() > 0 and agree(three[name], change), name


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_same_threads_give_the_same_bytes(wide_run, tmp_path, monkeypatch, kind):
    """Trained twice on three threads: the same model to the byte, and every weight and bias has learned something."""
    rate = 1e-6 if kind == "SGD" else 1e-4
    models = []
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for name in ("first", "second"):
        run = RunDir(shutil.copytree(wide_run.path, tmp_path / name))
        run.write_recipe(tiny(solver__type=kind, solver__base_lr=rate, **WIDE))
        assert train.train(run).state == "finished"
        models.append([snapshot.caffemodel for snapshot in snapshots.find(run.snapshots)])
    assert models[0][-1].read_bytes() == models[1][-1].read_bytes()
    caffe = programs.import_pycaffe()
    deploy = str(tmp_path / "first" / "deploy.prototxt")
    before, after = (caffe.Net(deploy, str(models[0][i]), caffe.TEST).params for i in (0, -1))
    for name in after:
        for i in (0, 1):
            assert np.abs(after[name][i].data - before[name][i].data).max() > 0, name


FULL = """
import sys
import numpy as np
from bonecaffe.caffe import programs
caffe = programs.import_pycaffe()
net = caffe.Net(sys.argv[1], caffe.TEST)
rng = np.random.default_rng(1)
for blob in [net.blobs["data"], *net.params["full"]]:
    blob.data[...] = rng.normal(size=blob.data.shape)
x, (w, b) = net.blobs["data"].data.copy(), [blob.data.copy() for blob in net.params["full"]]
y = net.forward()["full"]
net.blobs["full"].diff[...] = out = rng.normal(size=y.shape).astype(np.float32)
net.backward()
def near(ours, theirs):
    return np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
assert near(y, x @ w.T + b), "forward"
assert near(net.blobs["data"].diff, out @ w), "gradient of the input"
assert near(net.params["full"][0].diff, out.T @ x), "gradient of the weights"
assert near(net.params["full"][1].diff, out.sum(0)), "gradient of the bias"
"""


@pytest.mark.parametrize("images", [3, 32])
def test_full_layer_against_numpy(tmp_path, images):
    """A layer of 1500 to 2000, forward and backward on three threads, for few images and for many."""
    net = tmp_path / "net.prototxt"
    net.write_text(
        'force_backward: true layer { name: "data" type: "Input" top: "data" '
        f"input_param {{ shape {{ dim: {images} dim: 1500 }} }} }}"
        'layer { name: "full" type: "InnerProduct" bottom: "data" top: "full" '
        "inner_product_param { num_output: 2000 } }"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    command = [sys.executable, "-c", FULL, str(net)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_build_record_names_openmp():
    """The record of bonecaffe's build names OpenMP; with FAST=0 or another Caffe this file tests plain Caffe."""
    caffe = installation.find()
    if "flags" not in caffe.build:
        pytest.skip("a Caffe that was not built here")
    assert ("-DUSE_OPENMP=ON" in caffe.build["flags"]) == any(name.startswith("libgomp") for name in caffe.libraries)

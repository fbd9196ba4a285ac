"""Caffe on all cores (scripts/caffe_parallel.hpp): the same predictions and nearly the same training whatever the threads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import prepare_run, tiny

from bonecaffe.caffe import installation, programs
from bonecaffe.network import prototxt
from bonecaffe.run import RunDir
from bonecaffe.training import train

FORWARD = """
import json, os, sys
import numpy as np
from bonecaffe.caffe import installation, programs
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
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def deploy(tmp_path_factory):
    """The paper's net with weights by chance, full size."""
    path = tmp_path_factory.mktemp("net") / "deploy.prototxt"
    text = prototxt.deploy(tiny(network__conv_outputs=(96, 256, 384, 384, 256), network__conv_groups=(1, 2, 1, 2, 2)))
    for kind in ("convolution", "inner_product"):
        text = text.replace(f"{kind}_param {{", f'{kind}_param {{\n    weight_filler {{ type: "msra" }}')
    path.write_text(text)
    return path


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_predictions_do_not_depend_on_threads(deploy, threads):
    """One image or several, fewer or more than threads: the same months but for rounding."""
    alone, together = forward(deploy, 1), forward(deploy, threads)
    for count, months in alone.items():
        assert np.allclose(months, together[count], rtol=1e-4, atol=1e-4), count


def test_a_fork_computes_too(deploy):
    """OpenMP's threads do not live on in a forked process; Caffe must not wait for them there."""
    forward(deploy, 2, "fork")


WIDE = {
    "network__fc_outputs": (1024, 512),
    "network__conv_outputs": (24, 32, 48, 48, 32),
    "network__conv_groups": (1, 2, 1, 2, 2),
}
"""Wide enough that the products of full layers, sums, scalings and powers are shared by threads too."""


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_training_differs_by_rounding_only(hands, tmp_path, monkeypatch, kind):
    """What weights and biases learn on one thread and on three is the same but for rounding; on three again: the same bytes."""
    weights = []
    rate = 1e-6 if kind == "SGD" else 1e-4
    own_run = prepare_run(tmp_path / "run", hands, tiny(solver__type=kind, solver__base_lr=rate, **WIDE))
    for number, threads in enumerate((1, 3, 3)):
        run = RunDir(shutil.copytree(own_run.path, tmp_path / str(number)))
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        train.train(run)
        weights.append([next(run.snapshots.glob(f"*_{iteration}.caffemodel")) for iteration in (4, 12)])
    one, three, again = weights
    assert three[1].read_bytes() == again[1].read_bytes()
    caffe = programs.import_pycaffe()

    def learnt(paths):  # what eight iterations changed
        before, after = (
            caffe.Net(str(tmp_path / "0" / "deploy.prototxt"), str(path), caffe.TEST).params for path in paths
        )
        return {(name, i): after[name][i].data - before[name][i].data for name in after for i in (0, 1)}

    ours = learnt(three)
    for name, change in learnt(one).items():
        assert np.abs(change).max() > 0
        assert np.abs(change - ours[name]).max() < 0.01 * np.abs(change).max(), name


FULL = """
import sys
import numpy as np
from bonecaffe.caffe import installation, programs
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
        f'force_backward: true layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: {images} dim: 1500 }} }} }}'
        'layer { name: "full" type: "InnerProduct" bottom: "data" top: "full" inner_product_param { num_output: 2000 } }'
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    command = [sys.executable, "-c", FULL, str(net)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_build_says_what_it_is():
    """The record of our own build names OpenMP; without it (FAST=0, a Caffe of your own) this file tests plain Caffe."""
    caffe = installation.find()
    if "flags" not in caffe.build:
        pytest.skip("a Caffe that was not built here")
    assert ("-DUSE_OPENMP=ON" in caffe.build["flags"]) == any(name.startswith("libgomp") for name in caffe.libraries)

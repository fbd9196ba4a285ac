"""Caffe on all cores (scripts/caffe_parallel.hpp): the same predictions and nearly the same training whatever the threads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import tiny

from bonecaffe import caffe_tools
from bonecaffe.network import prototxt
from bonecaffe.run import RunDir
from bonecaffe.training import train

FORWARD = """
import json, os, sys
import numpy as np
from bonecaffe import caffe_tools
caffe = caffe_tools.import_pycaffe()
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


def test_training_differs_by_rounding_only(own_run, tmp_path, monkeypatch):
    """Twelve iterations on one thread and on three: the same weights but for rounding; on three again: the same bytes."""
    weights = []
    for number, threads in enumerate((1, 3, 3)):
        run = RunDir(shutil.copytree(own_run.path, tmp_path / str(number)))
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        train.train(run)
        weights.append(sorted(run.snapshots.glob("*_12.caffemodel"))[0])
    one, three, again = weights
    assert three.read_bytes() == again.read_bytes()
    caffe = caffe_tools.import_pycaffe()
    nets = [caffe.Net(str(tmp_path / "0" / "deploy.prototxt"), str(path), caffe.TEST) for path in (one, three)]
    for name in nets[0].params:
        first, second = (net.params[name][0].data for net in nets)
        assert np.allclose(first, second, atol=1e-3 * np.abs(first).max()), name


def test_build_says_what_it_is():
    """The record of our own build names OpenMP; without it (FAST=0, a Caffe of your own) this file tests plain Caffe."""
    caffe = caffe_tools.find()
    if "flags" not in caffe.build:
        pytest.skip("a Caffe that was not built here")
    assert ("-DUSE_OPENMP=ON" in caffe.build["flags"]) == any(name.startswith("libgomp") for name in caffe.libraries)

"""The stages write what version 0.1 wrote, byte for byte; definition files except for their comments.

``goldens/v0.1.json`` was made by bonecaffe 0.1 (commit 98be637) from data/sample and ``goldens/recipe.yaml``: lists,
LMDBs, definition files, initial weights, and the predictions of a net with seeded weights for each hand.
"""

from __future__ import annotations

import hashlib
import json
import re

import lmdb
import numpy as np
import pytest
from conftest import REPOSITORY, SAMPLE, prepare_run

from bonecaffe.caffe import caffemodel, nets, programs
from bonecaffe.network import definitions, mean
from bonecaffe.prepare.outputs import read_prepared
from bonecaffe.recipe import Recipe

GOLDENS = REPOSITORY / "tests" / "goldens"
EXPECTED = json.loads((GOLDENS / "v0.1.json").read_text())
SHAPES = {
    "conv1": [(8, 3, 11, 11), (8,)],
    "conv2": [(8, 8, 5, 5), (8,)],
    "conv3": [(8, 8, 3, 3), (8,)],
    "conv4": [(8, 8, 3, 3), (8,)],
    "conv5": [(8, 8, 3, 3), (8,)],
    "fc6": [(16, 288), (16,)],
    "fc7": [(16, 16), (16,)],
}


def seeded_model(path, outputs):
    """A caffemodel of the recipe's net with weights from a seed, and fc8 with so many outputs."""
    net, rng = programs.caffe_pb2().NetParameter(name="golden"), np.random.default_rng(7)
    for name, shapes in {**SHAPES, "fc8": [(outputs, 16), (outputs,)]}.items():
        layer = net.layer.add(name=name)
        for shape in shapes:
            blob = layer.blobs.add()
            blob.shape.dim.extend(shape)
            blob.data.extend(rng.normal(0, 0.05, int(np.prod(shape))).astype(np.float32).tolist())
    path.write_bytes(net.SerializeToString())


def digest(folder):
    """All keys and values of an LMDB, in order, as one hash."""
    found = hashlib.sha256()
    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as reader:
        for key, value in reader.cursor():
            found.update(len(key).to_bytes(4, "big") + key + len(value).to_bytes(4, "big") + value)
    return found.hexdigest()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    recipe = Recipe.load(GOLDENS / "recipe.yaml")
    recipe = recipe.with_values({"data.labels": "exact"}, "golden: both kinds of labels")
    run = prepare_run(folder / "run", SAMPLE, recipe)
    definitions.write(run, recipe)
    seeded_model(folder / "stock.caffemodel", 1000)
    caffemodel.initial_weights(folder / "stock.caffemodel", run.init_weights, "fc8", (1, 16))
    return run


@pytest.mark.parametrize("name", EXPECTED["files"])
def test_files_are_those_of_version_0_1(run, name):
    """Lists, cases, definition files, and the weights without fc8."""
    content = (run.path / name).read_bytes()
    if name.endswith(".prototxt"):  # comments give sources and reasons, whose wording may change
        content = re.sub(rb"[ \t]*#.*", b"", content)
    assert hashlib.sha256(content).hexdigest() == EXPECTED["files"][name]


@pytest.mark.parametrize("name", EXPECTED["lmdbs"])
def test_lmdbs_are_those_of_version_0_1(run, name):
    """Every key and every value, of images and of exact labels."""
    assert digest(run.path / name) == EXPECTED["lmdbs"][name]


def test_predictions_are_those_of_version_0_1(run, tmp_path):
    """The same hands, net and weights give the same number, to the rounding of another processor."""
    seeded_model(tmp_path / "own.caffemodel", 1)
    net, subtracted = nets.make("caffe", run.deploy, tmp_path / "own.caffemodel"), mean.array(run, run.recipe())
    for case_id, expected in EXPECTED["outputs"].items():
        image = read_prepared(run, case_id).astype(np.float32)[None] - subtracted
        assert float(net.forward(image[None])[0, 0]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert len(EXPECTED["outputs"]) == 12

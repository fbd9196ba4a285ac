"""The three definition files: appendix 1 and 2 field by field, parsed by Caffe's own protocol."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY
from google.protobuf import text_format

from bonecaffe.caffe import programs
from bonecaffe.network import prototxt
from bonecaffe.recipe import Recipe

RECIPES = ["paper", "demo", "smoke"]


def parse(text, kind="NetParameter"):
    return text_format.Parse(text, getattr(programs.caffe_pb2(), kind)())


def layers(text):
    return {layer.name: layer for layer in parse(text).layer}


@pytest.mark.parametrize("name", RECIPES)
def test_committed_files_are_what_the_code_writes(name, tmp_path):
    """prototxt/ is checked for drift, byte for byte."""
    for path in prototxt.write(tmp_path, Recipe.load(name)):
        assert path.read_bytes() == (REPOSITORY / "prototxt" / name / path.name).read_bytes(), (
            f"run: make prototxt ({path.name})"
        )


def test_appendix_1():
    """fc8 and the loss, every printed field."""
    net = layers(prototxt.train_val(Recipe.load("paper")))
    fc8, loss = net["fc8"], net["loss"]
    assert (fc8.type, list(fc8.bottom), list(fc8.top)) == ("InnerProduct", ["fc7"], ["fc8"])
    assert [(p.lr_mult, p.decay_mult) for p in fc8.param] == [(1, 1), (2, 0)]
    shape = fc8.inner_product_param
    assert shape.num_output == 1
    assert (shape.weight_filler.type, round(shape.weight_filler.std, 6)) == ("gaussian", 0.01)
    assert (shape.bias_filler.type, shape.bias_filler.value) == ("constant", 0)
    assert (loss.type, list(loss.bottom), list(loss.top)) == ("EuclideanLoss", ["fc8", "label"], ["loss"])


def test_appendix_2():
    """Every printed field of the solver, and only one more that changes anything: the seed."""
    solver = parse(prototxt.solver(Recipe.load("paper")), "SolverParameter")
    printed = """net: "train_val.prototxt" test_iter: 100 test_interval: 100 base_lr: 0.000003 lr_policy: "step"
        gamma: 0.1 stepsize: 800 display: 20 max_iter: 3000 momentum: 0.9 weight_decay: 0.0005 snapshot: 1000
        snapshot_prefix: "SNAPSHOT" solver_mode: GPU"""
    expected = parse(printed + ' type: "SGD" random_seed: 2018', "SolverParameter")
    assert solver == expected


def test_body_is_bvlcs_caffenet():
    """Every layer from conv1 to fc7 as in the stock file of the Caffe that is installed or was built."""
    stock = next(iter(sorted(REPOSITORY.glob("tests/network/stock_caffenet.prototxt"))))
    theirs, ours = layers(stock.read_text()), layers(prototxt.train_val(Recipe.load("paper")))
    for name, layer in theirs.items():
        if name in ("data", "fc8", "accuracy", "loss"):
            continue
        assert ours[name] == layer, name
    assert set(ours) == set(theirs) - {"accuracy"}
    assert list(ours)[:-2] == [name for name in theirs if name not in ("accuracy", "loss", "fc8")]


def test_data_layers():
    """224 without a crop, three mean values, mirrored in training only, LMDBs beside the file."""
    train, test = parse(prototxt.train_val(Recipe.load("paper"))).layer[:2]
    for layer, source, batch, mirror in ((train, "train_lmdb", 256, True), (test, "test_lmdb", 2, False)):
        assert (layer.data_param.source, layer.data_param.batch_size) == (source, batch)
        assert layer.transform_param.mirror is mirror and layer.transform_param.crop_size == 0
        assert list(layer.transform_param.mean_value) == [104, 117, 123]


@pytest.mark.parametrize("name", RECIPES)
def test_caffe_builds_the_nets(name, tmp_path):
    """The real Caffe reads deploy: 1 x 3 x 224 x 224 in, one number out, 9216 inputs of fc6 at full width."""
    caffe = programs.import_pycaffe()
    prototxt.write(tmp_path, Recipe.load(name))
    net = caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST)
    assert tuple(net.blobs["data"].data.shape) == (1, 3, 224, 224)
    assert net.blobs["fc8"].data.size == 1
    if name != "demo":
        assert net.params["fc6"][0].data.shape == (4096, 9216)


def test_deploy_has_no_training_in_it():
    """No loss, no label, no filler: what it computes depends on the weights alone."""
    text = prototxt.deploy(Recipe.load("paper"))
    for word in ("filler", "lr_mult", "label", "loss", "lmdb"):
        assert word not in text


def test_strings_are_quoted_safely():
    """A path with a quotation mark or backslash stays one string."""
    net = parse(prototxt.text(prototxt.Block(("name", 'a"b\\c'))))
    assert net.name == 'a"b\\c'

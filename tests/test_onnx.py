"""ONNX: the same numbers as pycaffe for every net of bonecaffe, and a refusal by name for any other."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from conftest import tiny

from bonecaffe.caffe import installation, nets, onnx_net, programs
from bonecaffe.caffe.caffemodel import Caffemodel
from bonecaffe.caffe.deploy import parse
from bonecaffe.errors import CaffeError, ModelError
from bonecaffe.hands.phantom import dataset
from bonecaffe.locate.locator import MODEL
from bonecaffe.network import prototxt
from bonecaffe.prepare.normalize import normalize
from bonecaffe.recipe import Recipe

AGREE = 1e-4
PHANTOMS = 100


def filled(text, folder):
    """A deploy file and weights from fillers that are not all zero, written to a folder."""
    caffe = programs.import_pycaffe()
    (folder / "deploy.prototxt").write_text(text)
    with_bias = text.replace("num_output: 1\n", 'num_output: 1\n    bias_filler { type: "constant" value: 100 }\n')
    (folder / "filled.prototxt").write_text(
        re.sub(r"(num_output: \d+\n)", r'\1    weight_filler { type: "msra" }\n', with_bias)
    )
    caffe.set_random_seed(1)
    caffe.Net(str(folder / "filled.prototxt"), caffe.TEST).save(str(folder / "w.caffemodel"))
    return folder / "deploy.prototxt", folder / "w.caffemodel"


def relative(ours, theirs):
    return float(np.abs(ours / theirs - 1).max())


@pytest.mark.parametrize("recipe", ["paper", "demo"])
def test_onnx_equals_pycaffe_on_a_hundred_phantoms(tmp_path, recipe):
    """The paper's net at full size and the demo's."""
    deploy, weights = filled(prototxt.deploy(Recipe.load(recipe)), tmp_path)
    preparation = Recipe.load(recipe).preparation
    mean = np.float32([104, 117, 123]).reshape(3, 1, 1)
    hands = (dataset.make(31, number, (240, 310)) for number in range(PHANTOMS))
    data = np.stack([normalize(hand.image, hand.points, preparation).astype(np.float32) - mean for hand in hands])
    engines = [nets.make(kind, deploy, weights) for kind in ("onnx", "caffe")]
    ours, theirs = (np.concatenate([net.forward(data[n : n + 20]) for n in range(0, PHANTOMS, 20)]) for net in engines)
    assert relative(ours, theirs) <= AGREE
    assert theirs.std() > 0.01 * abs(theirs.mean())  # so that the comparison could have failed


@pytest.mark.parametrize("view", ["whole", "near"])
def test_locators_nets_equal_pycaffes(view):
    """Both nets of the locator, on squares of phantoms: places within 1e-4 of the square's side."""
    from bonecaffe.locate import frames

    films = [frames.Pyramid(dataset.make(7, number, (300, 390)).image) for number in range(PHANTOMS)]
    squares = np.concatenate([frames.cut(film, [frames.whole(film.shape, 0.0)]) for film in films])
    data = (np.stack([frames.even(each) for each in squares])[:, None] - np.float32(128)) / np.float32(64)
    ours, theirs = (
        nets.make(kind, MODEL / "deploy.prototxt", MODEL / f"{view}.caffemodel").forward(data)
        for kind in ("onnx", "caffe")
    )
    assert np.abs(ours - theirs).max() <= AGREE * np.abs(theirs).max()
    assert theirs.std(axis=0).min() > 0


LAYERS = """
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 6 dim: {high} dim: {wide} }} }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param {{ num_output: 4
 group: 2 bias_term: false kernel_h: 3 kernel_w: 1 stride_h: 1 stride_w: 2 pad_h: 2 pad_w: 0 }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" relu_param {{ negative_slope: 0.1 }} }}
layer {{ name: "drop" type: "Dropout" bottom: "conv" top: "dropped" }}
layer {{ name: "norm" type: "LRN" bottom: "dropped" top: "norm"
  lrn_param {{ local_size: 3 alpha: 0.5 beta: 0.6 k: 2 }} }}
layer {{ name: "pool" type: "Pooling" bottom: "norm" top: "pool" pooling_param {{ {pool} }} }}
layer {{ name: "full" type: "InnerProduct" bottom: "pool" top: "full" inner_product_param {{ num_output: 3
 bias_term: false }} }}
"""
WINDOWS = [
    f"pool: {pool} {window}"
    for pool in ("MAX", "AVE")
    for window in (
        "kernel_size: 3 stride: 2",
        "kernel_size: 3 stride: 2 pad: 1",
        "kernel_size: 2 stride: 2 pad: 1",
        "kernel_size: 3 stride: 3 pad: 2",
        "kernel_size: 5 stride: 4 pad: 2",
        "global_pooling: true",
    )
]


@pytest.mark.parametrize("pool", WINDOWS)
def test_layers_equal_pycaffes(tmp_path, pool):
    """Every layer with unusual parameters; pooling with windows that go beyond the image, and with dropped ones."""
    rng = np.random.default_rng(0)
    for high, wide in ((7, 14), (8, 17), (9, 19), (10, 21)):
        deploy, weights = filled(LAYERS.format(high=high, wide=wide, pool=pool), tmp_path)
        data = rng.normal(0, 10, (5, 6, high, wide)).astype(np.float32)
        ours, theirs = (nets.make(kind, deploy, weights).forward(data) for kind in ("onnx", "caffe"))
        assert ours.shape == theirs.shape == (5, 3)
        assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max()), (high, wide)


def test_same_input_gives_same_bytes_and_other_tools_read_them(tmp_path):
    """The ONNX net and its caffemodel in one folder are a complete model; the weights are stored once."""
    import onnxruntime

    deploy, weights = filled(prototxt.deploy(tiny()), tmp_path)
    made = []
    for _ in range(2):
        with Caffemodel(weights) as model:
            made.append(onnx_net.convert(parse(deploy.read_text(), str(deploy)), model, weights.name).graph)
    assert made[0] == made[1]
    assert len(made[0]) < 20_000 < weights.stat().st_size
    (tmp_path / "model.onnx").write_bytes(made[0])
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    data = np.random.default_rng(0).normal(0, 50, (3, 3, 224, 224)).astype(np.float32)
    (theirs,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"data": data})
    assert relative(theirs, nets.make("caffe", deploy, weights).forward(data)) <= AGREE


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('type: "ReLU"', 'type: "Sigmoid"', "layer relu1 (Sigmoid): its type is not one of Input, Convolution"),
        ("stride: 4", "stride: 4 dilation: 2", 'has no field named "dilation"'),
        ("local_size: 5", "local_size: 5 norm_region: WITHIN_CHANNEL", "only normalization across"),
        ("pool: MAX", "pool: STOCHASTIC", "only MAX and AVE"),
        ("dim: 224", "dim: 0", "no such image exists"),
        ('top: "data"', 'top: "other"', "one top, data"),
        ('name: "conv2"', 'name: "conv1"', "two layers are named conv1"),
        ('top: "conv2"', 'top: "conv1"', "another layer makes its top conv1 too"),
        ("num_output: 16", "num_output: 4000000000", "more than 1.1e+09 are not computed"),
        ("num_output: 16", "num_output: 17", "layer fc6 has weights of 16 x"),
        ('bottom: "norm1"', 'bottom: "nothing"', "no earlier layer makes its bottom nothing"),
        ("layer {", "layer", "not a net"),
    ],
)
def test_other_nets_are_refused_by_name(tmp_path, before, after, message):
    """An unknown layer or parameter, an impossible size, weights of another net: one sentence naming it."""
    deploy, weights = filled(prototxt.deploy(tiny()), tmp_path)
    text = deploy.read_text()
    assert before in text
    deploy.write_text(text.replace(before, after, 1))
    with pytest.raises(ModelError, match=re.escape(message)):
        nets.make("onnx", deploy, weights)


def test_weights_of_an_old_caffe_are_converted(tmp_path):
    """Old files have four dimensions for a full layer, and perhaps double precision: both give the same numbers."""
    caffe_pb2 = programs.import_pycaffe() and programs.caffe_pb2()
    deploy, weights = filled(prototxt.deploy(tiny()), tmp_path)
    net = caffe_pb2.NetParameter.FromString(weights.read_bytes())
    for layer in net.layer:
        for blob in layer.blobs:
            dims = [1] * (4 - len(blob.shape.dim)) + list(blob.shape.dim)
            blob.ClearField("shape")
            blob.num, blob.channels, blob.height, blob.width = dims
            if layer.name == "fc7":
                blob.double_data.extend(blob.data)
                blob.ClearField("data")
    old = tmp_path / "old.caffemodel"
    old.write_bytes(net.SerializeToString())
    data = np.random.default_rng(0).normal(0, 50, (2, 3, 224, 224)).astype(np.float32)
    ours = [nets.make("onnx", deploy, path).forward(data) for path in (weights, old)]
    assert np.array_equal(*ours)


def test_onnx_is_the_default_only_where_no_caffe_is_installed(monkeypatch, tmp_path):
    """A Caffe that is named or was chosen, and does not work, is an error: it is not replaced silently."""
    deploy, weights = filled(prototxt.deploy(tiny()), tmp_path)
    assert nets.default() == "caffe"
    monkeypatch.setenv("CAFFE_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(CaffeError, match="CAFFE_ROOT.*--engine onnx"):
        nets.make(None, deploy, weights)
    monkeypatch.delenv("CAFFE_ROOT")
    monkeypatch.setattr(installation, "NOTE", tmp_path / "none.json")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nets.default() == "onnx"
    data = np.zeros((1, 3, 224, 224), np.float32)
    assert nets.make(None, deploy, weights).forward(data).shape == (1, 1)
    with pytest.raises(CaffeError, match="no Caffe found"):
        nets.make(None, deploy, weights, gpu=0)

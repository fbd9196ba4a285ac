"""fc8 removed from the weights, so that the paper's own fc8 can be trained; every other byte is kept."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import tiny

from bonecaffe.caffe import caffemodel, installation, programs
from bonecaffe.errors import WeightsError
from bonecaffe.network import prototxt
from bonecaffe.recipe import Recipe

HEAD = (1, 16)


def stock_like(path, version, outputs=1000):
    """A caffemodel with the stock net's layers at a small size, in the old (V1) or the new format."""
    pb = programs.caffe_pb2()
    net, rng = pb.NetParameter(name="CaffeNet"), np.random.default_rng(1)
    shapes = {"data": (), "conv1": (8, 3, 11, 11), "relu1": (), "fc7": (16, 16), "fc8": (outputs, 16), "loss": ()}
    for name, shape in shapes.items():
        layer = (net.layers if version == 1 else net.layer).add(name=name)
        if version == 1:
            layer.type = pb.V1LayerParameter.RELU
        else:
            layer.type = "ReLU"
        for blob_shape in [shape, shape[:1]] if shape else []:
            blob = layer.blobs.add()
            blob.data.extend(rng.standard_normal(int(np.prod(blob_shape))))
            if version == 1:
                blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - len(blob_shape)) + blob_shape
            else:
                blob.shape.dim.extend(blob_shape)
    path.write_bytes(net.SerializeToString())
    return net


@pytest.mark.parametrize("version", [1, 2])
def test_fc8_is_removed_and_the_rest_kept(tmp_path, version):
    """In both formats; equal to the input in every other layer."""
    net = stock_like(tmp_path / "stock.caffemodel", version)
    message = caffemodel.initial_weights(tmp_path / "stock.caffemodel", tmp_path / "init.caffemodel", "fc8", HEAD)
    assert "removed from" in message and "1000 x 16" in message
    left = programs.caffe_pb2().NetParameter.FromString((tmp_path / "init.caffemodel").read_bytes())
    expected, kept = (net.layers, left.layers) if version == 1 else (net.layer, left.layer)
    assert list(kept) == [layer for layer in expected if layer.name != "fc8"]


@pytest.mark.parametrize("version", [1, 2])
def test_fc8_of_the_right_shape_is_kept(tmp_path, version):
    """A model that was trained here keeps its fc8."""
    stock_like(tmp_path / "stock.caffemodel", version, outputs=1)
    assert "kept" in caffemodel.initial_weights(
        tmp_path / "stock.caffemodel", tmp_path / "init.caffemodel", "fc8", HEAD
    )
    assert (tmp_path / "init.caffemodel").read_bytes() == (tmp_path / "stock.caffemodel").read_bytes()


def test_caffe_accepts_what_was_cut(tmp_path):
    """The real Caffe aborts on the stock fc8 and accepts the weights without it, conv1 equal to the last bit."""
    caffe = programs.import_pycaffe()
    recipe = tiny()
    prototxt.write(tmp_path, recipe)
    wide = prototxt.deploy(recipe).replace("num_output: 1\n", "num_output: 1000\n")
    (tmp_path / "wide.prototxt").write_text(wide)
    net = caffe.Net(str(tmp_path / "wide.prototxt"), caffe.TEST)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] = np.random.default_rng(3).standard_normal(blob.data.shape)
    net.save(str(tmp_path / "stock.caffemodel"))
    code = "import caffe, sys; caffe.Net(sys.argv[1], sys.argv[2], caffe.TEST)"
    import os
    import subprocess
    import sys

    environment = {**os.environ, "PYTHONPATH": str(installation.find().python or ""), "GLOG_minloglevel": "0"}
    caffemodel.initial_weights(tmp_path / "stock.caffemodel", tmp_path / "init.caffemodel", "fc8", HEAD)
    results = {}
    for name in ("stock", "init"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "deploy.prototxt"), str(tmp_path / f"{name}.caffemodel")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        results[name] = (done.returncode, done.stderr)
    assert results["stock"][0] != 0 and "Cannot copy param 0 weights from layer 'fc8'" in results["stock"][1]
    assert results["init"][0] == 0
    small = caffe.Net(str(tmp_path / "deploy.prototxt"), str(tmp_path / "init.caffemodel"), caffe.TEST)
    assert np.array_equal(small.params["conv1"][0].data, net.params["conv1"][0].data)


def test_every_truncation_is_refused_or_harmless(tmp_path):
    """Cut anywhere: a clear error, or (at the seam of two layers) a file with fewer layers; never a traceback."""
    stock_like(tmp_path / "stock.caffemodel", 2)
    content = (tmp_path / "stock.caffemodel").read_bytes()
    whole = set(caffemodel.Caffemodel(tmp_path / "stock.caffemodel").shapes())
    for keep in np.linspace(0, len(content) - 1, 120).astype(int):
        (tmp_path / "cut.caffemodel").write_bytes(content[:keep])
        try:
            with caffemodel.Caffemodel(tmp_path / "cut.caffemodel") as model:
                assert set(model.shapes()) < whole
        except WeightsError as error:
            assert "cut.caffemodel" in str(error)


def test_other_files_are_refused(tmp_path):
    """A web page, HDF5, nothing, another network, no file."""
    pb = programs.caffe_pb2()
    other = pb.NetParameter()
    other.layer.add(name="res1", type="Convolution").blobs.add().data.extend([1.0, 2.0])
    files = {
        "page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        "empty": (b"", "empty"),
        "text": (b"hello world, this is no protobuf", "cut off, or not a caffemodel"),
        "other": (other.SerializeToString(), "not CaffeNet's weights"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            caffemodel.initial_weights(tmp_path / name, tmp_path / "init.caffemodel", "fc8", HEAD)
    with pytest.raises(WeightsError, match="No such file"):
        caffemodel.initial_weights(tmp_path / "none", tmp_path / "init.caffemodel", "fc8", HEAD)
    assert not (tmp_path / "init.caffemodel").exists()


def test_stock_size_is_quick_and_small(tmp_path):
    """The stock net's real shapes, 244 MB, in the old format: fc8 is removed without reading the numbers."""
    pb, recipe = programs.caffe_pb2(), Recipe.load("paper")
    net = pb.NetParameter()
    shapes = {
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
        "fc6": (4096, 9216),
        "fc7": (4096, 4096),
        "fc8": (1000, 4096),
    }
    for name, shape in shapes.items():
        layer = net.layers.add(name=name, type=pb.V1LayerParameter.INNER_PRODUCT)
        blob = layer.blobs.add(num=1, channels=1, height=shape[0], width=int(np.prod(shape[1:])))
        blob.data.extend(np.zeros(int(np.prod(shape)), np.float32))
    path = tmp_path / "stock.caffemodel"
    path.write_bytes(net.SerializeToString())
    assert 230e6 < path.stat().st_size < 250e6
    caffemodel.initial_weights(path, tmp_path / "init.caffemodel", "fc8", (recipe.network.fc8_outputs, 4096))
    with caffemodel.Caffemodel(tmp_path / "init.caffemodel") as model:
        assert list(model.shapes()) == list(shapes)[:-1]
    fc8 = 1000 * 4096 * 4
    assert 0 < path.stat().st_size - (tmp_path / "init.caffemodel").stat().st_size - fc8 < 100

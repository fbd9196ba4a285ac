"""The three definition files: appendix 1 and 2 field by field, parsed by Caffe's own protocol."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY, tiny
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
    """224 without a crop, three mean values, mirrored in training only, LMDBs in the same folder."""
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
    """No loss, no label, no filler: its output depends only on the weights."""
    text = prototxt.deploy(Recipe.load("paper"))
    for word in ("filler", "lr_mult", "label", "loss", "lmdb"):
        assert word not in text


def test_strings_are_quoted_safely():
    """A path with a quotation mark or backslash stays one string."""
    net = parse(prototxt.text(prototxt.Block(("name", 'a"b\\c'))))
    assert net.name == 'a"b\\c'


def test_scalars_as_caffe_reads_them():
    """Whole numbers without a point, small ones without an exponent, names without quotes, booleans in lower case."""
    fields = [("a", 1.0), ("b", 3e-6), ("c", True), ("d", False), ("e", prototxt.Enum("MAX")), ("f", "x"), ("g", 100)]
    assert prototxt.text(fields) == 'a: 1\nb: 0.000003\nc: true\nd: false\ne: MAX\nf: "x"\ng: 100\n'
    nested = prototxt.Block(("a", prototxt.Block(("b", prototxt.Block(("c", 1))))))
    assert prototxt.text(nested) == "a {\n  b {\n    c: 1\n  }\n}\n"


def test_rates_come_in_pairs():
    """For weights and for biases; a rate without its decay is not dropped silently."""
    weights, biases = prototxt.rates((1, 2), (3, 0))
    assert [dict(block) for _, block in (weights, biases)] == [
        {"lr_mult": 1, "decay_mult": 3},
        {"lr_mult": 2, "decay_mult": 0},
    ]
    with pytest.raises(ValueError, match="shorter"):
        prototxt.rates((1, 2), (1,))


def test_exact_labels_have_their_own_layer():
    """The ages from a second LMDB, in step with the images: the same batch, and unchanged numbers."""
    net = parse(prototxt.train_val(tiny(data__labels="exact")))
    data = [layer for layer in net.layer if layer.type == "Data"]
    assert [(layer.name, list(layer.top), layer.include[0].phase) for layer in data] == [
        ("data", ["data"], 0),
        ("label", ["label"], 0),
        ("data", ["data"], 1),
        ("label", ["label"], 1),
    ]
    assert [layer.data_param.source for layer in data] == [
        "train_lmdb",
        "train_labels_lmdb",
        "test_lmdb",
        "test_labels_lmdb",
    ]
    assert data[0].data_param.batch_size == data[1].data_param.batch_size == 4
    assert not data[1].HasField("transform_param") and data[0].transform_param.mirror is True
    for labels in ("whole_months", "round"):
        net = parse(prototxt.train_val(tiny(data__labels=labels)))
        assert [list(layer.top) for layer in net.layer if layer.type == "Data"] == [["data", "label"]] * 2


def test_mirroring_follows_the_recipe_in_training_only():
    """The test images are never mirrored."""
    for mirror in (True, False):
        data = parse(prototxt.train_val(tiny(network__mirror=mirror))).layer[:2]
        assert [layer.transform_param.mirror for layer in data] == [mirror, False]


def test_fillers_and_dropout_follow_the_recipe():
    """msra or stock weights, zero or stock biases; no dropout, no such layer; groups of one are not written."""
    plain = layers(prototxt.train_val(tiny()))
    for name in ("conv2", "fc6"):
        shape = plain[name].convolution_param if name == "conv2" else plain[name].inner_product_param
        assert (shape.weight_filler.type, shape.weight_filler.std) == ("msra", 1)  # 1 is the protocol's own default
        assert (shape.bias_filler.type, shape.bias_filler.value) == ("constant", 0)
        assert shape.bias_filler.HasField("value")
    assert not any(name.startswith("drop") for name in plain)
    assert not plain["conv2"].convolution_param.HasField("group")
    stock = layers(
        prototxt.train_val(tiny(network__weight_filler="stock", network__bias_filler="stock", network__dropout=0.25))
    )
    assert round(stock["fc6"].inner_product_param.weight_filler.std, 6) == 0.005
    assert (
        stock["conv2"].convolution_param.bias_filler.value == 1
        and stock["conv1"].convolution_param.bias_filler.value == 0
    )
    assert [stock[name].dropout_param.dropout_ratio for name in ("drop6", "drop7")] == [0.25, 0.25]
    assert [stock[name].inner_product_param.num_output for name in ("fc6", "fc7", "fc8")] == [16, 16, 1]


def test_widths_go_to_their_own_layers():
    """Five widths and groups of the convolutions, two of fc6 and fc7, in their order."""
    recipe = tiny(
        network__conv_outputs=(8, 12, 16, 20, 24), network__conv_groups=(1, 2, 4, 5, 6), network__fc_outputs=(9, 7)
    )
    net = layers(prototxt.deploy(recipe))
    shapes = [net[f"conv{index}"].convolution_param for index in range(1, 6)]
    assert [shape.num_output for shape in shapes] == [8, 12, 16, 20, 24]
    assert [shape.group for shape in shapes] == [1, 2, 4, 5, 6]
    assert [net[name].inner_product_param.num_output for name in ("fc6", "fc7")] == [9, 7]
    assert [
        list(layers(prototxt.deploy(tiny(network__conv1_stride=stride)))["conv1"].convolution_param.stride)
        for stride in (1, 2, 3)
    ] == [[], [2], [3]]


def test_network_in_use_learns_nothing():
    """`layers`: from conv1 to fc8, no rates, no fillers, no data."""
    found = [dict(layer) for layer in prototxt.layers(Recipe.load("paper"))]
    assert (found[0]["name"], found[-1]["name"]) == ("conv1", "fc8")
    assert not any("param" in layer or layer["type"] in ("Data", "Input") for layer in found)


def test_solver_leaves_out_what_its_policy_does_not_read():
    """A fixed rate has no gamma and no step; one batch an iteration is Caffe's default."""
    fixed = prototxt.solver(tiny(solver__lr_policy="fixed"), "snapshots/S")
    assert "gamma" not in fixed and "stepsize" not in fixed and "iter_size" not in fixed
    parsed = parse(fixed, "SolverParameter")
    assert (parsed.lr_policy, parsed.snapshot_prefix, parsed.max_iter) == ("fixed", "snapshots/S", 12)
    step = parse(prototxt.solver(tiny(solver__iter_size=3)), "SolverParameter")
    assert (step.iter_size, step.stepsize, step.snapshot_prefix) == (3, 8, "SNAPSHOT")
    lines = [line for line in fixed.splitlines() if not line.startswith("#")]
    assert {line.index("#") for line in lines} == {36}  # the sources are aligned


def test_files_are_written_over(tmp_path):
    """Three files, written twice into a folder that is created."""
    for _ in range(2):
        paths = prototxt.write(tmp_path / "new" / "run", tiny(), "snapshots/S")
        assert [path.name for path in paths] == ["train_val.prototxt", "solver.prototxt", "deploy.prototxt"]
        assert 'snapshot_prefix: "snapshots/S"' in paths[1].read_text()

"""Predictions: the same pixels as in training, the same numbers as other readers of the same model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas
import pytest
from conftest import losses_of_test, tiny

from bonecaffe.caffe import lmdb, nets, programs, snapshots
from bonecaffe.errors import BonecaffeError, CaffeError, ImageError, PredictError, RunError
from bonecaffe.hands.images import find_images, read_image
from bonecaffe.hands.reference_points import read_points
from bonecaffe.network import definitions
from bonecaffe.predict import Predictor, predict_run


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained)


def test_feed_equals_what_caffes_data_layer_feeds(own_run, predictor, trained):
    """The real Data layer on the packed LMDB gives, to the last bit, what Predictor feeds for the same hands."""
    caffe = programs.import_pycaffe()
    lines = own_run.list_file("test").read_text().splitlines()
    text = f"""layer {{ name: "data" type: "Data" top: "data" top: "label"
        transform_param {{ mean_value: 104 mean_value: 117 mean_value: 123 }}
        data_param {{ source: "{own_run.lmdb("test")}" batch_size: {len(lines)} backend: LMDB }} }}"""
    (own_run.path / "data.prototxt").write_text(text)
    net = caffe.Net(str(own_run.path / "data.prototxt"), caffe.TEST)
    net.forward()
    fed = net.blobs["data"].data
    ours = np.stack([predictor.feed(read_image(own_run.images / line.rsplit(" ", 1)[0])) for line in lines])
    assert fed.dtype == ours.dtype == np.float32
    assert np.array_equal(fed, ours)


def test_from_radiograph_equals_from_lmdb(trained, hands, predictor):
    """A file and its points give the number that the packed image gives, in any batch."""
    points, files = read_points(hands / "points.csv"), find_images(hands / "images")
    ids = sorted(points)
    one_by_one = [predictor.predict(files[case_id], points[case_id]) for case_id in ids]
    together = list(predictor.predict_many([(files[case_id], points[case_id]) for case_id in ids]))
    packed = dict(
        zip(ids, predictor.predict_normalized(read_image(trained.image(case_id)) for case_id in ids), strict=True)
    )
    assert np.allclose(one_by_one, together, rtol=1e-5)
    assert np.allclose(together, [packed[case_id] for case_id in ids], rtol=1e-6)
    as_array = predictor.predict(read_image(files[ids[0]]), points[ids[0]].points)
    assert as_array == pytest.approx(one_by_one[0], rel=1e-6)


def test_equals_opencvs_caffe_importer(trained, predictor):
    """OpenCV reads the same deploy file and caffemodel independently."""
    net = cv2.dnn.readNetFromCaffe(str(trained.deploy), str(predictor.snapshot.caffemodel))
    for path in sorted(trained.images.glob("*.png")):
        normal = read_image(path)
        net.setInput(predictor.feed(normal)[None])
        assert next(predictor.predict_normalized([normal])) == pytest.approx(float(net.forward().ravel()[0]), rel=1e-4)


def test_caffe_tests_loss_equals_ours(trained):
    """`caffe test` on the test LMDB reports the loss that predictions_test.csv gives."""
    predict_run(trained)
    ours, theirs = losses_of_test(trained)
    assert theirs == pytest.approx(ours, rel=1e-4)


def test_predictions_file_is_as_promised(trained, hands):
    """Header, every case once, exact ages; a second call does nothing."""
    predict_run(trained)
    ages = pandas.read_csv(hands / "ages.csv", dtype={"id": str}).set_index("id").boneage
    seen = []
    for split, count in (("train", 8), ("test", 4)):
        table = pandas.read_csv(trained.predictions(split), dtype={"id": str})
        assert list(table.columns) == ["id", "boneage_months", "predicted_months", "male"] and len(table) == count
        assert (table.boneage_months.to_numpy() == ages[table.id].to_numpy()).all()
        seen += table.id.tolist()
    assert sorted(seen) == sorted(ages.index)
    stamp = trained.predictions("test").stat().st_mtime_ns
    predict_run(trained)
    assert trained.predictions("test").stat().st_mtime_ns == stamp


def test_older_snapshot_can_be_asked_for(trained, own_trained):
    """By its iteration; a missing one is refused, and the existing ones are listed."""
    assert Predictor(trained, 4).snapshot.iteration == 4
    with pytest.raises(PredictError, match="Available: 4, 8, 12"):
        Predictor(trained, 5)
    last = own_trained.snapshots / "SNAPSHOT_iter_12.caffemodel"
    last.write_bytes(last.read_bytes()[:500])
    with pytest.raises(PredictError, match="SNAPSHOT_iter_12"):
        Predictor(own_trained)


def test_what_cannot_be_predicted_is_refused(predictor, hands, own_run, tmp_path):
    """No model, no image, points of another image, six points, points outside."""
    points, files = read_points(hands / "points.csv"), find_images(hands / "images")
    hand = points["1001"]
    with pytest.raises(PredictError, match="train it first"):
        Predictor(own_run)
    with pytest.raises(ImageError, match=r"none\.png"):
        predictor.predict(tmp_path / "none.png", hand)
    with pytest.raises(PredictError, match="marked in"):
        predictor.predict(np.zeros((50, 60), np.uint8), hand)
    with pytest.raises(PredictError, match="6 reference points"):
        predictor.predict(files["1001"], hand.points[:6])
    with pytest.raises(PredictError, match="outside"):
        predictor.predict(files["1001"], [(x + 1000, y) for x, y in hand.points])


def test_model_of_other_images_is_refused(own_trained, hands, tmp_path):
    """Copied into a run of other images, the model does not belong to them."""
    from conftest import prepare_run

    other = prepare_run(tmp_path / "other", hands, tiny(data__split_seed=77))
    shutil.copytree(own_trained.snapshots, other.snapshots)
    other.record(own_trained.read().train)
    with pytest.raises(BonecaffeError, match="prepared again"):
        predict_run(other)


def test_reading_an_lmdb_writes_nothing(prepared):
    """Reading an LMDB leaves its data unchanged."""
    before = (prepared.lmdb("train") / "data.mdb").read_bytes()
    assert len(list(lmdb.records(prepared.lmdb("train")))) == 8
    assert (prepared.lmdb("train") / "data.mdb").read_bytes() == before


def test_full_size_net_equals_opencv_on_a_hundred_images(tmp_path):
    """The paper's own net, at full size, with 100 phantoms: pycaffe and OpenCV's importer agree within 1e-4."""
    from bonecaffe.hands.phantom import dataset
    from bonecaffe.network import prototxt
    from bonecaffe.prepare.normalize import normalize
    from bonecaffe.recipe import Recipe
    from bonecaffe.run import RunDir

    caffe = programs.import_pycaffe()
    recipe, run = Recipe.load("smoke"), RunDir(tmp_path / "run")
    prototxt.write(run.path, recipe)
    run.write_recipe(recipe)
    run.snapshots.mkdir()
    filled = tmp_path / "filled.prototxt"  # deploy with fillers, so that its weights are not all zero
    text = run.deploy.read_text().replace(
        "num_output: 1\n", 'num_output: 1\n    bias_filler { type: "constant" value: 100 }\n'
    )
    filled.write_text(re.sub(r"(num_output: \d+\n)", r'\1    weight_filler { type: "msra" }\n', text))
    caffe.set_random_seed(1)
    caffe.Net(str(filled), caffe.TEST).save(str(run.snapshots / "SNAPSHOT_iter_1.caffemodel"))
    hands = [dataset.make(31, number, (240, 310)) for number in range(100)]
    normal = [normalize(hand.image, hand.points, recipe.preparation) for hand in hands]
    predictor = Predictor(run)
    ours = list(predictor.predict_normalized(normal))
    net = cv2.dnn.readNetFromCaffe(str(run.deploy), str(predictor.snapshot.caffemodel))
    for start in range(0, 100, 20):
        net.setInput(np.stack([predictor.feed(image) for image in normal[start : start + 20]]))
        theirs = net.forward().ravel()
        assert np.allclose(ours[start : start + 20], theirs, rtol=1e-4, atol=0), np.abs(
            theirs / ours[start : start + 20] - 1
        ).max()
    assert np.std(ours) > 0.01 * abs(np.mean(ours))  # so that the comparison could have failed


def test_recipe_changed_after_training_does_not_reach_the_model(own_trained, hands, tmp_path):
    """A later prepare with another mean is refused and changes no prediction; another deploy is refused."""
    from conftest import prepare_run

    points, files = read_points(hands / "points.csv"), find_images(hands / "images")
    before = Predictor(own_trained).predict(files["1003"], points["1003"])
    with pytest.raises(RunError, match="network.mean: imagenet_values before, none now"):
        prepare_run(own_trained.path, hands, tiny(network__mean="none"))
    assert own_trained.recipe() == tiny()
    assert Predictor(own_trained).predict(files["1003"], points["1003"]) == before
    definitions.write(own_trained, tiny(network__fc_outputs=(16, 8)))
    with pytest.raises(PredictError, match=r"deploy\.prototxt changed"):
        Predictor(own_trained)


@pytest.mark.parametrize("engine", ["onnx", "opencv"])
def test_other_engines_need_no_caffe(trained, hands, tmp_path, engine):
    """Without Caffe, four files of the run give the same months; the refusal names the option."""
    laptop = tmp_path / "model"
    (laptop / "snapshots").mkdir(parents=True)
    chosen = Predictor(trained)
    for file in (trained.recipe_file, trained.manifest_file, trained.deploy):
        shutil.copy(file, laptop)
    shutil.copy(chosen.snapshot.caffemodel, laptop / "snapshots")
    files, points = find_images(hands / "images"), read_points(hands / "points.csv")
    predict = [sys.executable, "-m", "bonecaffe", "predict", laptop]
    command = [*predict, files["1003"], files["1007"], "--points", hands / "points.csv", "--json"]
    nowhere = {**os.environ, "CAFFE_ROOT": str(tmp_path / "nowhere")}
    refused = subprocess.run(command, capture_output=True, text=True, env=nowhere)
    assert refused.returncode == 1 and "--engine onnx" in refused.stderr
    done = subprocess.run([*command, "--engine", engine], capture_output=True, text=True, env=nowhere)
    assert done.returncode == 0, done.stderr
    months = {(fact := json.loads(line))["id"]: fact["months"] for line in done.stdout.splitlines()}
    for case_id, value in months.items():
        assert value == pytest.approx(chosen.predict(files[case_id], points[case_id]), abs=0.011)
    assert len(months) == 2


def test_engines_agree(own_trained):
    """The same net and weights predict the same in either engine, for any batch, and after a change of weights."""
    deploy, rng = own_trained.deploy, np.random.default_rng(0)
    first, last = (s.caffemodel for s in (snapshots.find(own_trained.snapshots)[i] for i in (0, -1)))
    ours, *others = (nets.make(kind, deploy, first) for kind in nets.KINDS)
    for weights in (first, last):
        for net in (ours, *others):
            net.load(weights)
        for count in (1, 5, 2):
            batch = rng.normal(0, 50, (count, 3, 224, 224)).astype(np.float32)
            expected = ours.forward(batch)
            for net in others:
                assert net.forward(batch).shape == (count, 1) and np.allclose(net.forward(batch), expected, rtol=1e-4)
    for kind in ("onnx", "opencv"):
        with pytest.raises(CaffeError, match="Leave --gpu out"):
            nets.make(kind, deploy, first, gpu=0)
    with pytest.raises(CaffeError, match="without GPU support"):
        nets.make("caffe", deploy, first, gpu=0)

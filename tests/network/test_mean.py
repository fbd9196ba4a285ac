"""The mean: the same for the prototxts, the Predictor and the manifest."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import prepare_run, tiny

from bonecaffe.caffe import lmdb, programs
from bonecaffe.errors import BonecaffeError, RecipeError
from bonecaffe.hands.images import read_image
from bonecaffe.network import definitions, mean
from bonecaffe.predict import Predictor, predict_run
from bonecaffe.training import preflight, train


def mean_image(path, shape=(3, 224, 224)):
    blob = programs.caffe_pb2().BlobProto(num=1, channels=shape[0], height=shape[1], width=shape[2])
    blob.data.extend(np.random.default_rng(2).uniform(0, 255, int(np.prod(shape))).astype(np.float32))
    path.write_bytes(blob.SerializeToString())
    return path


OPTIONS = ["imagenet_values", "none", "dataset", "file"]


@pytest.mark.parametrize("option", OPTIONS)
def test_feed_equals_the_data_layers_for_every_mean(option, hands, tmp_path):
    """The TEST net that Caffe builds from train_val.prototxt gets, to the last bit, the input of Predictor."""
    kind = f"file:{mean_image(tmp_path / 'own.binaryproto')}" if option == "file" else option
    recipe = tiny(
        network__mean=kind, solver__max_iter=2, solver__snapshot=2, network__test_batch=4, solver__test_iter=1
    )
    run = prepare_run(tmp_path / "run", hands, recipe)
    assert train.train(run).state == "finished"
    caffe = programs.import_pycaffe()
    text = run.train_val.read_text()
    for name in ("train_lmdb", "test_lmdb", mean.FILE):
        text = text.replace(f'"{name}"', f'"{run.path / name}"')
    (run.path / "absolute.prototxt").write_text(text)
    net = caffe.Net(str(run.path / "absolute.prototxt"), caffe.TEST)
    net.forward()
    predictor = Predictor(run)
    lines = run.list_file("test").read_text().splitlines()
    ours = np.stack([predictor.feed(read_image(run.images / line.rsplit(" ", 1)[0])) for line in lines])
    assert np.array_equal(net.blobs["data"].data, ours)
    predict_run(run)
    facts = run.read().prototxt.mean
    assert facts["mean"] == kind and ("sha256" in facts) == (option in ("dataset", "file"))
    for path in (run.train_val, run.solver, run.deploy):
        assert f"# Mean subtracted from the input: {mean.words(recipe)}." in path.read_text()


def test_dataset_mean_is_that_of_the_training_images(hands, tmp_path):
    """The file of compute_image_mean is the mean of the packed images; it is made again only when the split changes."""
    run = prepare_run(tmp_path / "run", hands, tiny(network__mean="dataset"))
    definitions.write(run, run.recipe())
    packed = np.mean([pixels for _, _, pixels in lmdb.records(run.lmdb("train"))], axis=0)
    assert np.allclose(mean.read(run.mean_file), packed, atol=1e-3)
    stamp = run.mean_file.stat().st_mtime_ns
    definitions.write(run, run.recipe())
    assert run.mean_file.stat().st_mtime_ns == stamp
    prepare_run(run.path, hands, tiny(network__mean="dataset", data__split_seed=6))
    definitions.write(run, run.recipe())
    assert run.mean_file.stat().st_mtime_ns != stamp


def blob_of(path, **fields):
    blob = programs.caffe_pb2().BlobProto(**{name: value for name, value in fields.items() if name != "dims"})
    blob.shape.dim.extend(fields.get("dims", ()))
    path.write_bytes(blob.SerializeToString())


@pytest.mark.parametrize("dims", [(3, 224, 224), (1, 3, 224, 224), (1, 1, 3, 224, 224)])
@pytest.mark.parametrize("numbers", ["data", "double_data"])
def test_mean_of_any_dimensions_is_trained_with(dims, numbers, hands, tmp_path):
    """Whatever dimensions a mean file has, the run's has four, and Caffe and Predictor subtract the same."""
    values = np.random.default_rng(3).uniform(0, 255, 3 * 224 * 224).astype(np.float32)
    blob_of(tmp_path / "own.binaryproto", dims=dims, **{numbers: values.tolist()})
    kind = f"file:{tmp_path / 'own.binaryproto'}"
    run = prepare_run(tmp_path / "run", hands, tiny(network__mean=kind))
    definitions.write(run, run.recipe())
    assert preflight.examine(run).problems == []
    assert np.array_equal(mean.read(run.mean_file), values.reshape(3, 224, 224))
    caffe = programs.import_pycaffe()
    message = programs.caffe_pb2().BlobProto.FromString(run.mean_file.read_bytes())
    assert np.array_equal(caffe.io.blobproto_to_array(message).ravel(), values)
    text = run.train_val.read_text()
    for name in ("train_lmdb", "test_lmdb", mean.FILE):
        text = text.replace(f'"{name}"', f'"{run.path / name}"')
    (run.path / "absolute.prototxt").write_text(text)
    caffe.Net(str(run.path / "absolute.prototxt"), caffe.TEST).forward()  # aborts on a mean it cannot subtract


def test_mean_that_is_as_caffe_writes_it_keeps_its_bytes(own_run, tmp_path):
    """Byte for byte; a file with old and new dimensions is read as Caffe does, by the old ones."""
    path = mean_image(tmp_path / "own.binaryproto")
    definitions.write(own_run, tiny(network__mean=f"file:{path}"))
    assert own_run.mean_file.read_bytes() == path.read_bytes()
    blob_of(path, dims=(224, 224, 3), num=1, channels=3, height=224, width=224, data=[1.0] * (3 * 224 * 224))
    assert mean.shape_for_caffe(path) == (3, 224, 224)
    blob_of(path, dims=(2, 3, 224, 224), data=[1.0] * (2 * 3 * 224 * 224))
    with pytest.raises(RecipeError, match="not a mean image"):
        mean.read(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: mean_image(path, (3, 256, 256)), "3 x 256 x 256"),
        (lambda path: path.write_text("hello, world"), "not a mean image"),
        (lambda path: path.write_bytes(b""), "not a mean image"),
        (lambda path: None, "No such file"),
    ],
)
def test_file_that_is_not_a_mean_of_this_size_is_refused(make, message, own_run, tmp_path):
    """Before Caffe runs; the file is named."""
    make(tmp_path / "own.binaryproto")
    with pytest.raises(BonecaffeError, match=f"own.binaryproto.*{message}"):
        definitions.write(own_run, tiny(network__mean=f"file:{tmp_path / 'own.binaryproto'}"))
    assert not own_run.mean_file.exists()

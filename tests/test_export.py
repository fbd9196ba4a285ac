"""A trained run as one file: it predicts the same anywhere, gives away nothing else, and is refused when damaged."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import tiny, with_recipe

from bonecaffe.caffe import nets, programs
from bonecaffe.cli import main
from bonecaffe.errors import ModelError, PredictError
from bonecaffe.evaluation.evaluate import predict_and_evaluate
from bonecaffe.export import export as exports
from bonecaffe.files import sha256
from bonecaffe.hands.images import find_images
from bonecaffe.hands.reference_points import read_points
from bonecaffe.model import container
from bonecaffe.model import model as models
from bonecaffe.model.container import Member
from bonecaffe.predict import Predictor
from bonecaffe.run import RunDir

MUTATIONS = 300
"""How many damaged model files are read; `make` has no time for more, and 2,000 were tried by hand."""


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory) -> RunDir:
    run = RunDir(shutil.copytree(trained.path, tmp_path_factory.mktemp("evaluated") / "secret-run"))
    predict_and_evaluate(run)
    return run


@pytest.fixture(scope="module")
def exported(evaluated, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.zip"
    exports.export(evaluated, path, licence="CC-BY-4.0")
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(contents: dict[str, bytes]) -> bytes:
    """A container of these members, well-formed whatever they are."""
    layout = container.layout([Member(name, len(each), zlib.crc32(each)) for name, each in contents.items()])
    return b"".join(h + c for h, c in zip(layout.headers, contents.values(), strict=True)) + layout.tail


def forged(path: Path, **changes: bytes | None) -> bytes:
    """A model file with other members, and a manifest that fits them: only their content can give it away."""
    found = members(path)
    for name, content in changes.items():
        if content is None:
            del found[name]
        else:
            found[name] = content
    manifest = json.loads(found[models.MANIFEST])
    manifest["members"] = {
        name: {"size": len(each), "sha256": sha256(each)} for name, each in found.items() if name != models.MANIFEST
    }
    return packed({**found, models.MANIFEST: json.dumps(manifest).encode()})


# ---- what it is for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", nets.KINDS)
def test_model_file_predicts_what_the_run_predicts(evaluated, exported, hands, engine):
    """With every engine; a snapshot that it does not hold is refused."""
    files, points = find_images(hands / "images"), read_points(hands / "points.csv")
    from_run, from_file = Predictor(evaluated), Predictor(exported, engine=engine)
    for case_id in sorted(points)[:4]:
        months = from_run.predict(files[case_id], points[case_id])
        assert from_file.predict(files[case_id], points[case_id]) == pytest.approx(months, rel=1e-4)
    assert from_file.model.iteration == from_run.model.iteration == 12
    with pytest.raises(PredictError, match="iteration 12 only"):
        Predictor(exported, snapshot=8)
    with pytest.raises(PredictError, match="a model file, not a run"):
        _ = from_file.run


def test_predict_from_a_model_file_without_caffe(exported, hands, tmp_path, evaluated):
    """The commands of the guide, in an environment without Caffe: the same keys and ages as with the run."""
    image = next(iter(find_images(hands / "images").values()))
    rest = [image, "--points", hands / "points.csv", "--json"]
    code = (
        "import sys; from pathlib import Path; from bonecaffe.caffe import installation; "
        f"installation.NOTE = Path({str(tmp_path / 'none')!r}); from bonecaffe.cli import main; main(sys.argv[1:])"
    )
    nowhere = {**os.environ, "PATH": str(tmp_path)}
    nowhere.pop("CAFFE_ROOT", None)
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", exported, *rest], capture_output=True, text=True, env=nowhere
    )
    assert done.returncode == 0, done.stderr
    fact = json.loads(done.stdout)
    expected = json.loads(CliRunner().invoke(main, ["predict", str(evaluated), *map(str, rest)]).stdout)
    assert fact.pop("months") == pytest.approx(expected.pop("months"), abs=0.011)
    assert fact == expected


def test_same_model_gives_same_bytes(evaluated, exported, tmp_path):
    """Whatever the time and the folder; any program that reads zip files can unpack it."""
    again = tmp_path / "elsewhere" / "other.zip"
    moved = RunDir(shutil.copytree(evaluated.path, tmp_path / "moved"))
    exports.export(moved, again, licence="CC-BY-4.0")
    assert again.read_bytes() == exported.read_bytes()
    with zipfile.ZipFile(exported) as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == [name for name in models.LARGEST if name != models.MEAN]


def test_weights_are_unchanged_and_onnx_refers_to_them(evaluated, exported, tmp_path):
    """The weights are the snapshot's bytes; unpacked, the ONNX net is complete for any ONNX runtime."""
    import onnxruntime

    with zipfile.ZipFile(exported) as archive:
        archive.extractall(tmp_path)
    snapshot = Predictor(evaluated).model.caffemodel
    assert (tmp_path / models.WEIGHTS).read_bytes() == snapshot.read_bytes()
    data = np.random.default_rng(0).normal(0, 50, (3, 3, 224, 224)).astype(np.float32)
    (months,) = onnxruntime.InferenceSession(tmp_path / models.ONNX).run(None, {"data": data})
    assert np.allclose(months, nets.make("caffe", evaluated.deploy, snapshot).forward(data), rtol=1e-4)


def test_nothing_private_is_exported(exported, own_trained, tmp_path):
    """No path, no id, no name of the run's folder: not in any text, and not with a mean given by its path."""
    secret = tmp_path / "private" / "given.binaryproto"
    secret.parent.mkdir()
    caffe = programs.import_pycaffe()
    blob = caffe.io.array_to_blobproto(np.full((1, 3, 224, 224), 100, np.float32))
    secret.write_bytes(blob.SerializeToString())
    text = b"\n".join(each for name, each in members(exported).items() if name not in (models.WEIGHTS, models.ONNX))
    ids = [f'"10{number:02}"' for number in range(1, 13)]
    for word in ("secret-run", str(Path.home()), "/tmp", "pytest", *ids):
        assert word.encode() not in text, word
    recipe = tiny(network__mean=f"file:{secret}").with_values({"solver.gamma": 0.5}, f"see {secret}, page 3")
    shared = exports.shared_recipe(recipe)
    assert shared.network.mean == "file:mean.binaryproto"
    assert shared.source_of("solver.gamma") == "see a local path, page 3"
    assert "private" not in shared.to_yaml()


def test_figures_and_residuals_are_those_of_the_run(evaluated, exported, own_trained, tmp_path):
    """Metrics and sorted residuals; a run that was not evaluated has neither, and its model card shows it."""
    found = members(exported)
    measured = json.loads(evaluated.metrics.read_text())
    figures = json.loads(found[models.METRICS])
    assert figures["splits"] == measured["splits"] and figures["iteration"] == 12
    residuals = json.loads(found[models.RESIDUALS])
    assert len(residuals["rows"]) == 4 and residuals["rows"] == sorted(residuals["rows"])
    errors = [abs(error) for _, error in residuals["rows"]]
    assert np.mean(errors) == pytest.approx(measured["splits"]["test"]["mad_months"], abs=1e-3)
    text = found[models.MODEL_CARD].decode()
    for words in ("not a medical device", "CC-BY-4.0", "for the authors to fill in", "Departures from the paper"):
        assert words in text
    assert f"{measured['splits']['test']['mad_months']:.1f}" in text
    own_trained.forget("predict", "evaluate")
    exports.export(own_trained, tmp_path / "bare.zip", snapshot=8)
    bare = members(tmp_path / "bare.zip")
    assert models.METRICS not in bare and models.RESIDUALS not in bare
    assert "was not evaluated" in bare[models.MODEL_CARD].decode()
    assert Predictor(tmp_path / "bare.zip").model.iteration == 8


def test_completed_model_card_is_taken(evaluated, tmp_path):
    """The authors' own text, as it is."""
    own = tmp_path / "own.md"
    own.write_text("# Ours\n")
    done = CliRunner().invoke(main, ["export", str(evaluated), str(tmp_path / "m.zip"), "--card", str(own)])
    assert done.exit_code == 0, done.output
    assert members(tmp_path / "m.zip")[models.MODEL_CARD] == b"# Ours\n"
    missing = CliRunner().invoke(main, ["export", str(evaluated), str(tmp_path / "n.zip"), "--card", "none.md"])
    assert missing.exit_code == 1 and "none.md" in missing.output and not (tmp_path / "n.zip").exists()


def test_mean_image_is_part_of_the_model(own_run, tmp_path):
    """A model with a mean image predicts with it."""
    from bonecaffe.training import train

    other = with_recipe(own_run, tiny(network__mean="dataset"))
    train.train(other)
    exports.export(other, tmp_path / "model.zip")
    assert models.MEAN in members(tmp_path / "model.zip")
    ours, theirs = Predictor(other), Predictor(tmp_path / "model.zip", engine="onnx")
    normal = np.random.default_rng(0).integers(0, 255, (224, 224), np.uint8)
    assert np.array_equal(ours.feed(normal), theirs.feed(normal))


def test_plain_files_of_caffe(evaluated, tmp_path):
    """Three files that other tools of Caffe read; a folder that holds something is left alone."""
    import cv2

    folder = tmp_path / "plain"
    done = CliRunner().invoke(main, ["export", str(evaluated), "--caffe", str(folder)])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in folder.iterdir()) == sorted([models.DEPLOY, models.WEIGHTS, models.MEAN])
    caffe_pb2 = programs.caffe_pb2()
    mean = caffe_pb2.BlobProto.FromString((folder / models.MEAN).read_bytes())
    assert np.allclose(np.array(mean.data).reshape(3, -1).T, [104, 117, 123])
    assert cv2.dnn.readNetFromCaffe(str(folder / models.DEPLOY), str(folder / models.WEIGHTS)).getLayerNames()
    again = CliRunner().invoke(main, ["export", str(evaluated), "--caffe", str(folder)])
    assert again.exit_code == 1 and "not an empty folder" in again.output


# ---- what is refused at export -----------------------------------------------------------------------------------


def test_engines_that_disagree_export_nothing(evaluated, tmp_path, monkeypatch):
    """A conversion that computes something else is found on phantoms, and no file is left."""
    from bonecaffe.caffe import onnx_net

    def without_relu(graph, layer, taken, name, deploy):
        return taken

    monkeypatch.setitem(onnx_net._TYPES, "ReLU", without_relu)
    with pytest.raises(ModelError, match="disagree by"):
        exports.export(evaluated, tmp_path / "new" / "model.zip")
    assert list(tmp_path.iterdir()) == []


def test_export_without_caffe_is_refused_at_once(evaluated, tmp_path, monkeypatch):
    """There is nothing to compare ONNX Runtime with; the refusal names no option that export does not have."""
    monkeypatch.setenv("CAFFE_ROOT", str(tmp_path / "nowhere"))
    done = CliRunner().invoke(main, ["export", str(evaluated), str(tmp_path / "new" / "model.zip")])
    assert done.exit_code == 1 and "CAFFE_ROOT" in done.output and "--engine" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_replaced(evaluated, exported, own_run, tmp_path):
    """A file that is not a model file stays; a model file is replaced; a run without a model is refused."""
    other = tmp_path / "thesis.zip"
    other.write_bytes(b"PK\3\4 mine")
    with pytest.raises(ModelError, match="not a model file"):
        exports.export(evaluated, other)
    assert other.read_bytes() == b"PK\3\4 mine"
    with pytest.raises(ModelError, match="a folder"):
        exports.export(evaluated, tmp_path)
    shutil.copy(exported, tmp_path / "model.zip")
    exports.export(evaluated, tmp_path / "model.zip")
    with pytest.raises(PredictError, match="train it first"):
        exports.export(own_run, tmp_path / "none.zip")
    for licence in ("", "two\nlines", "x" * 201):
        with pytest.raises(ModelError, match="--licence"):
            exports.export(evaluated, tmp_path / "none.zip", licence=licence)


# ---- what is refused when read -----------------------------------------------------------------------------------


def refusal(content: bytes, folder: Path) -> str:
    """The one sentence that refuses a file; nothing may be left in the folder."""
    path = folder / "m.zip"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        models.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and message.endswith((".", str(path))), message
    assert [each.name for each in folder.iterdir()] == ["m.zip"]
    return message


def test_damaged_files_are_refused(exported, tmp_path):
    """Bytes flipped, inserted, removed or exchanged, and files cut off: all of them, anywhere in the file."""
    whole, dice = exported.read_bytes(), random.Random(5)
    places = [0, len(whole)]
    for header in (b"PK\3\4", b"PK\1\2", b"PK\5\6"):
        at = -1
        while (at := whole.find(header, at + 1)) >= 0:
            places.append(at)
    for number in range(MUTATIONS):
        at = min(len(whole) - 1, max(0, dice.choice(places) + dice.randrange(-40, 80)))
        if number % 3 == 0:
            at = dice.randrange(len(whole))
        kind = dice.randrange(5)
        if kind == 0:
            content = whole[:at] + bytes([whole[at] ^ 1 << dice.randrange(8)]) + whole[at + 1 :]
        elif kind == 1:
            content = whole[:at]
        elif kind == 2:
            content = whole[:at] + dice.randbytes(dice.randrange(1, 50)) + whole[at:]
        elif kind == 3:
            content = whole[:at] + whole[at + dice.randrange(1, 50) :]
        else:
            junk = dice.randbytes(8)
            content = whole[:at] + junk + whole[at + len(junk) :]
        if content != whole:
            refusal(content, tmp_path)


def test_the_command_refuses_in_one_sentence(exported, hands, tmp_path):
    """A damaged model file, a missing one, one instead of a run: exit status 1 or 2, and no traceback."""
    image = str(next(iter(find_images(hands / "images").values())))
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(exported.read_bytes()[:-1])
    (tmp_path / "folder").mkdir()
    for arguments, words in (
        (["predict", str(damaged), image], "it is damaged: copy it again"),
        (["predict", str(tmp_path / "none.zip"), image], "none.zip: no such run or model file"),
        (["predict", str(exported), image, "--snapshot", "4"], "Omit --snapshot"),
        (["evaluate", str(exported)], "is a file"),
        (["export", str(exported), "copy.zip"], "is a file"),
        (["export", str(tmp_path / "folder"), str(tmp_path / "copy.zip")], "not a prepared run"),
        (["export", str(tmp_path / "folder")], "name the file to write"),
    ):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code in (1, 2) and words in done.output, done.output
        assert "Traceback" not in done.output


def test_hostile_archives_are_refused(exported, tmp_path):
    """Paths, duplicates, unknown and missing members, compression, comments: whatever else a zip file can hold."""
    found = members(exported)
    rest = list(found.items())
    assert "not the members" in refusal(packed({**found, "../../evil": b"x"}), tmp_path)
    assert "not the members" in refusal(packed({"/etc/passwd": b"x", **found}), tmp_path)
    assert "missing" in refusal(forged(exported, **{models.MODEL_CARD: None}), tmp_path)
    layout = container.layout([Member(name, len(each), zlib.crc32(each)) for name, each in [*rest, rest[0]]])
    twice = b"".join(h + c for h, c in zip(layout.headers, [*found.values(), rest[0][1]], strict=True)) + layout.tail
    assert "not the members" in refusal(twice, tmp_path)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        again = io.BytesIO()
        with zipfile.ZipFile(again, "w", method) as archive:
            for name, each in rest:
                archive.writestr(name, each)
        assert "not as bonecaffe writes it" in refusal(again.getvalue(), tmp_path)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(models.MANIFEST, bytes(50_000_000))
    assert "not as bonecaffe writes it" in refusal(bomb.getvalue(), tmp_path)
    for content in (b"", b"PK\5\6", b"x" * 10_000, b"<html>"):
        assert "It is not a model file, or it is damaged" in refusal(content, tmp_path)


def test_forged_contents_are_refused(exported, tmp_path):
    """Members whose hashes are right, and that do not fit together: the manifest may be a stranger's own."""
    found = members(exported)
    deploy, recipe = found[models.DEPLOY].decode(), found[models.RECIPE].decode()
    cases = [
        (models.DEPLOY, deploy.replace('"ReLU"', '"Python"', 1), "its type is not one of"),
        (models.DEPLOY, deploy.replace("dim: 224", "dim: 225", 1), "takes images of 3 x 225 x 224"),
        (models.DEPLOY, deploy.replace("num_output: 16", "num_output: 2000000000", 1), "are not computed"),
        (models.DEPLOY, deploy.replace("num_output: 16", "num_output: 15", 1), f"{models.WEIGHTS}: layer fc6 has"),
        (models.DEPLOY, "layer {" * 5000, "not a net"),
        (models.RECIPE, recipe.replace("width:", "weidth:"), models.RECIPE),
        (models.RECIPE, "a: [", models.RECIPE),
        (models.WEIGHTS, "x" * 1000, f"{models.WEIGHTS}: holds no weights"),
        (models.MEAN, "x", f"{models.MEAN} present"),
    ]
    for name, text, words in cases:
        changes = {name: text.encode()}
        order = {key: each for key in models.LARGEST if (each := {**found, **changes}.get(key)) is not None}
        path = tmp_path / "order.zip"
        path.write_bytes(packed(order))
        content = forged(path)
        path.unlink()
        assert words in refusal(content, tmp_path), name
    manifest = json.loads(found[models.MANIFEST])
    for change, words in (
        ({"version": 2}, "of version 2; this bonecaffe reads version 1"),
        ({"format": "other"}, "not one of a model file"),
        ({"iteration": -1}, "not one of a model file"),
        ({"members": {}}, "not those of manifest.json"),
    ):
        text = json.dumps({**manifest, **change}).encode()
        assert words in refusal(packed({**found, models.MANIFEST: text}), tmp_path)


def test_caffe_gets_only_what_was_checked(exported, tmp_path):
    """Parts of a caffemodel that bonecaffe does not read never reach Caffe, which would end the process at them."""
    found = members(exported)
    broken_layer = b"\xa2\x06\x07\x0a\x01x\xd2\x06\x01\xff"  # a layer x with parameters that are no message
    assert programs.import_pycaffe()
    path = tmp_path / "m.zip"
    path.write_bytes(packed({**found, models.WEIGHTS: found[models.WEIGHTS] + broken_layer}))
    path.write_bytes(forged(path))
    read = models.read(path)
    assert broken_layer not in read.model.caffemodel.read_bytes()
    net = nets.make("caffe", read.model.deploy, read.model.caffemodel)
    assert np.isfinite(net.forward(np.zeros((1, 3, 224, 224), np.float32))).all()

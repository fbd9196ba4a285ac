"""verify: every link holds in an untouched run, and the first broken one is reported; `runs` lists the runs."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from click.testing import CliRunner
from conftest import prepare_run, tiny

from bonecaffe.cli import main
from bonecaffe.errors import RunError
from bonecaffe.evaluation import by_snapshot, evaluate
from bonecaffe.predict import predict_run
from bonecaffe.records import State
from bonecaffe.run import RunDir
from bonecaffe.studies import verify
from bonecaffe.studies.runs import runs_in


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory) -> RunDir:
    """A run with all its stages done; tests must not change it."""
    run = RunDir(shutil.copytree(trained.path, tmp_path_factory.mktemp("whole") / "run"))
    by_snapshot.evaluate_all(run, lambda done, total: None)
    predict_run(run)
    evaluate.evaluate(run)
    return run


@pytest.fixture
def own_whole(whole, tmp_path) -> RunDir:
    return RunDir(shutil.copytree(whole.path, tmp_path / "run"))


def test_untouched_run_holds(whole, hands):
    """Every link, inputs too; also after the folder was moved."""
    links = verify.verify(whole, hands / "images", hands / "ages.csv", hands / "points.csv")
    assert {link.state for link in links} == {verify.HOLDS}, links
    assert len(links) == 15
    assert [link.name for link in verify.verify(whole) if link.state == verify.UNCHECKED] == [
        "ages",
        "points",
        "images",
    ]


def append(path):
    path.write_bytes(path.read_bytes() + b"\n")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_pixels(path):
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    image[5, 5] ^= 1
    cv2.imwrite(str(path), image)


def changed(old, new):
    """A change of one text in a file for another."""
    return lambda path: path.write_text(path.read_text().replace(old, new))


def doctored(path):
    path.write_text(path.read_text().replace('"state": "finished"', '"state": "died"'))


BREAKS = [
    ("manifest.json", doctored, "manifest", "record of train was changed"),
    ("cases.csv", changed("100", "200"), "split", "cases.csv"),
    ("train.txt", lambda p: p.write_text("\n".join(p.read_text().splitlines()[::-1]) + "\n"), "split", "train.txt"),
    ("recipe.yaml", changed("max_iter: {value: 12", "max_iter: {value: 13"), "recipe", "recipe.yaml"),
    ("train_lmdb/data.mdb", flip, "LMDBs and lists", "train_lmdb"),
    ("test_lmdb/data.mdb", os.unlink, "LMDBs and lists", "missing"),
    ("solver.prototxt", changed("base_lr: 0.001", "base_lr: 0.002"), "definition files", "solver.prototxt"),
    ("deploy.prototxt", changed("num_output: 8", "num_output: 9"), "definition files", "deploy.prototxt"),
    ("snapshots/SNAPSHOT_iter_12.caffemodel", flip, "snapshots, log, curve", "SNAPSHOT_iter_12.caffemodel"),
    ("caffe.log", append, "snapshots, log, curve", "caffe.log"),
    ("predictions_test.csv", append, "predictions", "predictions_test.csv"),
    ("metrics.json", append, "metrics", "metrics.json"),
    ("metrics_by_snapshot.csv", append, "every snapshot's metrics", "metrics_by_snapshot.csv"),
    ("figures/ages.png", flip, "figures and report", "ages.png"),
    ("report.html", append, "figures and report", "report.html"),
]


@pytest.mark.parametrize(("file", "damage", "link", "message"), BREAKS, ids=[entry[0] for entry in BREAKS])
def test_broken_link_is_named(own_whole, file, damage, link, message):
    """One file damaged: its link is the first broken one, exit 1."""
    damage(own_whole.path / file)
    broken = verify.first_broken(verify.verify(own_whole))
    assert broken is not None and broken.name == link and message in broken.message, broken
    done = CliRunner().invoke(main, ["verify", str(own_whole)])
    assert done.exit_code == 1 and f"the first broken link is {link}" in done.output


def test_spoiled_image_and_inputs_are_named(own_whole, hands, tmp_path):
    """A prepared image, the tables, a radiograph."""
    image = next(own_whole.images.glob("*.png"))
    other_pixels(image)
    expected = f"images/{image.name}: its pixels changed. Run bonecaffe prepare again to repair them"
    assert verify.first_broken(verify.verify(own_whole)).message == expected
    shutil.copytree(hands, tmp_path / "data")
    append(tmp_path / "data" / "ages.csv")
    assert verify.first_broken(verify.verify(own_whole, ages=tmp_path / "data" / "ages.csv")).name == "ages"
    flip(next((tmp_path / "data" / "images").glob("*.png")))
    assert verify.first_broken(verify.verify(own_whole, images=tmp_path / "data" / "images")).name == "images"


def test_resealed_figures_do_not_pass(own_whole):
    """metrics.json improved, with matching hash and seal: the recomputed figure reveals it."""
    metrics = json.loads(own_whole.metrics.read_text())
    metrics["splits"]["test"]["mad_months"] -= 1
    own_whole.metrics.write_text(json.dumps(metrics))
    evaluated = own_whole.read().evaluate
    outputs = {**evaluated.outputs, "metrics.json": verify.sha256_file(own_whole.metrics)}
    own_whole.record(evaluated.model_copy(update={"outputs": outputs}))
    broken = verify.first_broken(verify.verify(own_whole))
    assert broken.name == "metrics" and "mad_months" in broken.message


def test_another_caffe_is_reported_and_breaks_no_link(own_whole, monkeypatch):
    """Verified elsewhere, with other versions: distinguished from a broken link."""
    real = verify.environment.describe()
    other = real.model_copy(update={"packages": {**real.packages, "numpy": "1.0"}})
    monkeypatch.setattr(verify.environment, "describe", lambda: other)
    link = next(link for link in verify.verify(own_whole) if link.name == "Caffe and packages")
    assert link.state == verify.OTHER and "numpy" in link.message
    assert verify.first_broken(verify.verify(own_whole)) is None


def test_manifest_holds_what_it_should_and_nothing_personal(whole):
    """Versions, build, command line; no path of the machine, no user or host name, no age or sex."""
    manifest = json.loads(whole.manifest_file.read_text())
    by = manifest["train"]["attempts"][0]["by"]
    assert by["packages"]["numpy"] and by["caffe"]["binaries"]["caffe"] and by["host"]["cpu"]
    assert manifest["train"]["attempts"][0]["command"].startswith("caffe train --solver")
    assert "snapshots/SNAPSHOT_iter_12.solverstate" in manifest["train"]["outputs"]
    assert set(manifest["seals"]) == set(manifest) - {"seals", "version"}
    text = whole.manifest_file.read_text()
    assert str(whole.path) not in text and os.uname().nodename not in text.replace(os.uname().release, "")
    assert "boneage" not in text and '"male"' not in text


def test_runs_are_listed(own_whole, hands, tmp_path):
    """Prepared, finished, killed, unreadable: each with its state."""
    folder = tmp_path / "many"
    prepare_run(folder / "fresh", hands, tiny(solver__max_iter=7))
    shutil.copytree(own_whole.path, folder / "repeat" / "seed-1")
    killed = RunDir(shutil.copytree(own_whole.path, folder / "killed"))
    killed.record(killed.read().train.model_copy(update={"state": State.RUNNING}))
    broken = folder / "spoiled"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    (broken / "recipe.yaml").write_text("name: x")
    (folder / "notes").mkdir()
    found = {summary.run: summary for summary in runs_in(folder)}
    assert list(found) == ["fresh", "killed", "repeat/seed-1", "spoiled"]
    assert (found["fresh"].state, found["fresh"].iteration, found["fresh"].max_iter) == ("prepared", 0, 7)
    assert found["killed"].state == "killed" and found["spoiled"].state.startswith("unreadable")
    done = found["repeat/seed-1"]
    assert (done.state, done.iteration, done.evaluated) == ("finished", 12, 12)
    assert done.mad_months == json.loads(own_whole.metrics.read_text())["splits"]["test"]["mad_months"]
    output = CliRunner().invoke(main, ["runs", str(folder)]).output
    assert "seed-1" in output and "finished" in output
    assert len(json.loads(CliRunner().invoke(main, ["runs", str(folder), "--json"]).output)) == 4
    with pytest.raises(RunError):
        runs_in(tmp_path / "nowhere")
    with pytest.raises(RunError, match="nothing to verify"):
        verify.verify(RunDir(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(train=None),
        lambda m: m["train"].update(iteration=None, attempts=[{"by": {}}]),
        lambda m: m["prepare"].pop("records"),
        lambda m: m["prepare"].pop("outputs"),
        lambda m: m.pop("seals"),
        lambda m: m["evaluate"].update(outputs=None),
    ],
    ids=range(6),
)
def test_odd_manifests_make_no_traceback(own_whole, change):
    """Fields missing or of another type: each command ends with a message."""
    manifest = json.loads(own_whole.manifest_file.read_text())
    change(manifest)
    own_whole.manifest_file.write_text(json.dumps(manifest))
    for command in (["verify", str(own_whole)], ["runs", str(own_whole.path.parent)], ["evaluate", str(own_whole)]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code in (0, 1), done.output


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("curve.csv", b""),
        ("curve.csv", b"\xff\xfe\x00"),
        ("curve.csv", b"a,b\n1,2\n"),
        ("metrics_by_snapshot.csv", b"iteration,split,cases,mad_months,ccc,max_error_months\n4,train,8,1,1,1\n"),
        ("predictions_test.csv", b"id,boneage_months,predicted_months,male\n,1,2,True\n"),
        ("example/points.csv", b"id\n"),
        ("metrics.json", b"["),
        ("cases.csv", b""),
    ],
)
def test_damaged_files_make_no_traceback(own_whole, file, content):
    """Empty, binary, other columns: a message, and not the exit status of a bug."""
    (own_whole.path / file).write_bytes(content)
    for command in (["verify", str(own_whole)], ["runs", str(own_whole.path.parent)], ["evaluate", str(own_whole)]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code in (0, 1), done.output


def test_table_of_another_training_is_not_shown(own_whole):
    """Rows written by hand, or left from removed models, do not reach the report."""
    assert len(by_snapshot.current(own_whole)) == 6
    (own_whole.snapshots / "SNAPSHOT_iter_8.caffemodel").unlink()
    assert {row["iteration"] for row in by_snapshot.current(own_whole)} == {4, 12}
    with open(own_whole.by_snapshot, "a") as file:
        file.write("77,test,4,0.1,1,1\n")
    assert by_snapshot.current(own_whole) == []

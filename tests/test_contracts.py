"""Contracts between the stages: nothing orphans a model, a refusal leaves no trace, a reader notices every change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, edit_table, prepare_run, tiny

from bonecaffe.caffe import snapshots
from bonecaffe.cli import main
from bonecaffe.errors import BonecaffeError, CaffeError, PreflightError, RunError, TrainError
from bonecaffe.evaluation.evaluate import predict_and_evaluate
from bonecaffe.hands.provenance import FoundHand, write_found
from bonecaffe.hands.reference_points import read_points
from bonecaffe.predict import Predictor, predict_run
from bonecaffe.prepare import prepare
from bonecaffe.recipe import Recipe
from bonecaffe.records import TRUSTED_FROM, Launch, State, is_current
from bonecaffe.run import RunDir
from bonecaffe.studies import repeat, verify
from bonecaffe.studies.repetition import Repetition
from bonecaffe.studies.repro import write_departures
from bonecaffe.training import launch, train


def files_of(run):
    """Every file of a run with its bytes, except locks."""
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file() and path.name not in (".lock", "lock.mdb")
    }


def prepared_again(run, hands, recipe, **options):
    return prepare.prepare(run, hands / "images", hands / "ages.csv", hands / "points.csv", recipe, **options)


# ---- a trained model is not orphaned ---------------------------------------------------------------------------------


def prepare_by_command(run, hands):
    """The command line that prepares a run from a folder of hands."""
    tables = [f"--ages={hands / 'ages.csv'}", f"--points={hands / 'points.csv'}"]
    return ["prepare", str(run.path), f"--images={hands / 'images'}", *tables]


def change_ages(data):
    edit_table(data / "ages.csv", boneage="99")


def change_points(data):
    edit_table(data / "points.csv", ulna_x="20")


def change_image(data):
    path = data / "images" / "1001.png"
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    image[5, 5] ^= 1
    cv2.imwrite(str(path), image)


CHANGES = {
    "seed": ({"data__split_seed": 7}, None, "data.split_seed: 2018 before, 7 now"),
    "labels": ({"data__labels": "round"}, None, "data.labels: whole_months before, round now"),
    "margin": ({"preparation__margin": 0.1}, None, "preparation.margin: 0.0 before, 0.1 now"),
    "rate": ({"solver__base_lr": 0.5}, None, "solver.base_lr: 0.001 before, 0.5 now"),
    "ages": ({}, change_ages, "cases: other hands, ages, groups or sides of the split"),
    "points": ({}, change_points, "points: other points of the same hands"),
    "images": ({}, change_image, "images: other image files"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_prepare_never_orphans_a_trained_model(own_trained, own_hands, what):
    """Refused, with what changed and what to do; the run is unchanged, and its model still predicts."""
    values, damage, expected = CHANGES[what]
    if damage:
        damage(own_hands)
    before = files_of(own_trained)
    with pytest.raises(RunError) as refusal:
        prepared_again(own_trained, own_hands, tiny(**values))
    assert expected in str(refusal.value) and "Prepare another run folder" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 3, "what did not change is named"
    assert files_of(own_trained) == before
    assert predict_run(own_trained) == 12


def test_prepare_with_a_seed_on_a_finished_run_by_command(own_trained, hands):
    """The option that once damaged a run silently: exit 1, and the model can still be used."""
    command = prepare_by_command(own_trained, hands)
    refused = CliRunner().invoke(main, [*command, "--seed", "7"])
    assert refused.exit_code == 1 and "data.split_seed" in refused.output
    assert CliRunner().invoke(main, ["evaluate", str(own_trained.path)]).exit_code == 0
    same = CliRunner().invoke(main, command)
    assert same.exit_code == 0 and "nothing changed" in same.output


def test_files_with_another_time_but_the_same_content_are_the_same(own_trained, hands, tmp_path):
    """Data copied to another disk: its content is compared, and nothing changed."""
    copied = tmp_path / "copied"
    shutil.copytree(hands, copied, copy_function=shutil.copy)
    assert prepared_again(own_trained, copied, tiny()).made is False


def test_a_discarded_model_may_be_replaced(own_trained, hands):
    """Snapshots removed: the run is prepared again, and the records of the old training are removed."""
    shutil.rmtree(own_trained.snapshots)
    done = prepared_again(own_trained, hands, tiny(data__split_seed=7))
    assert done.made and own_trained.state() is State.PREPARED
    assert [str(change) for change in done.changes] == ["data.split_seed: 2018 before, 7 now"]


@pytest.mark.parametrize("killed", [False, True])
def test_what_was_measured_on_another_split_is_removed(own_trained, hands, killed, monkeypatch):
    """The model was discarded and another split prepared: report, figures and predictions of the old one are removed.

    An unrecorded file stays. The next prepare completes an interrupted removal.
    """
    predict_and_evaluate(own_trained)
    records = own_trained.read().records()
    stale = {name for stage in ("train", "predict", "evaluate") for name in records[stage].outputs}
    stale -= records["prepare"].outputs.keys() | records["prototxt"].outputs.keys()
    assert {"report.html", "metrics.json", "predictions_test.csv", "curve.csv"} <= stale
    (own_trained.figures / "mine.png").write_bytes(b"mine")
    shutil.rmtree(own_trained.snapshots)
    if killed:
        removed = []

        def remove(path):
            removed.append(path)
            if path == own_trained.report:
                raise KeyboardInterrupt
            prepare_remove(path)

        prepare_remove = prepare.remove
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(prepare, "remove", remove)
            prepared_again(own_trained, hands, tiny(data__split_seed=7))
    prepared_again(own_trained, hands, tiny(data__split_seed=7))
    assert [name for name in stale if (own_trained.path / name).exists()] == []
    assert (own_trained.figures / "mine.png").read_bytes() == b"mine"
    assert own_trained.read().records().keys() == {"prepare", "prototxt"}
    assert verify.first_broken(verify.verify(own_trained)) is None
    train.train(own_trained)
    predict_and_evaluate(own_trained)
    assert verify.first_broken(verify.verify(own_trained)) is None


# ---- a recipe edited by hand -----------------------------------------------------------------------------------------


def edit_recipe(run, old, new):
    text = run.recipe_file.read_text()
    assert old in text
    run.recipe_file.write_text(text.replace(old, new))


def test_names_and_reasons_edited_under_a_model(own_trained, hands):
    """The ones it was trained with still apply, in repro, prepare and verify; and prepare reports that."""
    expected = write_departures(own_trained)
    edit_recipe(own_trained, "tests: small enough to train in a second", "because I like it")
    edit_recipe(own_trained, f"\nname: {own_trained.recipe().name}\n", "\nname: mine\n")
    assert own_trained.recipe_as_edited()[1] == []
    assert write_departures(own_trained) == expected
    assert verify.first_broken(verify.verify(own_trained)) is None
    done = prepared_again(own_trained, hands, Recipe.load(own_trained.recipe_file))
    assert not done.made and [remark for remark in done.remarks if "names and reasons edited after" in remark]
    assert verify.first_broken(verify.verify(own_trained)) is None
    assert write_departures(own_trained) == expected
    again = prepared_again(own_trained, hands, Recipe.load(own_trained.recipe_file))
    assert not [remark for remark in again.remarks if "names and reasons" in remark]


def test_an_edited_recipe_is_applied_by_train(own_run):
    """An edit that affects only the training costs nothing: it is reported and used, and the run verifies."""
    edit_recipe(own_run, "max_iter: {value: 12", "max_iter: {value: 6")
    messages = []
    assert train.train(own_run, say=messages.append).iteration == 6
    assert "recipe.yaml was edited: solver.max_iter: 12 before, 6 now" in messages
    assert "max_iter: 6" in own_run.solver.read_text()
    assert verify.first_broken(verify.verify(own_run)) is None


def test_an_edited_recipe_is_applied_by_prepare(own_run, hands):
    """With a list of what changed; images and LMDBs are not made again when they do not depend on it."""
    edit_recipe(own_run, "max_iter: {value: 12", "max_iter: {value: 60")
    command = prepare_by_command(own_run, hands)
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0 and "solver.max_iter: 12 before, 60 now" in first.output
    assert "recipe updated" in first.output and own_run.recipe().solver.max_iter == 60
    assert "nothing changed" in CliRunner().invoke(main, command).output


def test_an_edited_recipe_that_needs_other_images_needs_prepare(own_run):
    """Training on images of another recipe would be silently wrong."""
    edit_recipe(own_run, "margin: {value: 0.0", "margin: {value: 0.2")
    before = files_of(own_run)
    with pytest.raises(RunError, match=r"(?s)preparation.margin: 0.0 before, 0.2 now.*bonecaffe prepare"):
        train.train(own_run)
    assert files_of(own_run) == before


@pytest.mark.parametrize("verb", ["train", "evaluate", "prototxt", "repro", "preflight"])
def test_an_edited_recipe_of_a_trained_run_is_refused(own_trained, verb):
    """By every verb that would use it: what was edited, and that the model was trained without the edit."""
    edit_recipe(own_trained, "max_iter: {value: 12", "max_iter: {value: 60")
    before = files_of(own_trained)
    done = CliRunner().invoke(main, [verb, str(own_trained.path)])
    assert done.exit_code == 1 and "solver.max_iter: 12 before, 60 now" in done.output and "Undo them" in done.output
    assert files_of(own_trained) == before


# ---- a refused training leaves no trace ------------------------------------------------------------------------------


def crop(run):
    """An edit by hand that makes Caffe abort."""
    assert CliRunner().invoke(main, ["prototxt", str(run.path)]).exit_code == 0
    run.train_val.write_text(
        run.train_val.read_text().replace("transform_param {", "transform_param {\n    crop_size: 227", 1)
    )


REFUSED = {
    "a GPU without a GPU build": ({"gpu": "0"}, None, CaffeError),
    "no list of GPUs": ({"gpu": "x"}, None, RunError),
    "both": ({"gpu": "0", "cpu": True}, None, TrainError),
    "no such weights": ({"given_weights": "none.caffemodel"}, None, TrainError),
    "weights that are none": ({"given_weights": "page.html"}, None, BonecaffeError),
    "nothing to resume": ({"resume": True}, None, TrainError),
    "weights and resume": ({"given_weights": "page.html", "resume": True}, None, TrainError),
    "crop": ({}, crop, PreflightError),
    "cpu, then crop": ({"cpu": True}, crop, PreflightError),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_training_leaves_no_trace(own_run, tmp_path, what):
    """Neither in recipe.yaml nor anywhere else: every file is unchanged, and none is new."""
    from bonecaffe.caffe import installation

    options, damage, error = REFUSED[what]
    if what == "a GPU without a GPU build" and installation.find().has_gpu:
        pytest.skip("this Caffe has a GPU build")
    (tmp_path / "page.html").write_text("<html>not found</html>")
    if "given_weights" in options:
        options = {**options, "given_weights": tmp_path / options["given_weights"]}
    if damage:
        damage(own_run)
    before = files_of(own_run)
    with pytest.raises(error):
        train.train(own_run, **options)
    assert files_of(own_run) == before


def test_how_it_was_started_is_in_its_record(own_trained, hands, tmp_path):
    """Only prepare writes recipe.yaml; the launch records weights and CPU, and departures count both."""
    paper = Recipe.load("paper").with_values({"data.train_cases": 8, "data.test_cases": 4}, "tests: a dozen hands")
    recipe = paper.with_values({name: value for name, value in _small().items()}, "tests: small")
    run = prepare_run(tmp_path / "started", hands, recipe)
    shutil.copy(snapshots.find(own_trained.snapshots)[-1].caffemodel, tmp_path / "own.caffemodel")
    before = run.recipe_file.read_bytes()
    train.train(run, tmp_path / "own.caffemodel", cpu=True)
    assert run.recipe_file.read_bytes() == before and run.recipe().solver.solver_mode == "GPU"
    trained = run.read().train
    assert trained.launch == Launch(weights="init.caffemodel") and trained.weights.name == "own.caffemodel"
    departed = {departure.field: departure for departure in launch.departures(run)}
    assert departed["solver.solver_mode"].here == "CPU" and departed["training.initial_weights"].here == "given"
    assert "solver_mode: CPU" in run.solver.read_text()
    assert (
        CliRunner().invoke(main, ["prototxt", str(run.path)]).exit_code == 0
    )  # as it was trained, not as it was prepared
    assert "solver_mode: CPU" in run.solver.read_text()
    assert train.train(run) is None  # computed where it was before, not where the recipe asks
    predict_and_evaluate(run)
    assert verify.first_broken(verify.verify(run)) is None


def _small():
    from conftest import TINY

    return {
        name: value for name, value in TINY.items() if name not in ("solver.solver_mode", "training.initial_weights")
    }


# ---- what was prepared is what is read -------------------------------------------------------------------------------


def cut(run, first, second):
    path = run.image(first)
    path.write_bytes(path.read_bytes()[:3000])


def swap(run, first, second):
    a, b = run.image(first), run.image(second)
    a.rename(run.images / "x")
    b.rename(a)
    (run.images / "x").rename(b)


def resize(run, first, second):
    path = run.image(first)
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path), 0), (200, 200)))


def lose(run, first, second):
    run.image(first).unlink()


@pytest.mark.parametrize("damage", [cut, swap, resize, lose])
def test_a_spoiled_image_is_noticed_and_repaired(own_trained, hands, damage):
    """By every reader, by verify, and by prepare, which makes it again and keeps the model."""
    first, second = own_trained.read().prepare.split["test"][:2]
    own_trained.forget("predict")  # so that the images are read
    model = own_trained.read().train
    before = {case_id: own_trained.image(case_id).read_bytes() for case_id in (first, second)}
    damage(own_trained, first, second)
    with pytest.raises(RunError, match=f"{first}.png.*Run prepare again"):
        predict_run(own_trained)
    assert verify.first_broken(verify.verify(own_trained)).name == "prepared images"
    assert prepared_again(own_trained, hands, tiny()).made is True
    assert {case_id: own_trained.image(case_id).read_bytes() for case_id in before} == before
    assert predict_run(own_trained) == 12 and own_trained.read().train == model
    assert verify.first_broken(verify.verify(own_trained)) is None


def damage(path):
    """Change one bit and keep size and time, as a disk does, or an edit that is copied with its time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("what", ["cases.csv", "train.txt", "train_lmdb/data.mdb", "example/hand.png", "images"])
def test_damage_that_keeps_size_and_time_is_repaired(own_trained, hands, what):
    """verify names the command that repairs it, and that command does."""
    case_id = own_trained.read().prepare.split["train"][0]
    path = own_trained.image(case_id) if what == "images" else own_trained.path / what
    before = path.read_bytes()
    damage(path)
    broken = verify.first_broken(verify.verify(own_trained))
    assert broken is not None and "un bonecaffe prepare again" in broken.message
    assert prepared_again(own_trained, hands, tiny()).made is True
    assert what.endswith(".mdb") or path.read_bytes() == before
    assert verify.first_broken(verify.verify(own_trained)) is None


def test_training_reads_a_damaged_lmdb(own_run):
    """Large or small, the LMDB is read completely before hours of training."""
    data = own_run.lmdb("train") / "data.mdb"
    assert data.stat().st_size > TRUSTED_FROM
    damage(data)
    with pytest.raises(TrainError, match="train_lmdb/data.mdb.*Run prepare again"):
        train.train(own_run)


def test_predictions_that_were_altered_are_made_again(own_trained):
    """An age altered in a table of predictions, with size and time kept: it is not evaluated as the model's."""
    predict_and_evaluate(own_trained)
    table = own_trained.predictions("test")
    before, status = table.read_text(), table.stat()
    last = before.rstrip()[:-1].rfind("0")
    table.write_text(before[:last] + "1" + before[last + 1 :])
    os.utime(table, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert table.stat().st_size == status.st_size and table.read_text() != before
    predict_and_evaluate(own_trained)
    assert table.read_text() == before and verify.first_broken(verify.verify(own_trained)) is None


def test_a_radiograph_changed_with_its_time_kept(own_trained, own_hands, tmp_path):
    """Size and time are trusted, because reading 12,000 images is slow; --check reads it. verify names the option."""
    damage_pixels(own_hands / "images" / "1001.png")
    images = own_hands / "images"
    plain = prepare_run(tmp_path / "plain", own_hands)
    record = plain.read().prepare
    damage_pixels(images / "1001.png")
    assert prepared_again(plain, own_hands, tiny()).made is False
    broken = verify.first_broken(verify.verify(plain, images=images))
    assert broken is not None and "prepare again with --check" in broken.message.lower()
    assert prepared_again(plain, own_hands, tiny(), check=True).made is True
    assert plain.read().prepare.key != record.key
    assert verify.first_broken(verify.verify(plain, images=images)) is None
    assert prepared_again(plain, own_hands, tiny(), check=True).made is False
    assert prepared_again(plain, own_hands, tiny()).made is False
    checked = CliRunner().invoke(main, [*prepare_by_command(own_trained, own_hands), "--check"])
    assert checked.exit_code == 1 and "images: other image files" in checked.output  # the model is guarded


def damage_pixels(path):
    """Another sound image in the same number of bytes, at the same time."""
    status = path.stat()
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    image[7, 7] ^= 3
    cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("table", ["ages.csv", "points.csv"])
def test_tables_that_changed_for_other_hands_are_accepted(own_trained, own_hands, table):
    """A row for a hand that is not in a trained run is added: verify holds again after prepare."""
    rows = (own_hands / table).read_text().splitlines()
    (own_hands / table).write_text("\n".join([*rows, ",".join(["9999", *rows[1].split(",")[1:]])]) + "\n")
    given = {"ages": own_hands / "ages.csv", "points": own_hands / "points.csv"}
    broken = verify.first_broken(verify.verify(own_trained, **given))
    assert broken is not None and "prepare again with this table" in broken.message.lower()
    model = own_trained.read().train
    done = prepared_again(own_trained, own_hands, tiny())
    assert not done.made and [remark for remark in done.remarks if f"{table}: changed, but not for" in remark]
    assert done.record.left_out == {"without points" if table == "ages.csv" else "without an age": 1}
    assert own_trained.read().train == model
    assert verify.first_broken(verify.verify(own_trained, **given)) is None
    again = prepared_again(own_trained, own_hands, tiny())
    assert not [remark for remark in again.remarks if "changed" in remark]


def test_another_file_with_the_same_pixels_is_another_for_all(own_trained, hands):
    """A prepared image that was compressed again: verify and evaluate agree, and prepare repairs it."""
    own_trained.forget("predict")
    path = own_trained.image(own_trained.read().prepare.split["test"][0])
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    with pytest.raises(RunError, match="Run prepare again"):
        predict_run(own_trained)
    broken = verify.first_broken(verify.verify(own_trained))
    assert broken is not None and "another file with the same pixels" in broken.message
    assert prepared_again(own_trained, hands, tiny()).made is True
    assert predict_run(own_trained) == 12 and verify.first_broken(verify.verify(own_trained)) is None


def test_killed_between_the_images_and_their_record(own_trained, hands, monkeypatch):
    """A repair that was killed after the new images were in place: done again, and the model is still the run's."""

    def killed(*given, **named):
        raise KeyboardInterrupt

    model = own_trained.read().train
    own_trained.image("1001").unlink()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(prepare, "outputs_of", killed)
        prepared_again(own_trained, hands, tiny())
    assert own_trained.read().prepare is not None  # so that another preparation is still refused
    assert prepared_again(own_trained, hands, tiny()).made is True
    assert predict_run(own_trained) == 12 and own_trained.read().train == model
    assert verify.first_broken(verify.verify(own_trained)) is None


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    """Its name given to a verb by mistake: a message, and no file is added."""
    for verb in ("prototxt", "train", "evaluate", "verify", "repro", "preflight"):
        assert CliRunner().invoke(main, [verb, str(tmp_path)]).exit_code == 1, verb
    assert list(tmp_path.iterdir()) == []


def test_is_current_is_the_one_answer(own_run):
    """The same inputs and every output unchanged."""
    prepared = own_run.read().prepare
    assert is_current(own_run.path, prepared, prepared.inputs)
    assert not is_current(own_run.path, None, {})
    assert not is_current(own_run.path, prepared, {**prepared.inputs, "points": "0" * 64})
    os.utime(own_run.cases_file)  # another time, the same content
    assert is_current(own_run.path, prepared, prepared.inputs)
    own_run.cases_file.write_text(own_run.cases_file.read_text() + "\n")
    assert not is_current(own_run.path, prepared, prepared.inputs)


# ---- rules that hold for Python callers too --------------------------------------------------------------------------


def found_by_locate(data):
    """A table of points as `locate` leaves it."""
    table = data / "points.csv"
    write_found(
        table,
        {
            h.id: FoundHand(h.id, h.width, h.height, h.points, 0.99, "confident", "k")
            for h in read_points(table).values()
        },
    )


def test_found_points_are_declared_for_python_callers_too(own_hands, tmp_path):
    """`prepare` the function, and `repeat`, notice what `prepare` the verb notices."""
    found_by_locate(own_hands)
    run = prepare_run(tmp_path / "run", own_hands)
    assert run.recipe().data.points == "found"
    assert any(d.field == "data.points" and "12 hands" in d.reason for d in launch.departures(run))
    recipe = tiny(solver__max_iter=2, solver__snapshot=2).to_yaml()
    data = [own_hands / name for name in ("images", "ages.csv", "points.csv")]
    plan = Repetition(tmp_path / "repeat", recipe, *data, cpu=True)
    repeat.one(plan, 1)
    assert RunDir(tmp_path / "repeat" / "seed-1").recipe().data.points == "found"
    declared = prepare_run(tmp_path / "marked", own_hands, origin="marked")
    assert declared.recipe().data.points == "marked"


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_failed_prepare_removes_only_what_it_made(own_hands, tmp_path):
    """An existing folder stays with its content; a folder that prepare made is removed, with the parents it made."""
    edit_table(own_hands / "ages.csv", boneage="126.5")
    kept = tmp_path / "kept"
    kept.mkdir()
    with pytest.raises(BonecaffeError):
        prepare_run(kept, own_hands)
    assert kept.is_dir() and not any(kept.iterdir())
    shutil.copytree(own_hands, tmp_path / "damaged")
    edit_table(tmp_path / "damaged" / "ages.csv", boneage="126")
    image = tmp_path / "damaged" / "images" / "1005.png"
    content = image.read_bytes()
    image.write_bytes(content[:3000] + bytes(200) + content[3200:])
    (kept / "notes.txt").write_text("mine")
    for path in (kept, tmp_path / "a" / "b" / "c"):
        with pytest.raises(BonecaffeError):
            prepare_run(path, tmp_path / "damaged")
    assert (kept / "notes.txt").read_text() == "mine" and not (kept / ".prepare").exists()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("verb", ["prototxt", "train", "evaluate", "verify", "repro", "preflight"])
def test_a_missing_run_is_not_created(tmp_path, verb):
    """A typo in its name leaves nothing behind."""
    assert CliRunner().invoke(main, [verb, str(tmp_path / "nosuch")]).exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_run_that_goes_away_while_it_trains_does_not_come_back(own_run, tmp_path, how):
    """Moved or removed during training: a message, and no stub in its place."""
    own_run.write_recipe(tiny(solver__max_iter=40, solver__snapshot=40, solver__test_interval=2))
    gone = []

    def go(progress):
        if progress.iteration >= 4 and not gone:
            gone.append(True)
            own_run.path.rename(tmp_path / "elsewhere")
            if how == "removed":
                shutil.rmtree(tmp_path / "elsewhere")

    with pytest.raises(RunError, match="moved or removed"):
        train.train(own_run, watch=go)
    assert not own_run.path.exists()


def test_files_of_a_killed_process_are_swept_and_never_recorded(own_trained):
    """A figure that was half-written when its process was killed does not count as one."""
    own_trained.figures.mkdir()
    strays = [own_trained.figures / ".ages.png.x1y2.part", own_trained.path / ".curve.csv.abcd.part"]
    for stray in strays:
        stray.write_bytes(b"half")
    assert CliRunner().invoke(main, ["evaluate", str(own_trained.path)]).exit_code == 0
    assert not any(stray.exists() for stray in strays)
    assert all(not name.endswith(".part") for name in own_trained.read().evaluate.outputs)


def test_asking_who_holds_a_run_never_makes_a_writer_fail(own_run):
    """Asked ten thousand times while other processes take the lock: none is refused because of it."""
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            own_run.holder()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            with own_run.lock("test"):
                pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    with own_run.lock("test"):
        assert own_run.holder() == f"bonecaffe test, process {os.getpid()}"
    assert own_run.holder() == ""


def test_the_lock_lasts_as_long_as_the_process_that_inherited_it(own_run):
    """Caffe holds the run while it finishes its snapshot, even if its driver died."""
    with own_run.lock("train") as lock:
        child = subprocess.Popen(["sleep", "30"], pass_fds=(lock,))
    try:
        with pytest.raises(RunError, match="in use"), own_run.lock("prepare"):
            pass
        assert own_run.holder()
    finally:
        child.kill()
        child.wait()
    with own_run.lock("prepare"):
        pass


WAITS = """
import os, sys
from bonecaffe.caffe import programs
folder = sys.argv[1]
os.mkfifo(f"{folder}/list.txt")  # convert_imageset waits for it
call = programs.Call("convert_imageset", [f"{folder}/", f"{folder}/list.txt", f"{folder}/db"])
print(call._process.pid, flush=True)
"""


def ended(pid: int, within_s: float) -> bool:
    """Whether a process ends in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_a_program_that_is_stopped_has_ended(tmp_path):
    """An interrupted prepare leaves no convert_imageset behind."""
    command = [sys.executable, "-c", f"{WAITS}\ncall.stop()\nprint('stopped', flush=True)\ninput()", str(tmp_path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    assert process.stdout.readline() == "stopped\n" and ended(child, 0.1)
    process.communicate("\n")


def test_a_program_ends_with_a_killed_parent(tmp_path):
    """kill -9 of prepare ends the convert_imageset that it started."""
    command = [sys.executable, "-c", f"{WAITS}\ncall.finish()", str(tmp_path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert ended(child, 30)


def test_predictor_takes_the_recorded_recipe(own_trained):
    """A model is used with the recipe it was trained with."""
    assert Predictor(own_trained).recipe == tiny()

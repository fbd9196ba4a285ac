"""A run's model is the one that its recorded training wrote: no other is used to predict, resumed or counted as it."""

from __future__ import annotations

import os
import shutil

import pytest

from bonecaffe.caffe import snapshots
from bonecaffe.errors import PredictError, RepeatError, TrainError
from bonecaffe.evaluation.by_snapshot import evaluate_all
from bonecaffe.network import definitions
from bonecaffe.predict import Predictor, predict_run
from bonecaffe.progress import unseen
from bonecaffe.records import State
from bonecaffe.studies import repeat, verify
from bonecaffe.studies.repetition import Repetition
from bonecaffe.studies.repro import write_departures
from bonecaffe.training import train
from bonecaffe.training.launch import departures


def swapped(run):
    """The last caffemodel replaced by the first one's."""
    first, *_, last = snapshots.find(run.snapshots)
    shutil.copyfile(first.caffemodel, last.caffemodel)
    return first, last


def test_a_swapped_model_is_not_predicted_with(own_trained):
    """Its predictions would be reported under the wrong iteration."""
    first, last = swapped(own_trained)
    for use in (Predictor, predict_run, lambda run: evaluate_all(run, unseen)):
        with pytest.raises(PredictError, match=rf"{last.caffemodel.name}: not as the recorded training"):
            use(own_trained)
    assert Predictor(own_trained, first.iteration).snapshot.iteration == first.iteration


def test_a_copied_run_is_itself(trained, tmp_path):
    """Copied without its times, it is recognized by its hashes."""
    copy = type(trained)(shutil.copytree(trained.path, tmp_path / "copy", copy_function=shutil.copyfile))
    assert Predictor(copy).snapshot.iteration == Predictor(trained).snapshot.iteration


def test_a_foreign_model_is_not_the_last_one(own_trained):
    """A foreign caffemodel among the run's own is refused by name."""
    last = snapshots.find(own_trained.snapshots)[-1]
    foreign = own_trained.snapshots / f"foreign_iter_{last.iteration + 87}.caffemodel"
    shutil.copyfile(last.caffemodel, foreign)
    with pytest.raises(PredictError, match="foreign_iter_"):
        Predictor(own_trained)


def test_snapshots_of_no_recorded_training_are_not_resumed(own_run, trained):
    """Copied into a run that was never trained, they would pass as its own."""
    shutil.copytree(trained.snapshots, own_run.snapshots)
    with pytest.raises(TrainError, match="not recorded here"):
        train.train(own_run, resume=True)
    assert own_run.read().train is None


def test_a_swapped_model_is_not_resumed(own_trained):
    """Caffe resumes from the caffemodel that the solverstate names."""
    record = own_trained.read().train
    own_trained.record(record.model_copy(update={"state": State.INTERRUPTED}))
    _, last = swapped(own_trained)
    with pytest.raises(TrainError, match=rf"{last.caffemodel.name}: not as the recorded training"):
        train.train(own_trained, resume=True)


def no_state(run, first, last):
    shutil.copyfile(first.caffemodel, run.snapshots / f"foreign_iter_{last.iteration + 87}.caffemodel")


def an_earlier_one(run, first, last):
    shutil.copyfile(last.caffemodel, first.caffemodel)


def a_state(run, first, last):
    last.solverstate.write_bytes(last.solverstate.read_bytes()[:-1] + b"\x05")


@pytest.mark.parametrize("damage", [no_state, an_earlier_one, a_state])
def test_no_snapshot_becomes_the_runs_own_by_resuming(own_trained, damage):
    """At its end a training records all files in the folder as its own, so they must be its own before."""
    record = own_trained.read().train
    own_trained.record(record.model_copy(update={"state": State.INTERRUPTED}))
    first, *_, last = snapshots.find(own_trained.snapshots)
    damage(own_trained, first, last)
    with pytest.raises(TrainError, match="not as the recorded training wrote it"):
        train.train(own_trained, resume=True)


def test_a_swapped_model_does_not_count_as_done(own_trained):
    """`train` on a finished run checks the model before it reports that there is nothing to do."""
    _, last = swapped(own_trained)
    with pytest.raises(TrainError, match=rf"{last.caffemodel.name}: not as the recorded training"):
        train.train(own_trained)


@pytest.mark.parametrize("prefix", ["AAA", "ZZZ"])
def test_of_two_models_of_one_iteration_none_is_guessed(own_trained, prefix):
    """The order of files in a folder decides nothing."""
    first, *_, last = snapshots.find(own_trained.snapshots)
    shutil.copyfile(first.caffemodel, own_trained.snapshots / f"{prefix}_iter_{last.iteration}.caffemodel")
    with pytest.raises(PredictError, match=f"{prefix}_iter_{last.iteration}.caffemodel: not as the recorded training"):
        predict_run(own_trained)


def test_size_and_time_do_not_stand_for_the_hash_in_predictions(own_trained):
    """Recorded predictions are bound to the hash of their model."""
    _, *_, last = snapshots.find(own_trained.snapshots)
    status, content = last.caffemodel.stat(), bytearray(last.caffemodel.read_bytes())
    content[-9] ^= 1
    last.caffemodel.write_bytes(content)
    os.utime(last.caffemodel, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(PredictError, match="not as the recorded training"):
        predict_run(own_trained)


def test_a_driver_killed_twice_is_resumed_twice(own_trained):
    """Files of the first attempt are recorded once a second one resumes from them; an older foreign file is not."""
    record = own_trained.read().train
    for name in ("SNAPSHOT_iter_12.caffemodel", "SNAPSHOT_iter_12.solverstate"):
        (own_trained.snapshots / name).unlink()
    own_trained.record(record.model_copy(update={"state": State.RUNNING, "iteration": 0, "outputs": {}, "stamps": {}}))
    write, seen = own_trained.record, []

    def killed(made):
        if made.stage == "train":
            seen.append(made)
        if len(seen) < 2:
            write(made)

    own_trained.record = killed
    train.train(own_trained, resume=True)
    del own_trained.record
    running = own_trained.read().train
    assert running.state is State.RUNNING and running.iteration == 8
    assert {name for name in running.outputs if name.endswith("caffemodel") and "init" not in name} == {
        f"snapshots/SNAPSHOT_iter_{iteration}.caffemodel" for iteration in (4, 8)
    }
    shutil.copyfile(
        own_trained.snapshots / "SNAPSHOT_iter_4.caffemodel", own_trained.snapshots / "foreign_iter_6.caffemodel"
    )
    with pytest.raises(PredictError, match="foreign_iter_6"):
        Predictor(own_trained, 6)
    (own_trained.snapshots / "foreign_iter_6.caffemodel").unlink()
    assert train.train(own_trained, resume=True).state == "finished"


def test_what_a_killed_driver_left_is_resumed(own_trained):
    """Its newest snapshots are not recorded yet."""
    record = own_trained.read().train
    last = snapshots.find(own_trained.snapshots)[-1]
    names = {own_trained.name_of(file) for file in (last.caffemodel, last.solverstate)}
    kept = {name: value for name, value in record.outputs.items() if name not in names}
    own_trained.record(
        record.model_copy(update={"state": State.RUNNING, "outputs": kept, "iteration": last.iteration - 1})
    )
    os.utime(last.caffemodel)
    assert train.train(own_trained, resume=True) is not None
    assert own_trained.read().train.state is State.FINISHED
    assert Predictor(own_trained).snapshot.iteration == last.iteration


def test_other_weights_are_not_ignored(own_trained, tmp_path):
    """A finished run, called with weights that it did not start from: refused, not "nothing to do"."""
    weights = tmp_path / "w.caffemodel"
    shutil.copyfile(snapshots.find(own_trained.snapshots)[0].caffemodel, weights)
    with pytest.raises(TrainError, match=r"trained already, from the fillers; .*w\.caffemodel holds other weights"):
        train.train(own_trained, weights)
    assert train.train(own_trained) is None


def test_repeat_does_not_mix_weights(own_trained, hands, tmp_path):
    """A seed that was trained from other weights does not belong to this repetition."""
    weights = tmp_path / "w.caffemodel"
    shutil.copyfile(snapshots.find(own_trained.snapshots)[0].caffemodel, weights)
    shutil.copytree(own_trained.path, tmp_path / "out" / "seed-1")
    common = {"images": hands / "images", "ages": hands / "ages.csv", "points": hands / "points.csv", "cpu": True}
    recipe = own_trained.recipe().to_yaml()
    plan = Repetition(out=tmp_path / "out", recipe=recipe, weights=weights, gpu=None, **common)
    with pytest.raises(
        RepeatError, match=r"seed-1: was trained from the fillers; this repeat would train from w\.caffemodel"
    ):
        repeat._check_weights(type(own_trained)(tmp_path / "out" / "seed-1"), plan)


def test_definitions_edited_by_hand_are_departures(own_run, hands):
    """The training then differs from the recipe: `repro`, the verdict and `verify` report it."""
    definitions.write(own_run, own_run.recipe())
    assert not [each for each in departures(own_run) if each.here == "edited by hand"]
    text = own_run.solver.read_text()
    own_run.solver.write_text(text.replace("base_lr: ", "base_lr: 0.5 # was ", 1))
    assert train.train(own_run, cpu=True) is not None
    (edited,) = [each for each in departures(own_run) if each.here == "edited by hand"]
    assert edited.field == "solver.prototxt"
    _, written = write_departures(own_run)
    assert edited in written.departures and verify.first_broken(verify.verify(own_run)) is None


def test_trained_again_and_killed_it_is_resumed(own_trained, monkeypatch):
    """The new training's snapshots are not compared with those of the earlier training that had the same names."""
    shutil.rmtree(own_trained.snapshots)
    before = own_trained.read().train
    others = dict.fromkeys(before.outputs, "0" * 64)  # the same seed makes the same files: pretend that they differ
    own_trained.record(before.model_copy(update={"outputs": others, "stamps": {}, "state": State.INTERRUPTED}))
    record = own_trained.record

    def killed_before_its_end_is_recorded(made):
        if getattr(made, "state", None) is State.RUNNING or made.stage != "train":
            record(made)

    monkeypatch.setattr(own_trained, "record", killed_before_its_end_is_recorded)
    train.train(own_trained)
    monkeypatch.undo()
    assert own_trained.read().train.state is State.RUNNING
    last = snapshots.find(own_trained.snapshots)[-1]
    for file in (last.caffemodel, last.solverstate):
        file.write_bytes(file.read_bytes())  # another time, so that only the hash can decide
    train.train(own_trained, resume=True)
    assert own_trained.read().train.state is State.FINISHED

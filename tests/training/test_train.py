"""A training on the real Caffe: started, watched, interrupted, resumed, and "finished" only when it is."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pandas
import pytest
from conftest import disposition, prepare_run, tiny, with_recipe

from bonecaffe.caffe import gpus, installation, programs, snapshots
from bonecaffe.errors import BonecaffeError, CaffeError, TrainError
from bonecaffe.network import definitions, prototxt
from bonecaffe.recipe import Recipe
from bonecaffe.records import Launch, State
from bonecaffe.run import RunDir
from bonecaffe.studies import verify
from bonecaffe.training import drive, launch, preflight, train


def test_finished_run_has_all_it_should(trained):
    """Snapshots at every period, the whole log, a curve in months, a record."""
    assert [snapshot.iteration for snapshot in snapshots.find(trained.snapshots)] == [4, 8, 12]
    assert all(snapshot.flaw() is None for snapshot in snapshots.find(trained.snapshots))
    text = trained.caffe_log.read_text()
    assert "Optimization Done." in text and "Solving" in text
    curve = pandas.read_csv(trained.curve)
    assert list(curve.columns) == ["iteration", "phase", "loss", "rmse_months"]
    assert curve[curve.phase == "test"].iteration.tolist() == [0, 4, 8, 12]
    assert all(abs(row.rmse_months - math.sqrt(2 * row.loss)) < 1e-3 * row.rmse_months for row in curve.itertuples())
    record = trained.read().train
    assert record.state == "finished" and record.iteration == 12
    assert record.attempts[0].command == "caffe train --solver solver.prototxt"


def test_finished_run_is_not_trained_again(own_trained):
    """Nothing to do, and nothing done."""
    before = own_trained.caffe_log.read_bytes()
    assert train.train(own_trained) is None
    assert own_trained.caffe_log.read_bytes() == before


def test_interrupted_run_is_not_finished(own_run):
    """Ctrl-C: Caffe snapshots, prints `Optimization Done.` and exits 0; the run is interrupted, and resumes there."""
    own_run.write_recipe(tiny(solver__max_iter=4000, solver__snapshot=4000, solver__test_interval=1000))

    def stop(progress):
        if progress.iteration >= 6 and progress.event.kind == "train_loss" and not stopped:
            stopped.append(progress.iteration)
            os.kill(os.getpid(), signal.SIGINT)

    stopped = []
    outcome = train.train(own_run, watch=stop)
    assert outcome.state == "interrupted" and 6 <= outcome.iteration < 4000
    assert "Optimization Done." in own_run.caffe_log.read_text()
    assert own_run.read().train.state == "interrupted"
    with pytest.raises(TrainError, match="--resume"):
        train.train(own_run)


def test_interrupted_and_resumed_run_ends_where_it_should(own_run):
    """Resumed from the snapshot of the interruption, to the last iteration, with one curve without a gap."""
    own_run.write_recipe(tiny(solver__max_iter=300, solver__snapshot=10, solver__test_interval=100))
    signals = []

    def stop(progress):
        if progress.iteration >= 12 and not signals:
            signals.append(progress.iteration)
            os.kill(os.getpid(), signal.SIGINT)

    first = train.train(own_run, watch=stop)
    assert first.state == "interrupted"
    second = train.train(own_run, resume=True)
    assert (second.state, second.iteration) == ("finished", 300)
    curve = pandas.read_csv(own_run.curve)
    assert curve[curve.phase == "train"].iteration.tolist() == list(range(301))  # Caffe reports the last one too
    assert own_run.caffe_log.read_text().count("# bonecaffe ") == 2
    attempts = own_run.read().train.attempts
    assert [attempt.state for attempt in attempts] == ["interrupted", "finished"]
    assert f"resumed from iteration {first.iteration}" == attempts[1].start


def test_incomplete_snapshot_is_skipped(own_run):
    """A snapshot cut off by a kill is named, and the training resumes from the complete one before it."""
    own_run.write_recipe(tiny(solver__max_iter=400, solver__snapshot=10, solver__test_interval=400))
    signals = []

    def stop(progress):
        if progress.iteration >= 22 and not signals:
            signals.append(os.kill(os.getpid(), signal.SIGINT))

    assert train.train(own_run, watch=stop).state == "interrupted"
    newest = snapshots.find(own_run.snapshots)[-1]
    newest.caffemodel.write_bytes(newest.caffemodel.read_bytes()[:1000])
    before = snapshots.newest_complete(own_run.snapshots)
    messages = []
    assert train.train(own_run, resume=True, say=messages.append).state == "finished"
    assert any(sentence.startswith("skipped an incomplete snapshot") for sentence in messages)
    assert f"resumed from iteration {before.iteration}" in messages
    assert f"learning rate at iteration {before.iteration}: {0.001 * 0.1 ** (before.iteration // 8):g}" in messages


def test_second_driver_is_refused(own_run):
    """One run, one driver."""
    with own_run.lock("train"), pytest.raises(BonecaffeError, match="in use by bonecaffe train"):
        train.train(own_run)


def test_diverged_run_is_stopped_and_reported(own_run):
    """nan in the loss: stopped at once, not trained to the end."""
    own_run.write_recipe(
        tiny(solver__type="SGD", solver__base_lr=10.0, solver__max_iter=5000, solver__test_interval=5000)
    )
    outcome = train.train(own_run)
    assert outcome.state == "diverged" and outcome.iteration < 4000 and "base_lr" in outcome.why
    assert own_run.read().train.state == "diverged"


def test_caffes_fatal_line_is_reported(own_run, monkeypatch):
    """Why Caffe died, where preflight did not foresee it, is in the outcome, without glog's preamble."""
    monkeypatch.setattr(preflight, "examine", lambda run, call, staged: preflight.Report())
    definitions.write(own_run, own_run.recipe())
    own_run.train_val.write_text(own_run.train_val.read_text().replace('"train_lmdb"', '"nowhere_lmdb"'))
    messages = []
    outcome = train.train(own_run, say=messages.append)
    assert (outcome.state == "died" and "mdb_status" in outcome.why) or "nowhere" in outcome.why
    assert "train_val.prototxt was edited by hand and is used unchanged" in messages


def test_paper_needs_weights_and_a_gpu(hands, tmp_path):
    """The paper's recipe does not silently start without weights, nor on a CPU build with --gpu."""
    recipe = Recipe.load("paper").with_values({"data.train_cases": 8, "data.test_cases": 4}, "tests: a dozen hands")
    run = prepare_run(tmp_path / "run", hands, recipe)
    with pytest.raises(TrainError, match=r"fetch_caffenet\.py"):
        train.train(run, cpu=True)
    assert run.recipe() == recipe  # refused: no trace
    on_cpu = launch.as_launched(run.recipe(), None, None)
    assert on_cpu.solver.solver_mode == "CPU"
    assert any(d.field == "solver.solver_mode" and "--cpu" in d.reason for d in on_cpu.departures())
    if not installation.find().has_gpu:
        with pytest.raises(CaffeError, match="without GPU support"):
            train.train(run, gpu="0")
    with pytest.raises(TrainError, match="exclude each other"):
        train.train(run, gpu="0", cpu=True)


class _GpuCaffe:
    """What a Caffe built with CUDA would report, for the command lines that cannot run here."""

    origin, has_gpu, has_nccl, build = (
        "a pretended GPU build",
        True,
        False,
        {"gpu": "CUDA 13.0; compute capability 75 86"},
    )


def test_gpu_command_lines(own_run, monkeypatch):
    """The paper's `--gpu 0` is what the paper's recipe gives; several GPUs need NCCL."""
    monkeypatch.setattr(installation, "find", lambda: _GpuCaffe)
    monkeypatch.setattr(gpus, "_DRIVERS", (Path("/proc"),))
    paper = Recipe.load("paper")
    assert launch.gpus_for(paper, None, False) == "0" and launch.as_launched(paper, None, "0") == paper
    assert Launch(gpus=launch.gpus_for(paper, "2", False)).arguments()[-2:] == ["--gpu", "2"]
    with pytest.raises(CaffeError, match="NCCL"):
        launch.gpus_for(paper, "0,1", False)
    monkeypatch.setattr(_GpuCaffe, "has_nccl", True)
    assert Launch(gpus=launch.gpus_for(paper, "all", False)).arguments()[-2:] == ["--gpu", "all"]
    assert Launch(gpus=launch.gpus_for(paper, None, True)).arguments() == ["train", "--solver", "solver.prototxt"]


def test_pretrained_weights_reach_caffe(own_trained, tmp_path):
    """--weights: fc8 handled, init.caffemodel passed on, and Caffe reports that it copies from it."""
    shutil.copy(snapshots.find(own_trained.snapshots)[-1].caffemodel, tmp_path / "pre.caffemodel")
    shutil.rmtree(own_trained.snapshots)
    own_trained.write_recipe(tiny(solver__max_iter=4))
    messages = []
    outcome = train.train(own_trained, given_weights=tmp_path / "pre.caffemodel", say=messages.append)
    assert outcome.state == "finished"
    assert "fc8 of pre.caffemodel has the right shape and is kept" in messages
    assert "Finetuning from init.caffemodel" in own_trained.caffe_log.read_text()


def test_same_seed_twice_gives_the_same_model(hands, tmp_path, trained):
    """On the CPU, the same run gives the same final caffemodel, byte for byte."""
    again = prepare_run(tmp_path / "again", hands)
    assert train.train(again).state == "finished"
    assert (
        snapshots.find(again.snapshots)[-1].caffemodel.read_bytes()
        == snapshots.find(trained.snapshots)[-1].caffemodel.read_bytes()
    )


def test_changed_data_are_not_trained_on_from_an_old_snapshot(own_trained, hands, tmp_path):
    """Resuming after the split changed is refused, with what changed."""
    other = prepare_run(tmp_path / "other", hands, tiny(data__split_seed=4))
    shutil.copytree(own_trained.snapshots, other.snapshots)
    other.record(own_trained.read().train)
    with pytest.raises(TrainError, match="prepare.* changed"):
        train.train(other, resume=True)


def test_snapshots_are_ordered_by_number(tmp_path):
    """900 comes before 10000, although it sorts after it as text."""
    for iteration in (10000, 900, 20):
        (tmp_path / f"S_iter_{iteration}.caffemodel").touch()
    (tmp_path / "notes.caffemodel").touch()
    assert [snapshot.iteration for snapshot in snapshots.find(tmp_path)] == [20, 900, 10000]
    assert snapshots.newest_complete(tmp_path) is None


def test_unprepared_run_is_refused_with_the_remedy(tmp_path):
    """No run, and a run without LMDBs."""
    with pytest.raises(BonecaffeError, match="bonecaffe prepare"):
        train.train(RunDir(tmp_path / "none"))


def test_prototxts_follow_the_recipe_unless_edited(own_run):
    """A changed recipe rewrites them; an edit by hand stays, and is named."""
    definitions.write(own_run, tiny())
    assert definitions.write(own_run, tiny(solver__max_iter=99)) == []
    assert "max_iter: 99" in own_run.solver.read_text()
    own_run.solver.write_text(own_run.solver.read_text().replace("max_iter: 99", "max_iter: 98"))
    assert definitions.write(own_run, tiny(solver__max_iter=97)) == ["solver.prototxt"]
    assert "max_iter: 98" in own_run.solver.read_text()
    assert own_run.deploy.read_text() == prototxt.deploy(tiny(solver__max_iter=97))


@pytest.mark.parametrize("before", [True, False])
def test_our_own_file_is_no_edit_after_a_kill(own_run, monkeypatch, before):
    """Killed when the files were in place but not recorded: the next recipe still rewrites them."""
    if before:
        definitions.write(own_run, tiny())
    record = RunDir.record

    def killed(self, new):
        if not new.intended:
            raise KeyboardInterrupt
        record(self, new)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunDir, "record", killed)
        definitions.write(own_run, tiny(solver__max_iter=99))
    assert "max_iter: 99" in own_run.solver.read_text()
    assert definitions.write(own_run, tiny(solver__max_iter=98)) == []
    assert "max_iter: 98" in own_run.solver.read_text() and own_run.read().prototxt.intended == {}


@pytest.mark.parametrize("before", [True, False])
def test_our_own_file_is_no_edit_after_a_kill_before_the_moves(own_run, monkeypatch, before):
    """Recorded as intended, not yet in place: the existing file is still bonecaffe's own."""
    if before:
        definitions.write(own_run, tiny())

    replace = os.replace

    def killed(source, target):
        if "prototxt" in str(target):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", killed)
        definitions.write(own_run, tiny(solver__max_iter=99))
    assert own_run.read().prototxt.intended
    assert definitions.write(own_run, tiny(solver__max_iter=98)) == []


def test_driver_works_from_a_thread(own_run):
    """Scripts may train in a thread, where Python sets no signal handler."""
    results = []
    thread = threading.Thread(target=lambda: results.append(train.train(own_run)))
    thread.start()
    thread.join(300)
    assert results[0].state == "finished"


def test_refused_training_changes_nothing(own_trained):
    """`train --cpu` on a GPU's finished run, weights with --resume, another rate: refused, every file unchanged."""
    with_recipe(own_trained, tiny(solver__solver_mode="GPU"))

    def files():
        return {
            path: path.read_bytes()
            for path in own_trained.path.rglob("*")
            if path.is_file() and path.name not in (".lock", "lock.mdb")
        }

    before = files()
    assert train.train(own_trained, cpu=True) is None  # where it is computed does not make it another training
    own = own_trained.snapshots / "SNAPSHOT_iter_4.caffemodel"
    with pytest.raises(TrainError, match="Give only one of them"):
        train.train(own_trained, given_weights=own, cpu=True, resume=True)
    assert files() == before
    with_recipe(own_trained, tiny(solver__base_lr=0.002))
    before = files()
    for resume in (False, True):
        with pytest.raises(TrainError, match="--resume|solver changed"):
            train.train(own_trained, resume=resume)
    assert files() == before


def test_given_mean_is_the_runs_own_copy_once_there_is_a_model(own_run, tmp_path):
    """A mean image given as a file: a change before the training is used; afterwards the run's copy counts."""
    from test_mean import mean_image

    path = mean_image(tmp_path / "own.binaryproto")
    own_run.write_recipe(tiny(network__mean=f"file:{path}"))
    definitions.write(own_run, tiny(network__mean=f"file:{path}"))
    first = own_run.mean_file.read_bytes()
    path.write_bytes(first[:-4] + bytes(4))
    assert train.train(own_run).state == "finished"
    kept = own_run.mean_file.read_bytes()
    assert kept != first
    path.write_bytes(first)
    (own_run.snapshots / "SNAPSHOT_iter_12.solverstate").unlink()
    assert train.train(own_run, resume=True).state == "finished"
    assert own_run.mean_file.read_bytes() == kept
    for change in (path.unlink, lambda: path.write_text("no mean"), path.unlink):
        assert train.train(own_run) is None
        assert verify.first_broken(verify.verify(own_run)) is None
        change()
    assert train.train(own_run) is None
    own_run.mean_file.write_bytes(first)
    assert verify.first_broken(verify.verify(own_run)).name == "definition files"


def test_new_training_starts_a_new_log_and_curve(own_run):
    """Points of an earlier training don't stay in the figure; its log is kept under another name."""
    own_run.write_recipe(tiny(solver__max_iter=6, solver__snapshot=6))
    train.train(own_run)
    shutil.rmtree(own_run.snapshots)
    own_run.write_recipe(tiny(solver__max_iter=4, solver__snapshot=4, solver__display=2))
    assert train.train(own_run).state == "finished"
    curve = pandas.read_csv(own_run.curve)
    assert curve[curve.phase == "train"].iteration.tolist() == [0, 2, 4]
    assert "Iteration 5" in (own_run.path / "caffe.log.1").read_text()


def test_edited_solver_decides_when_it_is_finished(own_run):
    """Caffe trains to the max_iter that was edited by hand, and the end is judged by it."""
    definitions.write(own_run, own_run.recipe())
    own_run.solver.write_text(own_run.solver.read_text().replace("max_iter: 12", "max_iter: 2"))
    outcome = train.train(own_run)
    assert (outcome.state, outcome.iteration) == ("finished", 2)


def test_closed_terminal_lets_caffe_snapshot(own_run):
    """SIGHUP ends as Ctrl-C does."""
    own_run.write_recipe(tiny(solver__max_iter=4000, solver__snapshot=4000, solver__test_interval=4000))
    signals = []

    def hang_up(progress):
        if progress.iteration >= 5 and not signals:
            signals.append(progress.iteration)
            os.kill(os.getpid(), signal.SIGHUP)

    with disposition(signal.SIGHUP, signal.SIG_DFL):  # the tests may run under nohup
        assert train.train(own_run, watch=hang_up).state == "interrupted"
    assert snapshots.newest_complete(own_run.snapshots) is not None


def test_weights_are_declared(own_trained, tmp_path):
    """Weights that are not BVLC's are named as such among the departures."""
    own_trained.snapshots.rename(tmp_path / "old")
    train.train(own_trained, given_weights=tmp_path / "old" / "SNAPSHOT_iter_12.caffemodel")
    departure = next(d for d in launch.departures(own_trained) if d.field == "training.initial_weights")
    assert departure.here == "given" and "not BVLC's" in departure.reason
    assert len(own_trained.read().train.weights.sha256) == 64


def test_finished_without_its_last_model_is_not_done(own_trained):
    """The last snapshot was removed: not "nothing to do", and not listed as finished."""
    for path in own_trained.snapshots.glob("*_iter_12.*"):
        path.unlink()
    assert own_trained.state() == "last model gone"
    with pytest.raises(TrainError, match="up to iteration 8"):
        train.train(own_trained)
    assert train.train(own_trained, resume=True).state == "finished"


def test_full_disk_under_the_curve_does_not_stop_caffe(own_run, monkeypatch):
    """curve.csv cannot be written: an alarm; the training continues to its own end."""
    import errno

    from bonecaffe.training import drive

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(drive, "write_text", full)
    outcome = train.train(own_run)
    assert outcome.state == "finished" and sum("curve.csv cannot be written" in alarm for alarm in outcome.alarms) == 1


def test_failure_of_the_driver_is_recorded(own_run, monkeypatch):
    """A bug or a fault in bonecaffe during training: Caffe is stopped, and the record names the driver as the cause."""
    from bonecaffe.training import drive

    monkeypatch.setattr(drive.Standing, "note", lambda self, event, now: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.train(own_run)
    attempt = own_run.read().train.attempts[-1]
    assert own_run.state() == "died" and attempt.why == "the driver failed: ZeroDivisionError"


def test_nohup_is_respected(own_run):
    """A signal that was ignored before stays ignored."""

    def hang_up(progress):
        if progress.iteration == 3 and not signals:
            signals.append(os.kill(os.getpid(), signal.SIGHUP))

    signals = []
    with disposition(signal.SIGHUP, signal.SIG_IGN):
        assert train.train(own_run, watch=hang_up).state == "finished" and signals


def test_caffe_can_be_stopped_where_ctrl_c_is_ignored(tmp_path):
    """A script's background job ignores SIGINT; Caffe, which is stopped by SIGINT, must not inherit that."""
    with disposition(signal.SIGINT, signal.SIG_IGN), open(tmp_path / "log", "wb") as log:
        process = programs.start(["sleep", "60"], tmp_path, log)
        process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT


def test_record_of_a_killed_run_holds_no_path(own_run):
    """The reason in the manifest names files relative to the run."""
    own_run.write_recipe(tiny(solver__max_iter=4000, solver__snapshot=4000, solver__test_interval=4000))

    def stop(progress):  # twice: killed
        if progress.iteration >= 3 and len(signals) < 2:
            signals.append(os.kill(os.getpid(), signal.SIGTERM))

    signals = []
    outcome = train.train(own_run, watch=stop)
    assert outcome.state == "killed" and "second signal" in outcome.why and "caffe.log" in outcome.why
    assert str(own_run.path) not in own_run.manifest_file.read_text()


ABORTS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
__attribute__((destructor)) static void abort_late(void) {
  char words[4096] = "";
  FILE* file = fopen("/proc/self/cmdline", "r");
  size_t length = file ? fread(words, 1, sizeof words - 1, file) : 0;
  for (size_t at = 0; at < length; at += strlen(words + at) + 1)
    if (!strcmp(words + at, "train")) {
      fprintf(stderr, "F0101 00:00:00.000000     1 syncedmem.hpp:25] Check failed: driver shutting down\n");
      abort();
    }
}
"""


@pytest.fixture
def aborting_caffe(tmp_path, monkeypatch):
    """The real Caffe, which aborts while it exits, as a GPU's driver can make it do."""
    (tmp_path / "abort.c").write_text(ABORTS)
    library = tmp_path / "abort.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "abort.c")], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))


def test_complete_training_that_aborts_at_exit_is_finished(own_run, aborting_caffe):
    """Its model is complete; the remark has the status and the message, and is recorded."""
    outcome = train.train(own_run)
    assert (outcome.state, outcome.iteration) == (State.FINISHED, own_run.read().train.iteration)
    assert "the model is complete" in outcome.why and "SIGABRT" in outcome.why and "shutting down" in outcome.why
    assert own_run.read().train.attempts[-1].why == outcome.why
    assert train.train(own_run) is None  # nothing to do


def test_incomplete_training_that_aborts_at_exit_is_not_finished(own_run, aborting_caffe, monkeypatch):
    """Stopped early, or without its last snapshot: the abort changes nothing."""

    def without_last(self):
        return "cut off."

    monkeypatch.setattr(drive.snapshots.Snapshot, "flaw", without_last)
    outcome = train.train(own_run)
    assert outcome.state == State.DIED and "SIGABRT" in outcome.why

"""A training's end is recorded, or reported to the user, whatever else fails."""

from __future__ import annotations

import errno
import os
import signal
import threading

import pytest
from conftest import tiny

from bonecaffe.caffe import programs
from bonecaffe.errors import BonecaffeError, RecipeError, TrainError
from bonecaffe.run import RunDir
from bonecaffe.training import train


def test_a_log_with_two_names_is_refused_before_anything_is_recorded(own_trained, tmp_path):
    """Appending would change the file under its other name too; the record of the finished training is unchanged."""
    os.link(own_trained.caffe_log, tmp_path / "other.log")
    (own_trained.snapshots / "SNAPSHOT_iter_12.caffemodel").unlink()
    before = own_trained.manifest_file.read_bytes()
    with pytest.raises(BonecaffeError, match="hard link"):
        train.train(own_trained, resume=True)
    assert own_trained.manifest_file.read_bytes() == before


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_while_caffe_is_forked_is_passed_to_caffe(own_run, monkeypatch, when):
    """It interrupts the training as at any other moment, whichever thread gets it; no record stays "running"."""
    own_run.write_recipe(tiny(solver__max_iter=4000, solver__snapshot=4000, solver__test_interval=4000))
    start, over = programs.start, threading.Event()

    def interrupted(*arguments):
        if when == "before":
            os.kill(os.getpid(), signal.SIGINT)
        process = start(*arguments)
        if when == "after":
            os.kill(os.getpid(), signal.SIGINT)
        return process

    monkeypatch.setattr(programs, "start", interrupted)
    other = threading.Thread(target=over.wait)  # a signal may be delivered to any thread
    other.start()
    try:
        outcome = train.train(own_run)
    finally:
        over.set()
        other.join()
    assert outcome.state == "interrupted", outcome
    assert own_run.read().train.state == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_caffe_is_started_with_no_signal_blocked(tmp_path):
    """A child inherits its parent's blocked signals; Caffe could not be stopped then."""
    with (tmp_path / "log").open("wb") as log:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            process = programs.start(["grep", "SigBlk", "/proc/self/status"], tmp_path, log)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        process.wait()
    assert int((tmp_path / "log").read_text().split()[1], 16) == 0


def test_a_full_disk_at_the_end_does_not_hide_how_it_ended(own_run, monkeypatch):
    """The outcome, that it is not recorded, and what to do; --resume then records it."""
    record = RunDir.record
    records = []

    def full(self, new):
        records.append(new.stage)
        if records.count("train") == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "manifest.json")
        record(self, new)

    with monkeypatch.context() as patched:
        patched.setattr(RunDir, "record", full)
        with pytest.raises(TrainError, match=r"finished at iteration 12, but this could not be recorded: No space.*"):
            train.train(own_run)
    assert train.train(own_run, resume=True).state == "finished"
    assert own_run.read().train.state == "finished"


def test_a_recipe_with_another_net_is_refused():
    """bonecaffe writes, checks and records train_val.prototxt; a run with another could be prepared, not trained."""
    with pytest.raises(RecipeError, match=r"solver\.net must be .train_val\.prototxt."):
        tiny(solver__net="other.prototxt")

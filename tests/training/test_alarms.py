"""Alarms: raised when they should be, once, and not before; the constant answer on the real Caffe."""

from __future__ import annotations

from conftest import tiny

from bonecaffe.caffe.fatal import explain
from bonecaffe.caffe.log import Event
from bonecaffe.prepare.outputs import split_of
from bonecaffe.training import train
from bonecaffe.training.alarms import (
    Constant,
    ConstantAnswer,
    DiskRoom,
    GrownTestLoss,
    GrownTrainLoss,
    Listener,
    Plateau,
)


def heard(alarms: Listener, *events: Event) -> list[str]:
    return [said for event in events for said in alarms.hear(event)]


def losses(kind: str, values, step=20):
    text = "loss" if kind == "test_output" else ""
    return [Event(kind, step * number, value, text) for number, value in enumerate(values)]


def test_loss_grown_past_its_start():
    """The training loss above twice its first value five times running; a test loss above its first; each once."""
    assert heard(GrownTrainLoss(), *losses("train_loss", [100, 300, 90, 80, 300, 70])) == []
    said = heard(GrownTrainLoss(), *losses("train_loss", [100, 250, 260, 300, 310, 320, 330, 340]))
    assert len(said) == 1 and "grown past its start" in said[0] and "base_lr" in said[0]
    assert heard(GrownTestLoss(), *losses("test_output", [100, 105, 60])) == []
    assert len(heard(GrownTestLoss(), *losses("test_output", [100, 120, 130]))) == 1


def test_constant_answer():
    """Twice running at the spread of the ages: said. Once, on the way down: not."""
    constant = Constant.of([100, 120, 140], [80, 120, 160])
    assert constant.best == constant.guess == 3200 / 3
    at = constant.best / 2
    assert heard(ConstantAnswer(constant), *losses("test_output", [at, at, at / 2, at, at / 3])) == []
    said = heard(ConstantAnswer(constant), *losses("test_output", [2000, at, at * 1.01, at]))
    assert len(said) == 1 and "mean age for every hand" in said[0]
    # the mean training age is another than the test split's: that guess is recognized too
    other = Constant.of([60, 60], [80, 120, 160])
    assert other.guess == other.best + 60**2 and other.matches(other.guess / 2) and not other.matches(other.guess)


def test_plateau():
    """No improvement by a hundredth for as long as asked: the iteration of the best is named."""
    values = [900, 400, 200, 199.5, 199.2, 199.9, 201]
    said = heard(Plateau(80), *losses("test_output", values))
    assert len(said) == 1 and "not improved since iteration 40" in said[0] and said[0].startswith("iteration 120")
    assert heard(Plateau(80), *losses("test_output", [900, 400, 200, 150, 100, 80, 60])) == []


def test_disk_nearly_full(tmp_path):
    """Too little for the next snapshot: said once, again only after there was room; looked at every ten seconds."""
    free, now = [50], [0.0]
    alarms = DiskRoom(tmp_path, 100, free=lambda folder: free[0], clock=lambda: now[0])
    event = Event("train_loss", 1, 1.0)
    assert len(heard(alarms, event)) == 1
    now[0] = 5
    assert heard(alarms, event) == []
    for free[0], now[0], count in ((50, 20, 0), (500, 40, 0), (50, 60, 1)):
        assert len(heard(alarms, event)) == count
    assert heard(DiskRoom(tmp_path / "gone", 100), event) == []


def test_a_net_that_answers_the_mean_is_told_on(own_run):
    """Caffe with a rate of 0 and the mean age as its bias: finished, with the alarm said and recorded."""
    ages = [case.boneage_months for case in split_of(own_run)["train"]]
    flat = {"network__fc8_bias": sum(ages) / len(ages), "network__fc8_weight_std": 1e-9, "solver__base_lr": 0.0}
    own_run.write_recipe(tiny(**flat))
    said = []
    outcome = train.train(own_run, say=said.append)
    assert outcome.state == "finished"
    assert any("answers the mean age" in alarm for alarm in outcome.alarms)
    assert any(sentence.startswith("ALARM: iteration 8") for sentence in said)
    assert own_run.manifest()["train"]["attempts"][0]["alarms"] == list(outcome.alarms)


def test_last_words_are_translated():
    """Caffe's own fatal lines, as CAFFE_FACTS and its source have them; what is unknown stays untranslated."""
    for said, meaning in (
        ("Check failed: mdb_status == 0 (2 vs. 0) No such file or directory", "LMDB is not there"),
        ("Check failed: error == cudaSuccess (2 vs. 0)  out of memory", "GPU's memory is full"),
        ("Check failed: error == cudaSuccess (35 vs. 0)  CUDA driver version is insufficient", "no usable GPU driver"),
        ("Cannot use GPU in CPU-only Caffe: check mode.", "without a GPU"),
        ("Cannot copy param 0 weights from layer 'fc8'; shape mismatch.", "do not fit"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "memory is full"),
        ("Something new", ""),
    ):
        assert meaning in explain(said) and bool(explain(said)) == bool(meaning)

"""Alarms: raised when they should be, once, and not before; the constant prediction on the real Caffe."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
from conftest import caffes, tiny

from bonecaffe.caffe import programs
from bonecaffe.caffe.fatal import explain
from bonecaffe.caffe.log import Event
from bonecaffe.prepare.outputs import split_of
from bonecaffe.training import alarms, train
from bonecaffe.training.alarms import (
    Alarms,
    Constant,
    ConstantAnswer,
    DiskRoom,
    GrownTestLoss,
    GrownTrainLoss,
    Listener,
    Plateau,
    Silence,
)
from bonecaffe.training.preflight import Schedule


def heard(alarms: Listener, *events: Event) -> list[str]:
    return [sentence for event in events for sentence in alarms.hear(event)]


def losses(kind: str, values, step=20):
    text = "loss" if kind == "test_output" else ""
    return [Event(kind, step * number, value, text) for number, value in enumerate(values)]


def test_loss_grown_past_its_start():
    """The training loss above twice its first value five times in a row; a test loss above its first; each once."""
    assert heard(GrownTrainLoss(), *losses("train_loss", [100, 300, 90, 80, 300, 70])) == []
    sentences = heard(GrownTrainLoss(), *losses("train_loss", [100, 250, 260, 300, 310, 320, 330, 340]))
    assert len(sentences) == 1 and "grown past its start" in sentences[0] and "base_lr" in sentences[0]
    assert heard(GrownTestLoss(), *losses("test_output", [100, 105, 60])) == []
    assert len(heard(GrownTestLoss(), *losses("test_output", [100, 120, 130]))) == 1


def test_constant_answer():
    """Twice in a row at the spread of the ages: an alarm. Once, on the way down: none."""
    constant = Constant.of([100, 120, 140], [80, 120, 160])
    assert constant.best == constant.guess == 3200 / 3
    at = constant.best / 2
    assert heard(ConstantAnswer(constant), *losses("test_output", [at, at, at / 2, at, at / 3])) == []
    sentences = heard(ConstantAnswer(constant), *losses("test_output", [2000, at, at * 1.01, at]))
    assert len(sentences) == 1 and "mean age for every hand" in sentences[0]
    # the mean training age is another than the test split's: that guess is recognized too
    other = Constant.of([60, 60], [80, 120, 160])
    assert other.guess == other.best + 60**2 and other.matches(other.guess / 2) and not other.matches(other.guess)


def test_plateau():
    """No improvement by 1 % for the given number of iterations: the iteration of the best is named."""
    values = [900, 400, 200, 199.5, 199.2, 199.9, 201]
    sentences = heard(Plateau(80), *losses("test_output", values))
    assert len(sentences) == 1 and "not improved since iteration 40" in sentences[0]
    assert sentences[0].startswith("iteration 120")
    assert heard(Plateau(80), *losses("test_output", [900, 400, 200, 150, 100, 80, 60])) == []


def test_disk_nearly_full(tmp_path):
    """Too little for the next snapshot: one alarm, repeated only after there was room; checked every ten seconds."""
    free, now = [50], [0.0]
    alarms = DiskRoom(tmp_path, 100, free=lambda folder: free[0], clock=lambda: now[0])
    event = Event("train_loss", 1, 1.0)
    assert len(heard(alarms, event)) == 1
    now[0] = 5
    assert heard(alarms, event) == []
    for free[0], now[0], count in ((50, 20, 0), (500, 40, 0), (50, 60, 1)):
        assert len(heard(alarms, event)) == count
    assert heard(DiskRoom(tmp_path / "gone", 100), event) == []


def test_thresholds_as_documented():
    """Twice, a tenth, a hundredth, three in a hundred: at the threshold itself nothing has grown or improved."""
    # the median of the last five: [100, 100, 300, 300, 300] at iteration 100, and not of six
    train = losses("train_loss", [100, 100, 100, 300, 300, 300])
    assert heard(GrownTrainLoss(), *train[:5]) == []
    # the root mean squared error is sqrt(2 loss): sqrt(600), sqrt(200)
    assert heard(GrownTrainLoss(), *train) == [
        "iteration 100: the training loss has grown past its start (RMSE 24.5 months, 14.1 at first). "
        "Lower solver.base_lr."
    ]
    assert heard(GrownTrainLoss(), *losses("train_loss", [100] + [200] * 9)) == []
    assert len(heard(GrownTrainLoss(), *losses("train_loss", [100] + [201] * 4))) == 1
    assert heard(GrownTrainLoss(), *losses("train_loss", [100] + [201] * 3)) == []  # five are needed

    assert heard(GrownTestLoss(), *losses("test_output", [10, 11, 11])) == []
    assert heard(GrownTestLoss(), *losses("test_output", [50, 10, 54, 72])) == [  # sqrt(144), sqrt(100)
        "iteration 60: the test loss has grown past its start (RMSE 12.0 months, 10.0 at first). Lower solver.base_lr."
    ]

    constant = Constant.of([20, 20], [0, 20])
    assert (constant.best, constant.guess) == (100, 200)  # the variance over n, and 10² for the other mean
    answers = {48.4: False, 48.5: True, 50: True, 100: True, 103: True, 103.1: False}  # 97/2 and 206/2
    assert {loss: constant.matches(loss) for loss in answers} == answers

    assert heard(Plateau(40), *losses("test_output", [100, 99, 98.5])) == []  # the last is below 99
    assert heard(Plateau(40), *losses("test_output", [72, 71.28, 71.28])) == [
        "iteration 40: the test error has not improved since iteration 0 (RMSE 12.0 months): "
        "a plateau, as the paper saw from iteration 1000 of 3000."
    ]
    assert heard(Plateau(41), *losses("test_output", [72, 71.28, 71.28])) == []


def test_first_test_and_a_single_match_do_not_count_for_the_constant():
    """The untrained net may predict a constant; after it, two tests in a row must match."""
    constant = Constant.of([20, 20], [0, 20])
    assert heard(ConstantAnswer(constant), *losses("test_output", [50, 50, 300, 50, 300])) == []
    assert heard(ConstantAnswer(constant), *losses("test_output", [50, 50, 50, 50])) == [
        "iteration 40: the test error is the spread of the ages (RMSE 10.0 months): the net predicts the mean age for "
        "every hand. Check the learning rate, the initial weights and the mean."
    ]


def test_each_alarm_hears_only_what_concerns_it(tmp_path):
    """Other lines, other outputs, and losses before the first iteration: no alarm, and nothing remembered."""
    other = [
        Event("lr", 500, 1e9),
        Event("testing", 500),
        Event("train_output", 500, 1e9, "loss"),
        Event("test_output", 500, 1e9, "error"),
        Event("test_output", None, 1e9, "loss"),
        Event("train_loss", None, 1e9),
    ]
    test, train = losses("test_output", [100] * 9), losses("train_loss", [100] * 9)
    for make, foreign, own in (
        (GrownTrainLoss, test, train[0]),
        (GrownTestLoss, train, test[0]),
        (lambda: ConstantAnswer(Constant(200, 200)), train, test[0]),
        (lambda: Plateau(20), train, test[0]),
        (lambda: DiskRoom(tmp_path, 100, free=lambda folder: 50), test, train[0]),
    ):
        alarm = make()
        assert heard(alarm, *other, *foreign, own, *other, *foreign) == heard(make(), own)
        if make in (GrownTrainLoss, GrownTestLoss):  # the first was 100
            assert len(heard(alarm, *losses(own.kind, [201] * 4))) == 1


def test_disk_is_looked_at_every_ten_seconds(tmp_path):
    """Not after 9.9; after 10. Exactly enough is enough. Sizes in MB of a million bytes, rounded."""
    free, now = [100], [1000.0]
    alarm = DiskRoom(tmp_path, 100, free=lambda folder: free[0], clock=lambda: now[0])
    event = Event("train_loss", 1, 1.0)
    assert heard(alarm, event) == []
    free[0], now[0] = 99, 1009.9
    assert heard(alarm, event) == []
    now[0] = 1010.0
    assert len(heard(alarm, event)) == 1
    for left, needed, sentence in (
        (300_499_999, 600_500_001, "the disk has 300 MB left and the next snapshot takes 601 MB; "),
        (300_500_001, 600_499_999, "the disk has 301 MB left and the next snapshot takes 600 MB; "),
    ):
        alarm = DiskRoom(tmp_path, needed, free=lambda folder, left=left: left)
        assert heard(alarm, event) == [sentence + "Caffe will abort while writing it. Free some space."]


def test_alarms_are_a_list_that_gives_an_advice_once(tmp_path):
    """All alarms of a training: the advice on the rate comes once, whichever loss grows first; with the real disk."""
    constant = Constant(200, 200)
    assert len({constant, Constant(200, 200)}) == 1  # a value
    train, test = losses("train_loss", [100] + [300] * 5), losses("test_output", [50, 100, 100, 100])
    for first, second, loss in ((train, test, "training"), (test, train, "test")):
        alarms = Alarms.of_training(constant, 60, tmp_path, 10**30)
        disk, *sentences = heard(alarms, Event("train_loss", 0, 100.0), *first, *second)
        assert disk.startswith("the disk has ") and disk.endswith("Caffe will abort while writing it. Free some space.")
        assert sum("solver.base_lr" in sentence for sentence in sentences) == 1
        assert any(f"the {loss} loss has grown" in sentence for sentence in sentences)
        assert sum("the spread of the ages" in sentence for sentence in sentences) == 1
        assert sum("a plateau" in sentence for sentence in sentences) == 1 and len(sentences) == 3
    assert heard(Alarms(), *train, *test) == []
    assert heard(Alarms(GrownTestLoss()), *train, *test) == heard(GrownTestLoss(), *test)


def test_a_net_that_predicts_the_mean_raises_an_alarm(own_run):
    """Caffe with a rate of 0 and the mean age as its bias: finished, with the alarm printed and recorded."""
    ages = [case.boneage_months for case in split_of(own_run)["train"]]
    flat = {"network__fc8_bias": sum(ages) / len(ages), "network__fc8_weight_std": 1e-9, "solver__base_lr": 0.0}
    own_run.write_recipe(tiny(**flat))
    sentences = []
    outcome = train.train(own_run, say=sentences.append)
    assert outcome.state == "finished"
    assert any("predicts the mean age" in alarm for alarm in outcome.alarms)
    assert any(sentence.startswith("ALARM: iteration 8") for sentence in sentences)
    assert own_run.read().train.attempts[0].alarms == outcome.alarms


def test_fatal_lines_are_explained():
    """Caffe's own fatal lines, as in its source; an unknown line has no explanation."""
    for message, meaning in (
        ("Check failed: mdb_status == 0 (2 vs. 0) No such file or directory", "LMDB is missing"),
        ("Check failed: error == cudaSuccess (2 vs. 0)  out of memory", "GPU's memory is full"),
        ("Check failed: error == cudaSuccess (35 vs. 0)  CUDA driver version is insufficient", "no usable GPU driver"),
        ("Cannot use GPU in CPU-only Caffe: check mode.", "without a GPU"),
        ("Cannot copy param 0 weights from layer 'fc8'; shape mismatch.", "do not fit"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "memory is full"),
        ("Something new", ""),
    ):
        assert meaning in explain(message) and bool(explain(message)) == bool(meaning)


# ---- a silent log ---------------------------------------------------------------------------------------------------


class Clock:
    """Seconds that the test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def fed(lines, clock, silence):
    """Feed lines, each with the pause before it, in seconds."""

    def passing():
        for pause, line in lines:
            clock.now += pause
            yield line

    assert len(list(silence.listen(passing()))) == len(lines)


def listened(pauses, clock, silence):
    """Feed lines of iterations with the given pauses before them, in seconds."""
    fed([(pause, f"Iteration {number}, loss = 1") for number, pause in enumerate(pauses)], clock, silence)


def alarm_after(silence, clock, seconds):
    """The alarms of a pause that has lasted this long, checked once a second."""
    begun, found = clock.now, []
    while clock.now < begun + seconds:
        clock.now += 1
        found += silence.idle()
    return found


@pytest.mark.parametrize(
    ("pauses", "silent_s", "alarms"),
    [
        ([1] * 6, 299, 0),  # never before five minutes
        ([1] * 6, 302, 1),
        ([1] * 6, 5000, 1),  # once in one pause
        ([60] * 6, 590, 0),  # ten times its own rhythm
        ([60] * 6, 605, 1),
        ([1, 1, 1, 1, 1, 90, 1], 890, 0),  # a snapshot or a test pass belongs to the rhythm
        ([1, 1, 1, 1, 1, 90, 1], 905, 1),
        ([600, 1, 1, 1, 1, 1], 302, 1),  # the first pause does not: a GPU compiles its code
        ([], 1795, 0),  # and until the rhythm is known, half an hour is allowed
        ([], 1805, 1),
        ([1, 1], 1795, 0),
    ],
)
def test_log_that_is_silent_beyond_its_rhythm_raises_an_alarm(pauses, silent_s, alarms):
    """With how long, how long before, and what to do."""
    clock = Clock()
    silence = Silence(clock)
    listened(pauses, clock, silence)
    found = alarm_after(silence, clock, silent_s)
    assert len(found) == alarms, found
    for alarm in found:
        assert "no new line" in alarm and "nvidia-smi" in alarm and "--resume" in alarm


def iteration(number, pause_s):
    """Caffe's two lines about an iteration, which come together."""
    return [(pause_s, f"Iteration {number}, loss = 1"), (0, f"Iteration {number}, lr = 1")]


@pytest.mark.parametrize(
    ("lines", "silent_s", "alarms"),
    [
        # a slow CPU, without a test before the first iteration: a locator's training, or a resumed one
        ([*iteration(0, 3), *iteration(20, 280)], 1795, 0),
        ([*iteration(0, 3), *iteration(20, 280), *iteration(40, 280)], 2795, 0),
        ([*iteration(0, 3), *iteration(20, 280), *iteration(40, 280)], 2805, 1),
        # the first pass over a large test set counts, so that the next one raises no alarm
        ([(5, "Iteration 0, Testing net (#0)"), (100, "loss = 1"), *iteration(0, 1), *iteration(1, 1)], 1795, 0),
        ([(5, "Iteration 0, Testing net (#0)"), (100, "loss = 1"), *iteration(1, 1), *iteration(2, 1)], 995, 0),
        ([(5, "Iteration 0, Testing net (#0)"), (100, "loss = 1"), *iteration(1, 1), *iteration(2, 1)], 1005, 1),
    ],
)
def test_slow_training_does_not_seem_silent(lines, silent_s, alarms):
    """The rhythm is the time from one iteration to the next, not from the line of its loss to that of its rate."""
    clock = Clock()
    silence = Silence(clock)
    fed(lines, clock, silence)
    assert len(alarm_after(silence, clock, silent_s)) == alarms


@pytest.mark.parametrize(
    ("intervals", "allowed_s"), [((200, 500, 500), 18000), ((0, 0, 300), 27000), ((1, 1, 0), 1800), ((0, 0, 0), 270000)]
)
def test_rare_lines_are_waited_for(intervals, allowed_s):
    """display, test_interval and snapshot of the solver decide how long the first pause may be on a slow CPU."""
    solver = SimpleNamespace(**dict(zip(("display", "test_interval", "snapshot"), intervals, strict=True)))
    clock = Clock()
    silence = Silence(clock, Schedule(3000, intervals[1], intervals[2], 256, 0, solver).log_interval)
    assert alarm_after(silence, clock, allowed_s - 5) == []
    assert len(alarm_after(silence, clock, 10)) == 1


def test_silence_is_reported_again_after_a_line():
    """Each long pause has its own alarm."""
    clock = Clock()
    silence = Silence(clock)
    listened([1] * 6, clock, silence)
    assert len(alarm_after(silence, clock, 400)) == 1
    listened([1], clock, silence)
    assert len(alarm_after(silence, clock, 3000)) == 0  # 401 seconds are its rhythm now
    assert len(alarm_after(silence, clock, 2000)) == 1


def test_silent_caffe_raises_the_alarm_while_it_hangs(own_run, monkeypatch):
    """The real Caffe, stopped by a signal: the driver waits for its log and reports it. Then the training continues."""
    monkeypatch.setattr(alarms, "SHORTEST_SILENCE_S", 0.5)
    monkeypatch.setattr(alarms, "FIRST_SILENCE_S", 0.5)
    monkeypatch.setattr(alarms, "SLOW_ITERATION_S", 0.5)
    monkeypatch.setattr(alarms, "SILENT", 0.1)
    started = programs.start
    reports = []

    def start_and_stop(*arguments, **options):
        process = started(*arguments, **options)
        process.send_signal(signal.SIGSTOP)
        return process

    def report(sentence):
        reports.append(sentence)
        if "ALARM: caffe.log has had no new line" in sentence:
            for number in caffes(own_run):
                os.kill(number, signal.SIGCONT)

    monkeypatch.setattr(programs, "start", start_and_stop)
    outcome = train.train(own_run, say=report)
    assert outcome.state == "finished", outcome
    assert any("no new line" in alarm for alarm in own_run.read().train.attempts[-1].alarms)

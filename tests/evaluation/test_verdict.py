"""The verdict: its word, its reasons, and how often it errs."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
from conftest import REPOSITORY

from bonecaffe.evaluation.metrics import measure
from bonecaffe.evaluation.verdict import Hands, Word, judge, paper_standard_errors, word_for

IMAGES = Hands(400, 200, 0, "train.csv")


@pytest.fixture(scope="module")
def simulation():
    sys.path.insert(0, str(REPOSITORY))
    try:
        yield importlib.import_module("scripts.simulate_statistics")
    finally:
        sys.path.remove(str(REPOSITORY))


def measured(simulation, test=18.9, train=6.4, cases=(400, 200), seed=1):
    """Figures of both splits whose expected MADs are these."""
    rng = np.random.default_rng(seed)
    return {
        split: measure(*simulation.hands(rng, n, mad), guess=127.0)
        for split, n, mad in (("train", cases[0], train), ("test", cases[1], test))
    }


# ---- rates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worse_by", "least", "most"),
    [
        (0, {Word.AGREES: 0.75}, {Word.WORSE: 0.07, Word.BETTER: 0.07}),
        (1, {Word.AGREES: 0.50, Word.WORSE: 0.10}, {Word.BETTER: 0.03}),
        (2, {Word.WORSE: 0.30}, {Word.AGREES: 0.33, Word.BETTER: 0.01}),
        (3, {Word.WORSE: 0.63}, {Word.AGREES: 0.12, Word.BETTER: 0.01}),
        (4.7, {Word.WORSE: 0.90}, {Word.AGREES: 0.05}),
        (-16, {Word.SUSPICIOUS: 1.0}, {}),
    ],
)
def test_rates_of_the_words(simulation, worse_by, least, most):
    """An equal method seldom is called worse or better; one at the margin agrees in 5 % at most.

    See docs/explanation/STATISTICS.md.
    """
    found = simulation.rates(worse_by, times=300, seed=7)
    for word, rate in least.items():
        assert found.get(word, 0) >= rate, found
    for word, rate in most.items():
        assert found.get(word, 0) <= rate, found


@pytest.mark.parametrize("figure", ["mad", "ccc"])
@pytest.mark.parametrize("cases", [20, 200])
def test_intervals_cover(simulation, figure, cases):
    """The bootstrap's percentiles, which 0.1 took, hold the true value in 90 to 92 % of 20 hands."""
    assert 0.93 <= simulation.coverage(figure, cases, "normal", times=1500, seed=3) <= 0.97


def test_paper_is_as_its_model_of_errors_has_it(simulation):
    """From the MAD alone follow CCC and largest error, and the standard errors that the verdict takes."""
    rng = np.random.default_rng(4)
    for split, cases in (("test", 200), ("train", 400)):
        paper = simulation.PAPER[split]
        drawn = [simulation.hands(rng, cases, paper["mad_months"]) for _ in range(1500)]
        mads, cccs, largest = (
            np.array([f(x, y) for x, y in drawn]) for f in (simulation.mad, simulation.ccc, simulation.max_error)
        )
        mad_se, z_se = paper_standard_errors(paper["mad_months"], paper["ccc"], cases)
        assert mads.std() == pytest.approx(mad_se, rel=0.06)
        assert np.arctanh(cccs).std() == pytest.approx(z_se, rel=0.06)
        assert cccs.mean() == pytest.approx(paper["ccc"], abs=0.005)
        assert abs(largest.mean() - paper["max_error_months"]) < largest.std()


def test_words_of_an_interval():
    """Agreement needs the 90 % interval within the margin; a difference, the 95 % interval without 0."""
    wide = (-9.0, 9.0)
    assert word_for("test", "mad", (-4.7, 4.7), wide) is Word.AGREES
    assert word_for("test", "mad", (-4.8, 4.7), wide) is Word.UNCLEAR
    assert word_for("test", "mad", (0.3, 4.8), (0.1, 5.1)) is Word.WORSE
    assert word_for("test", "mad", (-8.0, -0.3), (-9.0, -0.1)) is Word.BETTER
    assert word_for("test", "ccc", (0.02, 0.19), (0.01, 0.2)) is Word.BETTER
    assert word_for("test", "ccc", (-0.19, -0.02), (-0.2, -0.01)) is Word.WORSE
    assert word_for("train", "ccc", (-0.015, 0.015), (-0.017, 0.017)) is Word.AGREES


# ---- words -----------------------------------------------------------------------------------------------------------


def test_agreement_names_difference_margin_and_data(simulation):
    """Both splits, both figures, the interval, the margin; images are not called RSNA's."""
    verdict = judge(measured(simulation), IMAGES, 0)
    assert verdict.word is Word.AGREES
    assert verdict.sentence.startswith("Agrees with the paper: the test hands have MAD 18.")
    for part in ("(paper 18.9;", "margin 4.7", "(paper 0.78;", "600 images from train.csv"):
        assert part in verdict.sentence
    assert "bonecaffe cannot check that they are RSNA’s images" in verdict.sentence
    assert verdict.remarks[0].startswith("The training hands have MAD 6.") and "agrees" in verdict.remarks[0]
    assert [(d.split, d.figure, d.word) for d in verdict.differences] == [
        (split, figure, Word.AGREES) for split in ("test", "train") for figure in ("mad", "ccc")
    ]


def test_training_that_fits_differently_is_named(simulation):
    """The test hands agree, the training hands do not."""
    verdict = judge(measured(simulation, train=12.0), IMAGES, 0)
    assert verdict.word is Word.AGREES
    assert "worse" in verdict.remarks[0] and "The training hands have MAD 1" in verdict.remarks[0]


def test_a_mad_of_2_is_suspicious(simulation):
    """0.1 called it reached."""
    verdict = judge(measured(simulation, test=2.4, train=2.0), IMAGES, 0)
    assert verdict.word is Word.SUSPICIOUS
    assert "Look for test hands among the training hands" in str(verdict)


@pytest.mark.parametrize("departures", [0, 7])
def test_test_hands_as_good_as_training_hands_are_suspicious(simulation, departures):
    """Twelve test hands that are training hands under other ids: found without any figure of the paper."""
    figures = measured(simulation, test=9.0, train=9.0, cases=(60, 12))
    verdict = judge(figures, Hands(60, 12, 0, "own.csv"), departures)
    assert verdict.word is Word.SUSPICIOUS
    assert "as well as the training hands" in verdict.remarks[0] and "in both splits" in verdict.remarks[0]
    assert any("Only 12 test hands" in remark for remark in verdict.remarks)
    phantoms = judge(figures, Hands(60, 12, 72, "own.csv"), departures)
    assert phantoms.word is Word.NOT_COMPARABLE and "phantoms" in phantoms.sentence


def test_a_usual_gap_is_not_suspicious(simulation):
    """Many hands, or a net that underfits."""
    many = judge(measured(simulation, test=6.5, train=4.5, cases=(12000, 1400)), Hands(12000, 1400, 0, "a.csv"), 3)
    assert many.word is Word.NOT_COMPARABLE
    assert judge(measured(simulation, test=19.5, train=18.5), IMAGES, 0).word is Word.AGREES


def test_departures_and_phantoms_are_not_comparable(simulation):
    """Both reasons are named; a recipe's name is not taken for the data."""
    figures = measured(simulation)
    departed = judge(figures, IMAGES, 3)
    assert departed.word is Word.NOT_COMPARABLE
    assert departed.sentence.startswith("Not comparable with the paper: the run departs from it in 3 fields. MAD")
    assert "phantom" not in str(departed)
    phantoms = judge(figures, Hands(400, 200, 600, "ages.csv"), 0)
    assert "the hands are phantoms. MAD" in phantoms.sentence and "600 phantoms from ages.csv" in phantoms.sentence
    mixed = judge(figures, Hands(400, 200, 12, "ages.csv"), 1)
    assert "some are phantoms and the run departs from it in 1 field." in mixed.sentence
    assert "600 images and phantoms from ages.csv (400 for training, 200 for test, 12 of them phantoms)" in str(mixed)


def test_learned_nothing_memorized_or_too_few_to_tell():
    """Both splits are compared with one answer for every hand."""
    rng = np.random.default_rng(2)
    ages = {"train": rng.uniform(20, 220, 60), "test": rng.uniform(20, 220, 20)}
    guess = float(ages["train"].mean())
    constant = {split: np.full(x.size, guess) + rng.normal(0, 2, x.size) for split, x in ages.items()}
    by_heart = {"train": ages["train"] + rng.normal(0, 4, 60), "test": rng.permutation(ages["test"])}
    little = {"train": by_heart["train"], "test": guess + 0.15 * (ages["test"] - guess) + rng.normal(0, 30, 20)}

    def word(predicted):
        figures = {split: measure(ages[split], predicted[split], guess) for split in ages}
        return judge(figures, Hands(60, 20, 0, "own.csv"), 5)

    assert word(constant).word is Word.LEARNED_NOTHING
    assert "memorized its training hands" in word(by_heart).sentence and word(by_heart).word is Word.MEMORIZED
    assert word(little).word in (Word.UNCLEAR, Word.MEMORIZED)
    near = {"train": by_heart["train"], "test": guess + 0.4 * (ages["test"] - guess) + rng.normal(0, 40, 20)}
    assert word(near).word is not Word.LEARNED_NOTHING


def test_one_answer_for_every_hand_is_learned_nothing():
    """Also where it is nearer to most hands than the mean training age, with some noise, or for older test hands."""
    rng = np.random.default_rng(3)
    ages = np.where(rng.random(200) < 0.75, 150.0, 40.0) + rng.normal(0, 10, 200)
    for noise in (0.0, 0.01, 1.0):
        answers = 150 + rng.normal(0, noise, 200)
        figures = {split: measure(ages, answers, float(ages.mean())) for split in ("train", "test")}
        assert judge(figures, IMAGES, 0).word is Word.LEARNED_NOTHING, noise
    older = {"train": measure(ages, np.full(200, 140.0), 122.0), "test": measure(ages + 30, np.full(200, 140.0), 122.0)}
    assert judge(older, IMAGES, 0).word is Word.LEARNED_NOTHING


@pytest.mark.parametrize("cases", [3, 5, 8, 12])
def test_few_test_hands_do_not_make_a_good_method_memorized(simulation, cases):
    """The paper's own method, tested on a few hands: seldom called so."""
    rng = np.random.default_rng(5)
    train = measure(*simulation.hands(rng, 400, 6.4), 127.0)
    words = [
        judge({"train": train, "test": measure(*simulation.hands(rng, cases, 18.9), 127.0)}, IMAGES, 3).word
        for _ in range(300)
    ]
    assert words.count(Word.MEMORIZED) <= 3


def test_leakage_is_hinted_at_beside_departures(simulation):
    """A test MAD of 2.5 with a departure, or with a phantom among images: a remark, whatever the word."""
    figures = measured(simulation, test=2.5, train=1.0)
    for hands in (IMAGES, Hands(400, 200, 1, "a.csv")):
        verdict = judge(figures, hands, 1)
        assert verdict.word is Word.NOT_COMPARABLE and "Look for test hands among" in verdict.remarks[0]
    assert "Look for" not in str(judge(figures, Hands(400, 200, 600, "a.csv"), 1))


def test_three_hands_predicted_well_are_not_learned_nothing():
    """Chance cannot be excluded, but neither can learning."""
    figures = {split: measure([60, 120, 200], [61, 118, 203], 120.0) for split in ("train", "test")}
    assert judge(figures, Hands(3, 3, 0, "own.csv"), 0).word is Word.UNCLEAR


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("train", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("test", [0, 1, 2, 3, 4])
def test_odd_figures_get_a_word(train, test):
    """Perfect, constant, reversed: a verdict, whose differences are numbers of JSON."""
    ages = np.linspace(20, 200, 30)
    odd = [(ages, ages), (ages, np.full(30, 100.0)), (ages, ages[::-1]), (np.full(30, 90.0), ages), (ages, ages + 1)]
    verdict = judge(
        {"train": measure(*odd[train], 110.0), "test": measure(*odd[test], 110.0)}, Hands(30, 30, 0, "own.csv"), 0
    )
    assert json.dumps([asdict(each) for each in verdict.differences], allow_nan=False) and str(verdict).endswith(".")


def test_two_hands_are_too_few():
    """No interval, no word about them."""
    figures = {split: measure([100, 120], [104, 119], 110.0) for split in ("train", "test")}
    verdict = judge(figures, Hands(2, 2, 0, "own.csv"), 0)
    assert verdict.word is Word.UNCLEAR
    assert all(each.interval_95 is None for each in verdict.differences)
    assert "Only 2 test hands" in str(verdict)

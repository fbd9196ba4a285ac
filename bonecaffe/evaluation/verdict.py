"""A run's figures compared with the paper's: how much they differ, and one word for what that means.

The rules, their sources and their error rates are in docs/explanation/STATISTICS.md. The functions are pure: figures
in, words out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from bonecaffe.evaluation.metrics import PAPER, PAPER_CASES, Interval, Metrics
from bonecaffe.evaluation.words import between, between_signed, number, signed

MARGIN = {
    ("test", "mad"): PAPER["test"]["mad_months"] / 4,
    ("test", "ccc"): 0.12,
    ("train", "mad"): PAPER["train"]["mad_months"] / 4,
    ("train", "ccc"): 0.02,
}
"""The largest difference that counts as agreement, in months and in units of the CCC: a quarter of the paper's MAD, and
for the CCC at most what corresponds to it."""

FEW = 50
"""A split with fewer hands gets a remark: its figures are weak evidence."""

FAR_BETTER = 0.5
"""A test MAD whose interval ends below this share of the paper's is suspicious."""

NOTHING = 0.1
"""A gain below this share of the guess's MAD counts as none, and so does a CCC below this."""


class Word(StrEnum):
    """The result of a comparison with the paper."""

    AGREES = "agrees"
    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "unclear"
    SUSPICIOUS = "suspicious"
    NOT_COMPARABLE = "not comparable"
    LEARNED_NOTHING = "learned nothing"
    MEMORIZED = "memorized"


@dataclass(frozen=True)
class Difference:
    """A figure minus the paper's, with the interval of the difference; months for the MAD."""

    split: str
    figure: Literal["mad", "ccc"]
    here: float
    paper: float
    difference: float
    interval_95: Interval | None
    """Includes both sampling errors, of these hands and of the paper's."""
    margin: float
    word: Word


@dataclass(frozen=True)
class Hands:
    """What a run was trained and tested on: how many hands, how many of them phantoms, from which table."""

    train: int
    test: int
    phantoms: int
    table: str

    @property
    def are_phantoms(self) -> bool:
        """Whether any hand is a phantom. Then the run is not comparable with the paper."""
        return self.phantoms > 0

    @property
    def are_all_phantoms(self) -> bool:
        """Whether every hand is a phantom. Phantoms are easy, so good figures are not suspicious."""
        return self.phantoms >= self.train + self.test

    def __str__(self) -> str:
        total = self.train + self.test
        mixed = self.are_phantoms and not self.are_all_phantoms
        kind = "images and phantoms" if mixed else "phantoms" if self.are_phantoms else "images"
        among = f", {self.phantoms} of them phantoms" if mixed else ""
        return f"{total} {kind} from {self.table} ({self.train} for training, {self.test} for test{among})"


@dataclass(frozen=True)
class Verdict:
    """A word, a sentence with the reasons, remarks, and the differences that the word is based on."""

    word: Word
    sentence: str
    remarks: tuple[str, ...]
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        return " ".join((self.sentence, *self.remarks))


# ---- the differences ---------------------------------------------------------------------------------------------


def paper_standard_errors(mad: float, ccc: float, cases: int) -> tuple[float, float]:
    """The standard errors of the paper's MAD, in months, and of Fisher's z of its CCC, from the figures alone.

    Assumes normal ages, normal errors, and predictions that are as far from the mean as their correlation with the
    age allows (regression to the mean). Then SD(|error|) = MAD·sqrt(π/2 − 1), r² = CCC / (2 − CCC), and Lin's variance
    of z becomes 2·CCC / ((1 + CCC)(n − 2)).

    >>> mad_se, z_se = paper_standard_errors(18.9, 0.78, 200)
    >>> round(mad_se, 2), round(z_se * (1 - 0.78**2), 3)
    (1.01, 0.026)
    """
    return mad * math.sqrt((math.pi / 2 - 1) / cases), math.sqrt(2 * ccc / ((1 + ccc) * (cases - 2)))


def differences(measured: Mapping[str, Metrics], paper: Mapping[str, Mapping[str, float]] = PAPER) -> list[Difference]:
    """MAD and CCC of both splits minus the paper's, test first."""
    return [
        each
        for split in ("test", "train")
        for each in (_of_mad(split, measured[split], paper[split]), _of_ccc(split, measured[split], paper[split]))
    ]


def _of_mad(split: str, here: Metrics, paper: Mapping[str, float]) -> Difference:
    theirs = paper["mad_months"]
    difference, margin = here.mad_months - theirs, MARGIN[split, "mad"]
    if here.mad_se_months is None:
        return Difference(split, "mad", here.mad_months, theirs, difference, None, margin, Word.UNCLEAR)
    paper_se, _ = paper_standard_errors(theirs, paper["ccc"], PAPER_CASES[split])
    error, freedom = _summed(here.mad_se_months, here.cases, paper_se, PAPER_CASES[split])
    ninety, ninety_five = (_around(difference, error, freedom, level) for level in (0.90, 0.95))
    word = word_for(split, "mad", ninety, ninety_five)
    return Difference(split, "mad", here.mad_months, theirs, difference, ninety_five, margin, word)


def _of_ccc(split: str, here: Metrics, paper: Mapping[str, float]) -> Difference:
    theirs = paper["ccc"]
    difference, margin = here.ccc - theirs, MARGIN[split, "ccc"]
    if here.ccc_z_se is None:
        return Difference(split, "ccc", here.ccc, theirs, difference, None, margin, Word.UNCLEAR)
    _, paper_se = paper_standard_errors(paper["mad_months"], theirs, PAPER_CASES[split])
    error, freedom = _summed(here.ccc_z_se, here.cases, paper_se, PAPER_CASES[split])
    z = math.atanh(theirs)
    ninety, ninety_five = (_around(math.atanh(here.ccc) - z, error, freedom, level) for level in (0.90, 0.95))
    ninety, ninety_five = (
        (math.tanh(z + low) - theirs, math.tanh(z + high) - theirs) for low, high in (ninety, ninety_five)
    )
    word = word_for(split, "ccc", ninety, ninety_five)
    return Difference(split, "ccc", here.ccc, theirs, difference, ninety_five, margin, word)


def _summed(mine: float, my_cases: int, theirs: float, their_cases: int) -> tuple[float, float]:
    """The standard error of a difference, and Welch's degrees of freedom."""
    square = mine**2 + theirs**2
    if square == 0:  # errors that are all the same
        return 0.0, 1.0
    return math.sqrt(square), square**2 / (mine**4 / (my_cases - 1) + theirs**4 / (their_cases - 1))


def _around(centre: float, error: float, freedom: float, level: float) -> Interval:
    from scipy import stats

    half = float(stats.t.ppf(0.5 + level / 2, freedom)) * error
    return centre - half, centre + half


def word_for(split: str, figure: Literal["mad", "ccc"], ninety: Interval, ninety_five: Interval) -> Word:
    """The word for a difference from the paper's figure, given its 90 % and its 95 % interval.

    Equivalence is tested first: two one-sided tests at 5 %, that is, the 90 % interval is within the margin. Then
    difference: the 95 % interval excludes 0.

    >>> for differences in ((-2.0, 2.5), (0.5, 9.0), (-5.0, 2.0)):
    ...     print(word_for("test", "mad", differences, differences))
    agrees
    worse
    unclear
    """
    margin = MARGIN[split, figure]
    if -margin <= ninety[0] and ninety[1] <= margin:
        return Word.AGREES
    if ninety_five[0] <= 0 <= ninety_five[1]:
        return Word.UNCLEAR
    return Word.WORSE if (ninety_five[0] > 0) == (figure == "mad") else Word.BETTER


def _of_both(words: set[Word]) -> Word:
    """The word for MAD and CCC together: agreement needs both."""
    for word in (Word.WORSE, Word.BETTER, Word.UNCLEAR):
        if word in words:
            return word
    return Word.AGREES


# ---- the verdict -------------------------------------------------------------------------------------------------


def judge(
    measured: Mapping[str, Metrics],
    hands: Hands,
    departures: int,
    paper: Mapping[str, Mapping[str, float]] = PAPER,
) -> Verdict:
    """The verdict on a run, from its figures by split, its hands, and the number of its departures from the paper."""
    test, train = measured["test"], measured["train"]
    found = tuple(differences(measured, paper))
    remarks = _few_cases(measured)
    if (word := _not_learned(train, test)) is not None:
        return Verdict(word, f"{_NOT_LEARNED[word]}: {_figures_of_both(train, test)}; {hands}.", tuple(remarks), found)
    too_good = _as_good_as_training(train, test) and not hands.are_all_phantoms
    far = _far_better(test, paper) and not hands.are_all_phantoms
    figures = f"MAD {test.mad_months:.1f} months, CCC {number(test.ccc, 2)} on the test hands, {_guess(test)}"
    if too_good:
        remarks = [
            f"The test hands are predicted as well as the training hands (MAD {train.mad_months:.1f}). Look for the "
            "same child, or the same image, in both splits.",
            *remarks,
        ]
    if far:
        remarks = [
            "A test MAD below half of the paper’s is better than its method can be expected to reach with 400 "
            "training hands. Look for test hands among the training hands.",
            *remarks,
        ]
    if departures or hands.are_phantoms:
        found = tuple(replace(each, word=Word.NOT_COMPARABLE) for each in found)
        return Verdict(
            Word.SUSPICIOUS if too_good else Word.NOT_COMPARABLE,
            f"{'Suspicious, and not' if too_good else 'Not'} comparable with the paper: {_why_not(hands, departures)}. "
            f"{figures}. Measured on {hands}.",
            tuple(remarks),
            found,
        )
    if far or too_good:
        theirs = f"paper {paper['test']['mad_months']:g} and {paper['test']['ccc']:g}"
        return Verdict(
            Word.SUSPICIOUS, f"Suspicious: {figures} ({theirs}). Measured on {hands}.", tuple(remarks), found
        )
    word = _of_both({each.word for each in found if each.split == "test"})
    remarks = [_in_words("The training hands", [each for each in found if each.split == "train"]) + ".", *remarks]
    of_test = _in_words("the test hands", [each for each in found if each.split == "test"])
    return Verdict(
        word,
        f"{_OPENING[word]}: {of_test}; {_guess(test)}. Measured on {hands}. "
        "bonecaffe cannot check that they are RSNA’s images.",
        tuple(remarks),
        found,
    )


_OPENING = {
    Word.AGREES: "Agrees with the paper",
    Word.BETTER: "Better than the paper",
    Word.WORSE: "Worse than the paper",
    Word.UNCLEAR: "Whether it agrees with the paper is unclear",
}


def _in_words(subject: str, found: list[Difference]) -> str:
    """The differences of a split in words."""
    parts = []
    for each in found:
        digits, unit, name = (1, " months", "MAD") if each.figure == "mad" else (2, "", "CCC")
        around = (
            f", 95 % interval of the difference {between_signed(each.interval_95, digits)}, "
            f"margin {number(each.margin, digits)}"
            if each.interval_95
            else ""
        )
        parts.append(
            f"{name} {number(each.here, digits)}{unit} (paper {each.paper:g}; "
            f"{signed(each.difference, digits)}{around}): {each.word}"
        )
    return f"{subject} have {'; '.join(parts)}"


def _guess(test: Metrics) -> str:
    return f"where guessing the mean age for every hand gives {test.guess_mad_months:.1f}"


def _why_not(hands: Hands, departures: int) -> str:
    reasons = []
    if hands.are_phantoms:
        reasons.append("the hands are phantoms" if hands.are_all_phantoms else "some are phantoms")
    if departures:
        reasons.append(f"the run departs from it in {departures} field{'s' * (departures > 1)}")
    return " and ".join(reasons)


def _few_cases(measured: Mapping[str, Metrics]) -> list[str]:
    """A remark for each split that has too few hands for reliable figures."""
    remarks = []
    test, train = measured["test"], measured["train"]
    if test.cases < FEW:
        around = f" (95 % interval {between(test.mad_interval_95)})" if test.mad_interval_95 else ""
        remarks.append(
            f"Only {test.cases} test hands: their MAD of {test.mad_months:.1f} is weak evidence about "
            f"other hands{around}."
        )
    if train.cases < FEW:
        remarks.append(f"Only {train.cases} training hands: with so few, a net memorizes them.")
    return remarks


# ---- problems that need no comparison ----------------------------------------------------------------------------


def _learned(metrics: Metrics) -> bool:
    """Whether the predictions are better than one answer for every hand and follow the ages, both beyond chance."""
    return metrics.gain_interval_95 is not None and metrics.gain_interval_95[0] > 0 and _in_order(metrics)


def _in_order(metrics: Metrics) -> bool:
    """Whether predictions follow the ages: a CCC above 0 beyond chance; above 0.5 when it has no interval."""
    return metrics.ccc_interval_95[0] > 0 if metrics.ccc_interval_95 else metrics.ccc > 0.5


def _not_learned(train: Metrics, test: Metrics) -> Word | None:
    """The word for a net that learned nothing, memorized its training hands or is unclear; None if it learned."""
    if train.gain_interval_95 is None or test.gain_interval_95 is None:
        return Word.UNCLEAR
    if _learned(train):
        if _learned(test):
            return None
        hopeless = test.gain_interval_95[1] < NOTHING * test.guess_mad_months and not _in_order(test)
        return Word.MEMORIZED if hopeless else Word.UNCLEAR
    promising = any(m.mad_months < (1 - NOTHING) * m.guess_mad_months and m.ccc > NOTHING for m in (train, test))
    return Word.UNCLEAR if promising else Word.LEARNED_NOTHING


def _figures_of_both(train: Metrics, test: Metrics) -> str:
    return (
        f"MAD {train.mad_months:.1f} months on the training hands and {test.mad_months:.1f} on the test hands; "
        f"guessing the mean age for every hand gives {train.guess_mad_months:.1f} and {test.guess_mad_months:.1f}"
    )


_NOT_LEARNED = {
    Word.LEARNED_NOTHING: "The network has learned nothing measurable",
    Word.MEMORIZED: "The network has memorized its training hands and learned nothing that applies to others",
    Word.UNCLEAR: "It is unclear what the network has learned, because the hands are too few or the gain is too small",
}


def _as_good_as_training(train: Metrics, test: Metrics) -> bool:
    """Whether a net that fits its training hands well has almost no gap to its test hands."""
    if train.mad_se_months is None or test.mad_se_months is None:
        return False
    if train.mad_months > train.guess_mad_months / 2:
        return False
    error, freedom = _summed(test.mad_se_months, test.cases, train.mad_se_months, train.cases)
    gap = _around(test.mad_months - train.mad_months, error, freedom, 0.95)
    return gap[0] <= 0 and gap[1] < (train.guess_mad_months - train.mad_months) / 4


def _far_better(test: Metrics, paper: Mapping[str, Mapping[str, float]]) -> bool:
    highest = test.mad_interval_95[1] if test.mad_interval_95 else test.mad_months
    return highest < FAR_BETTER * paper["test"]["mad_months"]

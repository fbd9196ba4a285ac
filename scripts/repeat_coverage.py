#!/usr/bin/env python3
"""Measure how often the intervals of `bonecaffe repeat` are right: a seeded simulation, about 100 s on one core.

    .venv/bin/python scripts/repeat_coverage.py [REPETITIONS]

A study has 600 marked hands. Each seed tests 200 of them, so two seeds share a third of their test hands. A prediction
is pulled towards the mean age. It has an error that stays with the hand (share RHO of the variance), one that is new
with each seed, and two that a training gives all its hands: a shift, and a factor on the errors (standard deviation
TAU, in units of the MAD's sampling error). The questions: does the interval hold the figure of one more seed on the
same 600 hands, and the figure of the same study, with one seed, on 600 other hands?
"""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bonecaffe.evaluation.metrics import ccc, mad
from bonecaffe.evaluation.verdict import Word, word_for
from bonecaffe.studies import spread
from bonecaffe.studies.spread import Figure, Measured

POOL, TESTED, SEED = 600, 200, 2018
SETTINGS = [(seeds, tau, rho) for seeds in (3, 5, 10) for tau in (0.0, 1.0) for rho in (0.5, 0.9)]
FIGURES: tuple[Figure, ...] = ("mad", "ccc")
WORDS = (Word.AGREES, Word.BETTER, Word.WORSE, Word.UNCLEAR)
Array = NDArray[np.float64]


class Pool:
    """Hands that a study has: ages in months, and the part of each hand's error that every training makes."""

    def __init__(self, dice: np.random.Generator, rho: float) -> None:
        self.dice, self.rho = dice, rho
        self.ages = np.clip(dice.normal(127, 41, POOL), 10, 228)
        self.errors = math.sqrt(rho) * dice.standard_t(8, POOL) / math.sqrt(8 / 6)

    def seed(self, tau: float, factor: float = 1.0) -> tuple[NDArray[np.int64], Array, Array]:
        """Which hands one seed tests, their ages, and what it predicts; ``factor`` makes all its errors larger."""
        drawn = self.dice.permutation(POOL)[:TESTED]
        own = math.sqrt(1 - self.rho) * self.dice.standard_t(8, TESTED) / math.sqrt(8 / 6)
        scale = math.exp(tau * 0.053 * self.dice.standard_normal())  # 0.053: the sampling SD of log MAD at n = 200
        age = self.ages[drawn]
        shift = tau * self.dice.standard_normal()
        error = 0.2 * (127 - age) + shift + 22.6 * scale * (self.errors[drawn] + own)  # a MAD of 18.9, as the paper's
        return drawn, age, age + factor * error


def interval_of_0_1(values: list[float]) -> tuple[float, float]:
    """What version 0.1 gave for "another run": mean ± t s √(1 + 1/S) of the figures themselves."""
    n = len(values)
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / n)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def study(dice: np.random.Generator, seeds: int, tau: float, rho: float) -> list[bool]:
    """One study of several seeds: for each figure, whether each of the intervals held."""
    pool = Pool(dice, rho)
    tests = [pool.seed(tau) for _ in range(seeds)]
    _, ages_again, months_again = pool.seed(tau)
    _, ages_other, months_other = Pool(dice, rho).seed(tau)
    held = []
    for figure in FIGURES:
        of = mad if figure == "mad" else ccc
        found: list[Measured] = []
        for drawn, ages, months in tests:
            measured = spread.measured(figure, [str(hand) for hand in drawn], ages, months)
            assert measured is not None
            found.append(measured)
        again, other = of(ages_again, months_again), of(ages_other, months_other)
        of_seed = spread.next_seed(figure, [each.value for each in found])
        of_hands = spread.other_hands(found)
        assert of_seed is not None and of_hands is not None
        before = interval_of_0_1([of(ages, months) for _, ages, months in tests])
        held += [
            before[0] <= other <= before[1],
            of_hands[0] <= other <= of_hands[1],
            of_seed[0] <= again <= of_seed[1],
        ]
    return held


def words(dice: np.random.Generator, seeds: int, factor: float) -> list[str]:
    """What is found of a method whose errors are ``factor`` times the paper's: the word for MAD and for CCC."""
    pool = Pool(dice, 0.7)
    tests = [pool.seed(0.5, factor) for _ in range(seeds)]
    _, ages_of_paper, months_of_paper = Pool(dice, 0.7).seed(0.5)
    found = []
    for figure in FIGURES:
        measured = [spread.measured(figure, [str(n) for n in drawn], *data) for drawn, *data in tests]
        whole = [each for each in measured if each is not None]
        paper = (mad if figure == "mad" else ccc)(ages_of_paper, months_of_paper)
        ninety_five, ninety = spread.other_hands(whole), spread.other_hands(whole, level=0.9)
        assert ninety_five and ninety
        less = [(low - paper, high - paper) for low, high in (ninety, ninety_five)]
        found.append(str(word_for("test", figure, *less)))
    return found


def one_test(dice: np.random.Generator, hands: int, draws: int) -> list[float]:
    """Coverage of the interval over hands of one test, for each figure; the truth is that of 400,000 hands."""

    def sample(n: int) -> tuple[Array, Array]:
        ages = np.clip(dice.normal(127, 41, n), 10, 228)
        return ages, 0.8 * ages + 0.2 * 127 + 22.6 * dice.standard_t(8, n) / math.sqrt(8 / 6)

    truth = sample(400_000)
    names = [str(n) for n in range(hands)]
    held = {figure: 0 for figure in FIGURES}
    for _ in range(draws):
        drawn = sample(hands)
        for figure in FIGURES:
            measured = spread.measured(figure, names, *drawn)
            within = measured.interval_95 if measured else None
            true = mad(*truth) if figure == "mad" else ccc(*truth)
            held[figure] += within is not None and within[0] <= true <= within[1]
    return [held[figure] / draws for figure in FIGURES]


def main() -> None:
    """Print the shares as tables of Markdown."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(
        f"{repetitions} studies a row, seed {SEED}; standard error {100 * math.sqrt(0.05 * 0.95 / repetitions):.1f} %\n"
    )
    print("| seeds | TAU | RHO | 0.1 on other hands: MAD, CCC | other hands: MAD, CCC | another seed: MAD, CCC |")
    print("|---|---|---|---|---|---|")
    dice = np.random.default_rng(SEED)
    for seeds, tau, rho in SETTINGS:
        old_mad, new_mad, same_mad, old_ccc, new_ccc, same_ccc = np.mean(
            [study(dice, seeds, tau, rho) for _ in range(repetitions)], axis=0
        )
        pairs = [
            f"{100 * a:.1f}, {100 * b:.1f}" for a, b in ((old_mad, old_ccc), (new_mad, new_ccc), (same_mad, same_ccc))
        ]
        print(f"| {seeds} | {tau:g} | {rho:g} | {' | '.join(pairs)} |", flush=True)
    print("\n| hands in one test | interval over hands: MAD, CCC |\n|---|---|")
    for hands in (20, 50, 200, 600):
        print(f"| {hands} | {', '.join(f'{100 * share:.1f}' for share in one_test(dice, hands, repetitions))} |")
    print(f"\n| MAD here (paper 18.9) | seeds | of the MAD: {', '.join(WORDS)} | of the CCC |")
    print("|---|---|---|---|")
    for months in (18.9, 21.9, 24.9, 12.9):
        for seeds in (5, 10):
            found = [words(dice, seeds, months / 18.9) for _ in range(repetitions // 4)]
            shares = [
                ", ".join(f"{100 * sum(pair[of] == word for pair in found) / len(found):.0f}" for word in WORDS)
                for of in range(len(FIGURES))
            ]
            print(f"| {months} | {seeds} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()

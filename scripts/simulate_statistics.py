"""Simulate how often the report's intervals and its verdict are right.

The figures are those in docs/explanation/STATISTICS.md and docs/explanation/REVIEWERS.md.

    .venv/bin/python scripts/simulate_statistics.py            the tables, in two minutes on one core
    .venv/bin/python scripts/simulate_statistics.py --times 200   sooner, and coarser
    .venv/bin/python scripts/simulate_statistics.py --sex         only boys against girls

The ages have the spread of RSNA's. The predictions regress to the mean, by an amount that follows from their error. The
errors are normal, or have heavier tails (Student's t with four degrees of freedom). With the paper's MAD, the model
also gives the paper's CCC and largest error.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bonecaffe.evaluation.groups import BySex, by_sex, groups
from bonecaffe.evaluation.metrics import PAPER, PAPER_CASES, ccc, interval, mad, max_error, measure
from bonecaffe.evaluation.verdict import Hands, Word, judge

MEAN_AGE, SD_AGE = 127.0, 39.5
"""Months: of RSNA's training table the mean; the spread with which a MAD of 18.9 goes with a CCC of 0.78."""
SEED = 2018
Hand = tuple[NDArray[np.float64], NDArray[np.float64]]


def hands(rng: np.random.Generator, cases: int, mad_months: float, tails: str = "normal") -> Hand:
    """Ages and predictions whose expected MAD is ``mad_months``; ``tails`` of the errors: normal, or heavy."""
    share = 1 - min(mad_months * math.sqrt(math.pi / 2) / SD_AGE, 1) ** 2  # r², of the error's variance the rest
    ages = rng.normal(0, SD_AGE, cases)
    error = rng.standard_normal(cases) if tails == "normal" else rng.standard_t(4, cases) / math.sqrt(2)
    return MEAN_AGE + ages, MEAN_AGE + share * ages + math.sqrt(share * (1 - share)) * SD_AGE * error


def study(rng: np.random.Generator, worse_by: float) -> Word:
    """The verdict on a method whose true MAD is ``worse_by`` months above that of another, which plays the paper."""
    paper, measured = {}, {}
    for split in ("train", "test"):
        true = PAPER[split]["mad_months"]
        x, y = hands(rng, PAPER_CASES[split], true)
        paper[split] = {"mad_months": mad(x, y), "ccc": ccc(x, y)}
        x, y = hands(rng, PAPER_CASES[split], true + worse_by if split == "test" else true)
        measured[split] = measure(x, y, MEAN_AGE)
    return judge(measured, Hands(400, 200, 0, "ages.csv"), 0, paper).word


def rates(worse_by: float, times: int, seed: int = SEED) -> dict[Word, float]:
    """How often each verdict is given, from 0 to 1."""
    rng = np.random.default_rng(seed)
    counted = Counter(study(rng, worse_by) for _ in range(times))
    return {word: count / times for word, count in counted.most_common()}


def coverage(figure: str, cases: int, tails: str, times: int, seed: int = SEED) -> float:
    """How often the 95 % interval of a figure holds its true value, from 0 to 1."""
    rng = np.random.default_rng(seed)
    x, y = hands(np.random.default_rng(0), 2_000_000, 18.9, tails)
    true = mad(x, y) if figure == "mad" else ccc(x, y)
    held = 0
    for _ in range(times):
        low, high = interval(*hands(rng, cases, 18.9, tails), figure) or (math.nan, math.nan)  # type: ignore[arg-type]
        held += low <= true <= high
    return held / times


def figures_of_the_paper(times: int) -> Iterator[str]:
    """The paper's figures as this model of errors has them, with their standard errors."""
    rng = np.random.default_rng(SEED)
    for split, cases in PAPER_CASES.items():
        found = np.array(
            [
                [f(x, y) for f in (mad, ccc, max_error)]
                for x, y in (hands(rng, cases, PAPER[split]["mad_months"]) for _ in range(times))
            ]
        )
        mean, sd = found.mean(0), found.std(0, ddof=1)
        yield (
            f"{split}: MAD {mean[0]:.1f} ± {sd[0]:.2f}, CCC {mean[1]:.3f} ± {sd[1]:.3f}, "
            f"largest error {mean[2]:.1f} ± {sd[2]:.1f} (paper {', '.join(map(str, PAPER[split].values()))})"
        )


def boys_and_girls(
    rng: np.random.Generator, boys: int, girls: int, more: float = 0.0, younger: float = 0.0, tails: str = "normal"
) -> BySex:
    """A test split of the paper's MAD in which boys are predicted ``more`` months higher, and are ``younger``."""
    boy = np.arange(boys + girls) < boys
    x, y = hands(rng, boy.size, 18.9, tails)
    slope = 1 - (18.9 * math.sqrt(math.pi / 2) / SD_AGE) ** 2
    return by_sex(x - younger * boy, y - slope * younger * boy + more * boy, [bool(value) for value in boy])


def found_by_sex(
    times: int, boys: int, girls: int, more: float = 0.0, younger: float = 0.0, tails: str = "normal"
) -> str:
    """How often a difference is found: in the bias, in the bias at the same age, in the MAD."""
    rng = np.random.default_rng(SEED)
    count = np.zeros(3)
    for _ in range(times):
        found = boys_and_girls(rng, boys, girls, more, younger, tails)
        count += [each is not None and each.excludes_zero() for each in (found.bias, found.bias_at_same_age, found.mad)]
    return "bias {:.1%}, at the same age {:.1%}, MAD {:.1%}".format(*(count / times))


def held_bias(cases: int, tails: str, times: int) -> float:
    """How often the 95 % interval of a group's bias holds the true one, from 0 to 1."""
    rng = np.random.default_rng(SEED)
    held = 0
    for _ in range(times):
        low, high = groups(*hands(rng, cases, 18.9, tails), [None] * cases)[-1].bias_interval_95 or (math.nan, math.nan)
        held += low <= 0 <= high
    return held / times


def tables_by_sex(times: int) -> Iterator[str]:
    """The figures of docs/explanation/REVIEWERS.md."""
    for cases in (10, 20, 100):
        held = ", ".join(f"{tails} tails {held_bias(cases, tails, times):.1%}" for tails in ("normal", "heavy"))
        yield f"Coverage of a group's bias, {cases} hands: {held}"
    for boys, girls in ((10, 10), (30, 90), (100, 100)):
        for tails in ("normal", "heavy"):
            yield f"{boys} boys, {girls} girls, no difference, {tails}: {found_by_sex(times, boys, girls, tails=tails)}"
    yield f"100 and 100, boys 30 months younger: {found_by_sex(times, 100, 100, 0, 30)}"
    for boys, girls, more in ((100, 100, 6), (100, 100, 12), (30, 30, 12)):
        yield f"{boys} and {girls}, boys {more} months more: {found_by_sex(times, boys, girls, more)}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=4000, help="number of simulated studies for each figure")
    parser.add_argument("--sex", action="store_true", help="only boys against girls, and the bias of groups")
    arguments = parser.parse_args()
    times = arguments.times
    if arguments.sex:
        for line in tables_by_sex(times):
            print(line, flush=True)
        return
    print("The paper's figures under this model, mean ± SD over studies:")
    print(*figures_of_the_paper(times), sep="\n")
    print("\nCoverage of the 95 % intervals:")
    for cases in (20, 50, 200, 400):
        for tails in ("normal", "heavy"):
            held = [f"{figure.upper()} {coverage(figure, cases, tails, times):.1%}" for figure in ("mad", "ccc")]
            print(f"{cases} hands, {tails} tails: {', '.join(held)}")
    print("\nThe verdict, by how much worse the method truly is:")
    for worse_by in (-16.0, -3.0, 0.0, 1.0, 2.0, 3.0, 4.7, 7.0):
        given = (f"{word} {rate:.1%}" for word, rate in rates(worse_by, times).items())
        print(f"{worse_by:+.1f} months:", *given, sep="  ")


if __name__ == "__main__":
    main()

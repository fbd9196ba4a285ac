"""The figures of a run held against the paper's, and the sentence that says what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from bonecaffe.evaluation.groups import BySex, Group
from bonecaffe.evaluation.metrics import PAPER, Metrics


@dataclass(frozen=True)
class Evaluation:
    """The figures of both splits, whole, by group and boys against girls, and the verdict against the paper."""

    iteration: int
    splits: dict[str, Metrics]
    groups: dict[str, list[Group]]
    sex: dict[str, BySex]
    verdict: str


def verdict(recipe_departs: bool, test: Metrics) -> str:
    """One sentence that holds the test split against the paper's 18.9 months and 0.78."""
    paper = PAPER["test"]
    interval = test.mad_interval_95
    between = f", 95 % interval {interval[0]:.1f} to {interval[1]:.1f}" if interval else ""
    against = (
        f"MAD {test.mad_months:.1f} months{between} (paper {paper['mad_months']}), "
        f"CCC {test.ccc:.2f} (paper {paper['ccc']})"
    )
    learned = test.mad_months < test.guess_mad_months
    guess = f"answering the mean age for every hand would give {test.guess_mad_months:.1f}"
    if not learned:
        return f"The network has learned nothing: {against}; {guess}."
    if recipe_departs:
        return f"Not a reproduction of the paper, because the recipe departs from it: {against}; {guess}."
    reached = test.mad_months <= paper["mad_months"] * 1.1 and test.ccc >= paper["ccc"] - 0.05
    found = "are reached, to within a tenth of its MAD and 0.05 of its CCC" if reached else "are not reached"
    return f"The paper’s figures {found}: {against}; {guess}."

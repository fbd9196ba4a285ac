"""How good a model is for some of the hands: by age and by sex.

Every function takes ages and predictions in months, one each a hand, as `bonecaffe.evaluation.metrics` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation.metrics import Months, ccc, mad, max_error
from bonecaffe.hands.cases import MONTHS_LIMIT

AGE_BANDS = ((0, 60), (60, 120), (120, 180), (180, MONTHS_LIMIT))
"""Months: under 5 years, 5 to 10, 10 to 15, 15 and over."""


@dataclass(frozen=True)
class Group:
    """Some hands of a split, and how wrong it was about them; the CCC is None where it is not defined."""

    name: str
    cases: int
    mad_months: float
    max_error_months: float
    bias_months: float
    ccc: float | None


def groups(truth: Months, predicted: Months, male: Sequence[bool | None]) -> list[Group]:
    """The figures by age band, lower end included, and by sex; groups without a case are left out."""
    x, y = np.asarray(truth, float), np.asarray(predicted, float)
    sex = np.array(["unknown" if value is None else ("male" if value else "female") for value in male])
    chosen = [(_band_name(low, high), (x >= low) & ((x < high) | (high == MONTHS_LIMIT))) for low, high in AGE_BANDS]
    chosen += [(name, sex == name) for name in ("female", "male", "unknown")]
    found = []
    for name, which in chosen:
        if not which.any():
            continue
        try:
            concordance = ccc(x[which], y[which])
        except EvaluateError:
            concordance = None
        bias = float((y[which] - x[which]).mean())
        found.append(
            Group(
                "sex unknown" if name == "unknown" else name,
                int(which.sum()),
                mad(x[which], y[which]),
                max_error(x[which], y[which]),
                bias,
                concordance,
            )
        )
    return found


def _band_name(low: int, high: int) -> str:
    if low == 0:
        return f"under {high // 12} years"
    return f"{low // 12} to {high // 12} years" if high < MONTHS_LIMIT else f"{low // 12} years and over"

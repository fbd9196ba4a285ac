"""How far predictions are from the truth: the paper's three figures, and what stands beside them (paper II.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bonecaffe.errors import EvaluateError

PAPER = {
    "train": {"mad_months": 6.4, "ccc": 0.98, "max_error_months": 24.4},
    "test": {"mad_months": 18.9, "ccc": 0.78, "max_error_months": 69.2},
}
"""The paper's results (II.3 and abstract), 400 training and 200 test images."""


def _pair(truth: Sequence[float], predicted: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(truth, float), np.asarray(predicted, float)
    if x.shape != y.shape or x.ndim != 1:
        raise EvaluateError(f"{x.shape} ages and {y.shape} predictions cannot be compared.")
    if x.size == 0:
        raise EvaluateError("no cases to compare.")
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise EvaluateError("an age or a prediction is nan or inf.")
    return x, y


def mad(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Mean absolute *difference* in months, the paper's MAD; not a median or a deviation from a centre.

    Raises EvaluateError for no cases, unequal numbers, or a value that is not finite.

    >>> mad([100, 120], [110, 116])
    7.0
    """
    x, y = _pair(truth, predicted)
    return float(np.abs(x - y).mean())


def max_error(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """The largest absolute difference in months (paper II.3: "the maximum error")."""
    x, y = _pair(truth, predicted)
    return float(np.abs(x - y).max())


def ccc(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Lin's concordance correlation coefficient, with variances over n (Lin, Biometrics 1989;45:255-268).

    2 s_xy / (s_x² + s_y² + (mean x - mean y)²). Predictions that are all alike give 0. Raises EvaluateError where it
    is not defined: fewer than two cases, or ages and predictions all one value.

    >>> round(ccc([1, 2, 3], [1, 2, 4]), 6)
    0.857143
    """
    x, y = _pair(truth, predicted)
    if x.size < 2:
        raise EvaluateError("the CCC of a single case is not defined.")
    spread = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    if spread == 0:
        raise EvaluateError("the CCC is not defined: all ages and predictions are the same.")
    return float(2 * ((x - x.mean()) * (y - y.mean())).mean() / spread)


@dataclass(frozen=True)
class Metrics:
    """The figures of one split; lengths of time in months."""

    cases: int
    mad_months: float
    ccc: float
    max_error_months: float
    rmse_months: float
    bias_months: float
    guess_mad_months: float
    """What answering the mean training age for every hand would give."""


def measure(truth: Sequence[float], predicted: Sequence[float], guess: float) -> Metrics:
    """All figures of a split; ``guess`` is the mean age of the training cases, in months."""
    x, y = _pair(truth, predicted)
    return Metrics(
        cases=int(x.size),
        mad_months=mad(x, y),
        ccc=ccc(x, y),
        max_error_months=max_error(x, y),
        rmse_months=float(np.sqrt(((x - y) ** 2).mean())),
        bias_months=float((y - x).mean()),
        guess_mad_months=float(np.abs(x - guess).mean()),
    )

"""How far predictions are from the true ages: the paper's three figures (paper II.3), and others.

Every function takes ages and predictions in months, one for each hand, and raises EvaluateError for what cannot be
compared; a figure that is not defined for the data is None in `Metrics`, with the reason in its notes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonecaffe.errors import EvaluateError

Months = ArrayLike
"""Ages or predictions in months, one for each hand: a sequence, a column of a table, an array."""
PAPER = {
    "train": {"mad_months": 6.4, "ccc": 0.98, "max_error_months": 24.4},
    "test": {"mad_months": 18.9, "ccc": 0.78, "max_error_months": 69.2},
}
"""The paper's results (II.3 and abstract)."""
PAPER_CASES = {"train": 400, "test": 200}
"""The numbers of images that they were measured on (II.1)."""


def _pair(truth: Months, predicted: Months) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(truth, float), np.asarray(predicted, float)
    if x.shape != y.shape or x.ndim != 1:
        raise EvaluateError(f"{x.shape} ages and {y.shape} predictions cannot be compared.")
    if x.size == 0:
        raise EvaluateError("no cases to compare.")
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise EvaluateError("an age or a prediction is nan or inf.")
    return x, y


def mad(truth: Months, predicted: Months) -> float:
    """Mean absolute *difference* in months, the paper's MAD; not a median or a deviation from a centre.

    Raises EvaluateError for no cases, unequal numbers, or a value that is not finite.

    >>> mad([100, 120], [110, 116])
    7.0
    """
    x, y = _pair(truth, predicted)
    return float(np.abs(x - y).mean())


def max_error(truth: Months, predicted: Months) -> float:
    """The largest absolute difference in months (paper II.3: "the maximum error")."""
    x, y = _pair(truth, predicted)
    return float(np.abs(x - y).max())


def ccc(truth: Months, predicted: Months, ddof: int = 0) -> float:
    """Lin's concordance correlation coefficient: 2 s_xy / (s_x² + s_y² + (mean x - mean y)²).

    ``ddof`` 0 takes variances and covariance over n, as Lin does (Biometrics 1989;45:255-268); 1 over n - 1, as some
    programs do. The paper names the coefficient, but neither its formula nor a source. Identical predictions
    give 0. Raises EvaluateError where it is not defined: fewer than two cases, or ages and predictions all one value.

    >>> round(ccc([1, 2, 3], [1, 2, 4]), 6)
    0.857143
    """
    x, y = _pair(truth, predicted)
    if x.size < 2:
        raise EvaluateError("the CCC of a single case is not defined.")
    if np.ptp(x) == 0 and np.ptp(y) == 0 and x[0] == y[0]:
        raise EvaluateError("the CCC is not defined: all ages and predictions are the same.")
    return float(_ccc(x, y, ddof))


def _ccc(x: NDArray[np.float64], y: NDArray[np.float64], ddof: int = 0, axis: int = -1) -> NDArray[np.float64]:
    mean_x, mean_y = x.mean(axis, keepdims=True), y.mean(axis, keepdims=True)
    share = x.shape[axis] / (x.shape[axis] - ddof)
    covariance = ((x - mean_x) * (y - mean_y)).mean(axis) * share
    spread = (x.var(axis) + y.var(axis)) * share + np.squeeze(mean_x - mean_y, axis) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * covariance / spread


def pearson(truth: Months, predicted: Months) -> float:
    """Pearson's r, which, unlike the CCC, ignores a bias. Raises EvaluateError where one of the two is constant."""
    from scipy import stats

    x, y = _pair(truth, predicted)
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise EvaluateError("Pearson's r is not defined: fewer than two cases, or ages or predictions all one value.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input; the value is still computed
        return float(stats.pearsonr(x, y).statistic)


def limits_of_agreement(truth: Months, predicted: Months) -> tuple[float, float]:
    """Bland and Altman's 95 % limits: bias ∓ 1.96 standard deviations (over n - 1) of the differences.

    Source: Lancet 1986;1:307-310.

    Raises EvaluateError for fewer than two cases.
    """
    x, y = _pair(truth, predicted)
    if x.size < 2:
        raise EvaluateError("limits of agreement need two cases.")
    bias, spread = float((y - x).mean()), float((y - x).std(ddof=1))
    return bias - 1.96 * spread, bias + 1.96 * spread


# ---- intervals for other hands of the same kind ----------------------------------------------------------------

Interval = tuple[float, float]


def mad_standard_error(truth: Months, predicted: Months) -> float | None:
    """The standard error of the MAD in months: that of a mean. None for fewer than three cases."""
    x, y = _pair(truth, predicted)
    return float(np.abs(x - y).std(ddof=1) / np.sqrt(x.size)) if x.size >= 3 else None


def ccc_standard_error(truth: Months, predicted: Months) -> float | None:
    """The standard error of Fisher's z = artanh(CCC), from leaving out one case after the other (jackknife).

    Unlike Lin's formula (Biometrics 1989;45:255-268) it does not assume normal errors. None where it is not defined:
    fewer than three cases, constant ages or predictions, or a CCC of 1, with all cases or without one of them.
    """
    x, y = _pair(truth, predicted)
    n = x.size
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.arctanh(np.clip(_ccc_without_each(x - x.mean(), y - x.mean()), -1, 1))
        error = np.sqrt((n - 1) / n * ((z - z.mean()) ** 2).sum())
        whole = np.arctanh(ccc(x, y))
    return float(error) if np.isfinite([error, whole]).all() else None


def _ccc_without_each(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The CCC without the first case, without the second, …, from sums; the values must be centred, for precision."""
    m = x.size - 1
    mean_x, mean_y = (x.sum() - x) / m, (y.sum() - y) / m
    var_x, var_y = ((x @ x) - x * x) / m - mean_x**2, ((y @ y) - y * y) / m - mean_y**2
    covariance = ((x @ y) - x * y) / m - mean_x * mean_y
    return np.asarray(2 * covariance / (var_x + var_y + (mean_x - mean_y) ** 2))


def interval(truth: Months, predicted: Months, figure: Literal["mad", "ccc"]) -> Interval | None:
    """The 95 % interval of MAD or CCC, for other hands of the same kind.

    Student's t on the logarithm of the MAD (delta method) and on Fisher's z of the CCC. Of the intervals compared in
    docs/explanation/STATISTICS.md, these two cover best. None where it is not defined: fewer than three cases, a MAD of
    0, and where `ccc_standard_error` is not.
    """
    from scipy import stats

    x, y = _pair(truth, predicted)
    centre = mad(x, y) if figure == "mad" else 0.0
    error = mad_standard_error(x, y) if figure == "mad" else ccc_standard_error(x, y)
    if error is None or (figure == "mad" and centre == 0):
        return None
    t = float(stats.t.ppf(0.975, x.size - 1))
    if figure == "mad":
        factor = float(np.exp(t * error / centre))
        return centre / factor, centre * factor
    z = float(np.arctanh(ccc(x, y)))
    return float(np.tanh(z - t * error)), float(np.tanh(z + t * error))


def _gain(x: NDArray[np.float64], y: NDArray[np.float64], guess: float) -> Interval | None:
    """The 95 % interval of how much lower the MAD is than that of one answer for every hand (paired t)."""
    from scipy import stats

    if x.size < 3:
        return None
    gain = np.abs(x - guess) - np.abs(x - y)
    half = float(stats.t.ppf(0.975, x.size - 1) * gain.std(ddof=1) / np.sqrt(x.size))
    return float(gain.mean()) - half, float(gain.mean()) + half


# ---- all of a split --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metrics:
    """The figures of one split; lengths of time in months, shares from 0 to 1."""

    cases: int
    mad_months: float
    ccc: float
    """Lin 1989: variances over n."""
    max_error_months: float
    rmse_months: float
    bias_months: float
    """Mean of predicted minus true."""
    guess_mad_months: float
    """The MAD of guessing the mean training age for every hand."""
    ccc_n_minus_1: float
    pearson_r: float | None
    limits_of_agreement_months: Interval
    within_12_months: float
    within_24_months: float
    mad_interval_95: Interval | None
    ccc_interval_95: Interval | None
    mad_se_months: float | None
    """Standard error of the MAD."""
    ccc_z_se: float | None
    """Standard error of Fisher's z of the CCC."""
    gain_interval_95: Interval | None
    """How much lower the MAD is than that of the guess, in months."""
    notes: tuple[str, ...] = ()
    """Remarks on these figures."""


def measure(truth: Months, predicted: Months, guess: float) -> Metrics:
    """All figures of a split; ``guess`` is the mean age of the training cases, in months."""
    x, y = _pair(truth, predicted)
    errors = np.abs(x - y)
    constant = x.size > 1 and float(np.ptp(y)) <= 1e-6 * max(1.0, float(np.abs(y).max()))
    notes = ["the predictions are all the same: the network predicts one age for every hand"] if constant else []
    if constant or np.ptp(x) == 0:
        notes.append("Pearson’s r is not defined")
    return Metrics(
        cases=int(x.size),
        mad_months=mad(x, y),
        ccc=ccc(x, y),
        max_error_months=max_error(x, y),
        rmse_months=float(np.sqrt((errors**2).mean())),
        bias_months=float((y - x).mean()),
        guess_mad_months=float(np.abs(x - guess).mean()),
        ccc_n_minus_1=ccc(x, y, ddof=1),
        pearson_r=None if constant or np.ptp(x) == 0 else pearson(x, y),
        limits_of_agreement_months=limits_of_agreement(x, y),
        within_12_months=float((errors <= 12).mean()),
        within_24_months=float((errors <= 24).mean()),
        mad_interval_95=interval(x, y, "mad"),
        ccc_interval_95=None if constant else interval(x, y, "ccc"),
        mad_se_months=mad_standard_error(x, y),
        ccc_z_se=None if constant else ccc_standard_error(x, y),
        gain_interval_95=_gain(x, y, guess),
        notes=tuple(notes),
    )

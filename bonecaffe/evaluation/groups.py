"""How accurate a model is by age and by sex, and whether it is as accurate for boys as for girls.

Every function takes ages and predictions in months, one for each hand, as `bonecaffe.evaluation.metrics` does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation.metrics import Interval, Months, ccc, interval, mad, max_error
from bonecaffe.evaluation.words import between_signed, signed
from bonecaffe.hands.cases import MONTHS_LIMIT

AGE_BANDS = ((0, 60), (60, 120), (120, 180), (180, MONTHS_LIMIT))
"""Months: under 5 years, 5 to 10, 10 to 15, 15 and over."""
FEWEST = 10
"""Hands below which a group gets no interval, and the sexes are not compared."""
NEGLIGIBLE = 1e-6
"""Months; smaller differences are rounding errors."""

Errors = NDArray[np.float64]
"""Predicted minus true, in months."""


# ---- groups ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """The figures of some hands of a split; the CCC is None where it is not defined.

    The 95 % intervals are None below `FEWEST` hands. The MAD's is by `metrics.interval`, the bias's is Student's.
    """

    name: str
    cases: int
    mad_months: float
    max_error_months: float
    bias_months: float
    ccc: float | None
    mad_interval_95: Interval | None = None
    bias_interval_95: Interval | None = None


def groups(truth: Months, predicted: Months, male: Sequence[bool | None]) -> list[Group]:
    """The figures by age band, lower end included, and by sex; groups without a case are left out."""
    x, y = np.asarray(truth, float), np.asarray(predicted, float)
    sex = np.array(["unknown" if value is None else ("male" if value else "female") for value in male])
    chosen = [(_band_name(low, high), (x >= low) & ((x < high) | (high == MONTHS_LIMIT))) for low, high in AGE_BANDS]
    chosen += [(name, sex == name) for name in ("female", "male", "unknown")]
    return [
        _group("sex unknown" if name == "unknown" else name, x[which], y[which])
        for name, which in chosen
        if which.any()
    ]


def _group(name: str, x: Errors, y: Errors) -> Group:
    try:
        concordance = ccc(x, y)
    except EvaluateError:
        concordance = None
    of_mad, of_bias = (interval(x, y, "mad"), _of_mean(y - x)) if x.size >= FEWEST else (None, None)
    return Group(name, x.size, mad(x, y), max_error(x, y), float((y - x).mean()), concordance, of_mad, of_bias)


def _of_mean(errors: Errors) -> Interval:
    """Student's 95 % interval of a mean."""
    from scipy import stats

    half = float(stats.t.ppf(0.975, errors.size - 1)) * float(errors.std(ddof=1)) / math.sqrt(errors.size)
    return float(errors.mean()) - half, float(errors.mean()) + half


def _band_name(low: int, high: int) -> str:
    if low == 0:
        return f"under {high // 12} years"
    return f"{low // 12} to {high // 12} years" if high < MONTHS_LIMIT else f"{low // 12} years and over"


# ---- boys and girls ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Boys minus girls in months, its 95 % interval, and the p value of no difference; None where nothing varies."""

    months: float
    interval_95: Interval
    p: float | None = None

    def excludes_zero(self) -> bool:
        """Whether the interval excludes a difference of 0."""
        return not self.interval_95[0] <= 0 <= self.interval_95[1]

    def __str__(self) -> str:
        p = "" if self.p is None else f", p {'< 0.001' if self.p < 0.001 else f'= {self.p:.3f}'}"
        return f"{signed(self.months)} months (95 % interval {between_signed(self.interval_95)}{p})"


@dataclass(frozen=True)
class BySex:
    """Whether a model's errors differ between boys and girls, without the hands of unknown sex.

    A difference is None where there are fewer than `FEWEST` of one sex, or where it is not defined for the data.
    """

    boys: int
    girls: int
    unknown: int
    bias: Difference | None
    """Of the mean signed errors: Welch's test, which does not need equal variances."""
    bias_at_same_age: Difference | None
    """The same, adjusted for age: the errors' regression on sex and true age."""
    mad: Difference | None
    """Of the mean absolute errors, by Welch's test: it covers better than the bootstrap.

    See docs/explanation/REVIEWERS.md.
    """
    verdict: str
    """The result in a sentence."""


def by_sex(truth: Months, predicted: Months, male: Sequence[bool | None]) -> BySex:
    """Compare boys with girls: signed errors as they are and at the same age, and absolute errors.

    Predictions tend towards the mean age: too old for young hands, too young for old ones. If the boys are younger than
    the girls, the raw difference shows their ages and not their sex. So the second comparison adjusts for age.
    """
    x, y = np.asarray(truth, float), np.asarray(predicted, float)
    known = np.array([value is not None for value in male], bool)
    boy = np.array([bool(value) for value in male], bool)[known]
    ages, errors = x[known], (y - x)[known]
    boys, girls, unknown = int(boy.sum()), int((~boy).sum()), int((~known).sum())
    bias = at_same_age = of_mad = None
    if min(boys, girls) >= FEWEST:
        bias = _welch(errors[boy], errors[~boy])
        at_same_age = _adjusted(errors, boy, ages)
        of_mad = _welch(np.abs(errors[boy]), np.abs(errors[~boy]))
    return BySex(boys, girls, unknown, bias, at_same_age, of_mad, _verdict(boys, girls, bias, at_same_age))


def _difference(months: float, half: float, p: float) -> Difference | None:
    """None when a figure is not defined, such as the p value of errors that do not vary."""
    return Difference(months, (months - half, months + half), p) if np.isfinite([months, half, p]).all() else None


def _welch(boys: Errors, girls: Errors) -> Difference | None:
    """Welch's unequal-variances t test; None where errors are all the same. Source: Biometrika 1947;34:28-35."""
    from scipy import stats

    if max(np.ptp(boys), np.ptp(girls)) < NEGLIGIBLE:
        rest = round(float(boys.mean() - girls.mean()), 6)
        return Difference(rest, (rest, rest)) if rest else None
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")  # one of the two does not vary
        found = stats.ttest_ind(boys, girls, equal_var=False)
        low, high = found.confidence_interval(0.95)
    return _difference(float(boys.mean() - girls.mean()), float(high - low) / 2, float(found.pvalue))


def _adjusted(errors: Errors, boy: NDArray[np.bool_], ages: Errors) -> Difference | None:
    """The coefficient of sex in the least-squares regression of the errors on sex and age; None if these are collinear.

    Standard errors are HC3 (MacKinnon and White, J Econometrics 1985;29:305-325): as with Welch, the spread may differ
    by sex, and it does differ by age.
    """
    from scipy import stats

    design = np.column_stack([np.ones(errors.size), boy, (ages - ages.mean()) / (ages.std() or 1.0)])
    if np.linalg.matrix_rank(design) < 3:
        return None
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ errors
    residuals = errors - design @ coefficients
    if np.abs(residuals).max() < NEGLIGIBLE:  # such as a network that answers one age: age explains all errors
        rest = round(float(coefficients[1]), 6)
        return Difference(rest, (rest, rest))
    leverage = np.einsum("ij,jk,ik->i", design, inverse, design)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = (residuals / (1 - leverage)) ** 2
        se = math.sqrt((inverse @ (design.T * weights) @ design @ inverse)[1, 1])
        t = np.float64(coefficients[1]) / se
    freedom = errors.size - 3
    return _difference(
        float(coefficients[1]), float(stats.t.ppf(0.975, freedom)) * se, float(2 * stats.t.sf(abs(t), freedom))
    )


def _verdict(boys: int, girls: int, bias: Difference | None, at_same_age: Difference | None) -> str:
    hands = f"{boys} {'boy' if boys == 1 else 'boys'} and {girls} {'girl' if girls == 1 else 'girls'}"
    if min(boys, girls) < FEWEST:
        return f"Boys against girls: too few to compare, {hands}; at least {FEWEST} of each are needed."
    if bias is None:
        return f"Boys against girls: not defined for {hands}, because the errors do not vary."
    if at_same_age is None:
        found = "differs by sex" if bias.excludes_zero() else "was not found to differ by sex"
        reason = "not adjusted for age, because sex and age cannot be separated"
        return f"The bias {found}: boys minus girls {bias}; {reason}; {hands}."
    figures = f"boys minus girls {bias}, and {at_same_age} at the same age; {hands}"
    if at_same_age.excludes_zero():
        return f"The bias differs by sex: {figures}."
    if bias.excludes_zero():
        return f"The bias differs by sex only because boys and girls differ in age: {figures}."
    most = max(abs(end) for end in at_same_age.interval_95)
    return f"The bias was not found to differ by sex, though up to {most:.1f} months are possible: {figures}."

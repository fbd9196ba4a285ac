"""How far MAD and CCC would move with another seed, and with other hands: intervals for `repeat`.

Both figures are computed on a scale where their errors are nearly normal, and where no interval can leave the possible
values: the MAD as its logarithm, the CCC as Fisher's z = atanh(CCC) (Lin, Biometrics 1989;45:255-268).

The seeds of one `repeat` draw from one pool of hands, so two seeds test some of the same hands. The variance between
seeds therefore shows too little of the sampling error: the part that comes from shared hands is the same in both. That
part is estimated with the jackknife (Tukey, Ann Math Stat 1958;29:614): a hand's share in the sampling error of a
figure follows from how the figure changes without the hand. The covariance of two seeds is the sum, over the hands that
both tested, of the products of the two shares. With s² the variance between S seeds, and c the mean covariance of two:

- another seed on these hands differs from the mean of the S seeds with variance s² (1 + 1/S);
- a study on other hands differs from it with variance s² (1 + 1/S) + 2 c: once for the hands here, once for the others.

The first has S - 1 degrees of freedom; c rests on hundreds of hands. The half-width of the second interval is therefore
the root of the sum of squares of two half-widths, Student's t for s² and the normal for c (the "modified large sample"
method: Graybill and Wang, J Am Stat Assoc 1980;75:869-873). `scripts/repeat_coverage.py` measures the coverage of the
intervals; docs/explanation/STATISTICS.md has its figures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonecaffe.evaluation.metrics import ccc, mad

Figure = Literal["mad", "ccc"]
Interval = tuple[float, float]
SEEDS_FOR_AN_INTERVAL = 3
"""With two seeds (one degree of freedom), an interval would be ten times as wide as their difference."""
UNITS_FOR_AN_INTERVAL = 10
"""Hands, or groups of hands; with fewer, the sampling error cannot be estimated from them."""


# ---- the scale ---------------------------------------------------------------------------------------------------


def to_scale(figure: Figure, value: float) -> float:
    """The logarithm of a MAD in months; Fisher's z of a CCC. Infinite where the figure is perfect.

    >>> round(to_scale("mad", 18.9), 4), round(to_scale("ccc", 0.78), 4), to_scale("mad", 0.0)
    (2.9392, 1.0454, -inf)
    """
    if figure == "mad":
        return math.log(value) if value > 0 else -math.inf
    return math.atanh(value) if abs(value) < 1 else math.copysign(math.inf, value)


def from_scale(figure: Figure, value: float) -> float:
    """The inverse of `to_scale`: a MAD above 0, a CCC from -1 to 1; a MAD too large for a float is infinite."""
    if figure == "ccc":
        return math.tanh(value)
    return math.exp(value) if value < 700 else math.inf


def around(figure: Figure, centre: float, half: float) -> Interval:
    """The interval of ``centre`` ± ``half`` on the scale, as MADs in months or CCCs."""
    return from_scale(figure, centre - half), from_scale(figure, centre + half)


# ---- one test set ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A figure of one test set on its scale, and each unit's (hand's or group's) share in its sampling error."""

    figure: Figure
    value: float
    """On the scale."""
    shares: Mapping[str, float]
    """By unit: how far the figure falls, on the scale, without the unit, less the mean over units. The sum is 0."""
    hands: int

    @property
    def variance(self) -> float:
        """The sampling variance on the scale, for a random sample of this many hands."""
        units = len(self.shares)
        return math.fsum(share**2 for share in self.shares.values()) * units / (units - 1) if units > 1 else math.nan

    @property
    def interval_95(self) -> Interval | None:
        """The 95 % interval for this model's figure over all such hands, by Student's t on the scale.

        None for fewer than `UNITS_FOR_AN_INTERVAL`.
        """
        from scipy import stats

        if len(self.shares) < UNITS_FOR_AN_INTERVAL:
            return None
        half = float(stats.t.ppf(0.975, len(self.shares) - 1)) * math.sqrt(self.variance)
        return around(self.figure, self.value, half)


def measured(figure: Figure, units: Sequence[str], truth: ArrayLike, predicted: ArrayLike) -> Measured | None:
    """The figure of a test set with its sampling error, by the jackknife over units.

    None for fewer than three units, and where the figure of all units, or of all but one, is perfect: its value on the
    scale would be infinite.

    ``units`` names the sampling unit of each hand: its id, or its group, whose hands are drawn together. ``truth`` and
    ``predicted`` are months, one for each hand. Raises EvaluateError for what cannot be compared.

    >>> found = measured("mad", ["a", "b", "c"], [100, 120, 90], [110, 116, 97])  # |errors| 10, 4 and 7, mean 7
    >>> round(found.value, 4), {unit: round(share, 4) for unit, share in found.shares.items()}
    (1.9459, {'a': 0.1503, 'b': -0.1399, 'c': -0.0104})
    """
    x, y = np.asarray(truth, float), np.asarray(predicted, float)
    value = to_scale(figure, mad(x, y) if figure == "mad" else ccc(x, y))
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    count = len(numbers)
    if count < 3 or not math.isfinite(value):
        return None
    of_unit = np.array([numbers[unit] for unit in units])
    without = _log_mads_without(x, y, of_unit) if figure == "mad" else _z_cccs_without(x, y, of_unit)
    if not np.isfinite(without).all():
        return None
    shares = (count - 1) / count * (without.mean() - without)
    return Measured(figure, value, dict(zip(numbers, shares.tolist(), strict=True)), int(x.size))


def _means_without(values: NDArray[np.float64], of_unit: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of the hands' values without each unit in turn."""
    return (values.sum() - np.bincount(of_unit, values)) / (values.size - np.bincount(of_unit))


def _log_mads_without(
    x: NDArray[np.float64], y: NDArray[np.float64], of_unit: NDArray[np.int64]
) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(_means_without(np.abs(x - y), of_unit))


def _z_cccs_without(x: NDArray[np.float64], y: NDArray[np.float64], of_unit: NDArray[np.int64]) -> NDArray[np.float64]:
    """z = ½ ln((Q + 4 A) / Q), with Q the mean squared error and A the covariance over n.

    The CCC is 2 A / (Q + 2 A), because its denominator s_x² + s_y² + (mean x - mean y)² is Q + 2 A.
    """
    shift = x.mean()  # shifts both: small numbers lose fewer digits in products, and neither Q nor A changes
    x, y = x - shift, y - shift
    q = _means_without((x - y) ** 2, of_unit)
    a = _means_without(x * y, of_unit) - _means_without(x, of_unit) * _means_without(y, of_unit)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log((q + 4 * a) / q) / 2


def shared_variance(a: Measured, b: Measured) -> float:
    """The covariance of a figure of two test sets, on the scale, from the units that are in both."""
    return math.fsum(share * b.shares[unit] for unit, share in a.shares.items() if unit in b.shares)


# ---- several seeds -----------------------------------------------------------------------------------------------


def next_seed(figure: Figure, values: Sequence[float]) -> Interval | None:
    """The 95 % prediction interval for one more seed on the same hands; ``values`` are on the scale.

    Student's t on the scale: mean ± t s √(1 + 1/S). None for fewer than three seeds, or values that are not finite.
    """
    if len(values) < SEEDS_FOR_AN_INTERVAL or not np.isfinite(values).all():
        return None
    return around(figure, float(np.mean(values)), math.sqrt(_squared_half_of_seeds(values)))


def other_hands(seeds: Sequence[Measured], hands: int | None = None, level: float = 0.95) -> Interval | None:
    """The prediction interval for one study, of one seed, that draws other hands and tests ``hands`` of them.

    Without ``hands``, the other study tests as many as the seeds here did. With ``hands``, its sampling variance is
    that of so many hands. ``level`` is the coverage, from 0 to 1. None for fewer than three seeds, or fewer than
    `UNITS_FOR_AN_INTERVAL` units in a seed's test.
    """
    from scipy import stats

    values = [seed.value for seed in seeds]
    if len(seeds) < SEEDS_FOR_AN_INTERVAL or min(len(seed.shares) for seed in seeds) < UNITS_FOR_AN_INTERVAL:
        return None
    shared = max(0.0, float(np.mean([shared_variance(a, b) for a, b in itertools.combinations(seeds, 2)])))
    here = float(np.mean([seed.variance for seed in seeds]))
    other = here if hands is None else float(np.mean([seed.variance * seed.hands / hands for seed in seeds]))
    known = max(0.0, 2 * shared + other - here)
    squared_half = _squared_half_of_seeds(values, level) + float(stats.norm.ppf(0.5 + level / 2)) ** 2 * known
    return around(seeds[0].figure, float(np.mean(values)), math.sqrt(squared_half))


def _squared_half_of_seeds(values: Sequence[float], level: float = 0.95) -> float:
    """t² s² (1 + 1/S), with Student's t of S - 1 degrees of freedom."""
    from scipy import stats

    n = len(values)
    return float(stats.t.ppf(0.5 + level / 2, n - 1)) ** 2 * float(np.var(values, ddof=1)) * (1 + 1 / n)

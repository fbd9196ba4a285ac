"""MAD, CCC and maximum: checked by hand; an error where they are not defined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation import metrics
from bonecaffe.evaluation.metrics import (
    ccc,
    ccc_standard_error,
    interval,
    limits_of_agreement,
    mad,
    max_error,
    measure,
    pearson,
)


def test_figures_worked_out_by_hand():
    """Three hands, pencil and paper."""
    truth, predicted = [100, 120, 140], [110, 120, 120]
    assert mad(truth, predicted) == 10
    assert max_error(truth, predicted) == 20
    # means 120, 350/3; variances 800/3, 200/9; covariance 200/3; squared difference of means 100/9
    assert ccc(truth, predicted) == pytest.approx(2 * (200 / 3) / (800 / 3 + 200 / 9 + 100 / 9))


def test_ccc_properties():
    """1 for agreement, -1 for the mirror image, less than Pearson for a shift, 0 for a constant guess."""
    rng = np.random.default_rng(0)
    x = rng.uniform(10, 200, 50)
    assert ccc(x, x) == pytest.approx(1)
    assert ccc(x, 2 * x.mean() - x) == pytest.approx(-1)
    assert ccc(x, x + 30) < 0.95 < np.corrcoef(x, x + 30)[0, 1]
    assert ccc(x, np.full(50, 80.0)) == 0
    y = x + rng.normal(0, 20, 50)
    assert ccc(x, y) == pytest.approx(ccc(y, x))
    # Lin's own form: the Pearson correlation times the bias correction factor
    v, u = x.std() / y.std(), (x.mean() - y.mean()) / math.sqrt(x.std() * y.std())
    assert ccc(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1] * 2 / (v + 1 / v + u * u))


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [([], []), ([1, 2], [1]), ([1, math.nan], [1, 2]), ([1, 2], [1, math.inf]), ([[1, 2]], [[1, 2]])],
)
def test_what_cannot_be_compared_is_an_error(truth, predicted):
    """Never a silent nan."""
    for figure in (mad, max_error, ccc):
        with pytest.raises(EvaluateError):
            figure(truth, predicted)


def test_undefined_ccc_is_an_error():
    """One case; all the same."""
    for truth, predicted in (([5], [6]), ([5, 5], [5, 5])):
        with pytest.raises(EvaluateError, match="not defined"):
            ccc(truth, predicted)


def test_measure_holds_the_guess():
    """What the mean training age for every hand would give."""
    found = measure([10, 30], [12, 25], guess=24)
    assert (found.cases, found.guess_mad_months, found.bias_months) == (2, 10, -1.5)
    assert found.rmse_months == pytest.approx(math.sqrt((4 + 25) / 2))


def test_yardstick_is_the_papers():
    """Paper II.3, letter by letter: "6.4 months", "0.98", "24.4 months"; "18.9 months", "0.78", "69.2 months"."""
    assert metrics.PAPER == {
        "train": {"mad_months": 6.4, "ccc": 0.98, "max_error_months": 24.4},
        "test": {"mad_months": 18.9, "ccc": 0.78, "max_error_months": 69.2},
    }


def test_where_the_ccc_is_defined():
    """Two cases are enough; only ages and predictions that are all the same one value are too few."""
    assert ccc([1, 3], [1, 3]) == 1
    # means 2 and 4, variances 1 and 1, covariance 1: 2 / (1 + 1 + 4); over n - 1: 4 / (2 + 2 + 4)
    assert ccc([1, 3], [3, 5]) == pytest.approx(1 / 3)
    assert ccc([1, 3], [3, 5], ddof=1) == pytest.approx(1 / 2)
    assert ccc([5, 5], [7, 7]) == ccc([5, 5], [5, 9]) == ccc([5, 9], [5, 5]) == 0
    assert mad([5], [6]) == max_error([5], [6]) == 1


@pytest.mark.parametrize(("truth", "predicted"), [([4], [5]), ([4, 4], [5, 6]), ([5, 6], [4, 4])])
def test_where_pearsons_r_is_not_defined(truth, predicted):
    """One case; a constant on either side."""
    with pytest.raises(EvaluateError, match="Pearson's r is not defined"):
        pearson(truth, predicted)


def test_two_cases_and_infinity():
    """A line through two points; limits of agreement need two; minus infinity is no age."""
    assert pearson([1, 2], [3, 5]) == pytest.approx(1) and pearson([1, 2], [5, 3]) == pytest.approx(-1)
    # differences 2 and 4: mean 3, standard deviation over n - 1: sqrt(2)
    assert limits_of_agreement([1, 2], [3, 6]) == pytest.approx((3 - 1.96 * math.sqrt(2), 3 + 1.96 * math.sqrt(2)))
    with pytest.raises(EvaluateError, match="two cases"):
        limits_of_agreement([1], [3])
    with pytest.raises(EvaluateError, match="nan or inf"):
        mad([-math.inf, 1], [1, 1])


# ---- the interval ----------------------------------------------------------------------------------------------------


def test_interval_of_the_mad_by_hand():
    """Errors 12, 5, 8: mean 25/3, variance 37/3; Student's t of two degrees of freedom is 4.302653."""
    low, high = interval([20, 50, 110], [32, 45, 102], "mad")
    factor = math.exp(4.302653 * math.sqrt(37 / 3 / 3) / (25 / 3))
    assert (low, high) == pytest.approx((25 / 3 / factor, 25 / 3 * factor), rel=1e-6)


def test_interval_of_the_ccc_leaves_out_one_after_the_other():
    """The jackknife on Fisher's z, here the slow way."""
    rng = np.random.default_rng(4)
    x = rng.uniform(0, 228, 30)
    y = x + rng.normal(0, 20, 30)
    z = np.arctanh([ccc(np.delete(x, i), np.delete(y, i)) for i in range(30)])
    error = math.sqrt(29 / 30 * ((z - z.mean()) ** 2).sum())
    assert ccc_standard_error(x, y) == pytest.approx(error, rel=1e-9)
    ends = [math.tanh(math.atanh(ccc(x, y)) + sign * 2.045230 * error) for sign in (-1, 1)]
    assert interval(x, y, "ccc") == pytest.approx(ends, rel=1e-6)
    found = measure(x, y, 100)
    assert found.mad_interval_95 == interval(x, y, "mad") and found.ccc_interval_95 == interval(x, y, "ccc")


def test_interval_where_it_is_not_defined():
    """Two hands; a constant, for the CCC alone; errors of 0; a CCC of 1 without one of the hands."""
    assert interval([1, 2], [2, 4], "mad") is None and interval([1, 2], [2, 4], "ccc") is None
    for truth, predicted in (([5, 5, 5], [4, 6, 9]), ([4, 6, 9], [5, 5, 5])):
        assert interval(truth, predicted, "ccc") is None
        assert interval(truth, predicted, "mad") is not None
    assert interval([1, 2, 3], [1, 2, 3], "mad") is None and interval([1, 2, 3], [1, 2, 3], "ccc") is None
    assert interval([1, 2, 3], [1, 2, 4], "ccc") is None


def test_gain_over_the_guess():
    """Gains 40 − 2, 10 − 1, 30 − 6: mean 71/3, Student's t of two degrees of freedom."""
    found = measure([60, 110, 130], [62, 111, 136], guess=100)
    gains = np.array([38, 9, 24])
    half = 4.302653 * gains.std(ddof=1) / math.sqrt(3)
    assert found.gain_interval_95 == pytest.approx((gains.mean() - half, gains.mean() + half), rel=1e-6)
    assert measure([60, 110], [62, 111], guess=100).gain_interval_95 is None


# ---- all of a split --------------------------------------------------------------------------------------------------


def test_one_answer_for_every_hand_is_noticed_through_rounding():
    """The same to a millionth of the largest prediction, or of one month."""
    for predicted, constant in (
        ([100, 100 + 9e-5], True),
        ([100, 100 + 2e-4], False),
        ([-100, -100 - 9e-5], True),
        ([0, 9e-7], True),
        ([0, 1e-6], True),
        ([0, 1.5e-6], False),
        ([70, 71], False),
    ):
        found = measure([50, 90], predicted, guess=70)
        assert (found.pearson_r is None) == any("all the same" in note for note in found.notes) == constant
        assert any("Pearson’s r is not defined" in note for note in found.notes) == constant
        assert found.ccc_interval_95 is None  # two hands


def test_notes_and_figures_of_a_split():
    """Same ages: no r."""
    found = measure([50, 50, 50], [40, 50, 62], guess=60)
    assert found.pearson_r is None and found.notes == ("Pearson’s r is not defined",)
    assert (found.ccc, found.ccc_interval_95) == (0, None) and found.mad_interval_95 is not None
    x = np.arange(20.0)
    plain = measure(x, x + 1, 0)
    assert plain.notes == () and plain.pearson_r == pytest.approx(1) and plain.max_error_months == 1
    # variances (400 - 1) / 12 over n, 35 over n - 1
    assert plain.ccc == pytest.approx(66.5 / 67.5) and plain.ccc_n_minus_1 == pytest.approx(70 / 71)
    assert plain.limits_of_agreement_months == pytest.approx((1, 1)) and plain.guess_mad_months == 9.5
    assert len({plain, measure(x, x + 1, 0)}) == 1  # a value

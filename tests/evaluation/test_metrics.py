"""MAD, CCC and maximum: checked by hand, and where they are not defined said so."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation.metrics import ccc, mad, max_error, measure


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
    metrics = measure([10, 30], [12, 25], guess=24)
    assert (metrics.cases, metrics.guess_mad_months, metrics.bias_months) == (2, 10, -1.5)
    assert metrics.rmse_months == pytest.approx(math.sqrt((4 + 25) / 2))

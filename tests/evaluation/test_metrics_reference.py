"""The figures against values that others published or that other programs give, each with its source."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation.metrics import ccc, interval, limits_of_agreement, measure, pearson

# Bland and Altman, Lancet 1986;1:307-310, table 1, first readings: peak expiratory flow by two meters, l/min.
WRIGHT = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


def test_ccc_over_n_as_audmetric_documents():
    """audmetric (audeering), docstring of concordance_cc([0, 1, 2], [0, 1, 1]): 0.6666666666666666."""
    assert ccc([0, 1, 2], [0, 1, 1]) == pytest.approx(0.6666666666666666, abs=1e-12)


def test_ccc_over_n_minus_1_as_torchmetrics_documents():
    """torchmetrics, docstring of ConcordanceCorrCoef: target 3, -0.5, 2, 7; preds 2.5, 0, 2, 8; 0.9777."""
    assert ccc([3, -0.5, 2, 7], [2.5, 0.0, 2, 8], ddof=1) == pytest.approx(0.9777, abs=5e-5)


def test_ccc_over_n_as_brisk_tests():
    """brisk (a public Python package), its own test on the same four pairs, over n: 0.976."""
    assert ccc([3.0, -0.5, 2.0, 7.0], [2.5, 0.0, 2.0, 8.0]) == pytest.approx(0.976, abs=1e-3)


def test_limits_of_agreement_of_bland_and_altman():
    """The paper prints a mean difference of -2.1 and SD of 38.8 l/min (Wright less mini), and r = 0.94."""
    low, high = limits_of_agreement(MINI, WRIGHT)
    assert (low + high) / 2 == pytest.approx(-2.1, abs=0.05)
    assert (high - low) / (2 * 1.96) == pytest.approx(38.8, abs=0.05)
    assert pearson(MINI, WRIGHT) == pytest.approx(0.94, abs=0.005)


@given(st.lists(st.tuples(st.floats(0, 228), st.floats(-50, 300)), min_size=3, max_size=40))
def test_both_conventions_against_numpy(pairs):
    """Lin's formula with NumPy's variances over n, and over n - 1; they differ by little, and not for many cases."""
    x, y = (np.array(values) for values in zip(*pairs, strict=True))
    for ddof in (0, 1):
        spread = x.var(ddof=ddof) + y.var(ddof=ddof) + (x.mean() - y.mean()) ** 2
        if spread > 1e-6:
            assert ccc(x, y, ddof) == pytest.approx(2 * np.cov(x, y, ddof=ddof)[0, 1] / spread, abs=1e-9)


def test_interval_covers_and_repeats():
    """The MAD of two hundred half-normal errors: near the classical interval of a mean; the same each time."""
    rng = np.random.default_rng(1)
    x = rng.uniform(10, 220, 200)
    y = x + rng.normal(0, 20, 200)
    low, high = interval(x, y, "mad")
    errors = np.abs(x - y)
    normal = stats.norm.interval(0.95, errors.mean(), stats.sem(errors))
    assert (low, high) == pytest.approx(normal, abs=0.3)
    assert interval(x, y, "mad") == (low, high)
    low, high = interval(x, y, "ccc")
    assert low < ccc(x, y) < high and high - low < 0.1


def test_degenerate_cases_are_reported():
    """Constant predictions, few cases, groups too small for a CCC: stated, or None; never a number out of nothing."""
    metrics = measure([10, 50, 90, 130], [70, 70, 70, 70], guess=70)
    assert metrics.ccc == 0 and metrics.pearson_r is None and metrics.ccc_interval_95 is None
    assert "all the same" in metrics.notes[0] and not any("cases" in note for note in metrics.notes)
    assert interval([1, 2], [1, 2], "mad") is None
    with pytest.raises(EvaluateError):
        measure([10.0], [12.0], guess=10)
    with pytest.raises(EvaluateError, match="not defined"):
        pearson([1, 2], [3, 3])


def test_share_within_a_year_and_two():
    """The bounds belong to it."""
    metrics = measure([0, 100, 200, 250], [12, 124, 224.1, 251], guess=100)
    assert (metrics.within_12_months, metrics.within_24_months) == (0.5, 0.75)
    metrics = measure([0, 100], [12.5, 124.5], guess=100)
    assert (metrics.within_12_months, metrics.within_24_months) == (0, 0.5)

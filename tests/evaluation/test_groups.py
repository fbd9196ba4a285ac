"""By age and by sex: groups with their intervals, and boys against girls."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bonecaffe.evaluation import metrics
from bonecaffe.evaluation.groups import FEWEST, by_sex, groups


def hands(seed: int, boys: int = 100, girls: int = 100, *, boys_more=0.0, slope=0.0, boys_younger=0.0, sd=(15.0, 15.0)):
    """Ages, predictions and sexes: errors of an SD by sex, that fall with age by a slope, and are higher for boys."""
    rng = np.random.default_rng(seed)
    boy = np.arange(boys + girls) < boys
    ages = rng.uniform(50, 200, boy.size) - boys_younger * boy
    errors = rng.normal(0, 1, boy.size) * np.where(boy, *sd) + slope * (ages - 110) + boys_more * boy
    return ages, ages + errors, [bool(value) for value in boy]


# ---- groups ------------------------------------------------------------------------------------------------------


def test_groups_have_their_bounds_and_figures():
    """The lower end belongs to a band; the last one is open. Errors of 1, 2, 4, … tell the hands of a sum."""
    ages = [0, 59.5, 60, 119.5, 120, 179.5, 180, 300]
    errors = [1, -2, 4, -8, 16, -32, 64, -128]
    sex = [True, True, False, False, None, None, True, False]
    found = groups(ages, [age + error for age, error in zip(ages, errors, strict=True)], sex)
    assert [(g.name, g.cases, g.mad_months, g.max_error_months, g.bias_months) for g in found] == [
        ("under 5 years", 2, 1.5, 2, -0.5),
        ("5 to 10 years", 2, 6, 8, -2),
        ("10 to 15 years", 2, 24, 32, -8),
        ("15 years and over", 2, 96, 128, -32),
        ("female", 3, 140 / 3, 128, -44),
        ("male", 3, 67 / 3, 64, 21),
        ("sex unknown", 2, 24, 32, -8),
    ]
    # under 5: ages 0, 59.5, predictions 1, 57.5; CCC = 2 s_xy / (s_x² + s_y² + 0.5²)
    assert found[0].ccc == pytest.approx(2 * 59.5 * 56.5 / 4 / ((59.5**2 + 56.5**2) / 4 + 0.25))
    assert [g.name for g in groups([180], [180], [None])] == ["15 years and over", "sex unknown"]
    assert groups([180], [180], [None])[0].ccc is None and len(set(found)) == 7


def test_groups_of_one_have_no_ccc():
    """Bands with their lower end, the last one open."""
    found = {
        g.name: g for g in groups([59.9, 60, 119, 228, 300], [60, 70, 110, 220, 290], [True, None, False, True, True])
    }
    assert list(found) == ["under 5 years", "5 to 10 years", "15 years and over", "female", "male", "sex unknown"]
    assert found["under 5 years"].ccc is None and found["5 to 10 years"].cases == 2
    assert found["15 years and over"].mad_months == 9
    assert sum(g.cases for name, g in found.items() if "year" in name) == 5


def test_intervals_of_a_group():
    """The bias's is Student's, the MAD's that of `metrics`, from ten hands on; below there is none."""
    errors = np.array([3.0, -1, 4, -1, 5, 9, -2, 6, 5, 3])
    ages = np.linspace(61, 118, 10)
    band, girls = groups(ages, ages + errors, [False] * 10)
    assert band.bias_interval_95 == pytest.approx(stats.ttest_1samp(errors, 0).confidence_interval(0.95))
    assert band.mad_interval_95 == metrics.interval(ages, ages + errors, "mad")
    assert (girls.bias_interval_95, girls.mad_interval_95) == (band.bias_interval_95, band.mad_interval_95)
    for group in groups(ages[:9], (ages + errors)[:9], [False] * 9):
        assert group.bias_interval_95 is None and group.mad_interval_95 is None
    assert FEWEST == 10


def test_bias_interval_covers():
    """95 % of the intervals hold the true bias of 3 months, in groups of twelve."""
    rng = np.random.default_rng(7)
    ages = np.full(12, 100.0)
    found = [groups(ages, ages + rng.normal(3, 15, 12), [True] * 12)[1] for _ in range(400)]
    covered = sum(g.bias_interval_95[0] <= 3 <= g.bias_interval_95[1] for g in found)
    assert 368 <= covered <= 392  # 380, and two standard errors of 4.4 with half a case


# ---- boys and girls ----------------------------------------------------------------------------------------------


def test_half_a_year_between_the_sexes_is_found():
    """Six months more for boys: found raw and at the same age; its size is within the interval."""
    found = by_sex(*hands(2, 200, 200, boys_more=6, slope=-0.1))
    assert (found.boys, found.girls, found.unknown) == (200, 200, 0)
    for difference in (found.bias, found.bias_at_same_age):
        assert difference.excludes_zero() and difference.interval_95[0] < 6 < difference.interval_95[1]
        assert difference.p < 0.05
    assert found.verdict.startswith("The bias differs by sex: boys minus girls +")
    fewer = by_sex(*hands(2, 200, 200, boys_more=-6, slope=-0.1))
    assert fewer.bias_at_same_age.interval_95[1] < 0 and "boys minus girls −" in fewer.verdict


def test_five_in_a_hundred_are_found_where_there_is_nothing():
    """The rate of false alarms of each test, and with spreads and numbers that differ by sex: 400 simulations."""
    found = [by_sex(*hands(seed, 15, 40, slope=-0.2, sd=(25, 10))) for seed in range(400)]
    alike = [by_sex(*hands(seed, 15, 40)) for seed in range(400)]
    for alarms in (
        sum(each.bias.excludes_zero() for each in found),
        sum(each.bias_at_same_age.excludes_zero() for each in found),
        sum(each.mad.excludes_zero() for each in alike),
    ):
        assert 10 <= alarms <= 30  # 20, and two standard errors of 4.4 with half a case
    assert all(each.bias.excludes_zero() == (each.bias.p < 0.05) for each in found)
    assert all(each.bias_at_same_age.excludes_zero() == (each.bias_at_same_age.p < 0.05) for each in found)


def test_younger_boys_are_no_bias_by_sex():
    """Predictions drawn to the mean, and boys 40 months younger: a raw difference, and none at the same age."""
    found = by_sex(*hands(3, slope=-0.3, boys_younger=40))
    assert found.bias.excludes_zero() and found.bias.interval_95[0] < 12 < found.bias.interval_95[1]
    assert not found.bias_at_same_age.excludes_zero()
    assert found.verdict.startswith("The bias differs by sex only because boys and girls differ in age")
    # and the other way round: the ages hide a difference
    hidden = by_sex(*hands(5, slope=-0.3, boys_younger=40, boys_more=-12))
    assert not hidden.bias.excludes_zero() and hidden.bias_at_same_age.excludes_zero()
    assert hidden.verdict.startswith("The bias differs by sex: ")


def test_figures_are_those_of_other_programs():
    """Welch's as SciPy has it; the adjusted difference and its HC3 error by NumPy's least squares, one hand at a time.

    HC3 divides each residual by one less its leverage, which is the error of the fit without that hand.
    """
    ages, predicted, male = hands(5, 12, 17, boys_more=3, slope=-0.2, sd=(20, 8))
    errors, boy = predicted - ages, np.array(male)
    found = by_sex(ages, predicted, male)
    welch = stats.ttest_ind(errors[boy], errors[~boy], equal_var=False)
    assert found.bias.p == pytest.approx(welch.pvalue)
    assert found.bias.interval_95 == pytest.approx(welch.confidence_interval(0.95))
    assert found.bias.months == pytest.approx(errors[boy].mean() - errors[~boy].mean())
    design = np.column_stack([np.ones(29), boy, ages])
    fit = np.linalg.lstsq(design, errors)[0]
    left_out = [np.linalg.lstsq(np.delete(design, i, 0), np.delete(errors, i))[0] for i in range(29)]
    residuals = [errors[i] - design[i] @ left_out[i] for i in range(29)]
    bread = np.linalg.pinv(design)
    se = np.sqrt((bread @ np.diag(np.square(residuals)) @ bread.T)[1, 1])
    half = stats.t.ppf(0.975, 26) * se
    assert found.bias_at_same_age.months == pytest.approx(fit[1])
    assert found.bias_at_same_age.interval_95 == pytest.approx((fit[1] - half, fit[1] + half))
    assert found.bias_at_same_age.p == pytest.approx(2 * stats.t.sf(abs(fit[1] / se), 26))
    absolute = stats.ttest_ind(*(np.abs(errors[which]) for which in (boy, ~boy)), equal_var=False)
    assert found.mad.months == pytest.approx(np.abs(errors[boy]).mean() - np.abs(errors[~boy]).mean())
    assert found.mad.interval_95 == pytest.approx(absolute.confidence_interval(0.95))
    assert found.mad.p == pytest.approx(absolute.pvalue)


def test_difference_in_mad_is_found():
    """Boys with errors twice as large, and no bias."""
    found = by_sex(*hands(6, sd=(20, 10)))
    assert (
        found.mad.interval_95[0] > 0 and found.mad.interval_95[0] < 10 * np.sqrt(2 / np.pi) < found.mad.interval_95[1]
    )
    assert not found.bias.excludes_zero()
    assert found.verdict.startswith("The bias was not found to differ by sex, though up to ")
    most = max(map(abs, found.bias_at_same_age.interval_95))
    assert f"up to {most:.1f} months are possible" in found.verdict


def test_unknown_sex_and_too_few_are_named():
    """Hands of unknown sex are counted and left out; below ten of one sex nothing is computed, in words."""
    ages, predicted, male = hands(8, 12, 12)
    more = by_sex([*ages, 50, 60], [*predicted, 500, 900], [*male, None, None])
    alone = by_sex(ages, predicted, male)
    assert (more.boys, more.girls, more.unknown) == (12, 12, 2)
    assert (more.bias, more.bias_at_same_age, more.mad) == (alone.bias, alone.bias_at_same_age, alone.mad)
    ten = by_sex(*hands(8, 10, 10))
    assert ten.bias and ten.bias_at_same_age and ten.mad
    for boys, girls, words in ((9, 30, "9 boys and 30 girls"), (30, 1, "30 boys and 1 girl;"), (1, 0, "1 boy and 0")):
        few = by_sex(*hands(8, boys, girls))
        assert (few.bias, few.bias_at_same_age, few.mad) == (None, None, None)
        assert "too few to compare" in few.verdict and words in few.verdict and "at least 10 of each" in few.verdict
    nobody = by_sex([50, 60], [50, 60], [None, None])
    assert (nobody.boys, nobody.girls, nobody.unknown) == (0, 0, 2) and "too few" in nobody.verdict


def test_errors_that_do_not_vary_give_no_figure():
    """Always 5 months off; one age answered for all; sexes that share no age; nothing is made up, and nothing warns."""
    ages = np.linspace(50, 200, 24)
    male = [True, False] * 12
    same = by_sex(ages, ages + 5, male)
    assert same.bias is None and "do not vary" in same.verdict
    one_age = by_sex(ages, np.full(24, 110.0), [True] * 12 + [False] * 12)  # boys younger
    assert one_age.bias.excludes_zero() and one_age.bias_at_same_age.months == 0
    assert one_age.bias_at_same_age.p is None and "only because boys and girls differ in age" in one_age.verdict
    rng = np.random.default_rng(2)
    apart = by_sex([60.0] * 12 + [120.0] * 12, rng.normal(90, 5, 24), [True] * 12 + [False] * 12)
    assert apart.bias is not None and apart.bias_at_same_age is None
    assert "not adjusted for age" in apart.verdict and "differs by sex" in apart.verdict
    apart = by_sex(ages, ages + np.where(male, 5, -5), male)
    assert apart.bias.months == pytest.approx(10) and "differs by sex" in apart.verdict
    half = by_sex(ages, ages + np.where(male, 5, rng.normal(0, 5, 24)), male)  # boys' errors do not vary
    assert half.bias is not None and np.isfinite(half.bias.interval_95).all()

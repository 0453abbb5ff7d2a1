"""The statistics against hand-worked and published numbers, brute force and simulation."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from analysis.drift import drift, outlying, residuals, trend
from analysis.power import ALPHA, detectable_effect, runs_needed, t_power
from analysis.significance import (
    cohens_d,
    holm,
    mean_interval,
    non_inferiority,
    paired_difference,
    paired_ratio,
    sign_flip_p,
    smallest_p,
    two_sample_t,
)

# Darwin's maize, differences of 15 pairs in eighths of an inch (Fisher 1935, The Design of
# Experiments, chapter 3)
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
EXPERIMENTS = 2000


def test_mean_interval_of_a_textbook_sample():
    # mean 3, s = sqrt(2.5), t(0.975, 4) = 2.776445: 3 ± 2.776445 * 1.581139 / sqrt(5)
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3 and interval.n == 5
    assert interval.low == pytest.approx(3 - 1.963243, abs=1e-5)
    assert interval.high == pytest.approx(3 + 1.963243, abs=1e-5)


def test_paired_ratio_equals_the_paired_t_test_on_logs():
    rng = np.random.default_rng(0)
    x, reference = rng.lognormal(0.1, 0.2, 9), rng.lognormal(0, 0.2, 9)
    expected = stats.ttest_rel(np.log(x), np.log(reference))
    ratio = paired_ratio(x, reference)
    assert ratio.p == pytest.approx(expected.pvalue)
    bounds = np.exp(expected.confidence_interval(0.95))
    assert (ratio.low, ratio.high) == pytest.approx(tuple(bounds))
    assert ratio.ratio == pytest.approx(stats.gmean(x) / stats.gmean(reference))


def test_the_ratio_is_symmetric():
    x, reference = [1.0, 2.0, 4.0], [2.0, 2.5, 3.5]
    forth, back = paired_ratio(x, reference), paired_ratio(reference, x)
    assert forth.ratio == pytest.approx(1 / back.ratio)
    assert forth.low == pytest.approx(1 / back.high)
    assert forth.p == pytest.approx(back.p)


def test_pairing_removes_what_the_pairs_share():
    drift = np.linspace(1, 3, 10)
    noise = 1 + 1e-3 * np.random.default_rng(1).normal(size=10)
    ratio = paired_ratio(0.98 * drift * noise, drift)
    assert ratio.p < 1e-6 and ratio.high < 0.99
    assert two_sample_t(0.98 * drift * noise, drift).p > 0.5


def test_two_sample_t_and_cohens_d_by_hand():
    # means 2 and 4, variances 1 and 1, pooled sd 1: d = -2, t = -2 / sqrt(2/3)
    test = two_sample_t([1, 2, 3], [3, 4, 5])
    assert test.d == pytest.approx(-2)
    assert test.t == pytest.approx(-2 / math.sqrt(2 / 3))
    assert test.p == pytest.approx(stats.ttest_ind([1, 2, 3], [3, 4, 5]).pvalue)


def test_unequal_sizes_pool_by_degrees_of_freedom():
    x, reference = [1.0, 2.0, 3.0, 4.0], [2.0, 6.0]
    pooled = math.sqrt((3 * np.var(x, ddof=1) + 1 * np.var(reference, ddof=1)) / 4)
    assert cohens_d(x, reference) == pytest.approx((2.5 - 4) / pooled)


def test_one_run_gets_a_sentence_and_no_test():
    assert mean_interval([5.0]).low is None
    ratio = paired_ratio([2.0], [4.0])
    assert ratio.ratio == pytest.approx(0.5) and ratio.p is None and "one run" in ratio.note
    test = two_sample_t([2.0], [4.0])
    assert test.p is None and test.d is None and "one run" in test.note


@pytest.mark.parametrize("x", [[7.0, 7.0, 7.0], [14.0, 14.0, 14.0], [0.1 + 0.2, 0.3, 0.3]])
def test_identical_values_get_a_sentence_and_no_test(x):
    reference = [7.0, 7.0, 7.0] if x[0] > 1 else [0.3, 0.3, 0.3]
    ratio = paired_ratio(x, reference)
    assert ratio.p is None and ratio.low is None and "same in every run" in ratio.note
    test = two_sample_t(x, reference)
    assert test.p is None and test.t is None and "no spread" in test.note
    assert cohens_d(x, reference) is None


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [[1.0], [2.0]], [1.0, math.inf]])
def test_values_that_cannot_be_tested_are_refused(bad):
    for function in (mean_interval, lambda x: paired_ratio(x, x), lambda x: two_sample_t(x, x)):
        with pytest.raises(ValueError, match=r"finite|non-empty"):
            function(bad)


def test_pairs_and_signs_are_checked():
    with pytest.raises(ValueError, match="2 and 3 values"):
        paired_ratio([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="positive"):
        paired_ratio([1.0, 0.0], [1.0, 2.0])


# --- exact tests -------------------------------------------------------------------------------


def flips_at_least_as_far(statistic, observed, n):
    """Share of the 2^n sign patterns whose statistic lies as far from 0, by counting them."""
    patterns = list(itertools.product([-1, 1], repeat=n))
    return sum(abs(statistic(p)) >= abs(observed) - 1e-9 for p in patterns) / len(patterns)


@pytest.mark.parametrize(
    "d", [[1.5, -0.2, 0.7, 2.1, 0.4], [1, 2, 3, 4, 5, 6], [3, -3, 1, 1, 0, 2], [0.5, -0.1]]
)
def test_the_exact_tests_count_every_sign_pattern(d):
    d = np.array(d, dtype=float)
    assert sign_flip_p(d) == pytest.approx(flips_at_least_as_far(lambda s: s @ d, d.sum(), d.size))


def test_darwins_maize_as_fisher_analysed_it():
    # 1,726 of the 32,768 patterns reach the sum of 314 on either side: p = 0.0527; 15 pairs
    # are beyond the exact count, so 9,999 flips estimate it, with standard error 0.0022
    assert sign_flip_p(DARWIN) == pytest.approx(1726 / 32768, abs=0.007)
    assert sign_flip_p(DARWIN) == sign_flip_p(DARWIN)


@pytest.mark.parametrize("n", [2, 5, 6, 10, 14])
def test_no_exact_p_is_smaller_than_the_smallest(n):
    agreeing = np.arange(1.0, n + 1)
    assert sign_flip_p(agreeing) == pytest.approx(smallest_p(n)) == pytest.approx(2 / 2**n)


def test_fewer_than_six_runs_cannot_reach_five_percent():
    assert smallest_p(5) > ALPHA > smallest_p(6)
    with pytest.raises(ValueError, match="n = 0"):
        smallest_p(0)


@pytest.mark.parametrize("d", [[1.0], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [0.3, 0.1 + 0.2, 0.3]])
def test_exact_tests_without_spread_give_no_p(d):
    assert sign_flip_p(d) is None


# --- paired comparisons ------------------------------------------------------------------------


def test_paired_ratio_reports_the_further_tests_of_its_log_ratios():
    rng = np.random.default_rng(3)
    x, reference = rng.lognormal(0.1, 0.02, 10), rng.lognormal(0, 0.02, 10)
    d = np.log(x) - np.log(reference)
    ratio = paired_ratio(x, reference)
    assert ratio.permutation_p == pytest.approx(sign_flip_p(d))
    assert ratio.effect_size == pytest.approx(np.mean(d) / np.std(d, ddof=1))
    # 10 runs detect 1.00 sd (0.996)
    assert ratio.detectable == pytest.approx(np.exp(0.996 * np.std(d, ddof=1)) - 1, rel=1e-3)


def test_paired_difference_by_hand():
    # differences 1 to 5: mean 3, sd 1.581139, half = 2.776445 * 0.707107 = 1.963243, t = 4.242641
    x, reference = [11.0, 22.0, 33.0, 44.0, 55.0], [10.0, 20.0, 30.0, 40.0, 50.0]
    difference = paired_difference(x, reference)
    assert (difference.mean, difference.n, difference.note) == (3, 5, "")
    bounds = (3 - 1.963243, 3 + 1.963243)
    assert (difference.low, difference.high) == pytest.approx(bounds, abs=1e-5)
    assert difference.p == pytest.approx(stats.ttest_rel(x, reference).pvalue)
    assert difference.permutation_p == pytest.approx(0.0625)
    assert difference.effect_size == pytest.approx(3 / 1.581139, rel=1e-6)
    assert difference.detectable == pytest.approx(1.68 * 1.581139, rel=3e-3)


@pytest.mark.parametrize("compare", [paired_ratio, paired_difference])
def test_swapping_the_arms_keeps_every_p_and_turns_the_effect(compare):
    rng = np.random.default_rng(4)
    x, reference = rng.lognormal(0.1, 0.2, 9), rng.lognormal(0, 0.2, 9)
    forth, back = compare(x, reference), compare(reference, x)
    for name in ("p", "permutation_p", "detectable"):
        assert getattr(forth, name) == pytest.approx(getattr(back, name))
    assert forth.effect_size == pytest.approx(-back.effect_size)


@pytest.mark.parametrize(
    "function",
    [paired_ratio, paired_difference, lambda x, y: non_inferiority(x, y, 0.1), trend],
)
def test_the_order_of_the_pairs_does_not_matter(function):
    rng = np.random.default_rng(5)
    x, reference = rng.lognormal(0.1, 0.2, 9), rng.lognormal(0, 0.2, 9)
    order = rng.permutation(9)
    one, other = function(x, reference), function(x[order], reference[order])
    for a, b in zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True):
        assert a == b if isinstance(a, str) else a == pytest.approx(b)


def test_a_difference_without_spread_gets_a_sentence_and_no_test():
    one = paired_difference([3.5], [3.0])
    assert one.mean == 0.5 and one.p is None and one.note == "one run: no test"
    assert paired_difference([3.5, 3.6], [3.0, 3.2]).detectable is None  # too few for a power
    # 5.02 - 5 and 6.02 - 6 differ by rounding
    constant = paired_difference([5.02, 6.02, 7.02], [5.0, 6.0, 7.0])
    assert constant.note == "the same difference in every run"
    assert constant.mean == pytest.approx(0.02)
    for field in ("low", "high", "p", "permutation_p", "effect_size", "detectable"):
        assert getattr(one, field) is None and getattr(constant, field) is None


def test_few_values_close_together_never_give_nan_or_infinity():
    triples = list(itertools.product([1.0, 1.0 + 2**-52, 1.0 + 1e-9, 3.0], repeat=3))
    rng = np.random.default_rng(6)
    for i, j in rng.integers(len(triples), size=(60, 2)):
        x, y = triples[i], triples[j]
        results = [paired_ratio(x, y), paired_difference(x, y), non_inferiority(x, y, 0.1)]
        results += [trend(x, y), drift(x, ["a", "b", "a"], [0, 1, 2])]
        for result in results:
            for value in [v for v in dataclasses.astuple(result) if isinstance(v, float)]:
                assert math.isfinite(value), (x, y, result)


# --- power -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "effect"), [(5, 1.68), (8, 1.16), (10, 1.00), (20, 0.66), (30, 0.53)]
)
def test_detectable_effect_at_known_sizes(n, effect):
    assert detectable_effect(n) == pytest.approx(effect, abs=0.005)


def test_detectable_effect_at_extremes():
    assert detectable_effect(10, ALPHA / 3) == pytest.approx(1.22, abs=0.005)
    assert detectable_effect(1) is detectable_effect(2) is None
    # with many runs t is normal: (1.959964 + 0.841621) / sqrt(n)
    assert detectable_effect(1000) == pytest.approx(2.801585 / math.sqrt(1000), rel=2e-3)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize(("n", "effect"), [(3, 1.5), (5, 20.0), (10, -0.7), (200, 0.1)])
def test_t_power_agrees_with_an_integral_over_the_sample_sd(n, effect, alternative):
    # given s = sample sd / true sd the mean is normal; sqrt(df) s is chi distributed
    df, shift = n - 1, effect * math.sqrt(n)
    critical = stats.t.isf(ALPHA / (2 if alternative == "two-sided" else 1), df)
    s = stats.chi.ppf((np.arange(200_000) + 0.5) / 200_000, df) / math.sqrt(df)
    above = stats.norm.cdf(shift - critical * s).mean()
    below = stats.norm.cdf(-shift - critical * s).mean()
    expected = {"two-sided": above + below, "greater": above, "less": below}[alternative]
    assert t_power(effect, n, alternative=alternative) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [3, 10, 1000])
def test_power_without_an_effect_is_alpha_and_with_a_huge_one_is_one(n):
    assert t_power(0.0, n, 0.01) == pytest.approx(0.01)
    for effect in (10.0, 1e6, 1e300):
        assert t_power(effect, n) == pytest.approx(1, abs=1e-6) and t_power(effect, n) <= 1
        assert t_power(effect, n, alternative="less") == 0


def test_runs_needed_as_in_the_power_tables():
    # G*Power, one sample or pairs, power 0.8: small, medium and large effects of Cohen 1988
    assert [runs_needed(effect) for effect in (0.2, 0.5, 0.8)] == [199, 34, 15]
    assert runs_needed(0.5, alternative="greater") == 27
    assert runs_needed(0.0) is None and runs_needed(-0.5, alternative="greater") is None
    assert runs_needed(100.0) == 3


def test_impossible_tests_have_no_power():
    with pytest.raises(ValueError, match="n = 2"):
        t_power(1.0, 2)
    with pytest.raises(ValueError, match="both"):
        t_power(1.0, 5, alternative="both")
    with pytest.raises(ValueError, match="alpha must"):
        t_power(1.0, 5, alpha=0.0)
    with pytest.raises(ValueError, match="power must"):
        detectable_effect(5, power=1.0)


# --- non-inferiority and equivalence -----------------------------------------------------------


def with_mean_and_standard_error(mean, error, n):
    z = stats.zscore(np.arange(n) ** 1.5, ddof=1)
    return mean + error * math.sqrt(n) * z


def test_tost_as_r_and_statsmodels_report_it():
    # R's equivalence::tost on 15 pairs of the clinic data, eps 0.6, as kept in statsmodels'
    # tests; a t-test sees the mean, the standard error and n only, so any such sample will do
    e = with_mean_and_standard_error(0.5626666666666665, 0.2478276410785118, 15)
    claim = non_inferiority(e, np.zeros(15), margin=0.6)
    assert (claim.low, claim.high) == pytest.approx((0.1261653305099018, 0.999168002823431))
    assert claim.p_equivalent == pytest.approx(0.4412034046017588)
    assert (claim.verdict, claim.equivalence) == ("undecided", "undecided")


def test_tost_as_pingouin_documents_it():
    a, b = [4, 7, 8, 6, 3, 2], [6, 8, 7, 10, 11, 9]
    claim = non_inferiority(a, b, margin=0.5)
    assert claim.p_equivalent == pytest.approx(0.954854, abs=1e-6)
    assert claim.p_not_worse == pytest.approx(0.019138, abs=1e-6)  # its p of the upper side


# differences 1 to 5: mean 3, standard error 0.707107, t(0.95, 4) = 2.131847, so the 90 % interval
# is 3 ± 1.507443 = [1.492557, 4.507443]
@pytest.mark.parametrize(
    ("sign", "margin", "verdict", "equivalence"),
    [
        (1, 4.51, "not worse", "equivalent"),
        (1, 4.50, "undecided", "undecided"),
        (1, 1.50, "undecided", "undecided"),
        (1, 1.49, "worse", "different"),
        (-1, 1.49, "not worse", "different"),  # better by more than the margin
        (-1, 4.50, "not worse", "undecided"),
        (-1, 4.51, "not worse", "equivalent"),
    ],
)
def test_the_verdicts_follow_from_the_interval(sign, margin, verdict, equivalence):
    claim = non_inferiority(sign * np.arange(1.0, 6), np.zeros(5), margin)
    assert (claim.verdict, claim.equivalence) == (verdict, equivalence)
    ends = sorted((sign * 1.492557, sign * 4.507443))
    assert (claim.low, claim.high) == pytest.approx(ends, abs=1e-5)
    assert claim.upper == claim.high
    assert (claim.p_not_worse < ALPHA) == (verdict == "not worse")
    assert (claim.p_equivalent < ALPHA) == (equivalence == "equivalent")
    assert (claim.runs_needed is not None) == (verdict == "undecided")


@pytest.mark.parametrize("margin", [4.0, 2.2])
def test_the_runs_needed_are_just_enough(margin):
    claim = non_inferiority(np.arange(1.0, 6), np.zeros(5), margin)
    effect = abs(3 - margin) / math.sqrt(2.5)
    for runs, enough in ((claim.runs_needed, True), (claim.runs_needed - 1, False)):
        critical = stats.t.isf(ALPHA, runs - 1)
        assert (stats.nct.sf(critical, runs - 1, effect * math.sqrt(runs)) >= 0.8) == enough


def test_no_number_of_runs_decides_a_mean_at_the_margin():
    claim = non_inferiority([0.0, 1.0, 2.0], np.zeros(3), 1.0)
    assert (claim.verdict, claim.runs_needed) == ("undecided", None)


@pytest.mark.parametrize(
    ("difference", "verdict", "equivalence"),
    [
        (0.0, "not worse", "equivalent"),
        (0.25, "not worse", "equivalent"),
        (0.5, "worse", "different"),
        (0.75, "worse", "different"),
        (-0.75, "not worse", "different"),
    ],
)
def test_a_constant_difference_is_compared_with_the_margin(difference, verdict, equivalence):
    claim = non_inferiority(np.full(4, 2 + difference), np.full(4, 2.0), 0.5)
    assert (claim.verdict, claim.equivalence) == (verdict, equivalence)
    assert claim.note == "the same difference in every run" and claim.mean == difference
    assert claim.p_not_worse is claim.p_equivalent is claim.upper is claim.low is None


def test_one_run_decides_nothing_about_quality():
    claim = non_inferiority([2.0], [3.0], 0.1)
    assert (claim.verdict, claim.equivalence) == ("undecided", "undecided")
    assert claim.note == "one run: no test" and claim.mean == -1
    assert claim.p_not_worse is claim.high is claim.runs_needed is None


@pytest.mark.parametrize("margin", [0.0, -0.1, math.nan, math.inf])
def test_a_margin_must_be_finite_and_positive(margin):
    with pytest.raises(ValueError, match=f"margin.*{margin}"):
        non_inferiority([1.0, 2.0], [1.0, 2.5], margin)


# --- several tests -----------------------------------------------------------------------------


def test_holm_by_hand():
    # sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1 raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1, 1]


def test_tests_not_made_do_not_count():
    assert holm([None, 0.02, None, 0.01]) == [None, pytest.approx(0.02), None, pytest.approx(0.02)]
    assert holm([None]) == [None] and holm([]) == []


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(ValueError, match=r"between 0 and 1|finite"):
        holm([0.5, p])


# --- order, drift, outliers --------------------------------------------------------------------


def test_trend_by_hand():
    # Sxx 10, Sxy 6, residuals' squares 2.4, s^2 = 0.8: slope 0.6 ± 3.182446 sqrt(0.8 / 10) and
    # intercept 2.2 ± 3.182446 sqrt(0.8 (1/5 + 9/10))
    line = trend([1, 2, 3, 4, 5], [2, 4, 5, 4, 5])
    half, intercept_half = 3.182446 * math.sqrt(0.08), 3.182446 * math.sqrt(0.88)
    assert (line.slope, line.intercept, line.n) == (pytest.approx(0.6), pytest.approx(2.2), 5)
    assert (line.low, line.high) == pytest.approx((0.6 - half, 0.6 + half), rel=1e-6)
    bounds = (2.2 - intercept_half, 2.2 + intercept_half)
    assert (line.intercept_low, line.intercept_high) == pytest.approx(bounds, rel=1e-6)


def test_the_intercept_is_the_effect_without_the_position():
    # one place later costs 3 %, the arm itself gains 10 %; the arm came second 4 times of 6
    position = np.array([1, 1, 1, 1, -1, -1])
    noise = 1e-4 * np.array([1, -1, 1, -1, 1, -1])
    line = trend(position, -0.10 + 0.03 * position + noise)
    assert line.slope == pytest.approx(0.03, abs=2e-4)
    assert line.intercept_low < -0.10 < line.intercept_high < -0.0995


def test_a_trend_that_cannot_be_tested_gets_a_sentence():
    two, upright = trend([1, 2], [3, 4]), trend([2, 2, 2], [1, 2, 3])
    assert "fewer than 3" in two.note and "all x are equal" in upright.note
    assert two.slope is upright.slope is upright.intercept is None
    flat, exact = trend([1, 2, 3], [0.3, 0.1 + 0.2, 0.3]), trend([1, 2, 3], [0.1, 0.2, 0.3])
    assert flat.slope == 0 and flat.intercept == pytest.approx(0.3) and "no spread" in flat.note
    assert exact.slope == pytest.approx(0.1) and "lies on the line" in exact.note
    for line in (two, upright, flat, exact):
        assert line.low is line.high is line.intercept_low is line.intercept_high is None


def test_residuals_are_the_logs_less_their_arms_mean():
    logs = np.random.default_rng(7).normal(size=(4, 3))  # (blocks, arms)
    left = residuals(np.exp(logs).ravel(), np.tile(["a", "b", "c"], 4))
    np.testing.assert_allclose(left, (logs - logs.mean(axis=0)).ravel(), atol=1e-12)
    arms = np.array(list("abcabab"))  # two trainings are missing
    left = residuals([1.0, 2.0, 4.0, 1.5, 2.2, 1.1, 3.0], arms)
    assert np.abs(left).max() > 0.01
    for arm in "abc":
        assert left[arms == arm].sum() == pytest.approx(0, abs=1e-12)


def test_drift_is_seen_between_blocks_and_not_taken_for_an_arm():
    # every training takes 1 % longer than the one before; b takes twice as long as a
    arms, launch = list("abba"), np.arange(4)
    times = np.exp(0.01 * launch) * [1, 2, 2, 1]
    found = drift(times, arms, launch)
    assert found.trend.slope == pytest.approx(0.01) and "lies on the line" in found.trend.note
    # of 4! orders two are perfect
    assert found.rho == pytest.approx(1) and found.rho_p == pytest.approx(2 / 24)


def test_spearmans_rho_by_hand():
    # ranks of the residuals 1 3 2 5 4 against 1 to 5: rho = 1 - 6 * 4 / (5 * 24) = 0.8
    found = drift(np.exp([0.1, 0.3, 0.2, 0.5, 0.4]), ["a"] * 5, range(5))
    assert found.rho == pytest.approx(0.8)
    assert found.rho_p == pytest.approx(0.104088, abs=1e-6)  # t(3) = 0.8 sqrt(3 / 0.36) = 2.3094


@pytest.mark.parametrize(
    ("values", "arms", "launch"),
    [([3.0, 7.0] * 3, list("ab") * 3, range(6)), ([1.0, 2.0], list("aa"), [0, 1])],
)
def test_no_drift_is_tested_without_spread_or_with_two_trainings(values, arms, launch):
    found = drift(values, arms, launch)
    assert found.rho is found.rho_p is found.trend.low is None and found.trend.note


def test_labels_must_match_the_values():
    with pytest.raises(ValueError, match="each of the 2 values"):
        residuals([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="positive"):
        residuals([1.0, 0.0], ["a", "b"])
    with pytest.raises(ValueError, match="2 and 3 values"):
        trend([1, 2], [1, 2, 3])


def test_outliers_lie_beyond_tukeys_fences():
    # quartiles 3 and 7, fences 3 - 6 and 7 + 6
    assert outlying([1, 2, 3, 4, 5, 6, 7, 8, 13.1]).tolist() == [False] * 8 + [True]
    assert not outlying([1, 2, 3, 4, 5, 6, 7, 8, 13]).any()
    assert outlying([-3.1, 2, 3, 4, 5, 6, 7, 8, 9]).tolist() == [True] + [False] * 8
    assert not outlying([1, 1, 1, 100]).any()  # too few
    assert not outlying([0.3, 0.3, 0.3, 0.3, 0.1 + 0.2]).any()  # rounding is no outlier
    assert outlying([0.3, 0.3, 0.3, 0.3, 0.4]).tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [[1.0], [2.0]], [1.0, math.inf]])
def test_the_further_functions_refuse_values_that_cannot_be_tested(bad):
    functions = [sign_flip_p, outlying]
    functions += [lambda x: paired_difference(x, x), lambda x: non_inferiority(x, x, 0.1)]
    functions += [lambda x: trend(x, x), lambda x: residuals(x, ["a", "b"])]
    functions += [lambda x: drift([1.0, 2.0], ["a", "b"], x)]
    for function in functions:
        with pytest.raises(ValueError, match=r"finite|non-empty"):
            function(bad)


# --- error rates and coverage by simulation ----------------------------------------------------
# Of 2,000 experiments a rate of 5 % has a standard error of 0.5 %: 3.5 to 6.5 % are ± 3 of them.


def share(flags):
    return np.mean(list(flags))


@pytest.fixture(scope="module")
def null_ratios():
    """Experiments of 8 runs, true ratio 1, with noise that a pair shares and noise that it doesn't.

    8 and not 10 runs because the exact test then costs a quarter.
    """
    rng = np.random.default_rng(8)
    shared = rng.normal(0, 0.05, (EXPERIMENTS, 8))
    noise = rng.normal(0, 0.01, (2, EXPERIMENTS, 8))
    return [paired_ratio(x, y) for x, y in zip(*np.exp(shared + noise), strict=True)]


@pytest.mark.parametrize("p", ["p", "permutation_p"])
def test_false_positives_of_a_paired_comparison(null_ratios, p):
    assert 0.035 < share(getattr(ratio, p) < ALPHA for ratio in null_ratios) < 0.065


def test_coverage_of_the_ratios_interval(null_ratios):
    assert 0.93 < share(ratio.low < 1 < ratio.high for ratio in null_ratios) < 0.97


def test_coverage_of_the_differences_and_the_means_interval():
    rng = np.random.default_rng(9)
    x, y = rng.normal([[[3.2]], [[3.0]]], 0.05, (2, EXPERIMENTS, 4))
    differences = [paired_difference(a, b) for a, b in zip(x, y, strict=True)]
    assert 0.93 < share(d.low < 0.2 < d.high for d in differences) < 0.97
    means = [mean_interval(a) for a in x]
    assert 0.93 < share(mean.low < 3.2 < mean.high for mean in means) < 0.97


def test_coverage_of_the_trend():
    rng = np.random.default_rng(10)
    x = np.array([1.0, 1, 1, -1, -1, -1, 1, -1, 1, 1])
    ys = 0.2 + 0.1 * x + rng.normal(0, 0.3, (EXPERIMENTS, 10))
    lines = [trend(x, y) for y in ys]
    assert 0.93 < share(line.low < 0.1 < line.high for line in lines) < 0.97
    covered = share(line.intercept_low < 0.2 < line.intercept_high for line in lines)
    assert 0.93 < covered < 0.97


def test_coverage_of_drift():
    rng = np.random.default_rng(16)
    arms = np.array([rng.permutation(["a", "b", "c"]) for _ in range(10)]).ravel()
    logs = 0.002 * np.arange(30) + 0.5 * (arms == "a") + rng.normal(0, 0.01, (EXPERIMENTS // 2, 30))
    found = [drift(x, arms, range(30)).trend for x in np.exp(logs)]
    assert 0.93 < share(line.low < 0.002 < line.high for line in found) < 0.97


def test_wrong_quality_claims_at_the_margin():
    rng = np.random.default_rng(11)
    at_margin = rng.normal(0.02, 0.01, (EXPERIMENTS, 10))
    claims = [non_inferiority(e, np.zeros(10), 0.02) for e in at_margin]
    assert 0.035 < share(claim.verdict == "not worse" for claim in claims) < 0.06
    assert 0.035 < share(claim.equivalence == "equivalent" for claim in claims) < 0.06
    assert 0.035 < share(claim.verdict == "worse" for claim in claims) < 0.065


def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(12)
    p = stats.ttest_1samp(rng.normal(size=(EXPERIMENTS, 9, 10)), 0.0, axis=-1).pvalue
    assert share(p.min(axis=1) < ALPHA) > 0.3  # unadjusted
    assert 0.035 < share(min(holm(family)) < ALPHA for family in p) < 0.065


def test_the_detectable_effect_is_detected_four_times_of_five():
    rng = np.random.default_rng(13)
    d = rng.normal(detectable_effect(10), 1, (EXPERIMENTS, 10))
    assert 0.77 < share(stats.ttest_1samp(d, 0.0, axis=-1).pvalue < ALPHA) < 0.83

"""The statistics against hand-worked and published numbers, brute force and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from analysis import significance
from analysis.significance import (
    ALPHA,
    blocks_needed,
    detectable_effect,
    drift,
    holm,
    largest_share,
    log_interval,
    mean_interval,
    non_inferiority,
    paired_ratio,
    sign_flip_p,
    slope,
    t_power,
    two_sample_t,
)

# Darwin's maize, differences of 15 pairs in eighths of an inch (Fisher 1935, The Design of
# Experiments, chapter 3)
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def test_mean_interval_of_a_textbook_sample():
    interval = mean_interval([1, 2, 3, 4, 5])
    # mean 3, s = sqrt(2.5), t(0.975, 4) = 2.776445: 3 ± 2.776445 * 1.581139 / sqrt(5)
    assert interval.mean == 3 and interval.n == 5
    assert (interval.low, interval.high) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-5)


def test_paired_ratio_equals_the_paired_t_test_on_logs():
    rng = np.random.default_rng(0)
    x, reference = rng.lognormal(0.1, 0.2, 10), rng.lognormal(0, 0.2, 10)
    expected = stats.ttest_rel(np.log(x), np.log(reference))
    ratio, d = paired_ratio(x, reference), np.log(x / reference)
    assert ratio.ratio == pytest.approx(stats.gmean(x) / stats.gmean(reference))
    assert ratio.p == pytest.approx(expected.pvalue)
    bounds = np.exp(expected.confidence_interval(0.95))
    assert (ratio.low, ratio.high) == pytest.approx(tuple(bounds))
    assert ratio.permutation_p == sign_flip_p(d)
    assert ratio.effect_size == pytest.approx(np.mean(d) / np.std(d, ddof=1))
    # 10 blocks detect 1.00 sd (0.996)
    assert ratio.detectable == pytest.approx(np.exp(0.996 * np.std(d, ddof=1)) - 1, rel=1e-3)


def test_two_sample_t_and_cohens_d_by_hand():
    # means 2 and 4, variances 1 and 1, pooled sd 1: d = -2, t = -2 / sqrt(2/3)
    test = two_sample_t([1, 2, 3], [3, 4, 5])
    assert test["d"] == pytest.approx(-2)
    assert test["t"] == pytest.approx(-2 / math.sqrt(2 / 3))
    assert test["p"] == pytest.approx(stats.ttest_ind([1, 2, 3], [3, 4, 5]).pvalue)


def test_one_block_gets_a_sentence_and_no_test():
    assert mean_interval([5.0]).low is None
    ratio = paired_ratio([2.0], [4.0])
    assert ratio.ratio == pytest.approx(0.5) and ratio.p is ratio.low is None
    assert ratio.note == "one block: no test"
    assert two_sample_t([2.0], [4.0]) == {"t": None, "p": None, "d": None}
    claim = non_inferiority([2.0], [3.0], 0.1)
    assert (claim.verdict, claim.equivalence) == ("undecided", "undecided")
    assert claim.note == "one block: no test" and claim.mean == -1
    assert claim.p_not_worse is claim.high is claim.runs_needed is None


@pytest.mark.parametrize("x", [[7.0, 7.0, 7.0], [14.0, 14.0, 14.0], [0.1 + 0.2, 0.3, 0.3]])
def test_identical_values_get_a_sentence_and_no_test(x):
    reference = [7.0, 7.0, 7.0] if x[0] > 1 else [0.3, 0.3, 0.3]
    ratio = paired_ratio(x, reference)
    assert ratio.p is ratio.low is None and ratio.note == "same in every block"
    assert two_sample_t(x, reference)["p"] is None


@pytest.mark.parametrize("seed", range(20))
def test_what_float32_rounds_is_no_difference(seed):
    rng = np.random.default_rng(seed)
    exact = rng.uniform(1, 9, 6)
    reference = exact.astype(np.float32)
    x = np.nextafter(reference, rng.choice([0, 10], 6).astype(np.float32))
    assert (x != reference).all()
    ratio = paired_ratio(x, reference)
    assert ratio.p is ratio.low is ratio.permutation_p is None
    claim = non_inferiority(x, reference, 0.02)
    assert claim.p_not_worse is None and claim.verdict == "not worse"
    assert paired_ratio(x * (1 + 1e-5 * rng.normal(size=6)), reference).p is not None


@pytest.mark.parametrize("seed", range(20))
def test_an_interval_of_positive_values_is_positive_or_missing(seed):
    rng = np.random.default_rng(seed)
    values = rng.lognormal(2, rng.uniform(0.1, 2), int(rng.integers(2, 6)))
    interval = log_interval(values)
    low, high = np.exp(stats.ttest_1samp(np.log(values), 0).confidence_interval(0.95))
    assert interval.mean == pytest.approx(stats.gmean(values))
    if high / low > 10:
        assert interval.low is interval.high is None
    else:
        assert (interval.low, interval.high) == pytest.approx((low, high))
    ratio = paired_ratio(values, np.ones_like(values))
    assert (ratio.low, ratio.high) == (interval.low, interval.high)
    assert ratio.note == ("too few blocks: no interval" if high / low > 10 else "")
    assert ratio.p == pytest.approx(stats.ttest_1samp(np.log(values), 0).pvalue)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [[1.0], [2.0]], [1.0, math.inf]])
def test_values_that_cannot_be_tested_are_refused(bad):
    for function in (mean_interval, lambda x: paired_ratio(x, x), lambda x: two_sample_t(x, x)):
        with pytest.raises(ValueError, match="a non-empty list of finite numbers"):
            function(bad)


def test_a_ratio_needs_positive_values():
    with pytest.raises(ValueError, match="positive"):
        paired_ratio([1.0, 0.0], [1.0, 2.0])


def test_few_values_close_together_never_give_nan_or_infinity():
    triples = list(itertools.product([1.0, 1.0 + 2**-52, 1.0 + 1e-9, 3.0], repeat=3))
    rng = np.random.default_rng(6)
    for i, j in rng.integers(len(triples), size=(60, 2)):
        x, y = triples[i], triples[j]
        for result in (paired_ratio(x, y), non_inferiority(x, y, 0.1)):
            for value in [v for v in result if isinstance(v, float)]:
                assert math.isfinite(value), (x, y, result)


@pytest.mark.parametrize(
    "d", [[1.5, -0.2, 0.7, 2.1, 0.4], [1, 2, 3, 4, 5, 6], [3, -3, 1, 1, 0, 2], [0.5, -0.1]]
)
def test_the_sign_flip_test_counts_every_sign_pattern(d):
    d = np.array(d, dtype=float)
    patterns = np.array(list(itertools.product([-1, 1], repeat=d.size)))
    as_far = np.abs(patterns @ d) >= abs(d.sum()) - 1e-9
    assert sign_flip_p(d) == pytest.approx(as_far.mean())


def test_darwins_maize_as_fisher_analysed_it():
    # 1,726 of the 32,768 patterns reach the sum of 314 on either side: p = 0.0527; 15 pairs
    # are beyond the exact count, so 16,384 flips estimate it, with standard error 0.0017
    assert sign_flip_p(DARWIN) == pytest.approx(1726 / 32768, abs=0.006)
    assert sign_flip_p(DARWIN) == sign_flip_p(DARWIN)


@pytest.mark.parametrize("n", [2, 6, 14])
def test_the_smallest_exact_p(n):
    assert sign_flip_p(np.arange(1.0, n + 1)) == pytest.approx(2 / 2**n)


def test_tost_as_r_and_statsmodels_report_it():
    # R's equivalence::tost on 15 pairs of the clinic data, eps 0.6, as kept in statsmodels'
    # tests; a t-test sees the mean, the standard error and n only, so any such sample will do
    z = stats.zscore(np.arange(15) ** 1.5, ddof=1)
    e = 0.5626666666666665 + 0.2478276410785118 * math.sqrt(15) * z
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
    assert (claim.p_not_worse < ALPHA) == (verdict == "not worse")
    assert (claim.p_equivalent < ALPHA) == (equivalence == "equivalent")
    assert (claim.runs_needed is not None) == (verdict == "undecided")


@pytest.mark.parametrize(
    ("difference", "verdict", "equivalence"),
    [
        (0.0, "not worse", "equivalent"),
        (0.25, "not worse", "equivalent"),
        (0.75, "worse", "different"),
        (-0.75, "not worse", "different"),
    ],
)
def test_a_constant_difference_is_compared_with_the_margin(difference, verdict, equivalence):
    claim = non_inferiority(np.full(4, 2 + difference), np.full(4, 2.0), 0.5)
    assert (claim.verdict, claim.equivalence) == (verdict, equivalence)
    assert claim.note == "the same difference in every block" and claim.mean == difference
    assert claim.p_not_worse is claim.p_equivalent is claim.low is claim.high is None


def test_holm_by_hand():
    # sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1 raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1, 1]


def test_tests_not_made_do_not_count():
    assert holm([None, 0.02, None, 0.01]) == [None, pytest.approx(0.02), None, pytest.approx(0.02)]
    assert holm([None]) == [None] and holm([]) == []


def share(flags):
    return np.mean(list(flags))


def test_error_rates_and_coverage_of_a_paired_comparison():
    """True ratio 1, with noise that a pair shares and noise that it doesn't.

    Of 400 experiments a rate of 5 % has a standard error of 1.1 %: the limits are ± 3 of them.
    """
    rng = np.random.default_rng(8)
    shared, noise = rng.normal(0, 0.05, (400, 7)), rng.normal(0, 0.01, (2, 400, 7))
    ratios = [paired_ratio(x, y) for x, y in zip(*np.exp(shared + noise), strict=True)]
    for p in ("p", "permutation_p"):
        assert 0.017 < share(getattr(ratio, p) < ALPHA for ratio in ratios) < 0.083
    assert 0.917 < share(ratio.low < 1 < ratio.high for ratio in ratios) < 0.983


def test_wrong_quality_claims_at_the_margin(monkeypatch):
    monkeypatch.setattr(significance, "blocks_needed", lambda effect: None)  # slow
    at_margin = np.random.default_rng(11).normal(0.02, 0.01, (400, 10))
    claims = [non_inferiority(e, np.zeros(10), 0.02) for e in at_margin]
    for answer in ("not worse", "worse"):
        assert 0.017 < share(claim.verdict == answer for claim in claims) < 0.083
    assert 0.017 < share(claim.equivalence == "equivalent" for claim in claims) < 0.083


def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(12)
    p = stats.ttest_1samp(rng.normal(size=(2000, 9, 10)), 0.0, axis=-1).pvalue
    assert share(p.min(axis=1) < ALPHA) > 0.3  # unadjusted
    assert 0.035 < share(min(holm(family)) < ALPHA for family in p) < 0.065


def test_the_detectable_effect_at_known_sizes_and_extremes():
    known = [detectable_effect(blocks) for blocks in (5, 8, 10, 20, 30)]
    assert known == pytest.approx([1.68, 1.16, 1.00, 0.66, 0.53], abs=0.005)
    assert detectable_effect(1) is detectable_effect(2) is None
    assert t_power(detectable_effect(3), 3, ALPHA / 2) == pytest.approx(0.8)
    # with many blocks t is normal: (1.959964 + 0.841621) / sqrt(n)
    assert detectable_effect(1000) == pytest.approx(2.801585 / math.sqrt(1000), rel=2e-3)


@pytest.mark.parametrize("alpha", [ALPHA, ALPHA / 2])
@pytest.mark.parametrize(("n", "effect"), [(3, 1.5), (5, 20.0), (10, 0.7), (200, 0.1), (10, 0.0)])
def test_t_power_agrees_with_an_integral_over_the_sample_sd(n, effect, alpha):
    # given s = sample sd / true sd the mean is normal; sqrt(df) s is chi distributed
    df, shift = n - 1, effect * math.sqrt(n)
    critical = stats.t.isf(alpha, df)
    s = stats.chi.ppf((np.arange(20_000) + 0.5) / 20_000, df) / math.sqrt(df)
    expected = stats.norm.cdf(shift - critical * s).mean()
    assert t_power(effect, n, alpha) == pytest.approx(expected, abs=1e-5)


def test_blocks_needed_as_in_the_power_tables():
    # G*Power, one sample or pairs, one-sided, power 0.8, a medium and a large effect of Cohen 1988
    assert [blocks_needed(effect) for effect in (0.5, 0.8)] == [27, 12]
    assert blocks_needed(0.0) is None and blocks_needed(100.0) == 3


def test_slope_by_hand():
    # Sxx 10, Sxy 6, residuals' squares 2.4, s^2 = 0.8: slope 0.6 ± 3.182446 sqrt(0.8 / 10)
    found, half = slope([1, 2, 3, 4, 5], [2, 4, 5, 4, 5]), 3.182446 * math.sqrt(0.08)
    assert found.mean == pytest.approx(0.6) and found.n == 5
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half), rel=1e-6)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([], []),
        ([1, 2], [3, 4]),
        ([2, 2, 2], [1, 2, 3]),
        ([1, 2, 3], [0.3, 0.1 + 0.2, 0.3]),
        ([1, 2, 3], [0.1, 0.2, 0.3]),
    ],
)
def test_few_points_equal_x_and_points_on_a_line_get_no_interval(x, y):
    assert slope(x, y) is None


def test_drift_is_seen_between_blocks_and_not_taken_for_an_arm():
    # every training takes 1 % longer than the one before; b takes twice as long as a
    noise = 1 + 1e-5 * np.array([1, -1, 2, 1])
    found = drift(np.exp(0.01 * np.arange(4)) * [1, 2, 2, 1] * noise, list("abba"), np.arange(4))
    assert found.low < 0.01 < found.high < 0.0103


def test_no_drift_is_tested_without_spread_or_of_values_that_are_no_times():
    assert drift([3.0, 7.0] * 3, list("ab") * 3, range(6)) is None
    with pytest.raises(ValueError, match="finite"):
        drift([1.0, math.nan], ["a", "b"], [0, 1])


def test_coverage_of_slope_and_drift():
    """Of 400 experiments a rate of 95 % has a standard error of 1.1 %: the limits are ± 3."""
    rng, true = np.random.default_rng(16), 0.002
    arms = np.array([rng.permutation(["a", "b", "c"]) for _ in range(10)]).ravel()
    logs = true * np.arange(30) + 0.5 * (arms == "a") + rng.normal(0, 0.01, (400, 30))
    drifts = [drift(seconds, arms, range(30)) for seconds in np.exp(logs)]
    assert 0.917 < share(found.low < true < found.high for found in drifts) < 0.983
    # an arm more often late: 2 blocks, of which the second was stopped
    logs = true * np.arange(5) + [0, 0.5, 1, 0.5, 0] + rng.normal(0, 0.01, (400, 5))
    drifts = [drift(seconds, list("abcba"), range(5)) for seconds in np.exp(logs)]
    assert 0.917 < share(found.low < true < found.high for found in drifts) < 0.983
    x = np.array([1.0, 1, 1, -1, -1, -1, 1, -1, 1, 1])
    slopes = [slope(x, 0.2 + 0.1 * x + rng.normal(0, 0.3, 10)) for _ in range(400)]
    assert 0.917 < share(found.low < 0.1 < found.high for found in slopes) < 0.983


def test_two_blocks_decide_nothing_about_quality():
    found = non_inferiority([1.0, 1.001], [1.1, 1.1], 0.02)
    assert (found.verdict, found.equivalence) == ("undecided", "undecided")
    assert found.high < 0.02 and found.runs_needed == 3  # a third such block would


@pytest.mark.parametrize(("found", "blocks"), [(0, 3), (0, 5), (1, 5), (4, 10)])
def test_the_largest_share_makes_so_few_blocks_as_rare_as_the_level_says(found, blocks):
    share = largest_share(found, blocks)
    assert stats.binom.cdf(found, blocks, share) == pytest.approx(0.05)
    assert largest_share(blocks, blocks) == 1

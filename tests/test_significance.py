"""The statistics against hand-worked numbers and against scipy used another way."""

import math

import numpy as np
import pytest
from scipy import stats

from significance import cohens_d, mean_interval, paired_ratio, two_sample_t


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

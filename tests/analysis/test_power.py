"""Power against tables, an integral and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.significance import ALPHA, blocks_needed, detectable_effect, t_power


@pytest.mark.parametrize(
    ("blocks", "effect"), [(5, 1.68), (8, 1.16), (10, 1.00), (20, 0.66), (30, 0.53)]
)
def test_detectable_effect_at_known_sizes(blocks, effect):
    assert detectable_effect(blocks) == pytest.approx(effect, abs=0.005)


def test_detectable_effect_at_extremes():
    assert detectable_effect(1) is detectable_effect(2) is None
    assert t_power(detectable_effect(3), 3) == pytest.approx(0.8)
    # with many blocks t is normal: (1.959964 + 0.841621) / sqrt(n)
    assert detectable_effect(1000) == pytest.approx(2.801585 / math.sqrt(1000), rel=2e-3)


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize(("n", "effect"), [(3, 1.5), (5, 20.0), (10, 0.7), (200, 0.1), (10, 0.0)])
def test_t_power_agrees_with_an_integral_over_the_sample_sd(n, effect, sides):
    # given s = sample sd / true sd the mean is normal; sqrt(df) s is chi distributed
    df, shift = n - 1, effect * math.sqrt(n)
    critical = stats.t.isf(ALPHA / sides, df)
    s = stats.chi.ppf((np.arange(20_000) + 0.5) / 20_000, df) / math.sqrt(df)
    expected = stats.norm.cdf(shift - critical * s).mean()
    if sides == 2:
        expected += stats.norm.cdf(-shift - critical * s).mean()
    assert t_power(effect, n, sides) == pytest.approx(expected, abs=1e-5)


def test_blocks_needed_as_in_the_power_tables():
    # G*Power, one sample or pairs, one-sided, power 0.8, a medium and a large effect of Cohen 1988
    assert [blocks_needed(effect) for effect in (0.5, 0.8)] == [27, 12]
    assert blocks_needed(0.0) is None and blocks_needed(100.0) == 3


def test_the_detectable_effect_is_detected_four_times_of_five():
    d = np.random.default_rng(13).normal(detectable_effect(10), 1, (2000, 10))
    assert 0.77 < np.mean(stats.ttest_1samp(d, 0.0, axis=-1).pvalue < ALPHA) < 0.83

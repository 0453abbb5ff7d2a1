"""Position and drift: trends against hand-worked numbers and simulation."""

import math

import numpy as np
import pytest

from analysis.significance import drift, trend


def test_trend_by_hand():
    # Sxx 10, Sxy 6, residuals' squares 2.4, s^2 = 0.8: slope 0.6 ± 3.182446 sqrt(0.8 / 10) and
    # intercept 2.2 ± 3.182446 sqrt(0.8 (1/5 + 9/10))
    line = trend([1, 2, 3, 4, 5], [2, 4, 5, 4, 5])
    half, intercept_half = 3.182446 * math.sqrt(0.08), 3.182446 * math.sqrt(0.88)
    for found, center, reach in ((line.slope, 0.6, half), (line.intercept, 2.2, intercept_half)):
        assert found.mean == pytest.approx(center) and found.n == 5
        assert (found.low, found.high) == pytest.approx((center - reach, center + reach), rel=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "note"),
    [
        ([], [], "fewer than 3"),
        ([1, 2], [3, 4], "fewer than 3"),
        ([2, 2, 2], [1, 2, 3], "all x are equal"),
        ([1, 2, 3], [0.3, 0.1 + 0.2, 0.3], "no spread"),
        ([1, 2, 3], [0.1, 0.2, 0.3], "no spread"),
    ],
)
def test_a_trend_that_cannot_be_tested_gets_a_sentence(x, y, note):
    line = trend(x, y)
    assert note in line.note and line.slope is line.intercept is None


def test_drift_is_seen_between_blocks_and_not_taken_for_an_arm():
    # every training takes 1 % longer than the one before; b takes twice as long as a
    noise = 1 + 1e-5 * np.array([1, -1, 2, 1])
    found = drift(np.exp(0.01 * np.arange(4)) * [1, 2, 2, 1] * noise, list("abba"), np.arange(4))
    assert found.slope.low < 0.01 < found.slope.high < 0.0103


def test_no_drift_is_tested_without_spread_or_of_values_that_are_no_times():
    assert "no spread" in drift([3.0, 7.0] * 3, list("ab") * 3, range(6)).note
    with pytest.raises(ValueError, match="finite"):
        drift([1.0, math.nan], ["a", "b"], [0, 1])


def test_coverage_of_position_and_drift():
    """Of 400 experiments a rate of 95 % has a standard error of 1.1 %: the limits are ± 3."""
    rng, true = np.random.default_rng(16), 0.002
    arms = np.array([rng.permutation(["a", "b", "c"]) for _ in range(10)]).ravel()
    logs = true * np.arange(30) + 0.5 * (arms == "a") + rng.normal(0, 0.01, (400, 30))
    slopes = [drift(seconds, arms, range(30)).slope for seconds in np.exp(logs)]
    assert 0.917 < np.mean([slope.low < true < slope.high for slope in slopes]) < 0.983
    x = np.array([1.0, 1, 1, -1, -1, -1, 1, -1, 1, 1])
    lines = [trend(x, 0.2 + 0.1 * x + rng.normal(0, 0.3, 10)) for _ in range(400)]
    assert 0.917 < np.mean([line.slope.low < 0.1 < line.slope.high for line in lines]) < 0.983
    covered = [line.intercept.low < 0.2 < line.intercept.high for line in lines]
    assert 0.917 < np.mean(covered) < 0.983

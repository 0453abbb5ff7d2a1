"""The statistics of the comparison: pure functions over arrays, scipy underneath, no printing.

A block is one run: every arm trained once from the same seed, adjacent in time.  Arrays hold one
value per block, in the same order for every arm, so arms can be compared pair by pair.  Where a
test makes no sense (one run, no spread) the fields that would need it are None and ``note`` says
why in a sentence; nothing here returns NaN or p = 0 for want of data.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA = 0.05
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; ``low`` and ``high`` are None when n < 2."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of x / reference over blocks, its interval and the paired t-test."""

    ratio: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    note: str = ""


@dataclass(frozen=True)
class TwoSample:
    """Student's two-sample t-test and Cohen's d, as the published experiment reports them."""

    t: float | None
    p: float | None
    d: float | None
    note: str = ""


def _array(values):
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected a non-empty list of numbers, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite: leave diverged runs out before testing")
    return values


def _no_spread(values, scale=None):
    """True when the values differ by rounding alone (so a t-test would divide by nothing)."""
    scale = np.abs(values).max() if scale is None else scale
    return float(np.ptp(values)) <= 1e-12 * max(scale, 1e-300)


def mean_interval(values, level=LEVEL):
    """Mean and its t interval, ``mean ± t(n - 1) s / sqrt(n)`` (normal data; Student 1908)."""
    x = _array(values)
    mean = float(x.mean())
    if x.size < 2:
        return Interval(mean, None, None, 1)
    half = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, x.size)


def paired_ratio(x, reference, level=LEVEL):
    """Ratio x / reference, block by block: paired t-test and interval on log ratios.

    The logs make the ratio symmetric (a/b and b/a agree) and its interval positive; pairing
    removes whatever a block's two trainings share.  Assumes positive values and roughly normal
    log ratios.
    """
    x, reference = _array(x), _array(reference)
    if x.shape != reference.shape:
        raise ValueError(f"pairs needed, got {x.size} and {reference.size} values")
    if (x <= 0).any() or (reference <= 0).any():
        raise ValueError("a ratio needs positive values")
    log_ratio = np.log(x / reference)
    ratio = float(np.exp(log_ratio.mean()))
    if x.size < 2:
        return Ratio(ratio, None, None, None, 1, "one run: no test")
    if _no_spread(log_ratio, scale=1.0):
        return Ratio(ratio, None, None, None, x.size, "same in every run")
    test = stats.ttest_1samp(log_ratio, 0.0)
    interval = test.confidence_interval(level)
    low, high = math.exp(interval.low), math.exp(interval.high)
    return Ratio(ratio, low, high, float(test.pvalue), x.size)


def two_sample_t(x, reference):
    """Student's two-sample t-test with equal variances, and Cohen's d (pooled sd; Cohen 1988).

    The published experiment's test.  It ignores the pairing, so it is the weaker one here.
    """
    x, reference = _array(x), _array(reference)
    if min(x.size, reference.size) < 2:
        return TwoSample(None, None, None, "one run: no test")
    if _no_spread(x) and _no_spread(reference):
        return TwoSample(None, None, None, "no spread between the runs: no test")
    test = stats.ttest_ind_from_stats(
        *(x.mean(), x.std(ddof=1), x.size),
        *(reference.mean(), reference.std(ddof=1), reference.size),
    )
    return TwoSample(float(test.statistic), float(test.pvalue), cohens_d(x, reference))


def cohens_d(x, reference):
    """Difference of the means in pooled standard deviations (Cohen 1988), None without spread."""
    x, reference = _array(x), _array(reference)
    if min(x.size, reference.size) < 2:
        return None
    squares = (x.size - 1) * x.var(ddof=1) + (reference.size - 1) * reference.var(ddof=1)
    pooled = math.sqrt(squares / (x.size + reference.size - 2))
    if pooled <= 1e-12 * max(abs(x.mean()), abs(reference.mean())):
        return None
    return float((x.mean() - reference.mean()) / pooled)

"""The statistics of the comparison: pure functions over arrays, scipy underneath, no printing.

Arrays hold one value per block, in the same order for every arm, so that arms can be compared pair
by pair.  Where a test makes no sense (one block, no spread) the fields that would need it are None
and ``note`` says why in a sentence; nothing here returns NaN or p = 0 for want of data.  A
ValueError says what is wrong with arrays that cannot be compared.
"""

import math
from bisect import bisect_left
from functools import cache
from typing import NamedTuple

import numpy as np
import scipy

ALPHA, LEVEL, POWER = 0.05, 0.95, 0.8
FEWEST_BLOCKS = 3  # with fewer nothing is decided
MOST_BLOCKS = 10_000  # to ask for more is no advice
MOST_FLIPS = 2**14  # of the sign-flip test, which is exact up to 14 blocks
# Relative size below which a difference is rounding and no spread: losses come in float32, which
# rounds by 6e-8, and through a few operations.
ROUNDING = 5e-7
WIDEST = 10  # an interval from a third to three times the estimate says nothing
ONE_BLOCK, TOO_WIDE = "one block: no test", "too few blocks: no interval"


class Interval(NamedTuple):
    """An estimate with its interval; ``low`` and ``high`` are None where there is none."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Ratio(NamedTuple):
    """The geometric mean of x / reference over blocks, its interval and the paired t-test."""

    ratio: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    n: int = 1
    note: str = ""
    permutation_p: float | None = None  # exact sign-flip test of the log ratios
    effect_size: float | None = None  # d_z: mean / sd of the log ratios (Cohen 1988)
    detectable: float | None = None  # share: 0.012 is 1.2 %, at ALPHA and POWER


class QualityClaim(NamedTuple):
    """Is x worse than the reference by ``margin`` or more?  See ``non_inferiority``."""

    mean: float
    n: int
    margin: float
    verdict: str  # "not worse", "worse" or "undecided"
    equivalence: str  # "equivalent", "different" or "undecided"
    low: float | None = None  # of the two-sided interval at 1 - 2 ALPHA
    high: float | None = None  # also the one-sided bound at 1 - ALPHA
    p_not_worse: float | None = None
    p_equivalent: float | None = None
    runs_needed: int | None = None  # blocks, only for an undecided verdict
    note: str = ""


def array(values):
    """A list of numbers as an array (n,) of float64; ValueError for none or one not finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected a non-empty list of finite numbers, got {values}")
    return values


def no_spread(values, scale=None):
    """True when the values differ by rounding alone (so a t-test would divide by nothing)."""
    scale = np.abs(values).max() if scale is None else scale
    return float(np.ptp(values)) <= ROUNDING * scale


def sign_flip_p(differences):
    """Two-sided sign-flip permutation test of the mean (Fisher 1935) of differences with spread.

    Assumes only that each difference would be as likely with the other sign.  Exact, over all
    2^n flips, up to MOST_FLIPS; above, so many random flips from a fixed seed.
    """
    found = scipy.stats.permutation_test(
        (np.asarray(differences),),
        np.mean,
        permutation_type="samples",
        n_resamples=MOST_FLIPS,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def mean_interval(values, level=LEVEL):
    """Mean and its t interval, ``mean ± t(n - 1) s / sqrt(n)`` (normal data; Student 1908)."""
    x = array(values)
    mean = float(x.mean())
    if x.size < 2:
        return Interval(mean, None, None, 1)
    half = float(scipy.stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, x.size)


def log_interval(values):
    """Geometric mean of positive values and the t interval on their logs, never below zero.

    No interval where it would reach over more than a factor of WIDEST.
    """
    log = mean_interval(np.log(array(values)))
    mean = math.exp(log.mean)
    if log.low is None or log.high - log.low > math.log(WIDEST):
        return Interval(mean, None, None, log.n)
    return Interval(mean, math.exp(log.low), math.exp(log.high), log.n)


def t_power(effect, blocks, alpha):
    """Power of a one-sided paired t-test; ``effect`` is the true mean in sd of the differences.

    P(t > critical) under the noncentral t distribution (Cohen 1988), for normal differences.  With
    ALPHA / 2 it is the power of the two-sided test, less the chance of an answer in the wrong
    direction (1e-6 and below, where the power is POWER).
    """
    critical = scipy.stats.t.isf(alpha, blocks - 1)
    return float(scipy.stats.nct.sf(critical, blocks - 1, effect * math.sqrt(blocks)))


@cache
def detectable_effect(blocks):
    """The effect, in sd, that a two-sided paired t-test detects with POWER; None below 3 blocks."""
    if blocks < FEWEST_BLOCKS:
        return None
    # 3 blocks detect 3.3 sd, more detect less
    return float(
        scipy.optimize.brentq(lambda effect: t_power(effect, blocks, ALPHA / 2) - POWER, 0.0, 4.0)
    )


def blocks_needed(effect):
    """The fewest blocks with which a one-sided paired t-test has POWER for ``effect`` (in sd).

    At least 3; None where it takes more than MOST_BLOCKS.
    """
    candidates = range(FEWEST_BLOCKS, MOST_BLOCKS + 1)
    place = bisect_left(candidates, POWER, key=lambda blocks: t_power(effect, blocks, ALPHA))
    return candidates[place] if place < len(candidates) else None


def paired_ratio(x, reference):
    """Ratio x / reference, block by block: paired t-test and interval on log ratios.

    The logs make the ratio symmetric (a/b and b/a agree); pairing removes whatever a block's two
    trainings share.  Assumes positive values (ValueError) and roughly normal log ratios.
    """
    x, reference = array(x), array(reference)
    if min(x.min(), reference.min()) <= 0:
        raise ValueError("a ratio needs positive values")
    log_ratios = np.log(x / reference)
    found = log_interval(x / reference)
    if x.size < 2:
        return Ratio(found.mean, note=ONE_BLOCK)
    if no_spread(log_ratios, scale=1.0):
        return Ratio(found.mean, n=x.size, note="same in every block")
    deviation = float(log_ratios.std(ddof=1))
    effect = detectable_effect(x.size)
    return Ratio(
        found.mean,
        found.low,
        found.high,
        float(scipy.stats.ttest_1samp(log_ratios, 0.0).pvalue),
        x.size,
        TOO_WIDE if found.low is None else "",
        permutation_p=sign_flip_p(log_ratios),
        effect_size=float(log_ratios.mean()) / deviation,
        detectable=None if effect is None else math.exp(effect * deviation) - 1,
    )


def _answers(low, high, margin):
    """What an interval says of the margin: the verdict and the equivalence."""
    if low > margin:
        return "worse", "different"
    if high >= margin:
        return "undecided", "undecided"
    if high < -margin:
        return "not worse", "different"
    return "not worse", "equivalent" if low > -margin else "undecided"


def non_inferiority(x, reference, margin):
    """Is x - reference (a loss: less is better) shown to be below ``margin``, above it, or neither?

    Non-inferiority: a one-sided paired t-test against the margin; "not worse" when the upper
    bound lies below it, "worse" when the lower bound lies above.  Equivalence beside it: two
    one-sided tests (TOST; Schuirmann 1987), "equivalent" when the interval at 1 - 2 ALPHA lies
    within ± margin, "different" when it lies wholly outside.  A large p of an ordinary t-test
    would show neither.  Assumes roughly normal differences and a margin fixed before the first
    block, and of two blocks that assumption would be all: they decide nothing.  ``runs_needed``:
    the blocks that would decide with POWER, were the observed mean and sd the true ones.
    Differences without spread are compared with the margin untested.
    """
    x, reference = array(x), array(reference)
    d = x - reference
    mean, low, high, n = mean_interval(d, 1 - 2 * ALPHA)
    if n < 2:
        return QualityClaim(mean, n, margin, "undecided", "undecided", note=ONE_BLOCK)
    if no_spread(d, scale=max(np.abs(x).max(), np.abs(reference).max())):
        answers = _answers(mean, mean, margin)
        return QualityClaim(mean, n, margin, *answers, note="the same difference in every block")
    verdict, equivalence = _answers(low, high, margin)
    if n < FEWEST_BLOCKS:
        verdict, equivalence = "undecided", "undecided"
    p_below = scipy.stats.ttest_1samp(d, margin, alternative="less").pvalue
    p_above = scipy.stats.ttest_1samp(d, -margin, alternative="greater").pvalue
    needed = None
    if verdict == "undecided":
        needed = blocks_needed(abs(margin - mean) / float(d.std(ddof=1)))
    return QualityClaim(
        mean,
        n,
        margin,
        verdict,
        equivalence,
        low,
        high,
        p_not_worse=float(p_below),
        p_equivalent=float(max(p_below, p_above)),
        runs_needed=needed,
    )


def largest_share(found, blocks):
    """An upper bound on a share of all seeds, of which ``found`` of so many blocks were seen.

    One-sided at LEVEL (Clopper and Pearson 1934); blocks are independent seeds.
    """
    return scipy.stats.binomtest(found, blocks, alternative="less").proportion_ci(LEVEL).high


def two_sample_t(x, reference):
    """Student's two-sample t-test with equal variances: {"t", "p", "d"}, None without spread.

    The published experiment's test; it ignores the pairing, so it is the weaker one here.
    d: Cohen's (1988), the difference of the means over the pooled sd.
    """
    x, reference = array(x), array(reference)
    if min(x.size, reference.size) < 2 or (no_spread(x) and no_spread(reference)):
        return {"t": None, "p": None, "d": None}
    one, other = [(values.mean(), values.std(ddof=1), values.size) for values in (x, reference)]
    test = scipy.stats.ttest_ind_from_stats(*one, *other)
    t = float(test.statistic)
    d = t * math.sqrt(1 / x.size + 1 / reference.size)
    return {"t": t, "p": float(test.pvalue), "d": d}


def holm(p_values):
    """Adjusted p-values that keep the chance of any false positive at alpha (Holm 1979).

    In the given order; assumes nothing about how the tests depend on each other.  None (no test
    made) stays None and does not count.
    """
    tested = [i for i, p in enumerate(p_values) if p is not None]
    adjusted, highest = [None] * len(p_values), 0.0
    for rank, i in enumerate(sorted(tested, key=lambda i: p_values[i])):
        highest = max(highest, (len(tested) - rank) * p_values[i])
        adjusted[i] = min(highest, 1.0)
    return adjusted


def slope(x, y, fitted=2):
    """Slope of the least-squares line of y on x with its t interval (independent normal residuals).

    fitted: how many numbers were fitted to the points, the line's two among them.  None where there
    are no more points than that, all x are equal or no point is off the line.  An interval that
    includes 0 does not show that there is no slope.
    """
    freedom = len(x) - fitted
    if freedom < 1:
        return None
    x, y = array(x), array(y)
    if no_spread(x):
        return None
    fit = scipy.stats.linregress(x, y)
    if no_spread(y - fit.intercept - fit.slope * x, scale=np.abs(y).max()):
        return None
    error = fit.stderr * math.sqrt((x.size - 2) / freedom)
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    return Interval(float(fit.slope), float(fit.slope - half), float(fit.slope + half), x.size)


def drift(seconds, arms, index):
    """Does the machine get slower or faster over the experiment?  In log units per training.

    The slope of log times over the trainings' index, with each arm's mean taken off both.  The
    means of blocks are left in: drift is what differs between blocks.
    """
    logs, index, arms = np.log(array(seconds)), np.array(index, dtype=np.float64), np.asarray(arms)
    for arm in set(arms):
        logs[arms == arm] -= logs[arms == arm].mean()
        index[arms == arm] -= index[arms == arm].mean()
    return slope(index, logs, fitted=1 + len(set(arms)))

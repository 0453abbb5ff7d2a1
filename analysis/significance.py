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

from analysis.power import ALPHA, POWER, check_alpha, detectable_effect, runs_needed

LEVEL = 0.95
MOST_EXACT = 14  # runs up to which all 2^n sign flips are counted (16,384)
RESAMPLES = 9_999
ROUNDING = 1e-12  # relative size below which a difference is rounding and no spread


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; ``low`` and ``high`` are None where there is none."""

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
    permutation_p: float | None = None  # exact sign-flip test of the log ratios
    effect_size: float | None = None  # d_z: mean / sd of the log ratios (Cohen 1988)
    detectable: float | None = None  # share: 0.012 is 1.2 %, at ALPHA and POWER


@dataclass(frozen=True)
class Difference:
    """The mean of x - reference over blocks, in the data's units; otherwise as ``Ratio``."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    note: str = ""
    permutation_p: float | None = None
    effect_size: float | None = None
    detectable: float | None = None  # in the data's units


@dataclass(frozen=True)
class TwoSample:
    """Student's two-sample t-test and Cohen's d, as the published experiment reports them."""

    t: float | None
    p: float | None
    d: float | None
    note: str = ""


@dataclass(frozen=True)
class QualityClaim:
    """Is x worse than the reference by ``margin`` or more?  Two answers, see ``non_inferiority``.

    ``upper`` is the one-sided bound at 1 - alpha, ``low`` and ``high`` the two-sided interval at
    1 - 2 alpha, which is TOST's; ``upper`` equals ``high``.
    """

    mean: float
    n: int
    margin: float
    upper: float | None
    low: float | None
    high: float | None
    p_not_worse: float | None
    p_equivalent: float | None
    verdict: str  # "not worse", "worse" or "undecided"
    equivalence: str  # "equivalent", "different" or "undecided"
    runs_needed: int | None = None  # only for an undecided verdict
    note: str = ""


def array(values):
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected a non-empty list of numbers, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite: leave diverged runs out before testing")
    return values


def pairs(x, reference):
    x, reference = array(x), array(reference)
    if x.shape != reference.shape:
        raise ValueError(f"pairs needed, got {x.size} and {reference.size} values")
    return x, reference


def no_spread(values, scale=None):
    """True when the values differ by rounding alone (so a t-test would divide by nothing)."""
    scale = np.abs(values).max() if scale is None else scale
    # the floor: squares of less than 1e-150 would underflow, and the variance be 0
    return float(np.ptp(values)) <= ROUNDING * max(scale, 1e-138)


# --- one sample of paired differences ----------------------------------------------------------
def smallest_p(n):
    """The least two-sided p of the exact tests below with n runs, 2 / 2^n: 0.0625 for n = 5.

    So fewer than 6 runs can't reach 0.05, whatever they show.
    """
    if n < 1:
        raise ValueError(f"a test needs a run, got n = {n}")
    return 2.0 ** (1 - n)


def sign_flip_p(differences):
    """Two-sided sign-flip permutation test of the mean (Fisher 1935); None without spread.

    Assumes only that each difference would be as likely with the other sign.  Exact, over all
    2^n flips, up to n = 14; above, 9,999 random flips from a fixed seed.
    """
    d = array(differences)
    if d.size < 2 or no_spread(d):
        return None
    flips = np.inf if d.size <= MOST_EXACT else RESAMPLES
    test = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=flips, rng=np.random.default_rng(0)
    )
    return float(test.pvalue)


def mean_interval(values, level=LEVEL):
    """Mean and its t interval, ``mean ± t(n - 1) s / sqrt(n)`` (normal data; Student 1908)."""
    x = array(values)
    mean = float(x.mean())
    if x.size < 2:
        return Interval(mean, None, None, 1)
    half = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, x.size)


def _further_tests(d):
    """What ``Ratio`` and ``Difference`` say beside the t-test, of differences with spread."""
    return {
        "permutation_p": sign_flip_p(d),
        "effect_size": float(d.mean() / d.std(ddof=1)),
    }


def _exp(log):
    """The exponential, held at the largest number that is no infinity."""
    return math.exp(min(log, 709.0))


def paired_ratio(x, reference, level=LEVEL):
    """Ratio x / reference, block by block: paired t-test and interval on log ratios.

    The logs make the ratio symmetric (a/b and b/a agree) and its interval positive; pairing
    removes whatever a block's two trainings share.  Assumes positive values and roughly normal
    log ratios.  ``permutation_p`` does without the normality.
    """
    x, reference = pairs(x, reference)
    if (x <= 0).any() or (reference <= 0).any():
        raise ValueError("a ratio needs positive values")
    log_ratio = np.log(x / reference)
    ratio = float(np.exp(log_ratio.mean()))
    if x.size < 2:
        return Ratio(ratio, None, None, None, 1, "one run: no test")
    if no_spread(log_ratio, scale=1.0):
        return Ratio(ratio, None, None, None, x.size, "same in every run")
    test = stats.ttest_1samp(log_ratio, 0.0)
    interval = test.confidence_interval(level)
    low, high = _exp(interval.low), _exp(interval.high)
    effect = detectable_effect(x.size)
    return Ratio(
        *(ratio, low, high, float(test.pvalue), x.size),
        **_further_tests(log_ratio),
        detectable=None if effect is None else _exp(effect * log_ratio.std(ddof=1)) - 1,
    )


def paired_difference(x, reference, level=LEVEL):
    """Difference x - reference, block by block, in the data's units: paired t-test and interval.

    For held-out losses in nats, whose differences matter and not their ratios.  Assumes roughly
    normal differences (Student 1908).
    """
    x, reference = pairs(x, reference)
    d = x - reference
    mean = float(d.mean())
    if d.size < 2:
        return Difference(mean, None, None, None, 1, "one run: no test")
    if no_spread(d, scale=max(np.abs(x).max(), np.abs(reference).max())):
        return Difference(mean, None, None, None, d.size, "the same difference in every run")
    test = stats.ttest_1samp(d, 0.0)
    low, high = (float(end) for end in test.confidence_interval(level))
    effect = detectable_effect(d.size)
    return Difference(
        *(mean, low, high, float(test.pvalue), d.size),
        **_further_tests(d),
        detectable=None if effect is None else float(effect * d.std(ddof=1)),
    )


def _equivalence(low, high, margin):
    if -margin < low and high < margin:
        return "equivalent"
    return "different" if low > margin or high < -margin else "undecided"


def _decided_by_constant(mean, n, margin):
    """The claim when every run shows the same difference: a comparison and no test."""
    verdict = "not worse" if mean < margin else "worse"
    equivalence = "equivalent" if abs(mean) < margin else "different"
    note = "the same difference in every run"
    return QualityClaim(mean, n, margin, *[None] * 5, verdict, equivalence, note=note)


def non_inferiority(x, reference, margin, alpha=ALPHA):
    """Is x - reference (a loss: less is better) shown to be below ``margin``, above it, or neither?

    Non-inferiority: a one-sided paired t-test against the margin; "not worse" when the upper
    bound lies below it, "worse" when the lower bound lies above.  Equivalence beside it: two
    one-sided tests (TOST; Schuirmann 1987), "equivalent" when the interval at 1 - 2 alpha lies
    within ± margin, "different" when it lies wholly outside.  A large p of an ordinary t-test
    would show neither.  Assumes roughly normal differences and a margin fixed before the first
    run.  ``runs_needed``: the runs that would decide with 80 % power, were the observed mean and
    sd the true ones.  Without spread a difference of exactly the margin counts as worse.
    """
    check_alpha(alpha)
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"the margin must be finite and positive, got {margin}")
    x, reference = pairs(x, reference)
    e = x - reference
    mean, n = float(e.mean()), e.size
    if n < 2:
        undecided = ("undecided", "undecided")
        return QualityClaim(mean, n, margin, *[None] * 5, *undecided, note="one run: no test")
    if no_spread(e, scale=max(np.abs(x).max(), np.abs(reference).max())):
        return _decided_by_constant(mean, n, margin)
    test = stats.ttest_1samp(e, margin, alternative="less")
    above = stats.ttest_1samp(e, -margin, alternative="greater").pvalue
    interval = mean_interval(e, 1 - 2 * alpha)
    low, high = interval.low, interval.high
    verdict = "not worse" if high < margin else "worse" if low > margin else "undecided"
    effect = abs(margin - mean) / float(e.std(ddof=1))
    return QualityClaim(
        *(mean, n, margin, high, low, high),
        p_not_worse=float(test.pvalue),
        p_equivalent=float(max(test.pvalue, above)),
        verdict=verdict,
        equivalence=_equivalence(low, high, margin),
        runs_needed=runs_needed(effect, alpha, POWER, "greater")
        if verdict == "undecided"
        else None,
    )


# --- two samples, several tests ----------------------------------------------------------------
def two_sample_t(x, reference):
    """Student's two-sample t-test with equal variances, and Cohen's d (pooled sd; Cohen 1988).

    The published experiment's test.  It ignores the pairing, so it is the weaker one here.
    """
    x, reference = array(x), array(reference)
    if min(x.size, reference.size) < 2:
        return TwoSample(None, None, None, "one run: no test")
    if no_spread(x) and no_spread(reference):
        return TwoSample(None, None, None, "no spread between the runs: no test")
    test = stats.ttest_ind_from_stats(
        *(x.mean(), x.std(ddof=1), x.size),
        *(reference.mean(), reference.std(ddof=1), reference.size),
    )
    return TwoSample(float(test.statistic), float(test.pvalue), cohens_d(x, reference))


def cohens_d(x, reference):
    """Difference of the means in pooled standard deviations (Cohen 1988), None without spread."""
    x, reference = array(x), array(reference)
    if min(x.size, reference.size) < 2:
        return None
    squares = (x.size - 1) * x.var(ddof=1) + (reference.size - 1) * reference.var(ddof=1)
    pooled = math.sqrt(squares / (x.size + reference.size - 2))
    if pooled <= ROUNDING * max(abs(x.mean()), abs(reference.mean())):
        return None
    return float((x.mean() - reference.mean()) / pooled)


def holm(p_values):
    """Adjusted p-values that keep the chance of any false positive at alpha (Holm 1979).

    In the given order; assumes nothing about how the tests depend on each other.  None (no test
    made) stays None and does not count.
    """
    tested = [i for i, p in enumerate(p_values) if p is not None]
    adjusted = [None] * len(p_values)
    if not tested:
        return adjusted
    p = array([p_values[i] for i in tested])
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"a p-value lies between 0 and 1, got {p.min()} to {p.max()}")
    order = np.argsort(p)
    stepped = np.maximum.accumulate((p.size - np.arange(p.size)) * p[order]).clip(max=1)
    for rank, value in zip(order, stepped, strict=True):
        adjusted[tested[rank]] = float(value)
    return adjusted

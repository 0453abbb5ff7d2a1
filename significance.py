"""The statistics of the comparison: pure functions over arrays, scipy underneath, no printing.

A block is one run: every arm trained once from the same seed, adjacent in time.  Arrays hold one
value per block, in the same order for every arm, so arms can be compared pair by pair.  Where a
test makes no sense (one run, no spread) the fields that would need it are None and ``note`` says
why in a sentence; nothing here returns NaN or p = 0 for want of data.
"""

import itertools
import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, special, stats

ALPHA = 0.05
LEVEL = 0.95
POWER = 0.8
MOST_RUNS = 10_000  # beyond it "more runs" is no advice
MOST_EXACT = 14  # runs up to which all 2^n sign flips are counted (16,384)
RESAMPLES = 9_999
ROUNDING = 1e-12  # relative size below which a difference is rounding and no spread
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)  # for powers within 1e-9


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
    wilcoxon_p: float | None = None
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
    wilcoxon_p: float | None = None
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


@dataclass(frozen=True)
class Trend:
    """A least-squares line with the t intervals of its slope and of its intercept."""

    slope: float | None
    low: float | None
    high: float | None
    intercept: float | None
    intercept_low: float | None
    intercept_high: float | None
    n: int
    note: str = ""


@dataclass(frozen=True)
class Drift:
    """A trend over the order of the trainings, and Spearman's rank correlation with it."""

    trend: Trend
    rho: float | None
    rho_p: float | None


def _array(values):
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected a non-empty list of numbers, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite: leave diverged runs out before testing")
    return values


def _pairs(x, reference):
    x, reference = _array(x), _array(reference)
    if x.shape != reference.shape:
        raise ValueError(f"pairs needed, got {x.size} and {reference.size} values")
    return x, reference


def _no_spread(values, scale=None):
    """True when the values differ by rounding alone (so a t-test would divide by nothing)."""
    scale = np.abs(values).max() if scale is None else scale
    # the floor: squares of less than 1e-150 would underflow, and the variance be 0
    return float(np.ptp(values)) <= ROUNDING * max(scale, 1e-138)


def _check_alpha(alpha):
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")


# --- power of the paired t-test ----------------------------------------------------------------


@cache
def _t_critical(df, tail):
    return float(stats.t.isf(tail, df))


@cache
def _sd_distribution(df):
    """Of sample sd / true sd: where all but 2e-12 of it lies, and its log density's constant."""
    low, high = (float(q) / math.sqrt(df) for q in stats.chi.ppf([1e-12, 1 - 1e-12], df))
    constant = df / 2 * math.log(df) - (df / 2 - 1) * math.log(2) - math.lgamma(df / 2)
    return low, high, constant


def t_power(effect, n, alpha=ALPHA, alternative="two-sided"):
    """Power of a paired t-test with n runs; ``effect`` is the true mean in sd of the differences.

    P(|t| > critical) under the noncentral t distribution (Cohen 1988), for normal differences.
    For a given s = sample sd / true sd it is a normal probability; the integral averages over s,
    which is chi distributed.  (scipy.stats.nct returns NaN at the large effects that 2 runs need.)
    """
    _check_alpha(alpha)
    if n < 2 or alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"no t-test with n = {n} and alternative {alternative!r}")
    two_sided, df = alternative == "two-sided", n - 1
    shift = (-effect if alternative == "less" else effect) * math.sqrt(n)
    critical = _t_critical(df, alpha / 2 if two_sided else alpha)
    low, high, constant = _sd_distribution(df)

    # within 8 / critical of this s the rejection probability falls from 1 to 0, which is steep
    # with few runs: Gauss-Legendre quadrature there, and on either side
    step = abs(shift) / critical
    edges = np.clip([0.0, step - 8 / critical, step + 8 / critical, np.inf], low, high)
    power = 0.0
    for a, b in itertools.pairwise(edges):
        s = (a + b) / 2 + (b - a) / 2 * NODES
        rejected = special.ndtr(shift - critical * s)
        if two_sided:
            rejected += special.ndtr(-shift - critical * s)
        density = np.exp(constant + (df - 1) * np.log(s) - df * s * s / 2)
        power += (b - a) / 2 * float(WEIGHTS @ (density * rejected))
    return float(min(power, 1.0))


@cache
def detectable_effect(n, alpha=ALPHA, power=POWER):
    """The effect, in sd of the paired differences, that n runs detect with this power.

    For the two-sided paired t-test (normal differences; Cohen 1988); None for fewer than 2 runs.
    """
    if not alpha < power < 1:
        raise ValueError(f"power must lie between alpha and 1, got {power}")
    if n < 2:
        return None
    high = 1.0
    while t_power(high, n, alpha) < power:
        high *= 2
    return float(optimize.brentq(lambda effect: t_power(effect, n, alpha) - power, 0.0, high))


def runs_needed(effect, alpha=ALPHA, power=POWER, alternative="two-sided"):
    """The least number of runs with which a paired t-test has this power for ``effect`` (in sd).

    The inverse of ``detectable_effect``; None when it takes more than MOST_RUNS.
    """
    candidates = range(2, MOST_RUNS + 1)
    at = bisect_left(candidates, power, key=lambda n: t_power(effect, n, alpha, alternative))
    return candidates[at] if at < len(candidates) else None


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
    d = _array(differences)
    if d.size < 2 or _no_spread(d):
        return None
    flips = np.inf if d.size <= MOST_EXACT else RESAMPLES
    test = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=flips, rng=np.random.default_rng(0)
    )
    return float(test.pvalue)


def wilcoxon_p(differences):
    """Two-sided signed-rank test (Wilcoxon 1945); None without spread.

    Assumes differences symmetric about their median.  Zeros are dropped, ties share their mean
    rank.  scipy counts exactly up to n = 50, with zeros or ties up to n = 13; above, it takes the
    normal approximation.
    """
    d = _array(differences)
    if d.size < 2 or _no_spread(d):
        return None
    return float(stats.wilcoxon(d).pvalue)


def mean_interval(values, level=LEVEL):
    """Mean and its t interval, ``mean ± t(n - 1) s / sqrt(n)`` (normal data; Student 1908)."""
    x = _array(values)
    mean = float(x.mean())
    if x.size < 2:
        return Interval(mean, None, None, 1)
    half = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, x.size)


def _further_tests(d):
    """What ``Ratio`` and ``Difference`` say beside the t-test, of differences with spread."""
    return {
        "permutation_p": sign_flip_p(d),
        "wilcoxon_p": wilcoxon_p(d),
        "effect_size": float(d.mean() / d.std(ddof=1)),
    }


def _exp(log):
    """The exponential, held at the largest number that is no infinity."""
    return math.exp(min(log, 709.0))


def paired_ratio(x, reference, level=LEVEL):
    """Ratio x / reference, block by block: paired t-test and interval on log ratios.

    The logs make the ratio symmetric (a/b and b/a agree) and its interval positive; pairing
    removes whatever a block's two trainings share.  Assumes positive values and roughly normal
    log ratios.  ``permutation_p`` and ``wilcoxon_p`` do without the normality.
    """
    x, reference = _pairs(x, reference)
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
    low, high = _exp(interval.low), _exp(interval.high)
    detectable = detectable_effect(x.size) * log_ratio.std(ddof=1)
    return Ratio(
        *(ratio, low, high, float(test.pvalue), x.size),
        **_further_tests(log_ratio),
        detectable=_exp(detectable) - 1,
    )


def paired_difference(x, reference, level=LEVEL):
    """Difference x - reference, block by block, in the data's units: paired t-test and interval.

    For held-out losses in nats, whose differences matter and not their ratios.  Assumes roughly
    normal differences (Student 1908).
    """
    x, reference = _pairs(x, reference)
    d = x - reference
    mean = float(d.mean())
    if d.size < 2:
        return Difference(mean, None, None, None, 1, "one run: no test")
    if _no_spread(d, scale=max(np.abs(x).max(), np.abs(reference).max())):
        return Difference(mean, None, None, None, d.size, "the same difference in every run")
    test = stats.ttest_1samp(d, 0.0)
    low, high = (float(end) for end in test.confidence_interval(level))
    detectable = float(detectable_effect(d.size) * d.std(ddof=1))
    return Difference(
        *(mean, low, high, float(test.pvalue), d.size),
        **_further_tests(d),
        detectable=detectable,
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
    _check_alpha(alpha)
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"the margin must be finite and positive, got {margin}")
    x, reference = _pairs(x, reference)
    e = x - reference
    mean, n = float(e.mean()), e.size
    if n < 2:
        undecided = ("undecided", "undecided")
        return QualityClaim(mean, n, margin, *[None] * 5, *undecided, note="one run: no test")
    if _no_spread(e, scale=max(np.abs(x).max(), np.abs(reference).max())):
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
    p = _array([p_values[i] for i in tested])
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"a p-value lies between 0 and 1, got {p.min()} to {p.max()}")
    order = np.argsort(p)
    stepped = np.maximum.accumulate((p.size - np.arange(p.size)) * p[order]).clip(max=1)
    for rank, value in zip(order, stepped, strict=True):
        adjusted[tested[rank]] = float(value)
    return adjusted


# --- checks of the design: order, drift, carry-over, outliers ------------------------------------


def trend(x, y, level=LEVEL):
    """Least-squares line of y on x, with t intervals (independent normal residuals; Student).

    Two uses.  Position: x = position of the arm - position of the reference in its block, y =
    paired log ratio; the slope is the effect of coming one place later, the intercept the effect
    of the arm adjusted for it.  Drift: x = launch index, y = residual log time, see ``drift``.
    Read the interval: an interval that includes 0 does not show that there is no trend.
    """
    x, y = _pairs(x, y)
    n = x.size
    if n < 3:
        return Trend(*[None] * 6, n, "fewer than 3 points: no trend")
    if _no_spread(x):
        return Trend(*[None] * 6, n, "all x are equal: no trend")
    if _no_spread(y):
        return Trend(0.0, None, None, float(y.mean()), None, None, n, "no spread: no interval")
    fit = stats.linregress(x, y)
    slope, intercept = float(fit.slope), float(fit.intercept)
    if _no_spread(y - intercept - slope * x, scale=np.abs(y).max()):
        note = "every point lies on the line: no interval"
        return Trend(slope, None, None, intercept, None, None, n, note)
    t = float(stats.t.ppf((1 + level) / 2, n - 2))
    half, intercept_half = t * float(fit.stderr), t * float(fit.intercept_stderr)
    return Trend(
        *(slope, slope - half, slope + half),
        *(intercept, intercept - intercept_half, intercept + intercept_half),
        n,
    )


def _log(values):
    values = _array(values)
    if (values <= 0).any():
        raise ValueError("logarithms need positive values")
    return np.log(values)


def _indicators(*factors, n):
    """One column per level of each factor, 1 where a training has it: (n, levels)."""
    factors = [np.asarray(factor) for factor in factors]
    for factor in factors:
        if factor.shape != (n,):
            raise ValueError(f"a label needed for each of the {n} values, got {factor.shape}")
    levels = [factor[:, None] == np.unique(factor) for factor in factors]
    return np.hstack(levels).astype(np.float64)


def _without_rounding(left, log):
    return np.where(np.abs(left) <= ROUNDING * max(np.abs(log).max(), 1.0), 0.0, left)


def residuals(values, arms):
    """Log values less their arm's mean, one value per training.

    The blocks' means stay in: drift is what differs between blocks.
    """
    log = _log(values)
    design = _indicators(arms, n=log.size)
    left = log - design @ np.linalg.lstsq(design, log, rcond=None)[0]
    return _without_rounding(left, log)


def drift(values, arms, launch_index, level=LEVEL):
    """Does the machine get slower or faster over the experiment?  In log units per training.

    The trend of the residuals after the arms' means, and Spearman's rank correlation (1904),
    which needs no straight line.
    """
    left = residuals(values, arms)
    line = trend(launch_index, left, level)
    if line.n < 3 or _no_spread(left) or _no_spread(_array(launch_index)):
        return Drift(line, None, None)
    test = stats.spearmanr(launch_index, left)
    # scipy's p is 0 for a perfect order; of n! orders two are perfect, so no exact p is smaller
    least = 2 / math.factorial(min(line.n, 20))
    return Drift(line, float(test.statistic), max(float(test.pvalue), least))


def _half_width(left, df, level):
    """Half a t interval for a standard error of 1 sd, from a fit's residuals; None without any."""
    if df < 1 or not left.any():
        return None
    return float(stats.t.ppf((1 + level) / 2, df)) * math.sqrt(left @ left / df)


def carry_over(values, arms, blocks, previous, level=LEVEL):
    """What a training inherits from the one before: {previous arm: Interval}, in log units.

    How much more a training takes after this arm than after the average arm (a hot machine, a
    full cache), arms and blocks removed: crossover trials' first-order carry-over, by least
    squares (Jones and Kenward 2014).  All three factors are fitted together; residuals after arms
    and blocks alone would show 0.44 of an effect with 3 arms and 0.12 with 2 (simulated, 10
    blocks).  A training with previous "" (the first one) is left out, and so are arms whose
    carry-over the order of the trainings can't tell from arms and blocks.
    """
    log, previous = _log(values), np.asarray(previous)
    design = _indicators(arms, blocks, previous, n=log.size)
    followed = previous != ""
    names, counts = np.unique(previous[followed], return_counts=True)
    log, design = log[followed], design[followed]
    if names.size < 2:  # no average to compare with
        return {}
    inverse = np.linalg.pinv(design)
    left = _without_rounding(log - design @ inverse @ log, log)
    # deviations from the average previous arm, whose columns are the last ones
    contrasts = np.zeros((names.size, design.shape[1]))
    contrasts[:, -names.size :] = np.eye(names.size) - 1 / names.size
    half = _half_width(left, log.size - np.linalg.matrix_rank(design), level)
    found = {}
    for name, n, contrast in zip(names, counts, contrasts, strict=True):
        weights = contrast @ inverse  # the estimate is a weighted sum of the log values
        if np.allclose(weights @ design, contrast):  # else the design does not determine it
            mean = float(weights @ log)
            reach = None if half is None else half * float(np.linalg.norm(weights))
            ends = (None, None) if reach is None else (mean - reach, mean + reach)
            found[str(name)] = Interval(mean, *ends, int(n))
    return found


def outlying(values, ranges=1.5):
    """Which values lie beyond 1.5 interquartile ranges of the quartiles (Tukey 1977).

    Tukey calls them outside, and those beyond ``ranges=3`` far out.

    Flags only: a dropped run would break its pair.  With fewer than 5 values none is flagged.
    """
    x = _array(values)
    if x.size < 5:
        return np.zeros(x.size, dtype=bool)
    first, third = np.percentile(x, [25, 75])
    reach = ranges * (third - first) + ROUNDING * np.abs(x).max()
    return (x < first - reach) | (x > third + reach)

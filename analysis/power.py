"""Power of the paired t-test: what so many blocks could detect, and how many would decide."""

import math
from bisect import bisect_left
from functools import cache

from scipy import optimize, stats

ALPHA = 0.05
POWER = 0.8
LEAST_RUNS, MOST_RUNS = 3, 10_000  # beyond it "more runs" is no advice


def check_alpha(alpha):
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")


# --- power of the paired t-test ----------------------------------------------------------------
def _above(critical, df, shift):
    """P(t > critical) under the noncentral t distribution, where scipy might say NaN too."""
    if shift < -5:  # less than P(normal < -5) = 3e-7
        return 0.0
    if shift > 100 * (critical + 1):  # it fails where the sample sd is many times the true one
        return 1.0
    return float(stats.nct.sf(critical, df, shift))


def t_power(effect, n, alpha=ALPHA, alternative="two-sided"):
    """Power of a paired t-test with n runs; ``effect`` is the true mean in sd of the differences.

    P(|t| > critical) under the noncentral t distribution (Cohen 1988), for normal differences.
    From 3 runs on; with 2 only enormous effects are detected.
    """
    check_alpha(alpha)
    if n < LEAST_RUNS or alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"no power of a t-test with n = {n} and alternative {alternative!r}")
    shift, df = (-effect if alternative == "less" else effect) * math.sqrt(n), n - 1
    if alternative != "two-sided":
        return _above(stats.t.isf(alpha, df), df, shift)
    critical = stats.t.isf(alpha / 2, df)
    return min(_above(critical, df, shift) + _above(critical, df, -shift), 1.0)


@cache
def detectable_effect(n, alpha=ALPHA, power=POWER):
    """The effect, in sd of the paired differences, that n runs detect with this power.

    For the two-sided paired t-test (normal differences; Cohen 1988); None for fewer than 3 runs.
    """
    if not alpha < power < 1:
        raise ValueError(f"power must lie between alpha and 1, got {power}")
    if n < LEAST_RUNS:
        return None
    high = 1.0
    while t_power(high, n, alpha) < power:
        high *= 2
    return float(optimize.brentq(lambda effect: t_power(effect, n, alpha) - power, 0.0, high))


def runs_needed(effect, alpha=ALPHA, power=POWER, alternative="two-sided"):
    """The least number of runs with which a paired t-test has this power for ``effect`` (in sd).

    The inverse of ``detectable_effect``, at least 3; None when it takes more than MOST_RUNS.
    """
    candidates = range(LEAST_RUNS, MOST_RUNS + 1)
    at = bisect_left(candidates, power, key=lambda n: t_power(effect, n, alpha, alternative))
    return candidates[at] if at < len(candidates) else None

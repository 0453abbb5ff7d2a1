"""Power of the paired t-test: what so many blocks could detect, and how many would decide."""

import itertools
import math
from bisect import bisect_left
from functools import cache

import numpy as np
from scipy import optimize, special, stats

ALPHA = 0.05
POWER = 0.8
MOST_RUNS = 10_000  # beyond it "more runs" is no advice
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)  # for powers within 1e-9


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

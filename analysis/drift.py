"""Checks of the design: the effect of the position in a block, drift, outlying trainings."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.significance import LEVEL, ROUNDING, array, no_spread, pairs


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


# --- checks of the design: order, drift, outliers -------------------------------------------------
def trend(x, y, level=LEVEL):
    """Least-squares line of y on x, with t intervals (independent normal residuals; Student).

    Two uses.  Position: x = position of the arm - position of the reference in its block, y =
    paired log ratio; the slope is the effect of coming one place later, the intercept the effect
    of the arm adjusted for it.  Drift: x = launch index, y = residual log time, see ``drift``.
    Read the interval: an interval that includes 0 does not show that there is no trend.
    """
    x, y = pairs(x, y)
    n = x.size
    if n < 3:
        return Trend(*[None] * 6, n, "fewer than 3 points: no trend")
    if no_spread(x):
        return Trend(*[None] * 6, n, "all x are equal: no trend")
    if no_spread(y):
        return Trend(0.0, None, None, float(y.mean()), None, None, n, "no spread: no interval")
    fit = stats.linregress(x, y)
    slope, intercept = float(fit.slope), float(fit.intercept)
    if no_spread(y - intercept - slope * x, scale=np.abs(y).max()):
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
    values = array(values)
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
    if line.n < 3 or no_spread(left) or no_spread(array(launch_index)):
        return Drift(line, None, None)
    test = stats.spearmanr(launch_index, left)
    # scipy's p is 0 for a perfect order; of n! orders two are perfect, so no exact p is smaller
    least = 2 / math.factorial(min(line.n, 20))
    return Drift(line, float(test.statistic), max(float(test.pvalue), least))


def outlying(values, ranges=1.5):
    """Which values lie beyond 1.5 interquartile ranges of the quartiles (Tukey 1977).

    Tukey calls them outside, and those beyond ``ranges=3`` far out.

    Flags only: a dropped run would break its pair.  With fewer than 5 values none is flagged.
    """
    x = array(values)
    if x.size < 5:
        return np.zeros(x.size, dtype=bool)
    first, third = np.percentile(x, [25, 75])
    reach = ranges * (third - first) + ROUNDING * np.abs(x).max()
    return (x < first - reach) | (x > third + reach)

"""Checks of the design: the effect of the position in a block, and drift."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.significance import LEVEL, Interval, array, no_spread


@dataclass(frozen=True)
class Trend:
    """Slope and intercept of a least-squares line, each an Interval; None where a note says why."""

    slope: Interval | None = None
    intercept: Interval | None = None
    note: str = ""


def trend(x, y):
    """Least-squares line of y on x, with t intervals (independent normal residuals; Student).

    Two uses.  Position: x = position of the arm - position of the reference in its block, y =
    paired log ratio; the slope is the effect of coming one place later, the intercept the effect
    of the arm adjusted for it.  Drift: see ``drift``.
    Read the interval: an interval that includes 0 does not show that there is no trend.
    """
    x, y = array(x), array(y)
    if x.size < 3:
        return Trend(note="fewer than 3 points: no trend")
    if no_spread(x):
        return Trend(note="all x are equal: no trend")
    fit = stats.linregress(x, y)
    if no_spread(y - fit.intercept - fit.slope * x, scale=np.abs(y).max()):
        return Trend(note="no spread about the line: no interval")
    t = stats.t.ppf((1 + LEVEL) / 2, x.size - 2)
    ends = []
    for center, error in ((fit.slope, fit.stderr), (fit.intercept, fit.intercept_stderr)):
        low, high = float(center - t * error), float(center + t * error)
        ends.append(Interval(float(center), low, high, x.size))
    return Trend(*ends)


def drift(seconds, arms, index):
    """Does the machine get slower or faster over the experiment?  In log units per training.

    The trend, over the trainings' index, of their log times less their arm's mean.  The blocks'
    means stay in: drift is what differs between blocks.
    """
    logs, arms = np.log(array(seconds)), np.asarray(arms)
    for arm in set(arms):
        logs[arms == arm] -= logs[arms == arm].mean()
    return trend(index, logs)

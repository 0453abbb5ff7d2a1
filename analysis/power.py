"""Power of the paired t-test: what so many blocks could detect, and how many would decide."""

import math
from bisect import bisect_left
from functools import cache

from scipy import optimize, stats

ALPHA = 0.05
POWER = 0.8
FEWEST_BLOCKS, MOST_BLOCKS = 3, 10_000  # beyond it "more blocks" is no advice


def t_power(effect, blocks, sides=2):
    """Power of a paired t-test at ALPHA; ``effect`` is the true mean in sd of the differences.

    P(|t| > critical) under the noncentral t distribution (Cohen 1988), for normal differences, or
    P(t > critical) with ``sides=1``.  From 3 blocks on; 2 detect only enormous effects.
    """
    freedom, shift = blocks - 1, effect * math.sqrt(blocks)
    critical = stats.t.isf(ALPHA / sides, freedom)
    power = stats.nct.sf(critical, freedom, shift)
    if sides == 2:
        power += stats.nct.sf(critical, freedom, -shift)
    return float(power)


@cache
def detectable_effect(blocks):
    """The effect, in sd of the paired differences, that so many blocks detect with POWER.

    For the two-sided paired t-test (normal differences; Cohen 1988); None for fewer than 3 blocks.
    """
    if blocks < FEWEST_BLOCKS:
        return None
    # 3 blocks detect 3.3 sd, more detect less
    return float(optimize.brentq(lambda effect: t_power(effect, blocks) - POWER, 0.0, 4.0))


def blocks_needed(effect):
    """The fewest blocks with which a one-sided paired t-test has POWER for ``effect`` (in sd).

    At least 3; None where it takes more than MOST_BLOCKS.
    """
    candidates = range(FEWEST_BLOCKS, MOST_BLOCKS + 1)
    place = bisect_left(candidates, POWER, key=lambda blocks: t_power(effect, blocks, sides=1))
    return candidates[place] if place < len(candidates) else None

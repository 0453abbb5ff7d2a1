"""Contrasts: two arms compared over the blocks both finished, and the declared family of tests."""

from typing import NamedTuple

import numpy as np

from analysis import significance
from analysis.values import OUTCOMES, ordered_arms, pattern_of_arm, shared_values

SHOWN_SHARE = 5e-5  # a smaller difference would read 0.00 %
CONTRASTS = (  # arm, reference, what the difference is
    ("window", "fused", "sparsity alone"),
    ("fused", "baseline", "the kernel"),
    ("window", "baseline", "the documented comparison: kernel and sparsity together"),
    ("baseline", "published", "the mask bookkeeping"),
    ("window", "published", "mask bookkeeping, kernel and sparsity together"),
)
OF_PATTERNS = (  # what an arm named by its pattern is compared with: the first that was trained
    ("fused", "sparsity alone"),
    ("baseline", "kernel and sparsity together"),
)
FAMILY_OUTCOMES = ("training_time", "peak_memory_mb", "val_loss")


class Compared(NamedTuple):
    """One outcome of an arm against a reference, over the blocks that both finished."""

    x: np.ndarray  # (blocks,), as reference
    reference: np.ndarray
    ratio: significance.Ratio
    adjusted: float | None  # Holm's p over the declared family; None: not in it, or no test


def time_ratio(metrics, pair):
    """The ``Ratio`` of the training times of an arm and its reference."""
    return significance.paired_ratio(*shared_values(metrics, pair, "training_time"))


def verdict(ratio):
    """What a ``Ratio`` says: "same", "undetected" (no difference detected), "less" or "more".

    A difference is named where the test found one or, for want of a test, where it can be shown.
    """
    if ratio.p is None and abs(1 - ratio.ratio) < SHOWN_SHARE:
        return "same"
    if ratio.p is not None and ratio.p >= significance.ALPHA:
        return "undetected"
    return "less" if ratio.ratio < 1 else "more"


def contrasts_of(arms):
    """(arm, reference, meaning) of every contrast among these arms.

    An arm named by its pattern is compared with fused, and with baseline only for want of it.
    """
    found = [c for c in CONTRASTS if c[0] in arms and c[1] in arms]
    with_patterns = [pair for pair in OF_PATTERNS if pair[0] in arms][:1]
    patterns = [arm for arm in ordered_arms(arms) if pattern_of_arm(arm)]
    return found + [(arm, *pair) for arm in patterns for pair in with_patterns]


def primary_of(arms):
    """(arm, reference, outcome, test) of every question that these arms are trained to answer."""
    pairs = [
        (arm, reference)
        for arm, reference, meaning in contrasts_of(arms)
        if "sparsity" in meaning and reference != "published"
    ]
    times = [(*pair, "training_time", "ratio") for pair in pairs]
    return times + [(*pair, "val_loss", "non-inferiority") for pair in pairs]


def family_of(arms):
    """(arm, reference, outcome) of every test that Holm's correction is over."""
    return [
        (arm, reference, key) for arm, reference, _ in contrasts_of(arms) for key in FAMILY_OUTCOMES
    ]


def compare(metrics, metadata):
    """{(arm, reference, outcome): Compared} of every contrast and outcome with positive values.

    Holm's correction is over the family of tests that the plan declares.
    """
    found = {}
    for arm, reference, _ in contrasts_of(metrics):
        for key, *_ in OUTCOMES:
            x, ref = shared_values(metrics, (arm, reference), key)
            if x.size and min(x.min(), ref.min()) > 0:
                ratio = significance.paired_ratio(x, ref)
                found[arm, reference, key] = Compared(x, ref, ratio, None)
    family = [place for place in map(tuple, metadata["plan"]["family"]) if place in found]
    adjusted = significance.holm([found[place].ratio.p for place in family])
    for place, p in zip(family, adjusted, strict=True):
        found[place] = found[place]._replace(adjusted=p)
    return found

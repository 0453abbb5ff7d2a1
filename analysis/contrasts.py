"""Contrasts: two arms compared over the blocks both finished, and the declared family of tests."""

from typing import NamedTuple

import numpy as np

from analysis import significance
from analysis.values import OUTCOMES, shared_values

SHOWN_SHARE = 5e-5  # a smaller difference would read 0.00 %
CONTRASTS = (  # arm, reference, what the difference is
    ("window", "fused", "sparsity alone"),
    ("fused", "baseline", "the kernel"),
    ("window", "baseline", "the documented comparison: kernel and sparsity together"),
    ("baseline", "published", "the mask bookkeeping"),
    ("window", "published", "mask bookkeeping, kernel and sparsity together"),
)
FAMILY = tuple(  # every test that Holm's correction is over
    (arm, reference, key)
    for arm, reference, _ in CONTRASTS
    for key in ("training_time", "peak_memory_mb", "val_loss")
)
PRIMARY = (  # what an experiment is made for, declared in its plan
    ("window", "fused", "training_time", "ratio"),
    ("window", "baseline", "training_time", "ratio"),
    ("window", "fused", "val_loss", "non-inferiority"),
    ("window", "baseline", "val_loss", "non-inferiority"),
)


class Compared(NamedTuple):
    """One outcome of an arm against a reference, over the blocks that both finished."""

    x: np.ndarray  # (blocks,), as reference
    reference: np.ndarray
    ratio: significance.Ratio
    adjusted: float | None  # Holm's p over the declared family; None: not in it, or no test


def verdict(ratio):
    """What a ``Ratio`` says: "same", "undetected" (no difference detected), "less" or "more".

    A difference is named where the test found one or, for want of a test, where it can be shown.
    """
    if ratio.p is None and abs(1 - ratio.ratio) < SHOWN_SHARE:
        return "same"
    if ratio.p is not None and ratio.p >= significance.ALPHA:
        return "undetected"
    return "less" if ratio.ratio < 1 else "more"


def contrasts_of(metrics):
    """(arm, reference, meaning) of every contrast whose arms were trained."""
    return [c for c in CONTRASTS if c[0] in metrics and c[1] in metrics]


def compare(metrics, metadata):
    """{(arm, reference, outcome): Compared} of every contrast and outcome with positive pairs.

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

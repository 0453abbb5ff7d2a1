"""Contrasts: two arms compared over the blocks both finished, and the declared family of tests."""

from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from analysis.significance import (
    holm,
    non_inferiority,
    paired_difference,
    paired_ratio,
    two_sample_t,
)
from analysis.values import CONTRASTS, OUTCOMES, declared_margin, shared_values

FAMILY_OUTCOMES = ("training_time", "peak_memory_mb", "val_loss")  # tested for every contrast
PRIMARY = (  # what an experiment is made for, declared in its plan
    ("window", "fused", "training_time", "ratio"),
    ("window", "baseline", "training_time", "ratio"),
    ("window", "fused", "val_loss", "non-inferiority"),
    ("window", "baseline", "val_loss", "non-inferiority"),
)


# --- what the runs say -------------------------------------------------------------------------
class Compared(NamedTuple):
    """One outcome of an arm against a reference, over the runs that both finished."""

    x: np.ndarray
    reference: np.ndarray
    ratio: object
    adjusted: float | None  # Holm's p over the declared family; None: not in it, or no test


def positive(x, reference):
    """Can a ratio be taken of these values?"""
    return bool(x.size) and min(x.min(), reference.min()) > 0


def contrasts_of(metrics):
    """(arm, reference, meaning) of every contrast whose arms were trained."""
    return [c for c in CONTRASTS if c[0] in metrics and c[1] in metrics]


def family_of(metrics, metadata):
    """[(arm, reference, outcome)] that Holm's correction is over, as the plan declares them."""
    declared = metadata.get("plan", {}).get("family")
    if declared is None:  # a file from before it was declared
        return [(a, b, key) for a, b, _ in contrasts_of(metrics) for key in FAMILY_OUTCOMES]
    return [tuple(item) for item in declared]


def compare(metrics, metadata):
    """{(arm, reference, outcome): Compared} of every contrast and outcome with positive pairs."""
    found = {}
    for arm, reference, _ in contrasts_of(metrics):
        for key, *_ in OUTCOMES:
            x, ref = shared_values(metrics, (arm, reference), key)
            if positive(x, ref):
                found[arm, reference, key] = Compared(x, ref, paired_ratio(x, ref), None)
    family = [place for place in family_of(metrics, metadata) if place in found]
    adjusted = holm([found[place].ratio.p for place in family])
    for place, p in zip(family, adjusted, strict=True):
        found[place] = found[place]._replace(adjusted=p)
    return found


def primary_of(metadata):
    """The claims that the plan declares as what the experiment is for."""
    declared = metadata.get("plan", {}).get("primary")
    return PRIMARY if declared is None else [tuple(claim) for claim in declared]


def tests_of(metrics, metadata):
    """Every test of the report as a JSON-like list, so that the results carry them."""
    margin, tests = declared_margin(metadata), []
    for (arm, reference, key), compared in compare(metrics, metadata).items():
        test = {"arm": arm, "reference": reference, "outcome": key, **asdict(compared.ratio)}
        test |= {"adjusted_p": compared.adjusted}
        test["two_sample"] = asdict(two_sample_t(compared.x, compared.reference))
        if key == "val_loss":
            test["difference"] = asdict(paired_difference(compared.x, compared.reference))
            if margin is not None:
                claim = non_inferiority(compared.x, compared.reference, margin)
                test["quality"] = asdict(claim)
        tests.append(test)
    return tests

"""Made-up experiments for studies, and the contents that they come to."""

import copy
import math

import numpy as np
import pytest
from conftest import make_experiment

from attention.pattern import density
from studies.summary import summarize

LENGTH_ARMS = ("baseline", "window", "fused")
PATTERN_ARMS = ("fused", "w32-d0", "w96-d4", "w96-d16")
SPEED = {"fused": 1.0, "w32-d0": 0.6, "w96-d4": 0.9, "w96-d16": 0.8, "window": 0.7, "baseline": 2.5}
LOSS = {"fused": 0.0, "w32-d0": 0.3, "w96-d4": -0.05, "w96-d16": -0.01}


def _experiment_of(study, positions="learned", seq_len=1024, seed=0, blocks=4):
    """An experiment of a study whose arms differ in speed and loss by SPEED and LOSS."""
    arms = LENGTH_ARMS if study == "lengths" else PATTERN_ARMS
    metrics, metadata = make_experiment(blocks, arms=arms, steps=60, seed=seed)
    rng = np.random.default_rng(seed)
    for arm in arms:
        for training in metrics[arm]:
            noise = rng.normal(0, 0.002)
            training["training_time"] = 10 * SPEED[arm] * (1 + noise)
            shift = LOSS.get(arm, -0.02)
            training["val_loss"] = 4 + 0.1 * training["block"] + shift + noise
            curve = 9 * np.exp(-np.arange(60) / 30) + 2 + 0.1 * training["block"]
            training["losses"] = (curve + shift * np.arange(60) / 59).astype(np.float32)
    config = metadata["config"]
    config |= {"positions": positions, "seq_len": seq_len, "schedule": "constant"}
    config |= {"output_dir": f"out/{positions}_{seq_len}", "equivalence_margin": 0.02}
    metadata["pattern"]["density"] = density(seq_len, 96, 4)
    metadata |= {"steps": 60, "experiment_id": f"{positions}{seq_len}", "mixed": []}
    return metrics, metadata


@pytest.fixture(scope="session")
def experiment_of():
    return _experiment_of


@pytest.fixture(scope="session")
def summed_up():
    """{study: its content}; at 1,024 tokens and rotary positions the baseline has no room."""
    lengths = [
        _experiment_of("lengths", kind, seq_len, seed=seq_len)
        for kind in ("learned", "rotary")
        for seq_len in (256, 1024)
    ]
    for training in lengths[-1][0]["baseline"]:
        training |= {"status": "out_of_memory", "training_time": math.nan, "val_loss": math.nan}
    patterns = [_experiment_of("patterns", kind) for kind in ("learned", "rotary")]
    return {
        "lengths": summarize("lengths", lengths),
        "patterns": summarize("patterns", patterns),
    }


@pytest.fixture
def lengths(summed_up):
    return copy.deepcopy(summed_up["lengths"])


@pytest.fixture
def patterns(summed_up):
    return copy.deepcopy(summed_up["patterns"])

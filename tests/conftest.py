"""Shared fixtures: a made-up experiment for everything that works on saved metrics."""

import gc
import io
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first use

import matplotlib.image
import numpy as np
import pytest
import torch

from analysis.contrasts import family_of, primary_of
from figures.look import LOOK

ROOT = Path(__file__).resolve().parent.parent
matplotlib.use("Agg")
# a shell that starts pytest in the background has it ignore Ctrl-C, which some tests send
signal.signal(signal.SIGINT, signal.default_int_handler)
LOOK.update({"savefig.dpi": 40, "pdf.fonttype": 3})  # quicker to save; no test is about them
torch.set_num_threads(1)  # the models here are tiny: more threads only wait for one another


def make_training(arm, block, position, index, steps=40, seed=0, time_scale=1.0):
    """One made-up training whose numbers agree with one another (losses fall, times add up)."""
    rng = np.random.default_rng([seed, block, len(arm)])
    losses = (9.2 * np.exp(-np.arange(steps) / 30) + 2 + rng.normal(0, 0.05, steps)).astype(
        np.float32
    )
    step_seconds = (time_scale * rng.uniform(0.019, 0.021, steps)).astype(np.float32)
    training_time = float(step_seconds.sum(dtype=np.float64))
    evaluated = [*range(4, steps, 4), steps]
    held_out = [float(losses[step - 1] + 0.1 + rng.normal(0, 0.01)) for step in evaluated]
    return {
        "block": block,
        "position": position,
        "index": index,
        "seed": 1000 + block,
        "total_steps": steps,
        "total_tokens": steps * 2048,
        "training_time": training_time,
        "tokens_per_second": steps * 2048 / training_time,
        "peak_memory_mb": 1400.0 if arm == "fused" else 1500.0 + block,
        "peak_reserved_mb": float("nan"),
        "final_loss": float(losses[-1]),
        "avg_loss_last_100": float(losses[-100:].mean(dtype=np.float64)),
        "val_loss": float(losses[-1] + 0.1 + rng.normal(0, 0.01)),
        "compile_time": 0.0,
        "warmup_time": 0.1,
        "eval_time": 0.2,
        "wall_time": training_time + 0.5,
        "status": "ok",
        "message": "",
        "order": "window,baseline,fused",
        "started_at": "2026-01-01T00:00:00+00:00",
        "ended_at": "2026-01-01T00:00:09+00:00",
        "process": "first",
        "previous_arm": "",
        "device_before": None,
        "device_after": {"load_average_1min": 0.5},
        "curve": {"steps": evaluated, "losses": held_out},
        "reach": None,
        "losses": losses,
        "tokens_seen": np.arange(1, steps + 1, dtype=np.int64) * 2048,
        "step_seconds": step_seconds,
    }


def set_beside_fused(metrics, arm, factors=None, differences=None):
    """Give an arm fused's times multiplied by the factors, and its losses plus the differences.

    Both have a number for every block; None changes nothing.
    """
    blocks = list(zip(metrics[arm], metrics["fused"], strict=True))
    if factors is not None:
        for (training, fused), factor in zip(blocks, factors, strict=True):
            training["training_time"] = fused["training_time"] * factor
    if differences is not None:
        for (training, fused), difference in zip(blocks, differences, strict=True):
            training["val_loss"] = fused["val_loss"] + difference


def add_reach(metrics, reaches):
    """Give the trainings of ``reaches``, {arm: tokens it copies from}, made-up records of it."""
    distances = [128, 256, 512, 960]
    places = np.arange(15.5, 960, 30)
    for arm, far in reaches.items():
        for training in metrics[arm]:
            rng = np.random.default_rng([training["seed"], far])
            gains = np.where(np.array(distances) <= far, 1.5, 0.01) + rng.normal(0, 0.03, 4)
            lost = 0.3 * np.clip(places - far, 0, 400) / 400 + rng.normal(0, 0.02, 32)
            training["reach"] = {
                "passages": 200,
                "distances": distances,
                "gains": gains.tolist(),
                "gain_errors": rng.uniform(0.01, 0.03, 4).tolist(),
                "positions": places.tolist(),
                "position_losses": (2 + np.exp(-places / 60) + lost).tolist(),
            }


def make_experiment(blocks=4, arms=("baseline", "window", "fused"), steps=40, seed=0):
    """A made-up experiment: ``(metrics, metadata)`` as metrics_utils keeps them."""
    scale = {"baseline": 1.3, "window": 0.9, "fused": 1.0, "published": 1.5}
    metrics = {arm: [] for arm in arms}
    for block in range(blocks):
        for position, arm in enumerate(arms):
            place = block, position, block * len(arms) + position
            metrics[arm].append(make_training(arm, *place, steps, seed, scale.get(arm, 1.0)))
    metadata = {
        "status": "complete",
        "created_at": "2026-01-01T00:00:00+00:00",
        "config": {
            "preset": "laptop",
            "runs": blocks,
            "arms": list(arms),
            "seed": seed,
            "device": "cpu",
            "dtype": "float32",
            "compile": "none",
            "seq_len": 1024,
            "warmup_steps": 10,
            "batch_size": 2,
            "d_model": 128,
            "n_heads": 4,
            "layers": 4,
            "window_size": 96,
            "dilation": 4,
            "sink_tokens": 0,
            "full_heads": 0,
            "stagger": False,
            "nope": False,
            "positions": "learned",
            "world_size": 1,
            "gradient_accumulation": 1,
            "checkpoint_blocks": False,
            "loss_chunk": 0,
            "shard_sequence": 1,
        },
        "plan": {
            "orders": [list(arms)] * blocks,
            "seeds": [1000 + block for block in range(blocks)],
            "alpha": 0.05,
            "equivalence_margin": 0.02,
            "confirmation": 0,
            "primary": [list(claim) for claim in primary_of(arms)],
            "family": [list(test) for test in family_of(arms)],
        },
        "environment": {"device_name": "2-core CPU", "torch": "2.13.0"},
        "data": {
            "path": "training_data.npy",
            "train_rows": 100,
            "val_rows": 6,
            "val_rows_used": 4,
            "vocab_size": 512,
            "unigram_loss": 15.0,
            "bigram_loss": 14.0,
        },
        "pattern": {"density": 0.385, "evaluation": "split"},
        "attention": {},
        "code": None,
        "mixed": [],
        "memory_measure": "resident growth of a fresh process",
    }
    return metrics, metadata


def is_drawn(path):
    """Whether a picture shows something: a blank one has no contrast."""
    return matplotlib.image.imread(path)[..., :3].std() > 0.05


def nobody_reads(monkeypatch):
    """From now on the standard output is a closed pipe, as with ``| true``."""

    class Closed(io.StringIO):
        def write(self, text):
            if text:
                raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())


def flat(text):
    """A text in one line, with single blanks."""
    return " ".join(text.split())


def one_line(capsys):
    """The line on stderr that tells an error, where that is all that was said."""
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.fixture(autouse=True, scope="module")
def what_was_there_before_is_no_garbage():
    """Every training collects garbage: half a second each if it went through torch and scipy."""
    gc.freeze()


@pytest.fixture
def experiment():
    return make_experiment()


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder in which a small experiment can be run, and the present one."""
    from small_experiment import prepare_workplace  # which loads the suite

    return prepare_workplace(tmp_path, monkeypatch)

"""A study summed up: from the saved metrics of its points to the content of its file.

Estimates are dicts with ``mean``, ``low`` and ``high``, see tables.py.
"""

import json
from pathlib import Path

import numpy as np

from analysis.metrics import MetricsError, fitting, load_experiment
from analysis.recommend import patterns_of, recommend
from analysis.significance import log_interval, mean_interval, non_inferiority, paired_ratio
from analysis.values import (
    loss_differences,
    not_trained,
    ok_values,
    ordered_arms,
    paired_trainings,
    reading_marks,
    shared_values,
    smooth,
)
from analysis.warnings import measurement_warnings
from attention.pattern import causal_pairs
from gpt import model_flops
from machine.files import read_file, utc_now
from studies.tables import NO_ROOM, STUDIES
from training.arms import arm_density

CURVE_POINTS = 40


def summarize(study, experiments):
    """A study's content, plain values for JSON, from its experiments' (metrics, metadata)."""
    metadata = experiments[0][1]
    points = [_point(study, *experiment) for experiment in experiments]
    return {
        "study": study,
        "created_at": utc_now(),
        "device_name": metadata["environment"]["device_name"],
        "torch": metadata["environment"]["torch"],
        "data": metadata["data"],
        "code": metadata["code"],
        "config": metadata["config"],
        "points": sorted(points, key=lambda point: (point["positions"], point["seq_len"])),
    }


def load_study(path):
    """The content of a study's file; MetricsError names the file and the remedy.

    A saved experiment (.npz) is taken for a study of patterns with one point.
    """
    if Path(path).suffix == ".npz":
        return summarize("patterns", [load_experiment(path)])
    text = read_file(path, MetricsError, "python compare_models.py --study patterns writes it")
    with fitting(path):
        content = json.loads(text)
        if content["study"] not in STUDIES or not content["points"]:
            raise ValueError("it holds no study")
    return content


def _point(study, metrics, metadata):
    """What an experiment says as a point of a study."""
    config = metadata["config"]
    keys = "positions", "seq_len", "batch_size", "runs", "output_dir"
    point = {key: config[key] for key in keys} | {
        "experiment_id": metadata["experiment_id"],
        "steps": metadata["steps"],
        "margin": metadata["plan"]["equivalence_margin"],
        "mixed": metadata["mixed"],
        "marks": reading_marks(metrics, metadata),
        "recommendation": recommend(metrics, metadata)._asdict(),
        "warnings": measurement_warnings(metrics),
        "arms": {arm: _summary(metrics, arm, metadata["steps"]) for arm in ordered_arms(metrics)},
    }
    patterns = patterns_of(metrics)
    for arm in patterns:
        point["arms"][arm] |= _limits(metadata, arm_density(config, arm))
    if study == "patterns":
        for arm in patterns:
            point["arms"][arm]["contrast"] = _contrast(metrics, metadata, (arm, "fused"))
        point["curves"] = _curves(metrics, patterns, metadata["steps"])
        return point
    pairs = [(arm, "fused") for arm in point["arms"] if arm != "fused"]
    pairs += [(arm, "baseline") for arm in patterns]
    point["contrasts"] = {
        f"{arm}/{reference}": _contrast(metrics, metadata, (arm, reference))
        for arm, reference in pairs
        if reference in metrics
    }
    point["evaluation"] = metadata["pattern"]["evaluation"]
    return point | _limits(metadata, metadata["pattern"]["density"])


def _summary(metrics, arm, steps):
    """How an arm's trainings ended, and means of those that did well, geometric but for losses."""
    ended = [training["status"] for training in metrics[arm]]
    summary = {status: ended.count(status) for status in ("ok", NO_ROOM, "diverged")}
    for key, values, interval in (
        ("step_ms", 1e3 * ok_values(metrics, arm, "training_time") / steps, log_interval),
        ("peak_memory_mb", ok_values(metrics, arm, "peak_memory_mb"), log_interval),
        ("val_loss", ok_values(metrics, arm, "val_loss"), mean_interval),
    ):
        summary[key] = interval(values)._asdict() if values.size else None
    return summary


def _contrast(metrics, metadata, pair):
    """An arm against a reference, block by block; None where no block has both."""
    times = shared_values(metrics, pair, "training_time")
    memory = shared_values(metrics, pair, "peak_memory_mb")
    losses = shared_values(metrics, pair, "val_loss")
    if not (times.size and losses.size):
        return None
    quality = non_inferiority(*losses, metadata["plan"]["equivalence_margin"])._asdict()
    if not_trained(metrics, metadata, pair):  # its losses say nothing
        quality["verdict"] = "not trained"
    return {
        "time": paired_ratio(*times)._asdict(),
        "memory": paired_ratio(*memory)._asdict() if memory.size else None,
        "val_loss": mean_interval(losses[0] - losses[1])._asdict(),
        "quality": quality,
    }


def _limits(metadata, kept):
    """The share of the pairs that a pattern keeps, and what that saves of a whole step's FLOPs.

    step_limit: FLOPs of a step with full attention over those of a step with the pattern.
    """
    config, vocab_size = metadata["config"], metadata["data"]["vocab_size"]
    seq_len = config["seq_len"]
    linear, per_pair = model_flops(seq_len, config["d_model"], config["layers"], vocab_size)
    attention = per_pair * causal_pairs(seq_len)
    return {"density": kept, "step_limit": (linear + attention) / (linear + attention * kept)}


def _curves(metrics, patterns, steps):
    """Training loss minus that of fused over the tokens seen, with the t interval over blocks."""
    curves = {}
    window = min(steps, max(5, steps // 20))  # the loss at a moment is the mean over these steps
    for arm in patterns:
        paired = paired_trainings(metrics, (arm, "fused"))
        if not paired:
            continue
        differences = smooth(loss_differences(paired), window)  # (blocks, steps - window + 1)
        last = differences.shape[1] - 1
        chosen = np.unique(np.linspace(0, last, CURVE_POINTS).round().astype(int))
        intervals = [mean_interval(differences[:, step]) for step in chosen]
        curves[arm] = {
            "tokens": paired[0][0]["tokens_seen"][chosen + window - 1].tolist(),
            "mean": [interval.mean for interval in intervals],
            "low": [interval.low for interval in intervals],
            "high": [interval.high for interval in intervals],
        }
    return curves

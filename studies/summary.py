"""A study summed up: from the saved metrics of its points to the content of its file.

    content = summarize("lengths", [load_experiment(path) for path in paths])
    print(format_study(content))
    figures = plot_study(content)  # {name: Figure}

Estimates are dicts with ``mean``, ``low`` and ``high``, see measured.py.
"""

import json
import math
from collections import Counter
from dataclasses import asdict

import numpy as np

from analysis.metrics import MetricsError, fitting
from analysis.significance import mean_interval, non_inferiority, paired_difference, paired_ratio
from analysis.values import ordered_arms, pattern_of_arm, shared_values
from analysis.warnings import measurement_warnings
from attention.pattern import causal_pairs, density
from figures.data import smooth
from gpt import model_flops
from machine.files import read_file, utc_now, write_json
from studies.points import STUDIES, study_folder

CURVE_POINTS = 40
NO_ROOM = "out_of_memory"


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
        "code": metadata.get("code"),
        "config": metadata["config"],
        "points": sorted(points, key=lambda point: (point["positions"], point["seq_len"])),
    }


def save_study(content, output_dir):
    """Write ``<study>_study.json``, whole or not at all; returns its path."""
    path = study_folder(output_dir, content["study"]).with_suffix(".json")
    write_json(path, content)
    return path


def load_study(path):
    """The content of a study's file; MetricsError names the file and the remedy."""
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
        "warnings": measurement_warnings(metrics, metadata),
    }
    about = _about_window if study == "lengths" else _about_patterns
    return point | about(metrics, metadata)


def _about_window(metrics, metadata):
    """Every arm, the window's pattern and its contrasts."""
    contrasts = {
        f"window/{reference}": _contrast(metrics, metadata, ("window", reference))
        for reference in ("fused", "baseline")
        if {"window", reference} <= set(metrics)
    }
    return {
        **_limits(metadata, metadata["pattern"]["density"]),
        "evaluation": metadata["pattern"]["evaluation"],
        "arms": {arm: _summary(metrics[arm]) for arm in ordered_arms(metrics)},
        "contrasts": contrasts,
    }


def _about_patterns(metrics, metadata):
    """Every pattern against fused: whole trainings, equal seconds, and over the training."""
    config = metadata["config"]
    arms = {arm: _summary(metrics[arm]) for arm in ordered_arms(metrics)}
    others = [arm for arm in arms if arm != "fused"]
    for arm in others:
        window_size, dilation = pattern_of_arm(arm)
        kept = density(config["seq_len"], window_size, dilation, config.get("sink_tokens", 0))
        arms[arm] |= {"window_size": window_size, "dilation": dilation, **_limits(metadata, kept)}
        arms[arm]["contrast"] = _contrast(metrics, metadata, (arm, "fused"))
    pairs = {arm: found for arm in others if (found := _beside_fused(metrics, arm))}
    return {
        "arms": arms,
        "equal_seconds": _equal_seconds(metrics, pairs) if pairs else None,
        "curves": {arm: _curve(found) for arm, found in pairs.items()},
    }


def _summary(runs):
    """Means over an arm's trainings that ended well, and how the others ended."""
    found = Counter(run["status"] for run in runs)
    well = [run for run in runs if _ok(run)]
    return {
        "runs": len(runs),
        "ok": found["ok"],
        NO_ROOM: found[NO_ROOM],
        "diverged": found["diverged"],
        "step_ms": _mean([1e3 * run["training_time"] / run["total_steps"] for run in well]),
        "tokens_per_second": _mean([run["tokens_per_second"] for run in well]),
        "peak_memory_mb": _mean([run["peak_memory_mb"] for run in well]),
        "val_loss": _mean([run["val_loss"] for run in well]),
    }


def _ok(run):
    return run["status"] == "ok"


def _mean(values):
    """The estimate of the mean of what could be measured, None where nothing could."""
    values = [value for value in values if math.isfinite(value)]
    return asdict(mean_interval(values)) if values else None


def _contrast(metrics, metadata, pair):
    """An arm against a reference, block by block; None where no block has both."""
    times = shared_values(metrics, pair, "training_time")
    memory = shared_values(metrics, pair, "peak_memory_mb")
    losses = shared_values(metrics, pair, "val_loss")
    if not (times[0].size and losses[0].size):
        return None
    return {
        "time": asdict(paired_ratio(*times)),
        "memory": asdict(paired_ratio(*memory)) if memory[0].size else None,
        "val_loss": asdict(paired_difference(*losses)),
        "quality": asdict(non_inferiority(*losses, metadata["plan"]["equivalence_margin"])),
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


def _beside_fused(metrics, arm):
    """(training of the arm, training of fused) of every block in which both ended well."""
    fused = {run["block"]: run for run in metrics["fused"] if _ok(run)}
    return [
        (run, fused[run["block"]]) for run in metrics[arm] if _ok(run) and run["block"] in fused
    ]


def _smoothed(run):
    """A training's loss as the mean of the last steps' (a twentieth of all, at least 5)."""
    losses = np.asarray(run["losses"], dtype=np.float64)
    window = min(len(losses), max(5, len(losses) // 20))
    return smooth(losses[None], window)[0], window


def _curve(pairs):
    """Training loss minus that of fused over the tokens seen, with the t interval over blocks."""
    differences = np.array([_smoothed(run)[0] - _smoothed(fused)[0] for run, fused in pairs])
    last = differences.shape[1] - 1  # of (blocks, steps - window + 1)
    chosen = np.unique(np.linspace(0, last, CURVE_POINTS).round().astype(int))
    intervals = [mean_interval(differences[:, step]) for step in chosen]
    first, _ = pairs[0]
    _, window = _smoothed(first)
    return {
        "tokens": first["tokens_seen"][chosen + window - 1].tolist(),
        "smoothed_steps": window,
        "mean": [interval.mean for interval in intervals],
        "low": [interval.low for interval in intervals],
        "high": [interval.high for interval in intervals],
    }


def _equal_seconds(metrics, pairs):
    """Training losses when every training has had the time of the fastest one, against fused.

    A training's steps count as equally long.  With a constant learning rate the loss at that
    moment is that of a training which ends there.
    """
    seconds = min(run["training_time"] for runs in metrics.values() for run in runs if _ok(run))

    def loss_of(run):
        losses, window = _smoothed(run)
        steps = int(run["total_steps"] * seconds / run["training_time"])
        return float(losses[max(0, steps - window)])

    differences = {}
    for arm, found in pairs.items():
        of_arm = [loss_of(run) for run, _ in found]
        of_fused = [loss_of(fused) for _, fused in found]
        differences[arm] = asdict(paired_difference(of_arm, of_fused))
    return {"seconds": seconds, "differences": differences}

"""A study summed up: from the saved metrics of its points to the content of its file.

``python compare_models.py --study lengths`` and ``--study patterns`` train; every point of a study
is an experiment with a folder of its own, which goes on after a stop like any other.  The content
of ``<study>_study.json`` is always made anew from the points on the disk.

    content = summarize("lengths", [load_experiment(path) for path in paths])
    print(format_study(content))
    figures = plot_study(content)  # {name: Figure}

Letters: S sequence length, w window_size, d dilation.
"""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from analysis.metrics import MetricsError
from analysis.significance import mean_interval, non_inferiority, paired_difference, paired_ratio
from analysis.values import ordered_arms, pattern_of_arm, shared_values
from analysis.warnings import measurement_warnings
from attention.pattern import causal_pairs, density
from experiment.identity import identities_differ
from figures.data import smooth
from gpt import model_flops
from machine.files import DAMAGE, read_file, unsealed, utc_now, write_sealed
from studies.points import STUDIES, StudyError, point_name, shared_identity, study_name

CURVE_POINTS = 40
NO_ROOM = "out_of_memory"


# --- summing up --------------------------------------------------------------------------------
def _arm_summary(runs):
    """Means over an arm's trainings that ended well, with t intervals, and how the others ended."""
    ok = [run for run in runs if run["status"] == "ok"]
    summary = {"runs": len(runs), "ok": len(ok)}
    summary |= {s: sum(r["status"] == s for r in runs) for s in (NO_ROOM, "diverged")}
    series = {
        "step_ms": [1e3 * run["training_time"] / run["total_steps"] for run in ok],
        "tokens_per_second": [run["tokens_per_second"] for run in ok],
        "peak_memory_mb": [run["peak_memory_mb"] for run in ok],
        "val_loss": [run["val_loss"] for run in ok],
    }
    for name, values in series.items():
        values = [value for value in values if math.isfinite(value)]
        summary[name] = asdict(mean_interval(values)) if values else None
    return summary


def _contrast(metrics, arm, reference, margin):
    """An arm against another, block by block; None where no block has both."""
    pair = arm, reference
    # a training may end well and have no validation loss that is a number
    if not all(len(shared_values(metrics, pair, key)[0]) for key in ("training_time", "val_loss")):
        return None
    contrast = {}
    for name, key in (("time", "training_time"), ("memory", "peak_memory_mb")):
        values = shared_values(metrics, pair, key)
        contrast[name] = asdict(paired_ratio(*values)) if len(values[0]) else None
    losses = shared_values(metrics, pair, "val_loss")
    contrast["val_loss"] = asdict(paired_difference(*losses))
    contrast["quality"] = asdict(non_inferiority(*losses, margin))
    return contrast


def _limits(config, kept, vocab_size):
    """The share of the pairs that a pattern keeps, and what that saves of a whole step's FLOPs.

    step_limit: FLOPs of a step with full attention over those of a step with the pattern.
    """
    seq_len = config["seq_len"]
    linear, per_pair = model_flops(seq_len, config["d_model"], config["layers"], vocab_size)
    attention = per_pair * causal_pairs(seq_len)
    return {"density": kept, "step_limit": (linear + attention) / (linear + attention * kept)}


def _unlike_marked(study, experiments):
    """The experiments, those marked as mixed that were not trained as the first unmarked one."""

    def unmarked(metadata):
        return "identity" in metadata and not metadata.get("mixed")

    first = next((metadata for _, metadata in experiments if unmarked(metadata)), None)
    marked = []
    for metrics, metadata in experiments:
        if unmarked(metadata):
            one, other = (shared_identity(study, m["identity"]) for m in (metadata, first))
            words = "there", f"in {point_name(study, first['config'])}"
            metadata = metadata | {"mixed": identities_differ(one, other, words)}
        marked.append((metrics, metadata))
    return marked


def summarize(study, experiments):
    """A study's content, plain values for JSON, from its experiments' (metrics, metadata).

    Points differ in what OF_A_POINT names; one that differs from the first in more (code, another
    option, a variable) is marked as mixed.
    """
    if not experiments:
        raise StudyError(f"no experiment of the study of {study} has a finished training")
    experiments = _unlike_marked(study, experiments)
    summarize_one = _length_point if study == "lengths" else _pattern_point
    metadata = experiments[0][1]
    environment = metadata["environment"]
    points = [summarize_one(*experiment) for experiment in experiments]
    return {
        "study": study,
        "created_at": utc_now(),
        "device_name": environment["device_name"],
        "gpus": len({gpu["uuid"] for _, m in experiments if (gpu := m["environment"].get("gpu"))}),
        "torch": environment["torch"],
        "data": metadata["data"],
        "code": metadata.get("code"),
        "config": metadata["config"],
        "points": sorted(points, key=lambda point: (point["positions"], point["seq_len"])),
    }


def _place(metrics, metadata):
    """What a point says of its experiment."""
    config = metadata["config"]
    keys = ("seq_len", "batch_size", "dtype", "compile", "runs", "output_dir")
    place = {key: config[key] for key in keys}
    place["positions"] = config.get("positions", "learned")
    place["steps"], place["status"] = metadata["steps"], metadata["status"]
    place["mixed"] = metadata.get("mixed", [])
    place["warnings"] = measurement_warnings(metrics, metadata)
    place["experiment_id"] = metadata["experiment_id"]
    return place


def _length_point(metrics, metadata):
    config, vocab_size = metadata["config"], metadata["data"]["vocab_size"]
    margin = metadata["plan"]["equivalence_margin"]
    point = _place(metrics, metadata)
    point |= _limits(config, metadata["pattern"]["density"], vocab_size)
    point["evaluation"] = metadata["pattern"]["evaluation"]
    point["arms"] = {arm: _arm_summary(metrics[arm]) for arm in ordered_arms(metrics)}
    pairs = [p for p in (("window", "fused"), ("window", "baseline")) if set(p) <= set(metrics)]
    point["contrasts"] = {"/".join(p): _contrast(metrics, *p, margin) for p in pairs}
    return point


def _pattern_point(metrics, metadata):
    config, vocab_size = metadata["config"], metadata["data"]["vocab_size"]
    margin = metadata["plan"]["equivalence_margin"]
    point = _place(metrics, metadata) | {"margin": margin}
    arms = {}
    for arm in ordered_arms(metrics):
        arms[arm] = _arm_summary(metrics[arm])
        if pattern := pattern_of_arm(arm):
            arms[arm] |= {"window_size": pattern[0], "dilation": pattern[1]}
            kept = density(config["seq_len"], *pattern, config.get("sink_tokens", 0))
            arms[arm] |= _limits(config, kept, vocab_size)
            arms[arm]["contrast"] = _contrast(metrics, arm, "fused", margin)
    point["arms"] = arms
    point["equal_seconds"] = _equal_seconds(metrics)
    point["curves"] = _curves(metrics)
    for name, losses in (("pareto", _val_differences), ("pareto_seconds", _equal_differences)):
        front = pareto_front({arm: (_speed_up(arms, arm), y) for arm, y in losses(point).items()})
        for arm in arms:
            arms[arm][name] = arm in front
    return point


def _speed_up(arms, arm):
    """How many times as fast as ``fused`` an arm trains, the geometric mean over the blocks."""
    return 1.0 if arm == "fused" else 1 / arms[arm]["contrast"]["time"]["ratio"]


def _val_differences(point):
    """{arm: mean validation loss minus that of fused} at equal tokens."""
    arms = point["arms"]
    found = {a: s["contrast"]["val_loss"]["mean"] for a, s in arms.items() if s.get("contrast")}
    return {"fused": 0.0} | found


def _equal_differences(point):
    """{arm: mean training loss minus that of fused} at equal seconds."""
    if point["equal_seconds"] is None:
        return {}
    differences = point["equal_seconds"]["differences"].items()
    return {"fused": 0.0} | {a: d["mean"] for a, d in differences if point["arms"][a]["contrast"]}


def pareto_front(points):
    """The names of {name: (speed-up, loss)} that no other one beats in both; ties stay."""
    return {
        name
        for name, (speed, loss) in points.items()
        if not any(
            (s >= speed and value <= loss) and (s > speed or value < loss)
            for s, value in points.values()
        )
    }


def _smoothed(run):
    """A training's loss as the mean of the last steps' (a twentieth of all, at least 5)."""
    losses = np.asarray(run["losses"], dtype=np.float64)
    window = min(len(losses), max(5, len(losses) // 20))
    return smooth(losses[None], window)[0], window


def _by_run(metrics, arm):
    return {run["block"]: run for run in metrics[arm] if run["status"] == "ok"}


def _curves(metrics):
    """Training loss minus that of fused over the tokens seen, with the t interval over runs."""
    reference = _by_run(metrics, "fused")
    curves = {}
    for arm in ordered_arms(metrics):
        runs = _by_run(metrics, arm)
        shared = sorted(set(runs) & set(reference))
        if arm == "fused" or not shared:
            continue
        rows = []
        for run in shared:
            (mine, window), (other, _) = _smoothed(runs[run]), _smoothed(reference[run])
            rows.append(mine - other)
        differences = np.array(rows)  # (runs, steps - window + 1)
        chosen = np.unique(np.linspace(0, differences.shape[1] - 1, CURVE_POINTS).round())
        chosen = chosen.astype(int)
        bands = [asdict(mean_interval(differences[:, i])) for i in chosen]
        tokens = runs[shared[0]]["tokens_seen"][chosen + window - 1]
        curves[arm] = {"tokens": [int(t) for t in tokens], "smoothed_steps": window}
        curves[arm] |= {key: [band[key] for band in bands] for key in ("mean", "low", "high")}
    return curves


def _equal_seconds(metrics):
    """Training losses when every training has had the time of the fastest one, against fused.

    A training's steps count as equally long.  With a constant learning rate the loss at that
    moment is that of a training which ends there.  None without a block of fused and another.
    """
    ok = [run for arm in metrics for run in _by_run(metrics, arm).values()]
    reference = _by_run(metrics, "fused")
    if not (ok and reference):
        return None
    seconds = min(run["training_time"] for run in ok)

    def loss_of(run):
        losses, window = _smoothed(run)
        steps = int(run["total_steps"] * seconds / run["training_time"])
        return float(losses[max(0, steps - window)])

    differences = {}
    for arm in ordered_arms(metrics):
        runs = _by_run(metrics, arm)
        shared = sorted(set(runs) & set(reference))
        if arm == "fused" or not shared:
            continue
        pair = [[loss_of(of[run]) for run in shared] for of in (runs, reference)]
        differences[arm] = asdict(paired_difference(*pair))
    return {"seconds": seconds, "differences": differences}


def save_study(content, output_dir):
    """Write ``<study>_study.json``, sealed with a checksum, whole or not at all; its path."""
    path = Path(output_dir) / f"{study_name(content['study'])}.json"
    write_sealed(path, content)
    return path


def load_study(path):
    """The content of a study's file; MetricsError names the file and the remedy."""
    remedy = "python compare_models.py --study patterns writes it"
    text = read_file(path, MetricsError, remedy)
    try:
        content = unsealed(text)
        if content["study"] not in STUDIES or not content["points"]:
            raise ValueError("it holds no study")
    except (*DAMAGE, KeyError) as error:
        raise MetricsError(
            f"{path}: no study, or damaged ({error}): start the study again, it makes the file "
            "anew from what was trained"
        ) from None
    return content


# --- what the measurements say -----------------------------------------------------------------
def measured_rows(point):
    """[(arm, its summary, speed-up over fused as mean, low and high)] of a point's patterns."""
    return [
        (arm, summary, _inverse(summary["contrast"]["time"]))
        for arm, summary in point["arms"].items()
        if summary.get("contrast")
    ]


def _inverse(ratio):
    """A ratio's estimate turned over, as mean, low and high."""
    low, high = (None if ratio[k] is None else 1 / ratio[k] for k in ("high", "low"))
    return {"mean": 1 / ratio["ratio"], "low": low, "high": high}

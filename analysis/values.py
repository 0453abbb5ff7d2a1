"""Values of saved trainings, picked and named: arms, outcomes, contrasts, summaries."""

import math
import re

import numpy as np

from analysis.metrics import RECORDS
from analysis.words import text_table

ARM_ORDER = ("baseline", "window", "fused", "published")


def layers_text(value):
    """A number, or one for each layer, in words: "96" or "96,96,128,128"."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def pattern_text(config):
    """The pattern of a configuration (a dict) in words; files from before sinks name none."""
    names = ["window_size", "dilation"] + ["sink_tokens"] * bool(config.get("sink_tokens"))
    return ", ".join(f"{name} {layers_text(config[name])}" for name in names)


def ranks_text(config):
    """The processes that train together, in words; "" for one that takes its batches whole."""
    words, parts = "", config.get("gradient_accumulation", 1)
    if config.get("world_size", 1) > 1:  # files from before there were several name none
        words = f", {config['world_size']} ranks ({config['backend']})"
    return words + (f", gradients accumulated over {parts} micro-steps" if parts > 1 else "")


# --- summary -----------------------------------------------------------------------------------

# key, words, unit, digits; for every one of them less is better
OUTCOMES = (
    ("training_time", "training time", "s", 2),
    ("peak_memory_mb", "peak memory", "MB", 1),
    ("avg_loss_last_100", "loss, last ≤ 100 steps", "nats", 4),
    ("val_loss", "validation loss", "nats", 4),
)
CONTRASTS = (  # arm, reference, what the difference is
    ("window", "fused", "sparsity alone"),
    ("fused", "baseline", "the kernel"),
    ("window", "baseline", "the documented comparison: kernel and sparsity together"),
    ("baseline", "published", "the mask bookkeeping"),
    ("window", "published", "mask bookkeeping, kernel and sparsity together"),
)
PRACTICAL_SHARE = 0.01  # a difference below 1 % is called so, significant or not
SHOWN_SHARE = 5e-5  # a smaller one would read 0.00 %
# What nvidia-smi calls the reasons for which a GPU runs slower than it was asked to.
THROTTLING = (
    "sw_power_cap",
    "hw_slowdown",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
)


def throttled(run):
    """The reasons for which the device was slowing itself down before or after a training."""
    states = [run[key] for key in RECORDS if run.get(key)]
    reasons = {reason for state in states for reason in state.get("throttle_reasons") or ()}
    return [reason for reason in THROTTLING if reason in reasons]


def declared_margin(metadata):
    """The equivalence margin written into the plan before the first run, None in older files."""
    margin = (metadata.get("plan") or {}).get("equivalence_margin")
    return margin if isinstance(margin, int | float) and 0 < margin < math.inf else None


def trainings_of(metrics):
    """(arm, run) of every training."""
    return [(arm, run) for arm, runs in metrics.items() for run in runs]


def in_order(metrics):
    """All trainings, in the order in which the plan starts them."""
    return sorted((run for _, run in trainings_of(metrics)), key=lambda run: run["index"])


def planned_trainings(metadata):
    """How many trainings an experiment's plan has: every arm in every run."""
    return len(metadata["plan"]["orders"]) * len(metadata["config"]["arms"])


def arm_of_pattern(window_size, dilation):
    """The name of the window arm with a pattern of its own: ``w96-d4``."""
    return f"w{window_size}-d{dilation}"


def pattern_of_arm(arm):
    """(window_size, dilation) of an arm that is named by its pattern, else None."""
    found = re.fullmatch(r"w(\d{1,10})-d(\d{1,10})", arm)
    return None if found is None else tuple(map(int, found.groups()))


def ordered_arms(metrics):
    """The arms in their fixed order (ARM_ORDER first, then any others by pattern or name)."""
    known = [arm for arm in ARM_ORDER if arm in metrics]
    return known + sorted(set(metrics) - set(known), key=lambda a: (pattern_of_arm(a) or (), a))


def ok_values(metrics, arm, key):
    """The finite values of ``key`` over the arm's runs that ended well, as an array."""
    values = np.array([run[key] for run in metrics[arm] if run["status"] == "ok"], dtype=np.float64)
    return values[np.isfinite(values)]


def shared_values(metrics, arms, key):
    """Values of ``key`` over the runs that all ``arms`` finished well, an equal array for each."""
    by_run = [
        {r["block"]: r[key] for r in metrics[arm] if r["status"] == "ok" and math.isfinite(r[key])}
        for arm in arms
    ]
    shared = sorted(set.intersection(*map(set, by_run)))
    return [np.array([values[run] for run in shared], dtype=np.float64) for values in by_run]


def _mean_std(values, digits):
    if not values.size:
        return "-"
    if values.size == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{values.mean():,.{digits}f} ± {values.std(ddof=1):,.{digits}f}"


def format_summary(metrics):
    """Mean ± standard deviation over the runs, a line for each arm, as text."""
    rows = [["arm", "runs"] + [f"{words} ({unit})" for _, words, unit, _ in OUTCOMES]]
    for arm in ordered_arms(metrics):
        ended_well = sum(run["status"] == "ok" for run in metrics[arm])
        cells = [_mean_std(ok_values(metrics, arm, key), digits) for key, _, _, digits in OUTCOMES]
        rows.append([arm, str(ended_well), *cells])
    return "\n".join(text_table(rows))


def print_metrics_summary(metrics):
    """Print ``format_summary``: mean ± standard deviation of every arm."""
    print(format_summary(metrics))

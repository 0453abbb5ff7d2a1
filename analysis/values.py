"""Values of saved trainings, picked and named: arms, outcomes, contrasts, summaries.

metrics: {arm: [training, ...]} of metrics.py.
"""

import re

import numpy as np

from analysis.metrics import RECORDS
from analysis.words import mean_sd, text_table

ARM_ORDER = ("baseline", "window", "fused", "published")
OUTCOMES = (  # key, words, unit; for every one of them less is better
    ("training_time", "training time", "s"),
    ("peak_memory_mb", "peak memory", "MB"),
    ("avg_loss_last_100", "loss, last ≤ 100 steps", "nats"),
    ("val_loss", "validation loss", "nats"),
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


def pattern_text(config):
    """The pattern of a configuration (a dict): "window_size 96, dilation 4", or one a layer."""
    words = []
    for name in ("window_size", "dilation", "sink_tokens"):
        value = config.get(name)  # files from before sinks name none
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        if value or name != "sink_tokens":
            words.append(f"{name} {value}")
    return ", ".join(words)


def ranks_text(config):
    """The processes that train together, in words; "" for one that takes its batches whole."""
    words, parts = "", config.get("gradient_accumulation", 1)
    if config.get("world_size", 1) > 1:  # files from before there were several name none
        words += f", {config['world_size']} ranks ({config['backend']})"
    if parts > 1:
        words += f", gradients accumulated over {parts} micro-steps"
    return words


def arm_of_pattern(window_size, dilation):
    """The name of the window arm with this pattern: ``w96-d4``."""
    return f"w{window_size}-d{dilation}"


def pattern_of_arm(arm):
    """(window_size, dilation) of an arm that is named by its pattern, else None."""
    found = re.fullmatch(r"w(\d{1,10})-d(\d{1,10})", arm)
    return None if found is None else tuple(map(int, found.groups()))


def ordered_arms(metrics):
    """The arms in their fixed order (ARM_ORDER first, then any others by pattern or name)."""
    known = [arm for arm in ARM_ORDER if arm in metrics]
    return known + sorted(set(metrics) - set(known), key=lambda a: (pattern_of_arm(a) or (), a))


def trainings_of(metrics):
    """(arm, training) of every training, arm by arm in their order."""
    return [(arm, training) for arm in ordered_arms(metrics) for training in metrics[arm]]


def ok_trainings(metrics):
    """(arm, training) of every training that ended well."""
    return [item for item in trainings_of(metrics) if item[1]["status"] == "ok"]


def in_order(metrics):
    """All trainings, in the order in which they were started."""
    return sorted((training for _, training in trainings_of(metrics)), key=lambda t: t["index"])


def planned_trainings(metadata):
    """How many trainings an experiment's plan has: every arm in every block."""
    return len(metadata["plan"]["orders"]) * len(metadata["config"]["arms"])


def declared_margin(metadata):
    """The equivalence margin of the plan, in nats of validation loss; None in older files."""
    return metadata["plan"].get("equivalence_margin")


def throttled(training):
    """The reasons for which the device slowed itself down before or after a training."""
    reasons = set()
    for key in RECORDS:
        state = training.get(key) or {}
        reasons.update(state.get("throttle_reasons") or ())
    return [reason for reason in THROTTLING if reason in reasons]


def ok_values(metrics, arm, key):
    """The finite values of ``key`` over the arm's trainings that ended well, as an array (n,)."""
    return shared_values(metrics, (arm,), key)[0]


def paired_trainings(metrics, arms):
    """For every block that all of ``arms`` ended well, in order, a tuple of their trainings."""
    by_block = []
    for arm in arms:
        by_block.append({t["block"]: t for t in metrics.get(arm, ()) if t["status"] == "ok"})
    shared = sorted(set.intersection(*map(set, by_block)))
    return [tuple(trainings[block] for trainings in by_block) for block in shared]


def shared_values(metrics, arms, key):
    """Values of ``key`` over the blocks in which all ``arms`` have a finite one (arms, blocks)."""
    rows = [[t[key] for t in trainings] for trainings in paired_trainings(metrics, arms)]
    values = np.array(rows, dtype=np.float64).reshape(-1, len(arms))
    return values[np.isfinite(values).all(axis=1)].T


def outcome_table(metrics, cell):
    """A line for each arm with ``cell(values, unit)`` of every outcome, as aligned lines."""
    header = [f"{words} ({unit})" for _, words, unit in OUTCOMES]
    rows = [["arm", "blocks", *header]]
    for arm in ordered_arms(metrics):
        ended_well = sum(training["status"] == "ok" for training in metrics[arm])
        cells = [cell(ok_values(metrics, arm, key), unit) for key, _, unit in OUTCOMES]
        rows.append([arm, str(ended_well), *cells])
    return text_table(rows)


def print_metrics_summary(metrics):
    """Print mean ± standard deviation over the trainings, a line for each arm."""
    print("\n".join(outcome_table(metrics, mean_sd)))

"""Values of saved trainings, picked and named: arms, outcomes, summaries.

metrics: {arm: [training, ...]} of metrics.py.
"""

import re
from typing import NamedTuple

import numpy as np

from analysis.words import mean_sd, text_table
from machine.command import counted


class Metric(NamedTuple):
    """One number a training."""

    key: str
    name: str
    unit: str


ARM_ORDER = ("baseline", "window", "fused", "published")
OUTCOMES = TIME, MEMORY, TRAIN_LOSS, VAL_LOSS = (  # for every one of them less is better
    Metric("training_time", "training time", "s"),
    Metric("peak_memory_mb", "peak memory", "MB"),
    Metric("avg_loss_last_100", "loss, last ≤ 100 steps", "nats"),
    Metric("val_loss", "validation loss", "nats"),
)
PATTERN_NAME = re.compile(
    "w(0|NUMBER)-d(0|NUMBER)(-s)?(-f(NUMBER))?(-e(NUMBER))?".replace("NUMBER", "[1-9][0-9]{,8}")
)
LONG_TOKENS = 100_000_000  # of a training; the order of patterns after a shorter one may not last
SMOKE_MARK = "smoke test: says nothing about time or quality"
PRACTICAL_SHARE = 0.01  # the report marks a smaller difference as small, significant or not


def is_smoke_test(metadata):
    """Whether an experiment only shows that everything works."""
    return metadata["config"]["preset"] == "smoke"


def pattern_text(config):
    """The pattern of the arm ``window`` by a configuration (a dict): "window_size 96, dilation 4".

    Values that differ by layer stand side by side with commas.  Where ``window`` was not trained,
    the text has only what holds for arms named by their pattern as well: sinks, and full heads
    without positions; "" for neither.
    """
    trained = "window" in config["arms"]
    names = ["sink_tokens"]
    if trained:
        names = ["window_size", "dilation", "sink_tokens", "full_heads"]
    words = []
    for name in names:
        value = config[name]
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        if value or name in ("window_size", "dilation"):
            words.append(f"{name} {value}")
    if trained and config["stagger"]:
        words.append("staggered")
    if config["nope"]:
        words.append("full heads without positions")
    return ", ".join(words)


def ranks_text(config):
    """How a step is shared by ranks and micro-steps and how it saves memory; "" where neither."""
    words = ""
    if config["world_size"] > 1:
        words += f", {config['world_size']} ranks ({config['backend']})"
    if config["shard_sequence"] > 1:
        length = config["seq_len"] // config["shard_sequence"]
        words += f", each sequence cut over {config['shard_sequence']} into {length:,} tokens"
    if config["gradient_accumulation"] > 1:
        words += f", gradients accumulated over {config['gradient_accumulation']} micro-steps"
    if config["checkpoint_blocks"]:
        words += ", blocks computed again in the backward pass"
    if config["loss_chunk"]:
        words += f", logits of {config['loss_chunk']:,} tokens at a time"
    return words


def pattern_of_arm(arm):
    """The pattern that an arm's name spells, a dict: ``w96-d4``, ``w96-d0-f1``; None: it does not.

    ``-s``: stagger; ``-f1``: 1 of full_heads in every layer; ``-e4``: every 4th layer is full.
    """
    found = PATTERN_NAME.fullmatch(arm)
    if found is None:
        return None
    window_size, dilation, full_heads, every = (int(n or 0) for n in found.group(1, 2, 5, 7))
    return {
        "window_size": window_size,
        "dilation": dilation,
        "stagger": found[3] is not None,
        "full_heads": full_heads,
        "full_layers": every,
    }


def ordered_arms(metrics):
    """The arms in their fixed order (ARM_ORDER first, then any others by pattern or name)."""
    known = [arm for arm in ARM_ORDER if arm in metrics]
    others = sorted(set(metrics) - set(known))
    return known + sorted(others, key=lambda arm: tuple((pattern_of_arm(arm) or {}).values()))


def trainings_of(metrics):
    """(arm, training) of every training, arm by arm in their order."""
    return [(arm, training) for arm in ordered_arms(metrics) for training in metrics[arm]]


def ok_trainings(metrics):
    """(arm, training) of every training that ended well."""
    return [item for item in trainings_of(metrics) if item[1]["status"] == "ok"]


def in_order(metrics):
    """(arm, training) of every training, in the order in which they were started."""
    return sorted(trainings_of(metrics), key=lambda item: item[1]["index"])


def planned_trainings(metadata):
    """How many trainings an experiment's plan has: every arm in every block."""
    return len(metadata["plan"]["orders"]) * len(metadata["config"]["arms"])


def reading_marks(metrics, metadata):
    """The reservations under which anything said of an experiment stands, a few words each."""
    marks = [SMOKE_MARK] if is_smoke_test(metadata) else []
    if metadata["status"] != "complete":
        done = len(trainings_of(metrics))
        marks.append(f"partial: {done}/{counted(planned_trainings(metadata), 'training')}")
    return marks + ["mixed: trainings that differ"] * bool(metadata["mixed"])


def throttled(training):
    """The reasons for which the device slowed itself down before or after a training."""
    reasons = set()
    for state in (training.get("device_before"), training.get("device_after")):
        reasons.update((state or {}).get("throttle_reasons") or ())
    # limits of power and heat alone: a GPU that idles lowers its clock for a reason too
    return sorted(reason for reason in reasons if reason.endswith(("_cap", "_slowdown")))


def ok_values(metrics, arm, key):
    """The finite values of ``key`` over the arm's trainings that ended well, as an array (n,)."""
    return shared_values(metrics, (arm,), key)[0]


def tokens_of(metrics, arm):
    """How many tokens a training of the arm saw."""
    return int(ok_values(metrics, arm, "total_tokens").max())


def not_trained(metrics, metadata, arms=None):
    """The arms that end at or above the loss of always predicting the frequencies of tokens."""
    unigram_loss = metadata["data"]["unigram_loss"]
    if unigram_loss is None:  # an earlier file
        return []
    losses = {arm: ok_values(metrics, arm, "val_loss") for arm in arms or ordered_arms(metrics)}
    return [arm for arm, values in losses.items() if values.size and values.mean() >= unigram_loss]


def paired_trainings(metrics, arms):
    """A tuple of the arms' trainings for every block that all of them ended well, in order."""
    by_block = []
    for arm in arms:
        by_block.append({t["block"]: t for t in metrics.get(arm, ()) if t["status"] == "ok"})
    shared = sorted(set.intersection(*map(set, by_block)))
    return [tuple(trainings[block] for trainings in by_block) for block in shared]


def shared_values(metrics, arms, key):
    """Values of ``key`` in the blocks where all ``arms`` have a finite one: (arms, blocks)."""
    rows = [[t[key] for t in trainings] for trainings in paired_trainings(metrics, arms)]
    values = np.array(rows, dtype=np.float64).reshape(-1, len(arms))
    return values[np.isfinite(values).all(axis=1)].T


def table(trainings, key):
    """A series of each of these trainings, cut to the shortest: (R, steps)."""
    steps = min(training["total_steps"] for training in trainings)
    return np.stack([training[key][:steps] for training in trainings]).astype(np.float64)


def loss_differences(pairs):
    """Training losses of every pair's first training minus its second's: (blocks, steps)."""
    losses, of_reference = (table(trainings, "losses") for trainings in zip(*pairs, strict=True))
    return losses - of_reference


def smooth(losses, window):
    """Centred moving average of each row; only full windows, so the ends get shorter."""
    kernel = np.full(window, 1 / window)
    return np.stack([np.convolve(row, kernel, mode="valid") for row in losses])


def outcome_table(metrics, cell):
    """A row for each arm with ``cell(values, unit)`` of every outcome."""
    header = [f"{words} ({unit})" for _, words, unit in OUTCOMES]
    rows = [["arm", "blocks", *header]]
    for arm in ordered_arms(metrics):
        ended_well = sum(training["status"] == "ok" for training in metrics[arm])
        cells = [cell(ok_values(metrics, arm, key), unit) for key, _, unit in OUTCOMES]
        rows.append([arm, str(ended_well), *cells])
    return rows


def print_metrics_summary(metrics):
    """Print mean ± standard deviation over the trainings, a line for each arm."""
    print("\n".join(text_table(outcome_table(metrics, mean_sd))))

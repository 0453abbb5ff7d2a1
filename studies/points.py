"""The points of the two studies, lengths and patterns.

A point is one experiment, a dict of what it changes in the study's configuration.
"""

from pathlib import Path

from analysis.values import pattern_of_arm
from machine.command import UserError
from training.arms import DEFAULT_ARMS

LENGTHS = {"cpu": (256, 512, 1024, 2048), "cuda": (256, 1024, 4096, 16384)}
# three windows, each alone and with far keys; the published 96, 4 among them
PATTERNS = ("w32-d0", "w32-d8", "w96-d0", "w96-d4", "w96-d16", "w256-d0", "w256-d8", "w256-d32")
# put over a preset; with a constant learning rate a training could end at any step
DEFAULTS = {"runs": 3, "schedule": "constant", "arms": DEFAULT_ARMS}
DEFAULTS |= {"eval_every": 0, "reach_passages": 0}
# 64 batches of preset long are a million tokens: a large corpus holds out more than is trained on
SHORT = {"val_batches": 64, "lr": 3e-4}
STUDY_DEFAULTS = {
    ("lengths", "cpu"): {"batch_size": 4, "max_steps": 40, "warmup_steps": 4},
    ("lengths", "cuda"): {"max_steps": 300, **SHORT},
    ("patterns", "cpu"): {},
    ("patterns", "cuda"): {"max_steps": 600, **SHORT},
}


def length_points(lengths, positions, batch_size, seq_len):
    """What each length and kind of positions changes; a step has batch_size x seq_len tokens."""
    tokens = batch_size * seq_len
    points = []
    for kind in positions:
        for length in sorted(set(lengths)):
            if length < 1 or tokens % length:
                raise UserError(
                    f"--seq-lens {length}: does not divide the {tokens:,} tokens of a step "
                    "(--batch-size x --seq-len): choose lengths that do"
                )
            rows = tokens // length
            points.append({"seq_len": length, "batch_size": rows, "positions": kind})
    return points


def pattern_points(patterns, positions):
    """What each kind of positions changes: ``fused`` and a window arm for each pattern."""
    arms = ("fused", *dict.fromkeys(patterns))
    return [{"arms": arms, "positions": kind} for kind in positions]


def parse_pattern(text):
    """The arm that a text like ``96:4`` or ``w96-d0-f1`` names; UserError for another text."""
    arm = "w{}-d{}".format(*text.split(":")) if text.count(":") == 1 else text
    if pattern_of_arm(arm) is None:
        raise UserError(
            f"--patterns {text}: give window_size:dilation, as 96:4, or a name, as w96-d0-f1"
        )
    return arm


def study_folder(output_dir, study):
    """The folder with a folder for each point of a study; beside it lies ``<folder>.json``."""
    return Path(output_dir) / f"{study.removesuffix('s')}_study"

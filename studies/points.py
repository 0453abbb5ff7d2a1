"""The points of the two studies, lengths and patterns.

A point is one experiment, a dict of what it changes in the study's configuration.
"""

from pathlib import Path

from analysis.values import arm_of_pattern
from machine.command import UserError

STUDIES = ("lengths", "patterns")
LENGTHS = {"cpu": (256, 512, 1024, 2048), "cuda": (256, 1024, 4096, 16384)}
# three windows, each alone and with far keys; the published 96, 4 among them
PATTERNS = ((32, 0), (32, 8), (96, 0), (96, 4), (96, 16), (256, 0), (256, 8), (256, 32))
# over a preset; a constant learning rate, so that every moment is the end of a training
DEFAULTS = {"runs": 3, "schedule": "constant"}
# 64 batches of preset long are a million tokens: a large corpus holds out more than is trained on
STUDY_DEFAULTS = {
    ("lengths", "cpu"): {"batch_size": 2, "max_steps": 40},
    ("lengths", "cuda"): {"max_steps": 300, "val_batches": 64},
    ("patterns", "cpu"): {},
    ("patterns", "cuda"): {"max_steps": 600, "val_batches": 64},
}


def length_points(lengths, positions, batch_size, seq_len):
    """What each length and kind of positions changes, all of batch_size x seq_len tokens a step."""
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
    arms = ("fused", *dict.fromkeys(arm_of_pattern(*pattern) for pattern in patterns))
    return [{"arms": arms, "positions": kind} for kind in positions]


def point_name(study, config):
    """What the folder of a point is called: ``rotary_1024``, of a study of patterns ``rotary``."""
    kind = config["positions"]
    return f"{kind}_{config['seq_len']}" if study == "lengths" else kind


def parse_pattern(text):
    """(window_size, dilation) of a text like ``96:4``; UserError."""
    window_size, colon, dilation = text.partition(":")
    if not (colon and window_size.isdecimal() and dilation.isdecimal()):
        raise UserError(f"--patterns {text}: give window_size:dilation, as 96:4")
    return int(window_size), int(dilation)


def study_folder(output_dir, study):
    """Where the points of a study lie, each in a folder of its own; beside it ``<folder>.json``."""
    return Path(output_dir) / f"{study.removesuffix('s')}_study"

"""The configuration of an experiment: every field with its default, presets, checks."""

import argparse
import math
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch

from analysis.values import pattern_of_arm
from attention.choose import EVALUATIONS
from attention.pattern import check_pattern
from attention.rotary import POSITIONS
from gpt import GPTModel
from gpt_win import GPTWindowModel, per_layer
from training.tokens import DEFAULT_PATH

# arm -> (model class, attention); ``window`` takes its evaluation from the configuration
ARMS = {
    "baseline": (GPTModel, "dense"),
    "window": (GPTWindowModel, None),
    "fused": (GPTModel, "fused"),
    "published": (GPTModel, "published"),
}
DEFAULT_ARMS = ("baseline", "window", "fused")
SCHEDULES = ("cosine", "constant")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPILE_MODES = ("none", "default", "reduce-overhead")
LARGEST_OPTION = 2**31 - 1


# --- configuration -----------------------------------------------------------------------------
def _option(default, group, help, **argparse_options):
    """A field that is also a command-line option."""
    return field(
        default=default, metadata={"group": group, "help": help, "argparse": argparse_options}
    )


def _whole_numbers(text):
    """A command-line value: a whole number, or several of them as a tuple."""
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError:
        words = f"must be a whole number, or one for each layer as in 96,96,128, got {text!r}"
        raise argparse.ArgumentTypeError(words) from None
    return numbers if len(numbers) > 1 else numbers[0]


class Pattern(NamedTuple):
    """What a layer of the window model attends to, see ``attention.may_attend``."""

    window_size: int
    dilation: int
    sink_tokens: int


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides what an experiment does; the defaults are the ``paper`` preset."""

    preset: str = "paper"
    runs: int = _option(
        10, "experiment", "blocks: in each, every arm is trained once from the same seed"
    )
    seed: int = _option(0, "experiment", "decides orders, initial weights and batches")
    arms: tuple = _option(
        DEFAULT_ARMS,
        "experiment",
        f"which models to train: {' '.join(ARMS)}, or window models of other patterns, as w64-d8",
        nargs="+",
        metavar="ARM",
    )
    device: str = _option("auto", "experiment", "auto, cpu, cuda or cuda:N")
    dtype: str = _option(
        "float32", "experiment", "precision of the arithmetic (autocast)", choices=tuple(DTYPES)
    )
    compile: str = _option(
        "none",
        "experiment",
        "torch.compile every arm; --compile alone means default",
        nargs="?",
        const="default",
        choices=COMPILE_MODES,
    )
    equivalence_margin: float = _option(
        0.02,
        "experiment",
        "largest rise of the validation loss that still counts as no loss of quality, in nats",
    )
    deterministic: bool = _option(
        False,
        "experiment",
        "use deterministic algorithms (slower); recorded, never on by itself",
        action=argparse.BooleanOptionalAction,
    )
    batch_size: int = _option(8, "training", "sequences in a step, of all ranks together")
    gradient_accumulation: int = _option(
        1, "training", "parts of a step's batch that are computed one after the other, for memory"
    )
    max_steps: int = _option(0, "training", "optimizer steps of a training; 0: one pass over data")
    lr: float = _option(3e-4, "training", "peak learning rate of AdamW")
    warmup_steps: int = _option(500, "training", "steps of linear warm-up")
    schedule: str = _option(
        "cosine",
        "training",
        "learning rate after the warm-up; constant makes each moment the end of a training",
        choices=SCHEDULES,
    )
    val_batches: int = _option(0, "training", "held-out batches for the validation loss; 0: all")
    seq_len: int = _option(256, "model", "sequence length, tokens")
    d_model: int = _option(512, "model", "model width")
    n_heads: int = _option(16, "model", "attention heads")
    layers: int = _option(8, "model", "decoder blocks")
    positions: str = _option(
        "learned",
        "model",
        "a learned embedding of every position, or rotary ones in every attention",
        choices=POSITIONS,
    )
    window_size: int | tuple = _option(
        96,
        "pattern",
        "near keys before each token; W,W,... gives one for each layer",
        type=_whole_numbers,
    )
    dilation: int | tuple = _option(
        4,
        "pattern",
        "every how many tokens a far key; 0: none, 1: full attention; D,D,... gives one for each "
        "layer",
        type=_whole_numbers,
    )
    sink_tokens: int = _option(
        0, "pattern", "how many of the first tokens every later one attends to as well"
    )
    window_attention: str = _option(
        "auto", "pattern", "how the window arm evaluates the pattern", choices=EVALUATIONS
    )
    data: str = _option(DEFAULT_PATH, "files", "rows of tokens; prepared when missing")
    output_dir: str = _option("output", "files", "folder of results, report and weights")
    plots_dir: str = _option("plots", "files", "folder of the ten figures")
    # not chosen but found, see ranks.py
    world_size: int = 1
    backend: str = "none"

    @property
    def sequences_at_once(self):
        """Sequences that one rank computes together: its share of a micro-step."""
        return self.batch_size // (self.world_size * self.gradient_accumulation)

    @property
    def records_graphs(self):
        """Are CUDA graphs recorded in the warm-up?  Their replays allocate nothing that counts."""
        return self.compile == "reduce-overhead"

    def of_arm(self, arm):
        """The configuration and the name in ``ARMS`` that an arm's name means.

        An arm that names a pattern is the window arm with that pattern.
        """
        pattern = pattern_of_arm(arm)
        if pattern is None:
            return self, arm
        return replace(self, window_size=pattern[0], dilation=pattern[1]), "window"


PRESETS = {
    "paper": {},
    "long": {
        "seq_len": 4096,
        "batch_size": 4,
        "n_heads": 8,
        "dtype": "bfloat16",
        "compile": "reduce-overhead",  # by launches alone the host decides a step's time
        "warmup_steps": 50,
    },
    "laptop": {
        "runs": 6,
        "seq_len": 1024,
        "batch_size": 1,
        "d_model": 128,
        "n_heads": 4,
        "layers": 2,
        "max_steps": 60,
        "lr": 1e-3,
        "warmup_steps": 10,
        "val_batches": 8,
    },
}


def make_config(preset="paper", **changes):
    """The configuration of a preset with some fields changed, checked; raises ValueError."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    config = config_of({"preset": preset, **PRESETS[preset], **changes})
    check_config(config)
    return config


def config_of(values):
    """The ExperimentConfig of some of its fields; they may come from JSON, which has no tuples."""
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return ExperimentConfig(**values)


def layer_patterns(config):
    """The ``Pattern`` of every layer of the window model."""
    window_sizes = per_layer("--window-size", config.window_size, config.layers)
    dilations = per_layer("--dilation", config.dilation, config.layers)
    pairs = zip(window_sizes, dilations, strict=True)
    return [Pattern(*pair, config.sink_tokens) for pair in pairs]


def check_config(config):
    """Raise ValueError, naming the option, its value and the remedy, for what cannot be run."""
    _check_whole_numbers(config)
    for name in ("lr", "equivalence_margin"):
        value = getattr(config, name)
        number = isinstance(value, float | int) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value > 0):
            raise ValueError(f"{_flag(name)} must be a positive number, got {value}")
    if config.batch_size % (config.world_size * config.gradient_accumulation):
        raise ValueError(
            f"--batch-size {config.batch_size} cannot be split evenly over {config.world_size} "
            f"rank{'s' * (config.world_size > 1)} x --gradient-accumulation "
            f"{config.gradient_accumulation}: choose a multiple of "
            f"{config.world_size * config.gradient_accumulation}"
        )
    if not isinstance(config.deterministic, bool):
        raise ValueError(f"--deterministic must be True or False, got {config.deterministic!r}")
    if config.d_model % config.n_heads:
        raise ValueError(
            f"--d-model {config.d_model} is not divisible by --n-heads {config.n_heads}: "
            "choose a multiple of it"
        )
    head_dim = config.d_model // config.n_heads
    if config.positions == "rotary" and head_dim % 2:
        raise ValueError(
            f"--positions rotary needs an even --d-model / --n-heads, got {config.d_model} / "
            f"{config.n_heads} = {head_dim}: choose others"
        )
    for pattern in layer_patterns(config):
        check_pattern(*pattern)
    for name, value, choices in (
        ("--dtype", config.dtype, DTYPES),
        ("--compile", config.compile, COMPILE_MODES),
        ("--positions", config.positions, POSITIONS),
        ("--schedule", config.schedule, SCHEDULES),
        ("--window-attention", config.window_attention, EVALUATIONS),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r}: choose one of {', '.join(choices)}")
    if config.records_graphs and config.gradient_accumulation > 1:
        raise ValueError(
            "--compile reduce-overhead keeps gradients in CUDA graphs, which the next micro-step "
            "overwrites: choose --compile default, or --gradient-accumulation 1"
        )
    unknown = [arm for arm in config.arms if arm not in ARMS and pattern_of_arm(arm) is None]
    if unknown or not config.arms:
        raise ValueError(
            f"--arms {' '.join(unknown)}: choose from {', '.join(ARMS)}, or name a pattern, as "
            "w64-d8 for window_size 64, dilation 8"
        )
    for arm in config.arms:
        for pattern in layer_patterns(config.of_arm(arm)[0]):
            check_pattern(*pattern)
    if len(set(config.arms)) < len(config.arms):
        raise ValueError(f"--arms names an arm twice: {' '.join(config.arms)}")


def _check_whole_numbers(config):
    least = {"max_steps": 0, "warmup_steps": 0, "val_batches": 0, "seed": 0}
    least |= {"dilation": 0, "sink_tokens": 0}
    for item in fields(config):
        value = getattr(config, item.name)
        if item.type not in (int, int | tuple):
            continue
        several = isinstance(value, tuple) and item.type is not int
        for number in value if several else [value]:
            _check_whole_number(_flag(item.name), number, least.get(item.name, 1))


def _check_whole_number(flag, value, least):
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{flag} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{flag} must be at least {least}, got {value}")
    if value > LARGEST_OPTION:
        raise ValueError(f"{flag} must be at most {LARGEST_OPTION:,}, got {value:,}")


def _flag(name):
    return "--" + name.replace("_", "-")

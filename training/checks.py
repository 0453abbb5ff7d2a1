"""Checks of a configuration: a ValueError of one line names the option, its value, the remedy."""

import math
from dataclasses import asdict

from analysis.values import pattern_of_arm
from machine.command import counted
from training.arms import ARMS, patterns_of_arm

LARGEST_OPTION = 2**31 - 1


def flag(item):
    """The option of a field."""
    return "--" + item.name.replace("_", "-")


def check_field(item, value):
    """Raise ValueError for a value that is not of the field's choices, type and limits."""
    option, least = flag(item), item.metadata.get("least", 1)
    choices = item.metadata.get("argparse", {}).get("choices")
    if choices and value not in choices:
        raise ValueError(f"{option} {value!r}: choose one of {', '.join(choices)}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if item.type is float and not (number and 0 < value < math.inf):
        raise ValueError(f"{option} must be a positive number, got {value!r}")
    if item.type is bool and not isinstance(value, bool):
        raise ValueError(f"{option} must be True or False, got {value!r}")
    if item.type is str and not isinstance(value, str):
        raise ValueError(f"{option} must be text, got {value!r}")
    if item.type is tuple and not (isinstance(value, tuple) and {*map(type, value)} <= {str}):
        raise ValueError(f"{option} must be names, got {value!r}")
    if item.type not in (int, int | tuple):
        return
    several = item.type is not int and isinstance(value, tuple)
    for number in value if several else [value]:
        if type(number) is not int:  # nor a bool
            raise ValueError(f"{option} must be a whole number, got {number!r}")
        if not least <= number <= LARGEST_OPTION:
            limit = f"least {least}" if number < least else f"most {LARGEST_OPTION:,}"
            raise ValueError(f"{option} must be at {limit}, got {number:,}")


def check_together(config):
    """Raise ValueError where fields do not fit one another: of the batch, the model, the arms."""
    _check_batch(config)
    _check_model(config)
    _check_arms(config)
    if config.shard_sequence > 1:
        _check_shards(config)


def _check_batch(config):
    """Can a step's batch be shared out over ranks and micro-steps?"""
    shards = config.shard_sequence
    if config.world_size % shards:
        raise ValueError(
            f"--shard-sequence {shards} does not divide {counted(config.world_size, 'rank')}: "
            f"start it with torchrun --nproc-per-node {shards}, or a multiple of it"
        )
    parts = config.data_ranks * config.gradient_accumulation
    if config.batch_size % parts:
        ranks = counted(config.data_ranks, "rank")
        raise ValueError(
            f"--batch-size {config.batch_size} cannot be split evenly over {ranks} x "
            f"--gradient-accumulation {config.gradient_accumulation}: choose a multiple of {parts}"
        )
    if config.records_graphs and config.gradient_accumulation > 1:
        raise ValueError(
            "--compile reduce-overhead keeps gradients in CUDA graphs, which the next micro-step "
            "overwrites: choose --compile default, or --gradient-accumulation 1"
        )


def _check_model(config):
    """Does the width divide into heads, which rotary positions can turn?"""
    d_model, n_heads = config.d_model, config.n_heads
    if d_model % n_heads:
        raise ValueError(
            f"--d-model {d_model} is not divisible by --n-heads {n_heads}: choose a multiple of it"
        )
    if config.positions == "rotary" and config.head_dim % 2:
        raise ValueError(
            f"--positions rotary needs an even --d-model / --n-heads, got {d_model} / {n_heads} = "
            f"{config.head_dim}: choose others"
        )


def _check_arms(config):
    """Is every arm known, named once and a pattern of this model?  Has --nope full heads?"""
    patterned = [arm for arm in config.arms if arm not in ARMS]
    unknown = [arm for arm in patterned if pattern_of_arm(arm) is None]
    if unknown or not config.arms:
        raise ValueError(
            f"--arms {' '.join(unknown)}: choose from {', '.join(ARMS)}, or name a pattern, as "
            "w64-d8 for window_size 64, dilation 8, and -s for stagger, -f1 for 1 full head a "
            "layer, -e4 for every 4th layer full (numbers have at most nine digits)"
        )
    if len(set(config.arms)) < len(config.arms):
        raise ValueError(f"--arms names an arm twice: {' '.join(config.arms)}")
    full_heads = 0
    for arm in ("window", *patterned):
        try:
            patterns = patterns_of_arm(asdict(config), arm)
        except ValueError as error:
            if arm != "window":
                raise ValueError(f"--arms {arm}: {error}") from None
            name, _, rest = str(error).partition(" ")
            raise ValueError(f"--{name.replace('_', '-')} {rest}") from None
        if arm in config.arms:
            full_heads += sum(p.full_heads + (p.dilation == 1) for p in patterns)
    if config.nope and (config.positions != "rotary" or not full_heads):
        raise ValueError(
            "--nope leaves rotary positions out of full heads, and there are none: add --positions "
            "rotary --full-heads 1, or leave it out"
        )


def _check_shards(config):
    """Can sequences be cut over so many ranks?  A shard must hold the window and the sinks."""
    if config.window_attention not in ("auto", "split"):
        raise ValueError(
            f"--window-attention {config.window_attention}: over shards attention is split's: "
            "leave it out with --shard-sequence"
        )
    if config.records_graphs:
        raise ValueError(
            "--compile reduce-overhead records no exchange between ranks: choose --compile default "
            "with --shard-sequence"
        )
    from attention.shards import check_shards

    for arm in config.arms:
        for pattern in patterns_of_arm(asdict(config), arm):
            try:
                check_shards(config.seq_len, config.shard_sequence, pattern)
            except ValueError as error:
                raise ValueError(f"--shard-sequence, {arm}: {error}") from None

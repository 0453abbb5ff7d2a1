"""Roughly how long an experiment will take."""

import math
from collections import Counter
from dataclasses import replace

from analysis.values import LONG_TOKENS
from analysis.warnings import disturbances, in_words
from experiment.progress import format_seconds
from machine import ranks
from machine.command import counted, say
from machine.state import device_state
from training.batches import curve_rows
from training.reach import probed_sequences
from training.trainer import Trainer, release_memory

# for the estimate before the first training; measured times take over after it
CHILD_SECONDS = 4  # a fresh process imports torch
COMPILE_SECONDS = 20


def seconds_of_step(config, arm, dataset, device):
    """Seconds of an eager step of the arm, the first left out; None where memory is too small.

    Every rank takes part.
    """
    trainer = None
    try:
        eager = replace(config, compile="none")
        trainer = Trainer(eager, arm, dataset.train, dataset.vocab_size, device, seed=0)
        trainer.warm_up(steps=1)
        return sum(trainer.warm_up(steps=2)) / 2
    except (RuntimeError, MemoryError) as error:
        if not ranks.ran_out_of_memory(error):
            raise
        return None
    finally:
        del trainer
        release_memory(device)


def say_what_is_short(config, steps):
    """Say where a training is too short for its own settings."""
    if config.warmup_steps >= steps:
        say(f"note: its learning rate rises to the end: --warmup-steps {config.warmup_steps}")
    if config.reach_passages and not probed_sequences(config.seq_len, config.reach_passages):
        say("note: no probe of how far the models copy from: it takes 192 tokens, 2 passages")
    if config.preset == "long" and config.device == "cpu":
        say("warning: preset long is made for CUDA: here one training takes days")
    tokens = steps * config.batch_size * config.seq_len
    if config.preset == "long" and not config.max_steps and tokens < LONG_TOKENS:
        say(
            f"warning: one pass over {config.data} is a training of {tokens / 1e6:,.1f}M tokens, "
            f"and of fewer than {LONG_TOKENS / 1e6:.0f}M the losses may rank patterns the other "
            "way round; for more: python prepare_data.py --corpus site-packages"
        )


def evaluated_batches(config, steps, data):
    """How many batches a training evaluates: in its course, at its end and in the reach probe.

    data: ``data`` of the experiment's metadata.
    """
    evaluations = math.ceil(steps / config.eval_every) if config.eval_every else 0
    rows = data["val_rows_used"] + evaluations * len(curve_rows(config, data["val_rows"]))
    rows += probed_sequences(config.seq_len, config.reach_passages)
    return rows / config.batch_size


def estimate(stored, dataset, device):
    """Say roughly how long the waiting trainings will take, from steps timed now; returns seconds.

    Every rank takes part.
    """
    config, steps, waiting = stored.config, stored.metadata["steps"], stored.waiting()
    say(f"a training: {counted(steps, 'step')} of {config.batch_size * config.seq_len:,} tokens")
    say_what_is_short(config, steps)
    # an evaluated batch is a forward pass, a third of a step
    forward = evaluated_batches(config, steps, stored.metadata["data"]) / 3
    seconds = 0
    before = device_state(device)
    for arm, trainings in Counter(arm for arm, _ in waiting).items():
        step = seconds_of_step(config, arm, dataset, device)
        if step is None:
            say(f"{arm} ran out of memory when tried without torch.compile: it may fail")
            continue
        seconds += trainings * step * (steps + 4 + forward)
        if device.type == "cpu":
            seconds += trainings * (CHILD_SECONDS + 3 * step)  # the process that measures memory
        if config.compile != "none":
            seconds += trainings * COMPILE_SECONDS
    states = {"device_before": before, "device_after": device_state(device)}
    as_now = ["as busy as it is now", *map(in_words, disturbances(states))]
    say(
        f"roughly {format_seconds(seconds)} for the trainings that wait ({len(waiting)} of "
        f"{len(stored.trainings())}), if the machine stays {'; '.join(as_now)}"
    )
    return seconds

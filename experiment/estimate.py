"""What an experiment is about to do, and roughly how long it will take."""

from dataclasses import asdict, replace
from functools import lru_cache
from statistics import mean

import torch

from analysis.values import in_order, pattern_text, ranks_text
from attention.pattern import density
from experiment.files import read_plan, read_runs
from experiment.identity import can_be_mixed, identities_differ, identity_here
from experiment.plan import make_plan
from experiment.progress import format_seconds
from machine import ranks
from machine.command import say
from machine.device import device_name, is_out_of_memory
from training.batches import planned_steps, validation_rows
from training.config import layer_patterns
from training.tokens import load_dataset
from training.trainer import Trainer, deterministic_algorithms, parameter_counts, release_memory

# for the estimate before the first training; measured times take over after it
CHILD_SECONDS = 4  # a fresh process imports torch
COMPILE_SECONDS = 20


# --- what every rank does ----------------------------------------------------------------------
# Functions for ``ranks.together``: rank 0 alone has the dataset and the bars in hand.
@lru_cache(maxsize=1)
def _data_of_rank(path, seq_len, batch_size):
    return load_dataset(path, seq_len, batch_size)


def _own(config, dataset):
    """This rank's device and data."""
    if dataset is None:
        dataset = _data_of_rank(config.data, config.seq_len, config.batch_size)
    return ranks.local_device(torch.device(config.device)), dataset


def estimate_here(config, arm, dataset=None):
    """``estimate_seconds`` with this rank's device and data."""
    device, dataset = _own(config, dataset)
    return estimate_seconds(config, arm, dataset, device)


# --- what surrounds the experiment -------------------------------------------------------------
def estimate_seconds(config, arm, dataset, device):
    """Roughly how long one training of the arm takes, from two timed eager steps; None: too big."""
    eager = replace(config, compile="none")
    trainer = None
    try:
        with deterministic_algorithms(config.deterministic):
            trainer = Trainer(eager, arm, dataset.train, dataset.vocab_size, device, seed=0)
            first, rest = trainer.warm_up(steps=3)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        del trainer
        release_memory(device)
    step = rest / 2
    held_out = len(validation_rows(config, len(dataset.held_out))) / config.batch_size
    # a validation batch is a forward pass, a third of a step
    seconds = first + step * (planned_steps(config, len(dataset.train)) + 3 + held_out / 3)
    if device.type == "cpu":
        seconds += CHILD_SECONDS + 3 * step  # the process that measures memory
    return seconds + (COMPILE_SECONDS if config.compile != "none" else 0)


def introduce(config, dataset, device, parameters):
    """Say what is about to happen."""
    steps = planned_steps(config, len(dataset.train))
    tokens = config.batch_size * config.seq_len
    pattern = ""
    if "window" in config.arms:
        kept = mean(density(config.seq_len, *pattern) for pattern in layer_patterns(config))
        pattern = f"; {pattern_text(asdict(config))} keep {kept:.1%} of the causal pairs"
    used = len(validation_rows(config, len(dataset.held_out)))
    compiled = "eager" if config.compile == "none" else f"torch.compile ({config.compile})"
    rotary = " with rotary positions" if config.positions == "rotary" else ""
    say(
        f"{config.preset} preset on {device_name(device)}: "
        f"{config.runs} run{'s' * (config.runs > 1)} x {len(config.arms)} "
        f"arm{'s' * (len(config.arms) > 1)} ({', '.join(config.arms)}), "
        f"{config.dtype}, {compiled}{ranks_text(asdict(config))}\n"
        f"  model: {max(parameters.values()) / 1e6:.1f} M parameters{rotary}, sequence length "
        f"{config.seq_len:,}{pattern}\n"
        f"  a training: {steps:,} steps of {tokens:,} tokens "
        f"({steps * config.batch_size / len(dataset.train):.2f} passes over {len(dataset.train):,}"
        f" rows); validation on {used:,} of {len(dataset.held_out):,} held-out rows"
    )
    if config.warmup_steps >= steps:
        say(
            f"  note: the learning rate is still rising at the end: --warmup-steps "
            f"{config.warmup_steps}, {steps} steps"
        )


def total_seconds(estimates, waiting):
    """Seconds of all waiting trainings whose time is known; {arm: seconds}, {arm: trainings}."""
    return sum(waiting[arm] * seconds for arm, seconds in estimates.items() if seconds)


def estimate_and_introduce(config, dataset, device, parameters, waiting):
    """``introduce``, and roughly how long it will take, from steps that are timed now.

    waiting: {arm: trainings}.  Returns {arm: seconds of one training, or None: too big}.
    """
    introduce(config, dataset, device, parameters)
    estimates = {
        arm: ranks.together(estimate_here, config, arm, dataset=dataset)
        for arm in config.arms
        if waiting[arm]
    }
    total = total_seconds(estimates, waiting)
    left = sum(waiting.values())
    scope = "in all" if left == config.runs * len(config.arms) else f"for the {left} that are left"
    say(
        f"  roughly {format_seconds(total)} {scope}, if the machine stays as busy as it is now, "
        "and a few seconds for the plots"
    )
    outlook = "when tried: its trainings will probably fail"
    if config.compile != "none":  # the steps that were tried are eager
        outlook = "when tried without torch.compile, which usually takes more: it may still fit"
    for arm, estimate in estimates.items():
        if estimate is None:
            say(f"  {arm} ran out of memory {outlook}")
    return estimates


def dry_run(config, dataset, restart=False, allow_mixed=False):
    """Say what would be done, and how long it would take; the plan goes to stdout.

    Returns the seconds that it would take, roughly.
    """
    device, seconds = torch.device(config.device), 0
    identity = identity_here(config, dataset)
    waiting, note = _what_it_would_do(config, identity, restart, allow_mixed)
    if any(waiting.values()):
        parameters = parameter_counts(config, dataset.vocab_size)
        with deterministic_algorithms(config.deterministic):
            estimates = estimate_and_introduce(config, dataset, device, parameters, waiting)
        seconds = total_seconds(estimates, waiting)
    if note:
        say(note)
    plan = make_plan(config)
    for run, (order, seed) in enumerate(zip(plan["orders"], plan["seeds"], strict=True)):
        print(f"run {run + 1}: {', '.join(order)} (seed {seed})")
    return seconds


def _what_it_would_do(config, identity, restart, allow_mixed):
    """{arm: trainings to come}, and a sentence on the experiment in the folder, None without."""
    waiting = dict.fromkeys(config.arms, config.runs)
    before = read_plan(config.output_dir)
    if before is None:
        return waiting, None
    changed = identities_differ(before["identity"], identity)
    done = read_runs(config.output_dir, before)[0]
    if restart:
        answer = "move it aside"
    elif changed and not (allow_mixed and can_be_mixed(changed)):
        answer, waiting = "refuse", dict.fromkeys(waiting, 0)
    else:
        waiting = {arm: n - len(done.get(arm, ())) for arm, n in waiting.items()}
        goes_on = any(waiting.values())
        answer = f"go on after {len(in_order(done))}" if goes_on else "report it again"
        answer += " and mark the results" if changed and goes_on else ""
    if changed and not restart:
        answer += ", for this differs:\n    " + "\n    ".join(changed)
    return waiting, (
        f"  {config.output_dir} holds an experiment, {len(in_order(done))} trainings done; without "
        f"--dry-run this command would {answer}"
    )


def begin_experiment(config, dataset, stored):
    """Say what is about to be trained, and roughly how long it will take."""
    if not stored.new:
        say(f"resuming: {stored.progress()}")
    waiting = dict.fromkeys(config.arms, 0)
    for arm, _ in stored.waiting():
        waiting[arm] += 1
    device, parameters = torch.device(config.device), stored.metadata["parameters"]
    return estimate_and_introduce(config, dataset, device, parameters, waiting)

"""What an experiment is about to do, and roughly how long it will take."""

from dataclasses import asdict, replace

from analysis.values import in_order, pattern_text, ranks_text
from experiment.files import read_plan, read_trainings
from experiment.identity import can_be_mixed, identities_differ, identity_here
from experiment.plan import make_plan
from experiment.progress import format_seconds
from experiment.stored import describe_pattern
from machine import ranks
from machine.command import say
from machine.device import device_name, resolve_device
from training.batches import planned_steps, validation_rows
from training.trainer import Trainer, deterministic_algorithms, parameter_counts, release_memory

# for the estimate before the first training; measured times take over after it
CHILD_SECONDS = 4  # a fresh process imports torch
COMPILE_SECONDS = 20


def estimate_seconds(config, arm, dataset, device):
    """Roughly how long one training of the arm takes, from two timed eager steps; None: too big.

    Every rank takes part.
    """
    eager = replace(config, compile="none")
    trainer = None
    try:
        trainer = Trainer(eager, arm, dataset.train, dataset.vocab_size, device, seed=0)
        first, rest = trainer.warm_up(steps=3)
    except RuntimeError as error:
        if not ranks.ran_out_of_memory(error):
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
    if config.compile != "none":
        seconds += COMPILE_SECONDS
    return seconds


def introduce(config, dataset, device):
    """Say what is about to happen."""
    steps = planned_steps(config, len(dataset.train))
    compiled = "eager" if config.compile == "none" else f"torch.compile ({config.compile})"
    say(
        f"{config.preset} preset on {device_name(device)}: {_count(config.runs, 'block')} x "
        f"{_count(len(config.arms), 'arm')} ({', '.join(config.arms)}), {config.dtype}, "
        f"{compiled}{ranks_text(asdict(config))}"
    )
    largest = max(parameter_counts(config, dataset.vocab_size).values())
    model = f"  model: {largest / 1e6:.1f} M parameters"
    if config.positions == "rotary":
        model += " with rotary positions"
    model += f", sequence length {config.seq_len:,}"
    if "window" in config.arms:
        kept = describe_pattern(config, None)["density"]
        model += f"; {pattern_text(asdict(config))} keep {kept:.1%} of the causal pairs"
    say(model)
    passes = steps * config.batch_size / len(dataset.train)
    used = len(validation_rows(config, len(dataset.held_out)))
    say(
        f"  a training: {steps:,} steps of {config.batch_size * config.seq_len:,} tokens "
        f"({passes:.2f} passes over {len(dataset.train):,} rows); validation on {used:,} of "
        f"{len(dataset.held_out):,} held-out rows"
    )
    if config.warmup_steps >= steps:
        say(
            f"  note: the learning rate is still rising at the end: --warmup-steps "
            f"{config.warmup_steps}, {steps} steps"
        )


def _count(number, word):
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def estimate_all(config, dataset, device, waiting):
    """``introduce``, and roughly how long it will take, from steps that are timed now.

    waiting: {arm: trainings}.  Every rank takes part.  Returns seconds.
    """
    introduce(config, dataset, device)
    seconds = 0
    for arm, trainings in waiting.items():
        estimate = estimate_seconds(config, arm, dataset, device) if trainings else 0
        if estimate is None:
            say(f"  {arm} ran out of memory when tried without torch.compile: it may fail")
        seconds += trainings * (estimate or 0)
    left = sum(waiting.values())
    scope = "in all"
    if left < config.runs * len(config.arms):
        scope = f"for the {left} that are left"
    say(
        f"  roughly {format_seconds(seconds)} {scope}, if the machine stays as busy as it is now, "
        "and a few seconds for the plots"
    )
    return seconds


def dry_run(config, dataset, restart=False, allow_mixed=False):
    """Say what would be done, and how long it would take; the plan goes to stdout.

    Returns the seconds that it would take, roughly.
    """
    device, seconds = ranks.local_device(resolve_device(config.device)), 0
    waiting, note = ranks.from_first(_what_it_would_do, config, dataset, restart, allow_mixed)
    if any(waiting.values()):
        with deterministic_algorithms(config.deterministic):
            seconds = estimate_all(config, dataset, device, waiting)
    if note:
        say(note)
    plan = make_plan(config)
    for block, (order, seed) in enumerate(zip(plan["orders"], plan["seeds"], strict=True), 1):
        print(f"block {block}: {', '.join(order)} (seed {seed})")
    return seconds


def _what_it_would_do(config, dataset, restart, allow_mixed):
    """{arm: trainings to come}, and a sentence on the experiment in the folder, None without."""
    waiting = dict.fromkeys(config.arms, config.runs)
    before = read_plan(config.output_dir)
    if before is None:
        return waiting, None
    done = read_trainings(config.output_dir, before)[0]
    finished = len(in_order(done))
    changed = identities_differ(before["identity"], identity_here(config, dataset))
    refused = changed and not (allow_mixed and can_be_mixed(changed))
    if restart:
        answer = "rename the folder and start anew"
    elif refused:
        answer, waiting = "refuse", {}
    else:
        waiting = {arm: planned - len(done.get(arm, ())) for arm, planned in waiting.items()}
        answer = f"go on after {finished}"
        if not any(waiting.values()):
            answer = "report it again"
        elif changed:
            answer += " and mark the results"
    if changed and not restart:
        answer += ", for this differs:\n    " + "\n    ".join(changed)
    return waiting, (
        f"  {config.output_dir} holds an experiment, {finished} trainings done; without --dry-run "
        f"this command would {answer}"
    )

"""What an experiment is about to do, and roughly how long it will take."""

from collections import Counter
from dataclasses import replace

from analysis.values import pattern_text, ranks_text
from experiment.progress import format_seconds
from machine import ranks
from machine.command import say
from training.trainer import Trainer, release_memory

# for the estimate before the first training; measured times take over after it
CHILD_SECONDS = 4  # a fresh process imports torch
COMPILE_SECONDS = 20


def seconds_of_step(config, arm, dataset, device):
    """Seconds of the arm's first eager step and of a later one; None where memory is too small.

    Every rank takes part.
    """
    trainer = None
    try:
        eager = replace(config, compile="none")
        trainer = Trainer(eager, arm, dataset.train, dataset.vocab_size, device, seed=0)
        first, step = sum(trainer.warm_up(steps=1)), sum(trainer.warm_up(steps=2)) / 2
    except RuntimeError as error:
        if not ranks.ran_out_of_memory(error):
            raise
        return None
    finally:
        del trainer
        release_memory(device)
    return first, step


def introduce(metadata):
    """Say what is about to happen."""
    config, data, steps = metadata["config"], metadata["data"], metadata["steps"]
    compiled = "eager"
    if config["compile"] != "none":
        compiled = f"torch.compile ({config['compile']})"
    say(
        f"{config['preset']} preset on {metadata['environment']['device_name']}: "
        f"{_count(config['runs'], 'block')} x {_count(len(config['arms']), 'arm')} "
        f"({', '.join(config['arms'])}), {config['dtype']}, {compiled}{ranks_text(config)}"
    )
    model = f"  model: {max(metadata['parameters'].values()) / 1e6:.1f} M parameters"
    if config["positions"] == "rotary":
        model += " with rotary positions"
    model += f", sequence length {config['seq_len']:,}"
    if "window" in config["arms"]:
        kept = metadata["pattern"]["density"]
        model += f"; {pattern_text(config)} keep {kept:.1%} of the causal pairs"
    say(model)
    passes = steps * config["batch_size"] / data["train_rows"]
    say(
        f"  a training: {steps:,} steps of {config['batch_size'] * config['seq_len']:,} tokens "
        f"({passes:.2f} passes over {data['train_rows']:,} rows); validation on "
        f"{data['val_rows_used']:,} of {data['val_rows']:,} held-out rows"
    )
    if config["warmup_steps"] >= steps:
        say(
            "  note: the learning rate is still rising at the end: --warmup-steps "
            f"{config['warmup_steps']}, {steps} steps"
        )


def _count(number, word):
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def estimate(stored, dataset, device):
    """Say roughly how long what waits will take, from steps timed now; returns the seconds.

    Every rank takes part.
    """
    config, metadata, waiting = stored.config, stored.metadata, stored.waiting()
    # a validation batch is a forward pass, a third of a step
    held_out = metadata["data"]["val_rows_used"] / config.batch_size / 3
    seconds = 0
    for arm, trainings in Counter(arm for arm, _ in waiting).items():
        timed = seconds_of_step(config, arm, dataset, device)
        if timed is None:
            say(f"  {arm} ran out of memory when tried without torch.compile: it may fail")
            continue
        first, step = timed
        seconds += trainings * (first + step * (metadata["steps"] + 3 + held_out))
        if device.type == "cpu":
            seconds += trainings * (CHILD_SECONDS + 3 * step)  # the process that measures memory
        if config.compile != "none":
            seconds += trainings * COMPILE_SECONDS
    scope = "in all"
    if len(waiting) < len(stored.trainings()):
        scope = f"for the {len(waiting)} that are left"
    say(
        f"  roughly {format_seconds(seconds)} {scope}, if the machine stays as busy as it is now, "
        "and a few seconds for the plots"
    )
    return seconds

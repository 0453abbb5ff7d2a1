"""Peak memory of a training on a CPU, measured in a process of its own."""

from dataclasses import asdict, replace

import numpy as np
import torch

from machine.memory import growth_in_child
from training.batches import batches
from training.config import config_of
from training.trainer import Trainer, deterministic_algorithms

MEMORY_STEPS = 2  # steps of the child process that measures memory on a CPU


def child_peak_memory_mb(config, arm, vocab_size, seed):
    """Growth of resident memory in MB while a fresh process trains the arm for a few steps.

    The tokens are random: memory depends on how many there are, not on which.  The steps are
    eager ones, for a compiler's own memory would hide the model's.  Of several ranks, which are
    alike, it is the share of one.  See ``machine.memory.growth_in_child`` for NaN and RuntimeError.
    """
    share = config.batch_size // config.world_size
    config = replace(config, compile="none", batch_size=share, world_size=1)
    job = {"config": asdict(config), "arm": arm, "vocab_size": vocab_size, "seed": seed}
    return growth_in_child("training.memory", "memory_job", job)


def memory_job(config, arm, vocab_size, seed):
    """What the child of ``child_peak_memory_mb`` measures, as a function without arguments."""
    config = config_of(config)
    shape = (config.batch_size * MEMORY_STEPS, config.seq_len + 1)
    rows = np.random.default_rng(seed).integers(vocab_size, size=shape)
    # the first optimizer of a process loads the compiler, whose memory is not the training's
    torch.optim.AdamW([torch.zeros(1)])

    def work():
        with deterministic_algorithms(config.deterministic):
            trainer = Trainer(config, arm, rows, vocab_size, torch.device("cpu"), seed)
            for batch in batches(rows, config.batch_size, MEMORY_STEPS, seed):
                trainer.step(batch, config.lr)

    return work

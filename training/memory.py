"""Memory of a training on a CPU: the growth of a fresh process that takes a few of its steps.

A process's high-water mark never falls, so one training's would leak into the next one's figure:
each is measured in a process of its own, which runs this file.
"""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from machine.describe import FOLDER
from training.config import ExperimentConfig
from training.trainer import Trainer, deterministic_algorithms

MEMORY_STEPS = 2


def child_peak_memory_mb(config, arm, vocab_size, seed):
    """Growth of resident memory in MB while a fresh process trains the arm for a few steps.

    The tokens are random: memory depends on how many there are, not on which.  The steps are
    eager, for a compiler's own memory would hide the model's.  Several ranks are alike: it is the
    memory of one.  NaN where the system does not tell; RuntimeError where the child failed (see
    ``is_out_of_memory``).
    """
    share = config.batch_size // config.world_size
    config = replace(config, compile="none", batch_size=share, world_size=1)
    child = subprocess.run(
        [sys.executable, "-m", "training.memory"],
        cwd=FOLDER,  # where the child finds the modules
        input=json.dumps([asdict(config), arm, vocab_size, seed]),
        capture_output=True,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the child
    )
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise RuntimeError(f"the process that measures memory failed: {last}")
    return float(child.stdout.splitlines()[-1])


def prepare_steps(config, vocab_size, seed):
    """Random rows for the steps.  Loads what steps need, which is no memory of the training."""
    torch.optim.AdamW([torch.zeros(1)])  # the first one in a process loads the compiler
    shape = config.batch_size * MEMORY_STEPS, config.seq_len + 1
    return np.random.default_rng(seed).integers(vocab_size, size=shape)


def take_steps(config, arm, rows, vocab_size, seed):
    """What is measured: a model is made and trained."""
    with deterministic_algorithms(config.deterministic):
        trainer = Trainer(config, arm, rows, vocab_size, torch.device("cpu"), seed)
        for batch in trainer.batches(MEMORY_STEPS):
            trainer.step(batch, config.lr)


def _resident_mb(field):
    """Resident memory of this process in MB, VmRSS now or VmHWM at its peak; NaN where unknown.

    macOS tells the peak alone, which before any work is the memory now.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        told = (int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
        return next(told, math.nan)
    if sys.platform != "darwin":
        return math.nan
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    fields, arm, vocab_size, seed = json.load(sys.stdin)
    config = ExperimentConfig(**fields)
    rows = prepare_steps(config, vocab_size, seed)
    before = _resident_mb("VmRSS")
    take_steps(config, arm, rows, vocab_size, seed)
    print(_resident_mb("VmHWM") - before)

"""Whole training steps of the experiment's arms, timed side by side.

An arm that has no room, or that a compiler refuses, is skipped with its reason.
"""

import gc
import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from benchmarks.timing import as_cuda_graph, progress, reason_of, timed_in_rounds, times_of
from machine.device import synchronize
from training.batches import to_device
from training.trainer import Trainer
from training.trainer import release_memory as forget_everything

STEP_VOCAB = 10_000


# --- whole training steps ----------------------------------------------------------------------
def measure_steps(config, modes, evaluations, device, rounds=11):
    """Time training steps of the configuration's arms; returns (records, skipped) for JSON.

    modes: of ``COMPILE_MODES``; evaluations: of ``EVALUATIONS``, each a window arm of its own.
    """
    records, skipped = [], []
    tokens = np.random.default_rng(0).integers(
        STEP_VOCAB, size=(config.batch_size, config.seq_len + 1)
    )
    arms = {}
    for arm in config.arms:
        for evaluation in evaluations if arm == "window" else ("",):
            arms[f"{arm} ({evaluation})" if evaluation else arm] = arm, evaluation or "auto"
    for mode in modes:
        forget_everything(device)
        works, how, memory = {}, {}, {}
        shape = {"seq_len": config.seq_len, "batch_size": config.batch_size, "compile": mode}
        for label in progress(arms, f"S {config.seq_len:,}, compile {mode}"):
            arm, evaluation = arms[label]
            try:
                settings = replace(config, compile=mode, window_attention=evaluation)
                works[label], how[label], memory[label] = _step_of(settings, arm, tokens, device)
            except Exception as error:  # of a compiler, or memory: the other arms go on
                skipped.append({"arm": label, **shape, "reason": reason_of(error)})
                gc.collect()
        for label, seconds in timed_in_rounds(works, device, rounds).items():
            records.append(
                {
                    "arm": label,
                    **shape,
                    "dtype": config.dtype,
                    "timed_as": how[label],
                    **times_of(seconds),
                    "peak_memory_mb": memory[label],
                }
            )
        medians = {r["arm"]: r["median_ms"] for r in records if r["compile"] == mode}
        for record in records:
            if record["compile"] == mode:
                record["fused_over_this"] = medians.get("fused", math.nan) / record["median_ms"]
        del works
    forget_everything(device)
    return records, skipped


def _step_of(config, arm, tokens, device):
    """A warmed-up step as a function without arguments, how it is timed, and its peak memory in MB.

    On CUDA the whole step, optimizer included, is one CUDA graph, as far as ``compile`` has not
    made graphs of its parts already: the host's time for launching kernels differs from machine to
    machine.  Memory is known on CUDA only.
    """
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    trainer = Trainer(config, arm, tokens, STEP_VOCAB, device, seed=0)
    trainer.model.train()
    work = partial(trainer.update, *to_device(tokens, device), config.lr)
    for _ in range(4):  # compiles, makes the optimizer's state
        work()
    if device.type == "cpu":
        return work, "calls", math.nan
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    synchronize(device)
    memory = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if config.compile == "reduce-overhead":
        return work, "calls", memory
    for group in trainer.optimizer.param_groups:
        group["capturable"] = True
    return *as_cuda_graph(work, device), memory

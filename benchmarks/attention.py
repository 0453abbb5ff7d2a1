"""Attention timed against its peers: every peer at one case, forward alone and with backward.

Also the memory that one pass with its backward pass takes, on a CPU as a fresh process's growth.
"""

import gc
import math
from dataclasses import asdict, replace

import numpy as np
import torch

from attention.pattern import density
from benchmarks.peers import (
    ALL_DTYPES,
    ALL_KEYS,
    DIRECTIONS,
    PATTERN,
    PEERS,
    TRAINING,
    Case,
    Unavailable,
    error_of,
)
from benchmarks.timing import (
    MEMORY_SHARE,
    as_cuda_graph,
    free_memory,
    progress,
    reason_of,
    timed_in_rounds,
    times_of,
)
from machine.command import say
from machine.device import synchronize
from machine.memory import growth_in_child
from training.trainer import release_memory as forget_everything


def least_memory(name, case):
    """Bytes that a peer is sure to need: what it keeps in squares of the sequence length."""
    square = case.seq_len**2
    if name == "dense":
        return square * case.batch_size * case.heads * ALL_DTYPES[case.dtype].itemsize * 4
    return square * 24 if name == "masked" else 0  # the mask is made from 64-bit distances


# --- time and memory ---------------------------------------------------------------------------
def work_of(attend, case, direction):
    """A function without arguments: one forward pass, or one with its backward pass."""
    qkv, upstream = case.inputs()
    if direction == TRAINING:
        return lambda: torch.autograd.grad(attend(*qkv), qkv, upstream)
    qkv = [x.detach() for x in qkv]
    return lambda: attend(*qkv)


def peak_memory_mb(name, case, work):
    """The most memory that one forward and backward pass takes beside its inputs, in MB.

    The results count: output and gradients.  On a CPU it is the growth of a fresh process, which
    cannot tell a compiler's memory from the work's: NaN for compiled peers.
    """
    device = torch.device(case.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if PEERS[name].compiled:
        return math.nan
    return growth_in_child("benchmarks.attention", "memory_job", {"name": name, **asdict(case)})


def memory_job(name, **case):
    """What the child of ``peak_memory_mb`` measures, as a function without arguments."""
    case = Case(**case)
    small = replace(case, seq_len=min(case.seq_len, 64), batch_size=1)
    work_of(PEERS[name].make(small), small, TRAINING)()  # loads libraries, starts threads
    return work_of(PEERS[name].make(case), case, TRAINING)


class AttentionBenchmark:
    """Measures peers case by case; ``records`` and ``skipped`` hold plain values for JSON."""

    def __init__(self, names, device, rounds=11, max_seconds=10.0, memory=True):
        self.names, self.device = names, device
        self.rounds, self.max_seconds, self.memory = rounds, max_seconds, memory
        self.records, self.skipped = [], []
        self._errors, self._seconds = {}, {}

    def measure(self, case):
        """Time every peer at one case, each where it can run."""
        made = {}
        for direction in DIRECTIONS:
            works, how = {}, {}
            for name in progress(self.names, f"S {case.seq_len:,}, {direction}"):
                try:
                    self._check(name, case, direction)
                    if name not in made:
                        made[name] = PEERS[name].make(case)
                    work = work_of(made[name], case, direction)
                    work()
                    works[name], how[name] = as_cuda_graph(work, self.device)
                # whatever a peer's own code raises must not end the others' measurement
                except Exception as error:
                    self._skip(name, case, direction, reason_of(error))
            samples = timed_in_rounds(works, self.device, self.rounds)
            for name, seconds in samples.items():
                self._seconds[name, direction] = case.seq_len, float(np.median(seconds))
            del works
            self._record(case, direction, samples, how, made)
            gc.collect()
        made.clear()
        forget_everything(self.device)

    def _check(self, name, case, direction):
        """Raise Unavailable where the peer is known not to work, or to be out of proportion."""
        if name not in self._errors:
            try:
                self._errors[name] = error_of(name, case)
            except Exception as error:
                self._errors[name] = Unavailable(reason_of(error))
        if isinstance(self._errors[name], Unavailable):
            raise self._errors[name]
        needed, free = least_memory(name, case), free_memory(self.device)
        if needed > MEMORY_SHARE * free:
            raise Unavailable(
                f"needs {needed / 1e9:,.0f} GB and some room, {free / 1e9:,.0f} GB are free"
            )
        shorter, seconds = self._seconds.get((name, direction), (case.seq_len, 0))
        expected = seconds * (case.seq_len / shorter) ** 2
        if expected > self.max_seconds:
            raise Unavailable(f"would take about {expected:,.0f} s a call (--max-seconds)")

    def _skip(self, name, case, direction, reason):
        self.skipped.append(
            {"peer": name, **asdict(case), "direction": direction, "reason": reason}
        )

    def _record(self, case, direction, samples, how, made):
        medians = {name: float(np.median(seconds)) for name, seconds in samples.items()}
        full = [medians[name] for name in medians if PEERS[name].attends == ALL_KEYS]
        kept = density(case.seq_len, *case.pattern)
        for name, seconds in samples.items():
            memory = math.nan
            if self.memory and direction == TRAINING:
                try:
                    work = work_of(made[name], case, TRAINING)
                    memory = peak_memory_mb(name, case, work)
                except RuntimeError as error:
                    say(f"  memory of {name} not measured: {reason_of(error)}")
            ratio = min(full) / medians[name] if full else math.nan
            same = PEERS[name].attends == PATTERN
            self.records.append(
                {
                    "peer": name,
                    "attends": PEERS[name].attends,
                    **asdict(case),
                    "direction": direction,
                    "density": kept,
                    "timed_as": how[name],
                    **times_of(seconds),
                    "ratio_to_best_full": ratio,
                    "share_of_limit": ratio * kept if same else math.nan,
                    "peak_memory_mb": memory,
                    "relative_error": self._errors[name],
                }
            )

"""Attention timed against its peers, case by case: whole sequences, or one new token."""

import math
from dataclasses import asdict, replace
from functools import partial

import torch

from attention import density
from benchmarks.peers import ALL_DTYPES, ALL_KEYS, PATTERN, PEERS, TRAINING, Case, error_of, work_of
from benchmarks.timing import (
    Unavailable,
    add_ratios,
    cuda_peak_mb,
    free_memory,
    reason_of,
    side_by_side,
)
from machine.command import say
from machine.memory import growth_in_child
from training.trainer import release_memory

MEMORY_SHARE = 0.8  # of what is free: a peer that is sure to need more is not tried


class AttentionBenchmark:
    """Times peers case by case, the shortest first.

    peers: {name: Peer}; timed: of FORWARD, TRAINING and ONE_TOKEN; max_seconds: leave out what is
    expected to take longer a call; memory: measure that of the backward pass too.
    """

    def __init__(self, peers, timed, device, rounds=11, max_seconds=10.0, memory=True):
        self.peers, self.timed, self.device = peers, timed, device
        self.rounds, self.max_seconds, self.memory = rounds, max_seconds, memory
        self._errors = {}  # {(name, timed): relative error, or why it is not timed}
        self._seconds = {}  # {(name, timed): (S, seconds of a call)} of the last case

    def measure(self, case):
        """Time every peer at a case; returns (records, skipped) for JSON."""
        records, skipped = [], []
        kept = density(case.seq_len, *case.pattern())
        for timed in self.timed:
            about = {**asdict(case), "direction": timed, "density": kept}
            makers = {name: partial(self._work, name, case, timed) for name in self.peers}
            here, failed = side_by_side("peer", makers, about, self.device, self.rounds)
            add_ratios(here, "ratio_to_best_full", lambda r: r["attends"] == ALL_KEYS)
            for r in here:
                self._seconds[r["peer"], timed] = case.seq_len, r["median_ms"] / 1e3
                same = r["attends"] == PATTERN
                r["share_of_limit"] = kept * r["ratio_to_best_full"] if same else math.nan
            records += here
            skipped += failed
        release_memory(self.device)
        return records, skipped

    def _work(self, name, case, timed):
        """One call of a peer as a work, and what else its record holds.  Raises Unavailable."""
        peer, error = self.peers[name], self._error(name, case, timed)
        self._refuse_what_is_too_large(name, case, timed)
        work = work_of(peer.make(case), *case.inputs(), timed)
        work()
        memory = math.nan
        if self.memory and timed == TRAINING:
            memory = peak_memory_mb(name, case, work)
        extra = {"attends": peer.attends, "relative_error": error, "peak_memory_mb": memory}
        return work, extra

    def _error(self, name, case, timed):
        """A peer's relative error, found once.  Raises Unavailable where it is wrong or fails."""
        key = name, timed
        if key not in self._errors:
            try:
                self._errors[key] = error_of(self.peers[name], case, timed)
            except Exception as error:  # its words alone: a traceback would keep tensors
                self._errors[key] = reason_of(error)
        if isinstance(self._errors[key], str):
            raise Unavailable(self._errors[key])
        return self._errors[key]

    def _refuse_what_is_too_large(self, name, case, timed):
        """Raise Unavailable where memory cannot suffice, or time would be out of proportion."""
        needed, free = least_memory(name, case), free_memory(self.device)
        if needed > MEMORY_SHARE * free:
            raise Unavailable(
                f"needs {needed / 1e9:,.0f} GB and some room, {free / 1e9:,.0f} GB are free"
            )
        shorter, seconds = self._seconds.get((name, timed), (case.seq_len, 0))
        expected = seconds * (case.seq_len / shorter) ** 2
        if expected > self.max_seconds:
            raise Unavailable(f"would take about {expected:,.0f} s a call (--max-seconds)")


def least_memory(name, case):
    """Bytes that a peer is sure to need: what it keeps in squares of the sequence length."""
    square = case.seq_len**2
    if name == "dense":
        return square * case.batch_size * case.heads * ALL_DTYPES[case.dtype].itemsize * 4
    return square * 24 if name == "masked" else 0  # the mask is made from 64-bit distances


def peak_memory_mb(name, case, work):
    """The most memory that one forward and backward pass takes beside its inputs, in MB.

    The results count: output and gradients.  On a CPU it is the growth of a fresh process, which
    cannot tell a compiler's memory from the work's: NaN for compiled peers.
    """
    device = torch.device(case.device)
    if device.type == "cuda":
        return cuda_peak_mb(work, device, before=torch.cuda.memory_allocated(device))
    if PEERS[name].compiled:
        return math.nan
    try:
        return growth_in_child("benchmarks.attention", "memory_job", {"name": name, **asdict(case)})
    except RuntimeError as error:
        say(f"memory of {name} not measured: {reason_of(error)}")
        return math.nan


def memory_job(name, **case):
    """What the child of ``peak_memory_mb`` measures, as a work."""
    case = Case(**case)
    small = replace(case, seq_len=min(case.seq_len, 64), batch_size=1)
    work_of(PEERS[name].make(small), *small.inputs(), TRAINING)()  # loads libraries, starts threads
    return work_of(PEERS[name].make(case), *case.inputs(), TRAINING)

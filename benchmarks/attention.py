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
    timed,
)
from machine.command import say
from machine.memory import growth_in_child
from training.trainer import release_memory

LONGEST_SECONDS = 10  # a peer that takes longer a call would hold up all others
MEMORY_SHARE = 0.8  # of what is free: a peer that is sure to need more is not tried


def errors_of(peers, directions, case):
    """{direction: {peer: its relative error, or in words why it is not timed}}.

    directions: of FORWARD, TRAINING and ONE_TOKEN.  The check does not depend on the case's length.
    """
    errors = {direction: {} for direction in directions}
    for direction in directions:
        for name, peer in peers.items():
            try:
                errors[direction][name] = error_of(peer, case, direction)
            except Exception as error:  # its words alone: a traceback would keep tensors
                errors[direction][name] = reason_of(error)
    return errors


def measure_attention(case, peers, errors, rounds):
    """Time every peer at a case; returns (records, skipped) for JSON.

    peers: {name: Peer}; errors: of ``errors_of`` these peers.
    """
    device = torch.device(case.device)
    records, skipped = [], []
    kept = density(case.seq_len, *case.pattern())
    for direction in errors:
        about = {**asdict(case), "direction": direction, "density": kept}
        makers = {
            name: partial(_work, name, peer, case, direction, errors[direction][name])
            for name, peer in peers.items()
        }
        here, failed = side_by_side("peer", makers, about, device, rounds)
        add_ratios(here, "ratio_to_best_full", lambda r: r["attends"] == ALL_KEYS)
        for r in here:
            same = r["attends"] == PATTERN
            r["share_of_limit"] = kept * r["ratio_to_best_full"] if same else math.nan
        records += here
        skipped += failed
    release_memory(device)
    return records, skipped


def _work(name, peer, case, direction, error):
    """One call of a peer as a work, and what else its record holds.  Raises Unavailable."""
    if isinstance(error, str):
        raise Unavailable(error)
    needed, free = least_memory(name, case), free_memory(torch.device(case.device))
    if needed > MEMORY_SHARE * free:
        raise Unavailable(
            f"needs {needed / 1e9:,.0f} GB and some room, {free / 1e9:,.0f} GB are free"
        )
    work = work_of(peer.make(case), *case.inputs(), direction)
    work()
    if timed(work, torch.device(case.device), 1) > LONGEST_SECONDS:
        raise Unavailable(f"takes more than {LONGEST_SECONDS} s a call")
    memory = peak_memory_mb(name, peer, case, work) if direction == TRAINING else math.nan
    return work, {"attends": peer.attends, "relative_error": error, "peak_memory_mb": memory}


def least_memory(name, case):
    """Bytes that a peer is sure to need: what it keeps in squares of the sequence length."""
    square = case.seq_len**2
    if name == "dense":
        return square * case.batch_size * case.heads * ALL_DTYPES[case.dtype].itemsize * 4
    return square * 24 if name == "masked" else 0  # the mask is made from 64-bit distances


def peak_memory_mb(name, peer, case, work):
    """The most memory that one forward and backward pass takes beside its inputs, in MB.

    The results count: output and gradients.  On a CPU it is the growth of a fresh process, which
    cannot tell a compiler's memory from the work's: NaN for compiled peers.
    """
    device = torch.device(case.device)
    if device.type == "cuda":
        return cuda_peak_mb(work, device, before=torch.cuda.memory_allocated(device))
    if peer.compiled:
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

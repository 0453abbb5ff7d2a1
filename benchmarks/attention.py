"""Attention timed against its peers at a case: whole sequences, or one new token."""

import math
import os
from dataclasses import asdict
from functools import partial

import numpy as np
import torch

from attention.pattern import layer_density
from benchmarks.peers import error_of, work_of
from benchmarks.tables import ALL_KEYS, ONE_TOKEN, TRAINING
from benchmarks.timing import Unavailable, add_ratios, peak_mb, side_by_side, timed, timed_in_rounds
from training.trainer import release_memory

LONGEST_SECONDS = 10  # a peer that takes longer a call would hold up all others
MEMORY_SHARE = 0.8  # of what is free: a peer that is sure to need more is not tried
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}


def measure_attention(case, peers, directions, rounds):
    """Check every peer and time it at a case; returns (records, skipped) for JSON.

    peers: {name: Peer}; directions: of FORWARD, TRAINING and ONE_TOKEN.
    """
    device = torch.device(case.device)
    records, skipped = [], []
    for direction in directions:
        about = {**asdict(case), "direction": direction}
        makers = {name: partial(_work, name, peers[name], case, direction) for name in peers}
        here, failed = side_by_side("peer", makers, about, device, rounds)
        add_ratios(here, "ratio_to_best_full", lambda r: r["attends"] == ALL_KEYS)
        if direction == ONE_TOKEN:
            _add_limits_of_memory(here, case, device, rounds)
        else:
            for r in here:
                full = r["attends"] == ALL_KEYS
                share = r["density"] * r["ratio_to_best_full"]
                r["share_of_limit"] = math.nan if full else share
        records += here
        skipped += failed
    release_memory(device)
    return records, skipped


def _work(name, peer, case, direction):
    """One call of a peer as a work, and what else its record holds.  Raises Unavailable."""
    device = torch.device(case.device)
    error = error_of(peer, case, direction)
    needed, free = least_memory(name, case) / 1e9, free_memory(device) / 1e9
    if needed > MEMORY_SHARE * free:
        raise Unavailable(f"needs {needed:,.0f} GB and some room, {free:,.0f} GB are free")
    work = work_of(peer.make(peer.attends, case), *case.inputs(), direction)
    work()
    if timed(work, device, 1) > LONGEST_SECONDS:
        raise Unavailable(f"takes more than {LONGEST_SECONDS} s a call")
    density = layer_density(case.seq_len, case.pattern(peer.attends), case.heads)
    more = {"attends": peer.attends, "relative_error": error, "density": density}
    if name == peer.attends and direction != ONE_TOKEN:
        more["evaluation"] = case.evaluation(peer.attends)
    if direction == TRAINING:  # output and gradients count, inputs do not
        more["peak_memory_mb"] = peak_mb(work, device, torch.cuda.memory_allocated())
    return work, more


def least_memory(name, case):
    """Bytes that a peer is sure to need: what grows with the square of the sequence length."""
    square = case.seq_len**2
    if name == "dense":
        return square * case.batch_size * case.heads * case.torch_dtype.itemsize * 4
    return square * 24 if name == "masked" else 0  # the mask is made from 64-bit distances


def free_memory(device):
    """Bytes that are free on the device, or in the system for a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows, macOS
        return math.inf


def _add_limits_of_memory(records, case, device, rounds):
    """Add to the records of one token the limit that memory sets, by the speed of a large copy.

    Attention of one token does no more than two operations for every number that it reads, so
    none can be faster than memory is.
    """
    count = min(COPY_BYTES[device.type], int(free_memory(device) / 4))
    source = torch.ones(count, dtype=torch.uint8, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    seconds = timed_in_rounds({"copy": copy}, device, rounds)["copy"]
    bandwidth = 2 * count / float(np.median(seconds))  # bytes read and written
    for r in records:
        read = case.bytes_read(r["attends"])
        limit = read / bandwidth * 1e3
        r |= {"read_mb": read / 1e6, "limit_ms": limit, "share_of_limit": limit / r["median_ms"]}
        r["copy_gb_per_s"] = bandwidth / 1e9

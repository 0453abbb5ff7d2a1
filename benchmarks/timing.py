"""How works are timed side by side: in rounds, on CUDA as recorded graphs where that can be.

A work is a function without arguments.
"""

import gc
import math
import random
import time

import numpy as np
import torch

from machine import ranks
from machine.command import UserError, bar
from machine.device import is_out_of_memory, synchronize
from machine.state import device_state

SAMPLE_SECONDS = 0.02  # a call is repeated inside a sample until that lasts so long


class Unavailable(Exception):
    """Why a work is not timed here, in words."""


def side_by_side(kind, makers, about, device, rounds, graphs=True):
    """Time every work that can be made; one that fails does not end the others.

    makers: {name: function that gives a work, called once already, and more for its record};
    kind: the names' key in the records, "peer" or "arm"; about: what all records hold;
    graphs: record the works as CUDA graphs.  Returns (records, skipped) for JSON.
    """
    works, records, skipped = {}, {}, []
    for name in bar(makers, f"S {about['seq_len']:,}"):
        record = {kind: name, **about}
        try:
            work, more = makers[name]()
            works[name], timed_as = as_cuda_graph(work, device) if graphs else (work, "calls")
            records[name] = {**record, **more, "timed_as": timed_as}
        except Exception as error:  # whatever the code of a peer or a compiler raises
            if ranks.size() > 1:  # the others wait for this one
                ranks.ran_out_of_memory(error, kept="")
                raise
            skipped.append({**record, "reason": reason_of(error)})
        if name not in works:
            gc.collect()  # frees what it left, for its error is gone
    before = device_state(device)
    try:
        samples = timed_in_rounds(works, device, rounds)
    except (RuntimeError, MemoryError) as error:
        if not ranks.ran_out_of_memory(error, kept=""):
            raise
        remedy = "name fewer of them, or shorter --seq-lens"
        raise UserError(f"memory ran out while all were timed side by side: {remedy}") from None
    states = {"device_before": before, "device_after": device_state(device)}
    for name, seconds in samples.items():
        milliseconds = 1e3 * np.array(seconds)
        low, median, high = np.quantile(milliseconds, (0.25, 0.5, 0.75)).tolist()
        records[name] |= {"median_ms": median, "quartiles_ms": [low, high]}
        records[name] |= {"samples_ms": milliseconds.tolist(), **states}
    return list(records.values()), skipped


def add_ratios(records, key, is_reference):
    """Set ``key`` of every record: the shortest median of the references over its median."""
    reference = min((r["median_ms"] for r in records if is_reference(r)), default=math.nan)
    for record in records:
        record[key] = reference / record["median_ms"]


def as_cuda_graph(work, device):
    """The work's kernels without the host's time for launching them, and how that was done.

    Where it cannot be recorded as a CUDA graph, or on a CPU, the work itself.
    """
    if device.type == "cpu":
        return work, "calls"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        synchronize(device)
        return work, "calls"

    def replay(kept=work):  # the graph reads the work's tensors by address: they must stay
        graph.replay()

    return replay, "CUDA graph"


def timed_in_rounds(works, device, rounds):
    """{name: seconds of one call in every round}; a round takes every work once, in random order.

    So a drift, of clock speed or by other programs, meets all works alike.
    """
    calls = {}
    for name, work in works.items():
        calls[name] = 1
        while calls[name] * timed(work, device, calls[name]) < SAMPLE_SECONDS:
            calls[name] *= 2
    samples = {name: [] for name in works}
    generator = random.Random(0)
    for _ in range(rounds):
        for name in generator.sample(list(works), len(works)):
            samples[name].append(timed(works[name], device, calls[name]))
    return samples


def timed(work, device, calls):
    """Seconds of one call, from ``calls`` of them in a row; the slowest rank's, on all ranks."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize(device)
    return ranks.largest((time.perf_counter() - started) / calls)[0]


def reason_of(error):
    """An exception in one short line."""
    if isinstance(error, Unavailable):
        return str(error)
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return "out of memory"
    while error.__cause__ is not None:  # a compiler's error quotes what it met
        error = error.__cause__
    first_sentence = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {first_sentence}"[:160]


def peak_mb(work, device, before):
    """The most memory allocated during one call, beyond ``before`` bytes, in MB; NaN on a CPU."""
    if device.type == "cpu":
        return math.nan
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20

"""How a work is timed, whatever it is: in rounds, on CUDA as a recorded graph where it can be.

A work is a function without arguments.
"""

import math
import os
import re
import time

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.peers import Unavailable
from machine.device import is_out_of_memory, synchronize

SAMPLE_SECONDS = {"cpu": 0.02, "cuda": 0.004}  # calls are repeated inside a sample up to this
MEMORY_SHARE = 0.8  # of what is free: a peer that is sure to need more is not tried
BAR = "{desc} {n}/{total} {bar:20} {postfix}"


def free_memory(device):
    """Bytes that are free on the device, or in the system for a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


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


def timed(work, device, calls):
    """Seconds of one call, from ``calls`` of them in a row."""
    if device.type == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        for _ in range(calls):
            work()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3 / calls
    started = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - started) / calls


def timed_in_rounds(works, device, rounds):
    """{name: seconds of one call in every round}; each round takes every work once."""
    calls = {}
    for name, work in works.items():
        timed(work, device, 1)
        once = timed(work, device, 1)
        calls[name] = max(1, min(100, round(SAMPLE_SECONDS[device.type] / max(once, 1e-6))))
    samples = {name: [] for name in works}
    turn = list(works)
    for _ in range(rounds):
        for name in turn:
            samples[name].append(timed(works[name], device, calls[name]))
        turn = turn[1:] + turn[:1]
    return samples


def reason_of(error):
    """An exception in one short line."""
    if isinstance(error, Unavailable):
        return str(error)
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    if lines[0].startswith("No viable backend"):
        return "scaled_dot_product_attention has no such kernel here"
    # a compiler's message quotes in its middle what it met
    quoted = re.search(r"(\w+)\(['\"](.*not support[^.'\"]*)", str(error))
    if quoted:
        return ": ".join(quoted.groups())
    return f"{type(error).__name__}: {lines[0]}"[:160]


def progress(names, title):
    """Go through names with a bar on standard error that shows the present one."""
    bar = tqdm(names, desc=title, leave=False, disable=None, bar_format=BAR)
    for name in bar:
        bar.set_postfix_str(name)
        yield name


def times_of(seconds):
    """Median, quartiles and samples for a record."""
    return {
        "median_ms": 1e3 * float(np.median(seconds)),
        "quartiles_ms": [1e3 * float(q) for q in np.quantile(seconds, (0.25, 0.75))],
        "samples_ms": [1e3 * s for s in seconds],
    }

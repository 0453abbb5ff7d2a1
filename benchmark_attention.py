"""Attention, and whole training steps, timed side by side with what a user could take instead.

``python benchmark_attention.py`` times every peer that runs here, forward alone and with the
backward pass; ``--step`` times training steps of the experiment's arms; ``--decode`` times the
attention of one new token over its context, and with ``--step`` the models' whole step for one.
Each prints a table and writes a JSON file with every sample; the first draws a log-log picture of
time over sequence length too.

Times of one length come from rounds: in each, every peer is timed once, so that what drifts
(clock speed, other programs) meets all alike.  Each peer is first checked against textbook
attention in float64 over the pattern that it claims; one that gives something else is not timed.

Letters: B batch, S sequence length, H heads, D head_dim, w window_size, d dilation.
"""

import argparse
import gc
import importlib
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from create_model_plots import LOOK, save_figure
from decoding import KERNELS, PRODUCTS, KeyValueCache
from machine import (
    check_writable,
    describe_environment,
    device_name,
    growth_in_child,
    is_out_of_memory,
    resolve_device,
    synchronize,
)
from metrics_utils import atomic_write, text_table, to_json
from train_model import (
    ARMS,
    COMPILE_MODES,
    DEFAULT_ARMS,
    DTYPES,
    Trainer,
    autocast,
    build_model,
    make_config,
    to_device,
)
from train_model import release_memory as forget_everything
from window_attention import (
    EVALUATIONS,
    attended_pairs,
    attention_plan,
    check_pattern,
    dense_attention,
    density,
    may_attend,
    window_attention,
    window_mask,
)

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
FORWARD, TRAINING = "forward", "forward + backward"
DIRECTIONS = (FORWARD, TRAINING)
ALL_DTYPES = {**DTYPES, "float16": torch.float16}
SEQ_LENS = {"cpu": (256, 1024, 4096, 16384), "cuda": (256, 1024, 4096, 16384, 65536)}
CHECKED_TOKENS = 384
LARGEST_ERROR = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 1e-2}
SAMPLE_SECONDS = {"cpu": 0.02, "cuda": 0.004}  # calls are repeated inside a sample up to this
MEMORY_SHARE = 0.8  # of what is free: a peer that is sure to need more is not tried
STEP_VOCAB = 10_000
BAR = "{desc} {n}/{total} {bar:20} {postfix}"


class Unavailable(Exception):
    """Why a peer cannot run here, in words."""


@dataclass(frozen=True)
class Case:
    """One attention problem; q, k, v are (B, S, H, D)."""

    batch_size: int
    seq_len: int
    heads: int
    head_dim: int
    window_size: int
    dilation: int
    dtype: str
    device: str

    @property
    def pattern(self):
        return self.window_size, self.dilation

    def inputs(self, seed=0):
        """q, k, v as views of one fused projection, as the models have them, and a gradient."""
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (self.batch_size, self.seq_len, 3, self.heads, self.head_dim)
        options = {"device": self.device, "dtype": ALL_DTYPES[self.dtype], "generator": generator}
        qkv = [x.detach().requires_grad_() for x in torch.randn(shape, **options).unbind(2)]
        return qkv, torch.randn(qkv[0].shape, **options)


# --- the peers ---------------------------------------------------------------------------------


class Peer(NamedTuple):
    """``make(case)`` gives a function of q, k, v (B, S, H, D), or raises Unavailable.

    attends: to which keys; only those with the same compute the same thing.
    """

    attends: str
    make: Callable
    compiled: bool = False


ALL_KEYS, PATTERN, NEAR_ONLY, OTHER_KEYS = "all keys", "near + far", "near only", "chosen blocks"


def _compiled(function):
    return torch.compile(function, fullgraph=True, dynamic=False)


def _evaluation(evaluation, case):
    w, d = case.pattern
    return lambda q, k, v: window_attention(q, k, v, w, d, evaluation)


def _sdpa(backend, case):
    """PyTorch's full causal attention by one of its kernels, which must be the one that runs."""

    def attend(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return attend


def _flex(case):
    """FlexAttention over the same pattern, compiled, as its documentation advises."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    w, d, S = *case.pattern, case.seq_len
    mask = create_block_mask(
        lambda b, h, query, key: may_attend(query, key, w, d), None, None, S, S, case.device
    )
    run = _compiled(flex_attention)
    return lambda q, k, v: run(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask).transpose(
        1, 2
    )


def _package(name):
    """An optional package; whatever its import raises is the reason why the peer cannot run."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"cannot import {name} ({error})") from None


def _local_attention(case):
    package = _package("local_attention")
    run = package.LocalAttention(
        window_size=case.window_size,
        causal=True,
        look_backward=1,
        exact_windowsize=True,
        autopad=True,
        use_rotary_pos_emb=False,
    )
    return lambda q, k, v: run(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def _xformers(case):
    ops = _package("xformers.ops")
    bias = ops.fmha.attn_bias.LocalAttentionFromBottomRightMask(case.window_size, 0)
    return lambda q, k, v: ops.memory_efficient_attention(q, k, v, attn_bias=bias)


def _fla(case):
    run = _package("fla.ops.attn.parallel").parallel_attn
    return lambda q, k, v: run(q, k, v, window_size=case.window_size + 1)


def _natten(case):
    natten = _package("natten")
    if case.device != "cpu":
        natten.allow_flex_compile()
        natten.allow_flex_compile_backprop()
    options = {"kernel_size": min(case.window_size + 1, case.seq_len), "is_causal": True}
    options |= {"backend": "flex-fna", "torch_compile": case.device != "cpu"}
    return lambda q, k, v: natten.na1d(q, k, v, **options)


def _nsa(case):
    """Native sparse attention: 16 selected blocks of 64 keys; 16 query heads share a key head."""
    if case.heads % 16:
        raise Unavailable(f"needs a multiple of 16 heads, not {case.heads}")
    run = _package("fla.ops.nsa").parallel_nsa
    shared = case.heads // 16

    def attend(q, k, v):
        gate = q.new_ones(q.shape[:3])
        return run(q, k[:, :, :shared], v[:, :, :shared], gate, gate, None)

    return attend


PEERS = {
    "split": Peer(PATTERN, partial(_evaluation, "split")),
    "split-compiled": Peer(PATTERN, lambda case: _compiled(_evaluation("split", case)), True),
    "masked": Peer(PATTERN, partial(_evaluation, "masked")),
    "dense": Peer(PATTERN, partial(_evaluation, "dense")),
    "flex": Peer(PATTERN, _flex, True),
    "flash": Peer(ALL_KEYS, partial(_sdpa, SDPBackend.FLASH_ATTENTION)),
    "cudnn": Peer(ALL_KEYS, partial(_sdpa, SDPBackend.CUDNN_ATTENTION)),
    "efficient": Peer(ALL_KEYS, partial(_sdpa, SDPBackend.EFFICIENT_ATTENTION)),
    "local-attention": Peer(NEAR_ONLY, _local_attention),
    "xformers": Peer(NEAR_ONLY, _xformers),
    "fla": Peer(NEAR_ONLY, _fla),
    "natten": Peer(NEAR_ONLY, _natten, True),
    "nsa": Peer(OTHER_KEYS, _nsa, True),
}
DESCRIPTIONS = {
    "split": "window_attention's split evaluation",
    "split-compiled": "the same under torch.compile",
    "masked": "scaled_dot_product_attention with the pattern as a mask",
    "dense": "textbook attention with the pattern as a mask",
    "flex": "PyTorch's FlexAttention, compiled, with the pattern as a block mask",
    "flash": "scaled_dot_product_attention, FlashAttention kernel",
    "cudnn": "scaled_dot_product_attention, cuDNN kernel",
    "efficient": "scaled_dot_product_attention, memory-efficient kernel",
    "local-attention": "LocalAttention of the local-attention package",
    "xformers": "memory_efficient_attention of xformers with a local mask",
    "fla": "parallel_attn of flash-linear-attention with a window",
    "natten": "na1d of NATTEN, its FlexAttention backend",
    "nsa": "native sparse attention of flash-linear-attention, 16 query heads a key head",
}


def _allowed(case, attends):
    """The mask (S, S) of the keys that a peer claims to attend to."""
    w, d = {ALL_KEYS: (1, 1), PATTERN: case.pattern, NEAR_ONLY: (case.window_size, 0)}[attends]
    return window_mask(case.seq_len, w, d, case.device)


def _values(attend, qkv, upstream):
    """The output and, as far as the peer can give them, the gradients of q, k and v."""
    out = attend(*(x.detach() for x in qkv))
    try:
        return [out, *torch.autograd.grad(attend(*qkv), qkv, upstream)]
    except (RuntimeError, NotImplementedError):  # the timing will say why
        return [out]


def error_of(name, case):
    """The peer's largest relative error, output and gradients, in a small problem like ``case``.

    Against textbook attention in float64 over the keys that it claims; NaN where it chooses them
    by the data.  Raises Unavailable where the error is larger than its dtype's rounding explains.
    """
    peer, small = PEERS[name], _small(case)
    qkv, upstream = small.inputs(seed=1)
    values = _values(peer.make(small), qkv, upstream)
    if peer.attends == OTHER_KEYS:
        return math.nan
    exact = [x.detach().double().requires_grad_() for x in qkv]
    mask = _allowed(small, peer.attends)
    attend = partial(dense_attention, mask=mask)
    reference = _values(attend, exact, upstream.double())[: len(values)]
    error = max(
        ((value.double() - expected).norm() / expected.norm()).item()
        for value, expected in zip(values, reference, strict=True)
    )
    return _checked(error, case)


def _small(case):
    """A problem like ``case`` that textbook attention in float64 can do."""
    window_size = min(case.window_size, CHECKED_TOKENS // 4)
    batch_size = min(case.batch_size, 2)
    return replace(case, batch_size=batch_size, seq_len=CHECKED_TOKENS, window_size=window_size)


def _checked(error, case):
    """The relative error; Unavailable where its dtype's rounding does not explain it."""
    if not error <= LARGEST_ERROR[case.dtype]:
        raise Unavailable(
            f"gives other results than textbook attention, relative error {error:.2g}"
        )
    return error


def least_memory(name, case):
    """Bytes that a peer is sure to need: what it keeps in squares of the sequence length."""
    square = case.seq_len**2
    if name == "dense":
        return square * case.batch_size * case.heads * ALL_DTYPES[case.dtype].itemsize * 4
    return square * 24 if name == "masked" else 0  # the mask is made from 64-bit distances


def free_memory(device):
    """Bytes that are free on the device, or in the system for a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


# --- time and memory ---------------------------------------------------------------------------


def work_of(attend, case, direction):
    """A function without arguments: one forward pass, or one with its backward pass."""
    qkv, upstream = case.inputs()
    if direction == TRAINING:
        return lambda: torch.autograd.grad(attend(*qkv), qkv, upstream)
    qkv = [x.detach() for x in qkv]
    return lambda: attend(*qkv)


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
    return growth_in_child("benchmark_attention", "memory_job", {"name": name, **asdict(case)})


def memory_job(name, **case):
    """What the child of ``peak_memory_mb`` measures, as a function without arguments."""
    case = Case(**case)
    small = replace(case, seq_len=min(case.seq_len, 64), batch_size=1)
    work_of(PEERS[name].make(small), small, TRAINING)()  # loads libraries, starts threads
    return work_of(PEERS[name].make(case), case, TRAINING)


def _reason(error):
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


def say(text):
    print(text, file=sys.stderr, flush=True)


def _progress(names, title):
    """Go through names with a bar on standard error that shows the present one."""
    bar = tqdm(names, desc=title, leave=False, disable=None, bar_format=BAR)
    for name in bar:
        bar.set_postfix_str(name)
        yield name


def _times(seconds):
    """Median, quartiles and samples for a record."""
    return {
        "median_ms": 1e3 * float(np.median(seconds)),
        "quartiles_ms": [1e3 * float(q) for q in np.quantile(seconds, (0.25, 0.75))],
        "samples_ms": [1e3 * s for s in seconds],
    }


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
            for name in _progress(self.names, f"S {case.seq_len:,}, {direction}"):
                try:
                    self._check(name, case, direction)
                    if name not in made:
                        made[name] = PEERS[name].make(case)
                    work = work_of(made[name], case, direction)
                    work()
                    works[name], how[name] = as_cuda_graph(work, self.device)
                # whatever a peer's own code raises must not end the others' measurement
                except Exception as error:
                    self._skip(name, case, direction, _reason(error))
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
                self._errors[name] = Unavailable(_reason(error))
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
                    say(f"  memory of {name} not measured: {_reason(error)}")
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
                    **_times(seconds),
                    "ratio_to_best_full": ratio,
                    "share_of_limit": ratio * kept if same else math.nan,
                    "peak_memory_mb": memory,
                    "relative_error": self._errors[name],
                }
            )


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
        for label in _progress(arms, f"S {config.seq_len:,}, compile {mode}"):
            arm, evaluation = arms[label]
            try:
                settings = replace(config, compile=mode, window_attention=evaluation)
                works[label], how[label], memory[label] = _step_of(settings, arm, tokens, device)
            except Exception as error:  # of a compiler, or memory: the other arms go on
                skipped.append({"arm": label, **shape, "reason": _reason(error)})
                gc.collect()
        for label, seconds in timed_in_rounds(works, device, rounds).items():
            records.append(
                {
                    "arm": label,
                    **shape,
                    "dtype": config.dtype,
                    "timed_as": how[label],
                    **_times(seconds),
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


# --- one new token -----------------------------------------------------------------------------
# Decoding: one query, forward alone, to a context of S keys with its own.  It does no more than two
# operations for every number that it reads, so that memory bandwidth is its limit.

COPY = "copy"  # timed beside the peers: what the memory can do
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}


class Stored:
    """A context's keys and values, random, as the peers of decoding want them; made when used."""

    def __init__(self, case, seed=0):
        generator = torch.Generator(case.device).manual_seed(seed)
        self.case = case
        self.options = {"device": case.device, "dtype": ALL_DTYPES[case.dtype]}
        draw = partial(torch.randn, generator=generator, **self.options)
        shape = case.batch_size, case.heads
        self.q = draw((case.batch_size, 1, case.heads, case.head_dim))
        self.keys_values = draw((2, *shape, case.seq_len, case.head_dim))

    def _cache(self, pattern):
        case = self.case
        shape = case.batch_size, case.heads, case.head_dim
        cache = KeyValueCache(shape, case.seq_len, pattern, **self.options)
        kv = self.keys_values.transpose(2, 3)  # (2, B, S, H, D)
        for tokens in kv.tensor_split([case.seq_len - 1], dim=2):
            if tokens.shape[2]:
                cache.write(*tokens)
        return cache

    @cached_property
    def window(self):
        return self._cache((*self.case.pattern, 0))

    @cached_property
    def full(self):
        return self._cache((1, 1, 0))


def _decode_step(store, kernel, stored):
    """This project's step; store: ``window`` or ``full``."""
    return partial(getattr(stored, store).attend, stored.q, kernel)


def _decode_sdpa(backend, stored):
    q, (k, v) = stored.q.transpose(1, 2), stored.keys_values

    def attend():
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return attend


# Both patterns by every kernel, and full attention as PyTorch's users have it.
DECODE_PEERS = {"window": Peer(PATTERN, partial(_decode_step, "window", None))}
DECODE_PEERS["full"] = Peer(ALL_KEYS, partial(_decode_step, "full", None))
for _name in (PRODUCTS, *KERNELS):
    for _store, _attends in (("window", PATTERN), ("full", ALL_KEYS)):
        DECODE_PEERS[f"{_store}-{_name}"] = Peer(_attends, partial(_decode_step, _store, _name))
for _name, _backend in (
    ("flash", SDPBackend.FLASH_ATTENTION),
    ("cudnn", SDPBackend.CUDNN_ATTENTION),
    ("efficient", SDPBackend.EFFICIENT_ATTENTION),
    ("math", SDPBackend.MATH),
):
    DECODE_PEERS[_name] = Peer(ALL_KEYS, partial(_decode_sdpa, _backend))


def decode_names(device):
    """The peers that are meant for a device."""
    foreign = [name for name in KERNELS if (name == "cpu") != (device.type == "cpu")]
    endings = tuple(f"{store}-{name}" for store in ("window", "full") for name in foreign)
    return [name for name in DECODE_PEERS if name not in endings]


def decode_error(name, case):
    """As ``error_of``, for the one query of decoding."""
    small = _small(case)
    stored = Stored(small, seed=1)
    out = DECODE_PEERS[name].make(stored)().double()
    mask = _allowed(small, DECODE_PEERS[name].attends)[-1:]
    k, v = stored.keys_values.transpose(2, 3).double()
    expected = dense_attention(stored.q.double(), k, v, mask)
    return _checked(((out - expected).norm() / expected.norm()).item(), case)


def keys_read(case, attends):
    """How many keys the last query of a context attends to."""
    if attends == ALL_KEYS:
        return case.seq_len
    return attended_pairs(case.seq_len, *case.pattern) - attended_pairs(
        case.seq_len - 1, *case.pattern
    )


def measure_decoding(names, case, device, rounds):
    """Time one query of every peer over a case's context; returns (records, skipped) for JSON."""
    records, skipped, works, how, errors = [], [], {}, {}, {}

    def skip(name, error):
        about = {"peer": name, **asdict(case), "direction": FORWARD}
        skipped.append(about | {"reason": _reason(error)})

    try:
        works[COPY], copied = copy_work(device)
        stored = Stored(case)
    except RuntimeError as error:  # memory
        for name in names:
            skip(name, error)
        return records, skipped
    for name in _progress(names, f"S {case.seq_len:,}, one token"):
        try:
            errors[name] = decode_error(name, case)
            work = torch.no_grad()(DECODE_PEERS[name].make(stored))
            work()
            works[name], how[name] = as_cuda_graph(work, device)
        except Exception as error:  # of a peer's own: the others go on
            skip(name, error)
    samples = timed_in_rounds(works, device, rounds)
    medians = {name: float(np.median(seconds)) for name, seconds in samples.items()}
    bandwidth = copied / medians.pop(COPY)
    full = [medians[name] for name in medians if DECODE_PEERS[name].attends == ALL_KEYS]
    for name, median in medians.items():
        attends = DECODE_PEERS[name].attends
        per_key = 2 * case.batch_size * case.heads * case.head_dim * ALL_DTYPES[case.dtype].itemsize
        read = keys_read(case, attends) * per_key
        records.append(
            {
                "peer": name,
                "attends": attends,
                **asdict(case),
                "timed_as": how[name],
                **_times(samples[name]),
                "read_mb": read / 1e6,
                "ratio_to_best_full": min(full) / median if full else math.nan,
                "limit_ms": 1e3 * read / bandwidth,
                "share_of_limit": read / bandwidth / median,
                "copy_gb_per_s": bandwidth / 1e9,
                "relative_error": errors[name],
            }
        )
    del works, stored
    forget_everything(device)
    return records, skipped


def copy_work(device):
    """A copy of much memory as a function, and how many bytes it reads and writes."""
    count = int(min(COPY_BYTES[device.type], MEMORY_SHARE * free_memory(device) / 2))
    source = torch.ones(count, dtype=torch.uint8, device=device)
    return partial(torch.empty_like(source).copy_, source), 2 * count


def measure_decode_steps(config, device, rounds=11):
    """Time the models' whole step for one token behind config.seq_len - 1.

    Returns (records, skipped) for JSON.  What is kept of the context is made up: it decides nothing
    about the time.
    """
    works, how, skipped = {}, {}, []
    shape = {"seq_len": config.seq_len, "batch_size": config.batch_size, "compile": "none"}
    with torch.no_grad(), autocast(config, device):
        for arm in config.arms:
            forget_everything(device)
            try:
                model = build_model(config, arm, STEP_VOCAB, device, seed=0).eval()
                work = partial(_model_step, model, *_decode_state(model, config, device))
                works[arm], how[arm] = as_cuda_graph(work, device)
            except RuntimeError as error:  # memory: the other arms go on
                skipped.append({"arm": arm, **shape, "reason": _reason(error)})
        samples = timed_in_rounds(works, device, rounds)
    fused = float(np.median(samples.get("fused", [math.nan])))
    records = [
        {
            "arm": arm,
            **shape,
            "dtype": config.dtype,
            "timed_as": how[arm],
            **_times(seconds),
            "peak_memory_mb": math.nan,
            "fused_over_this": fused / float(np.median(seconds)),
        }
        for arm, seconds in samples.items()
    ]
    return records, skipped


def _decode_state(model, config, device):
    """The caches of a model, as after config.seq_len - 1 tokens, and the next token."""
    caches = [block.mha.new_cache(config.batch_size, config.seq_len) for block in model.layers]
    for cache in caches:
        cache.near.normal_()
        cache.far.normal_()
    return caches, torch.zeros((config.batch_size, 1), dtype=torch.long, device=device)


def _model_step(model, caches, token):
    """The logits (B, V) of the token that fills the caches, which are emptied by one again."""
    length = model.max_seq_len
    for cache in caches:
        cache.filled = length - 1
    positions = token.new_full((1, 1), length - 1)
    return model.fc_out(model.features(token, positions, caches)[:, -1])


# --- table and picture -------------------------------------------------------------------------


def _time(record):
    low, high = record["quartiles_ms"]
    digits = 3 if record["median_ms"] < 10 else 1
    return f"{record['median_ms']:,.{digits}f} ± {(high - low) / 2:,.{digits}f}"


def _number(value, template):
    return "-" if value is None or math.isnan(value) else template.format(value)


def format_attention(records, skipped):
    """The records of ``AttentionBenchmark`` as a table for each length, and what was skipped."""
    lines = []
    header = ["peer", "attends to", f"{FORWARD} (ms)", f"{TRAINING} (ms)", "over best full"]
    header += ["of the limit", "memory (MB)", "error"]
    for seq_len in dict.fromkeys(r["seq_len"] for r in records):
        here = [r for r in records if r["seq_len"] == seq_len]
        first = here[0]
        plan = attention_plan(
            *(seq_len, first["window_size"], first["dilation"]),
            *(ALL_DTYPES[first["dtype"]], first["device"]),
        )
        lines.append(
            f"S {seq_len:,} (B{first['batch_size']} H{first['heads']} D{first['head_dim']}, "
            f"w{first['window_size']} d{first['dilation']}, {first['dtype']}): the pattern keeps "
            f"{first['density']:.2%} of the pairs, limit {1 / first['density']:.2f}x; "
            f"auto takes {plan.evaluation}"
        )
        rows = [header]
        for name in dict.fromkeys(r["peer"] for r in here):
            found = {r["direction"]: r for r in here if r["peer"] == name}
            last = found.get(TRAINING, {})
            rows.append(
                [
                    name,
                    next(iter(found.values()))["attends"],
                    *(_time(found[x]) if x in found else "-" for x in DIRECTIONS),
                    _number(last.get("ratio_to_best_full"), "{:.2f}x"),
                    _number(last.get("share_of_limit"), "{:.0%}"),
                    _number(last.get("peak_memory_mb"), "{:,.1f}"),
                    _number(next(iter(found.values()))["relative_error"], "{:.1e}"),
                ]
            )
        lines += [*text_table(rows), ""]
    lines.append(
        "ms: median ± half the interquartile range. over best full: the fastest of flash, cudnn "
        "and efficient over this,\nforward + backward. of the limit: that times the share of the "
        "pairs. memory: peak of forward + backward beside the\ninputs. error: largest of output "
        "and gradients against float64 on 384 tokens."
    )
    return "\n".join(lines + _skipped_lines(skipped, "peer"))


def format_decoding(records, skipped):
    """The records of ``measure_decoding`` as a table for each context, and what was skipped."""
    lines = []
    for seq_len in dict.fromkeys(r["seq_len"] for r in records):
        here = [r for r in records if r["seq_len"] == seq_len]
        first = here[0]
        lines.append(
            f"context {seq_len:,} (B{first['batch_size']} H{first['heads']} "
            f"D{first['head_dim']}, w{first['window_size']} d{first['dilation']}, "
            f"{first['dtype']}): a copy moves {first['copy_gb_per_s']:,.0f} GB/s"
        )
        rows = [["peer", "attends to", "a token (ms)", "over best full", "read (MB)"]]
        rows[0] += ["limit (ms)", "of the limit", "error"]
        for r in here:
            cells = [r["peer"], r["attends"], _time(r)]
            cells += [_number(r["ratio_to_best_full"], "{:.2f}x"), f"{r['read_mb']:,.2f}"]
            cells += [f"{r['limit_ms']:,.3f}", f"{r['share_of_limit']:.0%}"]
            rows.append([*cells, f"{r['relative_error']:.1e}"])
        lines += [*text_table(rows), ""]
    lines.append(
        "a token: attention of one query alone, median ± half the interquartile range. over best "
        "full: the fastest that\nattends to all keys, over this. read: keys and values. limit: "
        "that at the speed of a large copy; what fits into a\ncache can be faster. error: against "
        "float64 on 384 tokens."
    )
    return "\n".join(lines + _skipped_lines(skipped, "peer"))


def format_steps(records, skipped):
    """The records of ``measure_steps`` as one table, and what was skipped."""
    rows = [["arm", "S", "B", "compile", "step (ms)", "fused over this", "memory (MB)"]]
    for r in records:
        cells = [r["arm"], f"{r['seq_len']:,}", str(r["batch_size"]), r["compile"], _time(r)]
        cells += [_number(r["fused_over_this"], "{:.2f}x"), _number(r["peak_memory_mb"], "{:,.0f}")]
        rows.append(cells)
    return "\n".join([*text_table(rows), "", *_skipped_lines(skipped, "arm")])


def _skipped_lines(skipped, key):
    """What was skipped and why, a line for each name and reason."""
    where = {}
    for item in skipped:
        of = item.get("direction") or f"compile {item['compile']}"
        lengths = where.setdefault((item[key], item["reason"]), {})
        lengths.setdefault(f"{item['seq_len']:,}", []).append(of)
    lines = []
    for (name, reason), lengths in where.items():
        directions = {of for several in lengths.values() for of in several}
        only = f", {next(iter(directions))} only" if len(directions) == 1 else ""
        lines.append(f"skipped: {name} at S {' '.join(lengths)}{only}: {reason}")
    return lines


COLORS = {
    ALL_KEYS: ("#0173B2", "#56B4E9", "#029E73"),
    PATTERN: ("#D55E00", "#CA9161", "#CC78BC", "#949494", "#ECE133"),
    NEAR_ONLY: ("0.15", "0.35", "0.5", "0.65"),
    OTHER_KEYS: ("#78552B",),
}
MARKERS = "os^Dv<>PX*hdp"


def _style(name):
    """Colour by what a peer attends to, a marker of its own, ours bold, other patterns dotted."""
    attends = PEERS[name].attends
    group = [other for other in PEERS if PEERS[other].attends == attends]
    return {
        "color": COLORS[attends][group.index(name)],
        "marker": MARKERS[list(PEERS).index(name)],
        "linestyle": ":" if attends in (NEAR_ONLY, OTHER_KEYS) else "-",
        "linewidth": 2.2 if name == "split" else 1.1,
        "zorder": 4 if name == "split" else 3,
        "label": f"{name} ({attends})",
    }


@matplotlib.rc_context(LOOK)
def plot_scaling(records, title):
    """Time over sequence length, log-log: forward alone, and with the backward pass.

    A line a peer, its quartiles as a band; dashed the limit, the best full kernel's time times
    the share of the pairs that the pattern keeps.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots(1, len(DIRECTIONS), sharex=True, sharey=True)
    for axis, direction in zip(axes, DIRECTIONS, strict=True):
        here = [r for r in records if r["direction"] == direction]
        for name in (n for n in PEERS if any(r["peer"] == n for r in here)):
            line = sorted((r for r in here if r["peer"] == name), key=lambda r: r["seq_len"])
            lengths = [r["seq_len"] for r in line]
            axis.plot(lengths, [r["median_ms"] for r in line], markersize=4, **_style(name))
            low, high = zip(*(r["quartiles_ms"] for r in line), strict=True)
            axis.fill_between(lengths, low, high, color=_style(name)["color"], alpha=0.2, lw=0)
        limit = _limits(here)
        if limit:
            label = "limit: best full kernel x pairs kept"
            look = {"color": "black", "ls": "--", "lw": 1, "markersize": 9}
            look |= {"marker": "_"} if len(limit) == 1 else {}
            axis.plot(*zip(*limit, strict=True), **look, label=label)
        axis.set(xscale="log", yscale="log", title=direction, xlabel="sequence length S (tokens)")
        lengths = sorted({r["seq_len"] for r in here})
        turned = 30 if len(lengths) > 5 else 0
        axis.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=turned)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(here) < 2 else (1,)))
        axis.yaxis.set_major_formatter(lambda ms, _: EngFormatter(unit="s", sep=" ")(ms / 1e3))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("time of one call, median")
    handles = {}
    for axis in axes:
        handles |= {label: h for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right center", fontsize=7)
    figure.suptitle(title, fontsize=8)
    return figure


def _decades(records):
    """How many powers of ten the times span."""
    times = [r["median_ms"] for r in records]
    return math.log10(max(times) / min(times)) if times else 0


def _limits(records):
    """(S, ms) of the limit wherever a full kernel was timed."""
    points = []
    for seq_len in sorted({r["seq_len"] for r in records}):
        full = [r for r in records if r["seq_len"] == seq_len and r["attends"] == ALL_KEYS]
        if full:
            points.append((seq_len, min(r["median_ms"] for r in full) * full[0]["density"]))
    return points


# --- the command line --------------------------------------------------------------------------


ALL_PEERS = tuple(dict.fromkeys([*PEERS, *DECODE_PEERS]))


def build_parser():
    """The command line, with every default in its help."""
    peers = "\n".join(
        f"  {name:16}{peer.attends:15}{DESCRIPTIONS[name]}" for name, peer in PEERS.items()
    )
    parser = argparse.ArgumentParser(
        description="Time attention against every peer that runs here, or (--step) whole training "
        "steps of the experiment's arms, or (--decode) the attention of one new token, or (both) "
        "the models' whole step for one.",
        epilog=f"peers, and to which keys each attends:\n{peers}\n\n"
        "peers of --decode: window and full as the models generate; with -flash, -cudnn, "
        "-efficient, -cpu or -products\nby that kernel of PyTorch, or two matrix products; flash, "
        "cudnn, efficient, math: scaled_dot_product_attention over all keys\n\n"
        "examples:\n"
        "  python benchmark_attention.py --seq-lens 1024 4096 --head-dim 32 --heads 4\n"
        "  python benchmark_attention.py --step --seq-lens 16384 --head-dim 32\n"
        "  python benchmark_attention.py --decode --batch-size 8 --seq-lens 4096 65536\n\n"
        "exit codes: 0 done, 1 a file could not be written, 2 wrong options, 130 interrupted "
        "(what was measured is kept)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(flag, help, **options):
        default = options.get("default")
        note = f" (default: {default})" if isinstance(default, int | float | str) else ""
        parser.add_argument(flag, help=help + note, **options)

    add("--device", "auto, cpu, cuda or cuda:N", default="auto")
    add("--dtype", "default: float32 on a CPU, bfloat16 on CUDA", choices=tuple(ALL_DTYPES))
    add("--seq-lens", f"default: {SEQ_LENS['cuda']}, on a CPU no more than 16384", nargs="+")
    add("--batch-size", "sequences", type=int, default=1)
    add("--heads", "default: 16 on CUDA, 4 on a CPU", type=int)
    add("--head-dim", "default: 64 on CUDA, 32 on a CPU", type=int)
    add("--window-size", "near keys before each token", type=int, default=96)
    add("--dilation", "every how many tokens a far key; 0: none", type=int, default=4)
    add("--peers", "default: all, each where it can run", nargs="+", choices=ALL_PEERS)
    add("--rounds", "how often each is timed, in turn with the others", type=int, default=11)
    add("--max-seconds", "leave out a peer expected to take longer a call", type=float, default=10)
    add("--no-memory", "do not measure memory", action="store_true")
    add("--output-dir", "folder of the JSON file", default="output")
    add("--plots-dir", "folder of the picture", default="plots")
    add("--debug", "show the traceback of an error", action="store_true")
    add("--step", "time training steps of the arms instead", action="store_true")
    add("--decode", "time one new token over contexts of S tokens instead", action="store_true")
    choices = {"nargs": "+", "choices": COMPILE_MODES, "default": ("none", "default")}
    text = "with --step, without --decode: torch.compile modes (default: none default)"
    add("--compile", text, **choices)
    choices = {"nargs": "+", "choices": tuple(ARMS), "default": DEFAULT_ARMS}
    add("--arms", f"with --step (default: {' '.join(DEFAULT_ARMS)})", **choices)
    choices = {"nargs": "+", "choices": EVALUATIONS, "default": ("auto",)}
    text = "with --step, without --decode: one window arm for each (default: auto)"
    add("--window-attention", text, **choices)
    add("--layers", "with --step: decoder blocks", type=int, default=8)
    return parser


def cases_from(args):
    """The device and the cases, shortest first, that the arguments mean; ValueError."""
    device = resolve_device(args.device)
    cuda = device.type == "cuda"
    defaults = {"heads": 16 if cuda else 4, "head_dim": 64 if cuda else 32}
    sizes = {name: getattr(args, name) or default for name, default in defaults.items()}
    for name in ("batch_size", "heads", "head_dim", "rounds", "layers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not (math.isfinite(args.max_seconds) and args.max_seconds > 0):
        raise ValueError(f"--max-seconds must be a positive number, got {args.max_seconds}")
    check_pattern(args.window_size, args.dilation)
    known = DECODE_PEERS if args.decode else PEERS
    for name in args.peers or ():
        if name not in known:
            raise ValueError(f"--peers {name}: choose of {', '.join(known)}")
    lengths = []
    for text in args.seq_lens or SEQ_LENS[device.type]:
        try:
            lengths.append(int(text))
        except ValueError:
            raise ValueError(f"--seq-lens must be whole numbers, got {text!r}") from None
        if lengths[-1] < 1:
            raise ValueError(f"--seq-lens must be at least 1, got {text}")
    dtype = args.dtype or ("bfloat16" if cuda else "float32")
    return device, [
        Case(
            args.batch_size,
            seq_len,
            *sizes.values(),
            args.window_size,
            args.dilation,
            dtype,
            str(device),
        )
        for seq_len in sorted(set(lengths))
    ]


def _step_config(args, case):
    """The experiment's configuration for steps at a case's sizes; ValueError."""
    return make_config(
        "paper",
        arms=tuple(args.arms),
        device=case.device,
        dtype=case.dtype,
        batch_size=case.batch_size,
        seq_len=case.seq_len,
        d_model=case.heads * case.head_dim,
        n_heads=case.heads,
        layers=args.layers,
        window_size=case.window_size,
        dilation=case.dilation,
    )


def _save(path, args, device, records, skipped):
    """Write what there is so far, whole or not at all."""
    content = {
        "options": vars(args),
        "environment": describe_environment(device),
        "records": records,
        "skipped": skipped,
    }
    text = to_json(content, indent=1)
    atomic_write(path, lambda file: file.write(text.encode()))


def run_attention(args, device, cases):
    """The attention benchmark; yields (records, skipped) after every length."""
    names = args.peers or list(PEERS)
    memory = not args.no_memory
    benchmark = AttentionBenchmark(names, device, args.rounds, args.max_seconds, memory)
    for case in cases:
        benchmark.measure(case)
        yield benchmark.records, benchmark.skipped


def run_steps(args, device, cases):
    """The step benchmark; yields (records, skipped) after every length."""
    configs = [_step_config(args, case) for case in cases]
    records, skipped = [], []
    for config in configs:
        more = measure_steps(config, args.compile, args.window_attention, device, args.rounds)
        records += more[0]
        skipped += more[1]
        yield records, skipped


def run_decoding(args, device, cases):
    """The benchmark of one new token; yields (records, skipped) after every context."""
    records, skipped = [], []
    for case in cases:
        more = measure_decoding(args.peers or decode_names(device), case, device, args.rounds)
        records += more[0]
        skipped += more[1]
        yield records, skipped


def run_decode_steps(args, device, cases):
    """The benchmark of the models' step for one new token; yields (records, skipped)."""
    records, skipped = [], []
    for config in [_step_config(args, case) for case in cases]:
        more = measure_decode_steps(config, device, args.rounds)
        records += more[0]
        skipped += more[1]
        yield records, skipped


def main(argv=None):
    """The command line; returns the exit code (see --help)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without ± gets a ? and not a traceback
            stream.reconfigure(errors="replace")
    warnings.filterwarnings("ignore", module="torch|natten|xformers|fla|local_attention")
    records, skipped, code = [], [], 0
    run, name, show = run_attention, "attention_benchmark", format_attention
    if args.decode and args.step:
        run, name, show = run_decode_steps, "decode_step_benchmark", format_steps
    elif args.decode:
        run, name, show = run_decoding, "decode_benchmark", format_decoding
    elif args.step:
        run, name, show = run_steps, "step_benchmark", format_steps
    try:
        try:
            device, cases = cases_from(args)
            for case in cases if args.step else ():
                _step_config(args, case)
        except ValueError as error:
            return _complain(error, args, EXIT_USAGE)
        check_writable(args.output_dir, args.plots_dir)
        path = Path(args.output_dir) / f"{name}.json"
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            try:
                for records, skipped in run(args, device, cases):
                    _save(path, args, device, records, skipped)
            except KeyboardInterrupt:
                say("interrupted: the lengths that were finished are kept")
                code = EXIT_INTERRUPTED
        print(device_name(device) + f", torch {torch.__version__}\n")
        print(show(records, skipped), flush=True)
        written = [path] if path.exists() and records else []
        if records and not (args.step or args.decode):
            figure = plot_scaling(records, _title(records, device))
            written += save_figure(figure, args.plots_dir, "attention_scaling")
        say("written: " + ", ".join(str(p) for p in written))
        return code
    except OSError as error:
        return _complain(error, args, EXIT_FAILED)


def _title(records, device):
    r = records[0]
    return (
        f"{device_name(device)}, {r['dtype']}, B{r['batch_size']} "
        f"H{r['heads']} D{r['head_dim']}, w{r['window_size']} d{r['dilation']}"
    )


def _complain(error, args, code):
    """One line for an error, or its traceback with --debug; returns ``code``."""
    if args.debug:
        raise error
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

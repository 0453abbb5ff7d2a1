"""Decoding timed: the attention of one new token over its context, or the models' whole step.

Each peer is checked against textbook attention first, and set against what a large copy moves.
"""

import math
from dataclasses import asdict
from functools import cached_property, partial

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention.cache import KERNELS, PRODUCTS, KeyValueCache
from attention.full import dense_attention
from attention.pattern import attended_pairs
from benchmarks.peers import (
    ALL_DTYPES,
    ALL_KEYS,
    FORWARD,
    PATTERN,
    Peer,
    allowed_mask,
    checked_error,
    small_case,
)
from benchmarks.steps import STEP_VOCAB
from benchmarks.timing import (
    MEMORY_SHARE,
    as_cuda_graph,
    free_memory,
    progress,
    reason_of,
    timed_in_rounds,
    times_of,
)
from training.trainer import autocast, build_model
from training.trainer import release_memory as forget_everything

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
    small = small_case(case)
    stored = Stored(small, seed=1)
    out = DECODE_PEERS[name].make(stored)().double()
    mask = allowed_mask(small, DECODE_PEERS[name].attends)[-1:]
    k, v = stored.keys_values.transpose(2, 3).double()
    expected = dense_attention(stored.q.double(), k, v, mask)
    return checked_error(((out - expected).norm() / expected.norm()).item(), case)


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
        skipped.append(about | {"reason": reason_of(error)})

    try:
        works[COPY], copied = copy_work(device)
        stored = Stored(case)
    except RuntimeError as error:  # memory
        for name in names:
            skip(name, error)
        return records, skipped
    for name in progress(names, f"S {case.seq_len:,}, one token"):
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
                **times_of(samples[name]),
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
                skipped.append({"arm": arm, **shape, "reason": reason_of(error)})
        samples = timed_in_rounds(works, device, rounds)
    fused = float(np.median(samples.get("fused", [math.nan])))
    records = [
        {
            "arm": arm,
            **shape,
            "dtype": config.dtype,
            "timed_as": how[arm],
            **times_of(seconds),
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

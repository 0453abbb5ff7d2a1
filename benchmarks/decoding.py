"""The attention of one new token: its peers, and the limit that memory sets.

It does no more than two operations for every number that it reads, so that no step can be faster
than memory is: each is set against what a large copy moves.
"""

from functools import partial

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention import attended_pairs
from attention.cache import KeyValueCache
from benchmarks.attention import measure_attention
from benchmarks.peers import ALL_DTYPES, ALL_KEYS, PATTERN, Peer, full_peers
from benchmarks.timing import free_memory, timed_in_rounds

COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}


def _cached(attends, case):
    """The models' step, over a cache that has taken the context."""

    def store(q, k, v):
        shape = case.batch_size, case.heads, case.head_dim
        pattern = *case.pattern(attends), 0
        cache = KeyValueCache(shape, case.seq_len, pattern, dtype=k.dtype, device=k.device)
        cache.write(k, v)
        return partial(cache.attend, q)

    return store


def _sdpa(backend, case):
    """PyTorch's kernel, over keys and values that lie head by head."""

    def store(q, k, v):
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))

        def attend():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

        return attend

    return store


DECODE_PEERS = {
    "window": Peer(PATTERN, "as the window model generates", partial(_cached, PATTERN)),
    "full": Peer(ALL_KEYS, "as the other models generate", partial(_cached, ALL_KEYS)),
    **full_peers(_sdpa),
    "math": Peer(ALL_KEYS, "matrix products", partial(_sdpa, SDPBackend.MATH)),
}


def measure_decoding(case, peers, errors, rounds):
    """``measure_attention`` of DECODE_PEERS, with the limit of each."""
    bandwidth = copy_bandwidth(torch.device(case.device), rounds)
    records, skipped = measure_attention(case, peers, errors, rounds)
    for r in records:
        read = bytes_read(case, r["attends"])
        limit = read / bandwidth * 1e3
        r |= {"read_mb": read / 1e6, "limit_ms": limit, "share_of_limit": limit / r["median_ms"]}
        r["copy_gb_per_s"] = bandwidth / 1e9
    return records, skipped


def bytes_read(case, attends):
    """The keys and values that the last query of a context attends to, in bytes."""
    pattern = case.pattern(attends)
    keys = attended_pairs(case.seq_len, *pattern) - attended_pairs(case.seq_len - 1, *pattern)
    of_a_key = 2 * case.batch_size * case.heads * case.head_dim * ALL_DTYPES[case.dtype].itemsize
    return keys * of_a_key


def copy_bandwidth(device, rounds):
    """How many bytes a second a large copy reads and writes."""
    count = min(COPY_BYTES[device.type], int(free_memory(device) / 4))
    source = torch.ones(count, dtype=torch.uint8, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    seconds = timed_in_rounds({"copy": copy}, device, rounds)["copy"]
    return 2 * count / float(np.median(seconds))

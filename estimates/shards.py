"""What the ranks of a sequence exchange in a training step, by formula, and its time simulated.

Letters: N ranks, L = S / N tokens of a shard, H heads of D numbers, w window_size, e bytes a
number; G heads that have keys everywhere, full and dilated ones; W window heads, all that are not
full.
"""

from attention.exchange import Shards, Zigzag
from attention.pattern import FULL_HEAD

LSE_BYTES = 4


def exchanged_bytes(seq_len, ranks, pattern, n_heads, head_dim, itemsize, rank=None, batch=1):
    """{exchange: bytes} that a rank sends in a layer's training step; the most that any does.

    pattern: a ``Pattern``; rank: of this one instead.  Nothing is computed twice: activations that
    are computed again are exchanged again, which adds what the forward pass sends.
    """
    if rank is None:
        about = seq_len, ranks, pattern, n_heads, head_dim, itemsize
        each = [exchanged_bytes(*about, rank, batch) for rank in range(ranks)]
        return max(each, key=lambda sent: sum(sent.values()))
    length, groups = seq_len // ranks, pattern.like_heads(seq_len, n_heads)
    full = groups[0][1].stop if groups[0][0] == FULL_HEAD else 0
    dilated = any(head.dilation for head, _ in groups if head != FULL_HEAD)
    gathered, token = n_heads if dilated else full, batch * head_dim * itemsize
    away = _moved_tokens(length, rank, ranks)
    window_kv = 2 * (n_heads - full) * token
    sinks = pattern.sink_tokens * window_kv
    with_lse = gathered * (token + batch * LSE_BYTES)
    return {
        # to the next rank; sinks from the first to all
        "halo": window_kv * pattern.window_size * (rank + 1 < ranks)
        + sinks * (ranks - 1) * (rank == 0),
        "halo, back": (window_kv * pattern.window_size + sinks) * (rank > 0),
        # keys and values to all others, and what was found for the others' back
        "gather": (ranks - 1) * length * 2 * gathered * token,
        "gather, back": (ranks - 1) * length * 2 * gathered * token,
        # q there, then gradient, out and lse; out and lse home, then dq
        "zigzag": away * (gathered * 2 * token + with_lse),
        "zigzag, back": away * (with_lse + gathered * token),
    }


def _moved_tokens(length, rank, ranks):
    """How many of a shard's tokens are computed elsewhere."""
    zigzag = Zigzag(Shards(None, rank, ranks), length)
    return sum(zigzag.size(chunk) for chunk in zigzag.lying if chunk not in zigzag.computed)

"""What the ranks of a sequence exchange in a training step, by formula, and its time simulated.

Letters: N ranks, L = S / N tokens of a shard, H heads of D numbers, w window_size, e bytes a
number; G heads that have keys everywhere, full and dilated ones; W window heads, all that are not
full.
"""

from attention.exchange import Shards, Zigzag
from attention.pattern import FULL, FULL_HEAD, Pattern, attended_pairs, causal_pairs
from attention.shards import heads_in_need

WIDE_BYTES = 4


def exchanged_bytes(seq_len, ranks, pattern, n_heads, head_dim, itemsize, rank=None, batch=1):
    """{exchange: bytes} that a rank sends in a layer's training step.

    pattern: a ``Pattern``; rank: None: the one that sends most.  Nothing is computed twice here:
    where activations are computed again, the exchanges of the forward pass come once more.
    """
    if rank is None:
        about = seq_len, ranks, pattern, n_heads, head_dim, itemsize
        each = [exchanged_bytes(*about, rank, batch) for rank in range(ranks)]
        return max(each, key=lambda sent: sum(sent.values()))
    length = seq_len // ranks
    full, gathered = heads_in_need(pattern.like_heads(seq_len, n_heads), n_heads)
    token = batch * head_dim * itemsize  # of one head
    away = _moved_tokens(length, rank, ranks)
    wider = max(WIDE_BYTES, itemsize) / itemsize  # gradients of keys travel in float32 or more
    window_kv = 2 * (n_heads - full) * token
    sinks = pattern.sink_tokens * window_kv
    with_lse = gathered * (token + batch * max(WIDE_BYTES, itemsize))
    return {
        # to the next rank; sinks from the first to all
        "halo": window_kv * pattern.window_size * (rank + 1 < ranks)
        + sinks * (ranks - 1) * (rank == 0),
        "halo, back": (window_kv * pattern.window_size + sinks) * wider * (rank > 0),
        # keys and values to all others, and what was found for the others' back
        "gather": (ranks - 1) * length * 2 * gathered * token,
        "gather, back": (ranks - 1) * length * 2 * gathered * token * wider,
        # q there, then gradient, out and lse; out and lse home, then dq
        "zigzag": away * (gathered * 2 * token + with_lse),
        "zigzag, back": away * (with_lse + gathered * token),
    }


def _moved_tokens(length, rank, ranks):
    """How many of a shard's queries another rank computes, see ``Zigzag``."""
    zigzag = Zigzag(Shards(None, rank, ranks), length)
    return sum(zigzag.size(chunk) for chunk in zigzag.own if chunk not in zigzag.computed)


# Measured on an H100 (torch 2.11, bfloat16, D 64): results/h100_attention_heads_long.json, 131,072
# tokens, forward and backward, and results/h100_step_heads.json, 65,536 tokens, d_model 512, 8
# layers, vocabulary 10,000: a step without its attention.
SECONDS_OF_PAIR = 146.477e-3 / 8 / causal_pairs(131_072)  # of a head, cuDNN
SECONDS_OF_WINDOW_TOKEN = (20.630e-3 - 146.477e-3 / 8) / 7 / 131_072  # of a head, w 96
SECONDS_OF_TOKEN = (323.223e-3 - 8 * 35.242e-3) / 65_536
# Bytes a second that a GPU sends, inside a machine of 8 and beyond: the first measured between two
# H200s (NCCL, 268 to 537 MB: 230 to 263e9), the other assumed
LINK_INSIDE, LINK_BEYOND, IN_A_MACHINE = 250e9, 40e9, 8
LAYERS, HEADS, HEAD_DIM, BYTES = 8, 8, 64, 2
PATTERNS = {
    "fused": FULL,
    "w96-d4": Pattern(96, 4),
    "w96-d0-f2": Pattern(96, 0, full_heads=2),
    "w96-d0-f1": Pattern(96, 0, full_heads=1),
    "w96-d0": Pattern(96, 0),
}


def simulated_step(seq_len, ranks, pattern):
    """Seconds of a training step of one sequence, from times of one GPU: a dict of its parts.

    Exchange is added to computation here, though the near part hides some of it, and nothing is
    computed again to save memory, which would cost more.  Not measured.
    """
    heads = pattern.of_heads(HEADS)
    far = sum(attended_pairs(seq_len, *head) for head in heads if head.dilation)
    near = sum(head != FULL_HEAD for head in heads)
    about = seq_len, ranks, pattern, HEADS, HEAD_DIM, BYTES
    link = LINK_INSIDE if ranks <= IN_A_MACHINE else LINK_BEYOND
    tokens = seq_len / ranks
    return {
        "far": LAYERS * far / ranks * SECONDS_OF_PAIR,
        "near": LAYERS * near * tokens * SECONDS_OF_WINDOW_TOKEN,
        "rest": tokens * SECONDS_OF_TOKEN,
        "exchange": LAYERS * sum(exchanged_bytes(*about).values()) / link,
    }


def tables():
    """The tables of docs/scaling.md: bytes by formula, then simulated steps, as lines."""
    yield "| ranks N | " + " | ".join(PATTERNS) + " |"
    yield "| --- |" + " --- |" * len(PATTERNS)
    for ranks in (2, 4, 8, 16, 64):
        about = HEADS, HEAD_DIM, BYTES
        sent = [
            sum(exchanged_bytes(2**20, ranks, pattern, *about).values())
            for pattern in PATTERNS.values()
        ]
        yield f"| {ranks} | " + " | ".join(f"{n / 1e6:,.1f}" for n in sent) + " |"
    for seq_len in (2**18, 2**20, 2**22, 2**24):
        yield ""
        yield f"| S {seq_len:,}, ranks N | " + " | ".join(PATTERNS) + " |"
        yield "| --- |" + " --- |" * len(PATTERNS)
        for ranks in (1, 2, 8, 16, 64):
            cells = []
            for pattern in PATTERNS.values():
                parts = simulated_step(seq_len, ranks, pattern)
                seconds = sum(parts.values())
                digits = f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.2g}"
                cells.append(f"{digits} ({parts['exchange'] / seconds:.0%})")
            yield f"| {ranks} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    print("\n".join(tables()))

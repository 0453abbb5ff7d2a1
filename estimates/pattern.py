"""What FLOP counts say of a pattern: shares of pairs, cost, limits of the speed-up."""

from dataclasses import dataclass

import numpy as np

from attention.pattern import causal_pairs, near_far_pairs, sink_pairs
from gpt import model_flops

CONFIGURATIONS = ((128, 4), (128, 2), (96, 4), (96, 6), (80, 4), (80, 6), (64, 4), (64, 8))
SEQ_LEN, D_MODEL, LAYERS, VOCAB_SIZE = 256, 512, 8, 10_000
LARGEST = 2**40  # far beyond any use, and everything up to it fits the pictures' int64


@dataclass(frozen=True)
class PatternAnalysis:
    """One pattern at one length and its FLOPs in one model: the forward pass of one sequence.

    A multiply-add is 2 FLOPs.  Training costs 3 times the forward pass, full and sparse alike, so
    every ratio holds for it too.  The number of heads changes nothing.
    """

    window_size: int
    dilation: int
    sink_tokens: int
    seq_len: int
    d_model: int
    layers: int
    vocab_size: int
    causal_pairs: int  # (query, key) pairs of full causal attention: S (S + 1) / 2
    near_pairs: int
    far_pairs: int
    sink_pairs: int  # those that are neither near nor far
    attended_pairs: int
    density: float  # share of the causal pairs that is kept, 0 to 1
    linear_flops: int  # all matrix products but attention: S (24 L C^2 + 2 C V)
    pair_flops: int  # attention for one pair in all layers: 4 C L
    flops_full: int  # full causal attention in all layers
    flops_sparse: int  # attention over the pattern's pairs in all layers
    attention_share: float  # of all FLOPs when attention is full, 0 to 1
    attention_speedup: float  # estimate for attention alone
    step_speedup: float  # estimate for the whole step, by Amdahl's law

    @property
    def label(self):
        """The pattern in words: ``w=96 d=4``, with ``N=4`` where there are sinks."""
        sinks = f" N={self.sink_tokens}" if self.sink_tokens else ""
        return f"w={self.window_size} d={self.dilation}{sinks}"

    @property
    def model(self):
        """Length and model in words."""
        shape = f"seq_len {self.seq_len:,}, d_model {self.d_model:,}, {self.layers:,} layers"
        return f"{shape}, vocabulary {self.vocab_size:,}"


def keys_per_query(positions, window_size, dilation, sink_tokens=0):
    """Near, far and other sink keys of the queries at ``positions``: three of their shape.

    With t = i - w, query i has min(i, w) + 1 near keys and floor(t / d) far keys, none while t < d;
    of its min(N, t) sinks beyond the window those that are t modulo d are far keys already.
    """
    near = np.minimum(positions, window_size) + 1
    beyond = np.maximum(np.subtract(positions, window_size), 0)
    sinks = np.minimum(beyond, sink_tokens)
    if not dilation:
        return near, np.zeros_like(beyond), sinks
    are_far = (sinks - beyond % dilation + dilation - 1) // dilation
    return near, beyond // dilation, sinks - np.maximum(are_far, 0)


def analyze_pattern(
    window_size,
    dilation,
    seq_len=SEQ_LEN,
    d_model=D_MODEL,
    layers=LAYERS,
    vocab_size=VOCAB_SIZE,
    sink_tokens=0,
):
    """Count the pattern's pairs (closed form) and estimate its cost: a PatternAnalysis.

    Raises ValueError, with name and value, for anything below 1 (dilation and sink_tokens: 0).
    """
    pattern = {"window_size": window_size, "dilation": dilation, "sink_tokens": sink_tokens}
    sizes = {"seq_len": seq_len, "d_model": d_model, "layers": layers, "vocab_size": vocab_size}
    for name, value in (pattern | sizes).items():
        least = 0 if name in ("dilation", "sink_tokens") else 1
        if not least <= value <= LARGEST:
            raise ValueError(f"{name} must be a whole number from {least} to 2**40, got {value}")
    near, far = near_far_pairs(seq_len, window_size, dilation)
    sinks = sink_pairs(seq_len, **pattern)
    attended, causal = near + far + sinks, causal_pairs(seq_len)
    linear, per_pair = model_flops(**sizes)
    full, sparse = per_pair * causal, per_pair * attended
    return PatternAnalysis(
        **pattern,
        **sizes,
        causal_pairs=causal,
        near_pairs=near,
        far_pairs=far,
        sink_pairs=sinks,
        attended_pairs=attended,
        density=attended / causal,
        linear_flops=linear,
        pair_flops=per_pair,
        flops_full=full,
        flops_sparse=sparse,
        attention_share=full / (full + linear),
        attention_speedup=causal / attended,
        step_speedup=(full + linear) / (sparse + linear),
    )

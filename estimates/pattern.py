"""What FLOP counts say of a pattern: shares of pairs, cost, limits of the speed-up."""

from dataclasses import dataclass

import numpy as np

from attention.pattern import causal_pairs, near_far_pairs, sink_pairs
from gpt import model_flops

CONFIGURATIONS = ((128, 4), (128, 2), (96, 4), (96, 6), (80, 4), (80, 6), (64, 4), (64, 8))
SEQ_LEN, D_MODEL, LAYERS, VOCAB_SIZE = 256, 512, 8, 10_000
LARGEST = 2**40  # far beyond any use, and everything up to it fits the pictures' int64
ESTIMATE = "Speed-ups: estimates from FLOP counts, not measured."


# --- the numbers -------------------------------------------------------------------------------
@dataclass(frozen=True)
class PatternAnalysis:
    """One pattern at one length and its FLOPs in one model: the forward pass of one sequence.

    A multiply-add is 2 FLOPs.  Training costs 3 times the forward pass, full and sparse alike, so
    every ratio holds for it too.  The number of heads changes nothing.
    """

    window_size: int
    dilation: int
    seq_len: int
    d_model: int
    layers: int
    vocab_size: int
    causal_pairs: int  # (query, key) pairs of full causal attention: S (S + 1) / 2
    near_pairs: int
    far_pairs: int
    density: float  # share of the causal pairs that is kept: attended / causal, 0 to 1
    sparsity: float  # 1 - density
    mean_keys: float  # keys a query attends to, itself included: attended / S
    max_keys: int  # the last query's, which has the most
    linear_flops: int  # all matrix products but attention: S (24 L C^2 + 2 C V)
    flops_full: int  # full causal attention in all layers: 4 C L a pair
    flops_sparse: int  # attention over the pattern's pairs
    attention_share: float  # p = flops_full / (flops_full + linear_flops), 0 to 1
    attention_speedup: float  # estimate, attention alone: 1 / density
    step_speedup: float  # estimate, whole step, by Amdahl's law: 1 / (1 - p + p * density)
    sink_tokens: int = 0
    sink_pairs: int = 0  # those that are neither near nor far

    @property
    def label(self):
        """The configuration in words: ``w=96 d=4``, with ``N=4`` where there are sinks."""
        sinks = f" N={self.sink_tokens}" if self.sink_tokens else ""
        return f"w={self.window_size} d={self.dilation}{sinks}"

    @property
    def attended_pairs(self):
        """All pairs that are kept."""
        return self.near_pairs + self.far_pairs + self.sink_pairs


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

    Raises ValueError, with name and value, for anything but whole numbers of at least 1
    (dilation and sink_tokens: at least 0).
    """
    sizes = {"seq_len": seq_len, "d_model": d_model, "layers": layers, "vocab_size": vocab_size}
    pattern = {"window_size": window_size, "dilation": dilation, "sink_tokens": sink_tokens}
    for name, value in {**pattern, **sizes}.items():
        least = 0 if name in ("dilation", "sink_tokens") else 1
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not least <= value <= LARGEST:
            raise ValueError(
                f"{name} must be a whole number >= {least} and <= 2**40, got {value!r}"
            )
    near, far = near_far_pairs(seq_len, window_size, dilation)
    sinks = sink_pairs(seq_len, window_size, dilation, sink_tokens)
    attended = near + far + sinks
    causal = causal_pairs(seq_len)
    linear, per_pair = model_flops(**sizes)
    density = attended / causal
    share = per_pair * causal / (per_pair * causal + linear)
    return PatternAnalysis(
        **{**pattern, **sizes},
        **{"causal_pairs": causal, "near_pairs": near, "far_pairs": far, "sink_pairs": sinks},
        **{"density": density, "sparsity": 1 - density, "mean_keys": attended / seq_len},
        max_keys=int(sum(keys_per_query(seq_len - 1, **pattern))),
        linear_flops=linear,
        flops_full=per_pair * causal,
        flops_sparse=per_pair * attended,
        attention_share=share,
        attention_speedup=1 / density,
        step_speedup=1 / (1 - share + share * density),
    )


def describe_model(a):
    """Length and model of an analysis in one line."""
    shape = f"seq_len {a.seq_len:,}, d_model {a.d_model:,}, {a.layers:,} layers"
    return f"{shape}, vocabulary {a.vocab_size:,}"

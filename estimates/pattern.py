"""What FLOP counts say of a pattern: shares of pairs, cost, limits of the speed-up."""

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from attention.pattern import FULL_HEAD, HeadPattern, causal_pairs, near_far_pairs, sink_pairs
from gpt import model_flops
from gpt_win import layer_patterns
from machine.command import counted

CONFIGURATIONS = ((128, 4), (128, 2), (96, 4), (96, 6), (80, 4), (80, 6), (64, 4), (64, 8))
LARGEST = 2**40  # far beyond any use, and everything up to it fits the pictures' int64
MOST_HEADS = 2**20  # of all layers, for they are counted one by one


@dataclass
class PatternAnalysis:
    """One pattern at one length and its FLOPs in one model: the forward pass of one sequence.

    A multiply-add is 2 FLOPs.  Training costs 3 times the forward pass, full and sparse alike, so
    every ratio holds for it too.  Where heads or layers differ, counts are means over them all.
    Raises ValueError, with name and value, for anything below 1 (dilation, sink_tokens and
    full_heads: 0), for what is no pattern of ``n_heads`` heads and for more than MOST_HEADS.
    """

    window_size: int
    dilation: int
    seq_len: int = 256
    d_model: int = 512
    layers: int = 8
    vocab_size: int = 10_000
    sink_tokens: int = 0
    n_heads: int = 16
    full_heads: int | tuple = 0  # one for each layer, or one for all
    stagger: bool = False

    def __post_init__(self):
        for name, value in asdict(self).items():
            least = 0 if name in ("window_size", "dilation", "sink_tokens", "stagger") else 1
            if name != "full_heads" and not least <= value <= LARGEST:
                words = f"{name} must be a whole number from {least} to 2**40"
                raise ValueError(f"{words}, got {value}")
        if self.layers * self.n_heads > MOST_HEADS:
            heads = f"{counted(self.layers, 'layer')} of {counted(self.n_heads, 'head')}"
            raise ValueError(f"{heads}: more than the {MOST_HEADS:,} that can be counted")
        self.heads = self._heads()
        self.causal_pairs = causal_pairs(self.seq_len)  # (query, key) of full causal attention
        near, far, sinks = self._mean_pairs(self.seq_len)
        self.attended_pairs = near + far + sinks
        of_all_but_last = sum(self._mean_pairs(self.seq_len - 1))
        self.most_keys = self.attended_pairs - of_all_but_last  # the last query's
        self.pairs = near, far, sinks, self.causal_pairs - self.attended_pairs  # kept, left out
        self.density = self.attended_pairs / self.causal_pairs  # share that is kept, 0 to 1
        self.sparsity = 1 - self.density
        # linear_flops: all matrix products but attention, pair_flops: one pair in all layers
        sizes = self.seq_len, self.d_model, self.layers, self.vocab_size
        self.linear_flops, self.pair_flops = model_flops(*sizes)
        self.flops_full = self.pair_flops * self.causal_pairs  # of attention
        self.flops_sparse = self.pair_flops * self.attended_pairs
        self.whole_full = self.flops_full + self.linear_flops
        self.whole_sparse = self.flops_sparse + self.linear_flops
        self.attention_share = self.flops_full / self.whole_full  # 0 to 1
        self.attention_speedup = self.causal_pairs / self.attended_pairs  # estimates
        self.step_speedup = self.whole_full / self.whole_sparse  # by Amdahl's law

    def _heads(self):
        """{HeadPattern: how many heads of all layers have it}."""
        pattern = self.window_size, self.dilation, self.sink_tokens, self.full_heads, self.stagger
        layers = layer_patterns(self.layers, self.n_heads, *pattern)
        heads = Counter(head for layer in layers for head in layer.of_heads(self.n_heads))
        if FULL_HEAD in heads:  # its keys in the window are to count as near, the others as far
            heads[HeadPattern(self.window_size, 1)] += heads.pop(FULL_HEAD)
        return heads

    def _mean_pairs(self, seq_len):
        """Near, far and sink pairs of a head, the mean over all."""
        totals = np.zeros(3, dtype=object)  # Python's numbers, which never overflow
        for (window_size, dilation, sinks, phase), count in self.heads.items():
            pairs = near_far_pairs(seq_len, window_size, dilation, phase)
            alone = sink_pairs(seq_len, window_size, dilation, sinks, phase)
            totals += count * np.array([*pairs, alone], dtype=object)
        count = self.heads.total()
        return [n // count if n % count == 0 else n / count for n in totals]

    @property
    def label(self):
        """The pattern in words: ``w=96 d=4``, and what is not as documented."""
        words = [f"w={self.window_size} d={self.dilation}"]
        words += [f"N={self.sink_tokens}"] * bool(self.sink_tokens)
        words += ["staggered"] * self.stagger
        if self.full_heads:
            counts = ",".join(map(str, np.atleast_1d(self.full_heads)))
            words.append(f"F={counts} of {self.n_heads}")
        return " ".join(words)

    @property
    def model(self):
        """Length and model in words."""
        layers = counted(self.layers, "layer")
        shape = f"seq_len {self.seq_len:,}, d_model {self.d_model:,}, {layers}"
        return f"{shape}, vocabulary {self.vocab_size:,}"

"""What FLOP counts say of a pattern: shares of pairs, cost, limits of the speed-up."""

from dataclasses import asdict, dataclass

from attention.pattern import attended_pairs, causal_pairs, near_far_pairs, sink_pairs
from gpt import model_flops

CONFIGURATIONS = ((128, 4), (128, 2), (96, 4), (96, 6), (80, 4), (80, 6), (64, 4), (64, 8))
LARGEST = 2**40  # far beyond any use, and everything up to it fits the pictures' int64


@dataclass
class PatternAnalysis:
    """One pattern at one length and its FLOPs in one model: the forward pass of one sequence.

    A multiply-add is 2 FLOPs.  Training costs 3 times the forward pass, full and sparse alike, so
    every ratio holds for it too.  The number of heads changes nothing.
    Raises ValueError, with name and value, for anything below 1 (dilation and sink_tokens: 0).
    """

    window_size: int
    dilation: int
    seq_len: int = 256
    d_model: int = 512
    layers: int = 8
    vocab_size: int = 10_000
    sink_tokens: int = 0

    def __post_init__(self):
        for name, value in asdict(self).items():
            least = 0 if name in ("dilation", "sink_tokens") else 1
            if not least <= value <= LARGEST:
                words = f"{name} must be a whole number from {least} to 2**40"
                raise ValueError(f"{words}, got {value}")
        pattern = self.window_size, self.dilation
        self.causal_pairs = causal_pairs(self.seq_len)  # (query, key) of full causal attention
        near, far = near_far_pairs(self.seq_len, *pattern)
        sinks = sink_pairs(self.seq_len, *pattern, self.sink_tokens)  # neither near nor far
        self.attended_pairs = near + far + sinks
        before_last = attended_pairs(self.seq_len - 1, *pattern, self.sink_tokens)
        self.most_keys = self.attended_pairs - before_last  # of a query: the last has most
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

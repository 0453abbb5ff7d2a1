"""Attention over the sliding-window + dilated pattern: one folder to take home, needs torch alone.

    from attention import may_attend, window_attention, window_mask

Letters used everywhere: B batch, S sequence length, H heads, D head_dim, C d_model (= H * D),
w window_size, d dilation, N sink_tokens, F full_heads.  Queries, keys and values are (B, S, H, D).

Reading order: pattern (who attends to whom), full and masks (textbook attention over it), then the
evaluations whose cost follows the attended pairs: split (how it works), parts, pieces, kernels and
sinks; flex (a generated kernel); choose (which evaluation ``auto`` takes); rotary (positions);
last (the last queries alone), cache (one new token); shards and exchange (one sequence over several
GPUs); flash and hf (for what calls flash-attn, and for transformers, which hf.py alone imports).
kept is the cache of masks and tables behind them.
``python -m attention`` draws a small pattern.
"""

from attention.choose import window_attention
from attention.full import dense_attention, fused_attention
from attention.pattern import attended_pairs, density, may_attend, window_mask

__all__ = [
    "attended_pairs",
    "dense_attention",
    "density",
    "fused_attention",
    "may_attend",
    "window_attention",
    "window_mask",
]

"""The sliding-window + dilated causal pattern, and the ways to evaluate attention over it.

This file knows tensors and no models.  ``python window_attention.py`` draws a small pattern.

Letters used everywhere: B batch, S sequence length, H heads, D head_dim, C d_model (= H * D),
w window_size, d dilation.  Queries, keys and values are (B, S, H, D).
"""

import functools
import math

import torch
import torch.nn.functional as F

EVALUATIONS = ("auto", "dense", "masked")


# --- the pattern -------------------------------------------------------------------------------


def check_pattern(window_size, dilation):
    """Raise ValueError unless ``window_size >= 1`` and ``dilation >= 0`` are whole numbers."""
    for name, value, least in (("window_size", window_size, 1), ("dilation", dilation, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def may_attend(query, key, window_size, dilation):
    """THE definition: may query position ``query`` attend to key position ``key``?

    With r = query - key, the pair is kept when r >= 0 (causal) and either

    * near: r <= window_size, that is the token itself and the previous ``window_size`` ones
      (window_size + 1 keys), or
    * far: (r - window_size) is a multiple of ``dilation``, every dilation-th token counted back
      from the window's far edge.

    ``dilation=1`` is full causal attention; ``dilation=0`` means no far keys (a pure sliding
    window).  Works elementwise on integers, numpy arrays and tensors, which broadcast.
    """
    r = query - key
    near = (r >= 0) & (r <= window_size)
    if dilation == 0:
        return near
    return near | ((r > window_size) & ((r - window_size) % dilation == 0))


def window_mask(seq_len, window_size, dilation, device=None):
    """The pattern as a bool tensor (S, S), True = may attend; rows are queries."""
    check_pattern(window_size, dilation)
    position = torch.arange(seq_len, device=device)
    return may_attend(position[:, None], position[None, :], window_size, dilation)


def near_far_pairs(seq_len, window_size, dilation):
    """How many (query, key) pairs of a sequence are near and how many are far, in closed form.

    Query i has min(i, w) + 1 near keys and floor((i - w) / d) far keys (none while i < w + d).
    """
    check_pattern(window_size, dilation)
    w = min(window_size, seq_len)
    near = seq_len * (w + 1) - w * (w + 1) // 2
    if dilation == 0:
        return near, 0
    # sum of floor(t / d) for t = 0 .. n - 1, where t = i - w
    groups, rest = divmod(seq_len - w, dilation)
    return near, dilation * groups * (groups - 1) // 2 + rest * groups


def attended_pairs(seq_len, window_size, dilation):
    """How many (query, key) pairs the pattern keeps: near and far together."""
    return sum(near_far_pairs(seq_len, window_size, dilation))


def causal_pairs(seq_len):
    """How many (query, key) pairs full causal attention has: S (S + 1) / 2."""
    return seq_len * (seq_len + 1) // 2


def density(seq_len, window_size, dilation):
    """The share of the causal pairs that the pattern keeps, between 0 and 1."""
    return attended_pairs(seq_len, window_size, dilation) / causal_pairs(seq_len)


def is_full_causal(seq_len, window_size, dilation):
    """True when the pattern leaves out nothing at this length."""
    return dilation == 1 or window_size >= seq_len - 1


# The mask depends on four values only, so layers and steps share one tensor.  Dynamo may not trace
# into a cache; it is told that the result is a constant of the compiled graph.
@torch.compiler.assume_constant_result
def cached_window_mask(seq_len, window_size, dilation, device):
    """``window_mask``, built once for each (S, w, d, device) and shared; do not write to it."""
    return _mask_cache(seq_len, window_size, dilation, device)


@functools.lru_cache(maxsize=8)
def _mask_cache(seq_len, window_size, dilation, device):
    return window_mask(seq_len, window_size, dilation, device)


def clear_mask_cache():
    """Forget the cached masks, so that one model's masks never count as another's memory."""
    _mask_cache.cache_clear()


# --- the evaluations ---------------------------------------------------------------------------


def dense_attention(q, k, v, mask):
    """Textbook attention: every score is computed, the masked ones are thrown away.

    softmax(q k^T / sqrt(D)) v of Vaswani et al. 2017, with the scores where ``mask`` (S, S) is
    False set to minus infinity.  The readable reference, and the tests' oracle in float64.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, S, S)
    scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)  # (B, S, H, D)


def fused_attention(q, k, v, mask=None):
    """PyTorch's scaled_dot_product_attention: causal, or over ``mask`` (S, S) where given."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return out.transpose(1, 2)  # (B, S, H, D)


def check_evaluation(evaluation):
    """Raise ValueError for a name that is not in ``EVALUATIONS``."""
    if evaluation not in EVALUATIONS:
        raise ValueError(
            f"unknown window attention {evaluation!r}: choose one of {', '.join(EVALUATIONS)}"
        )


def choose_evaluation(seq_len, window_size, dilation):
    """The evaluation that ``auto`` stands for at this length and pattern.

    Of the two there are, the masked kernel has been the faster one at every size measured.
    """
    return "masked"


def window_attention(q, k, v, window_size, dilation, evaluation="auto"):
    """Causal attention over the sliding-window + dilated pattern of ``may_attend``.

    q, k, v: (B, S, H, D), any floating dtype, on one device.  Returns (B, S, H, D).
    evaluation: ``dense`` (textbook), ``masked`` (scaled_dot_product_attention with the cached
    mask) or ``auto``; all give the same result within rounding.
    Raises ValueError for window_size < 1, dilation < 0 or an unknown evaluation.
    """
    check_pattern(window_size, dilation)
    check_evaluation(evaluation)
    seq_len = q.shape[1]
    if evaluation == "auto":
        evaluation = choose_evaluation(seq_len, window_size, dilation)
    if evaluation == "masked" and is_full_causal(seq_len, window_size, dilation):
        return fused_attention(q, k, v)
    mask = cached_window_mask(seq_len, window_size, dilation, q.device)
    return (dense_attention if evaluation == "dense" else fused_attention)(q, k, v, mask)


def draw_pattern(seq_len, window_size, dilation):
    """The pattern as lines of text: # near, o far, . causal but not attended."""
    check_pattern(window_size, dilation)

    def mark(i, j):
        if not may_attend(i, j, window_size, dilation):
            return "."
        return "#" if i - j <= window_size else "o"

    return "\n".join(" ".join(mark(i, j) for j in range(i + 1)) for i in range(seq_len))


if __name__ == "__main__":
    print("24 tokens, window_size 4, dilation 3: # near, o far, . causal but not attended")
    print(draw_pattern(24, 4, 3))

"""The sliding-window + dilated causal pattern, and the ways to evaluate attention over it.

This file knows tensors and no models.  ``python window_attention.py`` draws a small pattern.

Letters used everywhere: B batch, S sequence length, H heads, D head_dim, C d_model (= H * D),
w window_size, d dilation.  Queries, keys and values are (B, S, H, D).
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

EVALUATIONS = ("auto", "dense", "masked", "split")
# Tokens from which split beats masked on a CPU.  Measured on 2 cores, torch 2.13.0, float32, B1 H4
# D32 w96 d4, forward and backward: 4.8 against 3.8 ms at 384 tokens, 5.7 against 8.2 ms at 512.
SPLIT_FROM = 512


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


# --- the split evaluation ----------------------------------------------------------------------
# Its cost follows the pairs that are attended.  The near keys are a sliding window: chunks of
# queries against their own and the preceding keys.  The far keys of query i are i - o, i - o - d,
# ... with o = w + d: among the tokens of one residue class modulo d that is ordinary causal
# attention, shifted by o, so each class is one more head of length about S / d.  Both parts go to
# PyTorch's flash kernel, which returns the log-sum-exp of the scores beside the output; with it the
# two softmaxes are merged into one, and each part's own backward kernel, given the merged output
# and log-sum-exp, returns its exact share of the gradients (as ring attention does, Liu et al.
# 2023).  Folding residue classes is known from NATTEN (Hassani et al. 2023), merging by
# log-sum-exp from Milakov & Gimelshein 2018.

_flash_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Part(NamedTuple):
    """Some queries and their keys as ``count`` equal pieces, (count, H, length, D), all views.

    Piece n has the positions query + n * hop + t * stride, t = 0 .. length - 1, against the keys
    key + n * hop + t * stride, t = 0 .. keys - 1.
    """

    query: int
    key: int
    count: int
    hop: int
    length: int
    keys: int
    stride: int


def chunk_length(window_size):
    """Queries in a near chunk: few wasted pairs against few, large matrix products.

    A power of two from a quarter of the window on, at least 32: the fastest or within 10 % of it
    of 32 to 128 on 2 CPU cores, for windows of 16, 96 and 512.
    """
    return max(32, 2 ** math.ceil(math.log2(window_size / 4)))


def near_parts(seq_len, window_size):
    """The sliding window as parts: a head that has no full window before it, chunks, a rest."""
    chunk = chunk_length(window_size)
    back = -(-window_size // chunk) * chunk  # keys before a chunk, whole chunks of them
    count, rest = divmod(seq_len - back, chunk)
    if count < 1:
        return [Part(0, 0, 1, 0, seq_len, seq_len, 1)]
    parts = [Part(0, 0, 1, 0, back, back, 1)]
    parts.append(Part(back, 0, count, chunk, chunk, back + chunk, 1))
    if rest:
        parts.append(Part(seq_len - rest, seq_len - rest - back, 1, 0, rest, back + rest, 1))
    return parts


def far_parts(seq_len, window_size, dilation):
    """The dilated keys as parts, a piece for each residue class; some are one token longer."""
    offset = window_size + dilation
    if dilation == 0 or seq_len <= offset:
        return []
    length, longer = divmod(seq_len - offset, dilation)
    parts = [Part(offset, 0, longer, 1, length + 1, length + 1, dilation)]
    first = (offset + longer, longer)
    parts.append(Part(*first, dilation - longer, 1, length, length, dilation))
    return [part for part in parts if part.count and part.length]


def _pieces(x, batch, first, count, length, part):
    """View (count, H, length, ...) of x (B, S, H, ...): the part's pieces from ``first`` on."""
    step = x.stride(1)
    return x.as_strided(
        (count, x.shape[2], length, *x.shape[3:]),
        (part.hop * step, x.stride(2), part.stride * step, *x.stride()[3:]),
        x.storage_offset() + batch * x.stride(0) + first * step,
    )


def _queries(x, batch, part):
    return _pieces(x, batch, part.query, part.count, part.length, part)


def _keys(x, batch, part):
    return _pieces(x, batch, part.key, part.count, part.keys, part)


def _add_keys(x, batch, part, gradient):
    """Add the gradients of a part's keys to x; pieces that overlap are added hop by hop."""
    hop = part.hop if part.keys > part.length and part.count > 1 else part.keys
    for start in range(0, part.keys, hop):
        target = _pieces(x, batch, part.key + start * part.stride, part.count, hop, part)
        target.add_(gradient[:, :, start : start + hop])


@functools.lru_cache(maxsize=32)
def _window_bias(part, window_size, dtype):
    """What is added to a near part's scores, (length, keys): 0, or minus infinity outside."""
    query = torch.arange(part.length)[:, None] + part.query - part.key
    allowed = may_attend(query, torch.arange(part.keys)[None, :], window_size, 0)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))


def _parts_with_options(seq_len, window_size, dilation, dtype):
    """Every part with the kernel's options for it, and whether it is a near one."""
    for part in near_parts(seq_len, window_size):
        # the same chunk at another place has the same bias
        here = part._replace(query=part.query - part.key, key=0, count=1)
        bias = _window_bias(here, window_size, dtype)
        yield part, {"is_causal": False, "attn_mask": bias}, True
    for part in far_parts(seq_len, window_size, dilation):
        yield part, {"is_causal": True}, False


@torch.library.custom_op("window_attention::split", mutates_args=())
def _split(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window_size: int, dilation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, S, H, D) and log-sum-exp (B, S, H) of the scores over near and far keys."""
    out, lse = _empty_results(q)
    q, k, v = _unit_stride(q, k, v)
    for part, options, near in _parts_with_options(q.shape[1], window_size, dilation, q.dtype):
        for batch in range(q.shape[0]):
            views = _queries(q, batch, part), _keys(k, batch, part), _keys(v, batch, part)
            part_out, part_lse = _flash_cpu(*views, 0.0, **options)
            here, lse_here = _queries(out, batch, part), _queries(lse, batch, part)
            if near:
                here.copy_(part_out)
                lse_here.copy_(part_lse)
            else:  # queries without far keys are in no far part, so no lse is infinite here
                weight = torch.sigmoid(part_lse - lse_here).unsqueeze(-1)
                here.lerp_(part_out, weight.to(here.dtype))
                lse_here.copy_(torch.logaddexp(lse_here, part_lse))
    return out, lse


@torch.library.custom_op("window_attention::split_backward", mutates_args=())
def _split_backward(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    window_size: int,
    dilation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, (B, S, H, D) each: the near part's and the far part's, added."""
    dq, _ = _empty_results(q)
    dk, dv = torch.zeros_like(dq), torch.zeros_like(dq)
    gradient, q, k, v = _unit_stride(gradient, q, k, v)
    for part, options, near in _parts_with_options(q.shape[1], window_size, dilation, q.dtype):
        for batch in range(q.shape[0]):
            of_queries = [_queries(x, batch, part) for x in (gradient, q, out, lse)]
            of_keys = [_keys(x, batch, part) for x in (k, v)]
            part_dq, part_dk, part_dv = _flash_cpu_backward(
                *of_queries[:2], *of_keys, *of_queries[2:], 0.0, **options
            )
            # every query is in one near part, which is therefore the first to write it
            target = _queries(dq, batch, part)
            target.copy_(part_dq) if near else target.add_(part_dq)
            _add_keys(dk, batch, part, part_dk)
            _add_keys(dv, batch, part, part_dv)
    return dq, dk, dv


def _empty_results(q):
    """Contiguous room for an output like q (B, S, H, D) and its log-sum-exp (B, S, H)."""
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=lse_dtype)


def _unit_stride(*tensors):
    """The kernel wants the last dimension contiguous; what is not is copied."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


@_split.register_fake
def _(q, k, v, window_size, dilation):
    return _empty_results(q)


@_split_backward.register_fake
def _(gradient, q, k, v, out, lse, window_size, dilation):
    return tuple(q.new_empty(q.shape) for _ in range(3))


def _save_for_backward(ctx, inputs, output):
    *qkv, ctx.window_size, ctx.dilation = inputs
    ctx.save_for_backward(*qkv, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, gradient, gradient_of_lse):
    if gradient is None:
        return (None,) * 5
    pattern = ctx.window_size, ctx.dilation
    return *_split_backward(gradient, *ctx.saved_tensors, *pattern), None, None


def _no_second_derivative(ctx, *gradients):
    raise RuntimeError("split attention has no second derivative: choose dense for double backward")


_split.register_autograd(_backward, setup_context=_save_for_backward)
_split_backward.register_autograd(_no_second_derivative)


def split_attention(q, k, v, window_size, dilation):
    """The pattern at a cost that follows its pairs; q, k, v and the result are (B, S, H, D)."""
    return _split(q, k, v, window_size, dilation)[0]


# --- the choice --------------------------------------------------------------------------------


def check_evaluation(evaluation):
    """Raise ValueError for a name that is not in ``EVALUATIONS``."""
    if evaluation not in EVALUATIONS:
        raise ValueError(
            f"unknown window attention {evaluation!r}: choose one of {', '.join(EVALUATIONS)}"
        )


class Plan(NamedTuple):
    """What ``auto`` picks, and why, in words."""

    evaluation: str
    reason: str


def attention_plan(seq_len, window_size, dilation, device_type):
    """The ``Plan`` of ``auto`` for a length, a pattern and a device type (cpu or cuda)."""
    if is_full_causal(seq_len, window_size, dilation):
        return Plan("masked", "the pattern leaves out no pair: full causal attention")
    if device_type != "cpu":
        return Plan("masked", "split runs on a CPU only")
    if seq_len < SPLIT_FROM:
        return Plan("masked", f"below {SPLIT_FROM} tokens masked was measured to be faster")
    if 3 * window_size > seq_len:
        return Plan("masked", "a window over a third of the sequence leaves little to skip")
    return Plan("split", f"from {SPLIT_FROM} tokens on split was measured to be faster")


def window_attention(q, k, v, window_size, dilation, evaluation="auto"):
    """Causal attention over the sliding-window + dilated pattern of ``may_attend``.

    q, k, v: (B, S, H, D), any floating dtype, on one device.  Returns (B, S, H, D).
    evaluation: ``dense`` (textbook), ``masked`` (scaled_dot_product_attention with the cached
    mask), ``split`` (cost follows the attended pairs; CPU) or ``auto`` (see ``attention_plan``);
    all give the same result within rounding.
    Raises ValueError for window_size < 1, dilation < 0, an unknown evaluation, or split on a
    device that it does not run on.
    """
    check_pattern(window_size, dilation)
    check_evaluation(evaluation)
    seq_len = q.shape[1]
    if evaluation == "auto":
        evaluation = attention_plan(seq_len, window_size, dilation, q.device.type).evaluation
    if evaluation == "split":
        if q.device.type != "cpu":
            raise ValueError(f"split attention runs on a CPU, not on {q.device}: choose masked")
        return split_attention(q, k, v, window_size, dilation)
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

"""The sliding-window + dilated causal pattern, and the ways to evaluate attention over it.

This file knows tensors and no models.  ``python window_attention.py`` draws a small pattern.

Letters used everywhere: B batch, S sequence length, H heads, D head_dim, C d_model (= H * D),
w window_size, d dilation, N sink_tokens.  Queries, keys and values are (B, S, H, D).
"""

import functools
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

EVALUATIONS = ("auto", "dense", "masked", "split")
MOST_SINKS = 256  # beyond them auto leaves split alone, whose sink part has scores (B, H, S, N)
# Tokens from which split beats masked, by device type and dtype.  Measured with
# benchmark_attention.py, forward and backward, w96 d4, split against masked, in ms.  2 CPU cores,
# torch 2.13.0, B1 H4 D32: 4.8 to 3.8 at 384 tokens, 5.7 to 8.2 at 512.  H200, torch 2.11, B8 H16
# D32: bfloat16 0.306 (compiled 0.240) to 0.295 at 768 and 0.384 (0.301) to 0.492 at 1024; float32
# 1.47 to 0.89 at 512 and 1.87 to 1.90 at 768.  Dense was slower than masked everywhere.
SPLIT_FROM = {
    ("cpu", torch.float32): 512,
    ("cpu", torch.float64): 512,
    ("cpu", torch.bfloat16): 512,
    ("cuda", torch.bfloat16): 1024,
    ("cuda", torch.float16): 1024,
    ("cuda", torch.float32): 768,
}


# --- the pattern -------------------------------------------------------------------------------


def check_pattern(window_size, dilation, sink_tokens=0):
    """Raise ValueError unless all are whole numbers, ``window_size >= 1`` and the others >= 0."""
    for name, value, least in (
        ("window_size", window_size, 1),
        ("dilation", dilation, 0),
        ("sink_tokens", sink_tokens, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def may_attend(query, key, window_size, dilation, sink_tokens=0):
    """THE definition: may query position ``query`` attend to key position ``key``?

    With r = query - key, the pair is kept when r >= 0 (causal) and either

    * near: r <= window_size, that is the token itself and the previous ``window_size`` ones
      (window_size + 1 keys), or
    * far: (r - window_size) is a multiple of ``dilation``, every dilation-th token counted back
      from the window's far edge, or
    * a sink: key < sink_tokens, the first tokens of the sequence (Xiao et al. 2023).

    ``dilation=1`` is full causal attention; ``dilation=0`` means no far keys (a pure sliding
    window).  Works elementwise on integers, numpy arrays and tensors, which broadcast.
    """
    r = query - key
    kept = (r >= 0) & (r <= window_size)
    if dilation:
        kept = kept | ((r > window_size) & ((r - window_size) % dilation == 0))
    if sink_tokens:
        kept = kept | ((r >= 0) & (key < sink_tokens))
    return kept


def window_mask(seq_len, window_size, dilation, device=None, sink_tokens=0):
    """The pattern as a bool tensor (S, S), True = may attend; rows are queries."""
    check_pattern(window_size, dilation, sink_tokens)
    position = torch.arange(seq_len, device=device)
    return may_attend(position[:, None], position[None, :], window_size, dilation, sink_tokens)


def near_far_pairs(seq_len, window_size, dilation):
    """How many (query, key) pairs of a sequence are near and how many are far, in closed form.

    Query i has min(i, w) + 1 near keys and floor((i - w) / d) far keys (none while i < w + d).
    """
    check_pattern(window_size, dilation)
    w = min(window_size, seq_len)
    near = seq_len * (w + 1) - w * (w + 1) // 2
    if dilation == 0:
        return near, 0
    return near, _sum_of_floors(seq_len - w, dilation)  # t = i - w


def _sum_of_floors(n, dilation):
    """The sum of floor(t / d) for t = 0 .. n - 1."""
    groups, rest = divmod(n, dilation)
    return dilation * groups * (groups - 1) // 2 + rest * groups


def sink_pairs(seq_len, window_size, dilation, sink_tokens):
    """How many pairs the sinks add to the near and far ones, in closed form.

    Beyond its window key j has n = S - 1 - w - j queries, of which floor(n / d) have it as a far
    key.
    """
    check_pattern(window_size, dilation, sink_tokens)
    most = max(seq_len - 1 - window_size, 0)  # n of key 0
    keys = min(sink_tokens, most)
    beyond = keys * (2 * most - keys + 1) // 2  # n for n = most, most - 1, ...: keys terms
    if dilation == 0:
        return beyond
    far = _sum_of_floors(most + 1, dilation) - _sum_of_floors(most + 1 - keys, dilation)
    return beyond - far


def attended_pairs(seq_len, window_size, dilation, sink_tokens=0):
    """How many (query, key) pairs the pattern keeps: near, far and sinks together."""
    near_and_far = sum(near_far_pairs(seq_len, window_size, dilation))
    return near_and_far + sink_pairs(seq_len, window_size, dilation, sink_tokens)


def causal_pairs(seq_len):
    """How many (query, key) pairs full causal attention has: S (S + 1) / 2."""
    return seq_len * (seq_len + 1) // 2


def density(seq_len, window_size, dilation, sink_tokens=0):
    """The share of the causal pairs that the pattern keeps, between 0 and 1."""
    return attended_pairs(seq_len, window_size, dilation, sink_tokens) / causal_pairs(seq_len)


def is_full_causal(seq_len, window_size, dilation, sink_tokens=0):
    """True when the pattern leaves out nothing at this length."""
    return dilation == 1 or window_size + sink_tokens >= seq_len - 1


def constant_of_a_graph(function):
    """``torch.compiler.assume_constant_result``, which would load the compiler to set one mark.

    Seconds of every import, also for those who compile nothing.  A test compares the two.
    """
    function._dynamo_marked_constant = True
    return function


# The mask depends on a few values only, so layers and steps share one tensor.  Dynamo may not trace
# into a cache; it is told that the result is a constant of the compiled graph.
@constant_of_a_graph
def cached_window_mask(seq_len, window_size, dilation, device, sink_tokens=0):
    """``window_mask``, built once for each (S, w, d, device, N) and shared; do not write to it."""
    return _mask_cache(seq_len, window_size, dilation, device, sink_tokens)


@constant_of_a_graph
def cached_window_bias(seq_len, window_size, dilation, device, dtype, sink_tokens=0):
    """The mask as what is added to the scores, 0 or minus infinity, (S, S), cached likewise.

    scaled_dot_product_attention would make it from the mask again in every call.
    """
    return _bias_cache(seq_len, window_size, dilation, device, dtype, sink_tokens)


@functools.lru_cache(maxsize=8)
def _mask_cache(seq_len, window_size, dilation, device, sink_tokens):
    with torch.inference_mode(False):  # autograd takes no tensors that were made in it
        return window_mask(seq_len, window_size, dilation, device, sink_tokens)


@functools.lru_cache(maxsize=8)
def _bias_cache(seq_len, window_size, dilation, device, dtype, sink_tokens):
    with torch.inference_mode(False):
        return _as_bias(window_mask(seq_len, window_size, dilation, device, sink_tokens), dtype)


def _as_bias(mask, dtype):
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, float("-inf")
    )


def clear_mask_cache():
    """Forget the cached masks, so that one model's masks never count as another's memory."""
    _mask_cache.cache_clear()
    _bias_cache.cache_clear()


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
# Its cost follows the pairs that are attended.  The near keys are a sliding window.  The far keys
# of query i are i - o, i - o - d, ... with o = w + d: among the tokens of one residue class modulo
# d that is ordinary causal attention, shifted by o, so each class is one more head of length about
# S / d.  Both parts go to PyTorch's own kernels, which return the log-sum-exp of the scores beside
# the output; with it the two softmaxes are merged into one, and each part's own backward kernel,
# given the merged output and log-sum-exp, returns its exact share of the gradients (as ring
# attention does, Liu et al. 2023).  Folding residue classes is known from NATTEN (Hassani et al.
# 2023), merging by log-sum-exp from Milakov & Gimelshein 2018.  What the sinks add is a third part,
# a few keys for every query, in plain products.


class Kernel(NamedTuple):
    """One of PyTorch's attention kernels, by its underscored operators.

    ``forward(q, k, v, window, scale)`` -> out, lse and ``backward(gradient, q, k, v, out, lse,
    window, scale)`` -> dq, dk, dv take pieces (N, H, length, D) with lse (N, H, length).
    ``window=None`` is causal, aligned at the first query and key; a number w lets the last query
    see the last w + 1 keys, the query before it those one earlier, and so on.
    """

    forward: Callable
    backward: Callable
    # queries of a near chunk for a window of w; None: the kernel walks a whole sequence itself
    chunk: Callable | None
    # the far part's keys are read up to a multiple of this: cuDNN is 4 % slower otherwise (H200)
    multiple: int = 1


def _window_bias(q, k, window_size):
    """What is added to the scores of pieces q (N, H, length, D) and k: 0, or minus infinity."""
    # kept on a CPU only: what is first made while a CUDA graph is recorded dies with the graph
    build = _cpu_window_bias if q.device.type == "cpu" else _build_window_bias
    return build(q.shape[2], k.shape[2], window_size, q.dtype, q.device)


def _build_window_bias(length, keys, window_size, dtype, device):
    query = torch.arange(keys - length, keys, device=device)[:, None]
    key = torch.arange(-(-keys // 8) * 8, device=device)[None, :]  # CUDA reads 16 bytes at a time
    return _as_bias(may_attend(query, key, window_size, 0), dtype)[:, :keys]


_cpu_window_bias = functools.lru_cache(maxsize=32)(_build_window_bias)


def _cpu_options(q, k, window):
    if window is None:
        return {"is_causal": True}
    return {"attn_mask": _window_bias(q, k, window)}


def _cpu_forward(q, k, v, window, scale):
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return operator(q, k, v, 0.0, **_cpu_options(q, k, window), scale=scale)


def _cpu_backward(gradient, q, k, v, out, lse, window, scale):
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    if window is None and q.shape[2] > LONGEST_KEY_BLOCK:
        return _causal_by_keys(operator, gradient, q, k, v, out, lse, scale)
    options = {"is_causal": False} | _cpu_options(q, k, window)
    return operator(gradient, q, k, v, out, lse, 0.0, **options, scale=scale)


# The CPU's backward kernel works through causal attention in tiles of 512 keys by up to 256
# queries and computes all of a tile, also what lies above the diagonal.  A call for each block of
# keys, with the queries from the block's first key on, leaves less of that.  Measured on 2 CPU
# cores, D32 and D64, against one call: 0.8 of the time at a length of 464, 0.9 at 1,000 and 2,000,
# 0.95 at 4,096, and nothing gained at 232.  An eighth of the length was the best block or near it.
SHORTEST_KEY_BLOCK, LONGEST_KEY_BLOCK = 128, 256


def _causal_by_keys(operator, gradient, q, k, v, out, lse, scale):
    """The causal backward pass in blocks of keys; each goes with the queries that may see it."""
    length = k.shape[2]
    block = min(max(length // 8, SHORTEST_KEY_BLOCK), LONGEST_KEY_BLOCK)
    dq, dk, dv = torch.zeros_like(q), torch.empty_like(k), torch.empty_like(v)
    for first in range(0, length, block):
        keys, late = slice(first, first + block), slice(first, None)
        of_queries = [x[:, :, late] for x in (gradient, q, out, lse)]
        of_keys = [x[:, :, keys] for x in (k, v)]
        late_dq, dk[:, :, keys], dv[:, :, keys] = operator(
            *(*of_queries[:2], *of_keys, *of_queries[2:], 0.0, True), scale=scale
        )
        dq[:, :, late].add_(late_dq)
    return dq, dk, dv


def _cpu_chunk(window_size):
    """Few wasted pairs against few, large matrix products.

    A power of two from a quarter of the window on, at least 32: the fastest or within 10 % of it
    of 32 to 128 on 2 CPU cores, for windows of 16, 96 and 512.
    """
    return max(32, 2 ** math.ceil(math.log2(window_size / 4)))


def _no_random_state(q):
    """The backward operators want the dropout's random state, which nothing reads without one."""
    return [torch.empty(0, dtype=torch.int64, device=q.device) for _ in range(2)]


def _flash_forward(q, k, v, window, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (N, length, H, D)
    sides = {} if window is None else {"window_size_left": window, "window_size_right": 0}
    lengths = q.shape[1], k.shape[1]
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, *lengths, 0.0, window is None, False, **sides, scale=scale
    )
    return out.transpose(1, 2), lse


def _flash_backward(gradient, q, k, v, out, lse, window, scale):
    gradient, q, k, v, out = (x.transpose(1, 2) for x in (gradient, q, k, v, out))
    sides = {} if window is None else {"window_size_left": window, "window_size_right": 0}
    lengths = q.shape[1], k.shape[1]
    gradients = torch.ops.aten._flash_attention_backward(
        *(gradient, q, k, v, out, lse.contiguous(), None, None, *lengths),
        *(0.0, window is None, *_no_random_state(q)),
        **sides,
        scale=scale,
    )
    return [x.transpose(1, 2) for x in gradients]


def _cudnn_forward(q, k, v, window, scale):
    assert window is None
    if q.shape[2] == k.shape[2] == 1:  # cuDNN refuses this single case
        return _flash_forward(q, k, v, window, scale)
    operator = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = operator(q, k, v, None, True, 0.0, True, False, scale=scale)
    return out, lse.squeeze(-1)


def _cudnn_backward(gradient, q, k, v, out, lse, window, scale):
    assert window is None
    if q.shape[2] == k.shape[2] == 1:
        return _flash_backward(gradient, q, k, v, out, lse, window, scale)
    return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *(gradient, q, k, v, out, lse.contiguous().unsqueeze(-1), *_no_random_state(q)),
        *(None, None, None, q.shape[2], k.shape[2], 0.0, True),
        scale=scale,
    )


# The memory-efficient kernel's mask types, and the multiple to which it pads its log-sum-exp.  It
# has a window of its own, but where there are more keys than queries its backward is wrong then
# (torch 2.11): a bias takes its place.
_EFFICIENT_UNMASKED, _EFFICIENT_CAUSAL, _EFFICIENT_LSE = 0, 1, 32


def _efficient_options(q, k, window):
    if window is None:
        return None, _EFFICIENT_CAUSAL
    bias = _window_bias(q, k, window)
    return bias.expand(*q.shape[:2], *bias.shape), _EFFICIENT_UNMASKED


def _efficient_forward(q, k, v, window, scale):
    bias, mask = _efficient_options(q, k, window)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (N, length, H, D)
    out, lse, *_ = torch.ops.aten._efficient_attention_forward(
        q, k, v, bias, None, None, None, None, 0.0, mask, True, scale=scale
    )
    return out.transpose(1, 2), lse[:, :, : q.shape[1]]


def _efficient_backward(gradient, q, k, v, out, lse, window, scale):
    bias, mask = _efficient_options(q, k, window)
    gradient, q, k, v, out = (x.transpose(1, 2) for x in (gradient, q, k, v, out))
    lse = F.pad(lse, (0, -lse.shape[-1] % _EFFICIENT_LSE), value=math.inf)
    dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
        *(gradient, q, k, v, bias, out, None, None, q.shape[1], k.shape[1], lse, 0.0),
        *(*_no_random_state(q), mask, False),
        scale=scale,
    )
    return [x.transpose(1, 2) for x in (dq, dk, dv)]


def _efficient_chunk(window_size):
    """As for the CPU, but no smaller than the kernel's blocks of 64."""
    return max(64, _cpu_chunk(window_size))


KERNELS = {
    "cpu": Kernel(_cpu_forward, _cpu_backward, _cpu_chunk),
    "flash": Kernel(_flash_forward, _flash_backward, None),
    "cudnn": Kernel(_cudnn_forward, _cudnn_backward, None, multiple=64),
    "efficient": Kernel(_efficient_forward, _efficient_backward, _efficient_chunk),
}
# (near, far) for a device type and a dtype, the fastest first; the first that works is taken.
CHOICES = {
    ("cpu", torch.float64): [("cpu", "cpu")],
    ("cpu", torch.float32): [("cpu", "cpu")],
    ("cpu", torch.bfloat16): [("cpu", "cpu")],
    ("cpu", torch.float16): [("cpu", "cpu")],
    ("cuda", torch.bfloat16): [("flash", "cudnn"), ("flash", "flash")],
    ("cuda", torch.float16): [("flash", "cudnn"), ("flash", "flash")],
    ("cuda", torch.float32): [("efficient", "efficient")],
}
CUDA_HEAD_DIM = 8  # CUDA kernels take multiples: other head dimensions are padded with zeros


class Part(NamedTuple):
    """Some queries and their keys as ``count`` equal pieces, all views of the sequence.

    Piece n has the queries query + n * hop + t * stride, t = 0 .. length - 1, against the keys
    key + n * hop + t * stride, t = 0 .. keys - 1.
    """

    query: int
    key: int
    count: int
    hop: int
    length: int
    keys: int
    stride: int


def near_parts(seq_len, window_size, chunk):
    """The sliding window as parts: a head that has no full window before it, chunks, a rest."""
    back = -(-window_size // chunk) * chunk  # keys before a chunk, whole chunks of them
    count, rest = divmod(seq_len - back, chunk)
    if count < 1:
        return [Part(0, 0, 1, 0, seq_len, seq_len, 1)]
    parts = [Part(0, 0, 1, 0, back, back, 1)]
    parts.append(Part(back, 0, count, chunk, chunk, back + chunk, 1))
    if rest:
        parts.append(Part(seq_len - rest, seq_len - rest - back, 1, 0, rest, back + rest, 1))
    return parts


def far_parts(queries, keys, dilation, multiple=1):
    """Query t against the keys t, t - d, t - 2d ...: a piece for each residue class modulo d.

    ``queries`` and ``keys`` count the tokens there are.  Where d does not divide the queries, some
    classes are one longer: two parts, and nothing is padded.  Where it does, keys that the causal
    mask hides are added up to a ``multiple`` in each class, as far as there are any.
    """
    # no divmod: torch.compile knows none for lengths that vary
    length, longer = queries // dilation, queries % dilation
    if not longer:
        padded = min(-(-length // multiple) * multiple, keys // dilation)
        return [Part(0, 0, dilation, 1, length, padded, dilation)]
    parts = [Part(0, 0, longer, 1, length + 1, length + 1, dilation)]
    if length:
        parts.append(Part(longer, longer, dilation - longer, 1, length, length, dilation))
    return parts


def _keys_read(parts):
    """How many of the first keys the far parts read together."""
    return sum(part.count * part.keys for part in parts)


def _folds(part, *tensors):
    """Can the pieces of all batches be seen as heads of one (B, count * H, length, D)?

    The next piece must lie where the next head would: H head strides on, one token.
    """
    one_token = all(x.stride(1) == x.shape[2] * x.stride(2) for x in tensors)
    return part.count == 1 or (part.hop == 1 and one_token)


def _pieces(x, part, first, length, folded):
    """Views of x (B, S, H, D), the part's pieces from position ``first`` on.

    [(B, count * H, length, D)] where ``folded``, else a (count, H, length, D) for each batch.
    """
    B, _, H, D = x.shape
    batch, token, head, last = x.stride()
    start = x.storage_offset() + first * token
    if folded:
        shape, strides = (B, part.count * H, length, D), (batch, head, part.stride * token, last)
        return [x.as_strided(shape, strides, start)]
    shape, strides = (part.count, H, length, D), (part.hop * token, head, part.stride * token, last)
    return [x.as_strided(shape, strides, start + b * batch) for b in range(B)]


def _lse_pieces(lse, part, folded):
    """The same for lse (B, H, S): [(B, count, H, length)], or (count, H, length) for each batch."""
    B, H, _ = lse.shape
    batch, head, token = lse.stride()
    shape = (B, part.count, H, part.length)
    strides = (batch, part.hop * token, head, part.stride * token)
    pieces = lse.as_strided(shape, strides, lse.storage_offset() + part.query * token)
    return [pieces] if folded else list(pieces)


def _in_order(pieces, batches, heads):
    """Results of equally long residue classes as (B, tokens, H, D), in the order of the tokens."""
    folded = pieces.reshape(batches, -1, *pieces.shape[2:])  # (B, count * H, length, D)
    return folded.transpose(1, 2).reshape(batches, -1, heads, pieces.shape[3])


def _in_one_launch(parts, q, *others):
    """Is a single call of the kernel enough, whose results are then the whole results?"""
    return len(parts) == 1 and (q.shape[0] == 1 or _folds(parts[0], q, *others))


def _forward_parts(q, k, v, parts, kernel, window, scale, results):
    """Fill the results out (B, S, H, D) and lse (B, H, S) part by part."""
    out, lse = results
    for part in parts:
        folded = _folds(part, q, k, v, out)
        for *qkv, out_piece, lse_piece in zip(
            _pieces(q, part, part.query, part.length, folded),
            _pieces(k, part, part.key, part.keys, folded),
            _pieces(v, part, part.key, part.keys, folded),
            _pieces(out, part, part.query, part.length, folded),
            _lse_pieces(lse, part, folded),
            strict=True,
        ):
            part_out, part_lse = kernel.forward(*qkv, window, scale)
            out_piece.copy_(part_out)
            lse_piece.copy_(part_lse.reshape(lse_piece.shape))
    return out, lse


def _add_keys(x, part, batch, folded, gradient):
    """Add a piece's gradients of the keys to x (B, S, H, D); pieces that overlap hop by hop."""
    hop = part.hop if part.keys > part.length and part.count > 1 else part.keys
    for start in range(0, part.keys, hop):
        first = part.key + start * part.stride
        target = _pieces(x, part, first, hop, folded)[batch]
        target.add_(gradient[:, :, start : start + hop])


def _backward_parts(gradient, q, k, v, out, lse, parts, kernel, window, scale, results):
    """Fill the results dq (B, S, H, D) part by part, and add to dk and dv."""
    dq, dk, dv = results
    for part in parts:
        folded = _folds(part, gradient, q, k, v, out, *results)
        pieces = zip(
            *(_pieces(x, part, part.query, part.length, folded) for x in (gradient, q, out, dq)),
            *(_pieces(x, part, part.key, part.keys, folded) for x in (k, v)),
            _lse_pieces(lse, part, folded),
            strict=True,
        )
        for n, (g_piece, q_piece, out_piece, dq_piece, k_piece, v_piece, part_lse) in enumerate(
            pieces
        ):
            part_dq, part_dk, part_dv = kernel.backward(
                *(g_piece, q_piece, k_piece, v_piece, out_piece),
                *(part_lse.reshape(q_piece.shape[:3]), window, scale),
            )
            dq_piece.copy_(part_dq)
            _add_keys(dk, part, n, folded, part_dk)
            _add_keys(dv, part, n, folded, part_dv)
    return dq, dk, dv


def _empty_results(q):
    """Contiguous room for an output like q (B, S, H, D) and its log-sum-exp (B, H, S)."""
    B, S, H, _ = q.shape
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((B, H, S), dtype=lse_dtype)


def _readable(x):
    """x where the kernels can read it in place, else a copy.

    They want the last dimension contiguous; CUDA kernels load 16 bytes at a time and know no
    stride of 0.
    """
    if x.is_cuda:
        offsets = (x.data_ptr(), *(n * x.element_size() for n in x.stride()[:-1]))
        if any(n % 16 for n in offsets) or 0 in x.stride():
            return x.clone(memory_format=torch.contiguous_format)
    return x if x.stride(-1) == 1 else x.contiguous()


def _foldable(*tensors):
    """Tensors whose residue classes one CUDA launch can take, else copies.

    On a CPU, a call for each batch costs less than the copies.
    """
    if not tensors[0].is_cuda or tensors[0].shape[0] == 1:
        return tensors
    if all(x.stride(1) == x.shape[2] * x.stride(2) for x in tensors):
        return tensors
    if len({x.shape for x in tensors}) == 1:
        return torch.stack(tensors).unbind()  # one kernel
    return [x.contiguous() for x in tensors]


def _near(q, k, v, window_size, scale, run):
    """Sliding-window attention: out (B, S, H, D) and log-sum-exp (B, H, S)."""
    if run.chunk is None:
        out, lse = run.forward(*(x.transpose(1, 2) for x in (q, k, v)), window_size, scale)
        return out.transpose(1, 2).contiguous(), lse
    parts = near_parts(q.shape[1], window_size, run.chunk(window_size))
    return _forward_parts(q, k, v, parts, run, window_size, scale, _empty_results(q))


def _near_backward(gradient, q, k, v, out, lse, window_size, scale, run):
    """The near part's share of dq, dk and dv, (B, S, H, D) each; out and lse are the merged."""
    if run.chunk is None:
        pieces = (x.transpose(1, 2) for x in (gradient, q, k, v, out))
        return [
            x.transpose(1, 2).contiguous() for x in run.backward(*pieces, lse, window_size, scale)
        ]
    parts = near_parts(q.shape[1], window_size, run.chunk(window_size))
    results = q.new_empty(q.shape), q.new_zeros(q.shape), q.new_zeros(q.shape)
    return _backward_parts(gradient, q, k, v, out, lse, parts, run, window_size, scale, results)


def _far(q, k, v, dilation, scale, run):
    """Dilated causal attention: out (B, M, H, D) and log-sum-exp (B, H, M).

    Query t of q (B, M, H, D) attends to the keys t, t - d, t - 2d, ... of k and v (B, >= M, H, D).
    """
    q, k, v = _foldable(q, k, v)
    parts = far_parts(q.shape[1], k.shape[1], dilation, run.multiple)
    if not _in_one_launch(parts, q, k, v):
        return _forward_parts(q, k, v, parts, run, None, scale, _empty_results(q))
    (part,), (B, M, H, _) = parts, q.shape
    folded = _folds(part, q, k, v)
    out, lse = run.forward(
        _pieces(q, part, 0, part.length, folded)[0],
        *(_pieces(x, part, 0, part.keys, folded)[0] for x in (k, v)),
        *(None, scale),
    )
    lse = lse.reshape(B, part.count, H, part.length).permute(0, 2, 3, 1)
    # a reshape alone may be a view, of other strides than torch.compile was told
    return _in_order(out, B, H).contiguous(), lse.reshape(B, H, M).contiguous()


def _far_backward(gradient, q, k, v, out, lse, dilation, scale, run):
    """The far part's share of dq (B, M, H, D) and, for the keys it reads, of dk and dv."""
    gradient, q, k, v, out = _foldable(gradient, q, k, v, out)
    parts = far_parts(q.shape[1], k.shape[1], dilation, run.multiple)
    if not _in_one_launch(parts, gradient, q, k, v, out):
        dk, dv = (x.new_zeros(_rows(x, _keys_read(parts))) for x in (k, v))
        results = q.new_empty(q.shape), dk, dv
        return _backward_parts(gradient, q, k, v, out, lse, parts, run, None, scale, results)
    (part,), (B, _, H, _) = parts, q.shape
    folded = _folds(part, gradient, q, k, v, out)
    of_queries = [_pieces(x, part, 0, part.length, folded)[0] for x in (gradient, q, out)]
    of_keys = [_pieces(x, part, 0, part.keys, folded)[0] for x in (k, v)]
    lse = _lse_pieces(lse, part, folded)[0].reshape(of_queries[0].shape[:3])
    gradients = run.backward(*of_queries[:2], *of_keys, of_queries[2], lse, None, scale)
    return [_in_order(x, B, H).contiguous() for x in gradients]


def _rows(x, count):
    """The shape of x (B, S, H, D) with ``count`` tokens."""
    return x.shape[0], count, *x.shape[2:]


def first_with_far_keys(seq_len, window_size, dilation):
    """The first query position that has far keys, or ``seq_len`` where none has."""
    first = window_size + dilation
    return first if dilation and first < seq_len else seq_len


def _beside(device, one, other):
    """What both functions return; on CUDA the kernels of both may run at the same time.

    Neither part alone fills a GPU to its end, and the backward kernels begin and end with passes
    that only move memory.  Forward and backward, compiled, took 0.95 of the time one after the
    other at 1,024 tokens (H200, B8 H16 D32), 0.96 at 4,096 and 0.99 from 16,384 on (B1 H16 D64).
    """
    if device.type != "cuda":
        return one(), other()
    stream = torch.cuda.current_stream(device)
    side = _side_stream(stream)
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        from_side = one()
    other_results = other()
    stream.wait_stream(side)
    return from_side, other_results


@functools.cache
def _side_stream(stream):
    """A stream that only works between a wait for ``stream`` and one of ``stream`` for it.

    Tensors made on it may therefore be used and freed on ``stream`` as if they were its own.
    PyTorch hands streams out in turn and again; few programs take any of high priority.  (One of
    ordinary priority would gain another 1 to 2 % from 16,384 tokens on.)
    """
    return torch.cuda.Stream(stream.device, priority=-1)


@torch.library.custom_op("window_attention::near_and_far", mutates_args=())
def _near_and_far(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window_size: int,
    dilation: int,
    scale: float,
    near: str,
    far: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both parts, not merged: out (B, S, H, D) and log-sum-exp (B, H, S) of each.

    The far part has only the M queries that have far keys: (B, M, H, D) and (B, H, M).
    """
    q, k, v = map(_readable, (q, k, v))
    late = q[:, first_with_far_keys(q.shape[1], window_size, dilation) :]
    of_near = partial(_near, q, k, v, window_size, scale, KERNELS[near])
    if not late.shape[1]:
        return *of_near(), *_empty_results(late)
    of_far = partial(_far, late, k, v, dilation, scale, KERNELS[far])
    near_results, far_results = _beside(q.device, of_near, of_far)
    return *near_results, *far_results


@_near_and_far.register_fake
def _(q, k, v, window_size, dilation, scale, near, far):
    late = q[:, first_with_far_keys(q.shape[1], window_size, dilation) :]
    return *_empty_results(q), *_empty_results(late)


@torch.library.custom_op("window_attention::near_and_far_backward", mutates_args=())
def _near_and_far_backward(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    window_size: int,
    dilation: int,
    scale: float,
    near: str,
    far: str,
) -> list[torch.Tensor]:
    """The shares of dq, dk and dv of the near part, (B, S, H, D) each, then of the far part.

    out and lse are the merged ones.  The far part's dq is that of the queries with far keys, its
    dk and dv those of the keys it reads, the first ones.
    """
    gradient, q, k, v, out = map(_readable, (gradient, q, k, v, out))
    first = first_with_far_keys(q.shape[1], window_size, dilation)
    merged = out, lse, window_size, scale, KERNELS[near]
    of_near = partial(_near_backward, gradient, q, k, v, *merged)
    if first == q.shape[1]:
        return [*of_near(), *(x.new_empty(_rows(x, 0)) for x in (q, k, v))]
    merged = out[:, first:], lse[:, :, first:], dilation, scale, KERNELS[far]
    of_far = partial(_far_backward, gradient[:, first:], q[:, first:], k, v, *merged)
    near_results, far_results = _beside(q.device, of_near, of_far)
    return [*near_results, *far_results]


@_near_and_far_backward.register_fake
def _(gradient, q, k, v, out, lse, window_size, dilation, scale, near, far):
    late = q[:, first_with_far_keys(q.shape[1], window_size, dilation) :]
    keys = 0
    if late.shape[1]:
        keys = _keys_read(far_parts(late.shape[1], k.shape[1], dilation, KERNELS[far].multiple))
    rows = (*[q.shape[1]] * 3, late.shape[1], keys, keys)
    return [x.new_empty(_rows(x, n)) for x, n in zip((q, k, v) * 2, rows, strict=True)]


def _no_second_derivative(ctx, *gradients):
    raise RuntimeError("split attention has no second derivative: choose dense for double backward")


_near_and_far_backward.register_autograd(_no_second_derivative)


def _merge(near, far, first):
    """The softmax over the near and the far keys from those of each; returns out and lse.

    near: out (B, S, H, D) and log-sum-exp (B, H, S), which may be overwritten; far: the same of the
    queries from ``first`` on.  The weight of the far part is the sigmoid of the difference of the
    log-sum-exps.  Queries without far keys stay out of it: their difference would be infinite.
    """
    (out, lse), (far_out, far_lse) = near, far
    late, late_lse = out[:, first:], lse[:, :, first:]
    difference = (far_lse - late_lse).transpose(1, 2).unsqueeze(-1)  # (B, M, H, 1)
    merged_lse = torch.logaddexp(late_lse, far_lse)
    if torch.compiler.is_compiling():  # one kernel, which keeps float32 inside
        late = late.to(lse.dtype).lerp(far_out.to(lse.dtype), difference.sigmoid()).to(out.dtype)
        out = torch.cat([out[:, :first], late], dim=1)
        return out, torch.cat([lse[:, :, :first], merged_lse], dim=2)
    if out.dtype == lse.dtype:
        late.lerp_(far_out, difference.sigmoid())
    else:
        # A weight close to 1 would lose in 16 bits what is left for the other part.  So each row
        # starts from the part with the larger weight, and the smaller one is rounded.
        smaller = (-difference.abs()).sigmoid().to(out.dtype)
        from_near = difference <= 0
        late.lerp_(far_out, smaller * from_near)
        torch.lerp(far_out, late, smaller.masked_fill_(from_near, 1), out=late)
    late_lse.copy_(merged_lse)
    return out, lse


def _sink_products(q, k, v, pattern, scale):
    """q, k and v of the sinks (B, H, ..., D) and the scores (B, H, S, N), in float32 or more.

    pattern: (w, d, N).  The scores of pairs that are near, far or in the future are minus infinity.
    """
    window_size, dilation, sinks = pattern
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.transpose(1, 2).to(wide) for x in (q, k[:, :sinks], v[:, :sinks]))
    query = torch.arange(q.shape[2], device=q.device)[:, None]
    key = torch.arange(sinks, device=q.device)[None, :]
    kept = may_attend(query, key, *pattern) & ~may_attend(query, key, window_size, dilation)
    scores = q @ k.transpose(-2, -1) * scale
    return q, k, v, scores.masked_fill(~kept, float("-inf"))


def _merge_sinks(out, lse, q, k, v, pattern, scale):
    """The softmax over the sinks too, from out (B, S, H, D) and lse (B, H, S) of the other keys.

    Every query has its own key among the others, so that its lse is finite; where no sink is left
    to it, the sinks' is minus infinity and their weight exactly 0.
    """
    *_, v, scores = _sink_products(q, k, v, pattern, scale)
    merged_lse = torch.logaddexp(lse, scores.logsumexp(-1))
    share = (scores - merged_lse.unsqueeze(-1)).exp() @ v  # (B, H, S, D)
    others = (lse - merged_lse).exp().transpose(1, 2).unsqueeze(-1)  # (B, S, H, 1)
    merged = out * others + share.transpose(1, 2)
    # a copy even where nothing is to convert: the compiler of torch 2.11 loses the gradient of an
    # output that is the same tensor as an intermediate result
    merged = merged.to(out.dtype, copy=True, memory_format=torch.contiguous_format)
    return merged, merged_lse


def _sink_backward(gradient, q, k, v, out, lse, pattern, scale):
    """The sinks' shares of dq (B, S, H, D) and of their own dk and dv (B, N, H, D).

    out and lse are the merged ones: as in every flash backward, dS = P (g v^T - sum(g out)).
    """
    q, k, v, scores = _sink_products(q, k, v, pattern, scale)
    gradient, out = (x.transpose(1, 2).to(q.dtype) for x in (gradient, out))
    weights = (scores - lse.unsqueeze(-1)).exp()  # (B, H, S, N)
    mean = (gradient * out).sum(-1, keepdim=True)
    of_scores = weights * (gradient @ v.transpose(-2, -1) - mean) * scale
    transposed = of_scores.transpose(-2, -1)
    gradients = of_scores @ k, transposed @ q, weights.transpose(-2, -1) @ gradient
    return [x.transpose(1, 2) for x in gradients]


class SplitAttention(torch.autograd.Function):
    """Near, far and sink part, merged; what torch.compile can fuse stands outside the operators."""

    @staticmethod
    def forward(ctx, q, k, v, window_size, dilation, sinks, scale, near_kernel, far_kernel):
        # copies, where there are any, take the place of the inputs in the backward pass too
        q, k, v = _foldable(q, k, v)
        options = window_size, dilation, scale, near_kernel, far_kernel
        out, lse, *far = _near_and_far(q, k, v, *options)
        first = first_with_far_keys(q.shape[1], window_size, dilation)
        if first < q.shape[1]:
            out, lse = _merge((out, lse), far, first)
        ctx.sink_options = (window_size, dilation, sinks), scale
        if sinks:
            with torch.autocast(q.device.type, enabled=False):
                out, lse = _merge_sinks(out, lse, q, k, v, *ctx.sink_options)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx, gradient):
        q, *_ = saved = ctx.saved_tensors
        dq, dk, dv, far_dq, far_dk, far_dv = _near_and_far_backward(gradient, *saved, *ctx.options)
        first = first_with_far_keys(q.shape[1], *ctx.options[:2])
        if first < q.shape[1]:
            dq[:, first:].add_(far_dq)  # += would copy the sums onto themselves
            dk[:, : far_dk.shape[1]].add_(far_dk)
            dv[:, : far_dv.shape[1]].add_(far_dv)
        sinks = ctx.sink_options[0][-1]
        if sinks:
            with torch.autocast(q.device.type, enabled=False):
                shares = _sink_backward(gradient, *saved, *ctx.sink_options)
            for whole, share in zip((dq, dk[:, :sinks], dv[:, :sinks]), shares, strict=True):
                whole.add_(share)
        return dq, dk, dv, None, None, None, None, None, None


def split_attention(q, k, v, window_size, dilation, kernels, sink_tokens=0):
    """The pattern at a cost that follows its pairs; q, k, v and the result are (B, S, H, D).

    kernels: the names of the near and the far kernel in ``KERNELS``, see ``split_kernels``.
    """
    head_dim = q.shape[-1]
    missing = -head_dim % CUDA_HEAD_DIM if q.is_cuda else 0
    if missing:
        q, k, v = (F.pad(x, (0, missing)) for x in (q, k, v))
    window_size = min(window_size, q.shape[1])
    # later keys have no query beyond their window; with d = 1 every query has them as far keys
    sinks = 0 if dilation == 1 else max(min(sink_tokens, q.shape[1] - 1 - window_size), 0)
    out = SplitAttention.apply(q, k, v, window_size, dilation, sinks, head_dim**-0.5, *kernels)
    return out[..., :head_dim] if missing else out


@constant_of_a_graph
def split_kernels(device, dtype, head_dim):
    """The names of the fastest (near, far) kernels that work here, or None after one warning.

    Each choice is tried on a small example against dense attention, once in a process, for
    PyTorch's underscored operators may change with its version and depend on the device.
    """
    return _split_kernels(device, dtype, head_dim, torch.are_deterministic_algorithms_enabled())


@functools.cache
def _split_kernels(device, dtype, head_dim, deterministic):
    problem = f"no kernel is known for {dtype} on {device.type}"
    for kernels in CHOICES.get((device.type, dtype), []):
        if deterministic and "cudnn" in kernels:
            continue  # its backward pass has no deterministic form
        problem = _problem_with(kernels, device, dtype, head_dim)
        if problem is None:
            return kernels
    warnings.warn(
        f"split attention does not work here ({problem}): masked takes its place", stacklevel=2
    )
    return None


def _problem_with(kernels, device, dtype, head_dim):
    """What speaks against using a (near, far) pair of kernels here, in words, or None."""
    generator = torch.Generator().manual_seed(0)
    quiet = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), quiet:
        numbers = torch.randn((4, 1, 76, 2, head_dim), generator=generator, device="cpu")
        *qkv, upstream = numbers.to(device, dtype)
        mask = window_mask(76, 20, 7, device)
        results = []
        try:
            for attend in (
                lambda q, k, v: split_attention(q, k, v, 20, 7, kernels),
                lambda q, k, v: dense_attention(q, k, v, mask),
            ):
                exact = torch.float64 if results else dtype
                leaves = [x.to(exact).requires_grad_() for x in qkv]
                out = attend(*leaves)
                results.append((out, *torch.autograd.grad(out, leaves, upstream.to(exact))))
        except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
            return str(error).strip().splitlines()[0]
    largest = 10 * torch.finfo(dtype).eps
    for mine, reference in zip(*results, strict=True):
        if not (mine - reference).norm() <= largest * reference.norm():
            return f"{' and '.join(kernels)} give other results than dense attention"
    return None


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


def attention_plan(
    seq_len, window_size, dilation, dtype=torch.float32, device="cpu", sink_tokens=0
):
    """The ``Plan`` of ``auto``: what it picks for a length, a pattern, a dtype and a device.

    device: a torch.device or its type, "cpu" or "cuda"; it need not be there.
    """
    check_pattern(window_size, dilation, sink_tokens)
    device_type = torch.device(device).type
    if is_full_causal(seq_len, window_size, dilation, sink_tokens):
        return Plan("masked", "the pattern leaves out no pair: full causal attention")
    least = SPLIT_FROM.get((device_type, dtype))
    if least is None:
        return Plan("masked", f"split has no kernel for {str(dtype)[6:]} on {device_type}")
    if seq_len < least:
        return Plan("masked", f"below {least} tokens masked was measured to be faster")
    if 3 * window_size > seq_len:
        return Plan("masked", "a window over a third of the sequence leaves little to skip")
    if sink_tokens > MOST_SINKS:
        return Plan("masked", f"split holds the scores of the sinks, more than {MOST_SINKS}")
    return Plan("split", f"from {least} tokens on split was measured to be faster")


def window_attention(q, k, v, window_size, dilation, evaluation="auto", sink_tokens=0):
    """Causal attention over the sliding-window + dilated pattern of ``may_attend``.

    q, k, v: (B, S, H, D), any floating dtype, on one device.  Returns (B, S, H, D).
    evaluation: ``dense`` (textbook), ``masked`` (scaled_dot_product_attention with the cached
    mask), ``split`` (cost follows the attended pairs) or ``auto`` (see ``attention_plan``); all
    give the same result within rounding.  Inside torch.autocast all compute in its dtype, as
    scaled_dot_product_attention does.
    Raises ValueError for window_size < 1, dilation < 0, sink_tokens < 0, an unknown evaluation, or
    split where PyTorch has no kernels for it.
    """
    check_pattern(window_size, dilation, sink_tokens)
    check_evaluation(evaluation)
    seq_len, device = q.shape[1], q.device
    if torch.is_autocast_enabled(device.type) and q.dtype != torch.float64:
        q, k, v = (x.to(torch.get_autocast_dtype(device.type)) for x in (q, k, v))
    planned = evaluation == "auto"
    if planned:
        plan = attention_plan(seq_len, window_size, dilation, q.dtype, device, sink_tokens)
        evaluation = plan.evaluation
    if evaluation == "split" and q.numel():
        head_dim = q.shape[-1]
        kernels = split_kernels(device, q.dtype, head_dim)
        if kernels is not None:
            return split_attention(q, k, v, window_size, dilation, kernels, sink_tokens)
        if not planned:
            raise ValueError(
                f"split attention has no kernel for {q.dtype} with head_dim {head_dim} on "
                f"{device}: choose masked"
            )
    if evaluation == "dense":
        mask = cached_window_mask(seq_len, window_size, dilation, device, sink_tokens)
        return dense_attention(q, k, v, mask)
    if is_full_causal(seq_len, window_size, dilation, sink_tokens):
        return fused_attention(q, k, v)
    bias = cached_window_bias(seq_len, window_size, dilation, device, q.dtype, sink_tokens)
    return fused_attention(q, k, v, bias)


def draw_pattern(seq_len, window_size, dilation, sink_tokens=0):
    """The pattern as lines of text: # near, o far, s sink alone, . causal but not attended."""
    check_pattern(window_size, dilation, sink_tokens)

    def mark(i, j):
        if i - j <= window_size:
            return "#"
        if may_attend(i, j, window_size, dilation):
            return "o"
        return "s" if may_attend(i, j, window_size, dilation, sink_tokens) else "."

    return "\n".join(" ".join(mark(i, j) for j in range(i + 1)) for i in range(seq_len))


if __name__ == "__main__":
    print("24 tokens, window_size 4, dilation 3: # near, o far, . causal but not attended")
    print(draw_pattern(24, 4, 3))

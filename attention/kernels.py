"""PyTorch's attention kernels by their underscored operators: every one of them stands here."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from attention.masks import _as_bias
from attention.pattern import may_attend


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

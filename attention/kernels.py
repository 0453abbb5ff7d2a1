"""PyTorch's attention kernels, called by their underscored operators; no other module calls them.

The operators may change with PyTorch's version: ``split.split_kernels`` tries them before any use.
Shapes: N batch or pieces of it, H heads, D head_dim.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from attention.kept import kept
from attention.masks import as_bias
from attention.pattern import may_attend

aten = torch.ops.aten
CAUSAL, ALL_KEYS = "causal", "all keys"


class Kernel(NamedTuple):
    """One of PyTorch's attention kernels.

    ``forward(q, k, v, seen, scale)`` -> out, lse and ``backward(gradient, q, k, v, out, lse, seen,
    scale)`` -> dq, dk, dv take q (N, H, length, D) and k, v (N, H, keys, D); lse (N, H, length) is
    the log-sum-exp of every query's scores.
    seen: which keys a query sees.  CAUSAL: the first query sees the first key, the second the first
    two, and so on.  ALL_KEYS.  A number w: the last query sees the last w + 1 keys, the one before
    it the w + 1 keys that end one earlier, and so on.
    """

    forward: Callable
    backward: Callable
    # the fewest queries of a near chunk; None: the kernel takes windows, so nothing is cut
    least_chunk: int | None
    # far keys are read up to a multiple of it where there are any: else cuDNN is 4 % slower (H200)
    multiple: int = 1


def _window_bias(q, k, window_size):
    """What is added to the scores of q (N, H, length, D) and k: 0, or minus infinity."""
    # on CUDA made anew each time: a recorded graph must own what it reads
    build = _kept_bias if q.device.type == "cpu" else _build_bias
    return build(q.shape[2], k.shape[2], window_size, q.dtype, q.device)


def _build_bias(length, keys, window_size, dtype, device):
    query = torch.arange(keys - length, keys, device=device)[:, None]
    key = torch.arange(-(-keys // 8) * 8, device=device)[None, :]  # CUDA reads 16 bytes at a time
    return as_bias(may_attend(query, key, window_size, 0), dtype)[:, :keys]


_kept_bias = kept(32)(_build_bias)


def _cpu_mask(q, k, seen):
    """The CPU operator's arguments for ``seen``."""
    if seen == CAUSAL:
        return {"is_causal": True}
    if seen == ALL_KEYS:
        return {"is_causal": False}
    return {"is_causal": False, "attn_mask": _window_bias(q, k, seen)}


def _cpu_forward(q, k, v, seen, scale):
    mask = _cpu_mask(q, k, seen)
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, **mask, scale=scale)


def _cpu_backward(gradient, q, k, v, out, lse, seen, scale):
    if seen == CAUSAL and q.shape[2] > LONGEST_KEY_BLOCK:
        return _causal_by_keys(gradient, q, k, v, out, lse, scale)
    operator = aten._scaled_dot_product_flash_attention_for_cpu_backward
    return operator(gradient, q, k, v, out, lse, 0.0, **_cpu_mask(q, k, seen), scale=scale)


# The CPU's backward kernel works through causal attention in tiles of 512 keys by up to 256
# queries and computes all of a tile, also what lies above the diagonal.  One call for each block
# of keys, with the queries from the block's first key on, wastes less.  Measured on 2 CPU
# cores, D32 and D64, against one call: 0.8 of the time at a length of 464, 0.9 at 1,000 and 2,000,
# 0.95 at 4,096, and nothing gained at 232.  An eighth of the length was the best block or near it.
SHORTEST_KEY_BLOCK, LONGEST_KEY_BLOCK = 128, 256


def _causal_by_keys(gradient, q, k, v, out, lse, scale):
    """The causal backward pass in blocks of keys; each goes with the queries that may see it."""
    operator = aten._scaled_dot_product_flash_attention_for_cpu_backward
    length = k.shape[2]
    block = min(max(length // 8, SHORTEST_KEY_BLOCK), LONGEST_KEY_BLOCK)
    dq, dk, dv = torch.zeros_like(q), torch.empty_like(k), torch.empty_like(v)
    for first in range(0, length, block):
        keys = slice(first, first + block)
        late = [x[:, :, first:] for x in (gradient, q, out, lse)]
        inputs = *late[:2], k[:, :, keys], v[:, :, keys], *late[2:]
        block_dq, block_dk, block_dv = operator(*inputs, 0.0, True, scale=scale)
        dq[:, :, first:].add_(block_dq)
        dk[:, :, keys], dv[:, :, keys] = block_dk, block_dv
    return dq, dk, dv


def _no_random_state(q):
    """A stand-in for the random state of dropout, which the backward operators ask for.

    Without dropout nothing reads it.
    """
    return [torch.empty(0, dtype=torch.int64, device=q.device) for _ in range(2)]


def _heads_last(*tensors):
    """(N, H, length, D) -> (N, length, H, D), or back."""
    return [x.transpose(1, 2) for x in tensors]


def _flash_window(seen):
    """FlashAttention's own window arguments; it aligns the last query with the last key too."""
    if seen in (CAUSAL, ALL_KEYS):
        return {}
    return {"window_size_left": seen, "window_size_right": 0}


def _flash_forward(q, k, v, seen, scale):
    q, k, v = _heads_last(q, k, v)
    inputs = q, k, v, None, None, q.shape[1], k.shape[1], 0.0, seen == CAUSAL, False
    out, lse, *_ = aten._flash_attention_forward(*inputs, **_flash_window(seen), scale=scale)
    return out.transpose(1, 2), lse


def _flash_backward(gradient, q, k, v, out, lse, seen, scale):
    gradient, q, k, v, out = _heads_last(gradient, q, k, v, out)
    inputs = gradient, q, k, v, out, lse.contiguous(), None, None, q.shape[1], k.shape[1]
    options = 0.0, seen == CAUSAL, *_no_random_state(q)
    operator = aten._flash_attention_backward
    return _heads_last(*operator(*inputs, *options, **_flash_window(seen), scale=scale))


# cuDNN has no window here: it serves the far part alone.
def _cudnn_forward(q, k, v, seen, scale):
    if q.shape[2] == k.shape[2] == 1:  # cuDNN refuses this single case
        return _flash_forward(q, k, v, seen, scale)
    inputs = q, k, v, None, True, 0.0, seen == CAUSAL, False
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(*inputs, scale=scale)
    return out, lse.squeeze(-1)


def _token_by_token(*tensors):
    """The tensors, copied where the heads of a token do not lie side by side in memory.

    PyTorch (2.11) looks cuDNN's plans up by the strides of q, k and v alone, so gradients are wrong
    where out or its gradient had other strides in the first call with such q, k and v.  With this
    layout, the one that models have, all callers agree on the strides.
    """
    if tensors[0].stride(1) == tensors[0].shape[3]:
        return tensors
    return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]


def _cudnn_backward(gradient, q, k, v, out, lse, seen, scale):
    if q.shape[2] == k.shape[2] == 1:
        return _flash_backward(gradient, q, k, v, out, lse, seen, scale)
    operator = aten._scaled_dot_product_cudnn_attention_backward
    q, k, v, gradient, out = _token_by_token(q, k, v, gradient, out)
    inputs = gradient, q, k, v, out, lse.contiguous().unsqueeze(-1), *_no_random_state(q)
    lengths = q.shape[2], k.shape[2]
    return operator(*inputs, None, None, None, *lengths, 0.0, seen == CAUSAL, scale=scale)


# The memory-efficient kernel's mask types, and the multiple to which it pads its log-sum-exp.  It
# has windows of its own, but with more keys than queries their gradients are wrong (torch 2.11): a
# bias takes their place.
_EFFICIENT_UNMASKED, _EFFICIENT_CAUSAL, _EFFICIENT_LSE = 0, 1, 32


def _efficient_mask(q, k, seen):
    """The bias of the scores, or None, and the mask type."""
    if seen == CAUSAL:
        return None, _EFFICIENT_CAUSAL
    if seen == ALL_KEYS:
        return None, _EFFICIENT_UNMASKED
    bias = _window_bias(q, k, seen)
    return bias.expand(*q.shape[:2], *bias.shape), _EFFICIENT_UNMASKED


def _efficient_forward(q, k, v, seen, scale):
    bias, mask = _efficient_mask(q, k, seen)
    q, k, v = _heads_last(q, k, v)
    inputs = q, k, v, bias, None, None, None, None, 0.0, mask, True
    out, lse, *_ = aten._efficient_attention_forward(*inputs, scale=scale)
    return out.transpose(1, 2), lse[:, :, : q.shape[1]]


def _efficient_backward(gradient, q, k, v, out, lse, seen, scale):
    operator = aten._efficient_attention_backward
    bias, mask = _efficient_mask(q, k, seen)
    gradient, q, k, v, out = _heads_last(gradient, q, k, v, out)
    # not F.pad, which keeps the strides where nothing is missing: heads must begin at 32 bytes
    length = lse.shape[2]
    padded = lse.new_full((*lse.shape[:2], length + -length % _EFFICIENT_LSE), math.inf)
    padded[:, :, :length] = lse
    inputs = gradient, q, k, v, bias, out, None, None, q.shape[1], k.shape[1], padded
    dq, dk, dv, _ = operator(*inputs, 0.0, *_no_random_state(q), mask, False, scale=scale)
    return _heads_last(dq, dk, dv)


KERNELS = {
    "cpu": Kernel(_cpu_forward, _cpu_backward, 32),
    "flash": Kernel(_flash_forward, _flash_backward, None),
    "cudnn": Kernel(_cudnn_forward, _cudnn_backward, None, multiple=64),
    "efficient": Kernel(_efficient_forward, _efficient_backward, 64),  # the kernel's blocks
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
CUDA_HEAD_DIM = 8  # CUDA kernels take multiples of it: others are padded with zeros


def with_padded_heads(attend, q, k, v):
    """``attend(q, k, v)``, their last dimension filled up with zeros where CUDA kernels need it."""
    head_dim = q.shape[-1]
    missing = -head_dim % CUDA_HEAD_DIM if q.is_cuda else 0
    if not missing:
        return attend(q, k, v)
    return attend(*(F.pad(x, (0, missing)) for x in (q, k, v)))[..., :head_dim]

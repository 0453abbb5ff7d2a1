"""Attention of the last queries alone, a step of decoding or a chunk, over all keys in order.

For callers that keep a plain cache of their own; cache.py stores the keys as a step reads them.
Shapes: q and the result (B, M, H, D) for the last M of S tokens; k and v (B, S, heads, D), where
every head serves H / heads neighbouring heads of q.
"""

import torch

from attention.cache import attend_to_parts, keeps_together
from attention.full import repeated, sdpa
from attention.kernels import CUDA_HEAD_DIM
from attention.masks import heads_mask
from attention.parts import readable
from attention.pattern import FULL_HEAD, is_sink_alone
from attention.split import all_heads


def can_gather(q, k, v):
    """Can ``by_slices`` serve it: one query, without gradients, of a size that kernels take?"""
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    transformed = torch._C._are_functorch_transforms_active()
    fits = not q.is_cuda or q.shape[3] % CUDA_HEAD_DIM == 0
    return q.shape[1] == 1 and fits and not differentiated and not transformed


def by_mask(q, k, v, pattern):
    """Attention of the last queries by a mask: scores outside the ``Pattern`` are thrown away."""
    position, n_heads = torch.arange(k.shape[1], device=q.device), q.shape[2]
    mask = heads_mask(position[-q.shape[1] :, None], position, len(position), n_heads, pattern)
    return sdpa(q, *repeated(k, v, n_heads), mask)


def by_slices(q, k, v, pattern):
    """One query reads its window, a strided slice of far keys and the sinks, and nothing else.

    On one CPU core (B1 H8 D64, float32), against all keys in scaled_dot_product_attention: w256 d0
    0.20 to 0.19 ms at 1,024 tokens, 0.24 to 0.74 at 4,096; w256 d4 0.33 and 0.60.
    """
    (S, key_heads), n_heads, found = k.shape[1:3], q.shape[2], []
    groups = pattern.like_heads(S, n_heads)
    with torch.autocast(q.device.type, enabled=False):
        for head, heads in groups:
            of_keys = _heads_of_keys(heads, n_heads // key_heads)
            parts = [
                (*(readable(x[:, keys, of_keys]).transpose(1, 2) for x in (k, v)), kept)
                for keys, kept in _slices(head, S, q.device)
            ]
            found.append(attend_to_parts(q[:, :, heads], parts))
    return all_heads(found, groups)


def _heads_of_keys(heads, sharing):
    """The heads of keys for a slice of queries' heads: a slice, or a list with one for each."""
    if sharing == 1:
        return heads
    if keeps_together(heads, sharing):
        return slice(heads.start // sharing, heads.stop // sharing)
    return [n // sharing for n in range(heads.start, heads.stop, heads.step)]


def _slices(head, seq_len, device):
    """The keys of the last query: (slice, kept) for near, far and sink keys.

    kept (n,): the sinks that are neither near nor far; None: all keys count.
    """
    if head == FULL_HEAD:
        return [(slice(None), None)]
    w, d, sinks, _ = head
    query = seq_len - 1
    slices = [(slice(max(query - w, 0), None), None)]
    last_far = query - head.nearest_far()
    if d and last_far >= 0:
        slices.append((slice(last_far % d, last_far + 1, d), None))
    if sinks and query > w:
        key = torch.arange(min(sinks, seq_len), device=device)
        slices.append((slice(sinks), is_sink_alone(query, key, head)))
    return slices

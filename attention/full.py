"""Full causal attention, and textbook attention over any mask: the readable references."""

import math
import operator

import torch
import torch.nn.functional as F

from attention.masks import cached_mask
from attention.pattern import FULL


def checked(q, k, v, fewer_queries=False):
    """q, k and v in autocast's dtype; ValueError, with what differs, where they do not fit.

    k and v may have fewer heads than q, a divisor; with ``fewer_queries`` q may have fewer tokens.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor) or x.ndim != 4 or not x.is_floating_point():
            found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x)
            raise ValueError(f"{name} must be a (B, S, H, D) tensor of floats, got {found}")
    device_type = q.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        kinds = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise ValueError(f"q, k and v must have one dtype and device, got {kinds}")
    B, S, heads, D = q.shape
    of_keys = k.shape[2]
    if fewer_queries:
        S = max(S, k.shape[1])
    alike = k.shape == v.shape == (B, S, of_keys, D)
    if not alike or not of_keys or heads % of_keys:
        shapes = ", ".join(f"{n} {tuple(x.shape)}" for n, x in (("q", q), ("k", k), ("v", v)))
        raise ValueError(
            f"q, k and v must be alike, but for heads of k and v that divide those of q: {shapes}"
        )
    return q, k, v


def repeated(k, v, heads):
    """k and v with this number of heads, a multiple of theirs."""
    if k.shape[2] == heads:
        return k, v
    return [x.repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v)]


def fitted(q, k, v, mask=None):
    """q, k and v ``checked``, with the mask, and each with q's number of heads."""
    q, k, v = checked(q, k, v)
    S = q.shape[1]
    if mask is not None and (mask.shape[-2:] != (S, S) or mask.device != q.device):
        found = f"{tuple(mask.shape)} on {mask.device}"
        raise ValueError(f"for {S} tokens on {q.device} mask must be ({S}, {S}), got {found}")
    return q, *repeated(k, v, q.shape[2])


def dense_attention(q, k, v, mask):
    """Textbook attention: every score is computed, the masked ones are thrown away.

    softmax(q k^T / sqrt(D)) v of Vaswani et al. 2017, with the scores where ``mask``, (S, S) or
    (H, S, S), is False set to minus infinity.  The readable reference, and the tests' oracle in
    float64.  Raises ValueError for tensors that do not fit one another.
    """
    return textbook(*fitted(q, k, v, mask), mask)


def textbook(q, k, v, mask):
    """``dense_attention`` of tensors that are known to fit."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, S, S)
    scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)  # (B, S, H, D)


def fused_attention(q, k, v, mask=None):
    """PyTorch's scaled_dot_product_attention: causal, or over ``mask``.

    mask: (S, S) or (H, S, S), True = may attend, or what is added to the scores.
    Raises ValueError for tensors that do not fit one another.
    """
    return sdpa(*fitted(q, k, v, mask), mask)


def sdpa(q, k, v, mask=None):
    """``fused_attention`` of tensors that are known to fit."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return out.transpose(1, 2)  # (B, S, H, D)


def causal_dense_attention(q, k, v, first=0):
    """Textbook full attention: every score is computed, a cached causal mask hides the future.

    first: the position of the first query, where q has fewer tokens than k and v.
    """
    # a plain int: torch.compile(dynamic=True) may have a symbol here, which is no key for a cache
    seq_len = operator.index(k.shape[1])
    mask = cached_mask(seq_len, 1, q.device, None, *FULL)
    return textbook(q, k, v, mask[first : first + q.shape[1]])


def published_attention(q, k, v, first=0):
    """Full attention with the mask bookkeeping of the published course experiment.

    The same function as ``causal_dense_attention``; only the work around the mask differs: every
    layer builds it again on the host, copies it to the device, multiplies the scores by it and
    then writes minus infinity wherever a score is 0 (a causal score of exactly 0 would go too).
    """
    head_dim = q.shape[3]
    mask = torch.tril(torch.ones(q.shape[1], k.shape[1]), diagonal=first).to(q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    scores = (q @ k.transpose(-2, -1)) / head_dim**0.5  # (B, H, S, S)
    scores = scores * mask
    scores[scores == 0] = float("-inf")
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)  # (B, S, H, D)


TEXTBOOK = ("dense", "published")  # hold the scores of all pairs
# for q, k and v as a model makes them, which always fit
FULL_ATTENTION = {
    "fused": sdpa,
    "dense": causal_dense_attention,
    "published": published_attention,
}

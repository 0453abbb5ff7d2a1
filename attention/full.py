"""Full causal attention, and textbook attention over any mask: the readable references."""

import math

import torch
import torch.nn.functional as F

from attention.masks import cached_mask
from attention.pattern import FULL


def dense_attention(q, k, v, mask):
    """Textbook attention: every score is computed, the masked ones are thrown away.

    softmax(q k^T / sqrt(D)) v of Vaswani et al. 2017, with the scores where ``mask``, (S, S) or
    (H, S, S), is False set to minus infinity.  The readable reference, and the tests' oracle in
    float64.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, S, S)
    scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)  # (B, S, H, D)


def fused_attention(q, k, v, mask=None):
    """PyTorch's scaled_dot_product_attention: causal, or over ``mask``.

    mask: (S, S) or (H, S, S), True = may attend, or what is added to the scores.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return out.transpose(1, 2)  # (B, S, H, D)


def causal_dense_attention(q, k, v):
    """Textbook full attention: every score is computed, a cached causal mask hides the future."""
    return dense_attention(q, k, v, cached_mask(q.shape[1], 1, q.device, None, *FULL))


def published_attention(q, k, v):
    """Full attention with the mask bookkeeping of the published course experiment.

    The same function as ``causal_dense_attention``; only the work around the mask differs: every
    layer builds it again on the host, copies it to the device, multiplies the scores by it and
    then writes minus infinity wherever a score is 0 (a causal score of exactly 0 would go too).
    """
    seq_len, head_dim = q.shape[1], q.shape[3]
    mask = torch.tril(torch.ones(seq_len, seq_len)).to(q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    scores = (q @ k.transpose(-2, -1)) / head_dim**0.5  # (B, H, S, S)
    scores = scores * mask
    scores[scores == 0] = float("-inf")
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)  # (B, S, H, D)


FULL_ATTENTION = {
    "fused": fused_attention,
    "dense": causal_dense_attention,
    "published": published_attention,
}

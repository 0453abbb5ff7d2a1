"""The sinks' part of split attention: a few keys for every query, in plain products.

Shapes: B batch, S sequence length, H heads, D head_dim, N sink_tokens.
"""

import torch

from attention.pattern import is_sink_alone


def _sink_products(q, k, v, head, scale, first):
    """q, k and v of the sinks (B, H, ..., D) and the scores (B, H, S, N), in float32 or more.

    head: the ``HeadPattern``.  The scores of pairs that are near, far or in the future are minus
    infinity.
    """
    sinks = head.sink_tokens
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.transpose(1, 2).to(wide) for x in (q, k[:, :sinks], v[:, :sinks]))
    query = torch.arange(first, first + q.shape[2], device=q.device)[:, None]
    key = torch.arange(sinks, device=q.device)[None, :]
    scores = q @ k.transpose(-2, -1) * scale  # (B, H, S, N)
    return q, k, v, scores.masked_fill(~is_sink_alone(query, key, head), float("-inf"))


def merge_sinks(out, lse, q, k, v, head, scale, first=0):
    """Merge the sinks into out (B, S, H, D) and lse (B, H, S) of the other keys; returns both.

    Every query has its own key among the others, so its lse is finite.  A query for which no sink
    is left has minus infinity as the sinks' lse, and their weight is exactly 0.
    """
    *_, v, scores = _sink_products(q, k, v, head, scale, first)
    merged_lse = torch.logaddexp(lse, scores.logsumexp(-1))
    share = (scores - merged_lse.unsqueeze(-1)).exp() @ v  # (B, H, S, D)
    others = (lse - merged_lse).exp().transpose(1, 2).unsqueeze(-1)  # (B, S, H, 1)
    merged = out * others + share.transpose(1, 2)
    # a copy even where nothing is to convert: the compiler of torch 2.11 loses the gradient of an
    # output that is the same tensor as an intermediate result
    merged = merged.to(out.dtype, copy=True, memory_format=torch.contiguous_format)
    return merged, merged_lse


def sink_backward(gradient, q, k, v, out, lse, head, scale, first=0):
    """The sinks' shares of dq (B, S, H, D) and of their own dk and dv (B, N, H, D).

    out and lse are the merged ones: as in every flash backward, dS = P (g v^T - sum(g out)).
    """
    q, k, v, scores = _sink_products(q, k, v, head, scale, first)
    gradient, out = (x.transpose(1, 2).to(q.dtype) for x in (gradient, out))
    weights = (scores - lse.unsqueeze(-1)).exp()  # (B, H, S, N)
    mean = (gradient * out).sum(-1, keepdim=True)
    of_scores = weights * (gradient @ v.transpose(-2, -1) - mean) * scale
    dq = of_scores @ k
    dk = of_scores.transpose(-2, -1) @ q
    dv = weights.transpose(-2, -1) @ gradient
    return [x.transpose(1, 2) for x in (dq, dk, dv)]

"""One sequence over several ranks: what has to travel depends on the kinds of heads.

The S tokens of a sequence are cut into N shards of L = S / N consecutive tokens, one on each rank.

1. **halo**: a shard's first tokens have near keys at the end of the shard before it.  For the near
   part of window heads those w keys and values are all that travels, to one neighbour.  Sinks go
   from the first rank to all.
2. **gather**: for full and for dilated heads every rank gets all keys and values.  With one full
   head of eight that is an eighth of what full attention needs.
3. **zigzag**: early queries have few keys, late ones many.  So the queries of these heads travel
   too, such that every rank has equal work, and what was found for them travels home.
4. **merge**, at home: near keys, far keys and sinks, by log-sum-exp as in split.py.
5. **backward**: everything goes back the way it came.  Gradients of gathered keys are summed on the
   rank that has their tokens; those of a halo are added to the neighbour's own.

The near part is computed while the gathered keys are on their way, forward and back.  exchange.py
has the exchanges.  For comparison: ring attention (Liu et al. 2023) passes the keys of all heads
round; Ulysses (Jacobs et al. 2023) sends all of q, k, v and out, to at most as many ranks as heads.

Shapes: q, k, v, out (B, L, H, D) and lse (B, H, L) of a shard.  Of the H heads the first ``full``
see everything and have no near part, and the first ``gathered`` have keys everywhere.
"""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from attention.exchange import Halo, Shards, Zigzag, as_rows, as_tensors, gather, sum_of_own
from attention.full import checked, repeated
from attention.kernels import KERNELS, with_padded_heads
from attention.parts import backward, empty_results, forward, readable
from attention.pattern import FULL_HEAD, Pattern, whole
from attention.pieces import beyond_near, near_part
from attention.sinks import merge_sinks, sink_backward
from attention.split import merge, split_kernels


def check_shards(seq_len, shards, pattern):
    """Raise ValueError where sequences of ``seq_len`` tokens cannot be cut into so many shards."""
    if seq_len % whole("shards", shards, 1):
        fewer = max(seq_len // shards, 1) * shards
        raise ValueError(
            f"{seq_len} tokens cannot be cut into {shards} equal shards: choose {fewer} tokens"
        )
    window = 0 if pattern.dilation == 1 else pattern.window_size
    needed = max(window + 1, pattern.sink_tokens)
    if seq_len // shards < needed:
        fitting = [n for n in range(2, shards) if seq_len % n == 0 and seq_len // n >= needed]
        remedy = f"choose {fitting[-1]} shards" if fitting else "leave them whole"
        raise ValueError(
            f"a shard of {seq_len // shards} tokens cannot hold the window and its token, or the "
            f"sinks, {needed} tokens: {remedy}"
        )


def heads_in_need(groups, n_heads):
    """(full, gathered): how many heads, the first ones, see everything; how many need all keys.

    groups: of ``Pattern.like_heads``.
    """
    full = groups[0][1].stop if groups[0][0] == FULL_HEAD else 0
    dilated = any(head.dilation for head, _ in groups if head != FULL_HEAD)
    return full, n_heads if dilated else full


class Cut(NamedTuple):
    """How a rank computes its shard of a layer's attention."""

    halo: Halo
    zigzag: Zigzag
    groups: list  # (HeadPattern, slice of the heads) of like heads
    full: int
    gathered: int
    scale: float
    near_kernel: str
    far_kernel: str

    @classmethod
    def of(cls, q, pattern, shards, scale, kernels):
        """For q (B, L, H, D), a ``Pattern`` and a ``Shards``."""
        length, n_heads = q.shape[1:3]
        check_shards(length * shards.size, shards.size, pattern)
        groups = pattern.like_heads(length * shards.size, n_heads)
        halo = Halo(shards, length, pattern.window_size, pattern.sink_tokens)
        needs = heads_in_need(groups, n_heads)
        return cls(halo, Zigzag(shards, length), groups, *needs, scale, *kernels)

    @property
    def shards(self):
        """The ranks."""
        return self.halo.shards

    @property
    def first(self):
        """The position of this rank's first token."""
        return self.shards.rank * self.halo.length

    def near_part(self):
        """The near part of window heads: this rank's queries, its own keys and the halo's."""
        length, window = self.halo.length, self.halo.window
        keys = length + (window if self.shards.rank else 0)
        return near_part(keys, window, KERNELS[self.near_kernel], length)

    def near_groups(self):
        """The groups of window heads: (HeadPattern, slice of all heads, slice of window heads)."""
        return [
            (head, heads, slice(heads.start - self.full, heads.stop - self.full, heads.step))
            for head, heads in self.groups
            if head != FULL_HEAD
        ]

    def far_parts(self):
        """Yield (slice of heads, of computed queries, of keys; list of parts) of gathered heads."""
        for queries, end in self.zigzag.spans():
            for head, heads in self.groups:
                if head.dilation:
                    parts = beyond_near(end, head, self.far_kernel, queries.stop - queries.start)
                    yield heads, queries, slice(0, end), parts


def _forward(q, k, v, part, scale):
    return forward(*map(readable, part.of(q, k, v)), part, scale)


def _backward(gradient, q, k, v, out, lse, part, scale):
    """The part's shares of dq, dk and dv, from the merged out and lse."""
    gradient, out = (readable(x[:, part.first :]) for x in (gradient, out))
    of_part = map(readable, part.of(q, k, v))
    return backward(gradient, *of_part, out, lse[:, :, part.first :], part, scale)


def _far_forward(q, k, v, cut):
    """out and lse of the computed queries q over all keys, of the gathered heads."""
    out, lse = empty_results(q)
    out.zero_()
    lse.fill_(float("-inf"))
    for heads, queries, keys, parts in cut.far_parts():
        inputs = q[:, queries, heads], k[:, keys, heads], v[:, keys, heads]
        merged = out[:, queries, heads], lse[:, heads, queries]
        for number, part in enumerate(parts):
            found = _forward(*inputs, part, cut.scale)
            merged = merge(*merged, *found) if number or part.first else found
        out[:, queries, heads], lse[:, heads, queries] = merged
    return out, lse


def _far_backward(gradient, q, k, v, out, lse, cut):
    """dq of the computed queries, and this rank's shares of dk and dv of all keys.

    The shares in float32 or more, for many are added up.
    """
    dq = torch.zeros_like(q)
    dk, dv = (torch.zeros_like(x, dtype=lse.dtype) for x in (k, v))
    for heads, queries, keys, parts in cut.far_parts():
        inputs = q[:, queries, heads], k[:, keys, heads], v[:, keys, heads]
        merged = out[:, queries, heads], lse[:, heads, queries]
        sums = dq[:, queries, heads], dk[:, keys, heads], dv[:, keys, heads]
        for part in parts:
            shares = _backward(gradient[:, queries, heads], *inputs, *merged, part, cut.scale)
            for total, share in zip(part.of(*sums), shares, strict=True):
                total += share
    return dq, dk, dv


def _merge_at_home(q, sink_kv, far, cut, out, lse):
    """Merge the far keys and sinks of window heads into out and lse, which hold their near part.

    far: out and lse of the gathered heads, back at home.
    """
    for head, heads, near in cut.near_groups():
        merged = out[:, :, heads], lse[:, heads]
        if head.dilation:
            merged = merge(*merged, far[0][:, :, heads], far[1][:, heads])
        if cut.halo.sinks:
            inputs = q[:, :, heads], *(x[:, :, near] for x in sink_kv)
            merged = merge_sinks(*merged, *inputs, head, cut.scale, cut.first)
        out[:, :, heads], lse[:, heads] = merged


def _sinks_backward(gradient, q, sink_kv, out, lse, cut, dq):
    """Add the window heads' share of dq; returns dk and dv of the sinks, in float32 or more."""
    dk, dv = (torch.zeros_like(x, dtype=lse.dtype) for x in sink_kv)
    if not cut.halo.sinks:
        return dk, dv
    for head, heads, near in cut.near_groups():
        inputs = gradient[:, :, heads], q[:, :, heads], *(x[:, :, near] for x in sink_kv)
        merged = out[:, :, heads], lse[:, heads]
        with torch.autocast(q.device.type, enabled=False):
            shares = sink_backward(*inputs, *merged, head, cut.scale, cut.first)
        dq[:, :, heads] += shares[0]
        dk[:, :, near] = shares[1]
        dv[:, :, near] = shares[2]
    return dk, dv


class ShardAttention(torch.autograd.Function):
    """Attention of this rank's queries; see the top of this file."""

    @staticmethod
    def forward(ctx, q, k, v, cut):
        F, G = cut.full, cut.gathered
        has_near = q.shape[2] > F
        # start what has to travel
        if has_near:
            halo = cut.halo.fetch(k[:, :, F:], v[:, :, F:])
        if G:
            all_keys = gather(as_rows(k[:, :, :G], v[:, :, :G]), cut.shards)
            queries = cut.zigzag.send(as_rows(q[:, :, :G]))
        out, lse = empty_results(q)
        near_kv, sink_kv = [None, None], [None, None]
        far_qkv, far = [None, None, None], None
        if has_near:
            own = k[:, :, F:], v[:, :, F:]
            arrived = as_tensors(halo())
            sink_kv = [x[:, : cut.halo.sinks] for x in (arrived if cut.shards.rank else own)]
            ahead = [x[:, cut.halo.sinks :] for x in arrived]
            near_kv = [torch.cat(pair, dim=1) for pair in zip(ahead, own, strict=True)]
            near_out, near_lse = _forward(q[:, :, F:], *near_kv, cut.near_part(), cut.scale)
            out[:, :, F:], lse[:, F:] = near_out, near_lse
        if G:
            far_qkv = *as_tensors(queries()), *as_tensors(all_keys())
            far_out, far_lse = _far_forward(*far_qkv, cut)
            far_out = cut.zigzag.send_home(as_rows(far_out))
            far_lse = cut.zigzag.send_home(far_lse.movedim(2, 0))
            far = *as_tensors(far_out()), far_lse().movedim(0, 2)
            out[:, :, :F], lse[:, :F] = far[0][:, :, :F], far[1][:, :F]
        _merge_at_home(q, sink_kv, far, cut, out, lse)
        ctx.cut = cut
        ctx.save_for_backward(q, out, lse, *near_kv, *sink_kv, *far_qkv)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        cut = ctx.cut
        q, out, lse, *saved = ctx.saved_tensors
        near_kv, sink_kv, far_qkv = saved[:2], saved[2:4], saved[4:]
        F, G = cut.full, cut.gathered
        dq, dk, dv = (torch.zeros_like(q) for _ in range(3))
        if G:
            moved = cut.zigzag.send(as_rows(gradient[:, :, :G], out[:, :, :G]))
            moved_lse = cut.zigzag.send(lse[:, :G].movedim(2, 0))
            far_gradient, far_out = as_tensors(moved())
            far_lse = moved_lse().movedim(0, 2).contiguous()
            far_dq, *far_dkv = _far_backward(far_gradient, *far_qkv, far_out, far_lse, cut)
            own_far_dkv = sum_of_own(as_rows(*far_dkv), cut.shards)
            own_far_dq = cut.zigzag.send_home(as_rows(far_dq))
        if q.shape[2] > F:
            inputs = gradient[:, :, F:], q[:, :, F:], *near_kv, out[:, :, F:], lse[:, F:]
            dq[:, :, F:], *near_dkv = _backward(*inputs, cut.near_part(), cut.scale)
            sink_dkv = _sinks_backward(gradient, q, sink_kv, out, lse, cut, dq)
            ahead = near_dkv[0].shape[1] - cut.halo.length  # keys of the shard before
            of_fetched = as_rows(*(x[:, :ahead].to(lse.dtype) for x in near_dkv))
            if cut.shards.rank:
                of_fetched = torch.cat([as_rows(*sink_dkv), of_fetched])
            returned = cut.halo.give_back(of_fetched)
            for total, of_near, of_sinks in zip((dk, dv), near_dkv, sink_dkv, strict=True):
                total[:, :, F:] = of_near[:, ahead:]
                if cut.shards.rank == 0:
                    total[:, : cut.halo.sinks, F:] += of_sinks
            for tokens, rows in returned():
                for total, share in zip((dk, dv), as_tensors(rows), strict=True):
                    total[:, tokens, F:] += share
        if G:
            shares = *as_tensors(own_far_dq()), *as_tensors(own_far_dkv())
            for total, share in zip((dq, dk, dv), shares, strict=True):
                total[:, :, :G] += share
        return dq, dk, dv, None


def shard_attention(q, k, v, shards, window_size, dilation, sink_tokens=0, **heads):
    """``window_attention`` of a sequence of which every rank holds a shard.

    q, k, v: this rank's L consecutive tokens, (B, L, H, D); k and v may have a divisor of H heads.
    shards: the ranks, as ``Shards.of(group)``; each calls it with tensors of one shape.  Returns
    (B, L, H, D).  Inside torch.compile call it through ``torch.compiler.disable``.
    Raises ValueError for tensors that do not fit one another, for what is no pattern, for shards
    that are too short for the window or the sinks, and where there is no kernel.
    """
    q, k, v = checked(q, k, v)
    k, v = repeated(k, v, q.shape[2])
    pattern = Pattern(window_size, dilation, sink_tokens, **heads).checked(q.shape[2])
    if not q.numel():
        return q + k + v
    kernels = split_kernels(q.device, q.dtype, q.shape[3])
    if kernels is None:
        raise ValueError(f"attention over shards has no kernel for {q.dtype} on {q.device}")
    cut = Cut.of(q, pattern, shards, q.shape[3] ** -0.5, kernels)
    with torch.autocast(q.device.type, enabled=False):
        return with_padded_heads(lambda *qkv: ShardAttention.apply(*qkv, cut), q, k, v)


class Gathered(torch.autograd.Function):
    """Tensors (B, L, H, D) of a shard -> the same of the whole sequence, (B, S, H, D) each."""

    @staticmethod
    def forward(ctx, shards, *tensors):
        ctx.shards = shards
        return tuple(as_tensors(gather(as_rows(*tensors), shards)()))

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        return None, *as_tensors(sum_of_own(as_rows(*gradients), ctx.shards)())


def textbook_over_shards(attend, q, k, v, shards):
    """Attention that holds all scores: every rank has those of its queries, (B, H, L, S).

    attend: a function of q, k, v and the first query's position, like ``causal_dense_attention``.
    """
    k, v = Gathered.apply(shards, k, v)
    return attend(q, k, v, shards.rank * q.shape[1])


def whole_rows(x, shards):
    """One number for each token of every rank's shard, x (B, L), as (B, S) on all ranks.

    shards None: sequences are whole, and x is returned as it is.
    """
    return x if shards is None else gather(x.mT, shards)().mT


__all__ = ["Shards", "check_shards", "shard_attention", "textbook_over_shards", "whole_rows"]

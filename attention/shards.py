"""One sequence over several processes: what each has to be sent depends on the kinds of heads.

The S tokens of a sequence lie in N shards of L = S / N consecutive tokens, shard r on rank r.

1. **halo**: the first tokens of a shard have near keys at the end of the shard before it.  Of window
   heads those w keys and values travel, from one neighbour, and nothing else.  So do the sinks,
   from the first rank to all.
2. **gather**: of full and dilated heads every rank gets all keys and values (all-gather).  With one
   full head of eight that is an eighth of what full attention needs.
3. **zigzag**: late queries have many keys, early ones few.  Of the heads in 2 the queries travel
   too: each shard is two chunks, and rank r computes the chunks r and 2N - 1 - r of all 2N, equal
   work for every rank.  Outputs and log-sum-exps go home.
4. **merge**, at home: near and far keys and sinks, by log-sum-exp as in split.py.
5. **backward**: all goes back the way it came.  Gradients of the gathered keys are summed where
   their tokens lie (reduce-scatter), those of a halo are added to the neighbour's own.

The near part is computed while the gathered keys are on their way, forward and back.  Ring
attention (Liu et al. 2023) sends the keys of all heads round; Ulysses (Jacobs et al. 2023) sends
all of q, k, v and out, and has no more ranks than heads.

Shapes: q, k, v, out (B, L, H, D) and lse (B, H, L) of a shard; G the first heads, which are
gathered; rows (L, ...), what travels, with the tokens first.
"""

from typing import NamedTuple

import torch
from torch import distributed as dist
from torch.nn.functional import pad

from attention.full import checked
from attention.kernels import CUDA_HEAD_DIM, KERNELS
from attention.parts import backward, empty_results, forward, readable
from attention.pattern import FULL_HEAD, Pattern
from attention.pieces import beyond_near, near_part
from attention.sinks import merge_sinks, sink_backward
from attention.split import merge, split_kernels


class Shards(NamedTuple):
    """The processes that share every sequence, and the place of this one among them."""

    group: dist.ProcessGroup
    rank: int
    size: int

    @classmethod
    def of(cls, group):
        return cls(group, dist.get_rank(group), dist.get_world_size(group))


def check_shards(seq_len, shards, pattern):
    """Raise ValueError where sequences of ``seq_len`` tokens cannot be cut into so many shards."""
    if seq_len % shards:
        nearest = seq_len // shards * shards
        raise ValueError(
            f"{seq_len} tokens are no multiple of {shards} shards: choose {nearest or shards}"
        )
    length = seq_len // shards
    window_size = 0 if pattern.dilation == 1 else pattern.window_size
    for name, needed in (("window", window_size + 1), ("sinks", pattern.sink_tokens)):
        if length < needed:
            raise ValueError(
                f"a shard of {length} tokens is shorter than the {name} of {needed} (the token "
                f"itself counted): choose at most {seq_len // needed} shards"
            )


# what travels; each function starts it and returns the function that waits for the result
def _exchange(rows, sent, received, shards):
    """Rows to and from every rank, so many each."""
    result = rows.new_empty((sum(received), *rows.shape[1:]))
    rows = rows.contiguous()
    work = dist.all_to_all_single(
        result, rows, received, sent, group=shards.group, async_op=True
    )

    def finish():
        work.wait()
        return result

    return finish


def _gather(rows, shards):
    """Every rank's rows, in the order of the ranks."""
    result = rows.new_empty((shards.size * rows.shape[0], *rows.shape[1:]))
    rows = rows.contiguous()
    work = dist.all_gather(
        list(result.chunk(shards.size)), rows, group=shards.group, async_op=True
    )

    def finish():
        work.wait()
        return result

    return finish


def _scatter_sum(rows, shards):
    """This rank's rows of the sum over all ranks."""
    rows = rows.contiguous()
    result = torch.empty_like(rows[: rows.shape[0] // shards.size])
    work = dist.reduce_scatter(
        result, list(rows.chunk(shards.size)), group=shards.group, async_op=True
    )

    def finish():
        work.wait()
        return result

    return finish


def _lent(shards, length, window, sinks):
    """(rank, slice of its rows) of all that this rank lends: sinks to all, its end to the next."""
    lent = []
    for other in range(shards.size):
        if shards.rank == 0 and other > 0 and sinks:
            lent.append((other, slice(0, sinks)))
        if other == shards.rank + 1:
            lent.append((other, slice(length - window, length)))
    return lent


def _halo_counts(shards, length, window, sinks):
    """How many rows go to every rank, and come from every rank: sinks first, then the halo."""
    sent, received = [0] * shards.size, [0] * shards.size
    for other, rows in _lent(shards, length, window, sinks):
        sent[other] += rows.stop - rows.start
    if shards.rank:
        received[0] += sinks
        received[shards.rank - 1] += window
    return sent, received


def _halo(rows, window, sinks, shards):
    """The sinks and the ``window`` rows before this rank's own; none of either on rank 0."""
    length = rows.shape[0]
    lent = [rows[place] for _, place in _lent(shards, length, window, sinks)]
    return _exchange(
        torch.cat([rows[:0], *lent]), *_halo_counts(shards, length, window, sinks), shards
    )


def _halo_gradient(rows, length, window, sinks, shards):
    """What the others found of this rank's rows: the gradient of (L, ...), from that of a halo."""
    sent, received = _halo_counts(shards, length, window, sinks)
    arrived = _exchange(rows, received, sent, shards)

    def finish():
        found = arrived()
        whole = found.new_zeros((length, *found.shape[1:]))
        places = [place for _, place in _lent(shards, length, window, sinks)]
        for place, share in zip(places, found.split([p.stop - p.start for p in places]), strict=True):
            whole[place] += share
        return whole

    return finish


def _zigzag_chunks(shards):
    """The numbers of the two chunks, of all 2N, that lie on this rank, and that it computes."""
    r, N = shards.rank, shards.size
    return (2 * r, 2 * r + 1), (r, 2 * N - 1 - r)


def _chunk_sizes(numbers, length):
    """A shard's first chunk is one longer where the shard is odd."""
    return [(length + 1 - number % 2) // 2 for number in numbers]


def _zigzag(rows, length, shards, home=False):
    """Rows of a shard -> those of the two chunks that this rank computes; with ``home`` back."""
    lying, computed = _zigzag_chunks(shards)

    def lies_on(chunk):
        return chunk // 2

    def computed_on(chunk):
        return min(chunk, 2 * shards.size - 1 - chunk)

    mine, theirs, to, source = lying, computed, computed_on, lies_on
    if home:
        mine, theirs, to, source = computed, lying, lies_on, computed_on
    sizes = dict(zip(mine, _chunk_sizes(mine, length), strict=True))
    chunks = dict(zip(mine, rows.split(list(sizes.values())), strict=True))
    arriving = sorted(theirs, key=source)
    sent, received = [0] * shards.size, [0] * shards.size
    for chunk in mine:
        sent[to(chunk)] += sizes[chunk]
    arriving_sizes = _chunk_sizes(arriving, length)
    for chunk, size in zip(arriving, arriving_sizes, strict=True):
        received[source(chunk)] += size
    ordered = torch.cat([chunks[chunk] for chunk in sorted(mine, key=to)])
    arrived = _exchange(ordered, sent, received, shards)

    def finish():
        found = dict(zip(arriving, arrived().split(arriving_sizes), strict=True))
        return torch.cat([found[chunk] for chunk in theirs])

    return finish


def _rows(*tensors):
    """Tensors (B, L, H, D) side by side as rows (L, n, B, H, D)."""
    return torch.stack(tensors).movedim(2, 0)


def _tensors(rows):
    """The tensors (B, L, H, D) of such rows, contiguous."""
    return [x.movedim(0, 1).contiguous() for x in rows.unbind(1)]


# the attention of a shard
class Cut(NamedTuple):
    """How the heads of a shard of ``length`` tokens are computed."""

    shards: Shards
    length: int
    groups: list  # (HeadPattern, slice of the heads) of like heads
    full: int  # heads without a near part, the first ones
    gathered: int  # heads that have keys everywhere, the first ones
    window: int
    sinks: int
    scale: float
    near_kernel: str
    far_kernel: str

    @property
    def first(self):
        """The first token's position."""
        return self.shards.rank * self.length

    def near_groups(self):
        """(HeadPattern, slice of the heads, the same among those that have a near part)."""
        return [
            (head, heads, slice(heads.start - self.full, heads.stop - self.full, heads.step))
            for head, heads in self.groups
            if head != FULL_HEAD
        ]

    def near(self, queries, keys):
        return near_part(keys, self.window, KERNELS[self.near_kernel], queries)

    def chunks(self):
        """(slice of the queries, number of keys up to the last) of the two that it computes."""
        start, found = 0, []
        numbers = _zigzag_chunks(self.shards)[1]
        for number, size in zip(numbers, _chunk_sizes(numbers, self.length), strict=True):
            before = number // 2 * self.length + number % 2 * ((self.length + 1) // 2)
            if size:
                found.append((slice(start, start + size), before + size))
            start += size
        return found

    def far(self, head, queries, keys):
        return beyond_near(keys, head, self.far_kernel, queries)


def _cut(q, shards, pattern, scale, kernels):
    length, n_heads = q.shape[1:3]
    check_shards(length * shards.size, shards.size, pattern)
    groups = pattern.like_heads(length * shards.size, n_heads)
    full = groups[0][1].stop if groups[0][0] == FULL_HEAD else 0
    dilated = any(head.dilation for head, _ in groups if head != FULL_HEAD)
    sizes = full, n_heads if dilated else full, pattern.window_size, pattern.sink_tokens
    return Cut(shards, length, groups, *sizes, scale, *kernels)


def _far_forward(q, k, v, cut):
    """out and lse of the gathered heads, of the chunks that this rank computes."""
    out, lse = empty_results(q)
    out.zero_()
    lse.fill_(float("-inf"))
    for queries, keys in cut.chunks():
        for head, heads in cut.groups:
            if not head.dilation:
                continue
            inputs = q[:, queries, heads], k[:, :keys, heads], v[:, :keys, heads]
            so_far = out[:, queries, heads], lse[:, heads, queries]
            for number, part in enumerate(cut.far(head, queries.stop - queries.start, keys)):
                found = forward(*map(readable, part.of(*inputs)), part, cut.scale)
                so_far = merge(*so_far, *found) if number or part.first else found
            out[:, queries, heads], lse[:, heads, queries] = so_far
    return out, lse


def _far_backward(gradient, q, k, v, out, lse, cut):
    """dq of the chunks, dk and dv of all tokens, from the merged out and lse."""
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    for queries, keys in cut.chunks():
        for head, heads in cut.groups:
            if not head.dilation:
                continue
            inputs = q[:, queries, heads], k[:, :keys, heads], v[:, :keys, heads]
            shares = dq[:, queries, heads], dk[:, :keys, heads], dv[:, :keys, heads]
            merged = gradient[:, queries, heads], out[:, queries, heads], lse[:, heads, queries]
            for part in cut.far(head, queries.stop - queries.start, keys):
                its_gradient, its_out = (readable(x[:, part.first :]) for x in merged[:2])
                of_part = map(readable, part.of(*inputs))
                its_lse = merged[2][:, :, part.first :]
                found = backward(its_gradient, *of_part, its_out, its_lse, part, cut.scale)
                for whole, share in zip(part.of(*shares), found, strict=True):
                    whole += share
    return dq, dk, dv


class ShardAttention(torch.autograd.Function):
    """Attention of one shard's queries; see the top of this file."""

    @staticmethod
    def forward(ctx, q, k, v, cut):
        shards, F, G = cut.shards, cut.full, cut.gathered
        if F < q.shape[2]:
            halo = _halo(_rows(k[:, :, F:], v[:, :, F:]), cut.window, cut.sinks, shards)
        if G:
            gathered = _gather(_rows(k[:, :, :G], v[:, :, :G]), shards)
            moved = _zigzag(_rows(q[:, :, :G]), cut.length, shards)
        out, lse = empty_results(q)
        near_k = near_v = sink_k = sink_v = far_q = far_k = far_v = None
        if F < q.shape[2]:
            own = k[:, :, F:], v[:, :, F:]
            arrived = _tensors(halo())
            sinks = own if shards.rank == 0 else arrived
            sink_k, sink_v = (x[:, : cut.sinks] for x in sinks)
            near_k, near_v = (
                torch.cat([x[:, -cut.window :] if cut.window else x[:, :0], mine], dim=1)
                for x, mine in zip(arrived, own, strict=True)
            )
            for _, heads, near_heads in cut.near_groups():
                inputs = q[:, :, heads], near_k[:, :, near_heads], near_v[:, :, near_heads]
                part = cut.near(cut.length, near_k.shape[1])
                found = forward(*map(readable, part.of(*inputs)), part, cut.scale)
                out[:, :, heads], lse[:, heads] = found
        if G:
            (far_k, far_v), (far_q,) = _tensors(gathered()), _tensors(moved())
            far_out, far_lse = _far_forward(far_q, far_k, far_v, cut)
            far_out = _zigzag(_rows(far_out), cut.length, shards, home=True)
            far_lse = _zigzag(far_lse.movedim(2, 0), cut.length, shards, home=True)
            (far_out,), far_lse = _tensors(far_out()), far_lse().movedim(0, 2)
            out[:, :, :F], lse[:, :F] = far_out[:, :, :F], far_lse[:, :F]
        for head, heads, near_heads in cut.near_groups():
            merged = out[:, :, heads], lse[:, heads]
            if head.dilation:
                merged = merge(*merged, far_out[:, :, heads], far_lse[:, heads])
            if cut.sinks:
                of_sinks = sink_k[:, :, near_heads], sink_v[:, :, near_heads]
                about = head, cut.scale, cut.first
                merged = merge_sinks(*merged, q[:, :, heads], *of_sinks, *about)
            out[:, :, heads], lse[:, heads] = merged
        ctx.cut = cut
        ctx.save_for_backward(q, out, lse, near_k, near_v, sink_k, sink_v, far_q, far_k, far_v)
        return out

    @staticmethod
    def backward(ctx, gradient):
        cut = ctx.cut
        shards, F, G = cut.shards, cut.full, cut.gathered
        q, out, lse, near_k, near_v, sink_k, sink_v, far_q, far_k, far_v = ctx.saved_tensors
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(q), torch.zeros_like(q)
        if G:
            rows = _rows(gradient[:, :, :G], out[:, :, :G])
            moved = _zigzag(rows, cut.length, shards)
            moved_lse = _zigzag(lse[:, :G].movedim(2, 0), cut.length, shards)
            far_gradient, far_out = _tensors(moved())
            far_lse = moved_lse().movedim(0, 2).contiguous()
            inputs = far_gradient, far_q, far_k, far_v, far_out, far_lse
            far_dq, far_dk, far_dv = _far_backward(*inputs, cut)
            of_keys = _scatter_sum(_rows(far_dk, far_dv), shards)
            of_queries = _zigzag(_rows(far_dq), cut.length, shards, home=True)
        if F < q.shape[2]:
            near_dk, near_dv = torch.zeros_like(near_k), torch.zeros_like(near_v)
            sink_dk, sink_dv = torch.zeros_like(sink_k), torch.zeros_like(sink_v)
            for head, heads, near_heads in cut.near_groups():
                inputs = q[:, :, heads], near_k[:, :, near_heads], near_v[:, :, near_heads]
                part = cut.near(cut.length, near_k.shape[1])
                merged = gradient[:, :, heads], out[:, :, heads], lse[:, heads]
                shares = backward(
                    readable(merged[0]), *map(readable, part.of(*inputs)), readable(merged[1]),
                    merged[2], part, cut.scale,
                )
                dq[:, :, heads] = shares[0]
                near_dk[:, :, near_heads], near_dv[:, :, near_heads] = shares[1:]
                if cut.sinks:
                    of_sinks = sink_k[:, :, near_heads], sink_v[:, :, near_heads]
                    about = head, cut.scale, cut.first
                    inputs = merged[0], q[:, :, heads], *of_sinks, *merged[1:]
                    shares = sink_backward(*inputs, *about)
                    dq[:, :, heads] += shares[0]
                    sink_dk[:, :, near_heads], sink_dv[:, :, near_heads] = shares[1:]
            ahead = near_k.shape[1] - cut.length
            lent = [_rows(near_dk[:, :ahead], near_dv[:, :ahead])]
            if shards.rank:
                lent.insert(0, _rows(sink_dk, sink_dv))
            returned = _halo_gradient(torch.cat(lent), cut.length, cut.window, cut.sinks, shards)
            dk[:, :, F:], dv[:, :, F:] = near_dk[:, ahead:], near_dv[:, ahead:]
            if shards.rank == 0:
                dk[:, : cut.sinks, F:] += sink_dk
                dv[:, : cut.sinks, F:] += sink_dv
            for whole, share in zip((dk, dv), _tensors(returned()), strict=True):
                whole[:, :, F:] += share
        if G:
            for whole, share in zip((dk, dv), _tensors(of_keys()), strict=True):
                whole[:, :, :G] += share
            (share,) = _tensors(of_queries())
            dq[:, :, :G] += share
        return dq, dk, dv, None


@torch.compiler.disable
def shard_attention(q, k, v, shards, window_size, dilation, sink_tokens=0, **heads):
    """``window_attention`` of a sequence of which every rank holds a shard.

    q, k, v: this rank's L consecutive tokens, (B, L, H, D) each; every rank of ``shards`` (a
    ``Shards``, as ``Shards.of(group)``) calls it with as many.  Returns (B, L, H, D).
    Raises ValueError for tensors that do not fit one another, for what is no pattern, for shards
    that are too short for the window or the sinks, and where there is no kernel.
    """
    q, k, v = checked(q, k, v)
    pattern = Pattern(window_size, dilation, sink_tokens, **heads).checked(q.shape[2])
    head_dim = q.shape[3]
    missing = -head_dim % CUDA_HEAD_DIM if q.is_cuda else 0
    if missing:
        q, k, v = (pad(x, (0, missing)) for x in (q, k, v))
    kernels = split_kernels(q.device, q.dtype, q.shape[3])
    if kernels is None:
        raise ValueError(f"attention over shards has no kernel for {q.dtype} on {q.device}")
    cut = _cut(q, shards, pattern, head_dim**-0.5, kernels)
    with torch.autocast(q.device.type, enabled=False):
        out = ShardAttention.apply(q, k, v, cut)
    return out[..., :head_dim] if missing else out

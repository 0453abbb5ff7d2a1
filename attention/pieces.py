"""The pieces of a sequence that split attention hands to the kernels: views, nothing is gathered.

A near piece is a chunk of queries with its keys and those of the window before it; a far piece is
a residue class modulo d.  split.py says why; where the strides allow it, far pieces are heads.
Shapes: B batch, S sequence length, H heads, D head_dim; a kernel takes (N, H, length, D).
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch

from attention.kernels import ALL_KEYS, CAUSAL, KERNELS, Kernel
from attention.pattern import FULL_HEAD, first_with_far_keys


class Pieces(NamedTuple):
    """``count`` equal pieces of a sequence, each of some queries and their keys.

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
    batch: int | None = None  # of one batch; None: of all batches, the pieces being heads

    @property
    def in_turn(self):
        """Do the pieces take turns with the tokens, as residue classes do and chunks do not?"""
        return self.count == 1 or self.hop == 1

    def of_queries(self, x):
        """The queries of x (B, S, H, D): (count, H, length, D), or (B, count * H, length, D)."""
        return self._view(x, self.query, self.length)

    def of_keys(self, x):
        """The same for the keys, (count, H, keys, D) or (B, count * H, keys, D)."""
        return self._view(x, self.key, self.keys)

    def _view(self, x, first, length):
        B, _, H, D = x.shape
        batch, token, head, last = x.stride()
        start = x.storage_offset() + first * token
        if self.batch is None:  # the next piece lies where the next head would
            strides = batch, head, self.stride * token, last
            return x.as_strided((B, self.count * H, length, D), strides, start)
        strides = self.hop * token, head, self.stride * token, last
        return x.as_strided((self.count, H, length, D), strides, start + self.batch * batch)

    def of_lse(self, lse):
        """The queries of lse (B, H, S): (count, H, length), or (B, count, H, length)."""
        B, H, _ = lse.shape
        batch, head, token = lse.stride()
        strides = batch, self.hop * token, head, self.stride * token
        start = lse.storage_offset() + self.query * token
        views = lse.as_strided((B, self.count, H, self.length), strides, start)
        return views if self.batch is None else views[self.batch]

    def add_to_keys(self, x, gradient):
        """Add the gradients of the pieces' keys to x (B, S, H, D).

        The keys of neighbouring chunks overlap, and a sum into overlapping memory would lose some:
        a chunk's length of them at a time they do not.  Those of residue classes never do.
        """
        step = self.keys if self.in_turn else self.hop
        for start in range(0, self.keys, step):
            some = self._replace(key=self.key + start * self.stride, keys=step)
            some.of_keys(x).add_(gradient[:, :, start : start + step])


class Part(NamedTuple):
    """Pieces that together have every query of the part once, and the kernel for them.

    Its queries are those from ``first`` on, its keys those of the slice ``keys``: pieces count
    both anew from there.
    """

    pieces: list
    kernel: Kernel
    seen: str | int  # see ``kernels.Kernel``
    keys: slice
    first: int = 0
    # else some queries have none of its keys, or some keys no query, and are in no piece
    complete: bool = True

    def of(self, q, k, v):
        """What it reads of q (B, M, H, D), k and v (B, S, H, D)."""
        return q[:, self.first :], k[:, self.keys], v[:, self.keys]


def full_parts(seq_len, kernel, queries):
    """Causal attention: every query against its own key and all before it.

    The keys before all queries are a part of their own, for kernels differ in which of more keys
    than queries a causal query sees.
    """
    before = seq_len - queries
    parts = [Part([_whole_sequence(queries)], kernel, CAUSAL, slice(before, seq_len))]
    if before:
        pieces = _whole_sequence(queries)._replace(keys=before)
        parts.append(Part([pieces], kernel, ALL_KEYS, slice(0, before)))
    return parts


def near_part(seq_len, window_size, kernel, queries):
    """Sliding-window attention: every query against its own key and the ``window_size`` before it.

    The sequence whole where the kernel takes windows, else the pieces of ``_chunks``.
    """
    ahead = min(window_size, seq_len - queries)  # keys before the first query
    length = ahead + queries
    pieces = [_whole_sequence(length)]
    if kernel.least_chunk is not None:
        pieces = _chunks(length, window_size, kernel.least_chunk)
    if ahead:
        pieces = [_from_query(ahead, some) for some in pieces if some.query + some.length > ahead]
    return Part(pieces, kernel, window_size, slice(seq_len - length, seq_len))


def _from_query(first, pieces):
    """The same without the queries before ``first``, which is the new 0: of one piece alone."""
    missing = max(first - pieces.query, 0)
    query = pieces.query + missing - first
    return pieces._replace(query=query, length=pieces.length - missing)


def _whole_sequence(seq_len):
    return Pieces(query=0, key=0, count=1, hop=0, length=seq_len, keys=seq_len, stride=1)


def _chunks(seq_len, window_size, least_chunk):
    """A start that has no full window before it, chunks, and a rest.

    A chunk is a power of two from a quarter of the window on, at least ``least_chunk``: few wasted
    pairs against few, large matrix products.  It was the fastest or within 10 % of it of 32 to 128
    on 2 CPU cores, for windows of 16, 96 and 512.
    """
    chunk = max(least_chunk, 2 ** math.ceil(math.log2(max(window_size, 1) / 4)))
    back = -(-window_size // chunk) * chunk  # keys before a chunk, whole chunks of them
    # no divmod: torch.compile knows none for lengths that vary
    count, rest = (seq_len - back) // chunk, (seq_len - back) % chunk
    if count < 1:
        return [_whole_sequence(seq_len)]
    pieces = [Pieces(back, 0, count, chunk, chunk, back + chunk, 1)]
    if back:
        pieces.insert(0, _whole_sequence(back))
    if rest:
        pieces.append(Pieces(seq_len - rest, seq_len - rest - back, 1, 0, rest, back + rest, 1))
    return pieces


def far_parts(seq_len, first, dilation, kernel, queries):
    """Query first + t against the keys t, t - d, t - 2d ...: a piece for each class modulo d.

    Two parts where there are keys before those of the first query, as in ``full_parts``; none
    where no query has far keys.
    """
    before = seq_len - queries
    without = max(first - before, 0)  # queries that have no far keys
    if without >= queries:
        return []
    key = before + without - first  # the last far key of the first query that has any
    parts = [_own_classes(seq_len, key, queries - without, dilation, kernel, without)]
    if key:
        parts.append(_earlier_classes(key, queries - without, dilation, kernel, without))
    return parts


def _own_classes(seq_len, key, queries, dilation, kernel, first):
    """Query t against the keys key + t, key + t - d ... down to ``key``.

    Where d does not divide the queries, some classes are one longer: two sorts of pieces, and
    nothing is padded.  Where it does, keys that the causal mask hides are added up to a multiple
    that suits the kernel in each class, as far as there are any.
    """
    # no divmod: torch.compile knows none for lengths that vary
    length, longer = queries // dilation, queries % dilation
    if not longer:
        most = (seq_len - key) // dilation
        padded = min(-(-length // kernel.multiple) * kernel.multiple, most)
        pieces = Pieces(0, 0, dilation, 1, length, padded, dilation)
        return Part([pieces], kernel, CAUSAL, slice(key, key + dilation * padded), first)
    pieces = [Pieces(0, 0, longer, 1, length + 1, length + 1, dilation)]
    if length:
        pieces.append(Pieces(longer, longer, dilation - longer, 1, length, length, dilation))
    return Part(pieces, kernel, CAUSAL, slice(key, key + queries), first)


def _earlier_classes(keys, queries, dilation, kernel, first):
    """Query t against those of the keys 0 .. keys - 1 that lie a multiple of d before keys + t.

    A class may have one more query than another, and one more key, or none.
    """
    rest = keys % dilation
    sorts = []
    for start, stop in pairwise(sorted({0, queries % dilation, dilation - rest, dilation})):
        key = (rest + start) % dilation
        length, count = (
            -(-(n - skipped) // dilation) for n, skipped in ((queries, start), (keys, key))
        )
        sorts.append(Pieces(start, key, stop - start, 1, length, count, dilation))
    pieces = [some for some in sorts if some.length > 0 and some.keys > 0]
    complete = len(pieces) == len(sorts)
    return Part(pieces, kernel, ALL_KEYS, slice(0, keys), first, complete)


def beyond_near(seq_len, head, far_kernel, queries):
    """The ``Part`` list of all that a ``HeadPattern`` has but near keys (and sinks)."""
    if head == FULL_HEAD:
        return full_parts(seq_len, KERNELS[far_kernel], queries)
    if not head.dilation:
        return []
    first = first_with_far_keys(seq_len, head)
    return far_parts(seq_len, first, head.dilation, KERNELS[far_kernel], queries)


def parts_of_head(seq_len, head, near_kernel, far_kernel):
    """The ``Part`` list of a ``HeadPattern``: full; or near, and far where there are far keys."""
    parts = beyond_near(seq_len, head, far_kernel, seq_len)
    if head == FULL_HEAD:
        return parts
    return [near_part(seq_len, head.window_size, KERNELS[near_kernel], seq_len), *parts]


def one_token(x):
    """Do the heads of x (B, S, H, D) fill its tokens, so that the next token is H heads on?"""
    return x.stride(1) == x.shape[2] * x.stride(2)


def calls(pieces, *tensors):
    """The pieces as the fewest calls of a kernel: one for all batches where pieces fold to heads.

    tensors: those (B, S, H, D) of which views will be taken.
    """
    for some in pieces:
        if some.count == 1 or (some.hop == 1 and all(map(one_token, tensors))):
            yield some
        else:
            yield from (some._replace(batch=batch) for batch in range(tensors[0].shape[0]))


def foldable(*tensors):
    """Tensors of which one CUDA call can take all residue classes, else copies.

    On a CPU, a call for each batch costs less than the copies.
    """
    if (
        not tensors[0].is_cuda
        or tensors[0].shape[0] == 1
        or all(x.is_contiguous() for x in tensors)
    ):
        return tensors
    return torch.stack(tensors).unbind()  # one kernel

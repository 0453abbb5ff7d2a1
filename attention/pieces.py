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

    batch: the pieces are those of this batch alone, (count, H, ...).  None: of all batches, and
    then the pieces count as heads, (B, count * H, ...).
    """

    query: int
    key: int
    count: int
    hop: int
    length: int
    keys: int
    stride: int
    batch: int | None = None

    @property
    def in_turn(self):
        """Do the pieces take turns with the tokens?  Residue classes do, chunks do not."""
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

        The keys of neighbouring chunks overlap, and adding to overlapping memory in one call would
        lose some of the sums.  So chunks add one chunk's length of keys at a time, which do not
        overlap; the keys of residue classes never do.
        """
        step = self.keys if self.in_turn else self.hop
        for start in range(0, self.keys, step):
            some = self._replace(key=self.key + start * self.stride, keys=step)
            some.of_keys(x).add_(gradient[:, :, start : start + step])


class Part(NamedTuple):
    """Pieces that together have every query of the part once, and the kernel for them.

    The part's queries are those from ``first`` on, its keys those of the slice ``keys``.  Inside
    pieces both are counted from there.
    complete: every query and every key is in a piece.  Otherwise some queries have no key in this
    part, or some keys no query.
    """

    pieces: list
    kernel: Kernel
    seen: str | int  # see ``kernels.Kernel``
    keys: slice
    first: int = 0
    complete: bool = True

    def of(self, q, k, v):
        """What it reads of q (B, M, H, D), k and v (B, S, H, D)."""
        return q[:, self.first :], k[:, self.keys], v[:, self.keys]


def full_parts(seq_len, kernel, queries):
    """Causal attention: every query against its own key and all before it.

    The keys before all queries are a part of their own: where there are more keys than queries,
    kernels disagree about which of them a causal query sees.
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
    """The pieces without the queries before ``first``, from which queries are then counted.

    Several pieces lie behind ``first`` as a whole: only a single one is ever cut.
    """
    missing = max(first - pieces.query, 0)
    query = pieces.query + missing - first
    return pieces._replace(query=query, length=pieces.length - missing)


def _whole_sequence(seq_len):
    return Pieces(query=0, key=0, count=1, hop=0, length=seq_len, keys=seq_len, stride=1)


def _chunks(seq_len, window_size, least_chunk):
    """The start, which has no full window before it; equal chunks; what is left at the end.

    The chunk is a quarter of the window, rounded up to a power of two, but at least
    ``least_chunk``.  Small chunks waste few pairs, large ones make few, large matrix products.
    Of chunks from 32 to 128 tokens this was the fastest or within 10 % of it, on 2 CPU cores, for
    windows of 16, 96 and 512.
    """
    chunk = max(least_chunk, 2 ** math.ceil(math.log2(max(window_size, 1) / 4)))
    back = -(-window_size // chunk) * chunk  # keys before a chunk, whole chunks of them
    # no divmod: torch.compile knows none for lengths that vary
    count, rest = (seq_len - back) // chunk, (seq_len - back) % chunk
    if count < 1:
        return [_whole_sequence(seq_len)]
    start = [_whole_sequence(back)] if back else []
    chunks = Pieces(
        query=back, key=0, count=count, hop=chunk, length=chunk, keys=back + chunk, stride=1
    )
    end = []
    if rest:
        first = seq_len - rest
        end = [_whole_sequence(rest)._replace(query=first, key=first - back, keys=back + rest)]
    return [*start, chunks, *end]


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


def _classes(query, key, count, length, keys, dilation):
    """Residue classes modulo the dilation, ``count`` of them from these first tokens on."""
    return Pieces(query, key, count, hop=1, length=length, keys=keys, stride=dilation)


def _own_classes(seq_len, key, queries, dilation, kernel, first):
    """Query t against the keys key + t, key + t - d ... down to ``key``.

    Where d does not divide the number of queries, some classes are one longer: two sorts of pieces,
    and nothing is padded.  Where it does, each class also reads later keys, if there are any, up to
    a number that suits the kernel; the causal mask hides them.
    """
    # no divmod: torch.compile knows none for lengths that vary
    length, longer = queries // dilation, queries % dilation
    if not longer:
        most = (seq_len - key) // dilation
        padded = min(-(-length // kernel.multiple) * kernel.multiple, most)
        pieces = [_classes(0, 0, dilation, length, padded, dilation)]
        return Part(pieces, kernel, CAUSAL, slice(key, key + dilation * padded), first)
    pieces = [_classes(0, 0, longer, length + 1, length + 1, dilation)]
    if length:
        pieces.append(_classes(longer, longer, dilation - longer, length, length, dilation))
    return Part(pieces, kernel, CAUSAL, slice(key, key + queries), first)


def _earlier_classes(keys, queries, dilation, kernel, first):
    """Query t against those of the keys 0 .. keys - 1 that lie a multiple of d before keys + t.

    A class may have one more query than another, and one more key, or none: up to three sorts.
    """
    rest = keys % dilation
    sorts = []
    for start, stop in pairwise(sorted({0, queries % dilation, dilation - rest, dilation})):
        key = (rest + start) % dilation
        length = -(-(queries - start) // dilation)
        n_keys = -(-(keys - key) // dilation)
        sorts.append(_classes(start, key, stop - start, length, n_keys, dilation))
    pieces = [some for some in sorts if some.length > 0 and some.keys > 0]
    complete = len(pieces) == len(sorts)
    return Part(pieces, kernel, ALL_KEYS, slice(0, keys), first, complete)


def beyond_near(seq_len, head, far_kernel, queries):
    """The full or far parts of a ``HeadPattern``, a list; empty for a bare window."""
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


def _heads_fill_tokens(x):
    """Does the next token of x (B, S, H, D) lie where head H would, so that pieces can be heads?"""
    return x.stride(1) == x.shape[2] * x.stride(2)


def calls(pieces, *tensors):
    """Yield the pieces of each kernel call: one call for all batches where pieces can be heads.

    Elsewhere a call for each batch.  tensors: those (B, S, H, D) of which views will be taken.
    """
    for some in pieces:
        if some.count == 1 or (some.hop == 1 and all(map(_heads_fill_tokens, tensors))):
            yield some
        else:
            yield from (some._replace(batch=batch) for batch in range(tensors[0].shape[0]))


def foldable(*tensors):
    """The tensors, copied on CUDA where one call could not take all their residue classes.

    On a CPU, a call for each batch costs less than the copies.
    """
    if (
        not tensors[0].is_cuda
        or tensors[0].shape[0] == 1
        or all(x.is_contiguous() for x in tensors)
    ):
        return tensors
    return torch.stack(tensors).unbind()  # one kernel

"""What the ranks that share a sequence send to one another, and how its gradient comes back.

shards.py says what for.  A call starts an exchange and returns a function that waits for its
result; between the two a rank can compute.  What travels are rows, (tokens, ...): a stack of
tensors (B, tokens, H, D) with the tokens first (``as_rows``).
"""

from collections import Counter
from typing import NamedTuple

import torch
from torch import distributed as dist

traffic = Counter()  # bytes that this rank has sent to others so far, by the kind of exchange


class Shards(NamedTuple):
    """The ranks that share every sequence, and the place of this one among them."""

    group: "dist.ProcessGroup"
    rank: int
    size: int

    @classmethod
    def of(cls, group):
        """The ranks of a process group, in its order."""
        return cls(group, dist.get_rank(group), dist.get_world_size(group))


def as_rows(*tensors):
    """n tensors (B, L, H, D) as rows (L, n, B, H, D)."""
    return torch.stack([x.transpose(0, 1) for x in tensors], dim=1)


def as_tensors(rows):
    """The n tensors (B, L, H, D) of such rows, contiguous."""
    return [x.movedim(0, 1).contiguous() for x in rows.unbind(1)]


def gather(rows, shards):
    """Every rank's rows, in the order of the ranks (all-gather)."""
    traffic["gather"] += rows.nbytes * (shards.size - 1)
    whole = rows.new_empty((shards.size * rows.shape[0], *rows.shape[1:]))
    # the first name from torch 2.13 on
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    work = all_gather(whole, rows.contiguous(), group=shards.group, async_op=True)
    return _after(work, whole)


def sum_of_own(rows, shards):
    """The sum over the ranks of what each has found for this rank's rows (reduce-scatter)."""
    traffic["gather, back"] += rows.nbytes // shards.size * (shards.size - 1)
    own = rows.new_empty((rows.shape[0] // shards.size, *rows.shape[1:]))
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    work = reduce_scatter(own, rows.contiguous(), group=shards.group, async_op=True)
    return _after(work, own)


def _to_each(rows, sent, received, shards, kind):
    """The first ``sent[0]`` rows to rank 0, the next to rank 1 ...; returns what arrives."""
    traffic[kind] += rows[:1].nbytes * (sum(sent) - sent[shards.rank])
    arrived = rows.new_empty((sum(received), *rows.shape[1:]))
    work = dist.all_to_all_single(
        arrived, rows.contiguous(), received, sent, group=shards.group, async_op=True
    )
    return _after(work, arrived)


def _after(work, result):
    def finish():
        work.wait()
        return result

    return finish


class Halo(NamedTuple):
    """What window heads need of other ranks: the ``window`` rows before a shard, and the sinks.

    Every rank sends its last ``window`` rows to the next one, the first rank its first ``sinks``
    rows to all others.  length: rows of a shard, at least ``window`` and ``sinks``.
    """

    shards: Shards
    length: int
    window: int
    sinks: int

    def _lent(self):
        """(rank, slice of this rank's rows) of all that it sends, in the order of the ranks."""
        rank, size = self.shards.rank, self.shards.size
        sinks = [(other, slice(0, self.sinks)) for other in range(1, size) if rank == 0]
        end = [(rank + 1, slice(self.length - self.window, self.length))] if rank + 1 < size else []
        return sorted(sinks + end, key=lambda lent: lent[0])  # stable: the sinks come first

    def _counts(self):
        """How many rows go to every rank, and come from every rank."""
        sent, received = [0] * self.shards.size, [0] * self.shards.size
        for other, rows in self._lent():
            sent[other] += rows.stop - rows.start
        if self.shards.rank:
            received[0] += self.sinks
            received[self.shards.rank - 1] += self.window
        return sent, received

    def fetch(self, *tensors):
        """Of tensors (B, L, H, D) the sinks, then the ``window`` before this shard, as rows.

        The first rank gets no rows.
        """
        lent = [as_rows(*(x[:, place] for x in tensors)) for _, place in self._lent()]
        rows = torch.cat([as_rows(*(x[:, :0] for x in tensors)), *lent])
        return _to_each(rows, *self._counts(), self.shards, "halo")

    def give_back(self, gradient):
        """Send the gradient of what was fetched back; get the others' for what this rank sent.

        What arrives is a list of (slice of this rank's tokens, rows), to be added up.
        """
        sent, received = self._counts()
        arrived = _to_each(gradient, received, sent, self.shards, "halo, back")

        def finish():
            places = [place for _, place in self._lent()]
            shares = arrived().split([place.stop - place.start for place in places])
            return list(zip(places, shares, strict=True))

        return finish


class Zigzag(NamedTuple):
    """Which rank computes which queries: N shards are 2N chunks, rank r has r and 2N - 1 - r.

    That is an early chunk, with few keys, and a late one, so that every rank has the same work.
    length: rows of a shard; where it is odd, a shard's first chunk is one longer.
    """

    shards: Shards
    length: int

    @property
    def own(self):
        """The numbers of the chunks of this rank's own rows."""
        return 2 * self.shards.rank, 2 * self.shards.rank + 1

    @property
    def computed(self):
        """The numbers of the chunks that this rank computes."""
        return self.shards.rank, 2 * self.shards.size - 1 - self.shards.rank

    def _computed_by(self, chunk):
        return min(chunk, 2 * self.shards.size - 1 - chunk)

    def size(self, chunk):
        """How many tokens a chunk has."""
        return (self.length + 1 - chunk % 2) // 2

    def spans(self):
        """(slice of the computed rows, number of tokens up to its end) of chunks that have rows."""
        found, start = [], 0
        for chunk in self.computed:
            size = self.size(chunk)
            end = chunk // 2 * self.length + (self.length if chunk % 2 else size)
            found.append((slice(start, start + size), end))
            start += size
        return [(rows, end) for rows, end in found if rows.stop > rows.start]

    def send(self, rows):
        """This rank's own rows -> those of the chunks that it computes, the early one first."""
        return self._travel(rows, self.own, self.computed, self._computed_by, _owner, "zigzag")

    def send_home(self, rows):
        """Rows of the chunks that this rank computes -> its own."""
        back = "zigzag, back"
        return self._travel(rows, self.computed, self.own, _owner, self._computed_by, back)

    def _travel(self, rows, leaving, arriving, to, source, kind):
        """Send the rows of the chunks ``leaving``, each to rank ``to(chunk)``.

        What arrives are the rows of the chunks ``arriving``, each from rank ``source(chunk)``.
        """
        sent, received = [0] * self.shards.size, [0] * self.shards.size
        for chunk in leaving:
            sent[to(chunk)] += self.size(chunk)
        for chunk in arriving:
            received[source(chunk)] += self.size(chunk)
        chunks = dict(zip(leaving, rows.split([*map(self.size, leaving)]), strict=True))
        in_order = torch.cat([chunks[chunk] for chunk in sorted(leaving, key=to)])
        arrived = _to_each(in_order, sent, received, self.shards, kind)

        def finish():
            order = sorted(arriving, key=source)
            found = dict(zip(order, arrived().split([*map(self.size, order)]), strict=True))
            return torch.cat([found[chunk] for chunk in arriving])

        return finish


def _owner(chunk):
    return chunk // 2

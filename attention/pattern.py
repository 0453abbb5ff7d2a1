"""The sliding-window + dilated causal pattern: its definition, counts in closed form, a picture."""

import operator
from typing import NamedTuple

import torch


def whole(name, value, least=0):
    """The value as an int, numpy's too; ValueError where it is not whole or below ``least``."""
    try:
        number = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def may_attend(query, key, window_size, dilation, sink_tokens=0, phase=0):
    """THE definition: may query position ``query`` attend to key position ``key``?

    With r = query - key, the pair is kept when r >= 0 (causal) and either

    * near: r <= window_size, that is the token itself and the previous ``window_size`` ones
      (window_size + 1 keys), or
    * far: (r - window_size - phase) is a multiple of ``dilation``, every dilation-th token counted
      back from the window's far edge, or
    * a sink: key < sink_tokens, the first tokens of the sequence (Xiao et al. 2023).

    ``dilation=1`` is full causal attention; ``dilation=0`` means no far keys (a pure sliding
    window).  ``phase``, below ``dilation``, moves the far keys: 0 in the documented pattern.
    Works elementwise on signed integers, numpy arrays and tensors, which broadcast.
    """
    r = query - key
    kept = (r >= 0) & (r <= window_size)
    if dilation:
        kept = kept | ((r > window_size) & ((r - window_size - phase) % dilation == 0))
    if sink_tokens:
        kept = kept | ((r >= 0) & (key < sink_tokens))
    return kept


class HeadPattern(NamedTuple):
    """What one head attends to: the arguments of ``may_attend`` after the positions."""

    window_size: int
    dilation: int
    sink_tokens: int = 0
    phase: int = 0

    def nearest_far(self):
        """How many tokens before a query its nearest far key lies, where the head has far keys."""
        return self.window_size + (self.phase or self.dilation)


FULL_HEAD = HeadPattern(0, 1)


def is_sink_alone(query, key, head):
    """May the query attend to the key as a sink and as nothing else?  head: a ``HeadPattern``."""
    others = may_attend(query, key, *head._replace(sink_tokens=0))
    return may_attend(query, key, *head) & ~others


class Pattern(NamedTuple):
    """What the heads of one layer attend to.

    The first ``full_heads`` attend to everything, the others to the window pattern.  With
    ``stagger`` they take turns in their far keys: number n of them has the phase
    (first_phase + n) % dilation, so that ``dilation`` heads together see every key.
    """

    window_size: int
    dilation: int
    sink_tokens: int = 0
    full_heads: int = 0
    stagger: bool = False
    first_phase: int = 0

    def checked(self, n_heads):
        """The pattern in plain ints; ValueError where it is none for ``n_heads`` heads."""
        whole("n_heads", n_heads, 1)
        if self.stagger not in (True, False):
            raise ValueError(f"stagger must be True or False, got {self.stagger!r}")
        w, d = whole("window_size", self.window_size), whole("dilation", self.dilation)
        sinks = whole("sink_tokens", self.sink_tokens)
        full_heads = whole("full_heads", self.full_heads)
        first_phase = whole("first_phase", self.first_phase)
        if full_heads > n_heads:
            wanted = f"must be a whole number from 0 to n_heads, which is {n_heads}"
            raise ValueError(f"full_heads {wanted}, got {full_heads}")
        if self.stagger and d < 2:
            raise ValueError(f"stagger needs far keys: a dilation of at least 2, not {d}")
        return Pattern(w, d, sinks, full_heads, bool(self.stagger), first_phase)

    def of_heads(self, n_heads):
        """The ``HeadPattern`` of every head."""
        others = range(n_heads - self.full_heads)
        return [FULL_HEAD] * self.full_heads + [self.of_window_head(n) for n in others]

    def of_window_head(self, number):
        """The ``HeadPattern`` of head ``number`` among those that are not full."""
        phase = (self.first_phase + number) % self.dilation if self.stagger else 0
        return HeadPattern(self.window_size, self.dilation, self.sink_tokens, phase)

    def like_heads(self, seq_len, n_heads):
        """The groups of heads that see the same at this length: (HeadPattern, slice of the heads).

        Each HeadPattern is in its fewest numbers: a window over everything is a full head, and a
        dilation that reaches no far key is 0.
        """
        full, step = self.full_heads, self.dilation if self.stagger else 1
        groups = [(FULL_HEAD, slice(0, full, 1))] if full else []
        for number in range(min(step, n_heads - full)):
            head = _least(self.of_window_head(number), seq_len)
            groups.append((head, slice(full + number, n_heads, step)))
        if all(head == groups[0][0] for head, _ in groups):
            return [(groups[0][0], slice(0, n_heads, 1))]
        return groups

    def is_full(self, seq_len, n_heads):
        """True when every head attends to everything at this length."""
        return [head for head, _ in self.like_heads(seq_len, n_heads)] == [FULL_HEAD]


FULL = Pattern(0, 1)


def _least(head, seq_len):
    """The ``HeadPattern`` that means the same at this length, in the fewest numbers."""
    window_size, dilation, sink_tokens, phase = head
    if is_full_causal(seq_len, window_size, dilation, sink_tokens):
        return FULL_HEAD
    if first_with_far_keys(seq_len, head) == seq_len:
        dilation = phase = 0
    return HeadPattern(window_size, dilation, sink_tokens, phase)


def first_with_far_keys(seq_len, head):
    """The first query position that has far keys, or ``seq_len`` where none has."""
    first = head.nearest_far()
    return first if head.dilation and first < seq_len else seq_len


def _whole(seq_len, *head):
    """The length and the values of a ``HeadPattern``, ``whole`` each."""
    values = {"seq_len": seq_len, **HeadPattern(*head)._asdict()}
    return [whole(*item) for item in values.items()]


def window_mask(seq_len, window_size, dilation, device=None, sink_tokens=0, phase=0):
    """The pattern of one head as a bool tensor (S, S), True = may attend; rows are queries."""
    seq_len, *pattern = _whole(seq_len, window_size, dilation, sink_tokens, phase)
    position = torch.arange(seq_len, device=device)
    return may_attend(position[:, None], position[None, :], *pattern)


def near_far_pairs(seq_len, window_size, dilation, phase=0):
    """How many (query, key) pairs of a sequence are near and how many are far, in closed form.

    Query i has min(i, w) + 1 near keys and floor((i - w + s) / d) far keys, where s = -phase mod d
    (none while i < w).
    """
    seq_len, window_size, dilation, _, phase = _whole(seq_len, window_size, dilation, 0, phase)
    w = min(window_size, seq_len)
    near = seq_len * (w + 1) - w * (w + 1) // 2
    return near, _sum_of_floors(seq_len - w, dilation, phase)  # t = i - w


def _sum_of_floors(n, dilation, phase=0):
    """The sum of floor((t + s) / d) for t = 0 .. n - 1, s = -phase mod d; none where d = 0."""
    if dilation == 0:
        return 0
    groups, rest = divmod(n + -phase % dilation, dilation)  # the first s terms are 0
    return dilation * groups * (groups - 1) // 2 + rest * groups


def sink_pairs(seq_len, window_size, dilation, sink_tokens, phase=0):
    """How many pairs the sinks add to the near and far ones, in closed form.

    Beyond its window key j has n = S - 1 - w - j queries, of which floor((n + s) / d) have it as a
    far key, s = -phase mod d.
    """
    seq_len, *head = _whole(seq_len, window_size, dilation, sink_tokens, phase)
    window_size, dilation, sink_tokens, phase = head
    most = max(seq_len - 1 - window_size, 0)  # n of key 0
    keys = min(sink_tokens, most)
    beyond = keys * (2 * most - keys + 1) // 2  # n for n = most, most - 1, ...: keys terms
    far = _sum_of_floors(most + 1, dilation, phase)
    return beyond - far + _sum_of_floors(most + 1 - keys, dilation, phase)


def attended_pairs(seq_len, window_size, dilation, sink_tokens=0, phase=0):
    """How many (query, key) pairs a head keeps: near, far and sinks together."""
    near_and_far = sum(near_far_pairs(seq_len, window_size, dilation, phase))
    return near_and_far + sink_pairs(seq_len, window_size, dilation, sink_tokens, phase)


def causal_pairs(seq_len):
    """How many (query, key) pairs full causal attention has: S (S + 1) / 2."""
    return seq_len * (seq_len + 1) // 2


def density(seq_len, window_size, dilation, sink_tokens=0, phase=0):
    """The share of the causal pairs that a head keeps, between 0 and 1."""
    seq_len = whole("seq_len", seq_len, 1)
    kept = attended_pairs(seq_len, window_size, dilation, sink_tokens, phase)
    return kept / causal_pairs(seq_len)


def layer_density(seq_len, pattern, n_heads):
    """The share of the causal pairs of all heads that a layer with this ``Pattern`` keeps."""
    return sum(density(seq_len, *head) for head in pattern.of_heads(n_heads)) / n_heads


def is_full_causal(seq_len, window_size, dilation, sink_tokens=0):
    """True when the pattern leaves out nothing at this length."""
    return dilation == 1 or window_size + sink_tokens >= seq_len - 1


def draw_pattern(seq_len, window_size, dilation, sink_tokens=0):
    """The pattern as lines of text: # near, o far, s sink alone, . causal but not attended."""
    seq_len, *_ = _whole(seq_len, window_size, dilation, sink_tokens)

    def mark(i, j):
        if i - j <= window_size:
            return "#"
        if may_attend(i, j, window_size, dilation):
            return "o"
        return "s" if may_attend(i, j, window_size, dilation, sink_tokens) else "."

    return "\n".join(" ".join(mark(i, j) for j in range(i + 1)) for i in range(seq_len))

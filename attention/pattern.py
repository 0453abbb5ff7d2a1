"""The sliding-window + dilated causal pattern: its definition, counts in closed form, a picture."""

import torch


def check_pattern(window_size, dilation, sink_tokens=0):
    """Raise ValueError unless all are whole numbers, ``window_size >= 1`` and the others >= 0."""
    for name, value, least in (
        ("window_size", window_size, 1),
        ("dilation", dilation, 0),
        ("sink_tokens", sink_tokens, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def may_attend(query, key, window_size, dilation, sink_tokens=0):
    """THE definition: may query position ``query`` attend to key position ``key``?

    With r = query - key, the pair is kept when r >= 0 (causal) and either

    * near: r <= window_size, that is the token itself and the previous ``window_size`` ones
      (window_size + 1 keys), or
    * far: (r - window_size) is a multiple of ``dilation``, every dilation-th token counted back
      from the window's far edge, or
    * a sink: key < sink_tokens, the first tokens of the sequence (Xiao et al. 2023).

    ``dilation=1`` is full causal attention; ``dilation=0`` means no far keys (a pure sliding
    window).  Works elementwise on integers, numpy arrays and tensors, which broadcast.
    """
    r = query - key
    kept = (r >= 0) & (r <= window_size)
    if dilation:
        kept = kept | ((r > window_size) & ((r - window_size) % dilation == 0))
    if sink_tokens:
        kept = kept | ((r >= 0) & (key < sink_tokens))
    return kept


def window_mask(seq_len, window_size, dilation, device=None, sink_tokens=0):
    """The pattern as a bool tensor (S, S), True = may attend; rows are queries."""
    check_pattern(window_size, dilation, sink_tokens)
    position = torch.arange(seq_len, device=device)
    return may_attend(position[:, None], position[None, :], window_size, dilation, sink_tokens)


def near_far_pairs(seq_len, window_size, dilation):
    """How many (query, key) pairs of a sequence are near and how many are far, in closed form.

    Query i has min(i, w) + 1 near keys and floor((i - w) / d) far keys (none while i < w + d).
    """
    check_pattern(window_size, dilation)
    w = min(window_size, seq_len)
    near = seq_len * (w + 1) - w * (w + 1) // 2
    return near, _sum_of_floors(seq_len - w, dilation)  # t = i - w


def _sum_of_floors(n, dilation):
    """The sum of floor(t / d) for t = 0 .. n - 1, the far pairs of n queries; none where d = 0."""
    if dilation == 0:
        return 0
    groups, rest = divmod(n, dilation)
    return dilation * groups * (groups - 1) // 2 + rest * groups


def sink_pairs(seq_len, window_size, dilation, sink_tokens):
    """How many pairs the sinks add to the near and far ones, in closed form.

    Beyond its window key j has n = S - 1 - w - j queries, of which floor(n / d) have it as a far
    key.
    """
    check_pattern(window_size, dilation, sink_tokens)
    most = max(seq_len - 1 - window_size, 0)  # n of key 0
    keys = min(sink_tokens, most)
    beyond = keys * (2 * most - keys + 1) // 2  # n for n = most, most - 1, ...: keys terms
    far = _sum_of_floors(most + 1, dilation) - _sum_of_floors(most + 1 - keys, dilation)
    return beyond - far


def attended_pairs(seq_len, window_size, dilation, sink_tokens=0):
    """How many (query, key) pairs the pattern keeps: near, far and sinks together."""
    near_and_far = sum(near_far_pairs(seq_len, window_size, dilation))
    return near_and_far + sink_pairs(seq_len, window_size, dilation, sink_tokens)


def causal_pairs(seq_len):
    """How many (query, key) pairs full causal attention has: S (S + 1) / 2."""
    return seq_len * (seq_len + 1) // 2


def density(seq_len, window_size, dilation, sink_tokens=0):
    """The share of the causal pairs that the pattern keeps, between 0 and 1."""
    return attended_pairs(seq_len, window_size, dilation, sink_tokens) / causal_pairs(seq_len)


def is_full_causal(seq_len, window_size, dilation, sink_tokens=0):
    """True when the pattern leaves out nothing at this length."""
    return dilation == 1 or window_size + sink_tokens >= seq_len - 1


def draw_pattern(seq_len, window_size, dilation, sink_tokens=0):
    """The pattern as lines of text: # near, o far, s sink alone, . causal but not attended."""
    check_pattern(window_size, dilation, sink_tokens)

    def mark(i, j):
        if i - j <= window_size:
            return "#"
        if may_attend(i, j, window_size, dilation):
            return "o"
        return "s" if may_attend(i, j, window_size, dilation, sink_tokens) else "."

    return "\n".join(" ".join(mark(i, j) for j in range(i + 1)) for i in range(seq_len))

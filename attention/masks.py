"""The pattern as a mask, as a bias of the scores, or as lists of the tiles that are not empty.

Each is built once and shared by layers and steps.
"""

import torch

from attention.kept import constant_of_a_graph, kept
from attention.pattern import Pattern, may_attend


def cached_mask(seq_len, n_heads, device, bias_dtype, *pattern):
    """Who attends to whom, built once for its arguments, (S, S) or (H, S, S); do not write to it.

    pattern: the values of a ``Pattern``.
    bias_dtype: None for a mask of bools, True = may attend.  With a dtype it is ``as_bias``, which
    scaled_dot_product_attention would otherwise make from the mask in every call.
    """
    (mask,) = _kept_mask(seq_len, n_heads, device, bias_dtype, *pattern)
    return mask


@constant_of_a_graph
@kept(16)
def _kept_mask(seq_len, n_heads, device, bias_dtype, *pattern):
    """``cached_mask`` in a list, which ``clear_mask_cache`` empties."""
    position = torch.arange(seq_len, device=device)
    mask = heads_mask(position[:, None], position, seq_len, n_heads, Pattern(*pattern))
    return [mask if bias_dtype is None else as_bias(mask, bias_dtype)]


def heads_mask(query, key, seq_len, n_heads, pattern):
    """Which of n keys M queries may attend to: (M, n) where all heads see the same, else (H, M, n).

    query (M, 1) and key (n,): their positions, all below ``seq_len``.
    """
    groups = pattern.like_heads(seq_len, n_heads)
    found = [may_attend(query, key, *head) for head, _ in groups]
    if len(found) == 1:
        return found[0]
    masks = found[0].new_empty((n_heads, *found[0].shape))
    for (_, heads), mask in zip(groups, found, strict=True):
        masks[heads] = mask
    return masks


def as_bias(mask, dtype):
    """What is added to the scores in place of a mask: 0 where it is True, else minus infinity."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, float("-inf"))


TILE = 128  # queries and keys of a tile


@constant_of_a_graph
@kept(16)
def cached_tiles(seq_len, n_heads, device, *pattern):
    """Which tiles of TILE queries by TILE keys a ``Pattern`` fills, as FlexAttention wants to know.

    Four pairs (counts (1, H, tiles), numbers (1, H, tiles, tiles)) in int32: the partly full tiles
    of every row of tiles, the full ones of every row, then both again for every column.
    """
    heads = Pattern(*pattern).of_heads(n_heads)
    kinds = {head: _tiles(seq_len, head, device) for head in heads}
    touched, full = (torch.stack([kinds[head][n] for head in heads]) for n in range(2))
    partial = touched & ~full
    return [_as_list(x) for x in (partial, full, partial.mT, full.mT)]


def _tiles(seq_len, head, device):
    """Which tiles have attended pairs, which have no others; (tiles, tiles) each, rows queries."""
    window_size, dilation, sink_tokens, phase = head
    first = torch.arange(0, seq_len, TILE, device=device)
    last = (first + TILE - 1).clamp(max=seq_len - 1)
    query, last_query = first[:, None], last[:, None]
    key, last_key = first[None, :], last[None, :]
    nearest, farthest = query - last_key, last_query - key  # every distance between occurs
    touched = (nearest <= window_size) | (key < sink_tokens)
    full = (farthest <= window_size) | (last_key < sink_tokens)
    if dilation:
        past = window_size + phase
        first_far = nearest.clamp(min=window_size + 1) - past
        touched |= (farthest - past) // dilation > (first_far - 1) // dilation
        full |= dilation == 1
    return touched & (farthest >= 0), full & (nearest >= 0)


def _as_list(tiles):
    """bool (H, rows, columns) -> how many are True in each row, and their columns first."""
    numbers = tiles.int().argsort(dim=-1, descending=True, stable=True)
    lists = tiles.sum(dim=-1), numbers
    return tuple(x.to(torch.int32)[None].contiguous() for x in lists)


def clear_mask_cache():
    """Forget all of them, so that one model's masks never count as another's memory."""
    _kept_mask.clear()
    cached_tiles.clear()

"""Rotary position embedding (RoPE, Su et al. 2021): positions as rotations of queries and keys.

The score of a rotated query and a rotated key depends on their distance alone.  Letters: B batch,
S sequence length, H heads, D head_dim.
"""

import torch

from attention.kept import constant_of_a_graph, kept
from attention.pattern import whole

POSITIONS = ("learned", "rotary")
BASE = 10_000.0


def check_positions(positions, head_dim):
    """Raise ValueError for a name that is not in ``POSITIONS`` and for what cannot be rotated."""
    if positions not in POSITIONS:
        raise ValueError(f"unknown positions {positions!r}: choose one of {', '.join(POSITIONS)}")
    if positions == "rotary" and head_dim % 2:
        raise ValueError(f"rotary positions need an even head_dim, got {head_dim}")


def rotate(x, first_position=0):
    """Queries or keys x (B, S, H, D) turned by their positions, the first being first_position.

    The numbers m and m + D/2 of a head form a plane (as in GPT-NeoX), which position p turns by the
    angle p * 10,000^(-2m/D).  Computed in float32 or more; the result has x's dtype.
    Raises ValueError for an odd D, another rank, numbers that are no floats, a position below 0.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be a (B, S, H, D) tensor of floats, got {x.dtype} {tuple(x.shape)}"
        )
    first_position = whole("first_position", first_position)
    seq_len, head_dim = x.shape[1], x.shape[3]
    check_positions("rotary", head_dim)
    dtype = torch.promote_types(x.dtype, torch.float32)
    # tables grow by doubling, so that one position after another needs few of them
    last = first_position + seq_len
    cos, sin = cached_rotations(1 << (last - 1).bit_length(), head_dim, x.device, dtype)
    cos, sin = cos[first_position:last, None], sin[first_position:last, None]  # (S, 1, D/2)
    one, other = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1).to(x.dtype)


@constant_of_a_graph
@kept(8)
def cached_rotations(positions, head_dim, device, dtype):
    """cos and sin of every position's angles, (positions, D/2) each; shared, do not write."""
    plane = torch.arange(0, head_dim, 2, dtype=torch.float64)
    position = torch.arange(positions, dtype=torch.float64)
    angles = position[:, None] * BASE ** (-plane / head_dim)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)

"""The pattern as one FlexAttention call (Dong et al. 2024): PyTorch generates a kernel for it.

The kernel skips tiles of queries and keys that the pattern leaves empty, and asks ``may_attend``
only inside tiles that it leaves partly full.  It wants torch.compile and CUDA.
"""

import functools

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from attention.masks import TILE, cached_tiles
from attention.pattern import may_attend

# Forward tiles of 64 by 64 took 0.78 to 0.87 of the default's time, forward and backward 0.91 to
# 0.96 (H100, torch 2.11, bfloat16, w96 d0 with 1 full head of 8, 4,096 and 16,384 tokens); other
# tiles backward were slower.
FORWARD_TILES = {"BLOCK_M": 64, "BLOCK_N": 64}
# How many variants of one function torch.compile keeps here.  Its own limit is 8: further ones run
# eagerly after no more than a warning, or are refused where the graph must be whole.
MOST_COMPILED = 256


def flex_over_pattern(q, k, v, pattern):
    """q, k, v (B, S, H, D) -> (B, S, H, D) over the ``Pattern``.

    Compiled here where the caller is not.  Raises ValueError elsewhere than on CUDA.
    """
    if not q.is_cuda:
        raise ValueError(f"flex attention needs CUDA, not {q.device}: choose split or masked")
    attend = flex_in_graph if torch.compiler.is_compiling() else flex_compiled
    return attend(q, k, v, *pattern)


def flex_compiled(q, k, v, *pattern):
    """``flex_in_graph``, compiled once for every pattern, shape and need of gradients."""
    with torch._dynamo.config.patch(recompile_limit=MOST_COMPILED):
        return _compiled()(q, k, v, *pattern)


@functools.cache
def _compiled():
    return torch.compile(flex_in_graph, fullgraph=True, dynamic=False)


def flex_in_graph(q, k, v, *pattern):
    """The call itself, for code that torch.compile traces."""
    seq_len, n_heads = q.shape[1:3]
    window_size, dilation, sink_tokens, full_heads, stagger, first_phase = pattern
    partial, full, partial_keys, full_keys = cached_tiles(seq_len, n_heads, q.device, *pattern)

    def seen(batch, head, query, key):
        phase = (head - full_heads + first_phase) % dilation if stagger else 0
        by_window = may_attend(query, key, window_size, dilation, sink_tokens, phase)
        return by_window | ((head < full_heads) & (query >= key))

    # made here: torch.compile can take the tensors as constants, but not a BlockMask
    block_mask = BlockMask(
        seq_lengths=(seq_len, seq_len),
        kv_num_blocks=partial[0],
        kv_indices=partial[1],
        full_kv_num_blocks=full[0],
        full_kv_indices=full[1],
        q_num_blocks=partial_keys[0],
        q_indices=partial_keys[1],
        full_q_num_blocks=full_keys[0],
        full_q_indices=full_keys[1],
        BLOCK_SIZE=(TILE, TILE),
        mask_mod=seen,
    )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    out = flex_attention(q, k, v, block_mask=block_mask, kernel_options=FORWARD_TILES)
    return out.transpose(1, 2)

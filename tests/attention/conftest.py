"""What the tests of attention compare with: the pattern by its words, and made-up inputs."""

import pytest
import torch


def _pattern_by_hand(seq_len, window_size, dilation, sink_tokens=0, phase=0):
    allowed = [[False] * seq_len for _ in range(seq_len)]
    near, far, sinks = 0, 0, 0
    for query in range(seq_len):
        for key in range(max(0, query - window_size), query + 1):
            allowed[query][key] = True
            near += 1
        if dilation:
            key = query - window_size - (phase or dilation)
            while key >= 0:
                far += not allowed[query][key]
                allowed[query][key] = True
                key -= dilation
        for key in range(min(sink_tokens, query + 1)):
            sinks += not allowed[query][key]
            allowed[query][key] = True
    return allowed, near, far, sinks


def _random_qkv(batch, seq_len, heads, head_dim, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, seq_len, 3, heads, head_dim)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


@pytest.fixture(scope="session")
def pattern_by_hand():
    """(S, w, d, N, phase) -> the keys of every query, and the near, far and sink pairs."""
    return _pattern_by_hand


@pytest.fixture(scope="session")
def random_qkv():
    """(B, S, H, D) -> one fused projection (B, S, 3, H, D), as the models make it."""
    return _random_qkv

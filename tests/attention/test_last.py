"""Fewer queries than keys: a step of decoding or a chunk, over keys and values as they lie."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.choose import window_attention
from attention.masks import cached_mask
from attention.pattern import Pattern

PATTERNS = [
    Pattern(5, 0),
    Pattern(0, 0),
    Pattern(5, 3),
    Pattern(5, 3, 4),
    Pattern(2, 7, 50),
    Pattern(5, 0, 0, 2),
    Pattern(5, 0, 1, 3),
    Pattern(4, 3, 2, 1, True, 2),
    Pattern(3, 1),
    Pattern(100, 2),
]


def tensors(seq_len, key_heads, seed=0):
    """q (2, S, 6, 8), k and v with ``key_heads`` heads, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, seq_len, heads, 8) for heads in (6, key_heads, key_heads)]
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(PATTERNS),
    st.integers(1, 60),
    st.sampled_from([1, 1, 2, 7, 60]),
    st.sampled_from([1, 2, 3, 6]),
    st.sampled_from(["cpu", None]),
)
def test_the_last_queries_see_what_they_see_among_all(pattern, seq_len, last, key_heads, kernel):
    q, k, v = tensors(seq_len, key_heads)
    expected = window_attention(q, k, v, evaluation="dense", **pattern._asdict())[:, -last:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attention.cache.decode_kernel", lambda *_: kernel)
        for evaluation in ("auto", "masked"):
            found = window_attention(q[:, -last:], k, v, evaluation=evaluation, **pattern._asdict())
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("key_heads", [2, 6])
def test_one_query_reads_the_keys_of_its_pattern_alone(pattern, key_heads):
    q, k, v = tensors(60, key_heads)
    expected = window_attention(q, k, v, evaluation="dense", **pattern._asdict())[:, -1:]
    seen = cached_mask(60, 6, k.device, None, *pattern).expand(6, -1, -1)[:, -1]
    read = seen.unflatten(0, (key_heads, -1)).any(1).T[None, :, :, None]  # (1, S, heads, 1)
    k, v = (x.masked_fill(~read, float("nan")) for x in (k, v))
    found = window_attention(q[:, -1:], k, v, **pattern._asdict())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("last", [1, 9])
def test_the_last_queries_have_gradients(last):
    qkv = [x.requires_grad_() for x in tensors(40, 3)]
    found = []
    for evaluation in ("auto", "dense"):
        q = qkv[0][:, -last:] if evaluation == "auto" else qkv[0]
        out = window_attention(q, *qkv[1:], 4, 3, evaluation, full_heads=1, stagger=True)
        found.append(torch.autograd.grad(out[:, -last:].square().sum(), qkv))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("evaluation", ["dense", "masked", "split", "auto"])
@pytest.mark.parametrize("last", [1, 40])
def test_scores_may_have_another_scale(evaluation, last):
    q, k, v = tensors(40, 6)
    mask = cached_mask(40, 6, q.device, None, *Pattern(4, 3))
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*heads_first, mask, scale=0.6).transpose(1, 2)
    if last == 1 and evaluation in ("dense", "split"):
        with pytest.raises(ValueError, match=f"{evaluation} needs as many queries as keys: choose"):
            window_attention(q[:, -1:], k, v, 4, 3, evaluation)
    else:
        found = window_attention(q[:, -last:], k, v, 4, 3, evaluation, scale=0.6)
        torch.testing.assert_close(found, expected[:, -last:])

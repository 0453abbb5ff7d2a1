"""``flash_attn_func``: its calls mean what they mean in flash-attn; what it cannot do is said."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from attention.choose import window_attention
from attention.flash import flash_attn_func

# of flash-attn 2.8, whose callers may give them by their places
SIGNATURE = (
    "q k v dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic "
    "return_attn_probs"
)


def tensors(queries, keys):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, queries, 4, 8), (2, keys, 2, 8), (2, keys, 2, 8)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def by_definition(q, k, v, left, scale):
    """flash-attn's: query i of M stands at key i + S - M and sees ``left`` keys before it."""
    position = torch.arange(k.shape[1])
    distance = position[-q.shape[1] :, None] - position
    mask = (distance >= 0) & (distance <= left) if left >= 0 else distance >= 0
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


@pytest.mark.parametrize("queries", [40, 7, 1])
@pytest.mark.parametrize("window", [(6, 0), (0, 0), (100, 0), (-1, 0), (-1, -1), (6, -1), (6, 6)])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_window_is_that_of_flash_attn(queries, window, scale):
    q, k, v = tensors(queries, 40)
    found = flash_attn_func(q, k, v, 0.0, scale, True, window)
    torch.testing.assert_close(found, by_definition(q, k, v, window[0], scale))


def test_the_pattern_is_that_of_window_attention():
    q, k, v = tensors(40, 40)
    pattern = {"dilation": 3, "full_heads": 1, "stagger": True, "sink_tokens": 2}
    found = flash_attn_func(q, k, v, causal=True, window_size=(6, 0), **pattern)
    assert torch.equal(found, window_attention(q, k, v, window_size=6, **pattern))


def test_the_arguments_are_those_of_flash_attn():
    parameters = inspect.signature(flash_attn_func).parameters.values()
    places = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    assert places == SIGNATURE.split()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"causal": False}, "cannot do causal=False$"),
        ({"dropout_p": 0.1, "softcap": 30.0}, "cannot do dropout_p > 0, softcap > 0$"),
        ({"alibi_slopes": torch.zeros(4)}, "cannot do alibi_slopes"),
        ({"deterministic": True}, "cannot do deterministic=True"),
        ({"return_attn_probs": True}, "cannot do return_attn_probs=True"),
        ({"full_heads": 9}, "full_heads must be a whole number from 0 to n_heads, which is 4"),
    ],
)
def test_what_it_cannot_do_is_said(changes, words):
    with pytest.raises(ValueError, match=words):
        flash_attn_func(*tensors(8, 8), **{"causal": True, "window_size": (6, 0)} | changes)

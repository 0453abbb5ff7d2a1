"""Rotary positions against complex numbers in float64, alone and in the models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokens

from attention.rotary import rotate
from gpt import GPTModel
from gpt_win import GPTWindowModel


def build(model_class=GPTModel, **changes):
    return tiny_model(model_class, positions="rotary", **changes)


def rotated_by_complex_numbers(x, first_position=0):
    """One number after the other: the plane m, m + D/2 is the complex plane."""
    x = x.double()
    half = x.shape[-1] // 2
    numbers = torch.complex(x[..., :half], x[..., half:])
    for s in range(x.shape[1]):
        for m in range(half):
            angle = (first_position + s) / 10_000 ** (m / half)
            numbers[:, s, :, m] *= complex(torch.tensor(1j * angle, dtype=torch.complex128).exp())
    return torch.cat([numbers.real, numbers.imag], dim=-1)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 3000), st.integers(0, 99))
def test_rotation_equals_complex_numbers(seq_len, planes, first_position, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, seq_len, 3, 2 * planes, generator=generator, dtype=torch.float64)
    expected = rotated_by_complex_numbers(x, first_position)
    torch.testing.assert_close(rotate(x, first_position), expected, rtol=1e-9, atol=1e-9)
    single = rotate(x.float(), first_position)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-5)
    half = x.bfloat16()
    rounded = rotated_by_complex_numbers(half, first_position).bfloat16()
    torch.testing.assert_close(rotate(half, first_position), rounded, rtol=2**-7, atol=1e-5)


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 2, 16, dtype=torch.float64)

    def score(query, key):
        return (rotate(q, query) * rotate(k, key)).sum(-1)

    for distance in (0, 1, 17):
        for key in (1, 5, 1000):
            expected = score(distance, 0)
            torch.testing.assert_close(score(key + distance, key), expected, rtol=0, atol=1e-9)
    assert not torch.allclose(score(1, 0), score(0, 0))
    torch.testing.assert_close(rotate(q), q)  # position 0 turns nothing


def test_piece_after_piece_equals_the_whole():
    x = torch.randn(2, 37, 3, 8)
    pieces = [rotate(x[:, i : i + n], i) for i, n in ((0, 5), (5, 1), (6, 30), (36, 1))]
    assert torch.equal(torch.cat(pieces, dim=1), rotate(x))


def test_an_odd_head_dim_is_named():
    with pytest.raises(ValueError, match="rotary positions need an even head_dim, got 5"):
        rotate(torch.zeros(1, 2, 1, 5))
    with pytest.raises(ValueError, match="rotary positions need an even head_dim, got 5"):
        build(d_model=15)
    with pytest.raises(ValueError, match="unknown positions 'none': choose one of learned, rotary"):
        tiny_model(positions="none")


def test_there_is_no_position_table():
    full, window = build(), build(GPTWindowModel)
    learned = set(tiny_model().state_dict())
    assert learned - set(full.state_dict()) == {"position_embeddings.weight"}
    window.load_state_dict(full.state_dict())


def test_positions_reach_the_model():
    """One causal layer's last token sees the others as a set, but for their positions."""
    model = build(dropout=0.0, layers=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(30)
    sequence = torch.tensor([[7, 8, 9], [8, 7, 9]])
    one, other = model(sequence)[:, -1]
    assert not torch.allclose(one, other, rtol=1e-4)
    model.layers[0].mha.positions = "learned"  # that is, none at all here
    one, other = model(sequence)[:, -1]
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_compiled_as_one_graph():
    torch.compiler.reset()
    model = build(GPTWindowModel, dropout=0.0, window_size=5, dilation=3, attention="split")

    def results(forward):
        model.zero_grad(set_to_none=True)
        logits = forward(tiny_tokens())
        logits.logsumexp(-1).mean().backward()
        return logits, model.layers[0].mha.qkv.grad.clone()

    found = results(torch.compile(model, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(found, results(model), rtol=1e-5, atol=1e-7)

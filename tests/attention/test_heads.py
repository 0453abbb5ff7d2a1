"""Heads that see different things: full heads, staggered far keys, shared keys; their tiles."""

import functools
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attention import flex
from attention.cache import KeyValueCache
from attention.choose import window_attention
from attention.flex import flex_in_graph
from attention.full import dense_attention
from attention.masks import TILE, _tiles, cached_mask
from attention.pattern import HeadPattern, Pattern, causal_pairs, layer_density, window_mask


@st.composite
def patterns(draw, n_heads):
    """A ``Pattern`` for so many heads."""
    dilation = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 7, 9, 16, 25, 100]))
    stagger = dilation > 1 and draw(st.booleans())
    return Pattern(
        draw(st.sampled_from([0, 1, 2, 5, 9, 20, 33, 96, 150, 300])),
        dilation,
        draw(st.sampled_from([0, 0, 1, 4, 50, 400])),
        draw(st.integers(0, n_heads)),
        stagger,
        draw(st.integers(0, dilation - 1)) if stagger else 0,
    )


@st.composite
def layers(draw):
    """(Pattern, heads of q, heads of k and v)."""
    n_heads = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    divisors = [n for n in range(1, n_heads + 1) if n_heads % n == 0]
    return draw(patterns(n_heads)), n_heads, draw(st.sampled_from(divisors))


def mask_by_hand(pattern_by_hand, seq_len, n_heads, pattern):
    """Every head of the pattern by its words: (H, S, S)."""
    window_size, dilation, sinks, full_heads, stagger, first_phase = pattern
    masks = []
    for head in range(n_heads):
        phase = (head - full_heads + first_phase) % dilation if stagger else 0
        of_window = pattern_by_hand(seq_len, window_size, dilation, sinks, phase)[0]
        masks.append(pattern_by_hand(seq_len, seq_len, 0)[0] if head < full_heads else of_window)
    return torch.tensor(masks)


@settings(max_examples=60, deadline=None)
@given(layers(), st.integers(1, 120))
def test_the_heads_of_a_layer_by_hand(pattern_by_hand, layer, seq_len):
    pattern, n_heads, _ = layer
    expected = mask_by_hand(pattern_by_hand, seq_len, n_heads, pattern)
    mask = cached_mask(seq_len, n_heads, torch.device("cpu"), None, *pattern)
    assert torch.equal(mask.expand(n_heads, -1, -1), expected)
    share = expected.sum().item() / (n_heads * causal_pairs(seq_len))
    assert layer_density(seq_len, pattern, n_heads) == pytest.approx(share)


def test_staggered_heads_together_see_every_far_key():
    heads = Pattern(3, 4, stagger=True, first_phase=2).of_heads(4)
    assert sorted(head.phase for head in heads) == [0, 1, 2, 3]
    together = sum(window_mask(40, *head[:2], None, *head[2:]).int() for head in heads)
    assert torch.equal(together > 0, torch.ones(40, 40).tril().bool())


def results(evaluation, qkv, upstream, pattern, dtype):
    leaves = [x.to(dtype).requires_grad_() for x in qkv]
    out = window_attention(*leaves, evaluation=evaluation, **pattern._asdict())
    return out.detach(), *torch.autograd.grad(out, leaves, upstream.to(dtype))


def random_heads(batch, seq_len, n_heads, key_heads, head_dim, seed=0):
    """q and a gradient (B, S, H, D), k and v with ``key_heads``."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, seq_len, heads, head_dim) for heads in (n_heads, n_heads, key_heads)]
    q, upstream, k = (torch.randn(shape, generator=generator) for shape in shapes)
    v = torch.randn(shapes[2], generator=generator)
    return (q, k, v), upstream


@settings(max_examples=100, deadline=None)
@given(layers(), st.integers(1, 420), st.integers(1, 3), st.integers(1, 40), st.integers(0, 99))
@example((Pattern(0, 4), 2, 2), 128, 1, 8, 0)  # chunks alone, and no rest
@example((Pattern(0, 0, 2, 1), 3, 3), 64, 1, 8, 0)
@example((Pattern(1, 0, 3), 2, 2), 1, 1, 4, 0)
@example((Pattern(9, 5, 400), 2, 2), 150, 2, 8, 0)  # more sinks than tokens
@example((Pattern(9, 5, 30), 2, 2), 150, 2, 8, 0)  # more sinks than near keys
@example((Pattern(20, 0, 4), 2, 2), 333, 2, 7, 0)
@example((Pattern(20, 1, 4), 2, 2), 333, 2, 7, 0)
@example((Pattern(40, 25, 4), 2, 2), 60, 2, 8, 0)  # no far keys
@example((Pattern(40, 25, 4), 2, 2), 41, 2, 8, 0)  # all keys near
@example((Pattern(40, 25, 4), 2, 2), 42, 2, 8, 0)  # a single pair is a sink's alone
def test_every_evaluation_equals_dense_in_float64(layer, seq_len, batch, head_dim, seed):
    pattern, n_heads, key_heads = layer
    qkv, upstream = random_heads(batch, seq_len, n_heads, key_heads, head_dim, seed)
    exact = results("dense", qkv, upstream, pattern, torch.float64)
    least = 0.1 * torch.cat([x.flatten() for x in exact[1:]]).norm()
    for evaluation in ("dense", "masked", "split"):
        found = results(evaluation, qkv, upstream, pattern, torch.float32)
        for value, expected in zip(found, exact, strict=True):
            error = (value - expected).norm() / expected.norm().clamp_min(least)
            assert error < 1e-5, evaluation


@pytest.mark.parametrize(
    "pattern",
    [Pattern(5, 0, 0, 1), Pattern(5, 3, 2, 1, True, 2), Pattern(5, 2, 0, 0, True)],
    ids=str,
)
def test_split_compiles_as_one_graph(pattern):
    torch.compiler.reset()
    compiled = torch.compile(window_attention, fullgraph=True, dynamic=False)
    qkv, upstream = random_heads(2, 33, 4, 2, 8)
    leaves = [x.requires_grad_() for x in qkv]
    found = []
    for attend in (compiled, window_attention):
        out = attend(*leaves, evaluation="split", **pattern._asdict())
        found.append((out, *torch.autograd.grad(out, leaves, upstream)))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("evaluation", ["dense", "masked", "split"])
def test_layers_that_see_different_things_compile_as_one_graph(evaluation):
    """A mask for each of them, which the compiler must not take for one and the same."""
    torch.compiler.reset()
    layers = Pattern(5, 3, 0, 1, True), Pattern(5, 3, 0, 1, True, 1), Pattern(9, 0)

    def attend(q, k, v):
        for pattern in layers:
            q = window_attention(q, k, v, evaluation=evaluation, **pattern._asdict())
        return q

    compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend="aot_eager")
    qkv, _ = random_heads(2, 40, 4, 4, 8)
    torch.testing.assert_close(compiled(*qkv), attend(*qkv), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("evaluation", ["dense", "masked", "split"])
def test_lengths_may_vary_in_compiled_code(evaluation):
    torch.compiler.reset()

    def attend(q, k, v):
        return window_attention(q, k, v, 5, 3, evaluation, full_heads=1, stagger=True)

    compiled = torch.compile(attend, dynamic=True, fullgraph=True, backend="aot_eager")
    for seq_len in (57, 120):
        qkv, _ = random_heads(2, seq_len, 4, 2, 8)
        torch.testing.assert_close(compiled(*qkv), attend(*qkv), rtol=1e-5, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 700),
    st.sampled_from([0, 1, 20, 96, 127, 128, 200, 400]),
    st.sampled_from([0, 1, 2, 3, 4, 16, 150, 300]),
    st.sampled_from([0, 1, 5, 130, 600]),
    st.integers(0, 299),
)
def test_tiles_equal_the_mask_cut_up(seq_len, window_size, dilation, sinks, phase):
    head = HeadPattern(window_size, dilation, sinks, phase % dilation if dilation else 0)
    mask = window_mask(seq_len, *head[:2], None, *head[2:])
    touched, full = _tiles(seq_len, head, "cpu")
    for n, rows in enumerate(mask.split(TILE)):
        for m, tile in enumerate(rows.split(TILE, dim=1)):
            assert touched[n, m] == tile.any()
            assert tile.all() or not full[n, m]


@pytest.mark.parametrize(
    "pattern",
    [Pattern(96, 4), Pattern(20, 4, 3, 1, True, 2), Pattern(0, 0), Pattern(40, 0, 0, 2)],
    ids=str,
)
def test_flex_equals_dense_as_torch_compile_traces_it(pattern):
    """The traced graph on a CPU; what CUDA makes of it is in test_cuda.py."""
    torch.compiler.reset()
    compiled = torch.compile(flex_in_graph, fullgraph=True, dynamic=False, backend="aot_eager")
    (q, k, v), _ = random_heads(2, 300, 4, 4, 16)
    expected = dense_attention(
        q.double(), k.double(), v.double(), cached_mask(300, 4, q.device, None, *pattern)
    )
    assert (compiled(q, k, v, *pattern) - expected).norm() < 1e-6 * expected.norm()


@torch._dynamo.config.patch(recompile_limit=2)
def test_flex_is_compiled_for_more_patterns_than_a_function_usually_is(monkeypatch):
    """Each layer's heads may see something else, and an evaluation has batches of two sizes."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(flex, "_compiled", functools.cache(flex._compiled.__wrapped__))
    for number in range(4):
        pattern = Pattern(20 + number % 9, 4, 0, 1, True, number)
        (q, k, v), _ = random_heads(1 + number % 2, 40, 4, 4, 16)
        mask = cached_mask(40, 4, q.device, None, *pattern)
        expected = dense_attention(q, k, v, mask)
        torch.testing.assert_close(flex.flex_compiled(q, k, v, *pattern), expected)


@settings(max_examples=40, deadline=None)
@given(layers(), st.sampled_from(["cpu", None]))
def test_decoding_equals_dense_attention(layer, kernel):
    pattern, n_heads, key_heads = layer
    (q, k, v), _ = random_heads(2, 60, n_heads, key_heads, 8)
    q, k, v = q.double(), k.double(), v.double()
    expected = window_attention(q, k, v, evaluation="dense", **pattern._asdict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attention.cache.decode_kernel", lambda *_: kernel)
        cache = KeyValueCache((2, key_heads, 8), 60, pattern, k.dtype, n_heads=n_heads)
        cache.write(k[:, :30], v[:, :30])
        for slot in range(30, 60):
            now = slice(slot, slot + 1)
            cache.write(k[:, now], v[:, now])
            torch.testing.assert_close(cache.attend(q[:, now]), expected[:, now])


def test_a_cache_without_tokens_or_for_heads_that_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="4 heads of keys do not divide 6 of queries"):
        KeyValueCache((1, 4, 8), 10, Pattern(3, 2), n_heads=6)
    cache = KeyValueCache((1, 4, 8), 10, Pattern(3, 2))
    with pytest.raises(ValueError, match="the cache is empty: write"):
        cache.attend(torch.zeros(1, 1, 4, 8))


def test_the_cache_of_window_heads_holds_their_window_alone():
    cache = KeyValueCache((1, 8, 4), 1000, Pattern(9, 0, full_heads=1))
    places = [heads.near.shape[2:4] for heads, *_ in cache.groups]
    assert places == [(1, 1000), (7, 10)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"full_heads": 5},
            "full_heads must be a whole number from 0 to n_heads, which is 4, got 5",
        ),
        ({"full_heads": -1}, "full_heads must be .* got -1"),
        (
            {"stagger": True, "dilation": 0},
            "stagger needs far keys: a dilation of at least 2, not 0",
        ),
        ({"stagger": "yes"}, "stagger must be True or False, got 'yes'"),
        ({"stagger": True, "first_phase": 1.5}, "first_phase must be a whole number, got 1.5"),
    ],
)
def test_a_pattern_that_does_not_fit_is_named(changes, words):
    x = torch.zeros(1, 8, 4, 4)
    arguments = {"q": x, "k": x, "v": x, "window_size": 3, "dilation": 2} | changes
    with pytest.raises(ValueError, match=words):
        window_attention(**arguments)

"""Counts and costs of patterns against brute force and constants computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.pattern import HeadPattern, window_mask
from estimates.pattern import PatternAnalysis
from estimates.pictures import FAR, FUTURE, NEAR, SINK, UNATTENDED, pair_kinds
from gpt_win import layer_patterns

PATTERNS = {
    "seq_len": st.integers(1, 70),
    "window_size": st.integers(1, 80),
    "dilation": st.integers(0, 12),
    "sink_tokens": st.one_of(st.just(0), st.integers(1, 80)),
}


def kind_in_plain_words(i, j, w, d, sinks):
    """The pattern independent of the code: which keys does query i list?"""
    if j > i:
        return FUTURE
    if j in range(i - w, i + 1):
        return NEAR
    far = set()
    key = i - w - d
    while d and key >= 0:
        far.add(key)
        key -= d
    if j in far:
        return FAR
    return SINK if j in range(sinks) else UNATTENDED


def brute_force(seq_len, *pattern):
    """The kinds of all pairs, (S, S), by a double loop."""
    positions = range(seq_len)
    return np.array([[kind_in_plain_words(i, j, *pattern) for j in positions] for i in positions])


@given(**PATTERNS)
@settings(max_examples=50, deadline=None)
def test_counts_equal_a_double_loop(seq_len, window_size, dilation, sink_tokens):
    kinds = brute_force(seq_len, window_size, dilation, sink_tokens)
    expected = [(kinds == kind).sum() for kind in (NEAR, FAR, SINK, UNATTENDED)]
    a = PatternAnalysis(window_size, dilation, seq_len, sink_tokens=sink_tokens)
    assert a.causal_pairs == (kinds != FUTURE).sum()
    assert a.pairs == tuple(expected)
    assert a.density == pytest.approx(sum(expected[:3]) / a.causal_pairs, rel=1e-12)
    assert a.most_keys == np.isin(kinds, (NEAR, FAR, SINK)).sum(axis=1).max()


def test_kinds_of_a_rectangle_of_pairs():
    head = HeadPattern(9, 4, 8)
    ours = pair_kinds(head, np.arange(20, 50), np.arange(5, 40))
    np.testing.assert_array_equal(ours, brute_force(50, 9, 4, 8)[20:50, 5:40])


def test_published_density_and_flops_of_the_default_model():
    a = PatternAnalysis(96, 4)
    assert (a.attended_pairs, a.causal_pairs, f"{a.density:.2%}") == (23_296, 32_896, "70.82%")
    assert a.linear_flops == 256 * (8 * 24 * 262_144 + 10_240_000)
    assert a.flops_full == 538_968_064
    assert f"{a.attention_share:.4f} {a.step_speedup:.5f}" == "0.0336 1.00990"


def test_flops_and_amdahl_equal_constants_computed_by_hand():
    # C = 2, one layer, V = 3, S = 4, w = 1, d = 2: near 1 + 2 + 2 + 2 = 7, far: query 3 sees key 0.
    a = PatternAnalysis(1, 2, seq_len=4, d_model=2, layers=1, vocab_size=3)
    assert (a.pairs, a.causal_pairs) == ((7, 1, 0, 2), 10)
    assert a.linear_flops == 4 * (24 * 4 + 12)  # 432
    assert (a.flops_full, a.flops_sparse) == (80, 64)
    assert a.attention_share == pytest.approx(80 / 512, rel=1e-12)
    assert a.attention_speedup == pytest.approx(1.25, rel=1e-12)
    assert a.step_speedup == pytest.approx(512 / 496, rel=1e-12)


@pytest.mark.parametrize("pattern", [(7, 1, 50), (60, 3, 50), (49, 0, 50), (1, 1, 1), (1, 0, 1)])
def test_full_causal_patterns_gain_nothing(pattern):
    a = PatternAnalysis(*pattern)
    assert (a.density, a.attention_speedup, a.step_speedup) == (1, 1, 1)


@pytest.mark.parametrize(
    "field, value",
    [
        ("window_size", -1),
        ("dilation", -1),
        ("seq_len", 0),
        ("d_model", 0),
        ("layers", -2),
        ("sink_tokens", -1),
        ("vocab_size", 0),
        ("seq_len", 10**30),
    ],
)
def test_wrong_values_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} .*{value}"):
        PatternAnalysis(**{"window_size": 96, "dilation": 4, field: value})


@pytest.mark.parametrize("layers, n_heads", [(2**17, 16), (2, 2**20)])
def test_more_heads_than_memory_has_room_for_are_refused(layers, n_heads):
    with pytest.raises(ValueError, match=f"{layers:,} layers of {n_heads:,} heads"):
        PatternAnalysis(96, 4, layers=layers, n_heads=n_heads)


@pytest.mark.parametrize("changes", [{}, {"stagger": True}, {"full_heads": (0, 3), "layers": 2}])
def test_heads_that_differ_count_as_their_mean(changes):
    """Against the mask of every head and layer."""
    a = PatternAnalysis(9, 4, 50, n_heads=3, **{"full_heads": 1, "layers": 3} | changes)
    layers = layer_patterns(a.layers, 3, 9, 4, 0, a.full_heads, a.stagger)
    masks = [window_mask(50, *h[:2], None, *h[2:]) for p in layers for h in p.of_heads(3)]
    assert a.attended_pairs == pytest.approx(np.mean([int(mask.sum()) for mask in masks]))
    assert a.most_keys == pytest.approx(np.mean([int(mask[-1].sum()) for mask in masks]))
    near = 10 * 50 - 45
    assert a.pairs[0] == near and sum(a.pairs) == pytest.approx(a.causal_pairs)

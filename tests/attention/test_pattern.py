"""The pattern against a literal double loop; counts in closed form; the drawing."""

import gc
import weakref

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attention.masks import cached_mask, clear_mask_cache
from attention.pattern import (
    Pattern,
    attended_pairs,
    causal_pairs,
    density,
    draw_pattern,
    is_full_causal,
    may_attend,
    near_far_pairs,
    sink_pairs,
    window_mask,
)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40), st.integers(0, 45), st.integers(0, 45), st.integers(0, 45), st.integers(0)
)
@example(17, 16, 0, 0, 0)
@example(17, 17, 2, 0, 1)
@example(16, 16, 7, 3, 0)
@example(1, 1, 1, 1, 0)
@example(20, 0, 0, 0, 0)
@example(20, 3, 9, 0, 8)
def test_mask_and_counts_equal_a_literal_double_loop(pattern_by_hand, seq_len, w, d, sinks, phase):
    phase = phase % d if d else 0
    allowed, near, far, alone = pattern_by_hand(seq_len, w, d, sinks, phase)
    assert window_mask(seq_len, w, d, None, sinks, phase).tolist() == allowed
    assert near_far_pairs(seq_len, w, d, phase) == (near, far)
    assert sink_pairs(seq_len, w, d, sinks, phase) == alone
    kept = near + far + alone
    assert attended_pairs(seq_len, w, d, sinks, phase) == kept
    assert is_full_causal(seq_len, w, d, sinks) <= (kept == causal_pairs(seq_len))
    assert density(seq_len, w, d, sinks, phase) == kept / causal_pairs(seq_len)


def test_published_count():
    assert attended_pairs(256, 96, 4) == int(window_mask(256, 96, 4).sum()) == 23_296
    assert causal_pairs(256) == 32_896
    assert density(256, 96, 4) == pytest.approx(0.7082, abs=5e-5)


def test_counts_of_a_long_sequence_need_no_mask():
    near, far = near_far_pairs(10**9, 96, 4)
    assert near == 97 * 10**9 - 96 * 97 // 2
    assert far == sum((n // 4) for n in range(4)) + 4 * (q := (10**9 - 96) // 4) * (q - 1) // 2


def test_one_definition_for_integers_and_arrays():
    mask = window_mask(20, 3, 4)
    assert all(may_attend(i, j, 3, 4) == mask[i, j] for i in range(20) for j in range(20))


def test_masks_are_shared_until_the_cache_is_cleared():
    device = torch.device("cpu")
    mask = cached_mask(12, 2, device, None, *Pattern(3, 2))
    assert cached_mask(12, 2, device, None, *Pattern(3, 2)) is mask
    assert cached_mask(12, 2, device, None, *Pattern(3, 2, 1)).sum() > mask.sum()
    bias = cached_mask(12, 2, device, torch.float32, *Pattern(3, 2))
    assert torch.equal(bias, torch.zeros(12, 12).masked_fill(~mask, float("-inf")))
    clear_mask_cache()
    assert cached_mask(12, 2, device, None, *Pattern(3, 2)) is not mask


def test_compiled_code_that_is_forgotten_leaves_no_mask():
    """Dynamo never removes the constants of its graphs from the module of what it compiled."""
    arguments = 12, 2, torch.device("cpu"), None, *Pattern(3, 2)
    clear_mask_cache()
    compiled = torch.compile(lambda x: x * cached_mask(*arguments), backend="aot_eager")
    compiled(torch.ones(12, 12))
    mask = weakref.ref(cached_mask(*arguments))
    clear_mask_cache()
    torch.compiler.reset()
    del compiled
    gc.collect()
    assert mask() is None


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ((-1, 4, 0), "window_size must be at least 0, got -1"),
        ((96, -1, 0), "dilation must be at least 0, got -1"),
        ((9.5, 4, 0), "window_size must be a whole number, got 9.5"),
        ((96, True, 0), "dilation must be a whole number, got True"),
        ((96, 4, -1), "sink_tokens must be at least 0, got -1"),
    ],
)
def test_a_wrong_pattern_is_named(pattern, words):
    window_size, dilation, sinks = pattern
    for call in (
        lambda: window_mask(8, window_size, dilation, sink_tokens=sinks),
        lambda: attended_pairs(8, *pattern),
        lambda: draw_pattern(8, *pattern),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_the_drawing_shows_the_pattern():
    assert draw_pattern(6, 1, 2, 1).splitlines() == [
        "#",
        "# #",
        "s # #",
        "o . # #",
        "s o . # #",
        "o . o . # #",
    ]

"""The points of a study: what each changes, and what cannot be one."""

import pytest

from machine.command import UserError
from studies.points import PATTERNS, length_points, parse_pattern, pattern_points
from studies.tables import point_name


def test_lengths_keep_the_tokens_of_a_step():
    points = length_points((1024, 256), ("learned", "rotary"), 4, 512)
    names = [point_name("lengths", point) for point in points]
    assert names == ["learned_256", "learned_1024", "rotary_256", "rotary_1024"]
    assert all(point["seq_len"] * point["batch_size"] == 2048 for point in points)


@pytest.mark.parametrize("length", [0, 300, 4096])
def test_a_length_that_cuts_no_whole_rows_is_named(length):
    with pytest.raises(UserError, match=f"--seq-lens {length}: does not divide the 2,048"):
        length_points((length,), ("learned",), 4, 512)


def test_patterns_are_compared_with_fused_each_once():
    (point,) = pattern_points((*PATTERNS, PATTERNS[0]), ("rotary",))
    fused, *arms = point["arms"]
    assert (point_name("patterns", point), fused) == ("rotary", "fused")
    assert arms == list(PATTERNS)


def test_a_pattern_is_window_size_and_dilation_or_a_name():
    assert parse_pattern("64:8") == "w64-d8"
    assert parse_pattern("w96-d4-s-f1-e4") == "w96-d4-s-f1-e4"


@pytest.mark.parametrize(
    "text", ["64", "64:", ":8", "64:-1", "a:b", "6.5:2", "w96-d4-x", "w96-d0-f0"]
)
def test_a_text_that_is_no_pattern_is_named(text):
    with pytest.raises(UserError, match=f"--patterns {text}: give window_size:dilation"):
        parse_pattern(text)

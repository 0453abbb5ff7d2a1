"""Bytes and times of one sequence over several ranks; that the bytes are sent: tests/attention."""

import pytest
from conftest import ROOT

from attention.pattern import FULL, Pattern
from estimates.shards import PATTERNS, exchanged_bytes, simulated_step, tables


def total(*about, **more):
    return sum(exchanged_bytes(*about, **more).values())


def test_windows_send_their_halo_and_an_eighth_of_the_heads_an_eighth_of_the_bytes():
    about = 8, 64, 2  # heads, head_dim, bytes a number
    window = Pattern(96, 0)
    for ranks in (3, 4, 64):  # with a rank that has neighbours on both sides
        there, back = 2 * 96 * 8 * 64 * 2, 2 * 96 * 8 * 64 * 4  # gradients in float32
        assert total(2**20, ranks, window, *about) == there + back
        one = total(2**20, ranks, window._replace(full_heads=1), *about)
        assert one / total(2**20, ranks, FULL, *about) == pytest.approx(1 / 8, rel=1e-3)


def test_one_rank_sends_nothing():
    assert all(total(64, 1, pattern, 8, 4, 4) == 0 for pattern in PATTERNS.values())


def test_sinks_go_from_the_first_rank_to_all():
    about = 64, 4, Pattern(3, 0, sink_tokens=2), 2, 4, 4
    assert exchanged_bytes(*about, rank=0)["halo"] == (3 + 3 * 2) * 2 * 2 * 4 * 4
    assert exchanged_bytes(*about, rank=3)["halo"] == 0
    assert exchanged_bytes(*about, rank=3)["halo, back"] == (3 + 2) * 2 * 2 * 4 * 4


def test_the_simulation_follows_the_work():
    whole, half = (simulated_step(2**20, ranks, PATTERNS["w96-d0-f1"]) for ranks in (1, 2))
    assert whole["exchange"] == 0 < half["exchange"]
    assert all(half[part] == pytest.approx(whole[part] / 2) for part in ("far", "near", "rest"))
    full = simulated_step(2**20, 1, FULL)
    assert full["near"] == 0 and full["far"] == pytest.approx(8 * whole["far"])


def test_the_page_has_these_tables():
    page = (ROOT / "docs" / "scaling.md").read_text().splitlines()
    assert [line for line in tables() if line not in page] == []

"""The benchmark of attention measures what it says: by its arithmetic, and only what is right."""

import math

import numpy as np
import pytest

from attention import density, fused_attention, window_attention
from benchmarks import attention
from benchmarks.attention import measure_attention
from benchmarks.peers import Case, Peer, known_peers
from benchmarks.tables import ALL_KEYS, FORWARD, TRAINING


def test_every_peer_is_timed_or_skipped(measured):
    records, skipped = measured
    assert [(r["peer"], r["seq_len"], r["direction"]) for r in records] == [
        (peer, seq_len, timed)
        for seq_len in (32, 64)
        for timed in (FORWARD, TRAINING)
        for peer in ("split", "dense", "flash")
    ]
    assert len(skipped) == 4 and all("No viable backend" in item["reason"] for item in skipped)


def test_ratios_follow_from_the_samples_of_the_same_length_and_direction(measured):
    records, _ = measured
    for r in records:
        same = [x for x in records if x["seq_len"] == r["seq_len"]]
        same = [x for x in same if x["direction"] == r["direction"]]
        (full,) = (np.median(x["samples_ms"]) for x in same if x["attends"] == ALL_KEYS)
        ratio = full / np.median(r["samples_ms"])
        assert r["ratio_to_best_full"] == pytest.approx(ratio)
        if r["attends"] == "w10-d3":
            assert r["share_of_limit"] == pytest.approx(density(r["seq_len"], 10, 3) * ratio)
        else:
            assert math.isnan(r["share_of_limit"])


def measure(name, peer, directions, seq_len=16):
    case = Case(1, seq_len, 4, 32, "float32", "cpu")
    return measure_attention(case, {name: peer}, directions, rounds=1)


@pytest.mark.parametrize("timed", [FORWARD, TRAINING])
def test_a_window_that_is_off_by_one_is_not_timed(timed):
    def off_by_one(attends, case):
        return lambda q, k, v: window_attention(q, k, v, 11, 3)

    records, (missing,) = measure("off by one", Peer("w10-d3", off_by_one), [timed])
    assert not records
    assert "gives other results than textbook attention" in missing["reason"]


def test_attention_to_the_own_token_alone_is_timed():
    """Its gradients of q and k are 0, so that no error is small beside them."""

    def own_token(attends, case):
        return lambda q, k, v: window_attention(q, k, v, 0, 0)

    records, missing = measure("own", Peer("w0-d0", own_token), [TRAINING])
    assert len(records) == 1 and not missing


def test_a_window_longer_than_the_check_hides_no_error():
    peer = Peer("w500-d4", lambda attends, case: fused_attention)
    records, (missing,) = measure("full", peer, [FORWARD], 1024)
    assert not records and "gives other results" in missing["reason"]


def test_without_a_backward_pass_the_forward_pass_is_still_timed():
    def forward_only(q, k, v):
        if q.requires_grad:
            raise NotImplementedError("training is not supported")
        return fused_attention(q, k, v)

    peer = Peer(ALL_KEYS, lambda attends, case: forward_only)
    (record,), (missing,) = measure("mine", peer, [FORWARD, TRAINING])
    assert record["direction"] == FORWARD and missing["direction"] == TRAINING
    assert missing["reason"] == "NotImplementedError: training is not supported"


def test_what_memory_cannot_hold_is_not_tried(monkeypatch):
    monkeypatch.setattr(attention, "free_memory", lambda device: 1e6)
    records, (missing,) = measure("dense", known_peers("w10-d3")["dense"], [FORWARD], 512)
    assert not records and "GB are free" in missing["reason"]


def test_what_takes_too_long_is_not_timed_further(monkeypatch):
    monkeypatch.setattr(attention, "LONGEST_SECONDS", 0)
    records, (missing,) = measure("flash", known_peers("w10-d3")["flash"], [FORWARD])
    assert not records and missing["reason"] == "takes more than 0 s a call"

"""Works are timed in rounds of random order, and one that fails ends no other."""

import numpy as np
import pytest
import torch
from tiny import CPU, needs_cuda

from benchmarks import timing
from benchmarks.peers import Case, known_peers, work_of
from benchmarks.tables import TRAINING
from machine.command import UserError


def test_every_round_takes_every_work_once_in_random_order(monkeypatch):
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-9)  # one call a sample
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = timing.timed_in_rounds(works, CPU, rounds=8)
    assert {name: len(seconds) for name, seconds in samples.items()} == dict.fromkeys("abc", 8)
    rounds = ["".join(calls[start : start + 3]) for start in range(3, len(calls), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds) and len(set(rounds)) > 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("its bug"), "KeyError: 'its bug'"),
        (RuntimeError("[enforce fail] can't allocate memory: 9 bytes"), "out of memory"),
        (timing.Unavailable("too slow"), "too slow"),
        (ValueError("No such kernel. Try\nanother"), "ValueError: No such kernel"),
    ],
)
def test_a_work_that_fails_is_skipped_with_its_reason_and_the_others_are_timed(error, reason):
    def broken():
        raise error

    makers = {"broken": broken, "fine": lambda: (lambda: 1 + 1, {"more": 7})}
    (record,), (missing,) = timing.side_by_side("peer", makers, {"seq_len": 8}, CPU, rounds=3)
    assert missing == {"peer": "broken", "seq_len": 8, "reason": reason}
    assert record.pop("device_before") and record.pop("device_after")
    samples = record.pop("samples_ms")
    assert len(samples) == 3 and min(samples) > 0
    assert record.pop("median_ms") == pytest.approx(np.median(samples))
    assert record.pop("quartiles_ms") == pytest.approx(np.quantile(samples, (0.25, 0.75)))
    assert record == {"peer": "fine", "seq_len": 8, "more": 7, "timed_as": "calls"}


@needs_cuda
def test_on_cuda_a_work_is_recorded_as_a_graph_and_its_tensors_stay():
    device = torch.device("cuda", 0)
    case = Case(1, 256, 2, 64, "bfloat16", "cuda:0")
    works = {}
    for name in ("split", "cudnn"):
        attend = known_peers("w32-d4")[name].make("w32-d4", case)
        work = work_of(attend, *case.inputs(), TRAINING)
        works[name], how = timing.as_cuda_graph(work, device)
        assert how == "CUDA graph"
        del work
    torch.cuda.empty_cache()
    samples = timing.timed_in_rounds(works, device, 3)
    assert all(0 < s < 1 for seconds in samples.values() for s in seconds)
    before = torch.cuda.memory_allocated(device)
    assert timing.peak_mb(lambda: torch.ones(2**20, device=device), device, before) == 4


def test_of_several_ranks_a_failure_is_no_row_but_the_end(monkeypatch):
    """The others wait for the rank that failed."""
    ended = []
    monkeypatch.setattr(timing.ranks, "size", lambda: 2)
    monkeypatch.setattr(timing.ranks, "ran_out_of_memory", lambda *_, **__: ended.append("asked"))

    def fail():
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        timing.side_by_side("arm", {"a": fail}, {"seq_len": 1}, CPU, rounds=1)
    assert ended == ["asked"]


def test_memory_that_runs_out_in_the_rounds_is_one_line():
    calls = []

    def work():
        calls.append(None)
        if len(calls) > 2:
            raise MemoryError

    with pytest.raises(UserError, match=r"memory ran out .* name fewer of them, or shorter"):
        timing.side_by_side("arm", {"a": lambda: (work, {})}, {"seq_len": 1}, CPU, rounds=1)

"""Steps of the arms are timed side by side, and are the steps of the models."""

import itertools

import numpy as np
import pytest
import torch
from tiny import CPU

from benchmarks import steps
from training.config import make_config
from training.trainer import build_model

SIZES = {"d_model": 16, "n_heads": 2, "layers": 1, "seq_len": 16, "batch_size": 1}


def test_every_arm_is_timed_and_fused_is_the_reference():
    config = make_config("paper", device="cpu", arms=("window", "fused"), **SIZES)
    records, skipped = steps.measure_steps(config, CPU, rounds=2)
    assert [r["arm"] for r in records] == ["window", "fused"]
    assert not skipped
    fused = np.median(records[1]["samples_ms"])
    for r in records:
        assert r["fused_over_this"] == pytest.approx(fused / np.median(r["samples_ms"]))


@torch._dynamo.config.patch(recompile_limit=2)
def test_every_arm_is_compiled_however_many_there_are(monkeypatch):
    """To the compiler they are one function, of which it takes so many and runs others eagerly."""
    torch.compiler.reset()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **_: compile(module, backend="eager"))
    arms = tuple(f"w{window_size}-d0" for window_size in range(4))
    config = make_config("paper", device="cpu", arms=arms, compile="default", **SIZES)
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    records, skipped = steps.measure_steps(config, CPU, rounds=1)
    assert counters["unique_graphs"] == len(records) == len(arms) and not skipped


@pytest.mark.parametrize("measure", [steps.measure_steps, steps.measure_decode_steps])
def test_an_arm_without_room_is_named_and_the_others_are_timed(monkeypatch, measure):
    name = "Trainer" if measure is steps.measure_steps else "build_model"
    original, calls = getattr(steps, name), itertools.count()

    def no_room_at_first(*arguments, **options):
        if next(calls) == 0:
            raise RuntimeError("can't allocate memory: 9 bytes")
        return original(*arguments, **options)

    monkeypatch.setattr(steps, name, no_room_at_first)
    config = make_config("paper", device="cpu", arms=("baseline", "fused"), **SIZES)
    (record,), (missing,) = measure(config, device=CPU, rounds=1)
    assert record["arm"] == "fused"
    assert missing["arm"] == "baseline" and missing["reason"] == "out of memory"


def test_the_timed_step_gives_the_logits_of_the_whole_sequence_time_after_time():
    sizes = {"d_model": 16, "n_heads": 2, "layers": 2, "seq_len": 50}
    config = make_config("paper", device="cpu", window_size=10, dilation=3, **sizes)
    model = build_model(config, "window", 100, CPU, seed=0).eval()
    tokens = torch.randint(100, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        caches = [block.mha.new_cache(2, 50) for block in model.layers]
        model.features(tokens[:, :-1], torch.arange(49), caches)
        for _ in range(2):
            logits = steps.last_logits(model, caches, tokens[:, -1:])
            torch.testing.assert_close(logits, model(tokens)[:, -1])

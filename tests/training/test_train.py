"""One training: what it measures, what it leaves behind, and what two trainings share."""

import math
import os
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import CPU, DEVICES, VOCABULARY, needs_cuda, tiny_config, tiny_dataset

from analysis.metrics import NUMBERS, RECORDS, SERIES, TEXTS
from gpt_win import GPTWindowModel
from machine import ranks
from training import train as training_train
from training import trainer as training_trainer
from training.arms import ARMS
from training.train import train
from training.trainer import UNTIMED_STEPS, Trainer, deterministic_algorithms, release_memory

PLACE = {"block", "position", "index", "order", "process", "previous_arm"}


@pytest.fixture(autouse=True)
def no_child_process(monkeypatch):
    """See test_memory.py for it; here it would only cost seconds."""
    monkeypatch.setattr(training_train, "child_peak_memory_mb", lambda *_: 12.5)


def test_a_training_reports_what_it_did():
    config, dataset = tiny_config(), tiny_dataset()
    seen = []
    metrics, model = train(config, "window", dataset, 7, CPU, lambda *step: seen.append(step))
    assert set(metrics) | PLACE == {*NUMBERS, *TEXTS, *RECORDS, *SERIES}
    assert metrics["status"] == "ok" and metrics["seed"] == 7
    assert metrics["total_steps"] == len(metrics["losses"]) == 6
    assert metrics["total_tokens"] == metrics["tokens_seen"][-1] == 6 * 2 * 24
    assert metrics["tokens_seen"].tolist() == [48, 96, 144, 192, 240, 288]
    assert metrics["final_loss"] == metrics["losses"][-1]
    assert metrics["avg_loss_last_100"] == pytest.approx(metrics["losses"].mean(), rel=1e-6)
    assert metrics["tokens_per_second"] == pytest.approx(288 / metrics["training_time"])
    assert 0 < metrics["step_seconds"].sum() <= metrics["training_time"] * 1.001
    assert metrics["training_time"] + metrics["eval_time"] < metrics["wall_time"]
    assert metrics["losses"][0] == pytest.approx(math.log(VOCABULARY), abs=0.05)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in seen] == metrics["losses"].tolist()
    assert metrics["peak_memory_mb"] == 12.5
    assert isinstance(model, GPTWindowModel)
    started, ended = (datetime.fromisoformat(metrics[f"{k}_at"]) for k in ("started", "ended"))
    assert not started.utcoffset() and started <= ended <= datetime.now(ended.tzinfo)


def make_held_out_and_config(**changes):
    """One pass of eight steps over 16 rows; of four held-out rows two are evaluated."""
    return tiny_dataset(), tiny_config(max_steps=8, val_batches=1, **changes)


def test_a_curve_has_the_losses_that_shorter_trainings_end_with():
    dataset, config = make_held_out_and_config(eval_every=3, schedule="constant")
    metrics, model = train(config, "window", dataset, 7, CPU)
    assert metrics["curve"]["steps"] == [3, 6, 8]
    for steps, loss in zip([3, 6, 8], metrics["curve"]["losses"], strict=True):
        alone = replace(config, max_steps=steps, eval_every=0)
        assert loss == train(alone, "window", dataset, 7, CPU)[0]["val_loss"]
    ends = dataset.held_out[[0, -1]]
    assert metrics["val_loss"] == Trainer.evaluate(trainer_of(config, model), ends)


def trainer_of(config, model):
    """What ``Trainer.evaluate`` needs of a trainer."""
    loss = training_trainer.NextTokenLoss(model)
    return SimpleNamespace(config=config, device=CPU, model=model, eager_loss=loss)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("every", [1, 3, 8, 50])
def test_no_step_can_tell_that_there_were_evaluations(device, every):
    results = []
    for eval_every in (0, every):
        dataset, config = make_held_out_and_config(eval_every=eval_every, deterministic=True)
        results.append(train(config, "window", dataset, 7, torch.device(device))[0])
    without, metrics = results
    assert without["curve"] is None
    assert metrics["curve"]["steps"] == sorted({*range(every, 8, every), 8})
    assert metrics["losses"].tobytes() == without["losses"].tobytes()
    assert metrics["val_loss"] == without["val_loss"]
    assert len(metrics["step_seconds"]) == 8


def test_every_arm_and_block_is_evaluated_on_the_same_rows(monkeypatch):
    seen, evaluate = [], Trainer.evaluate

    def noted(trainer, rows):
        seen.append(rows.tobytes())
        return evaluate(trainer, rows)

    monkeypatch.setattr(Trainer, "evaluate", noted)
    for arm, seed in (("window", 7), ("fused", 8)):
        dataset, config = make_held_out_and_config(eval_every=4)
        train(config, arm, dataset, seed, CPU)
    assert seen == 6 * [dataset.held_out[[0, -1]].tobytes()]  # twice in the course, at the end


def test_evaluations_lie_outside_of_the_clock(monkeypatch):
    """A clock that evaluations put forward by an hour, and each step by a second."""
    now = [0.0]

    def advancing(function, seconds):
        def timed(*arguments):
            now[0] += seconds
            return function(*arguments)

        return timed

    monkeypatch.setattr(training_train.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Trainer, "step", advancing(Trainer.step, 1.0))
    monkeypatch.setattr(Trainer, "evaluate", advancing(Trainer.evaluate, 3600.0))
    dataset, config = make_held_out_and_config(eval_every=3)
    metrics, _ = train(config, "fused", dataset, 7, CPU)
    assert metrics["training_time"] == 8 and metrics["step_seconds"].tolist() == 8 * [1]
    assert metrics["eval_time"] == 4 * 3600  # three of the curve and the last


def test_a_curve_ends_where_a_step_breaks_the_weights(monkeypatch):
    """Its own loss is still that of the weights before."""
    step, calls = Trainer.step, []

    def break_weights(self, batch, lr):
        loss = step(self, batch, lr)
        calls.append(None)
        if len(calls) == UNTIMED_STEPS + 6:
            self.model.fc_out.bias.data.fill_(math.nan)
        return loss

    monkeypatch.setattr(Trainer, "step", break_weights)
    dataset, config = make_held_out_and_config(eval_every=3)
    metrics, _ = train(config, "window", dataset, 7, CPU)
    assert metrics["status"] == "diverged" and metrics["total_steps"] == 7
    assert metrics["curve"]["steps"] == [3] and np.isfinite(metrics["curve"]["losses"]).all()


def test_the_model_learns():
    dataset = tiny_dataset()
    dataset.train[:] = np.arange(25) % VOCABULARY  # a sequence that can be known by heart
    metrics, _ = train(tiny_config(max_steps=60), "window", dataset, 7, CPU)
    assert metrics["losses"][-1] < 0.2 < 3 < metrics["losses"][0]


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_seed_gives_the_same_losses_and_another_seed_others(device):
    device = torch.device(device)
    dataset = tiny_dataset()
    runs = [train(tiny_config(), "fused", dataset, seed, device)[0] for seed in (7, 7, 8)]
    np.testing.assert_allclose(runs[0]["losses"], runs[1]["losses"], rtol=1e-6)
    if device.type == "cpu":
        assert runs[0]["losses"].tobytes() == runs[1]["losses"].tobytes()
    assert runs[0]["val_loss"] == pytest.approx(runs[1]["val_loss"], rel=1e-6)
    assert (runs[0]["losses"] != runs[2]["losses"]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_arms_that_compute_the_same_function_have_the_same_losses(device):
    """Same weights, same batches, same dropout: with a full window only rounding is left."""
    losses = [
        train(tiny_config(window_size=24), arm, tiny_dataset(), 7, torch.device(device))[0]
        for arm in ("baseline", "fused", "published", "window")
    ]
    for other in losses[1:]:
        np.testing.assert_allclose(other["losses"], losses[0]["losses"], rtol=2e-5)
        assert other["val_loss"] == pytest.approx(losses[0]["val_loss"], rel=2e-5)


def test_every_arm_starts_from_the_same_weights_and_sees_the_same_batches(monkeypatch):
    seen = {}
    step = Trainer.step

    def spy(self, batch, lr):
        state = [value.clone() for value in self.model.state_dict().values()]
        seen.setdefault(self.arm, []).append((batch.copy(), lr, state))
        return step(self, batch, lr)

    monkeypatch.setattr(Trainer, "step", spy)
    for arm in ARMS:
        train(tiny_config(), arm, tiny_dataset(), 7, CPU)
    first_timed = training_trainer.UNTIMED_STEPS
    for arm in ARMS:
        assert len(seen[arm]) == first_timed + 6
        for mine, reference in zip(seen[arm], seen["baseline"], strict=True):
            assert (mine[0] == reference[0]).all() and mine[1] == reference[1]
        for place in (0, first_timed):  # before the warm-up, and before the timed region
            mine, reference = seen[arm][place][2], seen["baseline"][place][2]
            assert all(torch.equal(a, b) for a, b in zip(mine, reference, strict=True))


@pytest.mark.parametrize("untimed", [1, 5])
def test_the_number_of_warm_up_steps_changes_no_loss(monkeypatch, untimed):
    reference, _ = train(tiny_config(), "window", tiny_dataset(), 7, CPU)
    warm_up = Trainer.warm_up
    monkeypatch.setattr(Trainer, "warm_up", lambda self: warm_up(self, untimed))
    other, _ = train(tiny_config(), "window", tiny_dataset(), 7, CPU)
    assert other["losses"].tobytes() == reference["losses"].tobytes()


class Recorder:
    """Notes when the device's state is read and when a training reaches which stage."""

    def __init__(self, monkeypatch, fail_in=None):
        self.events, self.fail_in = [], fail_in
        monkeypatch.setattr(training_train, "device_state", self.state)
        for owner, name in (
            (Trainer, "warm_up"),
            (training_train, "timed_steps"),
            (Trainer, "evaluate"),
        ):
            monkeypatch.setattr(owner, name, self.watch(name, getattr(owner, name)))

    def state(self, device):
        self.events.append("state")
        return {"reading": self.events.count("state")}

    def watch(self, name, function):
        def watched(*arguments):
            self.events.append(f"{name} begins")
            if name == self.fail_in:
                raise torch.OutOfMemoryError("CUDA out of memory")
            result = function(*arguments)
            self.events.append(f"{name} ends")
            return result

        return watched


def test_the_device_is_looked_at_before_and_after_everything_that_is_timed(monkeypatch):
    recorder = Recorder(monkeypatch)
    metrics, _ = train(tiny_config(), "fused", tiny_dataset(), 7, CPU)
    stages = ["warm_up", "timed_steps", "evaluate"]
    timed = [f"{stage} {what}" for stage in stages for what in ("begins", "ends")]
    assert recorder.events == ["state", *timed, "state"]
    assert (metrics["device_before"], metrics["device_after"]) == ({"reading": 1}, {"reading": 2})


@pytest.mark.parametrize("stage", ["warm_up", "timed_steps", "evaluate"])
def test_a_training_that_fails_anywhere_has_every_key_and_its_times(monkeypatch, stage):
    Recorder(monkeypatch, fail_in=stage)
    metrics, model = train(tiny_config(), "fused", tiny_dataset(), 7, CPU)
    assert model is None and metrics["status"] == "out_of_memory"
    assert metrics["message"].startswith("out of memory on cpu: lower --batch-size")
    assert set(metrics) | PLACE == {*NUMBERS, *TEXTS, *RECORDS, *SERIES}
    assert metrics["device_after"] == {"reading": 2}
    assert metrics["wall_time"] > 0 == metrics["compile_time"] == metrics["eval_time"]
    assert (metrics["warmup_time"] > 0) == (stage != "warm_up")
    assert math.isnan(metrics["training_time"]) == (stage != "evaluate")


def test_a_last_step_that_breaks_the_weights_is_a_training_that_diverged():
    dataset = tiny_dataset()
    config = tiny_config(max_steps=1, warmup_steps=0, lr=1e38, eval_every=1, reach_passages=2)
    metrics, model = train(config, "window", dataset, 7, CPU)
    assert model is None and metrics["status"] == "diverged" and metrics["curve"] is None
    assert "the validation loss is nan: the last step broke the weights" in metrics["message"]
    assert math.isnan(metrics["val_loss"]) and math.isfinite(metrics["final_loss"])


def break_step(monkeypatch, broken_step):
    """Make the loss of one timed step, counted from 1, not a number."""
    step, calls = Trainer.step, []

    def break_once(self, batch, lr):
        calls.append(None)
        loss = step(self, batch, lr)
        broken = len(calls) == broken_step + training_trainer.UNTIMED_STEPS
        return loss * math.nan if broken else loss

    monkeypatch.setattr(Trainer, "step", break_once)


@pytest.mark.parametrize(
    ("broken_step", "evaluated"), [(1, None), (3, None), (4, [3]), (8, [3, 6])]
)
def test_a_loss_that_is_not_finite_ends_the_training(monkeypatch, broken_step, evaluated):
    break_step(monkeypatch, broken_step)
    dataset, config = make_held_out_and_config(eval_every=3)
    metrics, model = train(config, "window", dataset, 7, CPU)
    assert model is None and (metrics["curve"] and metrics["curve"]["steps"]) == evaluated
    assert metrics["status"] == "diverged"
    assert metrics["message"] == f"the loss became nan at step {broken_step}"
    assert metrics["total_steps"] == broken_step == len(metrics["step_seconds"])
    assert np.isfinite(metrics["losses"][:-1]).all() and math.isnan(metrics["losses"][-1])
    assert math.isnan(metrics["val_loss"]) and math.isnan(metrics["final_loss"])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("the process that measures memory failed: exit code -9"),
    ],
)
def test_memory_that_runs_out_is_an_outcome_that_names_the_remedy(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Trainer, "step", fail)
    metrics, model = train(tiny_config(), "window", tiny_dataset(), 7, CPU)
    assert model is None and metrics["status"] == "out_of_memory"
    assert "--batch-size" in metrics["message"] and "--seq-len" in metrics["message"]
    assert metrics["total_steps"] == 0 and metrics["losses"].shape == (0,)
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        train(tiny_config(), "window", tiny_dataset(), 7, CPU)


def test_memory_that_one_of_several_ranks_lacks_ends_the_command(monkeypatch):
    """The others wait for this one: it ends, and is no result that all agree on."""

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.\nmore")

    monkeypatch.setattr(training_train, "Trainer", fail)
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 1)

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as ended:
        train(tiny_config(), "window", tiny_dataset(), 7, CPU)
    assert ended.value.code == 1


@pytest.mark.parametrize(("mode", "released"), [("none", False), ("reduce-overhead", True)])
def test_recorded_graphs_are_released_before_the_evaluation(monkeypatch, mode, released):
    done = []
    evaluate = Trainer.evaluate

    def noted(trainer, held_out):
        done.append(("evaluated", trainer.model.layers[0].mha.qkv.grad is None))
        return evaluate(trainer, held_out)

    monkeypatch.setattr(Trainer, "evaluate", noted)
    monkeypatch.setattr(training_train, "release_memory", lambda device: done.append("released"))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    metrics, _ = train(tiny_config(compile=mode), "fused", tiny_dataset(), 7, CPU)
    assert metrics["status"] == "ok" and math.isfinite(metrics["val_loss"])
    assert done == ["released"] * released + [("evaluated", released)]


def are_deterministic():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_algorithms_are_used_in_the_training_alone(monkeypatch, wanted, fails):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen, step = set(), Trainer.step

    def spy(self, batch, lr):
        seen.add(are_deterministic())
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch, lr)

    monkeypatch.setattr(Trainer, "step", spy)
    config = tiny_config(deterministic=wanted)
    metrics, _ = train(config, "window", tiny_dataset(), 7, CPU)
    assert metrics["status"] == ("out_of_memory" if fails else "ok")
    assert seen == {(True, False, ":4096:8") if wanted else (False, False, None)}
    assert are_deterministic() == (False, False, None)


def test_a_users_own_deterministic_setting_outlives_a_training(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic_algorithms(True):
            assert are_deterministic() == (True, False, ":16:8")
        with deterministic_algorithms(False):
            assert are_deterministic() == (True, True, ":16:8")
        assert are_deterministic() == (True, True, ":16:8")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_deterministically(arm, device):
    config, device = tiny_config(deterministic=True), torch.device(device)
    first, second = (train(config, arm, tiny_dataset(), 7, device)[0] for _ in range(2))
    assert first["losses"].tobytes() == second["losses"].tobytes()
    assert first["val_loss"] == second["val_loss"]


@pytest.mark.parametrize(
    ("arm", "device"),
    [
        ("window", "cpu"),
        pytest.param("window", "cuda", marks=needs_cuda),
        pytest.param("baseline", "cuda", marks=needs_cuda),
        pytest.param("fused", "cuda", marks=needs_cuda),
    ],
)
def test_bfloat16_and_compile_train_every_arm(arm, device):
    device = torch.device(device)
    sizes = {"layers": 1, "max_steps": 3}
    reference, _ = train(tiny_config(**sizes), arm, tiny_dataset(), 7, device)
    config = tiny_config(dtype="bfloat16", compile="default", **sizes)
    metrics, _ = train(config, arm, tiny_dataset(), 7, device)
    release_memory(device)
    assert metrics["compile_time"] > 0
    np.testing.assert_allclose(metrics["losses"], reference["losses"], rtol=0.1)

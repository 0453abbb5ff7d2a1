"""One training: what it measures, what it leaves behind, and what two trainings share."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, fields, replace
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from analysis.metrics import NUMBERS, RECORDS, SERIES, TEXTS
from attention import choose as attention_choose
from attention import full as attention_full
from attention import masks as attention_masks
from machine.device import resolve_device
from training import config as training_config
from training import operators as training_operators
from training import train as training_train
from training import trainer as training_trainer
from training.batches import batches, learning_rate, planned_steps
from training.config import ARMS, PRESETS, ExperimentConfig, make_config
from training.memory import child_peak_memory_mb
from training.operators import attention_used
from training.train import train
from training.trainer import (
    UNTIMED_STEPS,
    Trainer,
    build_model,
    deterministic_algorithms,
    next_token_loss,
    parameter_counts,
    release_memory,
)

CPU = torch.device("cpu")
VOCABULARY = 30
PLACE = {"block", "position", "index", "order", "process", "previous_arm"}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


def tiny_config(**changes):
    sizes = {"d_model": 16, "n_heads": 2, "layers": 2, "seq_len": 24, "batch_size": 2}
    steps = {"max_steps": 6, "warmup_steps": 2, "lr": 1e-2, "window_size": 5, "dilation": 3}
    return make_config("paper", **{**sizes, **steps, **changes})


def tiny_dataset(rows=20, seq_len=24, seed=0):
    tokens = np.random.default_rng(seed).integers(VOCABULARY, size=(rows, seq_len + 1))
    tokens = tokens.astype(np.uint16)
    return SimpleNamespace(train=tokens[:-4], held_out=tokens[-4:], vocab_size=VOCABULARY)


def make_trainer(arm="window", device=CPU, **changes):
    dataset = tiny_dataset()
    return Trainer(tiny_config(**changes), arm, dataset.train, VOCABULARY, device, seed=7)


@pytest.fixture(autouse=True)
def no_child_process(monkeypatch, request):
    """The memory of a child process is tested once; elsewhere it would only cost seconds."""
    if "child" not in request.node.name:
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
    assert isinstance(model, ARMS["window"][0])


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


@pytest.mark.parametrize("device", DEVICES)
def test_warm_up_leaves_no_trace(device):
    trainer = make_trainer(device=torch.device(device))
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    buffers = {name: value.data_ptr() for name, value in trainer.model.state_dict().items()}
    random_state = torch.get_rng_state()
    device_state = torch.cuda.get_rng_state() if device == "cuda" else None
    trainer.warm_up()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
        assert value.data_ptr() == buffers[name], name
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert not trainer.optimizer.state
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.config.lr
    assert torch.equal(torch.get_rng_state(), random_state)
    if device == "cuda":
        assert torch.equal(torch.cuda.get_rng_state(), device_state)


@pytest.mark.parametrize("untimed", [1, 5])
def test_the_number_of_warm_up_steps_changes_no_loss(monkeypatch, untimed):
    reference, _ = train(tiny_config(), "window", tiny_dataset(), 7, CPU)
    warm_up = Trainer.warm_up
    monkeypatch.setattr(Trainer, "warm_up", lambda self: warm_up(self, untimed))
    other, _ = train(tiny_config(), "window", tiny_dataset(), 7, CPU)
    assert other["losses"].tobytes() == reference["losses"].tobytes()


def test_validation_is_the_mean_over_held_out_rows_without_dropout():
    trainer = make_trainer()
    held_out = tiny_dataset(rows=11).held_out[:3]  # the last batch is not full
    expected = []
    with torch.no_grad():
        trainer.model.eval()
        for row in held_out:
            tokens = torch.from_numpy(row.astype(np.int64))[None]
            log_p = trainer.model(tokens[:, :-1]).double().log_softmax(-1)
            expected.append(-log_p.gather(-1, tokens[:, 1:, None]).mean().item())
        trainer.model.train()
    assert trainer.evaluate(held_out) == pytest.approx(np.mean(expected), rel=1e-6)
    assert trainer.model.training


def test_val_batches_limits_the_held_out_rows(monkeypatch):
    trainer = make_trainer(val_batches=1)
    held_out = tiny_dataset().held_out
    assert trainer.evaluate(held_out) == make_trainer().evaluate(held_out[[0, -1]])
    assert trainer.evaluate(held_out) != make_trainer().evaluate(held_out)


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
    whole, _ = train(tiny_config(), "fused", tiny_dataset(), 7, CPU)
    Recorder(monkeypatch, fail_in=stage)
    metrics, _ = train(tiny_config(), "fused", tiny_dataset(), 7, CPU)
    assert metrics["status"] == "out_of_memory"
    assert set(metrics) == set(whole)
    assert metrics["device_after"] == {"reading": 2}
    assert metrics["wall_time"] > 0 == metrics["compile_time"] == metrics["eval_time"]
    assert (metrics["warmup_time"] > 0) == (stage != "warm_up")
    assert math.isnan(metrics["training_time"]) == (stage != "evaluate")


def test_start_and_end_are_utc_and_in_order():
    metrics, _ = train(tiny_config(), "fused", tiny_dataset(), 7, CPU)
    started, ended = (datetime.fromisoformat(metrics[f"{k}_at"]) for k in ("started", "ended"))
    assert started.utcoffset().total_seconds() == ended.utcoffset().total_seconds() == 0
    assert started <= ended <= datetime.now(ended.tzinfo)


@pytest.mark.parametrize("broken_step", [1, 4, 6])
def test_a_loss_that_is_not_finite_ends_the_training(monkeypatch, broken_step):
    step, calls = Trainer.step, []

    def break_once(self, batch, lr):
        calls.append(None)
        loss = step(self, batch, lr)
        broken = len(calls) == broken_step + training_trainer.UNTIMED_STEPS
        return loss * math.nan if broken else loss

    monkeypatch.setattr(Trainer, "step", break_once)
    metrics, model = train(tiny_config(), "window", tiny_dataset(), 7, CPU)
    assert model is None
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


@pytest.mark.parametrize(
    ("method", "after", "words"),
    [
        ("step", 0, "out of memory on cpu before the timed steps: lower --batch-size"),
        ("step", UNTIMED_STEPS + 2, "out of memory on cpu in the timed steps: lower"),
        ("evaluate", 0, "out of memory on cpu in the evaluation, after all 6 steps: lower"),
    ],
)
def test_it_is_said_where_memory_ran_out(monkeypatch, method, after, words):
    real, calls = getattr(Trainer, method), itertools.count()

    def fail(self, *arguments):
        if next(calls) == after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, method, fail)
    metrics, _ = train(tiny_config(), "window", tiny_dataset(), 7, CPU)
    assert metrics["message"].startswith(words)
    assert math.isfinite(metrics["training_time"]) == (method == "evaluate")


def test_memory_that_lay_in_pieces_is_told_with_the_remedy(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")

    monkeypatch.setattr(Trainer, "step", fail)
    told = "56.6 of the 71.4 GiB were not in use"
    monkeypatch.setattr(training_train, "fragmentation_remedy", lambda device: told)
    metrics, _ = train(tiny_config(), "window", tiny_dataset(), 7, CPU)
    assert f"--d-model or --layers; {told} (CUDA out of memory." in metrics["message"]
    monkeypatch.setattr(training_train, "fragmentation_remedy", lambda device: "")
    metrics, _ = train(tiny_config(), "window", tiny_dataset(), 7, CPU)
    assert "--d-model or --layers (CUDA out of memory." in metrics["message"]


@pytest.mark.parametrize(("mode", "released"), [("none", False), ("reduce-overhead", True)])
def test_recorded_graphs_are_released_before_the_evaluation(monkeypatch, mode, released):
    done = []
    evaluate = Trainer.evaluate

    def noted(trainer, held_out):
        done.append(("evaluated", trainer.model.layers[0].mha.qkv.grad is None))
        return evaluate(trainer, held_out)

    monkeypatch.setattr(Trainer, "evaluate", noted)
    monkeypatch.setattr(training_trainer, "release_memory", lambda device: done.append("released"))
    metrics, _ = train(tiny_config(compile=mode), "fused", tiny_dataset(), 7, CPU)
    assert metrics["status"] == "ok" and math.isfinite(metrics["val_loss"])
    assert done == ["released"] * released + [("evaluated", released)]


def test_other_errors_are_not_swallowed(monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Trainer, "step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train(tiny_config(), "window", tiny_dataset(), 7, CPU)


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


def test_the_experiment_is_not_deterministic_by_itself():
    assert not any(make_config(preset).deterministic for preset in PRESETS)
    assert {make_config(preset).equivalence_margin for preset in PRESETS} == {0.02}
    groups = {f.name: f.metadata["group"] for f in fields(ExperimentConfig) if f.metadata}
    assert groups["deterministic"] == groups["equivalence_margin"] == "experiment"


CPU_KERNEL = "aten::_scaled_dot_product_flash_attention_for_cpu"
SPLIT = "window_attention::near_and_far"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("arm", "changes", "evaluation", "kernels", "operators"),
    [
        ("fused", {}, "fused", None, [CPU_KERNEL]),
        ("baseline", {}, "dense", None, []),
        ("published", {}, "published", None, []),
        ("window", {}, "masked", None, [CPU_KERNEL]),
        ("window", {"window_attention": "dense"}, "dense", None, []),
        ("window", {"window_attention": "masked"}, "masked", None, [CPU_KERNEL]),
        ("window", {"window_attention": "split"}, "split", ["cpu", "cpu"], [SPLIT]),
        ("window", {"seq_len": 512}, "split", ["cpu", "cpu"], [SPLIT]),
        ("window", {"seq_len": 512, "dilation": 0}, "split", ["cpu", "cpu"], [SPLIT]),
        ("window", {"seq_len": 512, "dilation": 1}, "masked", None, [CPU_KERNEL]),
    ],
)
def test_the_attention_that_an_arm_runs_is_named(
    dtype, arm, changes, evaluation, kernels, operators
):
    used = attention_used(tiny_config(dtype=dtype, **changes), arm, CPU)
    assert used == {"evaluation": evaluation, "kernels": kernels, "operators": operators}
    assert json.loads(json.dumps(used, allow_nan=False)) == used


def test_the_attention_of_layers_that_differ_is_named_together():
    """At 512 tokens the first layer is worth splitting, the second is full attention."""
    config = tiny_config(seq_len=512, window_size=(32, 5), dilation=(4, 1), sink_tokens=3)
    used = attention_used(config, "window", CPU)
    assert used["evaluation"] == "split and masked" and used["kernels"] == ["cpu", "cpu"]
    assert used["operators"] == [SPLIT, CPU_KERNEL]
    same = attention_used(replace(config, window_size=(32, 32), dilation=(4, 4)), "window", CPU)
    assert same == attention_used(replace(config, window_size=32, dilation=4), "window", CPU)


def test_attention_is_tried_as_the_model_calls_it(monkeypatch):
    seen = []

    def spy(q, k, v):
        graph = torch.is_grad_enabled()
        seen.extend((x.shape, x.dtype, x.stride(), x.requires_grad, graph) for x in (q, k, v))
        return q

    monkeypatch.setitem(attention_full.FULL_ATTENTION, "fused", spy)
    config = tiny_config(dtype="bfloat16")
    with torch.no_grad():
        attention_used(config, "fused", CPU)
    trainer = Trainer(config, "fused", tiny_dataset().train, VOCABULARY, CPU, seed=7)
    trainer.step(tiny_dataset().train[:2], 1e-3)
    assert len(seen) == 3 + 2 * 3  # one call, then one in each of two layers
    assert seen[:3] == seen[3:6] == seen[6:]
    assert seen[0] == (torch.Size([2, 24, 2, 8]), torch.bfloat16, (1152, 48, 8, 1), True, True)


def test_masked_is_named_where_auto_would_split_but_nothing_works(monkeypatch):
    for module in (training_operators, attention_choose):
        monkeypatch.setattr(module, "split_kernels", lambda *_: None)
    used = attention_used(tiny_config(seq_len=512), "window", CPU)
    assert used == {"evaluation": "masked", "kernels": None, "operators": [CPU_KERNEL]}
    with pytest.raises(ValueError, match="no kernel for"):
        attention_used(tiny_config(window_attention="split"), "window", CPU)


def test_attention_that_does_not_fit_names_no_operator(monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setitem(attention_full.FULL_ATTENTION, "fused", fail)
    error = torch.OutOfMemoryError("CUDA out of memory")
    used = attention_used(tiny_config(), "fused", CPU)
    assert used == {"evaluation": "fused", "kernels": None, "operators": []}
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        attention_used(tiny_config(), "fused", CPU)


@pytest.mark.parametrize("device", DEVICES)
def test_looking_at_attention_and_parameters_leaves_no_trace(device):
    device = torch.device(device)

    def random_states():
        on_gpus = torch.cuda.get_rng_state_all() if device.type == "cuda" else []
        return [torch.get_rng_state(), *on_gpus]

    before = random_states()
    for arm in ARMS:
        attention_used(tiny_config(), arm, device)
    parameter_counts(tiny_config(), VOCABULARY)
    assert all(torch.equal(a, b) for a, b in zip(before, random_states(), strict=True))
    assert attention_masks._mask_cache.cache_info().currsize == 0


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_attention_has_a_fused_kernel(dtype):
    device = torch.device("cuda", 0)
    config = tiny_config(dtype=dtype, window_attention="split", seq_len=256)
    assert attention_used(config, "fused", device)["operators"]
    assert attention_used(config, "window", device)["operators"] == [SPLIT]


def test_the_window_arm_gets_its_layers_patterns_also_in_a_child_process():
    config = tiny_config(window_size=5, dilation=[3, 1], sink_tokens=2)
    model = build_model(config, "window", VOCABULARY, CPU, 0)
    assert [(b.mha.window_size, b.mha.dilation) for b in model.layers] == [(5, 3), (5, 1)]
    assert all(b.mha.sink_tokens == 2 for b in model.layers)
    job = json.loads(json.dumps({"config": asdict(config)}))
    assert training_config.config_of(job["config"]) == config
    assert child_peak_memory_mb(config, "window", VOCABULARY, 0) >= 0


def test_parameters_are_counted_for_the_chosen_arms():
    config = tiny_config(arms=("window", "published"))
    expected = {
        arm: sum(p.numel() for p in build_model(config, arm, 30, CPU, 0).parameters())
        for arm in config.arms
    }
    assert parameter_counts(config, 30) == expected
    assert list(expected) == ["window", "published"]


def test_schedule_rises_linearly_then_falls_as_a_cosine_to_a_tenth():
    rates = [learning_rate(step, 1000, 3e-4, 500) for step in range(1001)]
    assert rates[0] == pytest.approx(3e-4 / 500)
    assert rates[499] == rates[500] == pytest.approx(3e-4)
    assert rates[750] == pytest.approx(3e-4 * 0.55)
    assert rates[1000] == pytest.approx(3e-5)
    assert np.all(np.diff(rates[:500]) > 0) and np.all(np.diff(rates[500:]) < 0)
    assert learning_rate(0, 10, 1.0, 0) == 1.0


def test_one_pass_uses_every_row_once_and_the_next_pass_another_order():
    rows = np.arange(9)[:, None]

    def draw(seed):
        return [batch.ravel().tolist() for batch in batches(rows, 2, 8, seed)]

    first, second = np.ravel(draw(3)[:4]).tolist(), np.ravel(draw(3)[4:]).tolist()
    assert len(set(first)) == len(set(second)) == 8
    assert first != second
    assert draw(3) == draw(3) != draw(4)


def test_planned_steps_are_one_pass_unless_told():
    assert planned_steps(tiny_config(max_steps=0), 21) == 10
    assert planned_steps(tiny_config(max_steps=50), 21) == 50


def test_child_memory_grows_with_the_model():
    small = child_peak_memory_mb(tiny_config(), "window", 30, seed=1)
    config = tiny_config(d_model=256)
    large = child_peak_memory_mb(config, "window", 20_000, seed=1)
    weights = sum(p.numel() for p in build_model(config, "window", 20_000, CPU, 0).parameters())
    # weights, gradients and two moments of AdamW, each 4 bytes
    assert large > 4 * 4 * weights / 2**20 > small > 0


def test_what_a_child_measures_is_no_import():
    """The compiler alone, which the first optimizer loads, would be a hundred megabytes."""
    code = f"""
import sys
from training.memory import memory_job
work = memory_job({asdict(tiny_config())!r}, "window", {VOCABULARY}, 0)
before = set(sys.modules)
work()
print(len(before), *sorted(set(sys.modules) - before))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    count, *loaded = done.stdout.split()
    assert int(count) > 1000 and len(loaded) < 5, loaded


def test_child_that_fails_says_why():
    config = tiny_config()
    with pytest.raises(RuntimeError, match=r"measures memory failed.*KeyError: 'nonsense'"):
        child_peak_memory_mb(config, "nonsense", 30, seed=1)


def test_release_memory_empties_the_caches():
    make_trainer().warm_up()
    release_memory(CPU)
    assert attention_masks.clear_mask_cache.__globals__["_mask_cache"].cache_info().currsize == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arm", ["baseline", "window", "fused"])
def test_bfloat16_and_compile_train_every_arm(device, arm):
    device = torch.device(device)
    reference, _ = train(tiny_config(), arm, tiny_dataset(), 7, device)
    config = tiny_config(dtype="bfloat16", compile="default")
    metrics, _ = train(config, arm, tiny_dataset(), 7, device)
    release_memory(device)
    assert metrics["compile_time"] > 0
    np.testing.assert_allclose(metrics["losses"], reference["losses"], rtol=0.1)


@needs_cuda
def test_cuda_peak_memory_is_this_trainings_own():
    device = torch.device("cuda")
    dataset = tiny_dataset()
    release_memory(device)
    peaks = []
    for _ in range(2):
        metrics, model = train(tiny_config(), "window", dataset, 7, device)
        peaks.append(metrics["peak_memory_mb"])
        del model
        release_memory(device)
    assert peaks[0] == peaks[1] > 0
    assert metrics["peak_reserved_mb"] >= peaks[1]


@needs_cuda
@pytest.mark.parametrize("arm", ("baseline", "window", "fused"))
def test_cuda_graphs_train_the_same_in_the_same_memory(arm):
    """Their replays allocate nothing: what the steps take must be seen when they are recorded."""
    sizes = {"seq_len": 1100, "d_model": 128, "batch_size": 4, "window_attention": "split"}
    dataset = tiny_dataset(12, 1100)
    device = torch.device("cuda")
    found, left = [], []
    for mode in ("default", "reduce-overhead", "reduce-overhead"):
        config = tiny_config(dtype="bfloat16", compile=mode, **sizes)
        metrics, model = train(config, arm, dataset, 7, device)
        del model
        release_memory(device)
        found.append(metrics)
        left.append(torch.cuda.memory_allocated())
    calls, *graphs = found
    for metrics in graphs:
        np.testing.assert_allclose(metrics["losses"], calls["losses"], rtol=0.1)
        assert 0.7 < metrics["peak_memory_mb"] / calls["peak_memory_mb"] < 1.5
    # what stays (a workspace of cuBLAS is 32 MiB on a Hopper GPU) is not more after each training
    assert left[2] - left[1] < 2**20


@needs_cuda
def test_cuda_evaluation_has_the_memory_of_the_graphs(monkeypatch):
    """Dense attention's steps keep their scores in the graphs, most of the peak."""
    taken, evaluate = [], Trainer.evaluate

    def noted(trainer, held_out):
        taken.append(torch.cuda.memory_allocated())
        return evaluate(trainer, held_out)

    monkeypatch.setattr(Trainer, "evaluate", noted)
    sizes = {"seq_len": 2048, "d_model": 128, "n_heads": 8, "batch_size": 4}
    config = tiny_config(dtype="bfloat16", compile="reduce-overhead", **sizes)
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated()
    metrics, model = train(config, "baseline", tiny_dataset(12, 2048), 7, device)
    assert metrics["status"] == "ok" and math.isfinite(metrics["val_loss"])
    assert taken[0] - before < 0.3 * metrics["peak_memory_mb"] * 2**20
    del model
    release_memory(device)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_documented_sizes(preset):
    config = make_config(preset)
    expected = {"paper": (256, "float32", "none"), "long": (4096, "bfloat16", "reduce-overhead")}
    expected["laptop"] = (1024, "float32", "none")
    assert (config.seq_len, config.dtype, config.compile) == expected[preset]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_heads": 3}, "--d-model 16 is not divisible by --n-heads 3"),
        ({"positions": "none"}, "--positions 'none': choose one of learned, rotary"),
        ({"positions": "rotary", "d_model": 14}, "an even --d-model / --n-heads, got 14 / 2 = 7"),
        ({"window_size": (5, 6, 7)}, "--window-size has 3 values for 2 layers: give one, or one"),
        ({"dilation": (1,)}, "--dilation has 1 value for 2 layers: give one, or one for each"),
        ({"dilation": ()}, "--dilation has 0 values for 2 layers"),
        ({"dilation": (3, -1)}, "--dilation must be at least 0, got -1"),
        ({"window_size": [5, 2.5]}, "--window-size must be a whole number, got 2.5"),
        ({"window_size": "5"}, "--window-size must be a whole number, got '5'"),
        ({"layers": (1, 2)}, r"--layers must be a whole number, got \(1, 2\)"),
        ({"sink_tokens": -1}, "--sink-tokens must be at least 0, got -1"),
        ({"sink_tokens": (1, 1)}, r"--sink-tokens must be a whole number, got \(1, 1\)"),
        ({"window_size": 0}, "--window-size must be at least 1, got 0"),
        ({"dilation": -1}, "--dilation must be at least 0, got -1"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"lr": 0.0}, "--lr must be a positive number, got 0.0"),
        ({"lr": math.nan}, "--lr must be a positive number, got nan"),
        ({"runs": 0}, "--runs must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"runs": 2.5}, "--runs must be a whole number, got 2.5"),
        ({"max_steps": 10**20}, "--max-steps must be at most 2,147,483,647"),
        ({"lr": "x"}, "--lr must be a positive number, got x"),
        ({"lr": True}, "--lr must be a positive number, got True"),
        ({"equivalence_margin": 0.0}, "--equivalence-margin must be a positive number, got 0.0"),
        ({"equivalence_margin": -1.0}, "--equivalence-margin must be a positive number, got -1.0"),
        ({"equivalence_margin": math.nan}, "--equivalence-margin must be .* number, got nan"),
        ({"equivalence_margin": math.inf}, "--equivalence-margin must be .* number, got inf"),
        ({"deterministic": "yes"}, "--deterministic must be True or False, got 'yes'"),
        ({"window_attention": "fast"}, "--window-attention 'fast': choose one of auto"),
        ({"dtype": "float16"}, "--dtype 'float16': choose one of float32, bfloat16"),
        ({"compile": "fast"}, "--compile 'fast': choose one of none"),
        ({"arms": ("window", "sparse")}, "--arms sparse: choose from baseline, window"),
        ({"arms": ("window", "window")}, "--arms names an arm twice: window window"),
    ],
)
def test_a_configuration_that_cannot_run_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "--device 'gpu': choose auto, cpu, cuda"),
        ("meta", "--device meta: only cpu and cuda"),
        ("cuda:99", r"--device cuda:99: this machine has \d+ such GPUs"),
    ],
)
def test_a_device_that_is_not_there_is_named(name, words):
    with pytest.raises(ValueError, match=words):
        resolve_device(name)


def test_loss_is_in_nats():
    logits = torch.zeros(1, 4, 8)
    targets = torch.zeros(1, 4, dtype=torch.int64)
    assert next_token_loss(lambda _: logits, None, targets).item() == pytest.approx(math.log(8))

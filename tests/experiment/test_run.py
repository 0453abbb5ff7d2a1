"""The experiment as a call: what comes back, what is saved, and how failures are told."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_experiment import (
    BLOCK,
    break_training,
    diverge,
    run_main,
    run_out_of_memory,
    tiny_config,
)

from analysis.metrics import load_experiment, load_metrics
from analysis.values import in_order
from attention.pattern import Pattern, window_mask
from experiment.run import run_experiment
from figures.data import describe_setting
from training.batches import validation_rows
from training.tokens import load_dataset
from training.trainer import Trainer
from training.weights import load_model, load_window_model, read_about


def test_every_training_is_what_the_plan_says(workplace):
    metrics, metadata = run_experiment(tiny_config("--runs 2"), argv=["x"])
    assert metadata["status"] == "complete" and metadata["processes"][0]["argv"] == ["x"]
    used = metadata["processes"][0]["attention"]
    assert set(used) == {"baseline", "window", "fused"}
    densities = {arm: used[arm]["density"] for arm in used}
    assert densities == {"baseline": 1, "window": metadata["pattern"]["density"], "fused": 1}
    assert metadata["data"]["val_rows"] == 3 and metadata["data"]["train_rows"] == 57
    for arm, trainings in metrics.items():
        assert [training["status"] for training in trainings] == ["ok", "ok"], arm
        assert [training["seed"] for training in trainings] == metadata["plan"]["seeds"]
        for training in trainings:
            order = training["order"].split(",")
            assert order == metadata["plan"]["orders"][training["block"]]
            assert order[training["position"]] == arm
    assert [training["index"] for _, training in in_order(metrics)] == list(range(6))
    saved = load_experiment("output/experiment_results.npz")
    assert saved[1]["plan"] == metadata["plan"]


def test_the_notebook_and_the_command_line_are_the_same_experiment(workplace):
    assert run_main(BLOCK) == 0
    trained = load_metrics("output/experiment_results.npz")
    device = "cpu" if torch.cuda.is_available() else "auto"
    metrics, _ = run_experiment(replace(tiny_config(), device=device))
    assert metrics["fused"][0]["process"] == trained["fused"][0]["process"]


def test_the_first_blocks_models_of_all_arms_are_kept_with_what_rebuilds_them(workplace):
    arms = ("baseline", "window", "fused", "w5-d0-f1-e2")
    options = "--runs 2 --layers 2 --positions rotary --arms"
    config = tiny_config(f"{options} {' '.join(arms)}")
    metrics, metadata = run_experiment(config)
    kept = sorted(path.name for path in Path("output/weights").iterdir())
    assert kept == sorted(f"{arm}.safetensors" for arm in arms)
    dataset = load_dataset("training_data.npy", 24, 2)
    rows = validation_rows(config, len(dataset.held_out))
    for arm in arms:
        about = read_about(f"output/weights/{arm}.safetensors")
        assert about["config"] == metadata["config"] and about["seed"] == metrics[arm][0]["seed"]
        model = load_model(f"output/weights/{arm}.safetensors")
        trainer = Trainer(config, arm, dataset.train, dataset.vocab_size, torch.device("cpu"), 0)
        for loaded, trained in zip(model.layers, trainer.model.layers, strict=True):
            assert loaded.mha.pattern() == trained.mha.pattern()
        trainer.model.load_state_dict(model.state_dict())
        loss = trainer.evaluate(dataset.held_out[rows])
        assert loss == pytest.approx(metrics[arm][0]["val_loss"], rel=1e-6)
    published = load_window_model("output/window_model_weights.pt").state_dict()
    for name, value in load_model("output/weights/window.safetensors").state_dict().items():
        assert torch.equal(value, published[name])


def test_an_experiment_with_every_option_of_the_pattern(workplace, capsys):
    options = "--runs 1 --layers 2 --dilation 3,1 --sink-tokens 2 --positions rotary"
    assert run_main(options) == 0
    printed = capsys.readouterr()
    for text in ("window_size 5, dilation 3,1, sink_tokens 2", "rotary positions"):
        assert text in printed.out and text in printed.err
    _, metadata = load_experiment("output/experiment_results.npz")
    assert metadata["config"]["dilation"] == [3, 1] and metadata["config"]["window_size"] == 5
    pairs = int(window_mask(24, 5, 3, sink_tokens=2).sum()), 24 * 25 // 2
    assert metadata["pattern"]["density"] == pytest.approx(sum(pairs) / 2 / pairs[1])
    setting = describe_setting(metadata).replace("\N{NO-BREAK SPACE}", " ")
    assert "window_size 5, dilation 3,1, sink_tokens 2" in setting
    model = load_window_model("output/window_model_weights.pt")
    assert model.position_embeddings is None
    patterns = [block.mha.pattern() for block in model.layers]
    assert patterns == [Pattern(5, 3, 2), Pattern(5, 1, 2)]
    assert run_main(options) == 0  # the stored plan is recognised
    assert "complete: 3 of 3 trainings done" in capsys.readouterr().err


def test_heads_of_different_kinds_are_trained_recorded_and_loaded(workplace, capsys):
    options = "--full-heads 1,0 --stagger --dilation 3 --positions rotary --nope --runs 1"
    assert run_main(f"{options} --layers 2 --arms window w5-d3-s-f1 fused") == 0
    assert "full_heads 1,0, staggered, full heads without positions" in capsys.readouterr().out
    metrics, metadata = load_experiment("output/experiment_results.npz")
    assert [len(trainings) for trainings in metrics.values()] == [1, 1, 1]
    config = metadata["config"]
    assert (config["full_heads"], config["stagger"], config["nope"]) == ([1, 0], True, True)
    mha = [block.mha for block in load_window_model("output/window_model_weights.pt").layers]
    assert [one.pattern().full_heads for one in mha] == [one.without_positions for one in mha]
    assert mha[0].pattern() == Pattern(5, 3, 0, 1, True)


def test_determinism_is_on_for_the_whole_experiment_and_recorded(workplace):
    _, metadata = run_experiment(tiny_config(f"{BLOCK} --deterministic"))
    assert metadata["config"]["deterministic"]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (diverge, "block 1/2 window: diverged: the loss became nan at step 1"),
        (
            run_out_of_memory,
            "block 1/2 window: out of memory: out of memory on cpu: lower --batch-size",
        ),
    ],
)
def test_a_failed_training_is_named_and_the_experiment_goes_on(
    workplace, monkeypatch, capsys, fail, words
):
    break_training(monkeypatch, "window", fail)
    metrics, _ = run_experiment(tiny_config("--runs 2 --arms window fused"))
    assert words in capsys.readouterr().err
    assert [training["status"] != "ok" for training in metrics["window"]] == [True, True]
    assert [training["status"] for training in metrics["fused"]] == ["ok", "ok"]
    assert not Path("output/window_model_weights.pt").exists()
    assert os.listdir("output/weights") == ["fused.safetensors"]


def test_accumulated_gradients_give_the_losses_of_the_whole_batch(workplace, monkeypatch):
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    config = tiny_config(f"{BLOCK} --batch-size 4")
    whole, _ = run_experiment(config)
    other, _ = run_experiment(replace(config, gradient_accumulation=4, output_dir="parts"))
    for arm, (training,) in whole.items():
        assert other[arm][0]["losses"] == pytest.approx(training["losses"], rel=2e-6)
        assert other[arm][0]["val_loss"] == pytest.approx(training["val_loss"], rel=2e-6)

"""What is told before anything is trained, and the dry run, which trains and writes nothing."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import flat
from small_experiment import BLOCK, contents, run_main, stop_at, tiny_config

from experiment.estimate import evaluated_batches, say_what_is_short
from experiment.plan import make_plan
from experiment.run import dry_run
from training.config import make_config
from training.tokens import load_dataset
from training.trainer import Trainer


def test_a_dry_run_prints_the_plan_and_writes_nothing(workplace, capsys):
    seconds = dry_run(tiny_config("--runs 2"), load_dataset("training_data.npy", 24, 2))
    assert seconds > 2 * 3 * 4  # six trainings, each with a process that measures memory
    printed = capsys.readouterr()
    plan = make_plan(make_config(runs=2))
    lines = [
        f"block {block + 1}: {', '.join(plan['orders'][block])} (seed {plan['seeds'][block]})"
        for block in range(2)
    ]
    assert printed.out.splitlines() == lines
    for words in ("2 blocks of 3 trainings on", "4 steps", "roughly", "(6 of 6)"):
        assert words in printed.err
    assert contents(workplace) == ["training_data.npy"]


def test_an_estimate_says_how_busy_the_machine_was(workplace, monkeypatch, capsys):
    states = [{"ran_s": 1.0, "waited_s": 0.0}, {"ran_s": 2.0, "waited_s": 3.0}]
    monkeypatch.setattr("experiment.estimate.device_state", lambda _: states.pop(0))
    dry_run(tiny_config("--runs 1"), load_dataset("training_data.npy", 24, 2))
    said = flat(capsys.readouterr().err)
    assert "busy as it is now; threads waited for a core that others had (75% of the time)" in said


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("", 0, "resuming: 1 of 2 trainings done"),
        ("--lr 1e-3", 2, "config.lr: 0.01 before, 0.001 now"),
        ("--lr 1e-3 --allow-mixed", 0, "--allow-mixed goes on although this differs"),
        ("--runs 2 --allow-mixed", 2, "config.runs: 1 before, 2 now"),
        ("--lr 1e-3 --restart", 0, "output would be renamed, to start anew\n"),
    ],
)
def test_a_dry_run_says_what_it_would_do_with_what_is_there(
    workplace, monkeypatch, capsys, options, code, words
):
    stop_at(monkeypatch, 2)
    assert run_main(BLOCK) == 130
    before = contents(workplace), contents("output")
    capsys.readouterr()
    assert run_main(f"{BLOCK} {options} --dry-run") == code
    said = capsys.readouterr().err
    assert words in said
    assert ("(1 of 2)" in said) == (code == 0 and "--restart" not in options)
    assert ("(2 of 2)" in said) == ("--restart" in options)
    assert (contents(workplace), contents("output")) == before


@pytest.mark.parametrize(
    ("changes", "steps", "words"),
    [
        ({}, 6103, "training_data.npy is a training of 100.0M tokens, and of fewer than 100M"),
        ({}, 61, "a training of 1.0M tokens, .* prepare_data.py --corpus site-packages"),
        ({}, 6104, None),
        ({"max_steps": 61}, 61, None),  # chosen
        ({"preset": "paper"}, 61, None),
        ({"device": "cpu"}, 6104, "made for CUDA"),
    ],
)
def test_data_too_small_for_the_long_experiment_are_told_with_the_remedy(
    changes, steps, words, capsys
):
    say_what_is_short(replace(make_config("long"), **changes), steps)
    said = flat(capsys.readouterr().err)
    assert re.search(words, said) if words else not said


@pytest.mark.parametrize("changes", [{"reach_passages": 1}, {"seq_len": 191}])
def test_a_probe_that_will_not_take_place_is_told_and_not_in_the_estimate(changes, capsys):
    config = replace(make_config("laptop"), **changes)
    say_what_is_short(config, 400)
    assert "no probe of how far the models copy from" in flat(capsys.readouterr().err)
    data = {"val_rows": 40, "val_rows_used": 8}
    assert evaluated_batches(replace(config, eval_every=0), 400, data) == 8 / config.batch_size


def test_curve_and_probe_are_in_the_estimate():
    data = {"val_rows": 40, "val_rows_used": 9}
    probed = make_config("long", batch_size=4)
    config = replace(probed, reach_passages=0)
    assert evaluated_batches(config, 501, data) == (9 + 3 * 40) / 4  # after 250, 500, 501
    assert evaluated_batches(replace(config, eval_every=0), 501, data) == 9 / 4
    # a control and 128, 256, 512, 1024, 2048, 4032 tokens
    assert evaluated_batches(probed, 501, data) == (9 + 3 * 40 + 200 * 7) / 4


def test_a_dry_run_takes_the_device_that_a_notebook_leaves_open(workplace, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = replace(tiny_config(), device="auto")
    assert dry_run(config, load_dataset("training_data.npy", 24, 2)) > 0


def test_a_dry_run_of_a_restart_does_not_ask_for_a_whole_plan(workplace, capsys):
    Path("output").mkdir()
    Path("output/plan.json").write_text("{")
    assert run_main(f"{BLOCK} --dry-run") == 2
    assert run_main(f"{BLOCK} --dry-run --restart") == 0
    assert Path("output/plan.json").read_text() == "{"


def test_a_dry_run_of_what_is_complete_estimates_nothing(workplace, capsys):
    assert run_main(BLOCK) == 0
    capsys.readouterr()
    assert run_main(f"{BLOCK} --dry-run") == 0
    said = capsys.readouterr().err
    assert "complete: 2 of 2 trainings done" in said and "roughly" not in said


def test_an_arm_too_big_to_try_is_told_before_its_trainings(workplace, monkeypatch, capsys):
    step = Trainer.step

    def try_step(trainer, *arguments):
        if trainer.arm == "fused":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
        return step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "step", try_step)
    assert run_main("--dry-run --runs 2") == 0
    said = capsys.readouterr().err
    assert "fused ran out of memory when tried without torch.compile: it may fail" in said
    assert "window ran" not in said and "baseline ran" not in said

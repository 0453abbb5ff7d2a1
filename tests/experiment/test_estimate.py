"""What is told before anything is trained, and the dry run, which trains and writes nothing."""

import pytest
import torch
from small_experiment import BLOCK, contents, run_main, stop_at, tiny_config

from experiment.estimate import dry_run
from experiment.plan import make_plan
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
    for words in ("2 blocks x 3 arms (baseline, window, fused)", "roughly", "in all", "4 steps"):
        assert words in printed.err
    assert contents(workplace) == ["training_data.npy"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "this command would go on after 1"),
        ("--lr 1e-3", "refuse, for this differs:\n    config.lr: 0.01 before, 0.001 now"),
        ("--lr 1e-3 --allow-mixed", "go on after 1 and mark the results, for this differs"),
        ("--runs 2 --allow-mixed", "this command would refuse"),
        ("--lr 1e-3 --restart", "rename the folder and start anew\n"),
    ],
)
def test_a_dry_run_says_what_it_would_do_with_what_is_there(
    workplace, monkeypatch, capsys, options, words
):
    stop_at(monkeypatch, 2)
    assert run_main(BLOCK) == 130
    before = contents(workplace), contents("output")
    capsys.readouterr()
    assert run_main(f"{BLOCK} {options} --dry-run") == 0
    said = capsys.readouterr().err
    assert words in said and "1 trainings done" in said
    assert ("for the 1 that are left" in said) == ("go on" in words)
    assert (" in all" in said) == ("--restart" in options)
    assert (contents(workplace), contents("output")) == before


def test_a_dry_run_of_what_is_complete_estimates_nothing(workplace, capsys):
    assert run_main(BLOCK) == 0
    capsys.readouterr()
    assert run_main(f"{BLOCK} --dry-run") == 0
    said = capsys.readouterr().err
    assert "this command would report it again" in said and "roughly" not in said


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

"""Stops and going on: nothing finished is lost, and the end is the same bit by bit."""

import errno
import itertools
import json
import os
import signal
from pathlib import Path

import pytest
from small_experiment import (
    BLOCK,
    break_training,
    contents,
    diverge,
    run_main,
    same_losses,
    stop_at,
)

from analysis.metrics import load_experiment, load_metrics
from analysis.values import in_order
from compare_models import GOES_ON
from experiment import run as experiment_run
from experiment import stored as experiment_stored

RESULTS = Path("output/experiment_results.npz")
TRAINING = Path("output/runs/000_fused.npz")


def test_going_on_counts_no_tokens_again(workplace, monkeypatch):
    started = stop_at(monkeypatch, 2)
    assert run_main(BLOCK) == 130 and len(started) == 2
    _, before = load_experiment(RESULTS)
    monkeypatch.delattr(experiment_stored, "losses_of_counts")
    assert run_main(BLOCK) == 0
    _, metadata = load_experiment(RESULTS)
    assert metadata["data"] == before["data"]
    # the tokens are drawn at random: one says nothing of the next, and the counts overfit little
    assert 3.5 < metadata["data"]["unigram_loss"] < metadata["data"]["bigram_loss"] + 0.2 < 4.5


# stops
@pytest.mark.parametrize(
    ("signum", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_stop_keeps_what_was_finished_and_the_same_command_goes_on(
    workplace, monkeypatch, capsys, signum, code, word
):
    options = "--runs 2 --arms window fused"
    assert run_main(f"{options} --output-dir undisturbed") == 0
    started = stop_at(monkeypatch, 4, signum)
    assert run_main(options) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"{word}: {GOES_ON}"
    metrics, metadata = load_experiment(RESULTS)
    assert len(in_order(metrics)) == 3 and metadata["status"] == "partial"
    assert run_main(options) == 0
    printed = capsys.readouterr()
    assert "resuming: 3 of 4 trainings done" in printed.err and len(started) == 4 + 1
    metrics, metadata = load_experiment(RESULTS)
    expected, about = load_experiment("undisturbed/experiment_results.npz")
    assert same_losses(expected, metrics)
    assert metadata["plan"] == about["plan"] and metadata["status"] == "complete"
    assert len(metadata["processes"]) == 2 and metadata["split_blocks"] == [1]
    assert about["split_blocks"] == [] and len(about["processes"]) == 1
    assert not [name for name in contents("output") if name.startswith(".")]


def test_a_write_that_fails_is_named_and_nothing_is_lost(workplace, monkeypatch, capsys):
    """Each write of the experiment fails in turn; going on afterwards completes it."""
    assert run_main(f"{BLOCK} --output-dir undisturbed") == 0
    expected = load_metrics("undisturbed/experiment_results.npz")
    real, count, failing = os.fsync, itertools.count(), None

    def fail_once(*arguments):
        if next(count) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(os, "fsync", fail_once)
    for at in itertools.count():
        options = f"{BLOCK} --output-dir case{at}"
        count, failing = itertools.count(), at
        if run_main(options) == 0:
            break
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"error: case{at}") and "free some space" in error
        failing = None
        assert run_main(options) == 0
        assert same_losses(expected, load_metrics(f"case{at}/experiment_results.npz"))
        assert not [name for name in contents(f"case{at}") if name.startswith(".")]
    assert at > 8


# the same command again
def test_a_complete_experiment_trains_nothing_and_reports_again(workplace, monkeypatch, capsys):
    assert run_main(BLOCK) == 0
    first = capsys.readouterr().out
    Path("output/improved_comparison_results.txt").unlink()
    Path("output/experiment_results.json").unlink()
    monkeypatch.setattr(experiment_run, "train", None)
    monkeypatch.setattr(experiment_run, "estimate", None)
    assert run_main(BLOCK) == 0
    printed = capsys.readouterr()
    assert printed.out == first and "complete: 2 of 2 trainings done" in printed.err
    assert load_experiment("output/experiment_results.json")[1]["status"] == "complete"
    assert Path("output/improved_comparison_results.txt").exists()


def test_a_failed_training_is_an_outcome_and_is_not_tried_again(workplace, monkeypatch):
    break_training(monkeypatch, "window", diverge)
    assert run_main(BLOCK) == 3
    monkeypatch.setattr(experiment_run, "train", None)
    assert run_main(BLOCK) == 3


def test_restart_renames_the_folder_and_gives_the_same_losses(workplace, monkeypatch, capsys):
    assert run_main(BLOCK) == 0
    started = stop_at(monkeypatch, 2)
    assert run_main(f"{BLOCK} --restart") == 130
    printed = capsys.readouterr().err
    (earlier,) = Path().glob("output_earlier_*")
    assert f"the old results are now in {earlier}" in printed
    assert run_main(BLOCK) == 0 and len(started) == 3
    old, about_old = load_experiment(earlier / "experiment_results.npz")
    new, about_new = load_experiment(RESULTS)
    assert about_old["experiment_id"] != about_new["experiment_id"]
    assert same_losses(old, new) and len(contents(earlier / "runs")) == 2


# what differs
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--lr 1e-3", "config.lr: 0.01 before, 0.001 now"),
        ("--dilation 2", "config.dilation: 3 before, 2 now"),
        ("--runs 2", "config.runs: 1 before, 2 now"),
        ("--equivalence-margin 0.5", "config.equivalence_margin: 0.02 before, 0.5 now"),
        ("--seed 3 --allow-mixed", "config.seed: 0 before, 3 now"),
    ],
)
def test_another_configuration_is_listed_and_refused(workplace, capsys, options, words):
    assert run_main(BLOCK) == 0
    before = RESULTS.read_bytes()
    capsys.readouterr()
    assert run_main(f"{BLOCK} {options}") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: output holds another experiment")
    for expected in (words, "2 of 2 trainings done", "--restart", "--output-dir"):
        assert expected in printed.err
    mixable = options in ("--lr 1e-3", "--dilation 2")  # the plan does not rest on it
    assert ("--allow-mixed" in printed.err) == mixable
    assert RESULTS.read_bytes() == before


def test_allow_mixed_goes_on_and_marks_the_results(workplace, monkeypatch, capsys):
    stop_at(monkeypatch, 2)
    assert run_main(BLOCK) == 130
    assert run_main(f"{BLOCK} --lr 1e-3 --allow-mixed") == 0
    printed = capsys.readouterr()
    line = "config.lr: 0.01 before, 0.001 now"
    assert line in printed.err and "MIXED" in printed.out
    metadata = load_experiment(RESULTS)[1]
    assert metadata["mixed"] == [line] and line in " ".join(metadata["warnings"])
    assert [process["differs"] for process in metadata["processes"]] == [[], [line]]


def test_allow_mixed_marks_nothing_where_nothing_is_trained(workplace):
    assert run_main(BLOCK) == 0
    assert run_main(f"{BLOCK} --lr 1e-3 --allow-mixed") == 0
    assert load_experiment(RESULTS)[1]["mixed"] == []


# damage
def test_a_damaged_training_is_set_aside_and_repeated_in_its_place_in_time(workplace):
    assert run_main("--runs 2 --arms window fused") == 0
    expected = load_metrics(RESULTS)
    TRAINING.write_bytes(TRAINING.read_bytes()[:-100])
    for _ in range(2):  # the second start finds nothing damaged any more
        assert run_main("--runs 2 --arms window fused") == 0
        metrics, metadata = load_experiment(RESULTS)
        assert metadata["set_aside"] == contents("output/set_aside") == ["000_fused_1.npz"]
    assert same_losses(expected, metrics)
    assert metrics["fused"][0]["index"] == 4  # after those of 0 to 3
    assert len({training["index"] for _, training in in_order(metrics)}) == 4


def test_a_refused_start_sets_nothing_aside(workplace, capsys):
    assert run_main(BLOCK) == 0
    TRAINING.write_bytes(b"")
    assert run_main(f"{BLOCK} --lr 1e-3") == 2
    assert TRAINING.read_bytes() == b"" and not Path("output/set_aside").exists()
    assert run_main(BLOCK) == 0
    printed = capsys.readouterr().err
    assert str(TRAINING) in printed and "its training will be repeated" in printed


def test_results_without_a_plan_are_not_overwritten(workplace, capsys):
    RESULTS.mkdir(parents=True)  # even a folder in a result's place
    Path(RESULTS, "file").write_text("precious")
    assert run_main(BLOCK) == 2
    assert "holds results without a plan.json" in capsys.readouterr().err
    assert Path(RESULTS, "file").read_text() == "precious"
    assert run_main(f"{BLOCK} --restart") == 0
    (earlier,) = Path().glob("output_earlier_*")
    assert Path(earlier, RESULTS.name, "file").read_text() == "precious"


@pytest.mark.parametrize("lost", ["experiment_id", "seeds"])
def test_a_plan_that_lacks_something_is_refused_before_anything_is_moved(workplace, capsys, lost):
    assert run_main(BLOCK) == 0
    plan = json.loads(Path("output/plan.json").read_text())
    del (plan if lost in plan else plan["plan"])[lost]
    Path("output/plan.json").write_text(json.dumps(plan))
    before = contents("output/runs")
    capsys.readouterr()
    assert run_main(BLOCK) == 2
    said = capsys.readouterr().err
    assert lost in said and said.startswith("error: output/plan.json") and said.count("\n") == 1
    assert contents("output/runs") == before and not Path("output/set_aside").exists()


# another GPU
def test_a_block_that_another_gpu_began_is_trained_anew_whole(workplace, monkeypatch, capsys):
    describe = experiment_stored.describe_environment
    gpu = {"uuid": "GPU-a"}
    monkeypatch.setattr(
        experiment_stored, "describe_environment", lambda device: describe(device) | {"gpu": gpu}
    )
    options = "--runs 2 --arms window fused"
    assert run_main(f"{options} --output-dir undisturbed") == 0
    stop_at(monkeypatch, 4)
    assert run_main(options) == 130
    runs = {path.name: path.read_bytes() for path in Path("output/runs").iterdir()}
    gpu["uuid"] = "GPU-b"
    assert run_main(options) == 0
    (moved,) = contents("output/set_aside")
    begun = f"{moved[:-6]}.npz"
    assert moved.startswith("001_") and Path("output/set_aside", moved).read_bytes() == runs[begun]
    assert "block 2 was begun on another GPU" in capsys.readouterr().err
    metrics, metadata = load_experiment(RESULTS)
    assert same_losses(load_metrics("undisturbed/experiment_results.npz"), metrics)
    processes = [process["process"] for process in metadata["processes"]]
    for done in metrics.values():
        assert [training["process"] for training in done] == processes
    for name in set(runs) - {begun}:
        assert Path("output/runs", name).read_bytes() == runs[name]
    assert metadata["split_blocks"] == [] and metadata["mixed"] == []
    indices = [training["index"] for _, training in in_order(metrics)]
    assert indices == sorted(set(indices))


def test_a_tokenizer_that_changed_meanwhile_does_not_go_with_the_weights(
    workplace, monkeypatch, capsys
):
    """It would decode with another one than the data were made with."""
    finished = experiment_stored.StoredExperiment.finished

    def change_it(stored, *arguments):
        Path("tokenizer.json").write_text("{}")
        finished(stored, *arguments)

    Path("tokenizer.json").write_text('{"of": "the data"}')
    monkeypatch.setattr(experiment_stored.StoredExperiment, "finished", change_it)
    assert run_main(BLOCK) == 0
    assert "changed since the start" in capsys.readouterr().err
    assert (
        json.loads(Path("output/window_model_config.json").read_text())["tokenizer_sha256"] is None
    )

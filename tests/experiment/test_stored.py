"""The experiment: its plan, what it leaves on disk, and its behaviour when things go wrong."""

import errno
import itertools
import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import compare_models
from analysis.metrics import load_experiment, load_metrics
from analysis.values import in_order
from attention.pattern import window_mask
from compare_models import build_parser, config_from, main
from experiment import estimate as experiment_estimate
from experiment import files as experiment_files
from experiment import run as experiment_run
from experiment import stored as experiment_stored
from experiment.files import StoreError, locked
from experiment.identity import identity_of_config
from experiment.plan import balanced_orders, make_plan
from experiment.progress import Progress, format_seconds
from experiment.run import run_experiment
from figures.all import create_all_plots
from figures.data import describe_setting
from machine.files import json_sha256
from studies import shared as studies_shared
from studies.summary import load_study
from training import batches as training_batches
from training import tokens as training_tokens
from training import train as training_train
from training.config import PRESETS, ExperimentConfig, make_config
from training.trainer import Trainer
from training.weights import load_window_model

TINY = "--seq-len 24 --d-model 16 --n-heads 2 --layers 1 --batch-size 2 --max-steps 4 --device cpu"
TINY += " --window-size 5 --dilation 3 --warmup-steps 2 --val-batches 1 --lr 1e-2"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder with a small data file; no child process and no plots there, to be quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare_models, "create_all_plots", lambda *_: [])
    monkeypatch.setattr(training_train, "child_peak_memory_mb", lambda *_: 12.5)
    tokens = np.random.default_rng(0).integers(40, size=(60, 25))
    np.save("training_data.npy", tokens.astype(np.uint16))
    return tmp_path


def run_main(options=""):
    return main([*TINY.split(), *options.split()])


def contents(folder):
    return sorted(os.listdir(folder))


# --- the plan ----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 60), st.integers(0, 2**32))
def test_orders_are_balanced(arms, runs, seed):
    arms = tuple("abcd"[:arms])
    orders = balanced_orders(arms, runs, np.random.default_rng(seed))
    assert len(orders) == runs
    assert all(sorted(order) == sorted(arms) for order in orders)
    counts = Counter(orders)
    every = [counts[order] for order in itertools.permutations(arms)]
    assert max(every) - min(every) <= 1
    for start in range(0, runs - len(arms) + 1, len(arms)):
        square = orders[start : start + len(arms)]
        assert all(len(set(column)) == len(arms) for column in zip(*square, strict=True))


def test_the_plan_follows_from_the_seed_alone():
    plan = make_plan(make_config(runs=7, seed=5))
    torch.manual_seed(1), np.random.seed(1)
    assert make_plan(make_config(runs=7, seed=5, lr=1.0)) == plan
    other = make_plan(make_config(runs=7, seed=6))
    assert other["orders"] != plan["orders"] and other["seeds"] != plan["seeds"]
    assert len(set(plan["seeds"])) == 7
    longer = make_plan(make_config(runs=9, seed=5))
    assert longer["seeds"][:7] == plan["seeds"] and longer["orders"][:7] == plan["orders"]
    json.dumps(plan)


def test_options_that_were_added_later_leave_older_identities_alone():
    _, metadata = load_experiment(ROOT / "results" / "cpu_laptop_6_runs.npz")
    chosen = {"arms": tuple(metadata["config"]["arms"])}
    config = ExperimentConfig(**metadata["config"] | chosen)
    assert json_sha256(identity_of_config(config)) == metadata["config_sha256"]
    for change in ({"positions": "rotary"}, {"dilation": (4, 1)}, {"sink_tokens": 1}):
        changed = identity_of_config(replace(config, **change))
        assert json_sha256(changed) != metadata["config_sha256"]


# --- the experiment ----------------------------------------------------------------------------


def test_an_experiment_leaves_results_report_weights_and_plots(workplace, monkeypatch, capsys):
    monkeypatch.setattr(compare_models, "create_all_plots", create_all_plots)
    assert run_main("--runs 2") == 0
    printed = capsys.readouterr()
    assert contents("output") == [
        "experiment_results.json",
        "experiment_results.npz",
        "improved_comparison_results.txt",
        "plan.json",
        "runs",
        "window_model_config.json",
        "window_model_weights.pt",
    ]
    assert len(contents("output/runs")) == 2 * 2 * 3
    assert len(contents("plots")) == 20
    report = Path("output/improved_comparison_results.txt").read_text(encoding="utf-8")
    assert printed.out == report + "\n"  # stdout is the report and nothing else
    assert "run 2/2" in printed.err and "roughly" in printed.err
    metrics, metadata = load_experiment("output/experiment_results.npz")
    assert metadata["status"] == "complete"
    assert metadata["data"]["val_rows"] == 3 and metadata["data"]["train_rows"] == 57
    for arm, runs in metrics.items():
        assert [run["status"] for run in runs] == ["ok", "ok"], arm
        assert [run["seed"] for run in runs] == metadata["plan"]["seeds"]
        for run in runs:
            order = run["order"].split(",")
            assert order == metadata["plan"]["orders"][run["block"]]
            assert order[run["position"]] == arm
    assert [run["index"] for run in in_order(metrics)] == list(range(6))


def test_saved_weights_rebuild_the_first_runs_window_model(workplace):
    assert run_main("--runs 1 --arms window") == 0
    model = load_window_model("output/window_model_weights.pt")
    weights = model.state_dict()
    config = make_config(
        seq_len=24, d_model=16, n_heads=2, layers=1, batch_size=2, window_size=5, dilation=3
    )
    dataset = training_tokens.load_dataset("training_data.npy", 24, 2)
    trainer = Trainer(config, "window", dataset.train, dataset.vocab_size, torch.device("cpu"), 0)
    trainer.model.load_state_dict(weights)
    run = load_metrics("output/experiment_results.json")["window"][0]
    assert trainer.evaluate(dataset.held_out[[0, -1]]) == pytest.approx(run["val_loss"], rel=1e-6)


def test_an_experiment_with_every_option_of_the_pattern(workplace, monkeypatch, capsys):
    monkeypatch.setattr(compare_models, "create_all_plots", create_all_plots)
    options = "--runs 1 --layers 2 --dilation 3,1 --sink-tokens 2 --positions rotary"
    assert run_main(options) == 0
    printed = capsys.readouterr()
    pattern = "window_size 5, dilation 3,1, sink_tokens 2"
    assert pattern in printed.out and pattern in printed.err
    assert "rotary positions" in printed.out and "rotary positions" in printed.err
    _, metadata = load_experiment("output/experiment_results.npz")
    assert metadata["config"]["dilation"] == [3, 1] and metadata["config"]["window_size"] == 5
    pairs = int(window_mask(24, 5, 3, sink_tokens=2).sum()), 24 * 25 // 2
    assert metadata["pattern"]["attended_pairs"] == sum(pairs) / 2
    assert metadata["pattern"]["density"] == pytest.approx(sum(pairs) / 2 / pairs[1])
    setting = describe_setting(metadata).replace("\N{NO-BREAK SPACE}", " ")
    assert "w = 5, d = 3,1, 2 sinks, " in setting
    model = load_window_model("output/window_model_weights.pt")
    assert model.position_embeddings is None and model.layers[1].mha.dilation == 1
    assert [block.mha.sink_tokens for block in model.layers] == [2, 2]
    assert run_main(options) == 0  # the stored plan is recognised
    assert "complete: all 3 trainings are done" in capsys.readouterr().err


def same_losses(old, new):
    for arm in old:
        for before, after in zip(old[arm], new[arm], strict=True):
            assert before["losses"].tobytes() == after["losses"].tobytes()
            assert before["val_loss"] == after["val_loss"]
    return True


def test_restart_moves_the_old_results_aside_and_gives_the_same_losses(workplace, capsys):
    for options in ("", " --restart"):
        assert run_main("--runs 2 --arms window fused" + options) == 0
    earlier = [name for name in contents("output") if name.startswith("earlier_")]
    assert len(earlier) == 1 and earlier[0] in capsys.readouterr().err
    old, about_old = load_experiment(f"output/{earlier[0]}/experiment_results.npz")
    new, about_new = load_experiment("output/experiment_results.npz")
    assert about_old["experiment_id"] != about_new["experiment_id"]
    assert same_losses(old, new) and len(contents(f"output/{earlier[0]}/runs")) == 8


def test_data_in_the_output_folder_keeps_its_tokenizer(workplace):
    Path("tokenizer.json").write_text("{}")
    for options in ("", " --restart"):
        assert run_main("--runs 1 --arms window --output-dir ." + options) == 0
    assert Path("tokenizer.json").read_text() == "{}"
    assert load_metrics("experiment_results.npz")["window"][0]["status"] == "ok"


def test_sequence_length_is_recut_from_the_same_tokens(workplace):
    assert run_main("--runs 1 --arms fused --seq-len 49") == 0
    metadata = load_experiment("output/experiment_results.npz")[1]
    assert metadata["data"]["train_rows"] + metadata["data"]["val_rows"] == 60 * 25 // 50


def test_dry_run_prints_the_plan_and_writes_nothing(workplace, capsys):
    assert run_main("--dry-run --runs 2") == 0
    printed = capsys.readouterr()
    plan = make_plan(make_config(runs=2))
    for run in range(2):
        order = ", ".join(plan["orders"][run])
        assert f"run {run + 1}: {order} (seed {plan['seeds'][run]})" in printed.out
    assert "roughly" in printed.err
    assert contents(workplace) == ["training_data.npy"]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("none", "fused ran out of memory when tried: its trainings will probably fail"),
        (
            "default",
            "fused ran out of memory when tried without torch.compile, which usually takes",
        ),
    ],
)
def test_an_arm_too_big_to_try_is_told_before_its_trainings(
    workplace, monkeypatch, capsys, mode, words
):
    step = Trainer.step

    def try_step(trainer, *arguments):
        if trainer.arm == "fused":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
        return step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "step", try_step)
    assert run_main(f"--dry-run --runs 2 --compile {mode}") == 0
    printed = capsys.readouterr().err
    assert words in printed and "window ran" not in printed and "baseline ran" not in printed


def test_a_data_file_that_was_named_is_never_made_up(workplace, capsys):
    assert run_main("--data other/tokens.npy") == 2
    assert "tokens.npy" in capsys.readouterr().err
    assert contents(workplace) == ["training_data.npy"]


def break_training(monkeypatch, arm, fail):
    """Make the timed steps of one arm fail; the untimed ones of the estimate go on working."""
    timed_steps = training_train.timed_steps

    def maybe(trainer, steps, progress):
        if trainer.arm == arm:
            fail(trainer)
        return timed_steps(trainer, steps, progress)

    monkeypatch.setattr(training_train, "timed_steps", maybe)


def poison(trainer):
    with torch.no_grad():
        trainer.model.fc_out.bias.fill_(float("nan"))


def out_of_memory(trainer):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (poison, "run 1/2 window: diverged: the loss became nan at step 1"),
        (
            out_of_memory,
            "run 1/2 window: out of memory: out of memory on cpu in the timed steps: lower "
            "--batch-size",
        ),
    ],
)
def test_a_failed_training_is_named_and_the_experiment_goes_on(
    workplace, monkeypatch, capsys, fail, words
):
    break_training(monkeypatch, "window", fail)
    assert run_main("--runs 2") == 3
    printed = capsys.readouterr()
    assert words in printed.err
    metrics = load_metrics("output/experiment_results.npz")
    assert [run["status"] != "ok" for run in metrics["window"]] == [True, True]
    assert [run["status"] for run in metrics["fused"]] == ["ok", "ok"]
    assert "nan" not in printed.out.split("alpha")[0].replace("became nan", "")


def test_nothing_but_failures_still_ends_with_a_report(workplace, monkeypatch, capsys):
    break_training(monkeypatch, "window", out_of_memory)
    assert run_main("--runs 1 --arms window") == 3
    assert "out_of_memory" in capsys.readouterr().out
    assert contents("plots") == []


# --- stops and going on ------------------------------------------------------------------------


def stop_at(monkeypatch, number, signum):
    """Send this process a signal in the middle of its ``number``-th training; counts them."""
    started, train = [], training_train.train

    def stopped(config, arm, dataset, seed, device, progress):
        started.append(arm)
        if len(started) == number:

            def progress(*_):
                signal.raise_signal(signum)

        return train(config, arm, dataset, seed, device, progress)

    monkeypatch.setattr(experiment_run, "train", stopped)
    return started


@pytest.mark.parametrize(
    ("signum", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_stop_keeps_what_was_finished_and_the_same_command_goes_on(
    workplace, monkeypatch, capsys, signum, code, word
):
    assert run_main("--runs 2 --output-dir undisturbed") == 0
    started = stop_at(monkeypatch, 3, signum)
    assert run_main("--runs 2") == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == (
        f"{word}: 2 of 6 trainings are kept in output; the same command goes on from there"
    )
    metrics, metadata = load_experiment("output/experiment_results.npz")
    assert len(in_order(metrics)) == 2 and metadata["status"] == "partial"
    assert run_main("--runs 2") == 0
    printed = capsys.readouterr()
    assert "resuming: 2 of 6 trainings done" in printed.err and len(started) == 3 + 4
    assert "run 1 was cut in two by a stop" in printed.out
    metrics, metadata = load_experiment("output/experiment_results.npz")
    expected, about = load_experiment("undisturbed/experiment_results.npz")
    assert same_losses(expected, metrics)
    assert metadata["plan"] == about["plan"] and metadata["status"] == "complete"
    assert len(metadata["processes"]) == 2 and metadata["split_blocks"] == [0]
    assert about["split_blocks"] == [] and len(about["processes"]) == 1
    assert not [name for name in contents("output") if name.startswith(".")]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["000_", "experiment_results.npz", "window_model_weights.pt"])
def test_a_stop_in_the_middle_of_a_write_lets_it_end(workplace, monkeypatch, name, signum, code):
    """The signal comes inside the first rename of such a file; its training is not lost."""
    replace, sent = os.replace, []

    def stop_inside(source, target):
        if not sent and Path(target).name.startswith(name):
            sent.append(target)
            signal.raise_signal(signum)
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop_inside)
    assert run_main("--runs 1 --arms window fused") == code and sent
    metrics = load_metrics("output/experiment_results.npz")
    ended = {(arm, run["block"]) for arm, runs in metrics.items() for run in runs}
    names = {Path(path).stem for path in contents("output/runs")}
    assert names == {f"{run:03d}_{arm}" for arm, run in ended} and ended


def test_after_a_restart_that_was_stopped_the_way_on_is_named(workplace, monkeypatch, capsys):
    assert run_main("--runs 1 --arms window fused") == 0
    stop_at(monkeypatch, 2, signal.SIGINT)
    assert run_main("--runs 1 --arms window fused --restart") == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the same command without --restart goes on from there" in last
    assert run_main("--runs 1 --arms window fused") == 0
    assert "resuming: 1 of 2 trainings done" in capsys.readouterr().err


def test_a_repeated_training_has_its_place_in_time(workplace):
    assert run_main("--runs 2 --arms window fused") == 0
    metadata = load_experiment("output/experiment_results.npz")[1]
    first = metadata["plan"]["orders"][0][0]
    Path(f"output/runs/000_{first}.json").write_text("{")
    assert run_main("--runs 2 --arms window fused") == 0
    metrics = load_metrics("output/experiment_results.npz")
    assert sorted(run["index"] for run in in_order(metrics)) == [1, 2, 3, 4]
    assert metrics[first][0]["index"] == 4


def test_a_file_that_cannot_be_read_just_now_is_not_called_damaged(workplace, monkeypatch, capsys):
    assert run_main("--runs 1 --arms fused") == 0

    def fail(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(experiment_files, "file_sha256", fail)
    assert run_main("--runs 1 --arms fused") == 2
    assert "000_fused.json: cannot be read (Too many open files)" in capsys.readouterr().err
    assert not Path("output/set_aside").exists()


def test_determinism_is_on_for_the_whole_experiment_and_recorded(workplace):
    assert run_main("--runs 1 --arms fused --deterministic") == 0
    metadata = load_experiment("output/experiment_results.npz")[1]
    assert metadata["config"]["deterministic"] and metadata["environment"]["deterministic"]
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_results_carry_their_tests_and_what_each_launch_was(workplace):
    assert run_main("--runs 2 --arms window fused") == 0
    metadata = load_experiment("output/experiment_results.json")[1]
    assert {test["outcome"] for test in metadata["tests"]} >= {"training_time", "val_loss"}
    (launch,) = metadata["processes"]
    assert launch["argv"] == [*TINY.split(), *["--runs", "2", "--arms", "window", "fused"]]
    assert launch["config"]["arms"] == ["window", "fused"] and set(launch["attention"]) == {
        "window",
        "fused",
    }


def test_the_notebook_and_the_command_line_are_the_same_experiment(workplace):
    assert run_main("--runs 1 --arms fused") == 0
    config = config_from(build_parser().parse_args([*TINY.split(), "--runs", "1"]))
    run_experiment(replace(config, arms=("fused",), device="auto" if no_gpu() else "cpu"))


def no_gpu():
    return not torch.cuda.is_available()


def test_a_complete_experiment_trains_nothing_and_reports_again(workplace, monkeypatch, capsys):
    assert run_main("--runs 1") == 0
    first = capsys.readouterr().out
    Path("output/improved_comparison_results.txt").unlink()
    Path("output/experiment_results.json").unlink()
    monkeypatch.setattr(experiment_run, "train", None)
    monkeypatch.setattr(experiment_estimate, "estimate_seconds", None)
    assert run_main("--runs 1") == 0
    printed = capsys.readouterr()
    assert printed.out == first and "complete: all 3 trainings are done" in printed.err
    assert load_experiment("output/experiment_results.json")[1]["status"] == "complete"
    assert Path("output/improved_comparison_results.txt").exists()


def test_a_failed_training_is_an_outcome_and_is_not_tried_again(workplace, monkeypatch):
    break_training(monkeypatch, "window", poison)
    assert run_main("--runs 1") == 3
    monkeypatch.setattr(experiment_run, "train", None)
    assert run_main("--runs 1") == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--lr 1e-3", "config.lr: 0.01 before, 0.001 now"),
        ("--equivalence-margin 0.5", "config.equivalence_margin: 0.02 before, 0.5 now"),
        ("--dilation 2", "config.dilation: 3 before, 2 now"),
    ],
)
def test_another_configuration_is_listed_and_refused(workplace, capsys, options, words):
    assert run_main("--runs 1 --arms window fused") == 0
    before = Path("output/experiment_results.npz").read_bytes()
    capsys.readouterr()
    assert run_main(f"--runs 1 --arms window fused {options}") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: output holds another experiment")
    for expected in (words, "2 of 2 trainings done", "--restart", "--output-dir"):
        assert expected in printed.err
    assert ("--allow-mixed" in printed.err) == ("margin" not in options)
    assert Path("output/experiment_results.npz").read_bytes() == before


def test_other_data_code_and_device_are_listed(workplace, monkeypatch, capsys):
    assert run_main("--runs 1 --arms fused") == 0
    tokens = np.load("training_data.npy")
    tokens[0, 0] += 1
    np.save("training_data.npy", tokens)
    Path("tokenizer.json").write_text("{}")
    monkeypatch.setattr(experiment_stored, "describe_code", lambda: {"sources_sha256": "f" * 64})
    monkeypatch.setattr(
        experiment_stored, "describe_environment", lambda _: {"device_name": "other", "torch": "9"}
    )
    assert run_main("--runs 1 --arms fused") == 2
    error = capsys.readouterr().err
    for place in ("data: ", "tokenizer: null before", "code: ", "device.device_name: ", "torch: "):
        assert place in error


def test_a_variable_that_changes_results_is_listed_and_one_of_folders_is_not(
    workplace, monkeypatch, capsys
):
    assert run_main("--runs 1 --arms fused") == 0
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/some/folder")
    assert run_main("--runs 1 --arms fused") == 0
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert run_main("--runs 1 --arms fused") == 2
    assert 'NVIDIA_TF32_OVERRIDE: null before, "0" now' in capsys.readouterr().err


def test_a_plan_cannot_be_changed_even_by_allow_mixed(workplace, capsys):
    assert run_main("--runs 1 --arms fused") == 0
    for change in ("--runs 2", "--arms window", "--seed 3", "--equivalence-margin 1"):
        options = f"--runs 1 --arms fused {change}"
        assert run_main(options + " --allow-mixed") == 2
        assert "--allow-mixed" not in capsys.readouterr().err


def test_allow_mixed_goes_on_and_marks_the_results(workplace, monkeypatch, capsys):
    stop_at(monkeypatch, 2, signal.SIGINT)
    assert run_main("--runs 1 --arms window fused") == 130
    assert run_main("--runs 1 --arms window fused --lr 1e-3 --allow-mixed") == 0
    printed = capsys.readouterr()
    line = "config.lr: 0.01 before, 0.001 now"
    assert line in printed.err and "MIXED" in printed.out
    metadata = load_experiment("output/experiment_results.npz")[1]
    assert metadata["mixed"] == [line] and line in " ".join(metadata["warnings"])
    assert [launch["differs"] for launch in metadata["processes"]] == [[], [line]]


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("third", range(3))
def test_a_truncated_training_is_set_aside_and_repeated(workplace, capsys, suffix, third):
    assert run_main("--runs 1 --arms window fused") == 0
    expected = load_metrics("output/experiment_results.npz")
    path = Path(f"output/runs/000_fused.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: third * len(content) // 3])
    assert run_main("--runs 1 --arms window fused") == 0
    printed = capsys.readouterr()
    assert "000_fused" in printed.err and "its training will be repeated" in printed.err
    assert "a damaged file was set aside" in " ".join(printed.out.split())
    assert same_losses(expected, load_metrics("output/experiment_results.npz"))
    kept = Path(f"output/set_aside/000_fused_1.{suffix}").read_bytes()
    assert kept == content[: third * len(content) // 3]


def test_a_refused_start_changes_nothing_and_a_repeated_training_stays_on_record(workplace, capsys):
    assert run_main("--runs 1 --arms window fused") == 0
    broken = Path("output/runs/000_fused.json")
    broken.write_text("{")
    assert run_main("--runs 1 --arms window fused --lr 1e-3") == 2
    assert broken.read_text() == "{" and not Path("output/set_aside").exists()
    for _ in range(2):  # the second start finds nothing damaged any more
        assert run_main("--runs 1 --arms window fused") == 0
        metadata = load_experiment("output/experiment_results.npz")[1]
        assert metadata["set_aside"] == ["000_fused_1.json"]


def test_allow_mixed_marks_nothing_where_nothing_is_trained(workplace):
    assert run_main("--runs 1 --arms fused") == 0
    assert run_main("--runs 1 --arms fused --lr 1e-3 --allow-mixed") == 0
    assert load_experiment("output/experiment_results.npz")[1]["mixed"] == []


def test_results_without_a_plan_are_not_overwritten(workplace, capsys):
    Path("output").mkdir()
    Path("output/experiment_results.npz").write_bytes(b"precious")
    assert run_main("--runs 1 --arms fused") == 2
    assert "holds results without a plan.json" in capsys.readouterr().err
    assert Path("output/experiment_results.npz").read_bytes() == b"precious"
    assert run_main("--runs 1 --arms fused --restart") == 0
    (aside,) = Path("output").glob("earlier_*")
    assert (aside / "experiment_results.npz").read_bytes() == b"precious"


def test_a_damaged_plan_is_named_and_nothing_is_lost(workplace, capsys):
    assert run_main("--runs 1 --arms fused") == 0
    Path("output/plan.json").write_text("{")
    assert run_main("--runs 1 --arms fused") == 2
    error = capsys.readouterr().err
    assert str(Path("output/plan.json")) in error and "--restart" in error
    assert len(contents("output/runs")) == 2


def test_two_experiments_in_one_folder_are_refused(workplace, capsys):
    with locked("output"):
        assert run_main("--runs 1 --arms fused") == 2
    error = capsys.readouterr().err
    assert "another experiment is writing there" in error and str(os.getpid()) in error


@pytest.mark.parametrize(
    ("call", "code", "remedy"),
    [("fsync", errno.ENOSPC, "free some space"), ("replace", errno.EACCES, "writable")],
)
def test_a_write_that_fails_is_named_and_nothing_is_lost(
    workplace, monkeypatch, capsys, call, code, remedy
):
    """Each write of the experiment fails in turn; going on afterwards completes it."""
    assert run_main("--runs 1 --arms window fused --output-dir undisturbed") == 0
    expected = load_metrics("undisturbed/experiment_results.npz")
    real, count = getattr(os, call), itertools.count()
    failing = {"at": None}

    def fail_once(*arguments):
        if next(count) == failing["at"]:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(os, call, fail_once)
    capsys.readouterr()
    for at in itertools.count():
        count, failing["at"] = itertools.count(), at
        folder = f"case{at}"
        if run_main(f"--runs 1 --arms window fused --output-dir {folder}") == 0:
            break
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"error: {folder}") and remedy in error
        failing["at"] = None
        assert run_main(f"--runs 1 --arms window fused --output-dir {folder}") == 0
        assert same_losses(expected, load_metrics(f"{folder}/experiment_results.npz"))
        assert not [name for name in contents(folder) if name.startswith(".")]
        capsys.readouterr()
    assert at > 8


def test_too_little_space_is_said_before_the_first_training(workplace, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(experiment_run, "train", None)
    assert run_main("--runs 1") == 1
    assert "free some space or choose another --output-dir" in capsys.readouterr().err


def test_results_are_not_overwritten_where_their_trainings_are_missing(workplace, capsys):
    assert run_main("--runs 1 --arms window fused") == 0
    before = Path("output/experiment_results.json").read_bytes()
    shutil.move("output/runs", "elsewhere")
    assert run_main("--runs 1 --arms window fused") == 2
    error = capsys.readouterr().err
    assert "lacks trainings that experiment_results.json holds (000_fused, 000_window)" in error
    assert Path("output/experiment_results.json").read_bytes() == before
    shutil.move("elsewhere", "output/runs")
    assert run_main("--runs 1 --arms window fused") == 0


def test_a_file_where_runs_should_be_is_found_before_the_first_training(
    workplace, monkeypatch, capsys
):
    stop_at(monkeypatch, 1, signal.SIGINT)
    assert run_main("--runs 1 --arms fused") == 130
    shutil.rmtree("output/runs")
    Path("output/runs").write_text("")
    monkeypatch.setattr(experiment_run, "train", None)
    assert run_main("--runs 1 --arms fused") == 1
    assert "runs cannot be written" in capsys.readouterr().err


def test_a_folder_in_the_place_of_a_result(workplace, capsys):
    Path("output/experiment_results.npz").mkdir(parents=True)
    Path("output/experiment_results.npz/file").write_text("precious")
    assert run_main("--runs 1 --arms fused") == 2
    assert Path("output/experiment_results.npz/file").read_text() == "precious"
    Path("other").mkdir()
    Path("other/runs").write_text("")
    assert run_main("--runs 1 --arms fused --output-dir other") == 2
    assert "other" in capsys.readouterr().err


def test_a_dry_run_says_that_it_would_go_on(workplace, monkeypatch, capsys):
    stop_at(monkeypatch, 2, signal.SIGINT)
    assert run_main("--runs 1 --arms window fused") == 130
    assert run_main("--runs 1 --arms window fused --dry-run") == 0
    errors = capsys.readouterr().err
    assert "this command would go on after 1" in errors and "for the 1 that are left" in errors
    assert run_main("--runs 1 --arms window fused --lr 1e-3 --dry-run") == 0
    refused = capsys.readouterr().err
    assert (
        "this command would refuse, for this differs" in refused
        and "config.lr: 0.01 before, 0.001 now" in refused
    )
    assert run_main("--runs 1 --arms window fused --lr 1e-3 --dry-run --allow-mixed") == 0
    assert "this command would go on after 1 and mark the results" in capsys.readouterr().err
    assert run_main("--runs 2 --arms window fused --dry-run --allow-mixed") == 0
    assert "this command would refuse" in capsys.readouterr().err  # other runs are another plan
    assert run_main("--runs 1 --arms window fused --dry-run --restart") == 0
    errors = capsys.readouterr().err
    assert "this command would move it aside" in errors and " in all" in errors
    assert run_main("--runs 1 --arms window fused") == 0
    capsys.readouterr()
    assert run_main("--runs 1 --arms window fused --dry-run") == 0
    errors = capsys.readouterr().err
    assert "this command would report it again" in errors and "roughly" not in errors


def test_notebook_use_raises_what_the_command_line_explains(workplace):
    config = make_config(
        "laptop", runs=1, seq_len=24, d_model=16, n_heads=2, layers=1, max_steps=2, arms=("fused",)
    )
    run_experiment(config)
    with pytest.raises(StoreError, match=r"config\.lr"):
        run_experiment(replace(config, lr=0.5))
    metrics, _ = run_experiment(replace(config, lr=0.5), restart=True)
    assert metrics["fused"][0]["total_steps"] == 2


def test_ctrl_c_while_plotting_keeps_everything(workplace, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_models, "create_all_plots", interrupt)
    assert run_main("--runs 1") == 130
    assert "interrupted: 3 of 3 trainings are kept in output" in capsys.readouterr().err


def test_a_bug_is_not_called_a_wrong_option(workplace, monkeypatch):
    def fail(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(compare_models, "write_report", fail)
    with pytest.raises(ValueError, match="a bug"):
        run_main("--runs 1")


def test_ctrl_c_before_the_first_training(workplace, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment_estimate, "estimate_seconds", interrupt)
    assert run_main() == 130
    monkeypatch.undo()
    os.chdir(workplace)
    monkeypatch.setattr(experiment_run, "train", interrupt)
    assert run_main() == 130
    assert "no training had been finished" in capsys.readouterr().err


def test_notebook_use_needs_no_command_line(workplace):
    config = make_config(
        "laptop", runs=1, seq_len=24, d_model=16, n_heads=2, layers=1, max_steps=2, arms=("fused",)
    )
    metrics, metadata = run_experiment(config)
    assert metrics["fused"][0]["total_steps"] == 2 and metadata["status"] == "complete"


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--n-heads 3", "--d-model 16 is not divisible by --n-heads 3"),
        ("--window-size 0", "--window-size must be at least 1, got 0"),
        ("--dilation -1", "--dilation must be at least 0, got -1"),
        ("--runs 0", "--runs must be at least 1, got 0"),
        ("--device cuda:77", "--device cuda:77: this machine has"),
        ("--arms window window", "--arms names an arm twice"),
        ("--seq-len 5000", "at --seq-len 5,000"),
        ("--batch-size 59", "59"),
        ("--arms sparse", "sparse"),
    ],
)
def test_wrong_options_get_one_line_and_exit_code_2(workplace, capsys, options, words):
    assert run_main(options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and words in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        "--dilation x",
        "--window-size 5,",
        "--dtype float16",
        "--runs many",
        "--preset big",
        "--nonsense",
    ],
)
def test_options_that_argparse_refuses(workplace, capsys, options):
    with pytest.raises(SystemExit) as stop:
        run_main(options)
    assert stop.value.code == 2
    assert options.split()[-1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(100, np.int64), "2"),
        (np.zeros((50, 25), np.float32), "integers"),
        (np.full((50, 25), -1), "negative"),
        (np.zeros((50, 1), np.int64), "2 tokens"),
        (np.zeros((2, 25), np.int64), "rows"),
        (np.array([[1, None]], dtype=object), "pickle"),
    ],
)
def test_bad_data_gets_one_line_and_exit_code_2(workplace, capsys, array, words):
    np.save("training_data.npy", array, allow_pickle=True)
    assert run_main() == 2
    printed = capsys.readouterr()
    assert "training_data.npy" in printed.err and words in printed.err
    assert printed.err.count("\n") == 1 and contents(workplace) == ["training_data.npy"]


def test_a_file_where_the_output_folder_should_be(workplace, capsys):
    (workplace / "taken").write_text("")
    assert run_main("--output-dir taken") == 1
    assert "taken" in capsys.readouterr().err
    with pytest.raises(OSError):
        run_main("--output-dir taken --debug")


# --- options and progress ----------------------------------------------------------------------


def test_help_is_complete_and_grouped():
    text = build_parser().format_help()
    documented = "runs seed arms preset device dtype compile batch-size max-steps seq-len d-model"
    documented += " n-heads layers window-size dilation lr warmup-steps data output-dir plots-dir"
    for option in documented.split():
        assert f"--{option} " in text or f"--{option}\n" in text, option
    for group in ("experiment:", "training:", "model:", "pattern:", "files:"):
        assert f"\n{group}\n" in text
    assert "paper 256, long 4096, laptop 1024" in " ".join(text.split())


def test_a_value_for_each_layer_is_read_from_the_command_line():
    parser = build_parser()
    options = ["--preset", "laptop", "--device", "cpu", "--window-size", "64,96", "--dilation", "4"]
    config = config_from(parser.parse_args(options))
    assert (config.window_size, config.dilation) == ((64, 96), 4)
    with pytest.raises(ValueError, match="--dilation has 3 values for 2 layers: give one, or one"):
        config_from(parser.parse_args(["--preset", "laptop", "--dilation", "4,1,4"]))


def test_presets_give_defaults_and_options_override_them():
    parser = build_parser()
    assert config_from(parser.parse_args(["--preset", "long", "--device", "cpu"])).seq_len == 4096
    arguments = ["--preset", "laptop", "--seq-len", "64", "--compile", "--arms", "window", "fused"]
    config = config_from(parser.parse_args([*arguments, "--device", "cpu"]))
    assert (config.seq_len, config.compile, config.arms) == (64, "default", ("window", "fused"))
    assert config.runs == PRESETS["laptop"]["runs"]


def test_the_default_preset_follows_the_device(monkeypatch):
    for available, preset in ((False, "laptop"), (True, "paper")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda value=available: value)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert config_from(build_parser().parse_args([])).preset == preset


def test_time_left_uses_each_arms_own_time(capsys):
    config = make_config(runs=3, arms=("window", "fused"))
    with Progress(config, steps=5, estimates={"window": 100.0, "fused": None}) as progress:
        assert progress.seconds_left() == 600  # the unknown arm is taken as a typical one
        progress.start(0, "window")
        assert progress._left("window", 0.5) == format_seconds(100 * 2.5 + 100 * 3)
        outcome = {"status": "ok", "wall_time": 10.0, "total_steps": 5}
        outcome |= {"training_time": 9.0, "peak_memory_mb": 3.0, "final_loss": 2.0, "val_loss": 2.1}
        progress.finish(0, "window", outcome)
        assert progress.seconds_left() == 10 * 2 + 10 * 3
    assert "run 1/3 window: 9.0 s, 3 MB, loss 2.0000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_in_words(seconds, words):
    assert format_seconds(seconds) == words


# --- studies -----------------------------------------------------------------------------------


def study_of(name):
    return load_study(f"output/{name}_study.json")


def test_a_study_of_lengths_trains_sums_up_and_goes_on(workplace, capsys):
    options = "--study lengths --seq-lens 24 12 --runs 2 --max-steps 6"
    assert run_main(options) == 0
    printed = capsys.readouterr()
    assert "learned positions" in printed.out and "rotary positions" in printed.out
    content = study_of("length")
    places = [(p["positions"], p["seq_len"], p["batch_size"]) for p in content["points"]]
    assert places == [(k, s, 48 // s) for k in ("learned", "rotary") for s in (12, 24)]
    for point in content["points"]:
        assert point["contrasts"]["window/fused"]["time"]["n"] == 2
        metrics, metadata = load_experiment(f"{point['output_dir']}/experiment_results.npz")
        assert metadata["config"]["schedule"] == "constant"
        losses = [run["val_loss"] for run in metrics["fused"]]
        assert point["arms"]["fused"]["val_loss"]["mean"] == pytest.approx(np.mean(losses))
    assert contents("plots") == [
        f"length_{name}.{kind}" for name in ("quality", "scaling") for kind in ("pdf", "png")
    ]
    shutil.rmtree("output/length_study/rotary_24")  # as if it had been stopped before
    assert run_main(options) == 0
    assert capsys.readouterr().err.count("run 1/2") == 3  # the arms of one point alone
    assert [p["experiment_id"] for p in study_of("length")["points"]][:3] == [
        p["experiment_id"] for p in content["points"]
    ][:3]


def test_launches_may_share_a_study(workplace, capsys):
    options = "--study lengths --seq-lens 12 24 --runs 1 --max-steps 6"
    assert run_main(f"{options} --positions rotary") == 0
    assert run_main(f"{options} --positions learned --seq-lens 12") == 0
    printed = capsys.readouterr()
    assert "learned positions" in printed.out and "rotary positions" in printed.out
    assert "left out" not in printed.err
    places = [(p["positions"], p["seq_len"]) for p in study_of("length")["points"]]
    assert places == [("learned", 12), ("rotary", 12), ("rotary", 24)]
    # what was trained otherwise is no point of the same study
    assert run_main("--study lengths --seq-lens 24 --runs 1 --max-steps 5 --positions learned") == 0
    errors = capsys.readouterr().err
    for name in ("learned_12", "rotary_12", "rotary_24"):
        assert f"{name} is left out of the study: config.max_steps: 6 there, 5 here" in errors
    assert [p["seq_len"] for p in study_of("length")["points"]] == [24]


def test_the_same_command_on_another_gpu_trains_what_is_left(workplace, monkeypatch, capsys):
    options = "--study lengths --seq-lens 12 24 --runs 1 --positions learned"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert run_main(f"{options} --seq-lens 12") == 0
    capsys.readouterr()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert run_main(f"{options} --dry-run") == 0
    printed = capsys.readouterr()
    assert "done by a launch on another GPU" in printed.err and "refuse" not in printed.err
    assert run_main(options) == 0
    printed = capsys.readouterr()
    assert "done by a launch on another GPU" in printed.err
    assert printed.err.count("run 1/1") == 3  # the arms of one point alone
    assert [p["seq_len"] for p in study_of("length")["points"]] == [12, 24]
    # what another one began stays with it: these trainings may be slower
    for name in ("runs/000_fused.json", "experiment_results.json", "experiment_results.npz"):
        Path("output/length_study/learned_12", name).unlink()
    assert run_main(options) == 0
    errors = capsys.readouterr().err
    assert "begun on another GPU, 2 of 3 trainings done: left to a launch there" in errors
    assert [p["seq_len"] for p in study_of("length")["points"]] == [24]
    assert run_main(f"{options} --allow-mixed") == 0
    assert "MIXED: learned_12: device.variables" in capsys.readouterr().out
    assert [p["seq_len"] for p in study_of("length")["points"]] == [12, 24]


def test_points_that_are_being_trained_are_left_to_their_launch(workplace, capsys):
    options = "--study lengths --seq-lens 12 24 --runs 1 --positions learned"
    with locked("output/length_study/learned_12"):
        assert run_main(options) == 0
        errors = capsys.readouterr().err
        assert f"left to the launch that trains it: process {os.getpid()}" in errors
        assert [p["seq_len"] for p in study_of("length")["points"]] == [24]
        assert run_main(f"{options} --seq-lens 12") == 0  # none of its own: what there is
        assert "24" in capsys.readouterr().out
    assert run_main(options) == 0
    assert [p["seq_len"] for p in study_of("length")["points"]] == [12, 24]
    with locked("elsewhere/length_study/learned_12"):
        assert run_main(f"{options} --seq-lens 12 --output-dir elsewhere") == 0
    assert "no point is complete yet" in capsys.readouterr().err


def test_a_restarted_study_begins_anew_at_every_point(workplace, monkeypatch, capsys):
    options = "--study lengths --seq-lens 12 24 --runs 1 --positions learned"
    assert run_main(options) == 0
    before = [p["experiment_id"] for p in study_of("length")["points"]]
    stop_at(monkeypatch, 2, signal.SIGINT)
    assert run_main(f"{options} --max-steps 5 --restart") == 130
    assert "the same command without --restart goes on from there" in capsys.readouterr().err
    assert run_main(f"{options} --max-steps 5") == 0
    assert not set(before) & {p["experiment_id"] for p in study_of("length")["points"]}


def test_mixed_points_are_marked_in_the_study(workplace, capsys):
    options = "--study lengths --seq-lens 12 24 --runs 1 --positions learned"
    assert run_main(options) == 0
    assert "MIXED" not in capsys.readouterr().out
    assert run_main(f"{options} --lr 0.02 --seq-lens 12 --allow-mixed") == 0
    printed = capsys.readouterr()
    assert "MIXED: learned_12: config.lr: 0.01 there, 0.02 here" in printed.out
    assert "learned_24 is left out of the study: config.lr" in printed.err


def test_a_study_of_patterns_compares_them_with_fused_in_one_experiment(workplace, capsys):
    assert run_main("--study patterns --patterns 5:3 5:0 9:2 --runs 2 --positions rotary") == 0
    (point,) = study_of("pattern")["points"]
    assert list(point["arms"]) == ["fused", "w5-d0", "w5-d3", "w9-d2"]
    metrics, metadata = load_experiment("output/pattern_study/rotary/experiment_results.npz")
    assert metadata["config"]["positions"] == "rotary"
    for order in metadata["plan"]["orders"]:
        assert sorted(order) == sorted(point["arms"])
    # the arm named by a pattern is the window arm with that pattern
    settings = {k: v for k, v in metadata["config"].items() if k not in ("preset", "arms")}
    config = make_config("laptop", **settings, arms=("window",))
    config = replace(config, window_size=9, dilation=2, output_dir="alone")
    alone, _ = run_experiment(config)
    for mine, other in zip(metrics["w9-d2"], alone["window"], strict=True):
        np.testing.assert_array_equal(mine["losses"], other["losses"])
        assert mine["val_loss"] == other["val_loss"]
    assert contents("plots") == ["pattern_pareto.pdf", "pattern_pareto.png"]
    assert "rotary positions, S 24: " in capsys.readouterr().out  # what it recommends, or why not


def test_memory_that_runs_out_does_not_end_a_study(workplace, monkeypatch, capsys):
    real = Trainer.step

    def step(self, batch, lr):
        if self.arm == "baseline" and self.config.seq_len == 24:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 TiB")
        return real(self, batch, lr)

    monkeypatch.setattr(Trainer, "step", step)
    assert run_main("--study lengths --seq-lens 12 24 --runs 2 --positions learned") == 0
    assert "out of memory" in capsys.readouterr().out
    short, long = study_of("length")["points"]
    assert (short["arms"]["baseline"]["ok"], long["arms"]["baseline"]["out_of_memory"]) == (2, 2)
    assert long["contrasts"]["window/fused"] is not None


def test_an_interrupted_study_says_how_to_go_on(workplace, monkeypatch, capsys):
    real, calls = training_train.train, itertools.count()

    def train(*args, **options):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(experiment_run, "train", train)
    options = "--study lengths --seq-lens 12 24 --runs 1 --positions learned"
    assert run_main(options) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert len(study_of("length")["points"]) == 1  # what was done by then
    assert run_main(options) == 0
    assert "resuming: 1 of 3 trainings done" in capsys.readouterr().err
    assert len(study_of("length")["points"]) == 2


def test_a_study_interrupted_in_its_pictures_has_lost_nothing(workplace, monkeypatch, capsys):
    def interrupted(content):
        raise KeyboardInterrupt

    monkeypatch.setattr(studies_shared, "plot_study", interrupted)
    assert run_main("--study lengths --seq-lens 12 --runs 1 --positions learned") == 130
    errors = capsys.readouterr().err
    assert "the same command goes on from there" in errors and "before the first" not in errors


def test_accumulation_goes_without_the_graphs_of_the_preset(capsys):
    parser = build_parser()
    options = ["--preset", "long", "--device", "cpu", "--gradient-accumulation", "2"]
    assert config_from(parser.parse_args(options)).compile == "default"
    assert "--compile default instead" in capsys.readouterr().err
    with pytest.raises(ValueError, match="keeps gradients in CUDA graphs"):
        config_from(parser.parse_args([*options, "--compile", "reduce-overhead"]))
    assert config_from(parser.parse_args(options[:4])).compile == "reduce-overhead"


@pytest.mark.parametrize(
    "options, words",
    [
        ("--seq-lens 12", "--seq-lens belongs to --study lengths"),
        ("--study lengths --patterns 5:3", "--patterns belongs to --study patterns"),
        ("--study patterns --seq-lens 12", "--seq-lens belongs to --study lengths"),
        ("--study lengths --seq-lens 13", "does not divide the 48 tokens"),
        ("--study patterns --patterns 5-3", "window_size:dilation"),
        ("--study patterns --patterns 0:3", "window_size must be at least 1"),
        ("--study patterns --arms fused window", "name --patterns"),
        ("--arms fused w0-d3", "window_size must be at least 1"),
        ("--schedule linear", "invalid choice"),
    ],
)
def test_wrong_studies_get_one_line_before_anything_is_trained(workplace, capsys, options, words):
    try:
        assert run_main(options) == 2
    except SystemExit as stop:  # argparse
        assert stop.code == 2
    assert words in capsys.readouterr().err
    assert not Path("output").exists()


def test_a_dry_run_of_a_study_trains_nothing(workplace, capsys):
    options = "--study patterns --patterns 5:3 5:0 --runs 1 --dry-run"
    assert run_main(options) == 0
    printed = capsys.readouterr()
    assert printed.out.count("run 1: ") == 2 and "point 2 of 2: rotary" in printed.err
    assert "all 2 points: roughly " in printed.err
    assert not Path("output").exists()


def test_a_constant_schedule_stays_at_its_peak(workplace):
    rates = [training_batches.learning_rate(step, 10, 1.0, 4, "constant") for step in range(10)]
    assert rates == [0.25, 0.5, 0.75, 1.0, *[1.0] * 6]


@pytest.mark.parametrize("size", [2, 3, 6, 7, 9, 12])
def test_orders_of_many_arms_are_balanced_too(size):
    arms = tuple(f"w{n}-d0" for n in range(1, size + 1))
    orders = balanced_orders(arms, 2 * size, np.random.default_rng(0))
    assert all(sorted(order) == sorted(arms) for order in orders)
    for place in range(size):
        assert set(Counter(order[place] for order in orders).values()) == {2}
    assert all(type(arm) is str for order in orders for arm in order)

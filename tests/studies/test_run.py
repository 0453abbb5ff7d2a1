"""A study from its points to the exit code: what a stop leaves, what a restart moves, the ranks."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.metrics import load_experiment
from experiment.run import run_experiment
from machine import ranks
from studies import run as studies_run
from studies.points import length_points, pattern_points, study_folder
from studies.run import run_study
from studies.summary import load_study
from training import train as training_train
from training.config import make_config
from training.tokens import load_dataset

SIZES = {"seq_len": 24, "d_model": 16, "n_heads": 2, "layers": 1, "batch_size": 2, "lr": 1e-2}
SIZES |= {"runs": 1, "schedule": "constant", "device": "cpu", "data": "data.npy"}
SIZES |= {"max_steps": 4, "warmup_steps": 2, "val_batches": 1, "window_size": 5, "dilation": 3}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder with a small data file, and no child process, to be quick."""
    monkeypatch.chdir(tmp_path)
    np.save("data.npy", np.random.default_rng(0).integers(40, size=(60, 25)).astype(np.uint16))
    monkeypatch.setattr(training_train, "child_peak_memory_mb", lambda *_: 12.5)


@pytest.fixture
def made_up(monkeypatch, experiment_of):
    """Experiments that train nothing: {folder's name: how its trainings ended}, and what was asked.

    A status of "interrupted" is a Ctrl-C in the middle of the point.
    """
    status, asked = {}, []

    def run(config, dataset, **options):
        name = Path(config.output_dir).name
        asked.append(name)
        if status.get(name) == "interrupted":
            raise KeyboardInterrupt
        metrics, metadata = experiment_of("lengths", config.positions, config.seq_len)
        for run in metrics["window"]:
            run["status"] = status.get(name, "ok")
        metadata["mixed"] = ["this differs"] if options["allow_mixed"] else []
        return metrics, metadata

    monkeypatch.setattr(studies_run, "run_experiment", run)
    monkeypatch.setattr(studies_run, "save_figures", lambda *_: [])
    return SimpleNamespace(status=status, asked=asked)


def prepared_study(study, points, **options):
    """``run_study``'s arguments."""
    defaults = {"study": study, "dry_run": False, "restart": False, "allow_mixed": False}
    config = make_config("laptop", **SIZES, arms=("window", "fused"))
    prepared = []
    for point in points:
        folder = study_folder(config.output_dir, study) / point.name
        here = replace(config, **point.changes, output_dir=str(folder))
        prepared.append((point, here, load_dataset(here.data, here.seq_len, here.batch_size)))
    return config, prepared, SimpleNamespace(**defaults | options), []


def run_lengths(lengths=(12, 24), kinds=("learned",), **options):
    """The exit code of a study of lengths."""
    return run_study(*prepared_study("lengths", length_points(lengths, kinds, 2, 24), **options))


def places():
    points = load_study("output/length_study.json")["points"]
    return [(point["positions"], point["seq_len"]) for point in points]


def test_the_same_study_again_trains_what_is_missing(capsys):
    assert run_lengths((12,)) == 0
    (before,) = load_study("output/length_study.json")["points"]
    capsys.readouterr()
    assert run_lengths((12, 24)) == 0
    errors = capsys.readouterr().err
    assert errors.count(" 1/1 ") == 2  # the arms of one point alone
    assert "written: output/length_study.json, plots/length_scaling.png" in errors
    point, new = load_study("output/length_study.json")["points"]
    assert point["experiment_id"] == before["experiment_id"] != new["experiment_id"]
    metrics, _ = load_experiment("output/length_study/learned_24/experiment_results.npz")
    losses = [run["val_loss"] for run in metrics["fused"]]
    assert new["arms"]["fused"]["val_loss"]["mean"] == pytest.approx(np.mean(losses))


def test_an_arm_named_by_a_pattern_is_the_window_arm_with_that_pattern(monkeypatch, capsys):
    monkeypatch.setattr(studies_run, "save_figures", lambda *_: [])
    study = prepared_study("patterns", pattern_points(((5, 0), (9, 2)), ("rotary",)))
    assert run_study(*study) == 0
    assert "rotary positions, S 24: " in capsys.readouterr().out  # what it recommends, or why not
    (point,) = load_study("output/pattern_study.json")["points"]
    assert list(point["arms"]) == ["fused", "w5-d0", "w9-d2"]
    metrics, _ = load_experiment("output/pattern_study/rotary/experiment_results.npz")
    _, ((_, here, dataset),), *_ = study
    alone = replace(here, arms=("window",), window_size=9, dilation=2, output_dir="alone")
    window, _ = run_experiment(alone, dataset)
    (one,), (other,) = metrics["w9-d2"], window["window"]
    np.testing.assert_array_equal(one["losses"], other["losses"])
    assert one["val_loss"] == other["val_loss"]


def test_every_point_is_told_and_summed_up(made_up, capsys):
    assert run_lengths(kinds=("learned", "rotary"), allow_mixed=True) == 0
    printed = capsys.readouterr()
    assert "learned positions" in printed.out and "MIXED: rotary_24: this differs" in printed.out
    assert "point 4 of 4: rotary_24" in printed.err
    assert places() == [(kind, length) for kind in ("learned", "rotary") for length in (12, 24)]


def test_a_stop_leaves_the_points_before_it(made_up):
    made_up.status["learned_24"] = "interrupted"
    with pytest.raises(KeyboardInterrupt):
        run_lengths()
    assert places() == [("learned", 12)]
    assert Path("output/length_study/learned_12/improved_comparison_results.txt").is_file()


@pytest.mark.parametrize("status, code", [("out_of_memory", 0), ("diverged", 3)])
def test_memory_that_ran_out_is_no_failure_and_a_diverged_training_is(status, code, made_up):
    made_up.status["learned_12"] = status
    assert run_lengths() == code
    assert made_up.asked == ["learned_12", "learned_24"]


def test_a_restart_moves_the_whole_study_aside_once(made_up, capsys):
    run_lengths()
    assert run_lengths(restart=True) == 0
    (moved,) = Path("output").glob("length_study_earlier_*")
    assert f"the old results are now in {moved}" in capsys.readouterr().err
    for folder in (moved, Path("output/length_study")):
        assert (folder / "learned_24/improved_comparison_results.txt").is_file()


def test_a_dry_run_trains_nothing(made_up, capsys):
    assert run_lengths(dry_run=True) == 0
    printed = capsys.readouterr()
    assert printed.out.count("(seed ") == 2 and "point 2 of 2: learned_24" in printed.err
    assert "all 2 points: roughly " in printed.err
    assert not made_up.asked and not Path("output").exists()


def test_ranks_that_train_along_write_nothing(monkeypatch, capsys):
    monkeypatch.setattr(studies_run, "run_experiment", lambda *_, **__: None)
    monkeypatch.setattr(ranks, "from_first", lambda *_: 3)  # what the first rank returned
    assert run_lengths() == 3
    assert not capsys.readouterr().out and not Path("output").exists()

"""A study by the command line: points, stops, restart, and options that make no study."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import nobody_reads
from small_experiment import (
    break_training,
    contents,
    diverge,
    run_main,
    run_out_of_memory,
    same_losses,
    stop_at,
)

from analysis.metrics import load_experiment
from compare_models import GOES_ON
from machine import ranks
from studies import run as studies_run

RESULTS = "experiment_results.npz"
LENGTHS = "--study lengths --seq-lens 12 24 --runs 1 --positions learned --arms window fused"


pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def undrawn(monkeypatch):
    """A study's figures, which take most of its time, are not drawn here."""
    monkeypatch.setattr("figures.page.save_figures", lambda *_: [])
    monkeypatch.setattr("figures.page.html", lambda *_: "")


def points():
    return json.loads(Path("output/length_study.json").read_text())["points"]


def identities():
    return [point["experiment_id"] for point in points()]


def test_a_study_of_lengths_trains_sums_up_and_goes_on(capsys):
    options = "--study lengths --seq-lens 24 12 --runs 2 --max-steps 6"
    assert run_main(options) == 0
    printed = capsys.readouterr()
    assert "learned positions" in printed.out and "rotary positions" in printed.out
    assert "point 4 of 4: rotary_24" in printed.err
    assert (
        "written: output/length_study.json, output/length_study.html, plots/length_scaling.png"
        in printed.err
    )
    before = identities()
    places = [(p["positions"], p["seq_len"], p["batch_size"]) for p in points()]
    assert places == [(k, s, 48 // s) for k in ("learned", "rotary") for s in (12, 24)]
    for point in points():
        assert point["contrasts"]["window/fused"]["time"]["n"] == 2
        metrics, metadata = load_experiment(f"{point['output_dir']}/{RESULTS}")
        assert metadata["config"]["schedule"] == "constant"
        losses = [training["val_loss"] for training in metrics["fused"]]
        assert point["arms"]["fused"]["val_loss"]["mean"] == pytest.approx(np.mean(losses))
    assert contents("plots") == [f"length_scaling.{kind}" for kind in ("pdf", "png")]
    shutil.rmtree("output/length_study/rotary_24")  # as if it had been stopped before
    assert run_main(options) == 0
    assert capsys.readouterr().err.count("block 1/2") == 3  # the arms of one point alone
    assert identities()[:3] == before[:3] and identities()[3] != before[3]


def test_a_study_is_drawn_whoever_reads(monkeypatch):
    nobody_reads(monkeypatch)
    assert run_main(LENGTHS) == 0
    assert "length_scaling.png" in contents("plots")


def test_a_stopped_study_says_how_to_go_on_and_what_differs_is_marked(undrawn, monkeypatch, capsys):
    stop_at(monkeypatch, 4)
    assert run_main(LENGTHS) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"interrupted: {GOES_ON}"
    (done,) = identities()  # what was complete by then
    assert Path("output/length_study/learned_12/improved_comparison_results.txt").is_file()
    assert run_main(f"{LENGTHS} --lr 0.02") == 2
    assert "config.lr: 0.01 before, 0.02 now" in capsys.readouterr().err
    assert run_main(f"{LENGTHS} --lr 0.02 --allow-mixed") == 0
    printed = capsys.readouterr()
    assert "resuming: 1 of 2 trainings done" in printed.err
    assert "MIXED: learned_24: config.lr: 0.01 before, 0.02 now" in printed.out
    assert identities()[0] == done and points()[1]["mixed"]


def test_a_restarted_study_begins_anew_at_every_point(undrawn, monkeypatch, capsys):
    assert run_main(LENGTHS) == 0
    before, file = identities(), Path("output/length_study.json").read_bytes()
    stop_at(monkeypatch, 2)
    assert run_main(f"{LENGTHS} --max-steps 5 --restart") == 130
    assert "the old results are now in" in capsys.readouterr().err
    assert run_main(f"{LENGTHS} --max-steps 5") == 0
    assert not set(before) & set(identities()) and len(identities()) == 2
    (earlier,) = Path("output").glob("length_study_earlier_*")
    files = ["length_study.html", "length_study.json"]
    assert contents(earlier) == ["learned_12", "learned_24", *files]
    assert (earlier / "length_study.json").read_bytes() == file


def test_an_arm_named_by_a_pattern_is_the_window_arm_with_that_pattern(undrawn, capsys):
    options = "--positions rotary --runs 1"
    assert run_main(f"--study patterns --patterns 5:0 9:2 {options}") == 0
    assert "Use at S 24, rotary positions: " in capsys.readouterr().out
    (point,) = json.loads(Path("output/pattern_study.json").read_text())["points"]
    assert list(point["arms"]) == ["fused", "w5-d0", "w9-d2"]
    options += " --arms window --window-size 9 --dilation 2 --schedule constant"
    assert run_main(f"{options} --output-dir alone") == 0
    named = load_experiment(f"output/pattern_study/rotary/{RESULTS}")[0]["w9-d2"]
    alone = load_experiment(f"alone/{RESULTS}")[0]["window"]
    assert same_losses({"window": named}, {"window": alone})


@pytest.mark.parametrize(("fail", "code"), [(run_out_of_memory, 0), (diverge, 3)])
def test_memory_that_ran_out_is_no_failure_and_a_diverged_training_is(monkeypatch, fail, code):
    break_training(monkeypatch, "window", fail)
    assert run_main(LENGTHS) == code
    assert len(points()) == 2


def test_a_dry_run_trains_nothing(capsys):
    assert run_main(f"{LENGTHS} --dry-run") == 0
    printed = capsys.readouterr()
    assert printed.out.count("(seed ") == 2 and "point 2 of 2: learned_24" in printed.err
    assert "all 2 points: roughly " in printed.err
    assert not Path("output").exists()


def test_ranks_that_train_along_write_nothing(monkeypatch, capsys):
    monkeypatch.setattr(studies_run, "run_experiment", lambda *_, **__: None)
    from_first = ranks.from_first

    def report_elsewhere(function, *arguments):
        """What the first rank returned, of the report alone."""
        return 3 if function is studies_run.report_study else from_first(function, *arguments)

    monkeypatch.setattr(ranks, "from_first", report_elsewhere)
    assert run_main(LENGTHS) == 3
    assert not capsys.readouterr().out and not contents("output")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--seq-lens 12", "--seq-lens belongs to --study lengths"),
        ("--study lengths --patterns 5:3", "--patterns belongs to --study patterns"),
        ("--study patterns --seq-lens 12", "--seq-lens belongs to --study lengths"),
        ("--study lengths --seq-lens 13", "does not divide the 48 tokens"),
        ("--study patterns --patterns 5-3", "window_size:dilation"),
        ("--study patterns --patterns 0:-3", "--patterns 0:-3: give window_size:dilation"),
        ("--study patterns --arms fused window", "name --patterns"),
        ("--study widths", "invalid choice: 'widths'"),
    ],
)
def test_wrong_studies_get_one_line_before_anything_is_trained(capsys, options, words):
    try:
        assert run_main(options) == 2
    except SystemExit as stop:  # argparse
        assert stop.code == 2
    assert words in capsys.readouterr().err
    assert not Path("output").exists()

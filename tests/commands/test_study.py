"""A study by the command line: points, stops, restart, and options that make no study."""

import json
import shutil
from pathlib import Path

import pytest
from small_experiment import contents, prepare_workplace, run_main, stop_at

from analysis.metrics import load_experiment
from compare_models import GOES_ON

LENGTHS = "--study lengths --seq-lens 12 24 --runs 1 --positions learned --arms window fused"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    return prepare_workplace(tmp_path, monkeypatch)


def points():
    return json.loads(Path("output/length_study.json").read_text())["points"]


def identities():
    return [point["experiment_id"] for point in points()]


def test_a_study_of_lengths_trains_sums_up_and_goes_on(capsys):
    options = "--study lengths --seq-lens 24 12 --runs 2 --max-steps 6"
    assert run_main(options) == 0
    printed = capsys.readouterr()
    assert "learned positions" in printed.out and "rotary positions" in printed.out
    before = identities()
    places = [(p["positions"], p["seq_len"], p["batch_size"]) for p in points()]
    assert places == [(k, s, 48 // s) for k in ("learned", "rotary") for s in (12, 24)]
    for point in points():
        assert point["contrasts"]["window/fused"]["time"]["n"] == 2
        metadata = load_experiment(f"{point['output_dir']}/experiment_results.npz")[1]
        assert metadata["config"]["schedule"] == "constant"
    assert contents("plots") == [
        f"length_{name}.{kind}" for name in ("quality", "scaling") for kind in ("pdf", "png")
    ]
    shutil.rmtree("output/length_study/rotary_24")  # as if it had been stopped before
    assert run_main(options) == 0
    assert capsys.readouterr().err.count("block 1/2") == 3  # the arms of one point alone
    assert identities()[:3] == before[:3] and identities()[3] != before[3]


def test_a_stopped_study_says_how_to_go_on_and_what_differs_is_marked(monkeypatch, capsys):
    stop_at(monkeypatch, 4)
    assert run_main(LENGTHS) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"interrupted: {GOES_ON}"
    (done,) = identities()  # what was complete by then
    assert run_main(f"{LENGTHS} --lr 0.02") == 2
    assert "config.lr: 0.01 before, 0.02 now" in capsys.readouterr().err
    assert run_main(f"{LENGTHS} --lr 0.02 --allow-mixed") == 0
    printed = capsys.readouterr()
    assert "resuming: 1 of 2 trainings done" in printed.err
    assert "MIXED: learned_24: config.lr: 0.01 before, 0.02 now" in printed.out
    assert identities()[0] == done and points()[1]["mixed"]


def test_a_restarted_study_begins_anew_at_every_point(monkeypatch, capsys):
    assert run_main(LENGTHS) == 0
    before = identities()
    stop_at(monkeypatch, 2)
    assert run_main(f"{LENGTHS} --max-steps 5 --restart") == 130
    assert "the old results are now in" in capsys.readouterr().err
    assert run_main(f"{LENGTHS} --max-steps 5") == 0
    assert not set(before) & set(identities()) and len(identities()) == 2
    (earlier,) = Path("output").glob("length_study_earlier_*")
    assert contents(earlier) == ["learned_12", "learned_24"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--seq-lens 12", "--seq-lens belongs to --study lengths"),
        ("--study lengths --patterns 5:3", "--patterns belongs to --study patterns"),
        ("--study patterns --seq-lens 12", "--seq-lens belongs to --study lengths"),
        ("--study lengths --seq-lens 13", "does not divide the 48 tokens"),
        ("--study patterns --patterns 5-3", "window_size:dilation"),
        ("--study patterns --patterns 0:3", "window_size must be at least 1"),
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

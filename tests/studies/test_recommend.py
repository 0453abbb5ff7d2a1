"""What a study recommends, in its file, its tables and the analysis of patterns."""

import copy
import json

import pytest
from conftest import ROOT, is_drawn

import analyze_hyperparameters
from analysis.recommend import recommend
from estimates.report import known_text
from machine.files import write_json
from studies.summary import load_study, summarize
from studies.tables import format_study


def test_every_point_says_first_what_to_use(experiment_of):
    metrics, metadata = experiment_of("patterns", blocks=5)
    metadata["plan"]["confirmation"] = 2
    content = json.loads(json.dumps(summarize("patterns", [(metrics, metadata)])))
    found = json.loads(json.dumps(recommend(metrics, metadata)._asdict()))
    assert content["points"][0]["recommendation"] == found
    # w32-d0 is faster but worse
    assert found["use"] == "w96-d16" and found["confirmed"] is True
    words = "Use at S 1,024, learned positions: w96-d16, chosen from 3 patterns on 3 blocks,"
    assert format_study(content).startswith(words)


def test_every_length_says_what_to_use(lengths):
    text = format_study(lengths)
    for length in ("256", "1,024"):
        for kind in ("learned", "rotary"):
            words = f"Use at S {length}, {kind} positions: window, as good as fused and faster"
            assert text.count(words) == 1


def test_a_saved_experiment_is_a_study_of_one_point():
    saved = load_study(ROOT / "results/h100_patterns_rotary.npz")
    (point,) = saved["points"]
    (same,) = (
        point
        for point in load_study(ROOT / "results/h100_pattern_study.json")["points"]
        if point["positions"] == "rotary"
    )
    losses = [each["arms"]["w96-d4"]["val_loss"]["mean"] for each in (point, same)]
    assert losses[0] == pytest.approx(losses[1])
    assert point["recommendation"]["use"] == same["recommendation"]["use"] == "w32-d0"


@pytest.mark.parametrize(("steps", "short"), [(60, True), (48_829, False), (48_828, True)])
def test_what_is_known_says_of_short_trainings_what_they_are(patterns, steps, short):
    patterns["points"][0]["steps"] = steps
    patterns["config"] |= {"seq_len": 1024, "batch_size": 2}
    text = known_text(patterns, "a.json", ["w96-d4"])
    assert f"Every training saw {steps * 2048:,} tokens" in text
    assert (f" {steps * 2048:,} tokens; longer training may rank" in text) is short
    assert text.count("\nw96-d4 ") == 2 and "\nw32-d0 " not in text
    assert text.count("positions: w96-d16, chosen from 3") == 2


def test_the_window_of_an_experiment_is_known_by_its_pattern(patterns):
    for point in patterns["points"]:
        point["arms"]["window"] = copy.deepcopy(point["arms"].pop("w96-d4"))
    patterns["config"] |= {"window_size": 96, "dilation": 4}
    assert known_text(patterns, "a.json", ["w96-d4"]).count("\nwindow ") == 2
    patterns["config"]["full_heads"] = 1
    words = "the pattern asked for was not trained there"
    assert known_text(patterns, "a.json", ["w96-d4"]).count(words) == 2


def test_the_analysis_shows_what_was_measured(patterns, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json("output/pattern_study.json", patterns)
    assert analyze_hyperparameters.main(["--measured"]) == 0
    printed = capsys.readouterr().out
    assert "MEASURED\nUse at S 1,024, learned positions: w96-d16" in printed
    assert printed.count("positions: w96-d16, chosen from 3 patterns") == 2
    assert is_drawn(tmp_path / "plots/sparsity_speedup_tradeoff_len1024_measured.png")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--measured"], "--study patterns writes it"),
        (["96", "4", "--measured"], "give none of them"),
        (["--measured", "output/length_study.json"], "no study of patterns"),
    ],
)
def test_the_analysis_refuses_what_it_cannot_show(
    options, words, lengths, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_json("output/length_study.json", lengths)
    assert analyze_hyperparameters.main(options) == 2
    assert words in capsys.readouterr().err

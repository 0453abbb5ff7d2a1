"""The pattern that a study recommends, in its tables and in the analysis of patterns."""

import pytest

import analyze_hyperparameters
from machine.files import write_json
from studies.tables import measured_rows, recommend


def test_the_fastest_that_is_not_worse_is_recommended(patterns):
    words = recommend(patterns)
    assert [line.split(",")[0] for line in words] == ["learned positions", "rotary positions"]
    # w32-d0 is faster but worse
    assert all("w96-d16 is the fastest of the patterns shown" in line for line in words)
    assert all("(2 of 3): " in line for line in words)


def test_without_a_pattern_to_choose_it_says_how_many_blocks_would_decide(patterns):
    for point in patterns["points"]:
        for _, summary, _ in measured_rows(point):
            summary["contrast"]["quality"] |= {"verdict": "undecided", "runs_needed": 17}
    words = (
        "no pattern is shown to be both faster than fused and not worse by 0.02 nats. Blocks that "
        "would decide whether one is worse: w32-d0 (about 17), w96-d4 ("
    )
    assert all(words in line for line in recommend(patterns))


def test_a_slower_pattern_is_not_recommended(patterns):
    for point in patterns["points"]:
        for _, summary, _ in measured_rows(point):
            summary["contrast"]["time"] |= {"ratio": 1.2, "low": 1.1, "high": 1.3}
    assert all(line.endswith("and not worse by 0.02 nats.") for line in recommend(patterns))


def test_the_analysis_shows_what_was_measured(patterns, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json("output/pattern_study.json", patterns)
    assert analyze_hyperparameters.main(["--measured"]) == 0
    printed = capsys.readouterr().out
    assert "MEASURED\nStudy of patterns: 2-core CPU" in printed
    assert printed.count("w96-d16 is the fastest of the patterns") == 2
    assert "1,024" in printed  # the study's length, not that of the analysis
    assert (tmp_path / "plots/sparsity_speedup_tradeoff.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "options, words",
    [
        (["--measured"], "--study patterns writes it"),
        (["96", "4", "--measured"], "give neither"),
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

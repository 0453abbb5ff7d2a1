"""A study in words."""

import re

import pytest
from conftest import flat

from estimates.pattern import PatternAnalysis
from estimates.report import format_report
from studies.pictures import plot_study
from studies.summary import summarize
from studies.tables import format_study


@pytest.mark.parametrize("study", ["lengths", "patterns"])
def test_each_kind_of_positions_has_a_table(study, summed_up):
    text = flat(format_study(summed_up[study]))
    assert text.count("pairs kept") == text.count("faster than fused memory/fused") == 2
    assert "learned positions" in text and "rotary positions" in text
    assert "blocks a point: 4; 60 steps" in text


@pytest.mark.parametrize("study", ["lengths", "patterns"])
def test_one_block_has_no_intervals(study, experiment_of):
    content = summarize(study, [experiment_of(study, blocks=1)])
    tables, _ = format_study(content).split("[ ]")
    assert "[" not in tables
    for figure in plot_study(content).values():
        figure.draw_without_rendering()


def test_memory_that_ran_out_is_told_in_the_table(lengths):
    *_, last = re.findall("^1,024 .*", format_study(lengths), re.MULTILINE)
    assert "out of memory" in last


def test_what_disturbed_a_point_is_told_above_the_tables(experiment_of):
    experiments = [experiment_of("patterns", kind) for kind in ("learned", "rotary")]
    experiments[1][0]["w96-d4"][2]["step_seconds"][7] = 0.9
    content = summarize("patterns", experiments)
    words = r"warning: rotary: w96-d4, \w+ 3: 1 of 60 steps took more than 1.5 times the median"
    for text in (format_study(content), format_report([PatternAnalysis(96, 4, 1024)], content)):
        text = flat(text)
        assert re.search(words, text) and "warning: learned" not in text


def test_an_analysis_without_a_study_says_how_to_get_one():
    text = format_report([PatternAnalysis(96, 4, 1024)])
    assert "compare_models.py --study patterns` measures" in text

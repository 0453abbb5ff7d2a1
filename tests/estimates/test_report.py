"""The report of estimates in words."""

import re

from estimates.pattern import CONFIGURATIONS, PatternAnalysis
from estimates.report import format_report


def report_of(*patterns, **options):
    return format_report([PatternAnalysis(*pattern, **options) for pattern in patterns])


def test_the_report_calls_the_speedups_estimates_and_names_the_sparsest():
    report = report_of(*CONFIGURATIONS)
    for fact in ("70.82%", "29.18%", "23,296", "20,176", "3,120", "136", "1.41x", "1.010x"):
        assert fact in report
    assert "ESTIMATED" in report and "estimates from FLOP counts" in report
    assert "by this estimate: w=64 d=8 (50.97%" in report


def test_ties_for_the_sparsest_are_all_named():
    report = report_of((96, 4), (64, 4), seq_len=16)
    assert "w=96 d=4, w=64 d=4 (100.00%" in report
    assert report.count("it is full causal attention") == 2


def test_one_of_everything_is_no_plural():
    assert not re.search(r"\b1 [a-z(), ]*(layers|pairs)\b", report_of((1, 1, 1), layers=1))
    assert re.search("2 layers.* of 3 causal .* pairs,", report_of((1, 1, 2), layers=2), re.DOTALL)


def test_sinks_are_named_and_counted():
    # S = 8, w = 2, d = 0: keys 0 and 1 have 5 and 4 queries beyond their window
    row = next(line for line in report_of((2, 0, 8), sink_tokens=2).splitlines() if "N=2" in line)
    assert row.split()[:3] == ["w=2", "d=0", "N=2"] and row.split()[-3:] == ["9", "3.8", "5"]

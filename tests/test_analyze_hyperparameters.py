"""The analysis against brute force and hand-computed constants, its pictures and command line."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

import analyze_hyperparameters
from estimates import pattern as estimates_pattern
from estimates import pictures as estimates_pictures
from estimates import report as estimates_report
from estimates import tradeoff as estimates_tradeoff
from estimates.pattern import analyze_pattern
from estimates.pictures import FAR, FUTURE, NEAR, SINK, UNATTENDED

PATTERNS = {
    "seq_len": st.integers(1, 70),
    "window_size": st.integers(1, 80),
    "dilation": st.integers(0, 12),
    "sink_tokens": st.one_of(st.just(0), st.integers(1, 80)),
}


def brute_force_kind(i, j, w, d, sinks=0):
    """The pattern in plain words, independent of the code: which keys does query i list?"""
    if j > i:
        return FUTURE
    if j in range(i - w, i + 1):
        return NEAR
    far = set()
    key = i - w - d
    while d and key >= 0:
        far.add(key)
        key -= d
    if j in far:
        return FAR
    return SINK if j in range(sinks) else UNATTENDED


def brute_force(seq_len, *pattern):
    """The kinds of all pairs, (S, S), by a double loop."""
    positions = range(seq_len)
    return np.array([[brute_force_kind(i, j, *pattern) for j in positions] for i in positions])


# --- the numbers -------------------------------------------------------------------------------


@given(**PATTERNS)
@settings(max_examples=80, deadline=None)
def test_counts_equal_a_double_loop(seq_len, window_size, dilation, sink_tokens):
    kinds = brute_force(seq_len, window_size, dilation, sink_tokens)
    near, far, sinks = ((kinds == kind).sum(axis=1) for kind in (NEAR, FAR, SINK))
    a = analyze_pattern(window_size, dilation, seq_len, sink_tokens=sink_tokens)
    assert (a.near_pairs, a.far_pairs, a.sink_pairs) == (near.sum(), far.sum(), sinks.sum())
    assert a.causal_pairs == (kinds != FUTURE).sum()
    attended = near + far + sinks
    assert a.density == pytest.approx(attended.sum() / (kinds != FUTURE).sum(), rel=1e-12)
    assert a.sparsity == pytest.approx((kinds == UNATTENDED).sum() / a.causal_pairs, abs=1e-12)
    assert a.mean_keys == pytest.approx(attended.mean(), rel=1e-12)
    assert a.max_keys == attended.max() == attended[-1]
    ours = estimates_pattern.keys_per_query(np.arange(seq_len), window_size, dilation, sink_tokens)
    np.testing.assert_array_equal(ours, [near, far, sinks])


@given(**PATTERNS, cells=st.integers(1, 80))
@settings(max_examples=60, deadline=None)
def test_blocks_hold_the_exact_shares_of_their_pairs(
    seq_len, window_size, dilation, sink_tokens, cells
):
    shares, side = estimates_pictures.block_shares(
        seq_len, window_size, dilation, cells, sink_tokens
    )
    n = len(shares)
    assert shares.shape == (n, n, 5) and n <= cells
    assert (n - 1) * side < seq_len <= n * side
    kinds = brute_force(n * side, window_size, dilation, sink_tokens)
    blocks = kinds.reshape(n, side, n, side).swapaxes(1, 2).reshape(n, n, side * side)
    expected = np.stack([(blocks == kind).mean(axis=-1) for kind in range(5)], axis=-1)
    np.testing.assert_allclose(shares, expected, atol=1e-12)


def test_detail_shows_the_kinds_of_a_rectangle_of_pairs():
    ours = estimates_pictures.pair_kinds(np.arange(20, 50), np.arange(5, 40), 9, 4, 8)
    np.testing.assert_array_equal(ours, brute_force(50, 9, 4, 8)[20:50, 5:40])


def test_published_density():
    a = analyze_pattern(96, 4)
    assert (a.near_pairs + a.far_pairs, a.causal_pairs) == (23_296, 32_896)
    assert f"{a.density:.2%}" == "70.82%"


def test_flops_and_amdahl_equal_hand_computed_constants():
    # C = 2, one layer, V = 3, S = 4, w = 1, d = 2: near 1 + 2 + 2 + 2 = 7, far: query 3 sees key 0.
    a = analyze_pattern(1, 2, seq_len=4, d_model=2, layers=1, vocab_size=3)
    assert (a.near_pairs, a.far_pairs, a.causal_pairs) == (7, 1, 10)
    assert a.linear_flops == 4 * (24 * 4 + 12)  # 432
    assert (a.flops_full, a.flops_sparse) == (80, 64)
    assert a.attention_share == pytest.approx(80 / 512, rel=1e-12)
    assert a.attention_speedup == pytest.approx(1.25, rel=1e-12)
    assert a.step_speedup == pytest.approx(512 / 496, rel=1e-12)


def test_flops_of_the_default_model():
    a = analyze_pattern(96, 4)
    assert a.linear_flops == 256 * (8 * 24 * 262_144 + 10_240_000)
    assert a.flops_full == 538_968_064
    assert f"{a.attention_share:.4f} {a.step_speedup:.5f}" == "0.0336 1.00990"


@pytest.mark.parametrize("pattern", [(7, 1, 50), (60, 3, 50), (49, 0, 50), (1, 1, 1), (1, 0, 1)])
def test_full_causal_patterns_gain_nothing(pattern):
    a = analyze_pattern(*pattern)
    assert (a.density, a.sparsity, a.attention_speedup) == (1, 0, 1)
    assert a.step_speedup == pytest.approx(1, abs=1e-12)
    assert "full causal attention" in estimates_report.format_report([a])


def test_dilation_zero_is_the_window_alone():
    a = analyze_pattern(96, 0)
    assert (a.far_pairs, a.near_pairs, a.max_keys) == (0, 20_176, 97)
    assert "pure sliding window" in estimates_report.format_report([a])


@pytest.mark.parametrize(
    ("field", "value"),
    [("window_size", 0), ("dilation", -1), ("seq_len", 0), ("d_model", 0), ("layers", -2),
     ("sink_tokens", -1),
     ("vocab_size", 0), ("seq_len", 2.5), ("window_size", True), ("seq_len", 10**30)],
)  # fmt: skip
def test_wrong_values_are_named(field, value):
    arguments = {"window_size": 96, "dilation": 4, field: value}
    with pytest.raises(ValueError, match=f"{field} .*{value}"):
        analyze_pattern(**arguments)


def test_an_analysis_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        analyze_pattern(96, 4).density = 1.0


def test_the_report_has_columns_for_the_sinks_where_there_are_any():
    # S = 8, w = 2, d = 0: keys 0 and 1 have 5 and 4 queries beyond their window
    a = analyze_pattern(2, 0, 8, sink_tokens=2)
    report = estimates_report.format_report([a])
    assert a.sink_pairs == 9 and a.label == "w=2 d=0 N=2"
    assert "sink pairs" in report and "max keys = near + far + sink" in report
    assert "5 = 3 + 0 + 2" in report and "pure sliding window with sinks" in report
    assert "sink" not in estimates_report.format_report([analyze_pattern(2, 0, 8)])


# --- the report --------------------------------------------------------------------------------


def test_report_says_how_auto_evaluates_the_patterns_and_why():
    report = estimates_report.format_report(
        [analyze_pattern(w, 4, seq_len=2048) for w in (96, 1000)]
    )
    for device in ("cpu, float32", "cuda, bfloat16"):
        assert f"{device}: split for w=96 d=4 (from " in report
        assert f"{device}: masked for w=1000 d=4 (a window over a third" in report
    assert "cpu, float32: masked (below" in estimates_report.format_report([analyze_pattern(96, 4)])


def test_report_calls_the_speedups_estimates_and_names_the_sparsest():
    analyses = [analyze_pattern(w, d) for w, d in estimates_pattern.CONFIGURATIONS]
    report = estimates_report.format_report(analyses)
    for fact in ("70.82%", "23,296", "20,176", "3,120", "136 = 97 + 39", "1.41x", "1.010x"):
        assert fact in report
    assert "ESTIMATED" in report and "estimates from FLOP counts" in report
    assert "by this estimate: w=64 d=8 (50.97%" in report


def test_ties_for_the_sparsest_are_all_named():
    report = estimates_report.format_report([analyze_pattern(w, 4, seq_len=16) for w in (96, 64)])
    assert "w=96 d=4, w=64 d=4 (100.00%" in report


# --- the pictures ------------------------------------------------------------------------------


@given(
    values=st.lists(st.floats(0, 100), min_size=1, max_size=8),
    gap=st.floats(0.1, 12),
)
@settings(max_examples=80, deadline=None)
def test_labels_keep_their_distance_their_order_and_the_limits(values, gap):
    placed = estimates_tradeoff.spread(values, gap, 0, 100)
    order = np.argsort(values, kind="stable")
    assert (np.diff(placed[order]) >= gap - 1e-9).all()
    assert placed.min() >= -1e-9 and placed.max() <= 100 + 1e-9


def test_labels_with_room_stay_where_they_are():
    np.testing.assert_allclose(estimates_tradeoff.spread([30, 10, 50], 5, 0, 60), [30, 10, 50])


def overlapping(annotations):
    boxes = [Text.get_window_extent(text) for text in annotations]  # without the leader lines
    return [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a.overlaps(b)]


@pytest.mark.parametrize("seq_len", [16, 256, 65_536])
def test_tradeoff_shows_every_configuration_without_overlap(seq_len):
    analyses = [analyze_pattern(w, d, seq_len) for w, d in estimates_pattern.CONFIGURATIONS]
    figure = estimates_tradeoff.plot_tradeoff(analyses)
    figure.draw_without_rendering()
    top, bottom = figure.axes
    assert sorted(t.get_text() for t in top.texts) == sorted(
        a.label.replace(" ", "\n") for a in analyses
    )
    assert not overlapping(top.texts)
    for axes, field in ((top, "attention_speedup"), (bottom, "step_speedup")):
        curve, points = axes.lines[0], axes.lines[1]
        np.testing.assert_allclose(points.get_xdata(), [100 * a.sparsity for a in analyses])
        np.testing.assert_allclose(points.get_ydata(), [getattr(a, field) for a in analyses])
        assert curve.get_ydata()[-1] == pytest.approx(max(points.get_ydata()))


def test_mask_picture_has_the_colours_of_the_pattern():
    figure = estimates_pictures.plot_comparison(
        [analyze_pattern(9, 4, 40), analyze_pattern(5, 0, 40, sink_tokens=3)]
    )
    for axes, pattern in zip(figure.axes, ((9, 4), (5, 0, 3)), strict=True):
        expected = estimates_pictures.PALETTE[brute_force(40, *pattern)]
        np.testing.assert_allclose(axes.images[0].get_array(), expected, atol=1e-12)


@pytest.mark.parametrize("pattern", [(96, 4), (96, 0), (96, 1), (1, 1, 1), (600, 3, 700)])
def test_configuration_picture_draws(pattern):
    a = analyze_pattern(*pattern)
    figure = estimates_pictures.plot_configuration(a)
    figure.draw_without_rendering()
    titles = " ".join(axes.get_title() for axes in figure.axes)
    assert f"{a.label}: {a.density:.2%}" in titles and "Estimate: attention" in titles


def test_plotting_leaves_global_settings_alone():
    before = dict(matplotlib.rcParams)
    estimates_tradeoff.plot_tradeoff([analyze_pattern(96, 4)])
    assert dict(matplotlib.rcParams) == before


# --- the command line --------------------------------------------------------------------------


def folders(path):
    return ["--output-dir", str(path / "output"), "--plots-dir", str(path / "plots")]


def test_comparison_writes_its_files_and_prints_the_report(tmp_path, capsys):
    assert analyze_hyperparameters.main(folders(tmp_path)) == 0
    out = capsys.readouterr().out
    report = (tmp_path / "output" / "hyperparameter_analysis.txt").read_text(encoding="utf-8")
    assert out.startswith(report)
    for name in ("hyperparameter_comparison.png", "sparsity_speedup_tradeoff.png"):
        path = tmp_path / "plots" / name
        assert f"wrote {path}" in out
        assert matplotlib.image.imread(path)[..., :3].std() > 0.05  # a blank picture has 0
    left = sorted(p.name for p in (tmp_path / "plots").iterdir() if p.suffix != ".pdf")
    assert left == ["hyperparameter_comparison.png", "sparsity_speedup_tradeoff.png"]


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_equal_figures_are_equal_bytes(suffix, tmp_path):
    paths = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for path in paths:
        analyze_hyperparameters.save_figure(
            estimates_tradeoff.plot_tradeoff([analyze_pattern(8, 3, 40)]), path
        )
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("x 4", "'x'"),
        ("96 4.5", "'4.5'"),
        ("96", "needs a dilation"),
        ("0 4", "window_size must be a whole number >= 1 and <= 2**40, got 0"),
        ("-3 4", "got -3"),
        ("96 -1", "dilation must be a whole number >= 0 and <= 2**40, got -1"),
        ("96 4 0", "seq_len must be a whole number >= 1 and <= 2**40, got 0"),
        ("96 4 256 8", "unrecognized arguments: 8"),
        ("96 4 256 --seq-len 512", "--seq-len 512"),
        ("--seq-len 0", "got 0"),
        ("--d-model 0", "d_model"),
        ("--layers many", "'many'"),
    ],
)
def test_wrong_arguments_end_with_usage_and_code_2(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        analyze_hyperparameters.main(arguments.split())
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("usage:") and not captured.out
    assert named in captured.err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_one_line_and_code_1(tmp_path, capsys):
    (tmp_path / "plots").write_text("in the way")
    assert analyze_hyperparameters.main(["8", "3", "40", *folders(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "plots") in line and "a file is where its folder should be" in line


def test_help_has_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        analyze_hyperparameters.main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for fact in ("(default: 256)", "(default: 512)", "(default: 10000)", "96 4 512", "(64,8)"):
        assert fact in out


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory peak")
def test_a_long_sequence_stays_below_a_gigabyte(tmp_path):
    # VmHWM starts anew with the child's program; ru_maxrss could inherit this process's peak.
    program = (
        "import re, sys, analyze_hyperparameters as h; code = h.main(sys.argv[1:]);"
        "status = open('/proc/self/status').read();"
        "print('peak', re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "96", "4", "65536", *folders(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "541,618,816" in result.stdout and "2,147,516,416" in result.stdout
    assert int(result.stdout.split()[-1]) < 2**20  # kB
    written = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert written == ["config_w96_d4.pdf", "config_w96_d4.png"]

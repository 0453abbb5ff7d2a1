"""Figures 2 to 7 draw every training, and means and intervals of analysis/."""

import numpy as np
import pytest

from analysis.significance import paired_ratio
from analysis.values import OUTCOMES, TIME, VAL_LOSS
from figures.all import draw
from figures.data import LOSSES


def test_final_losses_show_every_training_and_the_interval(
    prepared, artists, interval_of, t_interval
):
    data = prepared(5)
    for ax, metric in zip(draw("2_final_losses", data).axes, LOSSES, strict=False):
        values = data.values("fused", metric)
        (dots,), (mean,) = artists(ax, "fused"), artists(ax, "fused mean")
        np.testing.assert_allclose(dots.get_offsets()[:, 0], values)
        np.testing.assert_allclose(interval_of(mean), t_interval(values))


def test_differences_of_the_losses_are_paired(prepared, artists, interval_of, t_interval):
    data = prepared(5)
    ax = draw("2_final_losses", data).axes[3]
    difference = data.values("window", VAL_LOSS) - data.values("fused", VAL_LOSS)
    (mean,) = artists(ax, "window mean")
    np.testing.assert_allclose(interval_of(mean), t_interval(difference))
    low, high = t_interval(difference)
    shown = f"{difference.mean():+.4f}\n[{low:+.4f}, {high:+.4f}]"
    assert ax.texts[1].get_text() == shown.replace("-", "−")


@pytest.mark.parametrize("index, metric", list(enumerate(OUTCOMES)))
@pytest.mark.parametrize(
    "name, row, reference",
    [("3_metrics_comparison", "window", "fused"), ("9_summary", "window / baseline", "baseline")],
)
def test_rows_are_the_paired_ratios(
    prepared, artists, interval_of, name, row, reference, index, metric
):
    data = prepared("four blocks")
    ax = draw(name, data).axes[index]
    pair = data.values("window", metric), data.values(reference, metric)
    expected = paired_ratio(*pair)
    (mean,), (dots,) = artists(ax, f"{row} mean"), artists(ax, row)
    assert mean.lines[0].get_xdata()[0] == pytest.approx(expected.ratio)
    np.testing.assert_allclose(dots.get_offsets()[:, 0], pair[0] / pair[1])
    if expected.low is not None:
        np.testing.assert_allclose(interval_of(mean), (expected.low, expected.high))


def test_rows_give_the_absolute_values_in_text(prepared):
    data = prepared("four blocks")
    shown = " ".join(text.get_text() for text in draw("3_metrics_comparison", data).axes[1].texts)
    assert "1,400.0 MB" in shown and "1,501.5 MB" in shown


def test_a_distribution_has_its_box_every_training_and_the_mean(
    prepared, artists, interval_of, t_interval
):
    data = prepared("four blocks")
    for ax, metric in zip(draw("7_distributions", data).axes, OUTCOMES, strict=True):
        values = data.values("window", metric)
        (dots,), (mean,) = artists(ax, "window"), artists(ax, "window mean")
        np.testing.assert_allclose(dots.get_offsets()[:, 0], values)
        logs = t_interval(np.log(values))  # of times and memory: no whisker reaches below zero
        expected = t_interval(values) if metric in LOSSES else np.exp(logs)
        np.testing.assert_allclose(interval_of(mean), expected)
        assert any(np.allclose(line.get_xdata(), np.median(values)) for line in ax.lines)


def test_crosses_are_the_means_with_intervals_in_both_directions(prepared, artists, t_interval):
    data = prepared("four blocks")
    (ax,) = draw("4_speedup_quality", data).axes
    (mean,) = artists(ax, "window mean")
    speedup = paired_ratio(data.values("fused", TIME), data.values("window", TIME))
    loss = data.values("window", VAL_LOSS) - data.values("fused", VAL_LOSS)
    across, upright = (bar.get_segments()[0] for bar in mean.lines[2])
    expected = [(end, loss.mean()) for end in (speedup.low, speedup.high)]
    np.testing.assert_allclose(across, expected)
    np.testing.assert_allclose(upright, [(speedup.ratio, end) for end in t_interval(loss)])
    assert len(artists(ax, "window")[0].get_offsets()) == 4


@pytest.mark.parametrize(
    "name, arrow", [("4_speedup_quality", "↘"), ("5_memory_quality", "↙"), ("6_memory_speed", "↖")]
)
def test_better_points_to_fast_small_and_low(name, arrow, prepared):
    for ax in draw(name, prepared("one block")).axes:
        assert ax.get_title(loc="right") == f"better {arrow}"

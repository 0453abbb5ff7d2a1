"""Figures 2, 3, 7 and 9: every training, means and intervals of analysis/, verdicts in words."""

import numpy as np
import pytest
from conftest import make_experiment

from analysis.significance import Ratio, paired_ratio
from figures.data import LOSSES, METRICS, VAL_LOSS, prepare
from figures.values import (
    distributions,
    final_losses,
    metrics_comparison,
    ratio_verdict,
    shown_pairs,
    summary,
    verdict_on,
)


def test_final_losses_show_every_training_its_block_and_the_interval(
    prepared, artists, interval_of, t_interval
):
    data = prepared(5)
    for ax, metric in zip(final_losses(data).axes, LOSSES, strict=False):
        values = data.values("fused", metric)
        (dots,), (mean,) = artists(ax, "fused"), artists(ax, "fused mean")
        np.testing.assert_allclose(dots.get_offsets()[:, 0], values)
        np.testing.assert_allclose(interval_of(mean), t_interval(values))
        rows = [data.values(arm, metric) for arm in data.arms]
        joined = artists(ax, "_block")
        np.testing.assert_allclose([line.get_xdata() for line in joined], np.transpose(rows))
        assert list(np.round(joined[0].get_ydata())) == [0, 1, 2]


def test_differences_of_the_losses_are_paired(prepared, artists, interval_of, t_interval):
    data = prepared(5)
    ax = final_losses(data).axes[3]
    difference = data.values("window", VAL_LOSS) - data.values("baseline", VAL_LOSS)
    (mean,) = artists(ax, "window mean")
    np.testing.assert_allclose(interval_of(mean), t_interval(difference))
    low, high = t_interval(difference)
    shown = f"{difference.mean():+.4f}\n[{low:+.4f}, {high:+.4f}]"
    assert ax.texts[0].get_text() == shown.replace("-", "−")


@pytest.mark.parametrize("index, metric", list(enumerate(METRICS)))
def test_rows_are_the_paired_ratios(prepared, artists, interval_of, index, metric):
    data = prepared("four blocks")
    ax = metrics_comparison(data).axes[index]
    pair = data.values("window", metric), data.values("baseline", metric)
    expected = paired_ratio(*pair)
    (mean,), (dots,) = artists(ax, "window mean"), artists(ax, "window")
    assert mean.lines[0].get_xdata()[0] == pytest.approx(expected.ratio)
    np.testing.assert_allclose(dots.get_offsets()[:, 0], pair[0] / pair[1])
    if expected.low is not None:
        np.testing.assert_allclose(interval_of(mean), (expected.low, expected.high))
    bars = artists(ax, "window bar")
    assert bool(bars) == (metric not in LOSSES)  # no bar: a loss of 0 means nothing
    assert not bars or (bars[0][0].get_width() == expected.ratio and ax.get_xlim()[0] == 0)


def test_rows_give_the_absolute_values_in_text(prepared):
    memory = metrics_comparison(prepared("four blocks")).axes[1]
    shown = " ".join(text.get_text() for text in memory.texts)
    assert "1,400.0 MB" in shown and "1,501.5 MB" in shown


def test_a_distribution_has_its_box_every_training_and_the_mean(
    prepared, artists, interval_of, t_interval
):
    data = prepared("four blocks")
    for ax, metric in zip(distributions(data).axes, METRICS, strict=True):
        values = data.values("window", metric)
        (dots,), (mean,) = artists(ax, "window"), artists(ax, "window mean")
        np.testing.assert_allclose(dots.get_offsets()[:, 0], values)
        np.testing.assert_allclose(interval_of(mean), t_interval(values))
        assert any(np.allclose(line.get_xdata(), np.median(values)) for line in ax.lines)


def test_missing_memory_is_said_and_the_rest_is_drawn(prepared):
    data = prepared("four blocks")
    data.ok["window"][1]["peak_memory_mb"] = float("nan")
    time, memory, *_ = metrics_comparison(data).axes
    assert "not measured" in memory.texts[0].get_text() and time.patches


def with_losses(*differences, margin=0.02):
    """baseline and window whose validation losses differ by ``differences``, block by block."""
    metrics, metadata = make_experiment(len(differences), ("baseline", "window"))
    metadata["plan"]["equivalence_margin"] = margin
    for base, training, difference in zip(*metrics.values(), differences, strict=True):
        base["val_loss"] = 4.0 + 0.1 * training["block"]
        training["val_loss"] = base["val_loss"] + difference
    return prepare(metrics, metadata)


@pytest.mark.parametrize("index, metric", list(enumerate(METRICS)))
def test_rows_of_the_summary_are_the_paired_ratios(index, metric, prepared, artists, interval_of):
    data = prepared("four blocks")
    expected = paired_ratio(data.values("window", metric), data.values("baseline", metric))
    ax = summary(data).axes[index]
    (row,) = artists(ax, "window / baseline mean")
    assert row.lines[0].get_xdata()[0] == pytest.approx(expected.ratio)
    if expected.low is not None:
        np.testing.assert_allclose(interval_of(row), (expected.low, expected.high))
        shown = f"{expected.ratio:.4f} [{expected.low:.4f}, {expected.high:.4f}]"
        assert shown in [text.get_text() for text in ax.texts]


@pytest.mark.parametrize(
    "ratio, words",
    [
        ((0.8, 0.7, 0.9, 0.01, 5), "-20.00 %"),
        ((1.0012, 1.001, 1.0014, 0.01, 5), "+0.12 %"),
        ((0.9, 0.7, 1.1, 0.4, 5), "no difference detected"),
        ((1.0, None, None, None, 5), "equal to 0.01 % in every block"),
        ((0.99998, None, None, None, 5), "equal to 0.01 % in every block"),
        ((1.00002, None, None, None, 1), "equal to 0.01 %, one block"),
        ((0.5, None, None, None, 5), "-50.00 % in every block"),
        ((0.5, None, None, None, 1), "-50.00 %, one block"),
    ],
)
def test_verdicts_name_only_what_the_test_found(ratio, words):
    assert ratio_verdict(Ratio(*ratio)) == words


@pytest.mark.parametrize(
    "differences, words",
    [
        ((0.001, 0.004, -0.002, 0.003), "not worse (margin 0.02 nats)"),
        ((0.05, 0.06, 0.055, 0.05), "worse"),
        ((0.01, 0.03, 0.02, 0.015), "undecided"),
        ((0.0125, 0.0165, 0.0105, 0.0195), "not worse (margin 0.02 nats)"),  # undecided at 95 %
        ((0.02,), "+0.50 %, one block"),
    ],
)
def test_with_a_margin_the_verdict_on_the_loss_is_about_the_margin(differences, words):
    data = with_losses(*differences)
    assert verdict_on(data, "window", "baseline", VAL_LOSS) == words
    assert words in [text.get_text() for text in summary(data).axes[3].texts]


@pytest.mark.parametrize("margin", [0.02, 0.5])
def test_the_margin_lies_around_each_rows_reference_and_inside_the_axis(margin, artists, caption):
    data = with_losses(0.001, 0.0012, 0.0011, margin=margin)
    fig = summary(data)
    ((bar,),) = artists(fig.axes[3], "_margin 0")
    reference = data.values("baseline", VAL_LOSS).mean()
    ends = bar.get_x(), bar.get_x() + bar.get_width()
    assert ends == pytest.approx((1 - margin / reference, 1 + margin / reference))
    low, high = fig.axes[3].get_xlim()
    assert low < ends[0] and ends[1] < high
    assert f"± {margin:g} nats" in caption(fig) and "90 % t interval" in caption(fig)


@pytest.mark.parametrize("margin", [None, 0])
def test_without_a_margin_nothing_is_shaded_and_the_ratio_is_judged(margin, artists, caption):
    data = with_losses(0.05, 0.06, 0.055, 0.05, margin=margin)
    fig = summary(data)
    assert not artists(fig.axes[3], "_margin 0") and "margin" not in caption(fig)
    assert verdict_on(data, "window", "baseline", VAL_LOSS) == "+1.30 %"


def test_one_percent_is_shaded_for_time_and_memory_alone(prepared, artists):
    spans = [artists(ax, "_small") for ax in summary(prepared("four blocks")).axes]
    assert [len(found) for found in spans] == [1, 1, 0, 0]
    (span,) = spans[0]
    assert (span.get_x(), span.get_width()) == pytest.approx((0.99, 0.02))


@pytest.mark.parametrize(
    "arms, expected",
    [
        (("window", "fused"), [("window", "fused")]),
        (("window",), []),
        (("fused", "w8-d2"), [("w8-d2", "fused")]),
        (
            ("baseline", "window", "fused"),
            [("window", "fused"), ("fused", "baseline"), ("window", "baseline")],
        ),
    ],
)
def test_contrasts_follow_the_arms(arms, expected, prepared):
    assert shown_pairs(prepared(2, arms)) == expected

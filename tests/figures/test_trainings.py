"""Figure 8: every training in the order of time, with what disturbed it."""

import numpy as np
import pytest

from analysis.values import OUTCOMES
from figures.all import draw


def legend_names(fig):
    return [text.get_text() for legend in fig.legends for text in legend.get_texts()]


def test_the_bars_of_a_training_reach_up_to_its_wall_time(prepared):
    data = prepared("failed")
    bars = draw("8_per_run", data).axes[0].patches
    for _, training in data.started:
        tops = [
            bar.get_y() + bar.get_height()
            for bar in bars
            if np.isclose(bar.get_x() + 0.4, training["index"] + 1)
        ]
        assert max(tops) == pytest.approx(training["wall_time"])


def test_values_stand_in_the_order_of_time_beside_the_arms_mean(prepared, artists):
    data = prepared("four blocks")
    for ax, metric in zip(draw("8_per_run", data).axes[1:], OUTCOMES, strict=True):
        values = data.values("window", metric)
        expected = list(zip([2, 5, 8, 11], values, strict=True))
        np.testing.assert_allclose(artists(ax, "window")[0].get_offsets(), expected)
        (line,) = artists(ax, "window mean")
        assert line.get_ydata()[0] == pytest.approx(values.mean())


@pytest.mark.parametrize("experiment", [(1, ("window",)), (4,)])
def test_trainings_are_counted_from_1_in_whole_numbers(prepared, experiment):
    data = prepared(*experiment)
    ax = draw("8_per_run", data).axes[-1]
    low, high = ax.get_xlim()
    ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
    assert ticks and all(tick in range(1, len(data.started) + 1) for tick in ticks)


def test_failures_are_marked_in_every_panel(prepared, artists):
    fig = draw("8_per_run", prepared("failed"))
    assert "failed" in legend_names(fig)
    for ax in fig.axes:
        assert [list(mark.get_xdata()) for mark in artists(ax, "_failed")] == [[10]]


def test_without_failures_there_are_no_marks(prepared):
    data = prepared("four blocks")
    assert legend_names(draw("8_per_run", data)) == data.arms


def test_an_arm_without_a_good_training_is_shown_as_failed_alone(prepared):
    data = prepared("many")
    fig = draw("8_per_run", data)
    assert "published" not in data.arms and "published" in legend_names(fig)

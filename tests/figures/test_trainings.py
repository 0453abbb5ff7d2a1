"""Figure 8: every training in the order of time, with what disturbed it."""

import numpy as np
import pytest
from conftest import make_experiment

from figures.all import draw
from figures.curves import events
from figures.data import METRICS, prepare


def legend_names(fig):
    return [text.get_text() for legend in fig.legends for text in legend.get_texts()]


def test_the_parts_of_a_training_add_up_to_its_wall_time(prepared):
    data = prepared("eventful")
    bars = draw("8_per_run", data).axes[0].patches
    for _, training in data.started:
        tops = [
            bar.get_y() + bar.get_height()
            for bar in bars
            if np.isclose(bar.get_x() + 0.4, training["index"])
        ]
        assert max(tops) == pytest.approx(training["wall_time"])


def test_values_stand_in_the_order_of_time_beside_the_arms_mean(prepared, artists, t_interval):
    data = prepared("four blocks")
    for ax, metric in zip(draw("8_per_run", data).axes[1:], METRICS, strict=True):
        values = data.values("window", metric)
        expected = list(zip([1, 4, 7, 10], values, strict=True))
        np.testing.assert_allclose(artists(ax, "window")[0].get_offsets(), expected)
        (line,), (span,) = artists(ax, "window mean"), artists(ax, "window interval")
        assert line.get_ydata()[0] == pytest.approx(values.mean())
        edges = span.get_y(), span.get_y() + span.get_height()
        assert edges == pytest.approx(t_interval(values))


def test_failures_throttling_and_stops_are_marked_in_every_panel(prepared, artists):
    fig = draw("8_per_run", prepared("eventful"))
    expected = {
        "failed": [[9]],
        "GPU slowed itself": [[2], [7]],
        "stop inside a block": [[4.5, 4.5]],
    }
    for word, places in expected.items():
        assert word in legend_names(fig)
        for ax in fig.axes:
            assert [list(mark.get_xdata()) for mark in artists(ax, f"_{word}")] == places


def test_an_undisturbed_experiment_has_no_marks(prepared):
    data = prepared("four blocks")
    assert events(data) == {} and legend_names(draw("8_per_run", data)) == data.arms


@pytest.mark.parametrize("first_of_second, cut", [(0, []), (3, []), (6, []), (7, [6.5])])
def test_only_a_stop_inside_a_block_counts(first_of_second, cut):
    metrics, metadata = make_experiment(3)
    for training in (training for trainings in metrics.values() for training in trainings):
        training["process"] = "b" if training["index"] >= first_of_second else "a"
    _, places = events(prepare(metrics, metadata)).get("stop inside a block", (None, []))
    assert [xs[0] for xs, _ in places] == cut


def test_an_arm_without_a_good_training_is_shown_as_failed_alone(prepared):
    data = prepared("many")
    fig = draw("8_per_run", data)
    assert "published" not in data.arms and "published" in legend_names(fig)

"""The figure of the reach probe draws every record and their means."""

import itertools

import numpy as np

from analysis.reach import REACH_GAIN
from figures.all import draw


def of_arm(data, arm, key):
    return np.array([training["reach"][key] for training in data.ok[arm]])


def lines_at(ax, label, artists):
    return np.array([line.get_ydata() for line in artists(ax, label)])


def test_gains_are_every_training_and_their_mean(prepared, artists):
    data = prepared("four blocks")
    left = draw("reach", data).axes[0]
    for arm in data.arms:
        gains = of_arm(data, arm, "gains")
        np.testing.assert_array_equal(lines_at(left, f"_{arm} training", artists), gains)
        (mean,) = artists(left, arm)
        np.testing.assert_allclose(mean.get_ydata(), gains.mean(axis=0))
        assert list(mean.get_xdata()) == [128, 256, 512, 960]
    levels = [line.get_ydata()[0] for line in left.lines if len(set(line.get_ydata())) == 1]
    assert left.get_xscale() == "log" and levels == [0, REACH_GAIN]


def test_losses_by_position_are_paired_differences_to_the_reference(prepared, artists):
    data = prepared("four blocks")
    right = draw("reach", data).axes[1]
    losses = {arm: of_arm(data, arm, "position_losses") for arm in data.arms}
    differences = losses["window"] - losses["fused"]
    np.testing.assert_allclose(lines_at(right, "_window training", artists), differences)
    np.testing.assert_allclose(lines_at(right, "window", artists)[0], differences.mean(axis=0))
    assert not artists(right, "fused") and "fused" in right.get_ylabel()


def test_one_arm_shows_its_losses_themselves(prepared, artists):
    data = prepared("one arm")
    right = draw("reach", data).axes[1]
    losses = of_arm(data, "window", "position_losses")
    np.testing.assert_allclose(lines_at(right, "_window training", artists), losses)
    assert right.get_ylabel() == "loss (nats/token)"


def test_distances_that_are_close_share_no_tick_and_arms_without_a_probe_are_left_out(prepared):
    data = prepared(2)
    for training in itertools.chain(*data.ok.values()):
        training["reach"]["distances"] = [128, 256, 512, 530]
    for training in data.ok["fused"]:
        training["reach"] = None
    fig = draw("reach", data)
    assert list(fig.axes[0].get_xticks()) == [128, 256, 530]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["baseline", "window"]

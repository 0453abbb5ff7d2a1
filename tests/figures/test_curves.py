"""Figures 1 and 10 draw what the formulas say."""

import numpy as np
import pytest
from conftest import make_experiment

from figures.all import draw
from figures.data import prepare


def losses_of(data, arm):
    return np.stack([training["losses"] for training in data.ok[arm]]).astype(float)


def band_edges(band, x):
    """Lowest and highest drawn value of a band at x."""
    vertices = band.get_paths()[0].vertices
    at = vertices[np.isclose(vertices[:, 0], x), 1]
    return at.min(), at.max()


def test_training_curves_are_every_training_their_mean_and_its_band(prepared, artists, t_interval):
    data = prepared("four blocks")
    losses = losses_of(data, "window")
    top = draw("1_training_curves", data).axes[0]
    (line,), (band,) = artists(top, "window"), artists(top, "window band")
    np.testing.assert_allclose(line.get_xdata(), 2048 * np.arange(1, 41))
    np.testing.assert_allclose(line.get_ydata(), losses.mean(0))
    assert band_edges(band, 4 * 2048) == pytest.approx(t_interval(losses[:, 3]))
    trainings = artists(top, "_window training")
    np.testing.assert_allclose([training.get_ydata() for training in trainings], losses)


def test_the_difference_is_paired_and_beside_a_line_at_zero(prepared, artists, t_interval):
    data = prepared("four blocks")
    bottom = draw("1_training_curves", data).axes[1]
    differences = losses_of(data, "window")[:, 7] - losses_of(data, "baseline")[:, 7]
    (band,), (line,) = artists(bottom, "window band"), artists(bottom, "window")
    assert line.get_ydata()[7] == pytest.approx(differences.mean())
    assert band_edges(band, 8 * 2048) == pytest.approx(t_interval(differences))
    assert any(not np.any(line.get_ydata()) for line in bottom.lines)
    assert not artists(bottom, "baseline")


def test_smoothing_is_centred_in_each_training_and_invents_no_ends(prepared, artists, t_interval):
    data = prepared(3, steps=200)
    half = 3  # of 7 steps, a thirtieth of the training
    losses = losses_of(data, "fused")
    (ax,) = draw("10_convergence", data).axes
    (line,), (band,) = artists(ax, "fused"), artists(ax, "fused band")
    seconds = np.stack([training["step_seconds"] for training in data.ok["fused"]])
    expected = seconds.cumsum(axis=1).mean(axis=0)
    assert line.get_xdata() == pytest.approx(expected[half:-half], rel=1e-5)
    middle = losses[:, 50 - half : 50 + half + 1].mean(axis=1)
    assert line.get_ydata()[50 - half] == pytest.approx(middle.mean())
    edges = band_edges(band, line.get_xdata()[50 - half])
    assert edges == pytest.approx(t_interval(middle))


def test_the_losses_without_a_model_are_lines_of_figure_1():
    metrics, metadata = make_experiment()
    for losses in ({}, {"bigram_loss": None}, {"unigram_loss": None}):  # of earlier files
        metadata["data"] |= losses
        top = draw("1_training_curves", prepare(metrics, metadata)).axes[0]
        flat = [line.get_ydata()[0] for line in top.lines if len(set(line.get_ydata())) == 1]
        expected = [metadata["data"][key] for key in ("unigram_loss", "bigram_loss")]
        assert flat == [loss for loss in expected if loss is not None]

"""Figures 1, 10 and 11 draw what the formulas say."""

from dataclasses import replace

import numpy as np
import pytest

from figures.all import draw


def losses_of(data, arm):
    return np.stack([training["losses"] for training in data.ok[arm]]).astype(float)


def band_edges(band, x):
    """Lowest and highest drawn value of a band at x."""
    vertices = band.get_paths()[0].vertices
    at = vertices[np.isclose(vertices[:, 0], x), 1]
    return at.min(), at.max()


def test_training_curves_are_every_training_and_their_mean(prepared, artists):
    data = prepared("four blocks")
    losses = losses_of(data, "window")
    top = draw("1_training_curves", data).axes[0]
    (line,) = artists(top, "window")
    np.testing.assert_allclose(line.get_xdata(), 2048 * np.arange(1, 41))
    np.testing.assert_allclose(line.get_ydata(), losses.mean(0))
    trainings = artists(top, "_window training")
    np.testing.assert_allclose([training.get_ydata() for training in trainings], losses)


def test_the_difference_is_paired_and_beside_a_line_at_zero(prepared, artists, t_interval):
    data = prepared("four blocks")
    bottom = draw("1_training_curves", data).axes[1]
    differences = losses_of(data, "window")[:, 7] - losses_of(data, "fused")[:, 7]
    (band,), (line,) = artists(bottom, "window band"), artists(bottom, "window")
    assert line.get_ydata()[7] == pytest.approx(differences.mean())
    assert band_edges(band, 8 * 2048) == pytest.approx(t_interval(differences))
    assert any(not np.any(line.get_ydata()) for line in bottom.lines)
    assert not artists(bottom, "fused")


def test_smoothing_is_centred_in_each_training_and_invents_no_ends(prepared, artists):
    data = prepared(3, steps=200)
    half = 3  # of 7 steps, a thirtieth of the training
    losses = losses_of(data, "fused")
    (ax,) = draw("10_convergence", data).axes
    (line,) = artists(ax, "fused")
    seconds = np.stack([training["step_seconds"] for training in data.ok["fused"]])
    expected = seconds.cumsum(axis=1).mean(axis=0)
    assert line.get_xdata() == pytest.approx(expected[half:-half], rel=1e-5)
    middle = losses[:, 50 - half : 50 + half + 1].mean(axis=1)
    assert line.get_ydata()[50 - half] == pytest.approx(middle.mean())


def test_long_curves_are_smoothed_training_by_training(prepared, artists, caption):
    data = prepared(2, steps=730)
    losses = losses_of(data, "window")
    fig = draw("1_training_curves", data)
    half = 3  # of 7 steps, a hundredth of the training
    expected = [losses[:, i - half : i + half + 1].mean(axis=1) for i in range(half, 730 - half)]
    trainings = artists(fig.axes[0], "_window training")
    np.testing.assert_allclose(np.transpose([t.get_ydata() for t in trainings]), expected)
    assert trainings[0].get_xdata()[0] == 2048 * (half + 1)
    assert "moving averages of 7 steps" in caption(fig)


@pytest.mark.parametrize(("steps", "smooth"), [(40, False), (730, True)])
def test_only_what_is_smoothed_is_called_so(prepared, caption, steps, smooth):
    fig = draw("10_convergence", prepared(2, steps=steps))
    assert ("smoothed" in fig.axes[0].get_ylabel()) == smooth
    assert ("moving averages" in caption(fig)) == smooth


@pytest.mark.parametrize(
    ("places", "drawn"),  # of the two losses in the range of those seen, from 0 to 1
    [((2, 1.5), 0), ((1.5, 0.5), 1), ((0.7, 0.3), 2), ((0.5, -0.5), 2), ((-0.5, -1), 1)],
)
@pytest.mark.parametrize("name", ["1_training_curves", "11_validation"])
def test_losses_without_a_model_are_drawn_up_to_the_first_below_all(name, places, drawn, prepared):
    data = replace(prepared("one block"), without_model={})
    low, high = draw(name, data).axes[0].get_ylim()
    losses = {f"loss {place}": low + place * (high - low) for place in places}
    ax = draw(name, replace(data, without_model=losses)).axes[0]
    low, high = ax.get_ylim()
    seen = [word for word in losses if low < losses[word] < high]
    assert [text.get_text() for text in ax.texts] == seen and len(seen) == drawn


def curve_of(data, arm):
    return np.array([training["curve"]["losses"] for training in data.ok[arm]])


def test_held_out_losses_are_drawn_over_tokens_and_seconds(prepared, artists, caption):
    data = prepared("four blocks")
    steps = np.arange(4, 41, 4)
    seconds = [np.cumsum(training["step_seconds"])[steps - 1] for training in data.ok["window"]]
    fig = draw("11_validation", data)
    assert "may end elsewhere than the report's" in caption(fig)
    axes = fig.axes
    for ax, x in zip(axes, (2048 * steps, np.mean(seconds, axis=0)), strict=False):
        (mean,), trainings = artists(ax, "window"), artists(ax, "_window training")
        assert mean.get_xdata() == pytest.approx(x, rel=1e-5)
        assert mean.get_ydata() == pytest.approx(curve_of(data, "window").mean(axis=0))
        np.testing.assert_allclose([t.get_ydata() for t in trainings], curve_of(data, "window"))
    assert axes[0].get_ylim() == axes[1].get_ylim()


@pytest.mark.parametrize(
    ("arms", "reference"),
    [(("baseline", "window", "fused"), "fused"), (("baseline", "window"), "baseline")],
)
def test_held_out_differences_are_to_fused_where_it_was_trained(
    arms, reference, prepared, artists, t_interval
):
    data = prepared(4, arms)
    bottom = draw("11_validation", data).axes[2]
    differences = curve_of(data, "window") - curve_of(data, reference)
    (line,), (band,) = artists(bottom, "window"), artists(bottom, "window band")
    assert line.get_ydata() == pytest.approx(differences.mean(axis=0))
    assert band_edges(band, 12 * 2048) == pytest.approx(t_interval(differences[:, 2]))
    assert not artists(bottom, reference) and reference in bottom.get_ylabel()

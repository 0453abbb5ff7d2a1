"""The pictures of patterns show the pattern."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from attention.pattern import may_attend
from estimates.pattern import CONFIGURATIONS, PatternAnalysis
from estimates.pictures import (
    FAR,
    NEAR,
    PALETTE,
    UNATTENDED,
    plot_comparison,
    plot_configuration,
    plot_tradeoff,
)


def test_a_short_mask_is_drawn_pair_by_pair():
    analyses = [PatternAnalysis(9, 4, 40), PatternAnalysis(5, 0, 40, sink_tokens=3)]
    positions = np.arange(40)
    for axes, a in zip(plot_comparison(analyses).axes, analyses, strict=True):
        pairs = positions[:, None], positions[None, :]
        attended = may_attend(*pairs, a.window_size, a.dilation, a.sink_tokens)
        colors = axes.images[0].get_array()
        left_out = (colors == PALETTE[UNATTENDED]).all(-1) | (colors == 1).all(-1)
        np.testing.assert_array_equal(~left_out, attended)


def test_a_long_mask_is_drawn_in_regions_of_the_mean_density():
    axes = plot_comparison([PatternAnalysis(96, 4, 4096)]).axes[0]
    causal, beyond, _ = axes.patches[:3]
    assert to_rgb(causal.get_facecolor()) == pytest.approx(PALETTE[NEAR])
    np.testing.assert_array_equal(beyond.get_xy()[:3], [(0, 96), (4000, 4096), (0, 4096)])
    mixed = PALETTE[FAR] / 4 + 3 * PALETTE[UNATTENDED] / 4
    assert to_rgb(beyond.get_facecolor()) == pytest.approx(mixed)


@pytest.mark.parametrize(
    "pattern", [(96, 4), (96, 0), (96, 1), (1, 1, 1), (600, 3, 65_536), (1, 4, 2**40)]
)
def test_the_picture_of_a_configuration_draws_its_costs(pattern):
    a = PatternAnalysis(*pattern)
    figure = plot_configuration(a)
    figure.draw_without_rendering()
    mask, cost = figure.axes
    assert "128 of 128 heads" in mask.get_title(loc="left")
    assert mask.get_xlabel() == "key position j (token)" and mask.get_ylabel()
    assert f"{a.label}: {a.density:.2%}" in figure.get_supxlabel()
    ends = [
        max(bar.get_x() + bar.get_width() for bar in row)
        for row in zip(*cost.containers, strict=True)
    ]
    assert ends == pytest.approx([100, 100 * a.density, 100, 100 / a.step_speedup])


@pytest.mark.parametrize("seq_len", [16, 4096])
def test_the_tradeoff_shows_every_configuration_on_amdahls_curve(seq_len):
    analyses = [PatternAnalysis(w, d, seq_len) for w, d in CONFIGURATIONS]
    figure = plot_tradeoff(analyses)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [a.label for a in analyses]
    curve, *points = figure.axes[0].lines[: len(analyses) + 1]
    places = [(point.get_xdata()[0], point.get_ydata()[0]) for point in points]
    expected = [(100 * (1 - a.density), a.step_speedup) for a in analyses]
    np.testing.assert_allclose(places, expected)
    assert curve.get_ydata()[-1] == pytest.approx(max(y for _, y in places))

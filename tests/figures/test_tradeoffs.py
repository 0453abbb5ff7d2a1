"""Figures 4 to 6 cross at the means, and say where better is."""

import numpy as np
import pytest

from analysis.significance import paired_ratio
from figures.data import SPEED, TIME, VAL_LOSS
from figures.tradeoffs import memory_quality, memory_speed, speedup_quality


def test_crosses_are_the_means_with_intervals_in_both_directions(prepared, artists, t_interval):
    data = prepared("four blocks")
    left, right = speedup_quality(data).axes
    (mean,) = artists(left, "window mean")
    x, y = data.values("window", SPEED), data.values("window", VAL_LOSS)
    across, upright = (bar.get_segments()[0] for bar in mean.lines[2])
    np.testing.assert_allclose(across, [(end, y.mean()) for end in t_interval(x)])
    np.testing.assert_allclose(upright, [(x.mean(), end) for end in t_interval(y)])
    speedup = paired_ratio(data.values("baseline", TIME), data.values("window", TIME))
    (mean,) = artists(right, "window mean")
    assert mean.lines[0].get_xdata()[0] == pytest.approx(speedup.ratio)
    for ax in (left, right):
        assert len(artists(ax, "window")[0].get_offsets()) == 4


@pytest.mark.parametrize(
    "draw, arrow", [(speedup_quality, "↘"), (memory_quality, "↙"), (memory_speed, "↖")]
)
def test_better_points_to_fast_small_and_low(draw, arrow, prepared):
    for ax in draw(prepared("one block")).axes:
        assert ax.get_title(loc="right") == f"better {arrow}"

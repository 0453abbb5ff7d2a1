"""The figures of studies."""

import matplotlib.pyplot as plt
import pytest

from studies.measured import trade_offs
from studies.pictures import plot_study, save_figures


@pytest.mark.parametrize(
    "study, names",
    [("lengths", ["length_scaling", "length_quality"]), ("patterns", ["pattern_pareto"])],
)
def test_the_figures_are_saved_as_png_and_pdf(study, names, summed_up, tmp_path):
    paths = save_figures(plot_study(summed_up[study]), tmp_path)
    assert [p.name for p in paths] == [f"{n}.{kind}" for n in names for kind in ("png", "pdf")]
    assert all(path.stat().st_size > 5000 for path in paths)
    assert not plt.get_fignums()


def test_memory_that_ran_out_is_drawn_in_every_panel_of_its_row(lengths):
    figure = plot_study(lengths)["length_scaling"]
    crosses = [line for ax in figure.axes for line in ax.lines if line.get_marker() == "X"]
    assert [list(line.get_xdata()) for line in crosses] == [[1024]] * 3
    assert {line.axes.get_subplotspec().rowspan.start for line in crosses} == {1}


def test_the_panels_of_lengths_fit_what_they_show(lengths):
    figure = plot_study(lengths)["length_scaling"]
    for row in (figure.axes[:3], figure.axes[3:]):
        for ax, key in zip(row, ("step_ms", "tokens_per_second", "peak_memory_mb"), strict=True):
            arms = [arm for point in lengths["points"] for arm in point["arms"].values()]
            means = [arm[key]["mean"] for arm in arms if arm[key]]
            assert min(means) / 2 < ax.get_ylim()[0] < min(means)
            assert max(means) < ax.get_ylim()[1] < max(means) * 2


def test_the_panels_of_patterns_show_every_mean(patterns):
    left = plot_study(patterns)["pattern_pareto"].axes[0]
    tokens, _ = trade_offs(patterns["points"][0])
    for gain, loss in tokens.values():
        assert left.get_xlim()[0] < gain["mean"] < left.get_xlim()[1]
        assert left.get_ylim()[0] < loss["mean"] < left.get_ylim()[1]


def test_mixed_trainings_are_marked_below_a_figure(patterns):
    for mixed in ([], ["config.lr: 0.1 before, 0.2 now"]):
        patterns["points"][0]["mixed"] = mixed
        caption = plot_study(patterns)["pattern_pareto"]._supxlabel.get_text()
        assert ("MIXED" in caption) is bool(mixed)


def test_arms_of_one_window_share_a_colour_and_of_one_dilation_a_marker(patterns):
    (legend,) = plot_study(patterns)["pattern_pareto"].legends
    looks = {line.get_label(): line for line in legend.legend_handles}
    assert list(looks) == ["fused", "w32-d0", "w96-d4", "w96-d16"]
    assert looks["w96-d4"].get_color() == looks["w96-d16"].get_color()
    assert len({(line.get_color(), line.get_marker()) for line in looks.values()}) == 4

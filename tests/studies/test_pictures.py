"""The figures of studies."""

import matplotlib.pyplot as plt
import pytest

from figures.look import save_figures
from studies.pictures import pareto_front, plot_study
from studies.tables import measured_rows


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
    assert [list(line.get_xdata()) for line in crosses] == [[1024]] * 2
    assert {line.axes.get_subplotspec().rowspan.start for line in crosses} == {1}


def test_the_panels_of_lengths_fit_what_they_show(lengths):
    figure = plot_study(lengths)["length_scaling"]
    for row in (figure.axes[:2], figure.axes[2:]):
        for ax, key in zip(row, ("step_ms", "peak_memory_mb"), strict=True):
            arms = [arm for point in lengths["points"] for arm in point["arms"].values()]
            means = [arm[key]["mean"] for arm in arms if arm[key]]
            assert min(means) / 2 < ax.get_ylim()[0] < min(means)
            assert max(means) < ax.get_ylim()[1] < max(means) * 2


def test_nothing_beats_the_front_in_speed_and_loss(patterns):
    means = {"a": (1.0, 0.0), "b": (1.2, 0.0), "c": (2.0, 0.5), "d": (1.5, 0.6), "e": (0.5, -1.0)}
    means["twin"] = means["e"]
    assert pareto_front(means) == ["e", "twin", "b", "c"]
    left = plot_study(patterns)["pattern_pareto"].axes[0]
    (rings,) = (line for line in left.lines if line.get_markersize() == 11)
    assert rings.get_xdata() == pytest.approx([1 / 0.9, 1 / 0.8, 1 / 0.6], rel=0.01)


def test_the_panels_of_patterns_show_every_mean(patterns):
    left = plot_study(patterns)["pattern_pareto"].axes[0]
    for _, summary, gain in measured_rows(patterns["points"][0]):
        loss = summary["contrast"]["val_loss"]
        assert left.get_xlim()[0] < gain["mean"] < left.get_xlim()[1]
        assert left.get_ylim()[0] < loss["mean"] < left.get_ylim()[1]


def test_mixed_trainings_are_marked_below_a_figure(patterns):
    for mixed in ([], ["config.lr: 0.1 before, 0.2 now"]):
        patterns["points"][0]["mixed"] = mixed
        caption = plot_study(patterns)["pattern_pareto"]._supxlabel.get_text()
        assert ("MIXED" in caption) is bool(mixed)

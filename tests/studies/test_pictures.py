"""The figures of studies."""

import pytest

from studies.pictures import pareto_front, plot_study
from studies.tables import measured_rows


def test_every_arm_is_a_line_of_its_speed_and_one_of_its_loss_over_the_length(lengths):
    figure = plot_study(lengths)["length_scaling"]
    assert len(figure.axes) == 2 * 2
    assert {text.get_text() for text in figure.legends[0].texts} > {"baseline", "window"}
    for row, kind in enumerate(("learned", "rotary")):
        points = [point for point in lengths["points"] if point["positions"] == kind]
        left, right = figure.axes[2 * row : 2 * row + 2]
        for arm, color in (("baseline", "#0173B2"), ("window", "#D55E00")):
            found = [point["contrasts"][f"{arm}/fused"] for point in points]
            found = [contrast for contrast in found if contrast]
            # at 1,024 tokens and rotary positions the baseline has no room
            assert len(found) == (1 if (arm, kind) == ("baseline", "rotary") else 2)
            drawn = [
                [
                    line
                    for line in ax.lines
                    if line.get_color() == color and line.get_marker() in "os"
                ]
                for ax in (left, right)
            ]
            ((speed,), (loss,)) = drawn
            assert list(speed.get_ydata()) == [1 / contrast["time"]["ratio"] for contrast in found]
            assert list(loss.get_ydata()) == [c["val_loss"]["mean"] for c in found]
    (limit,) = (line for line in figure.axes[0].lines if line.get_label() == "_window limit")
    assert list(limit.get_ydata()) == [p["step_limit"] for p in lengths["points"][:2]]


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

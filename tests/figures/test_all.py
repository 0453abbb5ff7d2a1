"""All figures, whatever the experiment looks like."""

from itertools import combinations

import matplotlib as mpl
import pytest
from conftest import flat, make_experiment
from matplotlib.text import Text

from figures.all import FIGURES, create_all_plots, draw
from figures.frame import TITLE_COLUMNS, title_lines
from figures.look import save_figures


def overlapping(boxes):
    """Pairs of names of {name: box} whose boxes overlap."""
    return [(a, b) for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]


def boxes_of(fig):
    """Where the parts of a laid out figure lie: each axes with its labels, legend, caption."""
    boxes = {f"axes {i}": ax.get_tightbbox() for i, ax in enumerate(fig.axes)}
    boxes |= {str(part): part.get_window_extent() for part in [*fig.legends, fig._supxlabel]}
    return {name: box.padded(-1) for name, box in boxes.items()}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_overlaps_or_leaves_the_page(name, any_experiment):
    fig = draw(name, any_experiment)
    fig.draw_without_rendering()
    boxes = boxes_of(fig)
    assert not overlapping(boxes)
    for part, box in boxes.items():
        assert min(box.x0, box.y0) >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1, part
    for ax in fig.axes:
        assert ax.has_data() or ax.texts
        for axis in (ax.xaxis, ax.yaxis):
            ticks = axis.get_ticklabels() if ax.axison else []
            assert not overlapping({i: tick.get_window_extent() for i, tick in enumerate(ticks)})
    for text in fig.findobj(Text):
        assert text.get_fontsize() >= 7 or not text.get_text()


@pytest.mark.parametrize("name", FIGURES)
def test_one_block_has_no_bands_and_no_intervals_and_says_so(name, prepared, artists, caption):
    fig = draw(name, prepared("one block"))
    assert "1 block: no bands, no intervals." in caption(fig)
    for ax in fig.axes:
        assert not artists(ax, "window band")
        bars = [c for c in ax.containers if hasattr(c, "has_xerr")]
        assert not any(bar.has_xerr or bar.has_yerr for bar in bars)


@pytest.mark.parametrize("name", FIGURES)
def test_captions_say_how_many_blocks_and_under_what_setting(name, prepared, caption):
    text = caption(draw(name, prepared("four blocks")))
    assert "4 blocks. 2-core CPU, seq_len 1024, float32, window_size 96, dilation 4" in text


@pytest.mark.parametrize("name", FIGURES)
def test_an_arm_looks_the_same_in_every_figure(name, prepared):
    data = prepared(2, ("baseline", "window", "fused", "w96-d4"))
    handles = [h for legend in draw(name, data).legends for h in legend.legend_handles]
    arms = [handle for handle in handles if handle.get_label() in data.arms]
    assert arms
    for handle in arms:
        style = data.styles[handle.get_label()]
        assert (handle.get_color(), handle.get_marker()) == (style.color, style.marker)


def test_a_long_title_goes_on_in_further_lines():
    mark = "smoke test: says nothing about time or quality"
    title = "Speed and validation loss: window against fused"
    assert title_lines(title, "") == title
    assert title_lines(title, "partial") == f"{title} (partial)"
    assert title_lines(title, mark).splitlines() == [title, f"({mark})"]
    lines = title_lines(title, f"{mark}; not trained; mixed: trainings that differ").splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= TITLE_COLUMNS


def test_a_partial_experiment_carries_a_visible_mark(prepared):
    for name in FIGURES:
        assert "(partial: 7/15 trainings)" in title_of(draw(name, prepared("partial")))
        assert "partial" not in title_of(draw(name, prepared("one block")))


def test_a_users_own_settings_change_nothing(prepared, tmp_path):
    """Such as a matplotlibrc has; LaTeX need not be installed."""
    data, pictures = prepared("one block"), []
    settings = {"text.usetex": True, "font.size": 30, "lines.linewidth": 9, "axes.grid": False}
    for users in ({}, settings | {"figure.facecolor": "black"}):
        with mpl.rc_context(users):
            path, _ = save_figures({"curves": draw("1_training_curves", data)}, tmp_path)
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]


def title_of(fig):
    return fig.legends[0].get_title().get_text()


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (("fused", "window", "baseline"), "baseline, window against fused"),
        (("window",), "window"),
        (("fused", "window", "w8-d0", "w8-d2", "w9-d2"), "4 arms against fused"),
    ],
)
def test_titles_say_what_is_compared(prepared, arms, words):
    assert title_of(draw("4_speedup_quality", prepared(2, arms))) == (
        f"Speed and validation loss: {words}"
    )


@pytest.mark.parametrize("name", ["3_metrics_comparison", "5_memory_quality", "8_per_run"])
def test_memory_that_was_not_measured_is_said_in_its_panel(name, prepared):
    data = prepared("one block")
    data.ok["window"][0]["peak_memory_mb"] = float("nan")
    words = [flat(text.get_text()) for text in draw(name, data).findobj(Text)]
    assert "peak memory: not measured in every training" in words


def test_no_setting_of_a_notebook_changes(prepared):
    before = mpl.rcParams.copy()
    draw("9_summary", prepared("one block"))
    assert mpl.rcParams == before and mpl.pyplot.get_fignums() == []


def test_a_figure_without_data_is_not_written_and_an_older_one_goes(tmp_path, monkeypatch):
    few = {name: FIGURES[name] for name in ("10_convergence", "11_validation")}
    monkeypatch.setattr("figures.all.FIGURES", few)
    metrics, metadata = make_experiment(2)
    files = [f"{name}.{kind}" for name in few for kind in ("pdf", "png")]
    plots, page = tmp_path / "plots", tmp_path / "page.html"
    create_all_plots(metrics, metadata, plots, page)
    assert sorted(path.name for path in plots.iterdir()) == files
    for training in metrics["fused"]:
        training["curve"] = None
    create_all_plots(metrics, metadata, plots, page)
    assert sorted(path.name for path in plots.iterdir()) == files[:2]


def test_equal_data_give_equal_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("figures.all.FIGURES", {"9_summary": FIGURES["9_summary"]})
    for folder in (tmp_path / "a", tmp_path / "b"):
        create_all_plots(*make_experiment(2), folder, folder / "page.html")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name

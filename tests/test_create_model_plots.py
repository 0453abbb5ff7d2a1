"""The ten figures: what is drawn equals the formulas, whatever the experiment looks like."""

from itertools import combinations

import numpy as np
import pytest
from conftest import make_experiment
from matplotlib.colors import to_hex
from matplotlib.text import Text
from scipy import stats

import create_model_plots
from analysis.metrics import MetricsError, save_metrics
from analysis.significance import Ratio, mean_interval, paired_ratio
from analysis.values import THROTTLING, throttled
from figures import all as figures_all
from figures import curves as figures_curves
from figures import data as figures_data
from figures import forest as figures_forest
from figures import look as figures_look
from figures import tradeoffs as figures_tradeoffs
from figures import trainings as figures_trainings
from figures import values as figures_values

THREE = ("baseline", "window", "fused")


def with_status(experiment, arm, index, status):
    run = experiment[0][arm][index]
    run["losses"] = run["losses"].copy()
    run["losses"][-1] = np.nan
    run.update(status=status, val_loss=np.nan, avg_loss_last_100=np.nan, final_loss=np.nan)
    return experiment


def identical():
    metrics, metadata = make_experiment(3)
    for arm, runs in metrics.items():
        metrics[arm] = [{**runs[0], "block": i, "index": 3 * i} for i in range(3)]
    return metrics, metadata


def without_memory():
    metrics, metadata = make_experiment(3)
    metrics["window"][1]["peak_memory_mb"] = float("nan")
    return metrics, metadata


def partial():
    metrics, metadata = make_experiment(5)
    metrics["baseline"] = metrics["baseline"][:3]
    metrics["window"] = metrics["window"][:2]
    metrics["fused"] = metrics["fused"][:2]
    return metrics, metadata | {"status": "partial"}


def unpaired():
    metrics, metadata = make_experiment(4)
    metrics["baseline"], metrics["window"] = metrics["baseline"][:2], metrics["window"][2:]
    return metrics, metadata


def unknown_arms():
    metrics, metadata = make_experiment(2, (*THREE, "published"), steps=2)
    metrics["strided"], metrics["dense"] = metrics.pop("window"), metrics.pop("fused")
    return metrics, metadata


def eventful():
    """A declared margin, a stop inside block 1 and two throttled trainings."""
    metrics, metadata = make_experiment(4)
    metadata["plan"]["equivalence_margin"] = 0.02
    for run in (run for runs in metrics.values() for run in runs):
        run["process"] = "before" if run["index"] < 5 else "after"
        run["device_before"], run["device_after"] = None, {"throttle_reasons": ["gpu_idle"]}
    metrics["fused"][0]["device_after"] = {"throttle_reasons": ["sw_power_cap", "gpu_idle"]}
    metrics["window"][2]["device_before"] = {"throttle_reasons": ["hw_slowdown", "sw_power_cap"]}
    return metrics, metadata


EXPERIMENTS = {
    "one run": lambda: make_experiment(1),
    "identical values": identical,
    "a diverged run": lambda: with_status(make_experiment(4), "window", 2, "diverged"),
    "an arm that never fits": lambda: with_status(
        make_experiment(1), "baseline", 0, "out_of_memory"
    ),
    "no control arm": lambda: make_experiment(3, ("baseline", "window")),
    "one arm": lambda: make_experiment(3, ("window",)),
    "partial": partial,
    "no memory": without_memory,
    "no complete block": unpaired,
    "unknown arms, two steps": unknown_arms,
    "a margin, a stop and throttling": eventful,
}


def prepared(runs=4, arms=THREE, **options):
    return figures_data.prepare(*make_experiment(runs, arms, **options))


def with_losses(*differences, margin=0.02, reference=4.0):
    """baseline and window whose validation losses differ by ``differences``, block by block."""
    metrics, metadata = make_experiment(len(differences), ("baseline", "window"))
    if margin is not None:
        metadata["plan"]["equivalence_margin"] = margin
    else:
        del metadata["plan"]["equivalence_margin"]
    for base, run, difference in zip(*metrics.values(), differences, strict=True):
        base["val_loss"] = reference + 0.1 * run["block"]
        run["val_loss"] = base["val_loss"] + difference
    return figures_data.prepare(metrics, metadata)


def artists(ax, label):
    """Artists and containers of an axes with this label."""
    every = [*ax.lines, *ax.collections, *ax.patches, *ax.containers]
    return [artist for artist in every if artist.get_label() == label]


def boxes(fig):
    """Where the parts of a laid out figure lie: each axes with its labels, legend, caption."""
    labels = [fig._supxlabel, fig._suptitle] if fig._suptitle else [fig._supxlabel]
    parts = {f"axes {i}": ax.get_tightbbox() for i, ax in enumerate(fig.axes)}
    parts |= {str(part): part.get_window_extent() for part in [*fig.legends, *labels]}
    return {name: box.padded(-1) for name, box in parts.items()}


def caption(fig):
    return " ".join(fig.get_supxlabel().split()).replace("\N{NO-BREAK SPACE}", " ")


def interval_of(container):
    """The drawn ends of an errorbar's last bar: (low, high) in its own direction."""
    segment = container.lines[2][-1].get_segments()[0]
    return segment[:, np.ptp(segment, axis=0).argmax()]


def band_edges(collection, x):
    """Lowest and highest drawn value of a band at x."""
    vertices = collection.get_paths()[0].vertices
    at = vertices[np.isclose(vertices[:, 0], x), 1]
    return at.min(), at.max()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_nothing_overlaps_or_leaves_the_page_whatever_the_experiment(name):
    data = figures_data.prepare(*EXPERIMENTS[name]())
    for draw in figures_all.FIGURES.values():
        fig = draw(data)
        fig.get_layout_engine().execute(fig)
        found = boxes(fig)
        for part, box in found.items():
            inside = min(box.x0, box.y0) >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1
            assert inside, (draw.__name__, part)
        for (one, a), (other, b) in combinations(found.items(), 2):
            assert not a.overlaps(b), (draw.__name__, one, other)
        assert all(ax.has_data() or ax.texts for ax in fig.axes), draw.__name__
        for text in fig.findobj(Text):
            assert text.get_fontsize() >= 7 or not text.get_text(), (draw.__name__, text)


def test_captions_say_how_many_runs_and_under_what_setting():
    for draw in figures_all.FIGURES.values():
        text = caption(draw(prepared()))
        assert "n = 4 runs per arm." in text and "deviation" not in text
        for fact in ("2-core CPU", "seq_len 1024", "w = 96", "d = 4", "float32"):
            assert fact in text, (draw.__name__, fact)


def test_git_revision_is_in_the_caption_where_known():
    metrics, metadata = make_experiment()
    metadata["environment"]["git_revision"] = "0123456789abcdef"
    assert "git 0123456789ab" in caption(
        figures_forest.summary(figures_data.prepare(metrics, metadata))
    )


def test_one_run_has_no_bands_and_no_intervals_and_says_so():
    data = prepared(1)
    for draw in figures_all.FIGURES.values():
        fig = draw(data)
        assert "no bands, no intervals" in caption(fig)
        for ax in fig.axes:
            assert not any(artists(ax, f"{arm} band") for arm in THREE)
            assert not any(
                c.has_xerr or c.has_yerr for c in ax.containers if hasattr(c, "has_xerr")
            )


def t_interval(values):
    """The textbook's 95 % t interval, from scipy itself."""
    n = len(values)
    return stats.t.interval(0.95, n - 1, np.mean(values), np.std(values, ddof=1) / np.sqrt(n))


def test_training_band_is_the_pointwise_t_interval_of_the_mean_over_runs():
    data = prepared(steps=1500)
    losses = np.stack([run["losses"] for run in data.ok["window"]]).astype(float)
    fig = figures_curves.training_curves(data)
    top = fig.axes[0]
    (line,), (band,) = artists(top, "window"), artists(top, "window band")
    drawn = line.get_xdata() // 2048 - 1
    assert len(drawn) == figures_data.DRAWN_POINTS and drawn[0] == 0 and drawn[-1] == 1499
    np.testing.assert_allclose(line.get_ydata(), losses.mean(0)[drawn])
    for step in drawn[[3, 500, 900]]:
        expected = t_interval(losses[:, step])
        assert band_edges(band, (step + 1) * 2048) == pytest.approx(expected)
    runs = artists(top, "_window run")
    np.testing.assert_allclose([run.get_ydata() for run in runs], losses[:, drawn])
    assert "95 % t interval of the mean, pointwise" in caption(fig)


def test_difference_band_is_the_paired_t_interval_with_a_zero_line():
    data = prepared()
    bottom = figures_curves.training_curves(data).axes[1]
    differences = [
        float(w["losses"][7]) - float(b["losses"][7])
        for w, b in zip(data.ok["window"], data.ok["baseline"], strict=True)
    ]
    interval = mean_interval(differences)
    (band,), (line,) = artists(bottom, "window band"), artists(bottom, "window")
    assert band_edges(band, 8 * 2048) == pytest.approx((interval.low, interval.high))
    assert line.get_ydata()[7] == pytest.approx(interval.mean)
    assert any(np.all(np.asarray(line.get_ydata()) == 0) for line in bottom.lines)
    assert not artists(bottom, "baseline")


def test_final_losses_show_one_dot_a_run_pairs_joined_and_our_intervals():
    data = prepared(5)
    axes = figures_values.final_losses(data).axes
    for ax, metric in zip(axes[:2], figures_data.LOSSES, strict=True):
        values = data.values("fused", metric)
        (dots,), (mean,) = artists(ax, "fused"), artists(ax, "fused mean")
        np.testing.assert_allclose(dots.get_offsets()[:, 1], values)
        interval = mean_interval(values)
        np.testing.assert_allclose(interval_of(mean), (interval.low, interval.high))
        assert len(artists(ax, "_pair")) == 5
    difference = mean_interval(
        data.values("window", figures_data.VAL_LOSS)
        - data.values("baseline", figures_data.VAL_LOSS)
    )
    (mean,) = artists(axes[3], "window mean")
    np.testing.assert_allclose(interval_of(mean), (difference.low, difference.high))


def test_bars_and_forest_rows_are_the_paired_ratios():
    data = prepared()
    bars, forest = figures_values.metrics_comparison(data).axes, figures_forest.summary(data).axes
    for metric, bar_ax, row_ax in zip(figures_data.METRICS, bars, forest, strict=True):
        ratio = paired_ratio(data.values("window", metric), data.values("baseline", metric))
        (bar,), (reference,) = artists(bar_ax, "window"), artists(bar_ax, "baseline")
        is_point = metric in figures_data.LOSSES  # no bar: a loss of 0 means nothing
        shown = [b.get_xdata()[0] if is_point else b[0].get_width() for b in (bar, reference)]
        assert shown == pytest.approx([ratio.ratio, 1])
        low, high = bar_ax.get_xlim()
        assert (low > 0.5 and high < 2) if is_point else low == 0
        (row,) = artists(row_ax, "window / baseline")
        assert row.lines[0].get_xdata()[0] == pytest.approx(ratio.ratio)
        assert row_ax.get_xscale() == "log"
        if ratio.low is not None:
            np.testing.assert_allclose(interval_of(row), (ratio.low, ratio.high))


def test_bars_give_the_absolute_values_in_text():
    data = prepared()
    shown = " ".join(
        text.get_text() for text in figures_values.metrics_comparison(data).axes[1].texts
    )
    half = np.ptp(t_interval([1500, 1501, 1502, 1503])) / 2
    assert "1,400 MB" in shown and f"1,502 ± {half:.1f} MB" in shown


@pytest.mark.parametrize(
    "ratio, metric, words",
    [
        ((0.8, 0.7, 0.9, 0.01, 5), figures_data.TIME, "faster: −20.0 %"),
        ((1.25, 1.2, 1.3, 0.01, 5), figures_data.TIME, "slower: +25.0 %"),
        ((1.0012, 1.001, 1.0014, 0.01, 5), figures_data.VAL_LOSS, "higher loss: +0.12 %"),
        ((0.9, 0.7, 1.1, 0.4, 5), figures_data.TIME, "no difference detected"),
        ((1.0, None, None, None, 5), figures_data.MEMORY, "identical in every run"),
        ((0.99998, None, None, None, 5), figures_data.MEMORY, "equal to 0.01 % in every run"),
        ((1.00002, None, None, None, 1), figures_data.MEMORY, "equal to 0.01 %"),
        ((0.5, None, None, None, 5), figures_data.MEMORY, "less memory: −50.0 % in every run"),
        ((0.5, None, None, None, 1), figures_data.MEMORY, "less memory: −50.0 %, one run"),
    ],
)
def test_verdicts_name_only_what_the_test_found(ratio, metric, words):
    assert figures_data.verdict(Ratio(*ratio), metric) == words


@pytest.mark.parametrize(
    "differences, words",
    [
        ((0.001, 0.004, -0.002, 0.003), "not worse (margin 0.02 nats)"),
        ((-0.3, -0.31, -0.29, -0.3), "not worse (margin 0.02 nats)"),
        ((0.05, 0.06, 0.055, 0.05), "worse"),
        ((0.01, 0.03, 0.02, 0.015), "undecided"),
        ((0.0, 0.025), "undecided"),
        ((0.0125, 0.0165, 0.0105, 0.0195), "not worse (margin 0.02 nats)"),  # undecided at 95 %
        ((0.01, 0.01, 0.01), "not worse (margin 0.02 nats)"),
        ((0.02,), "higher loss: +0.50 %, one run"),
    ],
)
def test_with_a_margin_the_verdict_on_the_loss_is_about_the_margin(differences, words):
    data = with_losses(*differences)
    assert figures_data.loss_verdict(data, "window", "baseline") == words
    rows = figures_forest.summary(data).axes
    assert words in [text.get_text() for text in rows[3].texts]
    assert not [text for ax in rows[:3] for text in ax.texts if "margin" in text.get_text()]


def test_the_closest_example_above_would_be_undecided_at_95_percent():
    assert t_interval((0.0125, 0.0165, 0.0105, 0.0195))[1] > 0.02


def test_margin_spans_lie_around_each_rows_own_reference_and_inside_the_axis():
    data = figures_data.prepare(*eventful())
    fig = figures_forest.summary(data)
    ax = fig.axes[3]
    for y, (_, base) in enumerate(figures_forest.contrasts(data)):
        reference = data.values(base, figures_data.VAL_LOSS).mean()
        (container,) = artists(ax, f"_margin {y}")
        box = container[0].get_bbox()
        assert (box.x0, box.x1) == pytest.approx(
            ((reference - 0.02) / reference, (reference + 0.02) / reference)
        )
        assert (box.y0, box.y1) == pytest.approx((y - 0.4, y + 0.4))
    key = ax.get_legend().get_texts()[0].get_text()
    assert key == "equivalence margin ± 0.02 nats" and "+ 0.02 nats" in caption(fig)
    assert "90 % t interval" in caption(fig)


def test_the_axis_reaches_a_margin_wider_than_every_interval():
    ax = figures_forest.summary(with_losses(0.001, 0.0012, 0.0011, margin=0.5)).axes[3]
    low, high = ax.get_xlim()
    assert low < (4.1 - 0.5) / 4.1 and high > (4.1 + 0.5) / 4.1


def test_a_margin_larger_than_the_loss_still_draws():
    box = artists(figures_forest.summary(with_losses(0.1, 0.2, margin=9)).axes[3], "_margin 0")[0][
        0
    ]
    assert box.get_x() > 0


@pytest.mark.parametrize("margin", [None, 0, -1, float("nan"), "0.02"])
def test_without_a_margin_nothing_is_shaded_and_the_old_words_stay(margin):
    data = with_losses(0.05, 0.06, 0.055, 0.05, margin=margin)
    fig = figures_forest.summary(data)
    assert not artists(fig.axes[3], "_margin 0") and fig.axes[3].get_legend() is None
    assert "margin" not in caption(fig) and "Validation loss instead" not in caption(fig)
    assert "higher loss: +1.3 %" in [text.get_text() for text in fig.axes[3].texts]


def test_the_one_percent_band_is_in_the_time_and_memory_panels_alone():
    data = figures_data.prepare(*eventful())
    name = "below 1 %: too small to matter"
    axes = figures_forest.summary(data).axes
    for ax, expected in zip(axes, (True, True, False, False), strict=True):
        bands = artists(ax, f"_{name}")
        assert bool(bands) == expected
        for band in bands:
            assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((0.99, 1.01))
            assert ax.get_xlim()[0] < 0.99 and ax.get_xlim()[1] > 1.01
            assert ax.get_legend().get_texts()[0].get_text() == name
            margin = artists(axes[3], "_margin 0")[0][0]
            assert band.get_hatch() and not margin.get_hatch()
            assert band.get_facecolor() != margin.get_facecolor()


def test_contrasts_follow_the_arms():
    assert figures_forest.contrasts(prepared()) == [
        ("window", "fused"),
        ("fused", "baseline"),
        ("window", "baseline"),
    ]
    assert figures_forest.contrasts(prepared(2, ("window", "fused"))) == [("window", "fused")]
    assert figures_forest.contrasts(prepared(2, ("window",))) == []
    four = prepared(2, (*THREE, "published"))
    assert figures_forest.contrasts(four)[-2:] == [
        ("baseline", "published"),
        ("window", "published"),
    ]


def test_scatters_cross_at_the_means_with_intervals_in_both_directions():
    data = prepared()
    left, right = figures_tradeoffs.speedup_quality(data).axes
    (mean,) = artists(left, "window mean")
    x, y = (
        mean_interval(data.values("window", m)) for m in (figures_data.SPEED, figures_data.VAL_LOSS)
    )
    bars = [bar.get_segments()[0] for bar in mean.lines[2]]
    np.testing.assert_allclose(bars[0], [(x.low, y.mean), (x.high, y.mean)])
    np.testing.assert_allclose(bars[1], [(x.mean, y.low), (x.mean, y.high)])
    speedup = paired_ratio(
        data.values("baseline", figures_data.TIME), data.values("window", figures_data.TIME)
    )
    (mean,) = artists(right, "window mean")
    assert mean.lines[0].get_xdata()[0] == pytest.approx(speedup.ratio)
    for ax in (left, right):
        assert len(artists(ax, "window")[0].get_offsets()) == 4
        assert any(text.get_text() == "better" for text in ax.texts)


def test_better_covers_no_point_and_no_bar():
    corners = [(0.1, 0.1), (0.1, 0.9), (0.9, 0.9)]
    assert figures_tradeoffs.emptiest_place(np.array(corners)) == (0.87, 0.18)
    assert figures_tradeoffs.emptiest_place(np.array([*corners, (0.9, 0.1), (0.5, 0.2)])) == (
        0.5,
        0.82,
    )
    bar = figures_data.Estimate(np.array([4.0, 6.0]), 5.0, 1.0, 9.0)
    place = figures_data.Estimate(np.array([2.0, 2.0]), 2.0, None, None)
    taken = figures_tradeoffs.occupied(place, bar)
    assert set(taken[:, 0]) == {2.0} and {1.0, 4.0, 5.0, 6.0, 9.0} <= set(taken[:, 1])
    assert np.diff(np.unique(taken[:, 1])).max() <= 1  # of 8: no gap for an arrow


def test_better_points_to_fast_small_and_low():
    data = prepared()
    for draw, direction in [
        (figures_tradeoffs.speedup_quality, (1, -1)),
        (figures_tradeoffs.memory_quality, (-1, -1)),
        (figures_tradeoffs.memory_speed, (-1, 1)),
    ]:
        arrow = next(t for t in draw(data).axes[0].texts if t.arrow_patch is not None)
        assert tuple(np.sign(np.subtract(arrow.xy, arrow.xyann))) == direction


def test_identical_memory_is_a_labelled_line_and_never_jittered():
    left, _ = figures_tradeoffs.memory_quality(prepared()).axes
    assert set(artists(left, "fused")[0].get_offsets()[:, 0]) == {1400.0}
    (line,) = artists(left, "_identical fused")
    assert list(line.get_xdata()) == [1400, 1400]
    assert any(text.get_text() == "fused: 1,400 MB in every run" for text in left.texts)
    assert not artists(left, "_identical window")


@pytest.mark.parametrize("runs, violins", [(29, 0), (30, 3)])
def test_violins_appear_from_thirty_runs_and_every_run_is_a_point(runs, violins):
    data = prepared(runs, steps=3)
    fig = figures_values.distributions(data)
    for ax, metric in zip(fig.axes, figures_data.METRICS, strict=True):
        drawn = [body for arm in THREE for body in artists(ax, f"{arm} violin")]
        assert len(drawn) == violins
        np.testing.assert_allclose(
            artists(ax, "window")[0].get_offsets()[:, 1], data.values("window", metric)
        )
        (mean,) = artists(ax, "window mean")
        interval = t_interval(data.values("window", metric))
        np.testing.assert_allclose(interval_of(mean), interval)
        for body in artists(ax, "window violin"):  # cut at the data
            heights = body.get_paths()[0].vertices[:, 1]
            values = data.values("window", metric)
            assert (heights.min(), heights.max()) == pytest.approx((values.min(), values.max()))
    assert ("No violins" in caption(fig)) == (violins == 0)
    assert "diamond and bar = mean and its 95 % t interval" in caption(fig)


def test_launches_are_in_order_with_stacked_times_and_a_mark_on_failures():
    data = figures_data.prepare(*EXPERIMENTS["a diverged run"]())
    fig = figures_trainings.per_run(data)
    times = fig.axes[0]
    for arm, run in data.launches:
        parts = [artists(times, f"_{arm} {key}") for key in figures_trainings.PARTS]
        bars = [c[0] for part in parts for c in part if hasattr(c, "patches")]
        mine = [b for b in bars if np.isclose(b.get_x() + 0.4, run["index"])]
        tops = [bar.get_y() + bar.get_height() for bar in mine]
        assert max(tops) == pytest.approx(run["wall_time"])
    failed = data.launches[7]
    assert (failed[0], failed[1]["status"]) == ("window", "diverged")
    for ax in fig.axes:
        assert [list(mark.get_xdata()) for mark in artists(ax, "_failed")] == [[7]]
    assert "window at 7 (diverged)" in caption(fig)
    for ax in fig.axes[1:]:
        assert len(artists(ax, "window")[0].get_offsets()) == 3


def test_each_arms_mean_line_lies_in_its_t_interval():
    data = prepared(5)
    fig = figures_trainings.per_run(data)
    for ax, metric in zip(fig.axes[1:], figures_data.METRICS, strict=True):
        values = data.values("window", metric)
        (line,), (span,) = artists(ax, "window mean"), artists(ax, "window interval")
        assert line.get_ydata()[0] == pytest.approx(values.mean())
        edges = span.get_y(), span.get_y() + span.get_height()
        assert edges == pytest.approx(t_interval(values))
    assert "faint span of its 95 % t interval" in caption(fig)
    one = figures_trainings.per_run(prepared(1))
    assert not [artist for ax in one.axes[1:] for artist in artists(ax, "window interval")]


def legend_names(fig):
    return [text.get_text() for legend in fig.legends for text in legend.get_texts()]


def test_a_stop_inside_a_block_is_a_line_where_the_launch_id_changes():
    fig = figures_trainings.per_run(figures_data.prepare(*eventful()))
    for ax in fig.axes:
        assert [list(line.get_xdata()) for line in artists(ax, "_stop")] == [[4.5, 4.5]]
    assert "a stop cut this block, resumed later: between 4 and 5." in caption(fig)
    assert "stop" in legend_names(fig)


def test_an_undisturbed_experiment_has_no_marks_at_all():
    fig = figures_trainings.per_run(prepared(2))
    for ax in fig.axes:
        assert not [*artists(ax, "_stop"), *artists(ax, "_throttled"), *artists(ax, "_failed")]
    assert legend_names(fig) == list(prepared(2).arms)
    assert not any(word in caption(fig) for word in ("stop", "slowed", "Failed"))


@pytest.mark.parametrize("first_of_second, expected", [(0, []), (3, []), (6, []), (7, [(6, 7)])])
def test_a_stop_between_two_blocks_cuts_none(first_of_second, expected):
    metrics, metadata = make_experiment(3)
    for run in (run for runs in metrics.values() for run in runs):
        run["process"] = "b" if run["index"] >= first_of_second else "a"
    assert figures_trainings.stops(figures_data.prepare(metrics, metadata)) == expected


def test_a_block_begun_by_an_older_version_and_resumed_is_marked():
    metrics, metadata = make_experiment(2)
    metrics["fused"][1]["process"] = "after"
    data = figures_data.prepare(metrics, metadata)
    assert figures_trainings.stops(data) == [(4, 5)]


def test_throttled_trainings_and_no_others_are_marked():
    fig = figures_trainings.per_run(figures_data.prepare(*eventful()))
    for ax in fig.axes:
        assert [list(mark.get_xdata()) for mark in artists(ax, "_throttled")] == [[2], [7]]
    assert "(sw_power_cap in 2, hw_slowdown in 1)" in caption(fig)
    assert "GPU slowed" in legend_names(fig)


IDLE = {"throttle_reasons": ["gpu_idle", "applications_clocks_setting"]}


@pytest.mark.parametrize("reading", [None, {}, {"throttle_reasons": None}, IDLE])
def test_a_gpu_at_its_own_pace_is_not_throttled(reading):
    assert throttled({"device_before": reading, "device_after": reading}) == []


@pytest.mark.parametrize("word", THROTTLING)
def test_every_word_for_a_slower_gpu_counts_before_and_after(word):
    for key in ("device_before", "device_after"):
        assert throttled({key: {"throttle_reasons": ["gpu_idle", word]}}) == [word]


def test_a_failed_run_leaves_means_and_its_block_leaves_the_pairs():
    data = figures_data.prepare(*EXPERIMENTS["a diverged run"]())
    assert [len(data.ok[arm]) for arm in data.arms] == [4, 3, 4]
    assert [[run["block"] for run in data.paired[arm]] for arm in data.arms] == [[0, 1, 3]] * 3
    text = caption(figures_values.final_losses(data))
    assert "n = 4 baseline, 3 window, 4 fused. Paired: 3 blocks complete in every arm." in text
    assert "Left out: 1 failed" in text


def test_an_arm_without_a_good_run_is_shown_only_as_failed():
    data = figures_data.prepare(*EXPERIMENTS["an arm that never fits"]())
    assert data.arms == ("fused", "window") and data.pairs == 1
    assert "baseline at 0 (out_of_memory)" in caption(figures_trainings.per_run(data))


def test_smoothing_is_centred_per_run_and_invents_no_edges():
    data = prepared(3, steps=200)
    window = figures_data.smoothing_window(200)
    losses = np.stack([run["losses"] for run in data.ok["fused"]]).astype(float)
    left, right = figures_curves.convergence(data).axes
    (line,) = artists(left, "fused")
    half = window // 2
    assert window % 2 == 1 and len(line.get_xdata()) == 200 - window + 1
    assert line.get_xdata()[0] == (half + 1) * 2048
    middle = losses[:, 50 - half : 50 + half + 1].mean(axis=1)
    assert line.get_ydata()[50 - half] == pytest.approx(middle.mean())
    (band,), runs = artists(left, "fused band"), artists(left, "_fused run")
    assert band_edges(band, 51 * 2048) == pytest.approx(t_interval(middle))
    np.testing.assert_allclose([run.get_ydata()[50 - half] for run in runs], middle)
    seconds = np.stack([run["step_seconds"] for run in data.ok["fused"]]).astype(float)
    expected = seconds.cumsum(axis=1).mean(axis=0)[half]
    assert artists(right, "fused")[0].get_xdata()[0] == pytest.approx(expected)
    text = caption(figures_curves.convergence(data))
    assert f"({window} steps" in text and "95 % t interval, pointwise" in text


def test_smoothing_a_straight_line_changes_nothing_and_leaves_no_lag():
    line = np.arange(50.0)[None]
    np.testing.assert_allclose(figures_data.smooth(line, 7), line[:, 3:-3])


def test_an_arm_looks_the_same_in_every_figure():
    data = prepared(3, (*THREE, "published"))
    for draw in figures_all.FIGURES.values():
        for legend in draw(data).legends:
            for handle in legend.legend_handles:
                style = data.styles[handle.get_label()]
                assert (to_hex(handle.get_color()).upper(), handle.get_marker()) == (
                    style.color,
                    style.marker,
                )
    looks = [data.styles[arm] for arm in data.arms]
    for part in ("color", "marker", "linestyle"):
        assert len({getattr(look, part) for look in looks}) == 4


def test_styles_do_not_depend_on_which_other_arms_are_there():
    alone, together = (
        figures_look.arm_styles(["window"]),
        figures_look.arm_styles(["odd", "window", "fused"]),
    )
    assert alone["window"] == together["window"] == figures_look.STYLES["window"]
    assert together["odd"] not in figures_look.STYLES.values()


def test_many_arms_all_look_different():
    looks = figures_look.arm_styles([f"w{window}-d0" for window in range(1, 31)]).values()
    assert len({(look.color, look.marker) for look in looks}) == 34
    assert len({look.linestyle for look in looks}) == 8


def test_a_setting_names_no_pattern_that_no_arm_has():
    for arms, named in ((("fused", "w32-d0"), False), (("fused", "window"), True)):
        _, metadata = make_experiment(2, arms)
        words = figures_data.describe_setting(metadata).replace("\N{NO-BREAK SPACE}", " ")
        assert ("w = 96, d = 4" in words) == named and "seq_len 1024" in words


@pytest.mark.parametrize(
    "arms, expected",
    [
        (("window", "fused", "baseline"), ("baseline", "window", "fused")),
        (("window", "fused"), ("fused", "window")),
        (("published", "window"), ("window", "published")),
        (("zebra", "window", "apple"), ("window", "apple", "zebra")),
    ],
)
def test_the_reference_comes_first(arms, expected):
    assert figures_data.ordered(arms) == expected


def test_partial_experiments_carry_a_visible_mark_and_complete_ones_do_not():
    data = figures_data.prepare(*partial())
    for draw in figures_all.FIGURES.values():
        fig = draw(data)
        assert fig.get_suptitle() == "partial: 7/15 trainings"
    assert not figures_forest.summary(prepared(2)).get_suptitle()


def test_missing_memory_is_said_and_the_rest_is_drawn():
    data = figures_data.prepare(*without_memory())
    for ax in figures_tradeoffs.memory_quality(data).axes:
        assert "not measured" in ax.texts[0].get_text()
    assert not figures_values.metrics_comparison(data).axes[1].patches
    assert figures_values.metrics_comparison(data).axes[0].patches
    assert "Not measured in every run: peak memory." in caption(figures_trainings.per_run(data))


def test_no_notebook_setting_changes(experiment):
    import matplotlib as mpl

    before = mpl.rcParams.copy()
    figures_forest.summary(figures_data.prepare(*experiment))
    assert mpl.rcParams == before and mpl.pyplot.get_fignums() == []


def test_equal_data_give_equal_bytes(tmp_path, monkeypatch):
    monkeypatch.setitem(figures_look.LOOK, "savefig.dpi", 40)
    for folder in ("a", "b"):
        for name in ("2_final_losses", "9_summary"):
            figures_look.save_figure(
                figures_all.FIGURES[name](prepared(2)), tmp_path / folder, name
            )
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_command_line_writes_ten_png_and_ten_pdf_and_lists_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(
        figures_look.LOOK, "savefig.dpi", 40
    )  # speed: resolution is not at stake here
    path, _ = save_metrics(*make_experiment(2, ("window",)), tmp_path)
    assert create_model_plots.main([str(path), str(tmp_path / "new" / "plots")]) == 0
    listed = capsys.readouterr().out.split()
    found = sorted(str(p) for p in (tmp_path / "new" / "plots").iterdir())
    assert sorted(listed) == found and len(found) == 20
    for number in range(1, 11):
        assert sum(f"/{number}_" in name for name in found) == 2
    for name in found:
        with open(name, "rb") as file:
            assert file.read(4) == (b"%PDF" if name.endswith("pdf") else b"\x89PNG")


def broken_file(tmp_path, kind):
    path = tmp_path / "results.npz"
    if kind == "foreign":
        np.savez(path, a=np.zeros(3))
    elif kind == "damaged":
        save_metrics(*make_experiment(1), tmp_path, "results")
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "nothing ok":
        experiment = with_status(make_experiment(1, ("window",)), "window", 0, "diverged")
        save_metrics(*experiment, tmp_path, "results")
    elif kind == "empty":
        save_metrics({}, {}, tmp_path, "results")
    return path


@pytest.mark.parametrize("kind", ["missing", "foreign", "damaged", "nothing ok", "empty"])
def test_bad_files_are_one_line_on_stderr_and_exit_2(tmp_path, capsys, kind):
    assert create_model_plots.main([str(broken_file(tmp_path, kind)), str(tmp_path / "plots")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert not (tmp_path / "plots").exists()


def test_unwritable_folder_is_one_line_and_exit_1(tmp_path, capsys):
    path, _ = save_metrics(*make_experiment(1), tmp_path)
    (tmp_path / "plots").write_text("in the way")
    assert create_model_plots.main([str(path), str(tmp_path / "plots")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "plots" in shown and shown.count("\n") == 1


def test_no_good_run_is_a_metrics_error_that_counts_them():
    experiment = with_status(make_experiment(1, ("window",)), "window", 0, "diverged")
    with pytest.raises(MetricsError, match="1 diverged"):
        figures_data.prepare(*experiment)


def test_help_shows_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit) as exit_:
        create_model_plots.main(["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0 and "example:" in text
    assert "output/experiment_results.npz" in text and "plots/" in text

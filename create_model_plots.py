"""Ten figures of a saved experiment, each as .png (300 dpi) and .pdf.  Needs no torch.

    python create_model_plots.py [output/experiment_results.npz [plots/]]

Everything is drawn from that one file.  ``prepare`` sorts the runs once; every figure is then a
function of the prepared ``Experiment`` that returns a matplotlib Figure, and the caller saves it:

    fig = training_curves(prepare(*load_experiment("output/experiment_results.npz")))

Figures are made without pyplot: nothing stays open, and no backend or style of a notebook changes.
The statistics are those of significance.py; equal data give equal bytes.
"""

import argparse
import math
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path as MarkerPath
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from metrics_utils import (
    CONTRASTS,
    PRACTICAL_SHARE,
    SHOWN_SHARE,
    MetricsError,
    atomic_write,
    declared_margin,
    fitting,
    layers_text,
    load_experiment,
    ordered_arms,
    pairs_of,
    throttled,
)
from significance import ALPHA, ROUNDING, mean_interval, non_inferiority, paired_ratio

GROUPED = "{x:,.12g}"  # a number with its thousands grouped
WIDTH = 7.2  # inches: two columns of a paper
DRAWN_POINTS = 1000  # a line is at most this many points; 7.2 inches show no more
VIOLIN_FROM = 30  # runs; the density of fewer points is invented shape
CAPTION_COLUMNS = 134  # characters of 7 pt in WIDTH
FAILED = {"marker": "X", "ms": 6, "color": "black", "ls": "none", "zorder": 6}
LETTER_T = MarkerPath([(-1, 1), (1, 1), (0, 1), (0, -1)], [1, 2, 1, 2])  # "$T$" needs math text
THROTTLED = {"marker": LETTER_T, "ms": 6, "mew": 1.8, "fillstyle": "none", "zorder": 6}
THROTTLED |= {"color": "black", "ls": "none"}
STOP = {"color": "black", "ls": (0, (3, 2)), "lw": 0.9, "zorder": 6}
# told apart in gray print too: one is plain, the other hatched
MARGIN = {"facecolor": "#F5DC8C", "edgecolor": "none", "zorder": 0.5}
SMALL = {"facecolor": "0.95", "edgecolor": "0.75", "lw": 0, "hatch": "////", "zorder": 0.5}
NEUTRAL = "0.45"
MEAN = {"markeredgecolor": "black", "markersize": 6, "capsize": 2.5, "zorder": 5}
JOIN = {"color": NEUTRAL, "lw": 0.5, "alpha": 0.5, "zorder": 1, "label": "_pair"}
SIDE_TEXT = {"va": "center", "fontsize": 7, "annotation_clip": False}
LOOK = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("paper"),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same figure everywhere
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.formatter.useoffset": False,
    "grid.linewidth": 0.5,
    "grid.color": "0.9",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.markersize": 5,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a $ in the name of an arm or a device is a $
    "savefig.dpi": 300,
}


@dataclass(frozen=True)
class ArmStyle:
    """How an arm looks in every figure: three ways to tell it apart, so gray print works too."""

    color: str
    marker: str
    linestyle: object
    phase: float = 0  # where along a line its markers sit, so that those of two arms do not meet

    @property
    def mark(self):
        return {"color": self.color, "marker": self.marker}

    @property
    def line(self):
        return {"color": self.color, "linestyle": self.linestyle}


STYLES = {  # colours of seaborn's "colorblind" palette
    "baseline": ArmStyle("#0173B2", "o", "-"),
    "window": ArmStyle("#D55E00", "s", (0, (6, 1.5)), 0.25),
    "fused": ArmStyle("#029E73", "^", (0, (6, 1.5, 1, 1.5)), 0.5),
    "published": ArmStyle("#CC78BC", "D", (0, (1.5, 1)), 0.75),
}
# of further arms: 6 colours and 7 markers, so that no pair of them comes again before 42 arms
MORE_COLORS = "#CA9161", "#56B4E9", "#DE8F05", "#949494", "#FBAFE4", "#8C8000"
MORE_MARKERS = "v", "P", "<", ">", "X", "*", "h"
MORE_LINES = (0, (4, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (8, 2, 2, 2)), (0, (2, 2))


@dataclass(frozen=True)
class Metric:
    """One number a run: its key, its name, its unit and the words for less and more of it."""

    key: str
    name: str
    unit: str
    less: str = ""
    more: str = ""
    digits: int = 3  # of a ratio, after the point


TIME = Metric("training_time", "training time", "s", "faster", "slower")
MEMORY = Metric("peak_memory_mb", "peak memory", "MB", "less memory", "more memory")
LOSS_WORDS = ("nats/token", "lower loss", "higher loss", 4)
TRAIN_LOSS = Metric("avg_loss_last_100", "training loss, last ≤ 100 steps", *LOSS_WORDS)
VAL_LOSS = Metric("val_loss", "validation loss", *LOSS_WORDS)
SPEED = Metric("tokens_per_second", "speed", "tokens/s")
METRICS = (TIME, MEMORY, TRAIN_LOSS, VAL_LOSS)
LOSSES = (TRAIN_LOSS, VAL_LOSS)
PARTS = {  # of a training's wall time; "training" takes the arm's colour
    "warmup_time": {"label": "warm-up", "facecolor": "0.35"},
    "compile_time": {"label": "compile", "facecolor": "0.65", "hatch": "////"},
    "training_time": {"label": "training"},
    "eval_time": {"label": "evaluation", "facecolor": "0.85", "hatch": "...."},
    "rest": {"label": "set-up and rest", "facecolor": "white", "edgecolor": "0.5"},
}


# --- the prepared experiment -------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """What the figures draw.  The reference arm comes first in ``arms``.

    ok: {arm: its runs that went well}; paired: {arm: its runs of the blocks in which every arm
    went well}, aligned; launches: [(arm, run)] of every training, failed ones too, as launched.
    """

    arms: tuple
    ok: dict
    paired: dict
    launches: list
    styles: dict
    setting: str  # device, sizes and revision, for the captions
    partial: str  # "partial: 7/20 trainings", or "" when complete
    margin: float | None = None  # of equivalence, in nats of validation loss, where declared

    @property
    def reference(self):
        return self.arms[0]

    @property
    def pairs(self):
        return len(self.paired[self.reference]) if len(self.arms) > 1 else 0

    def values(self, arm, metric, paired=False):
        runs = (self.paired if paired else self.ok)[arm]
        return np.array([run[metric.key] for run in runs], dtype=np.float64)

    def pair(self, arm, base, metric):
        """The metric over the blocks in which both arms went well, aligned: as in the report."""
        runs = [{run["run"]: run[metric.key] for run in self.ok[a]} for a in (arm, base)]
        shared = sorted(set(runs[0]) & set(runs[1]))
        return [np.array([of[block] for block in shared], dtype=np.float64) for of in runs]

    def has(self, metric):
        """Whether every ok run has this metric (memory is not measurable everywhere)."""
        values = np.concatenate([self.values(arm, metric) for arm in self.arms])
        return bool(np.isfinite(values).all() and (values > 0).all())


@dataclass(frozen=True)
class Estimate:
    """Values of an arm, their mean (or ratio) and its 95 % t interval, None where there is none."""

    values: np.ndarray
    center: float
    low: float | None
    high: float | None

    @property
    def identical(self):
        return len(self.values) > 1 and np.ptp(self.values) <= ROUNDING * np.abs(self.values).max()

    @property
    def error(self):
        """The interval as matplotlib's errorbar wants it: (2, 1) distances, or None."""
        if self.low is None:
            return None
        return np.maximum([[self.center - self.low], [self.high - self.center]], 0)


def went_well(run):
    finite = np.isfinite(run["losses"]).all()
    return run["status"] == "ok" and run["total_steps"] > 0 and bool(finite)


def arm_styles(arms):
    """{arm: ArmStyle}; arms this suite does not know get further styles in order of name."""
    unknown = sorted(set(arms) - set(STYLES))
    looks = zip(cycle(MORE_COLORS), cycle(MORE_MARKERS), cycle(MORE_LINES), strict=True)
    return STYLES | {arm: ArmStyle(*look) for arm, look in zip(unknown, looks, strict=False)}


def ordered(arms):
    """The arms, reference first: baseline, else fused, else the first known one."""
    known = ordered_arms(arms)
    reference = next((arm for arm in ("baseline", "fused") if arm in known), known[0])
    return (reference, *(arm for arm in known if arm != reference))


def describe_setting(metadata):
    """Device, sizes, number format and revision in one line, as far as the file has them."""
    config, environment = metadata.get("config") or {}, metadata.get("environment") or {}
    # arms that name a pattern have that one
    chosen = config if "window" in (config.get("arms") or ["window"]) else {}
    pattern = [chosen.get(name) for name in ("window_size", "dilation")]
    window_size, dilation = (None if value is None else layers_text(value) for value in pattern)
    known = (
        ("{}", environment.get("device_name") or config.get("device")),
        ("seq_len {}", config.get("seq_len")),
        ("w = {}", window_size),
        ("d = {}", dilation),
        ("{} sinks", config.get("sink_tokens") or None),
        ("{}", config.get("dtype")),
        ("git {}", environment.get("git_revision")),
    )
    facts = [form.format(value) for form, value in known if value is not None]
    return ", ".join(fact.replace(" ", "\N{NO-BREAK SPACE}") for fact in facts)


def partial_mark(metrics, metadata):
    """What must be seen on every figure: that trainings are missing, or of several kinds."""
    mixed = "mixed: trainings that differ" if metadata.get("mixed") else ""
    if metadata.get("status") != "partial":
        return mixed
    arms = (metadata.get("config") or {}).get("arms") or metrics
    total = len((metadata.get("plan") or {}).get("orders") or ()) * len(arms)
    done = sum(len(runs) for runs in metrics.values())
    return f"partial: {done}/{total or '?'} trainings" + (f"; {mixed}" if mixed else "")


def prepare(metrics, metadata):
    """The ``Experiment`` of loaded metrics; MetricsError when no training went well."""
    ok = {arm: [run for run in runs if went_well(run)] for arm, runs in metrics.items()}
    ok = {arm: sorted(runs, key=lambda run: run["run"]) for arm, runs in ok.items() if runs}
    if not ok:
        statuses = Counter(run["status"] for runs in metrics.values() for run in runs)
        found = ", ".join(f"{n} {status}" for status, n in statuses.items()) or "no training at all"
        raise MetricsError(f"nothing to draw: no training went well ({found})")
    blocks = set.intersection(*({run["run"] for run in runs} for runs in ok.values()))
    return Experiment(
        arms=ordered(ok),
        ok=ok,
        paired={arm: [run for run in runs if run["run"] in blocks] for arm, runs in ok.items()},
        launches=sorted(pairs_of(metrics), key=lambda launch: launch[1]["launch_index"]),
        styles=arm_styles(metrics),
        setting=describe_setting(metadata),
        partial=partial_mark(metrics, metadata),
        margin=declared_margin(metadata),
    )


# --- estimates and numbers ---------------------------------------------------------------------


def absolute(data, arm, metric):
    values = data.values(arm, metric)
    interval = mean_interval(values)
    return Estimate(values, interval.mean, interval.low, interval.high)


def compare(data, arm, reference, metric):
    """Ratio arm / reference of a metric, block by block: ``(Ratio, Estimate)``."""
    x, base = data.pair(arm, reference, metric)
    ratio = paired_ratio(x, base)
    return ratio, Estimate(x / base, ratio.ratio, ratio.low, ratio.high)


def relative(data, arm, metric):
    """To the reference, block by block: the difference of a loss, the ratio of anything else."""
    if metric not in LOSSES:
        return compare(data, arm, data.reference, metric)[1]
    x, base = data.pair(arm, data.reference, metric)
    interval = mean_interval(x - base)
    return Estimate(x - base, interval.mean, interval.low, interval.high)


def t_band(values):
    """Pointwise 95 % t interval of the mean over the rows of (R, points): (2, points)."""
    intervals = [mean_interval(point) for point in values.T]
    return np.array([[i.low for i in intervals], [i.high for i in intervals]])


def margin_span(data, arm, base):
    """The equivalence margin around ``base``'s mean validation loss, as a span of ratios."""
    share = data.margin / data.pair(arm, base, VAL_LOSS)[1].mean()
    return max(1 - share, 0.01), 1 + share  # a log axis has no 0


def table(runs, key):
    """A series of all these runs, (R, steps), up to the shortest."""
    steps = min(run["total_steps"] for run in runs)
    return np.stack([run[key][:steps] for run in runs]).astype(np.float64)


def drawn(length):
    """Indices of at most DRAWN_POINTS of ``length`` points, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(length, DRAWN_POINTS)).round().astype(int))


def smoothing_window(steps):
    """An odd number of steps, a thirtieth of the training."""
    return max(3, steps // 30 | 1) if steps >= 3 else 1


def smooth(losses, window):
    """Centred moving average of each row; only full windows, so the ends get shorter."""
    kernel = np.full(window, 1 / window)
    return np.stack([np.convolve(row, kernel, mode="valid") for row in losses])


def number(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def mean_text(estimate):
    """A mean and half its interval: 1,502 ± 1.6."""
    half = 0 if estimate.error is None else estimate.error[0, 0]
    if not half or estimate.identical:
        return number(estimate.center)
    half = f"{half:#.2g}".rstrip(".") if half < 99.5 else f"{half:,.0f}"
    return f"{number(estimate.center)} ± {half}"


def minus(text):
    return text.replace("-", "−")


def ratio_text(ratio, digits):
    shown = [f"{v:.{digits}f}" for v in (ratio.ratio, ratio.low, ratio.high) if v is not None]
    return shown[0] if len(shown) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def verdict(ratio, metric):
    """What a ratio says, in words; a difference is named only where the test found one."""
    if ratio.p is None and abs(ratio.ratio - 1) < SHOWN_SHARE:
        words = "identical" if abs(ratio.ratio - 1) < ROUNDING else "equal to 0.01 %"
        return words if ratio.n == 1 else f"{words} in every run"
    if ratio.p is not None and ratio.p >= ALPHA:
        return "no difference detected"
    percent = 100 * (ratio.ratio - 1)
    change = f"{percent:+.{1 if abs(percent) >= 1 else 2}f} %"
    words = minus(f"{metric.less if percent < 0 else metric.more}: {change}")
    if ratio.p is None:
        words += ", one run" if ratio.n == 1 else " in every run"
    return words


def loss_verdict(data, arm, base):
    """The validation loss against the declared margin, in words; without one, the ratio's."""
    ratio = compare(data, arm, base, VAL_LOSS)[0]
    if data.margin is None or ratio.n == 1:
        return verdict(ratio, VAL_LOSS)
    x, reference = data.pair(arm, base, VAL_LOSS)
    words = non_inferiority(x, reference, data.margin).verdict
    return f"{words} (margin {data.margin:g} nats)" if words == "not worse" else words


# --- parts of figures --------------------------------------------------------------------------


def new_figure(data, rows, columns, height, **options):
    """A figure and its axes (rows, columns), with the mark of a partial experiment."""
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    if data.partial:
        fig.suptitle(data.partial, x=0.99, ha="right", color="#B00000", weight="bold", fontsize=9)
    return fig, fig.subplots(rows, columns, squeeze=False, **options)


def count_runs(data):
    """The n of the caption, and what was left out."""
    counts = {arm: len(data.ok[arm]) for arm in data.arms}
    most = max(counts.values())
    if len(set(counts.values())) == 1:
        text = f"n = {most} run{'s' * (most > 1)} per arm"
    else:
        text = "n = " + ", ".join(f"{n} {arm}" for arm, n in counts.items())
    text += ": no bands, no intervals." if most == 1 else "."
    if data.pairs and set(counts.values()) != {data.pairs}:
        text += f" Paired: {data.pairs} block{'s' * (data.pairs > 1)} complete in every arm."
        text += " Ratios: blocks complete in their two arms."
    failed = sum(not went_well(run) for _, run in data.launches)
    return text + (f" Left out: {failed} failed (see the per-run figure)." if failed else "")


def finish(fig, data, caption, arms=None, extra=()):
    """Legend of the arms above, caption below; constrained layout makes room for both."""
    styles = {arm: data.styles[arm] for arm in arms or data.arms}
    handles = [Line2D([], [], **s.line, marker=s.marker, label=arm) for arm, s in styles.items()]
    handles += extra
    columns = min(len(handles), 6)
    fig.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3)
    lines = textwrap.wrap(
        f"{caption} {count_runs(data)} {data.setting}", CAPTION_COLUMNS, break_on_hyphens=False
    )
    fig.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="0.25")
    return fig


def note(ax, text):
    """An empty panel that says why it is empty."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, textwrap.fill(text, 40), transform=ax.transAxes, ha="center", va="center")


def why_missing(data, metric, compare=True):
    """Why a panel of this metric stays empty, or ""."""
    if not data.has(metric):
        return f"{metric.name}: not measured in every run"
    if compare and len(data.arms) < 2:
        return "one arm: nothing to compare"
    return "no block is complete in every arm" if compare and not data.pairs else ""


def in_thousands(axis):
    """Ticks as 50k and 1.5M."""
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(EngFormatter(sep=""))


def arm_ticks(ax, data, labels=None):
    ax.set_xticks(range(len(data.arms)), labels or data.arms)
    ax.set_xlim(-0.5, len(data.arms) - 0.5)
    ax.grid(False, axis="x")


def mean_point(ax, x, y, style, label, xerr=None):
    """A mean with its interval, in the arm's colour and marker, above everything else."""
    errors = {"xerr": xerr, "yerr": y.error}
    ax.errorbar(x, y.center, **errors, **style.mark, **MEAN, ls="none", label=f"{label} mean")


def dots(ax, x, y, style, **options):
    options = {"s": 14, "alpha": 0.6, "linewidths": 0, "zorder": 3} | options
    ax.scatter(x, y, **style.mark, **options)


def axis_label(metric):
    text = f"{metric.name} ({metric.unit})"
    return text if len(text) < 20 else text.replace(", ", ",\n").replace(" (", "\n(")


def side_text(ax, y, text, offset=0):
    """Text right of the axes, level with y; ``offset`` in points makes a second column."""
    place = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
    ax.annotate(text, (1.02, y), (offset, 0), **place, **SIDE_TEXT)


def shade(ax, x, low, high, style, arm):
    ax.fill_between(x, low, high, color=style.color, alpha=0.2, lw=0, label=f"{arm} band")


def band_of_runs(ax, x, losses, style, arm):
    """Bold mean over the runs (R, steps) in its pointwise t band, thin single runs behind.

    Returns what the bold line, its band and the runs reach at each drawn point.
    """
    at = drawn(len(x))
    edges = losses[:, at]
    thin = {"lw": 0.3, "alpha": 0.3, "label": f"_{arm} run", "rasterized": True, "zorder": 1}
    ax.plot(x[at], edges.T, color=style.color, **thin)
    mean_line(ax, x[at], edges.mean(axis=0), style, arm, lw=1.2)
    if len(losses) == 1:
        return edges
    band = t_band(edges)
    shade(ax, x[at], *band, style, arm)
    return np.concatenate([edges, band])


def mean_line(ax, x, y, style, arm, lw):
    """A line with a marker now and then, so that it is known without its colour."""
    every = max(len(x) // 8, 1)
    marks = {"marker": style.marker, "ms": 4, "markevery": (int(style.phase * every), every)}
    ax.plot(x, y, **style.line, **marks, lw=lw, label=arm)
    ax.margins(x=0.02)


# --- the ten figures ---------------------------------------------------------------------------


def difference_curve(ax, data, arm):
    """Paired difference of the loss to the reference at each step; returns its drawn edges."""
    runs, base = data.paired[arm], data.paired[data.reference]
    steps = min(run["total_steps"] for run in (*runs, *base))
    at = drawn(steps)
    differences = (table(runs, "losses")[:, :steps] - table(base, "losses")[:, :steps])[:, at]
    x, style = runs[0]["tokens_seen"][at], data.styles[arm]
    edges = differences.mean(axis=0, keepdims=True)
    mean_line(ax, x, edges[0], style, arm, lw=0.8)
    if len(runs) > 1:
        edges = t_band(differences)
        shade(ax, x, *edges, style, arm)
    return edges


@matplotlib.rc_context(LOOK)
def training_curves(data):
    """1: training loss over tokens, and its paired difference to the reference."""
    options = {"sharex": True, "height_ratios": (3, 2)}
    fig, ((top,), (bottom,)) = new_figure(data, 2, 1, 5.4, **options)
    for arm in data.arms:
        losses = table(data.ok[arm], "losses")
        x = data.ok[arm][0]["tokens_seen"][: losses.shape[1]]
        band_of_runs(top, x, losses, data.styles[arm], arm)
    top.set_ylabel("training loss (nats/token)")
    missing = why_missing(data, TRAIN_LOSS)
    if missing:
        note(bottom, missing)
        top.tick_params(labelbottom=True)
    else:
        edges = [difference_curve(bottom, data, arm) for arm in data.arms[1:]]
        bottom.axhline(0, color="black", lw=0.8)
        late = np.concatenate([e[:, e.shape[1] // 10 :].ravel() for e in edges])
        low, high = min(late.min(), 0), max(late.max(), 0)
        bottom.set_ylim(low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1))
        bottom.set_ylabel(f"difference to {data.reference}\n(nats/token)")
    (top if missing else bottom).set_xlabel("training tokens")
    in_thousands(bottom.xaxis)
    caption = (
        "Above: bold = mean over runs, thin = single runs. Below: mean paired difference (same "
        "seed and data order); its vertical range fits the last 90 % of the steps. Bands = 95 % t "
        "interval of the mean, pointwise: each step by itself."
    )
    return finish(fig, data, caption)


def joined_dots(ax, data, metric):
    """One dot a run, pairs joined, the mean with its interval beside them."""
    rows = np.array([data.values(arm, metric, paired=True) for arm in data.arms])
    if len(rows) > 1:
        ax.plot(range(len(rows)), rows, **JOIN)
    for i, arm in enumerate(data.arms):
        estimate, style = absolute(data, arm, metric), data.styles[arm]
        dots(ax, np.full(len(estimate.values), i), estimate.values, style, label=arm)
        mean_point(ax, i + 0.22, estimate, style, arm)
    ax.margins(y=0.1)
    arm_ticks(ax, data)


def paired_differences(ax, data, metric):
    labels = [f"{data.reference}\n(reference)"]
    for i, arm in enumerate(data.arms[1:], start=1):
        estimate, style = relative(data, arm, metric), data.styles[arm]
        dots(ax, np.full(len(estimate.values), i), estimate.values, style, label=arm)
        mean_point(ax, i + 0.22, estimate, style, arm)
        half = "" if estimate.error is None else f"\n± {estimate.error[0, 0]:.4f}"
        center = round(estimate.center, 4) + 0.0  # never -0.0000
        labels.append(minus(f"{arm}\n{center:+.4f}{half}"))
    ax.axhline(0, color="black", lw=0.8)
    ax.margins(y=0.1)
    arm_ticks(ax, data, labels)


@matplotlib.rc_context(LOOK)
def final_losses(data):
    """2: the loss at the end of the training and the held-out loss, run by run."""
    rows = 2 if data.pairs else 1
    fig, axes = new_figure(data, rows, 2, 2.6 + 2 * (rows - 1), sharex="col")
    for column, metric in zip(axes.T, LOSSES, strict=True):
        missing = why_missing(data, metric, compare=False)
        for ax, draw in zip(column, (joined_dots, paired_differences), strict=False):
            if missing:
                note(ax, missing)
            else:
                draw(ax, data, metric)
        column[0].set_ylabel(axis_label(metric))
        if rows == 2:
            column[1].set_ylabel(f"difference to {data.reference}\n({metric.unit})")
    caption = (
        "A dot = one run (the mean of its last ≤ 100 steps is one value); outlined = mean and 95 % "
        "t interval over runs."
    )
    if rows == 2:
        caption += " Lines join a block's arms; below: paired differences, mean ± half interval."
    return finish(fig, data, caption)


def ratio_bars(ax, data, metric):
    """The ratio to the reference with interval, every block's ratio, values in text.

    A bar for what may be 0, time and memory; a point for a loss, whose 0 means nothing.
    """
    for y, arm in enumerate(data.arms):
        style, mean = data.styles[arm], mean_text(absolute(data, arm, metric))
        ratio, estimate = compare(data, arm, data.reference, metric)
        if metric in LOSSES:
            ax.plot(ratio.ratio, y, **style.mark, mec="black", ms=6, ls="none", zorder=6, label=arm)
        else:
            ax.barh(y, ratio.ratio, height=0.6, color=style.color, alpha=0.5, label=arm)
        text = "1 (reference)"
        if arm != data.reference:
            offsets = y + 0.4 * spread(len(estimate.values))
            dots(ax, estimate.values, offsets, style, s=8, label=f"{arm} blocks")
            ax.errorbar(
                ratio.ratio, y, xerr=estimate.error, color="black", capsize=2.5, lw=1, zorder=5
            )
            text = ratio_text(ratio, metric.digits)
        side_text(ax, y, f"{text}\n{mean} {metric.unit}")
    ax.axvline(1, color="black", lw=0.8, zorder=1)
    ax.set_yticks(range(len(data.arms)), data.arms)
    ax.set_ylim(len(data.arms) - 0.5, -0.5)
    ax.grid(False, axis="y")
    if metric in LOSSES:
        ax.margins(x=0.1)
        ax.xaxis.set_major_locator(MaxNLocator(5))


@matplotlib.rc_context(LOOK)
def metrics_comparison(data):
    """3: every metric as a ratio to the reference arm, absolute values in text."""
    fig, axes = new_figure(data, 2, 2, 1.9 + 0.62 * len(data.arms), sharex="row")
    for ax, metric in zip(axes.flat, METRICS, strict=True):
        missing = why_missing(data, metric, compare=len(data.arms) > 1)
        if missing:
            note(ax, missing)
            continue
        ratio_bars(ax, data, metric)
        ax.set_title(metric.name)
        ax.set_xlabel(f"ratio to {data.reference}")
        ax.tick_params(labelbottom=True)
    caption = (
        f"Bar or outlined point = geometric mean of the paired ratios to {data.reference} (= 1), "
        "whisker and brackets = 95 % t interval of the ratio (on logs), dot = one block; "
        "the losses' axes show a small part around 1. Second line: the arm's mean ± half its 95 % "
        "t interval."
    )
    return finish(fig, data, caption)


def emptiest_place(points):
    """Where in an axes an arrow with a word is farthest from all points; both in axes units.

    A place is a corner or, between points that take all four, the middle of the top or the bottom.
    """
    places = [(x, y) for x in (0.13, 0.87, 0.5) for y in (0.82, 0.18)]
    return max(places, key=lambda place: np.hypot(*(points - place).T).min())


def better_arrow(ax, points, direction):
    """An arrow towards better, where there is most room; points in data units."""
    x, y = emptiest_place(ax.transAxes.inverted().transform(ax.transData.transform(points)))
    above = y > 0.5
    center = np.array([x, y + (0.05 if above else -0.05)])  # the word lies towards the middle
    tip, tail = center + 0.06 * np.array(direction), center - 0.06 * np.array(direction)
    arrow = {"arrowstyle": "-|>", "color": "black", "lw": 1.2}
    ax.annotate("", tip, tail, "axes fraction", "axes fraction", arrowprops=arrow)
    offset, va = ((0, -15), "top") if above else ((0, 15), "bottom")
    look = {"ha": "center", "va": va, "fontsize": 7}
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over lines it may meet
    ax.annotate("better", center, offset, "axes fraction", "offset points", bbox=paper, **look)


def label_identical(ax, estimates, unit):
    """A labelled vertical line for each memory that was the same in every run of its arms."""
    same = {}
    for arm, estimate in estimates.items():
        if estimate.identical:
            same.setdefault(float(f"{estimate.center:.9g}"), []).append(arm)
    for level, (x, arms) in enumerate(sorted(same.items())):
        ax.axvline(x, color=NEUTRAL, lw=0.8, ls=":", zorder=1, label=f"_identical {' '.join(arms)}")
        text = f"{', '.join(arms)}: {number(x)}{unit} in every run"
        look = {"ha": "left" if x < np.mean(ax.get_xlim()) else "right", "fontsize": 7}
        place = (ax.get_xaxis_transform(), "offset points")
        ax.annotate(text, (x, 1), (0, 3 + 9 * level), *place, **look)


def cross(ax, x, y, style, arm):
    """A dot per run and the mean with its interval in both directions."""
    dots(ax, x.values, y.values, style, label=arm)
    mean_point(ax, x.center, y, style, arm, xerr=x.error)


def occupied(x, y):
    """Places (points, 2) that an arm's dots and the bars of its cross take."""
    places = [np.stack([x.values, y.values], axis=1)]
    for along, bar in enumerate((x, y)):
        if bar.low is not None:
            line = np.tile([x.center, y.center], (9, 1))
            line[:, along] = np.linspace(bar.low, bar.high, 9)
            places.append(line)
    return np.concatenate(places)


def scatter_panel(ax, data, metrics, estimate, direction):
    """Each arm's cloud with its cross; ``estimate`` is ``absolute`` or ``relative``."""
    clouds = {arm: tuple(estimate(data, arm, metric) for metric in metrics) for arm in data.arms}
    for arm, (x, y) in clouds.items():
        cross(ax, x, y, data.styles[arm], arm)
    ax.margins(0.18)
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    as_measured = estimate is absolute
    if metrics[0] is MEMORY:
        shown = data.arms if as_measured else data.arms[1:]
        label_identical(ax, {a: clouds[a][0] for a in shown}, " MB" if as_measured else "×")
    points = np.concatenate([occupied(x, y) for x, y in clouds.values()])
    better_arrow(ax, points, direction)
    for axis, metric in zip((ax.xaxis, ax.yaxis), metrics, strict=True):
        axis.set_label_text(axis_label(metric) if as_measured else relative_name(data, metric))
        if metric is SPEED and as_measured:
            in_thousands(axis)
        if metric is MEMORY and as_measured:
            axis.set_major_formatter(GROUPED)


def join_pairs(ax, data, metrics):
    arms = sorted(data.arms, key=lambda arm: data.values(arm, metrics[0]).mean())
    ax.plot(*([data.values(arm, m, paired=True) for arm in arms] for m in metrics), **JOIN)


def relative_name(data, metric):
    if metric in LOSSES:
        return f"{metric.name}, difference\nto {data.reference} ({metric.unit})"
    name = "speed-up over" if metric is SPEED else f"{metric.name} relative to"
    return f"{name} {data.reference} (×)"


def tradeoff(data, metrics, direction):
    """Two metrics against each other: as measured, and paired with the reference."""
    fig, ((left, right),) = new_figure(data, 1, 2, 3.9)
    missing = [text for metric in metrics if (text := why_missing(data, metric, compare=False))]
    if missing:
        note(left, missing[0])
    else:
        if data.pairs:
            join_pairs(left, data, metrics)
        scatter_panel(left, data, metrics, absolute, direction)
    missing += [text for metric in metrics if (text := why_missing(data, metric))]
    if missing:
        note(right, missing[0])
    else:
        scatter_panel(right, data, metrics, relative, direction)
        right.axvline(1, color="black", lw=0.6, zorder=1)
        right.axhline(0 if metrics[1] in LOSSES else 1, color="black", lw=0.6, zorder=1)
    caption = (
        "Left: as measured; a dot = one run, thin lines join the arms of a block. Right: each "
        f"block against its own {data.reference}. Outlined = mean, cross = 95 % t interval in both "
        "directions (of a ratio: on logs)."
    )
    return finish(fig, data, caption)


@matplotlib.rc_context(LOOK)
def speedup_quality(data):
    """4: speed against held-out loss."""
    return tradeoff(data, (SPEED, VAL_LOSS), direction=(1, -1))


@matplotlib.rc_context(LOOK)
def memory_quality(data):
    """5: peak memory against held-out loss."""
    return tradeoff(data, (MEMORY, VAL_LOSS), direction=(-1, -1))


@matplotlib.rc_context(LOOK)
def memory_speed(data):
    """6: peak memory against speed."""
    return tradeoff(data, (MEMORY, SPEED), direction=(-1, 1))


def spread(n):
    """n offsets in -0.5 ... 0.5, evenly mixed (golden ratio): jitter without a random number."""
    return (np.arange(n) * 0.6180339887) % 1 - 0.5 if n > 1 else np.zeros(n)


def distribution(ax, data, metric, violin):
    """Box, points, mean with interval, and a violin behind where there are enough runs."""
    for i, arm in enumerate(data.arms):
        estimate, style = absolute(data, arm, metric), data.styles[arm]
        n = len(estimate.values)
        if violin:
            (body,) = ax.violinplot(estimate.values, [i], widths=0.9, showextrema=False)["bodies"]
            body.set(facecolor=style.color, alpha=0.3, label=f"{arm} violin")
        lines = {f"{part}props": {"color": style.color} for part in ("box", "whisker", "cap")}
        median, width = {"color": "black", "linewidth": 1.6}, 0.2 if violin else 0.5
        box = {"widths": width, "showfliers": False, "medianprops": median}
        ax.boxplot(estimate.values, positions=[i], **box, **lines)
        dots(ax, i + (0.12 if violin else 0.3) * spread(n), estimate.values, style, label=arm)
        mean = {"fmt": "D", "ms": 4, "mfc": "white", "mec": "black", "zorder": 6, "lw": 1}
        mean |= {"ecolor": "black", "capsize": 2.5, "label": f"{arm} mean"}
        ax.errorbar(i + 0.36, estimate.center, yerr=estimate.error, **mean)  # clear of the whiskers
    arm_ticks(ax, data)


@matplotlib.rc_context(LOOK)
def distributions(data):
    """7: the distribution of every metric over the runs."""
    fig, axes = new_figure(data, 2, 2, 5.2)
    violin = min(len(data.ok[arm]) for arm in data.arms) >= VIOLIN_FROM
    for ax, metric in zip(axes.flat, METRICS, strict=True):
        missing = why_missing(data, metric, compare=False)
        if missing:
            note(ax, missing)
            continue
        distribution(ax, data, metric, violin)
        ax.set_ylabel(axis_label(metric))
    caption = (
        "Box = quartiles, black line = median, whiskers = last point within 1.5 box lengths; "
        "diamond and bar = mean and its 95 % t interval; every run is a dot (its sideways place "
        "means nothing). "
    )
    caption += (
        "Violin = kernel density, cut at the data."
        if violin
        else f"No violins: below {VIOLIN_FROM} runs a density would invent shape."
    )
    return finish(fig, data, caption)


def stops(data):
    """[(launch before, launch after)] of the stops that cut a block in two."""
    blocks = {}
    for _, run in data.launches:
        blocks.setdefault(run["run"], []).append(run)
    pairs = [pair for runs in blocks.values() for pair in pairwise(runs)]
    cut = [pair for pair in pairs if len({run.get("launch_id", "") for run in pair}) > 1]
    return [(before["launch_index"], after["launch_index"]) for before, after in cut]


def shade_blocks(ax, data):
    """Every second block gray."""
    for _, run in data.launches:
        x = run["launch_index"]
        if run["run"] % 2:
            ax.axvspan(x - 0.5, x + 0.5, color="0.94", lw=0, zorder=0)
    ax.grid(False, axis="x")


def mark_launches(ax, data):
    """A cross at the foot of a failed training, a T over a throttled one, a line at a stop."""
    place = {"transform": ax.get_xaxis_transform()}
    for _, run in data.launches:
        if not went_well(run):
            ax.plot(run["launch_index"], 0.08, **place, label="_failed", **FAILED)
        if throttled(run):
            ax.plot(run["launch_index"], 0.92, **place, label="_throttled", **THROTTLED)
    for before, after in stops(data):
        ax.axvline((before + after) / 2, label="_stop", **STOP)


def time_parts(ax, data):
    """Each training's seconds, stacked: warm-up, compile, training in the arm's colour, rest."""
    for arm, run in data.launches:
        bottom = 0
        for key, look in PARTS.items():
            height = run[key] if key in run else run["wall_time"] - bottom
            height = max(np.nan_to_num(height), 0)
            color = look.get("facecolor", data.styles[arm].color)
            look = {"facecolor": color, "lw": 0.4} | look | {"label": f"_{arm} {key}"}
            ax.bar(run["launch_index"], height, 0.8, bottom, **look)
            bottom += height
    ax.margins(y=0.18)  # room for a mark over the bars
    parts = [Patch(**look) for look in PARTS.values() if "facecolor" in look]
    ax.legend(handles=parts, loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=4)


def launch_panel(ax, data, metric):
    """A metric in launch order, with every arm's mean as a line across its interval."""
    for arm in data.arms:
        style, mean = data.styles[arm], absolute(data, arm, metric)
        x = [run["launch_index"] for run in data.ok[arm]]
        dots(ax, x, mean.values, style, alpha=0.9, label=arm)
        ax.axhline(mean.center, **style.line, lw=0.9, zorder=2, label=f"{arm} mean")
        if mean.low is not None:
            faint = {"color": style.color, "alpha": 0.12, "lw": 0, "zorder": 0.5}
            ax.axhspan(mean.low, mean.high, **faint, label=f"{arm} interval")
    ax.set_ylabel(axis_label(metric))
    if metric is MEMORY:
        ax.yaxis.set_major_formatter(GROUPED)
    ax.margins(y=0.25)


def failures(data):
    failed = [(arm, run) for arm, run in data.launches if not went_well(run)]
    listed = [f"{arm} at {run['launch_index']} ({run['status']})" for arm, run in failed]
    return f" Failed: {', '.join(listed)}." if failed else ""


def throttling(data):
    slowed = Counter(word for _, run in data.launches for word in throttled(run))
    listed = ", ".join(f"{word} in {n}" for word, n in slowed.items())
    text = f" T = GPU slowed when read before or after the training ({listed})."
    return text if slowed else ""


def stopping(data):
    listed = ", ".join(f"{before} and {after}" for before, after in stops(data))
    text = f" Dashed line = a stop cut this block, resumed later: between {listed}."
    return text if listed else ""


@matplotlib.rc_context(LOOK)
def per_run(data):
    """8: every training in launch order, failed ones too: drift and outliers show here."""
    panels = [metric for metric in METRICS if data.has(metric)]
    fig, axes = new_figure(data, 1 + len(panels), 1, 1.9 + 1.3 * (1 + len(panels)), sharex=True)
    time_parts(axes[0, 0], data)
    axes[0, 0].set_ylabel("wall time (s)")
    for ax, metric in zip(axes[1:, 0], panels, strict=True):
        launch_panel(ax, data, metric)
    for ax in axes[:, 0]:
        shade_blocks(ax, data)
        mark_launches(ax, data)
    last = axes[-1, 0]
    last.set(
        xlabel="launch (order in time)", xlim=(-0.7, data.launches[-1][1]["launch_index"] + 0.7)
    )
    last.xaxis.set_major_locator(MaxNLocator(15, integer=True))
    fig.align_ylabels()
    absent = ", ".join(metric.name for metric in METRICS if metric not in panels)
    caption = (
        "Shading separates blocks. Top: wall time; the coloured part is the timed training itself. "
        "Horizontal lines: arm means, each in the faint span of its 95 % t interval."
        f"{failures(data)}{throttling(data)}{stopping(data)}"
    ) + (f" Not measured in every run: {absent}." if absent else "")
    lost = [arm for arm in data.styles if arm not in data.arms and arm in dict(data.launches)]
    marks = (
        ("failed", FAILED, failures(data)),
        ("GPU slowed", THROTTLED, throttling(data)),
        ("stop", STOP, stopping(data)),
    )
    extra = [Line2D([], [], label=name, **look) for name, look, found in marks if found]
    return finish(fig, data, caption, (*data.arms, *lost), extra)


def contrasts(data):
    """(arm, reference) pairs of the summary: the three questions, then further arms."""
    asked = [(arm, base) for arm, base, _ in CONTRASTS if {arm, base} <= set(data.arms)]
    known = {arm for pair in asked for arm in pair}
    return asked + [(arm, data.reference) for arm in data.arms[1:] if arm not in known]


def shade_small(ax):
    """The band of differences too small to matter, over all rows; returns its ends."""
    span = 1 - PRACTICAL_SHARE, 1 + PRACTICAL_SHARE
    name = f"below {100 * PRACTICAL_SHARE:g} %: too small to matter"
    ax.axvspan(*span, **SMALL, label=f"_{name}")
    panel_key(ax, name, SMALL)
    return span


def shade_margin(ax, data, pairs):
    """The equivalence margin of each row, around its own reference; returns the spans' ends."""
    spans = [margin_span(data, *pair) for pair in pairs]
    for y, (low, high) in enumerate(spans):
        ax.barh(y, high - low, 0.8, low, **MARGIN, label=f"_margin {y}")
    panel_key(ax, f"equivalence margin ± {data.margin:g} nats", MARGIN)
    return [edge for span in spans for edge in span]


def panel_key(ax, name, look):
    """The key of a shade, above the text at the right of its panel."""
    place = {"loc": "lower left", "bbox_to_anchor": (1.02, 1), "borderpad": 0, "fontsize": 7}
    ax.legend(handles=[Patch(**look, label=name)], **place)


def shaded(ax, data, metric, pairs):
    """Shade what counts as no difference in this metric; returns ratios the axis must reach."""
    if metric in (TIME, MEMORY):
        return shade_small(ax)
    return shade_margin(ax, data, pairs) if metric is VAL_LOSS and data.margin else ()


def forest_row(ax, data, metric, y, pair):
    """One ratio with its interval, in numbers and in words; returns its ends."""
    ratio, estimate = compare(data, *pair, metric)
    look = {**data.styles[pair[0]].mark, **MEAN, "ls": "none", "label": " / ".join(pair)}
    ax.errorbar(ratio.ratio, y, xerr=estimate.error, **look)
    side_text(ax, y, ratio_text(ratio, metric.digits))
    words = loss_verdict(data, *pair) if metric is VAL_LOSS else verdict(ratio, metric)
    side_text(ax, y, words, offset=105 if data.pairs > 1 else 35)
    return ratio.ratio, ratio.low or 1, ratio.high or 1


def forest_panel(ax, data, metric, pairs):
    """Ratios of one metric on a log axis, over the shade of what counts as no difference."""
    edges = [*shaded(ax, data, metric, pairs), math.exp(1e-3)]
    for y, pair in enumerate(pairs):
        edges += forest_row(ax, data, metric, y, pair)
    ax.axvline(1, color="black", lw=0.8, zorder=1)
    ratio_axis(ax, 1.2 * max(abs(math.log(edge)) for edge in edges))
    ax.set_yticks(range(len(pairs)), [" / ".join(pair) for pair in pairs])
    ax.set_ylim(len(pairs) - 0.4, -0.6)
    ax.grid(False, axis="y")


def ratio_axis(ax, extent):
    """A log axis around 1 with plain numbers; ``extent`` in natural logs to both sides."""
    ax.set_xscale("log")
    ax.set_xlim(math.exp(-extent), math.exp(extent))
    near = MaxNLocator(7, steps=(1, 2, 5, 10))  # 1 is then a tick
    ax.xaxis.set_major_locator(near if extent < math.log(3) else LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.5g}"))
    ax.set_xlabel("ratio (log axis)")


def margin_caption(data):
    if data.margin is None or data.pairs < 2 or not data.has(VAL_LOSS):
        return ""
    return (
        " Validation loss instead: the 90 % t interval of the paired difference; not worse = all "
        f"of it below + {data.margin:g} nats, worse = all above, else undecided."
    )


@matplotlib.rc_context(LOOK)
def summary(data):
    """9: what changed overall: ratios with intervals and a verdict in words."""
    pairs = contrasts(data)
    height = 1.3 + len(METRICS) * (0.75 + 0.2 * max(len(pairs), 1))
    fig, axes = new_figure(data, len(METRICS), 1, height)
    for ax, metric in zip(axes[:, 0], METRICS, strict=True):
        missing = why_missing(data, metric)
        if missing:
            note(ax, missing)
            continue
        forest_panel(ax, data, metric, pairs)
        ax.set_title(metric.name, weight="bold")
    caption = (
        "Ratio of the first arm to the second: geometric mean over blocks with 95 % t interval (on "
        "logs); left of 1 = less; each axis has its own range. Verdict: paired t-test at 5 %, not "
        "adjusted for several questions; no difference detected does not mean equal."
        f"{margin_caption(data)}"
    )
    tested = dict.fromkeys(arm for arm, _ in pairs)
    return finish(fig, data, caption, [arm for arm in data.arms if arm in tested])


def convergence_panel(ax, data, seconds):
    """Smoothed curves over tokens or seconds; returns the lowest and highest late value."""
    edges = []
    for arm in data.arms:
        raw = table(data.ok[arm], "losses")
        window = smoothing_window(raw.shape[1])
        smoothed = smooth(raw, window)
        x = data.ok[arm][0]["tokens_seen"].astype(float)
        if seconds:
            x = table(data.ok[arm], "step_seconds").cumsum(axis=1).mean(axis=0)
        x = x[window // 2 :][: smoothed.shape[1]]
        reached = band_of_runs(ax, x, smoothed, data.styles[arm], arm)
        late = reached[:, reached.shape[1] // 10 :]
        edges += [late.min(), late.max()]
    return min(edges), max(edges)


@matplotlib.rc_context(LOOK)
def convergence(data):
    """10: smoothed training loss over tokens and over seconds."""
    fig, ((left, right),) = new_figure(data, 1, 2, 3.7, sharey=True)
    low, high = convergence_panel(left, data, seconds=False)
    left.set(xlabel="training tokens", ylabel="training loss, smoothed (nats/token)")
    in_thousands(left.xaxis)
    if np.isfinite([run["step_seconds"].sum() for arm in data.arms for run in data.ok[arm]]).all():
        convergence_panel(right, data, seconds=True)
        right.set_xlabel("training time (s, timed steps, mean over runs)")
    else:
        note(right, "step times: not measured in every run")
    margin = 0.05 * (high - low or 1)
    left.set_ylim(low - margin, high + margin)
    steps = min(run["total_steps"] for arm in data.arms for run in data.ok[arm])
    caption = (
        f"Bold = mean over runs of the centred moving average ({smoothing_window(steps)} steps, "
        "each run smoothed first, full windows only), band = its 95 % t interval, pointwise: each "
        "step by itself; thin = single runs. The vertical range fits the last 90 % of the steps."
    )
    return finish(fig, data, caption)


FIGURES = {
    "1_training_curves": training_curves,
    "2_final_losses": final_losses,
    "3_metrics_comparison": metrics_comparison,
    "4_speedup_quality": speedup_quality,
    "5_memory_quality": memory_quality,
    "6_memory_speed": memory_speed,
    "7_distributions": distributions,
    "8_per_run": per_run,
    "9_summary": summary,
    "10_convergence": convergence,
}


# --- files and command line --------------------------------------------------------------------


@matplotlib.rc_context(LOOK)
def save_figure(fig, plots_dir, name):
    """Write ``<name>.png`` and ``<name>.pdf``, without dates, each whole or not at all."""
    paths = []
    for kind, info in (("png", {}), ("pdf", {"CreationDate": None})):
        paths.append(Path(plots_dir) / f"{name}.{kind}")
        atomic_write(paths[-1], lambda f, k=kind, i=info: fig.savefig(f, format=k, metadata=i))
        fig.set_layout_engine("none")  # keep the places found: the second file is quicker
    return paths


def create_all_plots(metrics, metadata, plots_dir):
    """Draw and save the ten figures; returns the paths written."""
    data = prepare(metrics, metadata)
    saved = (save_figure(draw(data), plots_dir, name) for name, draw in FIGURES.items())
    return [path for paths in saved for path in paths]


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description="Draw ten figures of a saved experiment, each as .png and .pdf.",
        epilog="example: python create_model_plots.py output/experiment_results.npz plots/",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    results = "output/experiment_results.npz"
    parser.add_argument("results", nargs="?", default=results, help="saved metrics")
    parser.add_argument("plots_dir", nargs="?", default="plots/", help="folder for the figures")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    try:
        with fitting(args.results):
            paths = create_all_plots(*load_experiment(args.results), args.plots_dir)
    except MetricsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the figures finished so far are written", file=sys.stderr)
        return 130
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

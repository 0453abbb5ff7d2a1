"""Figure 8: every training in the order of time."""

from collections import Counter
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.values import throttled
from figures.data import MEMORY, METRICS, absolute, went_well
from figures.look import FAILED, GROUPED, LOOK, STOP, THROTTLED
from figures.pieces import axis_label, dots, finish, new_figure

PARTS = {  # of a training's wall time; "training" takes the arm's colour
    "warmup_time": {"label": "warm-up", "facecolor": "0.35"},
    "compile_time": {"label": "compile", "facecolor": "0.65", "hatch": "////"},
    "training_time": {"label": "training"},
    "eval_time": {"label": "evaluation", "facecolor": "0.85", "hatch": "...."},
    "rest": {"label": "set-up and rest", "facecolor": "white", "edgecolor": "0.5"},
}


def stops(data):
    """[(launch before, launch after)] of the stops that cut a block in two."""
    blocks = {}
    for _, run in data.launches:
        blocks.setdefault(run["block"], []).append(run)
    pairs = [pair for runs in blocks.values() for pair in pairwise(runs)]
    cut = [pair for pair in pairs if len({run.get("process", "") for run in pair}) > 1]
    return [(before["index"], after["index"]) for before, after in cut]


def shade_blocks(ax, data):
    """Every second block gray."""
    for _, run in data.launches:
        x = run["index"]
        if run["block"] % 2:
            ax.axvspan(x - 0.5, x + 0.5, color="0.94", lw=0, zorder=0)
    ax.grid(False, axis="x")


def mark_launches(ax, data):
    """A cross at the foot of a failed training, a T over a throttled one, a line at a stop."""
    place = {"transform": ax.get_xaxis_transform()}
    for _, run in data.launches:
        if not went_well(run):
            ax.plot(run["index"], 0.08, **place, label="_failed", **FAILED)
        if throttled(run):
            ax.plot(run["index"], 0.92, **place, label="_throttled", **THROTTLED)
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
            ax.bar(run["index"], height, 0.8, bottom, **look)
            bottom += height
    ax.margins(y=0.18)  # room for a mark over the bars
    parts = [Patch(**look) for look in PARTS.values() if "facecolor" in look]
    ax.legend(handles=parts, loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=4)


def launch_panel(ax, data, metric):
    """A metric in launch order, with every arm's mean as a line across its interval."""
    for arm in data.arms:
        style, mean = data.styles[arm], absolute(data, arm, metric)
        x = [run["index"] for run in data.ok[arm]]
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
    listed = [f"{arm} at {run['index']} ({run['status']})" for arm, run in failed]
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
    last.set(xlabel="launch (order in time)", xlim=(-0.7, data.launches[-1][1]["index"] + 0.7))
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

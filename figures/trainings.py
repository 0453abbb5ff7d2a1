"""Figure 8: every training in the order of time."""

from itertools import pairwise

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.values import throttled
from figures.data import METRICS, absolute
from figures.frame import dots, fill_panel, finish, metric_axis, new_figure
from figures.look import FAILED

THROTTLED = {"marker": "1", "ms": 9, "mew": 1.8, "color": "black", "ls": "none", "zorder": 6}
STOP = {"color": "black", "ls": (0, (3, 2)), "lw": 0.9, "zorder": 6}
PARTS = {  # of a training's wall time; "training" takes the arm's colour
    "warmup_time": {"label": "warm-up", "facecolor": "0.35"},
    "compile_time": {"label": "compile", "facecolor": "0.65", "hatch": "////"},
    "training_time": {"label": "training"},
    "eval_time": {"label": "evaluation", "facecolor": "0.85", "hatch": "...."},
}
REST = {"label": "set-up and rest", "facecolor": "white", "edgecolor": "0.5"}


def events(data):
    """{word: (look, [(x, y), ...])} of what disturbed trainings; y as a share of the axes."""
    trainings = [training for _, training in data.started]
    failed = [t["index"] for t in trainings if t["status"] != "ok"]
    slowed = [t["index"] for t in trainings if throttled(t)]
    cuts = [
        (before["index"] + after["index"]) / 2
        for before, after in pairwise(trainings)
        if before["block"] == after["block"] and before["process"] != after["process"]
    ]
    found = {
        "failed": (FAILED, [(x, 0.08) for x in failed]),
        "GPU slowed itself": (THROTTLED, [(x, 0.92) for x in slowed]),
        "stop inside a block": (STOP, [([x, x], [0, 1]) for x in cuts]),
    }
    return {word: event for word, event in found.items() if event[1]}


def mark_blocks_and_events(ax, data):
    """Every second block gray, and a mark for every event."""
    for _, training in data.started:
        if training["block"] % 2:
            x = training["index"]
            ax.axvspan(x - 0.5, x + 0.5, color="0.94", lw=0, zorder=0)
    ax.grid(False, axis="x")
    for word, (look, places) in events(data).items():
        for place in places:
            ax.plot(*place, transform=ax.get_xaxis_transform(), label=f"_{word}", **look)


def time_parts(ax, data):
    """Each training's seconds, stacked: warm-up, compile, training in the arm's colour, rest."""
    x = [training["index"] for _, training in data.started]
    colors = [data.styles[arm].color for arm, _ in data.started]
    bottom = np.zeros(len(x))
    for key, look in PARTS.items():
        heights = np.nan_to_num([training[key] for _, training in data.started])
        ax.bar(x, heights, 0.8, bottom, **{"facecolor": colors, "lw": 0.4} | look)
        bottom += heights
    wall_time = np.nan_to_num([training["wall_time"] for _, training in data.started])
    ax.bar(x, np.maximum(wall_time - bottom, 0), 0.8, bottom, lw=0.4, **REST)
    ax.margins(y=0.18)  # room for a mark over the bars
    ax.set_ylabel("wall time (s)")
    gray = [Patch(**look) for look in (*PARTS.values(), REST) if "facecolor" in look]
    ax.legend(handles=gray, loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=4)
    mark_blocks_and_events(ax, data)


def values_in_time(ax, data, metric):
    """A metric in the order of time, with every arm's mean as a line across its interval."""
    for arm in data.arms:
        style, (values, mean) = data.styles[arm], absolute(data, arm, metric)
        x = [training["index"] for training in data.ok[arm]]
        dots(ax, x, values, style, arm, alpha=0.9)
        ax.axhline(mean.mean, **style.line, lw=0.9, zorder=2, label=f"{arm} mean")
        if mean.low is not None:
            faint = {"color": style.color, "alpha": 0.35 / len(data.arms), "lw": 0, "zorder": 0.5}
            ax.axhspan(mean.low, mean.high, **faint, label=f"{arm} interval")
    metric_axis(ax.yaxis, metric)
    ax.margins(y=0.25)
    mark_blocks_and_events(ax, data)


def per_run(data):
    """8: every training in the order of time, failed ones too: drift and outliers show here."""
    fig, axes = new_figure(data, 1 + len(METRICS), 1, 8.4, sharex=True)
    time_parts(axes[0, 0], data)
    for ax, metric in zip(axes[1:, 0], METRICS, strict=True):
        fill_panel(ax, data, [metric], values_in_time, compared=False)
    last = axes[-1, 0]
    last.set(xlabel="training (order in time)", xlim=(-0.7, data.started[-1][1]["index"] + 0.7))
    last.xaxis.set_major_locator(MaxNLocator(15, integer=True))
    fig.align_ylabels()
    caption = (
        "Shading separates blocks. Top: wall time, the timed training itself in colour. "
        "Horizontal lines: arm means, faint spans their 95 % t intervals."
    )
    arms = dict.fromkeys([*data.arms, *(arm for arm, _ in data.started)])
    extra = [Line2D([], [], label=word, **look) for word, (look, _) in events(data).items()]
    return finish(fig, data, caption, arms, extra)

"""Figures 2, 3 and 7: the values of every training, ratios, distributions."""

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from figures.data import LOSSES, METRICS, absolute, ratio, relative
from figures.frame import (
    finish,
    metric_axis,
    missing_note,
    name_rows,
    new_figure,
    row_of_values,
    side_text,
)
from figures.look import LOOK


def joined_values(ax, data, metric):
    """Every training's value, those of a block joined, and each arm's mean."""
    rows = np.arange(len(data.arms)) - 0.15
    for block in data.blocks(*data.arms):
        values = [training[metric.key] for training in block]
        ax.plot(values, rows, color="0.45", lw=0.5, alpha=0.5, zorder=1, label="_block")
    for y, arm in enumerate(data.arms):
        row_of_values(ax, y, absolute(data, arm, metric), data.styles[arm], arm)
    name_rows(ax, data.arms)
    metric_axis(ax.xaxis, metric)


def paired_differences(ax, data, metric):
    """Every block's difference to the reference, their mean, and the mean in numbers."""
    for y, arm in enumerate(data.arms[1:]):
        difference = relative(data, arm, metric)
        row_of_values(ax, y, difference, data.styles[arm], arm)
        side_text(ax, y, difference.plus_minus(4, sign="+"))
    name_rows(ax, data.arms[1:])
    ax.axvline(0, color="black", lw=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel(f"difference to {data.reference} ({metric.unit})")


@matplotlib.rc_context(LOOK)
def final_losses(data):
    """2: the loss at the end of the training and the held-out loss, block by block."""
    fig, axes = new_figure(data, 2, 2, 2.2 + 0.5 * len(data.arms), sharey="row")
    for (above, below), metric in zip(axes.T, LOSSES, strict=True):
        if not missing_note(above, data, metric, compared=False):
            joined_values(above, data, metric)
        if not missing_note(below, data, metric):
            paired_differences(below, data, metric)
    caption = (
        "A dot = one training (the mean of its last ≤ 100 steps is one value), thin lines join a "
        "block; outlined = mean and 95 % t interval over blocks. Below: paired differences, in "
        "numbers mean ± half the interval."
    )
    return finish(fig, data, caption)


def ratio_rows(ax, data, metric):
    """The ratio to the reference with interval, every block's ratio, values in text.

    A bar behind what may be 0, time and memory, and none behind a loss, whose 0 means nothing.
    """
    for y, arm in enumerate(data.arms):
        style, estimate = data.styles[arm], ratio(data, arm, data.reference, metric)
        if metric not in LOSSES:
            ax.barh(y, estimate.center, color=style.color, alpha=0.3, label=f"{arm} bar")
        row_of_values(ax, y, estimate, style, arm)
        shown = estimate.with_interval("{:.4f}")
        mean = absolute(data, arm, metric).plus_minus(4 if metric in LOSSES else 2)
        side_text(ax, y, f"{shown}\n{mean} {metric.unit}")
    ax.axvline(1, color="black", lw=0.8, zorder=1)
    ax.set_title(metric.name)
    ax.set_xlabel(f"ratio to {data.reference}")
    ax.xaxis.set_major_locator(MaxNLocator(5))


@matplotlib.rc_context(LOOK)
def metrics_comparison(data):
    """3: every metric as a ratio to the reference arm, absolute values in text."""
    height = 2.1 + 0.66 * len(data.arms)
    fig, axes = new_figure(data, 2, 2, height, sharey=True)
    for ax, metric in zip(axes.flat, METRICS, strict=True):
        if not missing_note(ax, data, metric, compared=len(data.arms) > 1):
            ratio_rows(ax, data, metric)
            name_rows(ax, data.arms)
    caption = (
        f"Bar and outlined point = geometric mean of the paired ratios to {data.reference} (= 1), "
        "whisker and brackets = 95 % t interval of the ratio (on logs), dot = one block; "
        "the losses' axes show a small part around 1. Second line: the arm's mean ± half its 95 % "
        "t interval."
    )
    return finish(fig, data, caption)


def distribution(ax, data, metric):
    """Each arm's box, every training and the mean with its interval."""
    for y, arm in enumerate(data.arms):
        style, estimate = data.styles[arm], absolute(data, arm, metric)
        lines = {f"{part}props": {"color": style.color} for part in ("box", "whisker", "cap")}
        median = {"color": "black", "linewidth": 1.6}
        place = {"positions": [y - 0.15], "widths": 0.3, "orientation": "horizontal"}
        ax.boxplot(estimate.values, **place, showfliers=False, medianprops=median, **lines)
        row_of_values(ax, y, estimate, style, arm)
    name_rows(ax, data.arms)
    metric_axis(ax.xaxis, metric)


@matplotlib.rc_context(LOOK)
def distributions(data):
    """7: the distribution of every metric over the blocks."""
    fig, axes = new_figure(data, 2, 2, 2.2 + 0.66 * len(data.arms), sharey=True)
    for ax, metric in zip(axes.flat, METRICS, strict=True):
        if not missing_note(ax, data, metric, compared=False):
            distribution(ax, data, metric)
    caption = (
        "Box = quartiles, black line = median, whiskers = last point within 1.5 box lengths; a dot "
        "= one training; outlined point and bar = mean and its 95 % t interval."
    )
    return finish(fig, data, caption)

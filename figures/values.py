"""Figures 2, 3 and 7: the values of every training, ratios, distributions."""

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from figures.data import LOSSES, METRICS, absolute, compare, mean_text, ratio_text, relative
from figures.look import JOIN, LOOK, minus
from figures.pieces import (
    arm_ticks,
    axis_label,
    dots,
    finish,
    mean_point,
    new_figure,
    note,
    side_text,
    why_missing,
)

VIOLIN_FROM = 30  # runs; the density of fewer points is invented shape


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

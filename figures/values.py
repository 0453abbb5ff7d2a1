"""Figures 2, 3, 7 and 9: the values of every training, ratios, distributions, contrasts."""

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis import contrasts
from analysis.significance import non_inferiority, paired_ratio
from analysis.values import PRACTICAL_SHARE, paired_trainings, shared_values
from analysis.words import amount, percent, with_interval
from figures.data import LOSSES, MEMORY, METRICS, TIME, VAL_LOSS, absolute, ratio, relative
from figures.frame import (
    fill_panels,
    finish,
    metric_axis,
    name_rows,
    new_figure,
    row_of_values,
    side_text,
)
from figures.look import LOOK, MARGIN, SMALL


def arm_rows(ax, data, metric):
    """Each arm's trainings and their mean in a row."""
    for y, arm in enumerate(data.arms):
        row_of_values(ax, y, *absolute(data, arm, metric), data.styles[arm], arm)
    name_rows(ax, data.arms)
    metric_axis(ax.xaxis, metric)
    ax.xaxis.set_major_locator(MaxNLocator(5))


def joined_values(ax, data, metric):
    """The rows of the arms, with a line through the trainings of each block."""
    arm_rows(ax, data, metric)
    rows = np.arange(len(data.arms)) - 0.15
    for block in paired_trainings(data.ok, data.arms):
        values = [training[metric.key] for training in block]
        ax.plot(values, rows, color="0.45", lw=0.5, alpha=0.5, zorder=1, label="_block")


def paired_differences(ax, data, metric):
    """Every block's difference to the reference, their mean, and the mean in numbers."""
    for y, arm in enumerate(data.arms[1:]):
        differences, mean = relative(data, arm, metric)
        row_of_values(ax, y, differences, mean, data.styles[arm], arm)
        shown = with_interval(mean.mean, mean.low, mean.high, "{:+.4f}".format)
        side_text(ax, y, shown.replace(" [", "\n["))  # in two lines: room for the panels
    name_rows(ax, data.arms[1:])
    ax.axvline(0, color="black", lw=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel(f"difference to {data.reference} ({metric.unit})")


@matplotlib.rc_context(LOOK)
def final_losses(data):
    """2: the loss at the end of the training and the held-out loss, block by block."""
    fig, (above, below) = new_figure(data, 2, 2, 2.2 + 0.5 * len(data.arms), sharey="row")
    fill_panels(above, data, LOSSES, joined_values, compared=False)
    fill_panels(below, data, LOSSES, paired_differences)
    caption = (
        "Dot = one training, thin line = one block, outlined = mean over blocks with its 95 % t "
        "interval. Below: paired differences, also in numbers."
    )
    return finish(fig, data, caption)


def ratio_rows(ax, data, metric):
    """The ratio to the reference with interval, every block's ratio, values in text.

    A bar behind what may be 0, time and memory, and none behind a loss, whose 0 means nothing.
    """
    for y, arm in enumerate(data.arms):
        ratios, mean = ratio(data, arm, data.reference, metric)
        if metric not in LOSSES:
            ax.barh(y, mean.mean, color=data.styles[arm].color, alpha=0.3, label=f"{arm} bar")
        row_of_values(ax, y, ratios, mean, data.styles[arm], arm)
        shown = with_interval(mean.mean, mean.low, mean.high)
        measured = amount(data.values(arm, metric).mean(), metric.unit)
        side_text(ax, y, f"{shown}\n{measured} {metric.unit}")
    name_rows(ax, data.arms)
    ax.axvline(1, color="black", lw=0.8, zorder=1)
    ax.set_title(metric.name)
    ax.set_xlabel(f"ratio to {data.reference}")
    ax.xaxis.set_major_locator(MaxNLocator(5))


@matplotlib.rc_context(LOOK)
def metrics_comparison(data):
    """3: every metric as a ratio to the reference arm, absolute values in text."""
    height = 2.1 + 0.66 * len(data.arms)
    fig, axes = new_figure(data, 2, 2, height, sharey=True)
    fill_panels(axes.flat, data, METRICS, ratio_rows, compared=len(data.arms) > 1)
    caption = (
        "Bar and outlined = geometric mean of the paired ratios, whisker and brackets = its 95 % t "
        "interval (on logs), dot = one block; the losses' axes show a small part around 1. Second "
        "line: the arm's mean."
    )
    return finish(fig, data, caption)


def boxes(ax, data, metric):
    """The rows of the arms over the box of each arm's values."""
    arm_rows(ax, data, metric)
    values = [data.values(arm, metric) for arm in data.arms]
    places = np.arange(len(values)) - 0.15
    gray = {f"{part}props": {"color": "0.5"} for part in ("box", "whisker", "cap")}
    look = {"widths": 0.3, "medianprops": {"color": "black", "lw": 1.6}, "showfliers": False}
    turned = {"orientation": "horizontal", "manage_ticks": False}
    ax.boxplot(values, positions=places, **look, **gray, **turned)


@matplotlib.rc_context(LOOK)
def distributions(data):
    """7: the distribution of every metric over the blocks."""
    fig, axes = new_figure(data, 2, 2, 2.2 + 0.66 * len(data.arms), sharey=True)
    fill_panels(axes.flat, data, METRICS, boxes, compared=False)
    caption = (
        "Box = quartiles, black line = median, whiskers = last point within 1.5 box lengths, dot = "
        "one training, outlined = mean over blocks with its 95 % t interval."
    )
    return finish(fig, data, caption)


def shown_pairs(data):
    """(arm, reference) pairs of the summary: the declared questions, then further arms."""
    asked = [(arm, base) for arm, base, _ in contrasts.contrasts_of(data.ok)]
    known = {arm for pair in asked for arm in pair}
    return asked + [(arm, data.reference) for arm in data.arms[1:] if arm not in known]


def ratio_verdict(found):
    """What a ``Ratio`` says, in words."""
    kind = contrasts.verdict(found)
    if kind == "undetected":
        return "no difference detected"
    words = "equal to 0.01 %" if kind == "same" else percent(found.ratio - 1, "+")
    if found.p is not None:
        return words
    return f"{words}, one block" if found.n == 1 else f"{words} in every block"


def verdict_on(data, arm, base, metric):
    """The verdict on a contrast; on the validation loss that on the margin, where declared."""
    values = shared_values(data.ok, (arm, base), metric.key)
    if metric is VAL_LOSS and data.margin and values.shape[1] > 1:
        words = non_inferiority(*values, data.margin).verdict
        return f"{words} (margin {data.margin:g} nats)" if words == "not worse" else words
    return ratio_verdict(paired_ratio(*values))


def shade_no_difference(ax, data, metric, bases):
    """Shade what counts as no difference in this metric."""
    if metric in (TIME, MEMORY):
        ax.axvspan(1 - PRACTICAL_SHARE, 1 + PRACTICAL_SHARE, **SMALL, label="_small")
    elif metric is VAL_LOSS and data.margin:
        for y, base in enumerate(bases):
            share = data.margin / data.values(base, VAL_LOSS).mean()
            ax.barh(y, 2 * share, 0.8, left=1 - share, **MARGIN, label=f"_margin {y}")


def contrast_rows(ax, data, metric):
    """Ratios of one metric with intervals, numbers and words, over the shade of no difference."""
    pairs = shown_pairs(data)
    shade_no_difference(ax, data, metric, [base for _, base in pairs])
    for y, (arm, base) in enumerate(pairs):
        ratios, mean = ratio(data, arm, base, metric)
        row_of_values(ax, y, ratios, mean, data.styles[arm], f"{arm} / {base}")
        side_text(ax, y, with_interval(mean.mean, mean.low, mean.high))
        side_text(ax, y, verdict_on(data, arm, base, metric), offset=105)
    ax.axvline(1, color="black", lw=0.8, zorder=1)
    name_rows(ax, [" / ".join(pair) for pair in pairs])
    ax.set(title=metric.name, xlabel="ratio")
    ax.use_sticky_edges = False  # a margin beside the shades too
    ax.margins(x=0.1)
    ax.xaxis.set_major_locator(MaxNLocator(6))


@matplotlib.rc_context(LOOK)
def summary(data):
    """9: what changed overall: ratios with intervals and a verdict in words."""
    height = 1.5 + len(METRICS) * (0.75 + 0.26 * len(shown_pairs(data)))
    fig, axes = new_figure(data, len(METRICS), 1, height)
    fill_panels(axes[:, 0], data, METRICS, contrast_rows)
    caption = (
        "Ratio of the first arm to the second: dot = one block, outlined = geometric mean with its "
        "95 % t interval (on logs). Verdict: paired t-test at 5 %, not adjusted for several "
        f"questions. Hatched: differences below {100 * PRACTICAL_SHARE:g} %, too small to matter."
    )
    if data.margin:
        caption += (
            f" Yellow: margin of ± {data.margin:g} nats of validation loss; not worse = the 90 % t "
            "interval of the paired difference lies below it, worse = above, else undecided."
        )
    return finish(fig, data, caption)

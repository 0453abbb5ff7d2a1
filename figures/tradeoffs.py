"""Figures 4 to 6: speed, memory and quality against one another."""

from functools import partial

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis.values import paired_trainings
from figures.data import LOSSES, MEMORY, SPEED, VAL_LOSS, absolute, relative
from figures.frame import dots, finish, mean_point, metric_axis, missing_note, new_figure, whiskers
from figures.look import LOOK


def crosses(ax, data, metrics, estimate):
    """Each arm's trainings and its mean; ``estimate`` is ``absolute`` or ``relative``."""
    for arm in data.arms:
        style = data.styles[arm]
        (x, x_mean), (y, y_mean) = (estimate(data, arm, metric) for metric in metrics)
        dots(ax, x, y, style, arm)
        errors = {"xerr": whiskers(x_mean), "yerr": whiskers(y_mean)}
        mean_point(ax, x_mean.mean, y_mean.mean, style, arm, **errors)
    ax.margins(0.1)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))


def join_blocks(ax, data, metrics):
    """A thin line through the trainings of each block, from the least of the first metric on."""
    arms = sorted(data.arms, key=lambda arm: data.values(arm, metrics[0]).mean())
    for block in paired_trainings(data.ok, arms):
        places = np.array([[training[metric.key] for metric in metrics] for training in block])
        ax.plot(*places.T, color="0.45", lw=0.5, alpha=0.5, zorder=1, label="_block")


def relative_label(data, metric):
    if metric in LOSSES:
        return f"{metric.name}, difference\nto {data.reference} ({metric.unit})"
    name = "speed-up over" if metric is SPEED else f"{metric.name} relative to"
    return f"{name} {data.reference} (×)"


@matplotlib.rc_context(LOOK)
def tradeoff(data, metrics, better):
    """4 to 6: two metrics against each other, as measured and paired with the reference."""
    fig, ((left, right),) = new_figure(data, 1, 2, 3.9)
    if not any(missing_note(left, data, metric, compared=False) for metric in metrics):
        join_blocks(left, data, metrics)
        crosses(left, data, metrics, absolute)
        metric_axis(left.xaxis, metrics[0])
        metric_axis(left.yaxis, metrics[1])
    if not any(missing_note(right, data, metric) for metric in metrics):
        crosses(right, data, metrics, relative)
        right.axvline(1, color="black", lw=0.6, zorder=1)
        right.axhline(0 if metrics[1] in LOSSES else 1, color="black", lw=0.6, zorder=1)
        right.set(xlabel=relative_label(data, metrics[0]), ylabel=relative_label(data, metrics[1]))
    for ax in (left, right):
        ax.set_title(f"better {better}", loc="right")
    caption = (
        "Left: as measured, dot = one training, thin line = one block. Right: each block against "
        f"its {data.reference}. Outlined = mean with its 95 % t intervals (of a ratio: on logs)."
    )
    return finish(fig, data, caption)


speedup_quality = partial(tradeoff, metrics=(SPEED, VAL_LOSS), better="↘")
memory_quality = partial(tradeoff, metrics=(MEMORY, VAL_LOSS), better="↙")
memory_speed = partial(tradeoff, metrics=(MEMORY, SPEED), better="↖")

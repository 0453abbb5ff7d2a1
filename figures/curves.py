"""Figures 1 and 10: losses over training."""

import matplotlib
import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

from figures.data import TRAIN_LOSS, smooth, smoothing_window, t_band, table
from figures.frame import finish, missing_note, new_figure
from figures.look import LOOK


def mean_line(ax, data, arm, x, rows, width):
    """The mean of (R, points) in its pointwise t band; returns all edges drawn, (rows, points)."""
    style, mean = data.styles[arm], rows.mean(axis=0)
    every = max(len(x) // 8, 1)
    first = data.arms.index(arm) * every // len(data.arms)  # markers of two arms do not meet
    marks = {"marker": style.marker, "ms": 4, "markevery": (first, every)}
    ax.plot(x, mean, **style.line, **marks, lw=width, label=arm)
    ax.margins(x=0.02)
    if len(rows) == 1:
        return mean[None]
    band = t_band(rows)
    ax.fill_between(x, *band, color=style.color, alpha=0.2, lw=0, label=f"{arm} band")
    return band


def mean_and_trainings(ax, data, arm, x, losses):
    """The mean line and behind it every training; returns all edges drawn, (rows, points)."""
    thin = {"lw": 0.3, "alpha": 0.3, "rasterized": True, "zorder": 1}
    ax.plot(x, losses.T, color=data.styles[arm].color, **thin, label=f"_{arm} training")
    band = mean_line(ax, data, arm, x, losses, width=1.2)
    return np.concatenate([losses, band])


def difference_curve(ax, data, arm):
    """Paired difference of the loss to the reference at each step; returns its edges."""
    trainings, references = zip(*data.blocks(arm, data.reference), strict=True)
    losses = table(trainings + references, "losses")
    differences = losses[: len(trainings)] - losses[len(trainings) :]
    x = trainings[0]["tokens_seen"][: differences.shape[1]]
    return mean_line(ax, data, arm, x, differences, width=0.8)


def fit_to_late(ax, edges, include=()):
    """Fit the vertical range to what is drawn of the last 90 % of the steps."""
    late = [part[:, part.shape[1] // 10 :].ravel() for part in edges]
    values = np.concatenate([*late, include])
    margin = 0.06 * (np.ptp(values) or 1)
    ax.set_ylim(values.min() - margin, values.max() + margin)


def tokens_axis(ax):
    ax.set_xlabel("training tokens")
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


@matplotlib.rc_context(LOOK)
def training_curves(data):
    """1: training loss over tokens, and its paired difference to the reference."""
    fig, ((top,), (bottom,)) = new_figure(data, 2, 1, 5.4, sharex=True, height_ratios=(3, 2))
    for arm in data.arms:
        losses = table(data.ok[arm], "losses")
        x = data.ok[arm][0]["tokens_seen"][: losses.shape[1]]
        mean_and_trainings(top, data, arm, x, losses)
    top.set_ylabel("training loss (nats/token)")
    if missing_note(bottom, data, TRAIN_LOSS):
        tokens_axis(top)
        top.tick_params(labelbottom=True)
    else:
        edges = [difference_curve(bottom, data, arm) for arm in data.arms[1:]]
        fit_to_late(bottom, edges, include=[0])
        bottom.axhline(0, color="black", lw=0.8)
        bottom.set_ylabel(f"difference to {data.reference}\n(nats/token)")
        tokens_axis(bottom)
    caption = (
        "Above: bold = mean over blocks, thin = single trainings. Below: mean paired difference "
        "(same seed and data order); its vertical range fits the last 90 % of the steps. Bands = "
        "95 % t interval of the mean, pointwise: each step by itself."
    )
    return finish(fig, data, caption)


def smoothed_curves(ax, data, seconds):
    """Smoothed curves of all arms over tokens or seconds; returns their edges."""
    edges = []
    for arm in data.arms:
        losses = table(data.ok[arm], "losses")
        window = smoothing_window(losses.shape[1])
        x = data.ok[arm][0]["tokens_seen"]
        if seconds:
            x = table(data.ok[arm], "step_seconds").cumsum(axis=1).mean(axis=0)
        smoothed = smooth(losses, window)
        x = x[window // 2 :][: smoothed.shape[1]]
        edges.append(mean_and_trainings(ax, data, arm, x, smoothed))
    return edges


@matplotlib.rc_context(LOOK)
def convergence(data):
    """10: smoothed training loss over tokens and over seconds."""
    fig, ((left, right),) = new_figure(data, 1, 2, 3.7, sharey=True)
    edges = smoothed_curves(left, data, seconds=False)
    smoothed_curves(right, data, seconds=True)
    fit_to_late(left, edges)
    tokens_axis(left)
    left.set_ylabel("training loss, smoothed (nats/token)")
    right.set_xlabel("training time (s, timed steps, mean over blocks)")
    steps = min(training["total_steps"] for arm in data.arms for training in data.ok[arm])
    caption = (
        "Bold = mean over blocks of the centred moving average "
        f"({smoothing_window(steps)} steps, each training smoothed first, full windows only), "
        "band = its 95 % t interval, pointwise: each step by itself; thin = single trainings. The "
        "vertical range fits the last 90 % of the steps."
    )
    return finish(fig, data, caption)

"""Figures 1 and 10: losses over training."""

import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator
from scipy import stats

from analysis.significance import LEVEL
from analysis.values import paired_trainings
from figures.data import TRAIN_LOSS, smooth, table
from figures.frame import fill_panel, finish, new_figure


def draw_mean(ax, data, arm, x, rows, width):
    """The mean of (R, points) in its pointwise t band."""
    style, mean = data.styles[arm], rows.mean(axis=0)
    every = max(len(x) // 8, 1)
    first = data.arms.index(arm) * every // len(data.arms)  # markers of two arms do not meet
    marks = {"marker": style.marker, "ms": 4, "markevery": (first, every)}
    ax.plot(x, mean, **style.line, **marks, lw=width, label=arm)
    ax.margins(x=0.02)
    if len(rows) > 1:
        half = stats.t.ppf((1 + LEVEL) / 2, len(rows) - 1) * stats.sem(rows, axis=0)
        band = {"color": style.color, "alpha": 0.2, "lw": 0, "label": f"{arm} band"}
        ax.fill_between(x, mean - half, mean + half, **band)


def draw_trainings(ax, data, arm, x, rows):
    """Every training, and before them their mean."""
    thin = {"lw": 0.3, "alpha": 0.3, "rasterized": True, "zorder": 1}
    ax.plot(x, rows.T, color=data.styles[arm].color, **thin, label=f"_{arm} training")
    draw_mean(ax, data, arm, x, rows, width=1.2)


def fit_to_late(ax, include=()):
    """Fit the vertical range to what is drawn of the last 90 % of the steps."""
    places = [line.get_xydata() for line in ax.lines]
    places += [path.vertices for band in ax.collections for path in band.get_paths()]
    x, y = np.concatenate(places).T
    y = np.append(y[x > 0.1 * x.max()], include)
    margin = 0.06 * (np.ptp(y) or 1)
    ax.set_ylim(y.min() - margin, y.max() + margin)


def paired_differences(ax, data, metric):
    """The paired difference of the loss to the reference at each step."""
    for arm in data.arms[1:]:
        blocks = paired_trainings(data.ok, (arm, data.reference))
        losses = table([training for block in blocks for training in block], "losses")
        tokens = blocks[0][0]["tokens_seen"][: losses.shape[1]]
        draw_mean(ax, data, arm, tokens, losses[::2] - losses[1::2], width=0.8)
    fit_to_late(ax, include=[0])
    ax.axhline(0, color="black", lw=0.8)
    ax.set_ylabel(f"difference to {data.reference}\n(nats/token)")


def tokens_axis(ax):
    ax.set_xlabel("training tokens")
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def training_curves(data):
    """1: training loss over tokens, and its paired difference to the reference."""
    fig, ((top,), (bottom,)) = new_figure(data, 2, 1, 5.4, sharex=True, height_ratios=(3, 2))
    for arm in data.arms:
        losses = table(data.ok[arm], "losses")
        tokens = data.ok[arm][0]["tokens_seen"][: losses.shape[1]]
        draw_trainings(top, data, arm, tokens, losses)
    top.set_ylabel("training loss (nats/token)")
    fill_panel(bottom, data, [TRAIN_LOSS], paired_differences)
    lowest = bottom if bottom.axison else top
    lowest.tick_params(labelbottom=True)
    tokens_axis(lowest)
    caption = (
        "Bold = mean over blocks, thin = single trainings; below the mean paired difference, "
        "vertical range of the last 90 % of the steps. Bands = pointwise 95 % t interval."
    )
    return finish(fig, data, caption)


def convergence(data):
    """10: smoothed training loss over tokens and over seconds."""
    fig, ((left, right),) = new_figure(data, 1, 2, 3.7, sharey=True)
    for arm in data.arms:
        losses = table(data.ok[arm], "losses")
        window = losses.shape[1] // 30 | 1  # odd, so that it has a middle
        smoothed = smooth(losses, window)
        middles = np.arange(smoothed.shape[1]) + window // 2
        seconds = table(data.ok[arm], "step_seconds").cumsum(axis=1).mean(axis=0)
        tokens = data.ok[arm][0]["tokens_seen"]
        draw_trainings(left, data, arm, tokens[middles], smoothed)
        draw_trainings(right, data, arm, seconds[middles], smoothed)
    fit_to_late(left)
    tokens_axis(left)
    left.set_ylabel("training loss, smoothed (nats/token)")
    right.set_xlabel("training time (s, timed steps, mean over blocks)")
    caption = (
        f"Centred moving average of {window} steps: bold = mean over blocks, band = its pointwise "
        "95 % t interval, thin = single trainings; vertical range of the last 90 % of the steps."
    )
    return finish(fig, data, caption)

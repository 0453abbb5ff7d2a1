"""Figure 11: the held-out loss in the course of the trainings."""

import numpy as np

from analysis.values import paired_trainings
from figures.curves import (
    SECONDS,
    difference_axis,
    draw_mean,
    draw_trainings,
    draw_without_model,
    fit_to_late,
    mean_seconds,
    tokens_axis,
)
from figures.data import VAL_LOSS
from figures.frame import empty_figure, fill_panel, finish


def has_curves(metrics):
    """Whether the held-out loss was evaluated in the course of every training."""
    return all(training["curve"] for trainings in metrics.values() for training in trainings)


def curves_of(trainings):
    """Steps after which these trainings were evaluated, (points,), and losses, (R, points)."""
    points = min(len(training["curve"]["steps"]) for training in trainings)
    losses = [training["curve"]["losses"][:points] for training in trainings]
    return np.array(trainings[0]["curve"]["steps"][:points]), np.array(losses, dtype=float)


def tokens_at(trainings, steps):
    """Tokens trained on after so many steps."""
    return trainings[0]["tokens_seen"][steps - 1]


def seconds_at(trainings, steps):
    """Seconds of training after so many steps, the mean of these trainings."""
    return mean_seconds(trainings)[steps - 1]


def loss_panel(ax, data, places):
    """Every training's held-out loss and the means; places: of trainings and steps on x."""
    for arm in data.arms:
        steps, losses = curves_of(data.ok[arm])
        x = places(data.ok[arm], steps)
        draw_trainings(ax, data, arm, x, losses)
        draw_mean(ax, data, arm, x, losses, width=1.4, band=False)
    fit_to_late(ax)
    draw_without_model(ax, data)


def difference_panel(ax, data, metric):
    """The paired difference to the reference after each evaluation."""
    for arm in data.arms[1:]:
        blocks = paired_trainings(data.ok, (arm, data.reference))
        steps, losses = curves_of([training for block in blocks for training in block])
        draw_mean(ax, data, arm, tokens_at(blocks[0], steps), losses[::2] - losses[1::2])
    difference_axis(ax, data.reference)
    tokens_axis(ax)


def validation(data):
    """11: held-out loss over tokens and seconds, and its paired difference to the reference."""
    fig = empty_figure(5.4)
    axes = fig.subplot_mosaic("ts;dd", height_ratios=(3, 2))
    axes["s"].sharey(axes["t"])
    loss_panel(axes["s"], data, seconds_at)
    axes["s"].set_xlabel(SECONDS)
    loss_panel(axes["t"], data, tokens_at)
    axes["t"].set_ylabel("held-out loss (nats/token)")
    tokens_axis(axes["t"])
    fill_panel(axes["d"], data, [VAL_LOSS], difference_panel)
    caption = (
        "Loss on the same held-out rows in every training, evaluated outside of the timed steps. "
        "Above: bold = mean over blocks, thin = single trainings; below: mean of the paired "
        "differences with its pointwise 95 % t interval. Vertical ranges of the last 90 % of the "
        "steps."
    )
    return finish(fig, data, "Held-out loss", caption)

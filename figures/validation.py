"""Figure 11: the held-out loss in the course of the trainings."""

import numpy as np

from analysis.values import paired_trainings
from figures.curves import (
    SECONDS,
    difference_axis,
    draw_band,
    draw_blocks,
    draw_without_model,
    fit_to_late,
    mean_seconds,
    tokens_axis,
    tokens_seen,
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


def loss_panel(ax, data, places):
    """Every training's held-out loss and the means; places: x at every step of trainings."""
    for arm in data.arms:
        steps, losses = curves_of(data.ok[arm])
        draw_blocks(ax, data, arm, places(data.ok[arm])[steps - 1], losses)
    fit_to_late(ax)
    draw_without_model(ax, data)


def difference_panel(ax, data, metric):
    """The paired difference to the reference after each evaluation."""
    for arm in data.arms[1:]:
        blocks = paired_trainings(data.ok, (arm, data.reference))
        steps, losses = curves_of([training for block in blocks for training in block])
        tokens = tokens_seen(blocks[0])[steps - 1]
        draw_band(ax, data, arm, tokens, losses[::2] - losses[1::2])
    difference_axis(ax, data.reference)
    tokens_axis(ax)


def validation(data):
    """11: held-out loss over tokens and seconds, and its paired difference to the reference."""
    fig = empty_figure(5.4)
    axes = fig.subplot_mosaic("ts;dd", height_ratios=(3, 2))
    axes["s"].sharey(axes["t"])
    loss_panel(axes["s"], data, mean_seconds)
    axes["s"].set_xlabel(SECONDS)
    loss_panel(axes["t"], data, tokens_seen)
    axes["t"].set_ylabel("held-out loss (nats/token)")
    tokens_axis(axes["t"])
    fill_panel(axes["d"], data, [VAL_LOSS], difference_panel)
    caption = (
        "Loss on the same held-out rows in every training, evaluated outside of the timed steps; "
        "of many rows a few, so that losses and differences may end elsewhere than the report's. "
        "Above: bold = mean over blocks, thin = single trainings; below: mean of the paired "
        "differences with its pointwise 95 % t interval. Vertical ranges of the last 90 % of the "
        "steps."
    )
    return finish(fig, data, "Held-out loss", caption)

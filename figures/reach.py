"""Figure reach: how far back the models copy from, and where in the sequence they lose."""

from itertools import pairwise

import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis.reach import PASSAGE, REACH_GAIN, gains_of, reach_records
from analysis.values import paired_trainings
from figures.curves import draw_blocks
from figures.frame import fill_panel, finish, length_axis, new_figure


def gains_by_distance(ax, data):
    """The gain on the second showing over the distance to the first."""
    for arm, records in reach_records(data.ok).items():
        distances, gains = gains_of(records)
        draw_blocks(ax, data, arm, distances, gains)
    apart = [one for one, next_one in pairwise(distances) if next_one > 1.2 * one]
    length_axis(ax, [*apart, distances[-1]])
    ax.axhline(0, color="black", lw=0.8)
    ax.axhline(REACH_GAIN, color="black", lw=0.8, ls=":")
    ax.set_xlabel("distance between the showings (tokens)")
    ax.set_ylabel("gain on the second (nats/token)")


def losses_by_position(ax, data):
    """The loss over the position in the sequence."""
    for arm, records in reach_records(data.ok).items():
        rows = np.array([record["position_losses"] for record in records])
        draw_blocks(ax, data, arm, records[0]["positions"], rows)
    ax.set_ylabel("loss (nats/token)")


def differences_by_position(ax, data):
    """The loss over the position in the sequence, minus that of the same block's reference."""
    for arm in data.arms[1:]:
        pairs = paired_trainings(data.ok, (arm, data.reference))
        probed = [(a["reach"], b["reach"]) for a, b in pairs if a["reach"] and b["reach"]]
        if probed:
            rows = [np.subtract(a["position_losses"], b["position_losses"]) for a, b in probed]
            x = probed[0][0]["positions"]
            draw_blocks(ax, data, arm, x, np.array(rows))
    ax.axhline(0, color="black", lw=0.8)
    ax.set_ylabel(f"loss minus that\nof {data.reference} (nats/token)")


def reach(data):
    """How far back the models copy from, and where in the sequence they lose.

    None where no training was probed.
    """
    found = reach_records(data.ok)
    if not found:
        return None
    fig, ((left, right),) = new_figure(1, 2, 3.9)
    gains_by_distance(left, data)
    several = len(data.arms) > 1
    by_position = differences_by_position if several else losses_by_position
    fill_panel(right, data, [], by_position, compared=several)
    right.set_xlabel("position in the sequence (tokens)")
    right.xaxis.set_major_locator(MaxNLocator(6))
    right.xaxis.set_major_formatter("{x:,.0f}")
    records = [record for of_arm in found.values() for record in of_arm]
    error = max(max(record["gain_errors"]) for record in records)
    caption = (
        "Bold = mean over blocks, thin = single trainings. Left: how much lower the loss of a "
        f"passage of {PASSAGE} tokens is where the sequence has shown it before (distance: up to "
        f"15 tokens less); means over {records[0]['passages']} passages, standard error at most "
        f"{error:.2g}; dotted: {REACH_GAIN:g}, from which on a model is said to copy. Right: the "
        "same rows up to the passage."
    )
    return finish(fig, data, "Reach", caption, found)

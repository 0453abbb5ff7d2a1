"""The log-log picture of the attention benchmark: time over sequence length, a line a peer."""

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks.peers import ALL_KEYS, FORWARD, PATTERN, PEERS, TRAINING
from figures.frame import length_axis, log_axis
from figures.look import LOOK, WIDTH

LINES = {ALL_KEYS: "-.", PATTERN: "-"}
COLORS = dict(zip(PEERS, sns.color_palette("colorblind"), strict=False))
MARKERS = dict(zip(PEERS, "os^Dv<>P", strict=True))
LIMIT = {"color": "black", "linestyle": "--", "marker": "_", "linewidth": 1, "zorder": 2}


@matplotlib.rc_context(LOOK)
def plot_scaling(records, title):
    """Time over sequence length, log-log: forward alone, and with the backward pass.

    A line a peer, its quartiles as a band; dashed the limit, the best full kernel's time times
    the share of the pairs that the pattern keeps.
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    handles = {}
    for axis, timed in zip(axes, (FORWARD, TRAINING), strict=True):
        here = [r for r in records if r["direction"] == timed]
        for name in dict.fromkeys(r["peer"] for r in here):
            _draw_peer(axis, name, [r for r in here if r["peer"] == name])
        best = [r for r in here if r["ratio_to_best_full"] == 1]
        kept = {r["seq_len"]: r["density"] for r in here if r["attends"] == PATTERN}
        best = [r for r in best if r["seq_len"] in kept]
        limits = [r["median_ms"] / 1e3 * kept[r["seq_len"]] for r in best]
        label = "limit: best full kernel x pairs kept"
        axis.plot([r["seq_len"] for r in best], limits, label=label, **LIMIT)
        axis.set(title=timed, xlabel="sequence length S (tokens)")
        handles |= {line.get_label(): line for line in axis.get_lines()}
    length_axis(axes[0], sorted({r["seq_len"] for r in records}))
    log_axis(axes[0], EngFormatter(unit="s", sep=" "))
    axes[0].set_ylabel("time of one call, median")
    figure.legend(handles.values(), handles, loc="outside right center", fontsize=7)
    figure.suptitle(title, fontsize=8)
    return figure


def _draw_peer(axis, name, records):
    attends = PEERS[name].attends
    look = {"color": COLORS[name], "marker": MARKERS[name], "linestyle": LINES[attends]}
    lengths = [r["seq_len"] for r in records]
    seconds = [r["median_ms"] / 1e3 for r in records]
    axis.plot(lengths, seconds, label=f"{name} ({attends})", markersize=4, **look)
    low, high = np.transpose([r["quartiles_ms"] for r in records]) / 1e3
    axis.fill_between(lengths, low, high, color=COLORS[name], alpha=0.2, linewidth=0)


@matplotlib.rc_context(LOOK)
def plot_shares(records, title):
    """Time as a share of the best full kernel's over length, a line a pattern, quartiles as a band.

    Dashed in the pattern's colour: the share of the pairs that it keeps, the limit.
    """
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    arms = list(dict.fromkeys(r["peer"] for r in records if r["attends"] != ALL_KEYS))
    colors = dict(zip(arms, sns.color_palette("colorblind"), strict=False))
    for axis, timed in zip(axes, (FORWARD, TRAINING), strict=True):
        for arm in arms:
            here = [r for r in records if (r["direction"], r["peer"]) == (timed, arm)]
            if not here:  # skipped
                continue
            lengths = [r["seq_len"] for r in here]
            shares = np.array([1 / r["ratio_to_best_full"] for r in here])
            axis.plot(lengths, shares, color=colors[arm], marker="o", markersize=4, label=arm)
            spread = np.array([np.array(r["quartiles_ms"]) / r["median_ms"] for r in here])
            low, high = (shares[:, None] * spread).T
            axis.fill_between(lengths, low, high, color=colors[arm], alpha=0.2, linewidth=0)
            limits = [r["density"] for r in here]
            axis.plot(lengths, limits, color=colors[arm], linestyle="--", linewidth=1)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(title=timed, xlabel="sequence length S (tokens)")
    length_axis(axes[0], sorted({r["seq_len"] for r in records}))
    log_axis(axes[0], "{x:.2g}")
    axes[0].set_ylabel("time as a share of full attention's")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    figure.suptitle(f"{title}. Dashed: pairs kept", fontsize=8)
    return figure

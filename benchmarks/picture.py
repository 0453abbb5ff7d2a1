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
        limits = [r["median_ms"] / 1e3 * r["density"] for r in best]
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

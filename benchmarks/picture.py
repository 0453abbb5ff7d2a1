"""The log-log picture of the attention benchmark: time over sequence length, a line a peer."""

import math

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.peers import ALL_KEYS, FORWARD, NEAR_ONLY, PATTERN, PEERS, TRAINING
from figures.look import LOOK, WIDTH

# colour by what a peer attends to
COLORS = {
    ALL_KEYS: ("#0173B2", "#56B4E9", "#029E73"),
    PATTERN: ("#D55E00", "#CA9161", "#CC78BC", "#949494", "#ECE133"),
    NEAR_ONLY: ("0.15",),
}
MARKERS = "os^Dv<>PX"
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
        _draw_limit(axis, here)
        axis.set(xscale="log", yscale="log", title=timed, xlabel="sequence length S (tokens)")
        axis.tick_params("x", rotation=30)
        handles |= {line.get_label(): line for line in axis.get_lines()}
    lengths = sorted({r["seq_len"] for r in records})
    axes[0].set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter(lambda ms, _: EngFormatter(unit="s", sep=" ")(ms / 1e3))
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("time of one call, median")
    figure.legend(handles.values(), handles, loc="outside right center", fontsize=7)
    figure.suptitle(title, fontsize=8)
    return figure


def _draw_peer(axis, name, records):
    attends = PEERS[name].attends
    alike = [other for other in PEERS if PEERS[other].attends == attends]
    color = COLORS[attends][alike.index(name)]
    look = {"color": color, "marker": MARKERS[list(PEERS).index(name)], "markersize": 4}
    look["linestyle"] = ":" if attends == NEAR_ONLY else "-"
    look["linewidth"] = 2.2 if name == "split" else 1.1
    lengths = [r["seq_len"] for r in records]
    label = f"{name} ({attends})"
    axis.plot(lengths, [r["median_ms"] for r in records], label=label, **look)
    low, high = zip(*(r["quartiles_ms"] for r in records), strict=True)
    axis.fill_between(lengths, low, high, color=color, alpha=0.2, linewidth=0)


def _draw_limit(axis, records):
    limits = {}
    for r in records:
        if r["attends"] == ALL_KEYS:
            limit = r["median_ms"] * r["density"]
            limits[r["seq_len"]] = min(limit, limits.get(r["seq_len"], math.inf))
    label = "limit: best full kernel x pairs kept"
    axis.plot(list(limits), list(limits.values()), label=label, **LIMIT)

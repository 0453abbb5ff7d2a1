"""The log-log picture of the attention benchmark: time over sequence length, a line a peer.

Dashed beside them is the limit that the pattern's share of the pairs sets.
"""

import math

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.peers import ALL_KEYS, DIRECTIONS, NEAR_ONLY, PATTERN, PEERS
from figures.look import LOOK

COLORS = {
    ALL_KEYS: ("#0173B2", "#56B4E9", "#029E73"),
    PATTERN: ("#D55E00", "#CA9161", "#CC78BC", "#949494", "#ECE133"),
    NEAR_ONLY: ("0.15",),
}
MARKERS = "os^Dv<>PX"


def _style(name):
    """Colour by what a peer attends to, a marker of its own, ours bold, near only dotted."""
    attends = PEERS[name].attends
    group = [other for other in PEERS if PEERS[other].attends == attends]
    return {
        "color": COLORS[attends][group.index(name)],
        "marker": MARKERS[list(PEERS).index(name)],
        "linestyle": ":" if attends == NEAR_ONLY else "-",
        "linewidth": 2.2 if name == "split" else 1.1,
        "zorder": 4 if name == "split" else 3,
        "label": f"{name} ({attends})",
    }


@matplotlib.rc_context(LOOK)
def plot_scaling(records, title):
    """Time over sequence length, log-log: forward alone, and with the backward pass.

    A line a peer, its quartiles as a band; dashed the limit, the best full kernel's time times
    the share of the pairs that the pattern keeps.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots(1, len(DIRECTIONS), sharex=True, sharey=True)
    for axis, direction in zip(axes, DIRECTIONS, strict=True):
        here = [r for r in records if r["direction"] == direction]
        for name in (n for n in PEERS if any(r["peer"] == n for r in here)):
            line = sorted((r for r in here if r["peer"] == name), key=lambda r: r["seq_len"])
            lengths = [r["seq_len"] for r in line]
            axis.plot(lengths, [r["median_ms"] for r in line], markersize=4, **_style(name))
            low, high = zip(*(r["quartiles_ms"] for r in line), strict=True)
            axis.fill_between(lengths, low, high, color=_style(name)["color"], alpha=0.2, lw=0)
        limit = _limits(here)
        if limit:
            label = "limit: best full kernel x pairs kept"
            look = {"color": "black", "ls": "--", "lw": 1, "markersize": 9}
            look |= {"marker": "_"} if len(limit) == 1 else {}
            axis.plot(*zip(*limit, strict=True), **look, label=label)
        axis.set(xscale="log", yscale="log", title=direction, xlabel="sequence length S (tokens)")
        lengths = sorted({r["seq_len"] for r in here})
        turned = 30 if len(lengths) > 5 else 0
        axis.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=turned)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(here) < 2 else (1,)))
        axis.yaxis.set_major_formatter(lambda ms, _: EngFormatter(unit="s", sep=" ")(ms / 1e3))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("time of one call, median")
    handles = {}
    for axis in axes:
        handles |= {label: h for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right center", fontsize=7)
    figure.suptitle(title, fontsize=8)
    return figure


def _decades(records):
    """How many powers of ten the times span."""
    times = [r["median_ms"] for r in records]
    return math.log10(max(times) / min(times)) if times else 0


def _limits(records):
    """(S, ms) of the limit wherever a full kernel was timed."""
    points = []
    for seq_len in sorted({r["seq_len"] for r in records}):
        full = [r for r in records if r["seq_len"] == seq_len and r["attends"] == ALL_KEYS]
        if full:
            points.append((seq_len, min(r["median_ms"] for r in full) * full[0]["density"]))
    return points

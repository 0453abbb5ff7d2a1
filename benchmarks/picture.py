"""The picture of the attention benchmark: a share of full attention's time over length."""

from functools import partial

import numpy as np
import seaborn as sns

from analysis.warnings import disturbances
from analysis.words import Section, fact_table
from benchmarks.tables import ALL_KEYS, FORWARD, TRAINING, benchmark_sections, title_of
from figures.frame import length_axis, log_axis, new_figure
from figures.look import OUR_LOOK
from figures.page import Page

MARKERS = "os^DvP<*>X"


def benchmark_page(content):
    """A benchmark as a Page."""
    facts = content["options"] | content["environment"]
    return Page(
        "Benchmark of attention",
        benchmark_sections(content),
        [Section("Options and machine", [fact_table(facts)])],
        partial(plot_benchmark, content),
    )


@OUR_LOOK
def plot_benchmark(content):
    """{file name without suffix: Figure} of attention over whole sequences; {} of other benchmarks.

    Time as a share of the best full kernel's over length, a line for each peer, with a band between
    the quartiles.  Dashed: the limit, which is the share of the pairs that a peer's pattern keeps.
    """
    records = [r for r in content["records"] if r["direction"] in (FORWARD, TRAINING)]
    if not records:
        return {}
    figure, (axes,) = new_figure(1, 2, 3.8, sharex=True, sharey=True)
    names = dict.fromkeys(r["peer"] for r in records)
    looks = zip(sns.color_palette("colorblind"), MARKERS, strict=True)
    looks = dict(zip(names, looks, strict=False))
    handles = {}
    for axis, direction in zip(axes, (FORWARD, TRAINING), strict=True):
        here = [r for r in records if r["direction"] == direction]
        for name in dict.fromkeys(r["peer"] for r in here):
            draw_peer(axis, name, [r for r in here if r["peer"] == name], *looks[name])
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(title=direction, xlabel="sequence length S (tokens)")
        lines, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    length_axis(axes[0], sorted({r["seq_len"] for r in records}))
    log_axis(axes[0], "{x:.2g}")
    axes[0].set_ylabel("time as a share of full attention's")
    figure.legend(handles.values(), handles, loc="outside right center", fontsize=7)
    title = title_of(content)
    if any(map(disturbances, records)):
        title += "; DISTURBED, not to be quoted"
    figure.suptitle(f"{title}. Dashed: pairs kept", fontsize=8)
    figure.set_label(f"Time as a share of full attention's over the sequence length. {title}")
    return {"attention_scaling": figure}


def draw_peer(axis, name, records, color, marker):
    """A peer's medians between their quartiles, and its limit."""
    lengths = [r["seq_len"] for r in records]
    best_full = np.array([r["median_ms"] * r["ratio_to_best_full"] for r in records])
    medians = [r["median_ms"] for r in records] / best_full
    axis.plot(lengths, medians, label=name, color=color, marker=marker, markersize=4)
    low, high = np.transpose([r["quartiles_ms"] for r in records]) / best_full
    axis.fill_between(lengths, low, high, color=color, alpha=0.2, linewidth=0)
    if records[0]["attends"] != ALL_KEYS:
        kept = [r["density"] for r in records]
        one_of_several = records[0]["attends"] != name
        look = {"color": "black" if one_of_several else color, "linestyle": "--", "linewidth": 1}
        axis.plot(lengths, kept, **look)

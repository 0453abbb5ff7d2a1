"""The estimates of patterns as figures."""

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from attention.pattern import may_attend
from estimates.pattern import keys_per_query
from figures.frame import caption_below
from figures.look import LOOK, WIDTH

MOST_PAIRS = 512  # side of a mask drawn pair by pair; of a longer one the regions are drawn
FUTURE, UNATTENDED, NEAR, FAR, SINK = range(5)  # kinds of pairs; the palette has their colours
PALETTE = np.array([(1, 1, 1), (0.88, 0.88, 0.88), *sns.color_palette("colorblind")[:3]])
LINEAR_COLOR = (0.42, 0.42, 0.42)
ESTIMATE = "Speed-ups: estimates from FLOP counts, not measured."


def pair_kinds(queries, keys, window_size, dilation, sink_tokens=0):
    """Kind of every pair of positions (Q,) x (K,): FUTURE, UNATTENDED, ... SINK, as (Q, K)."""
    queries, keys = queries[:, None], keys[None, :]
    r = queries - keys
    far = may_attend(queries, keys, window_size, dilation)
    sinks = may_attend(queries, keys, window_size, dilation, sink_tokens)
    conditions = [r < 0, r <= window_size, far, sinks]
    return np.select(conditions, [FUTURE, NEAR, FAR, SINK], UNATTENDED)


def draw_pairs(axes, a, first_query, first_key, side):
    """``side`` x ``side`` pairs of the pattern, each in its own cell."""
    queries, keys = first_query + np.arange(side), first_key + np.arange(side)
    kinds = pair_kinds(queries, keys, a.window_size, a.dilation, a.sink_tokens)
    extent = (keys[0] - 0.5, keys[-1] + 0.5, queries[-1] + 0.5, queries[0] - 0.5)
    axes.imshow(PALETTE[kinds], extent=extent)
    axes.grid(False)


def draw_regions(axes, a):
    """The window, what lies beyond it in the colour of its mean density, and the sinks."""
    end, window = a.seq_len, min(a.window_size, a.seq_len)
    sinks = min(a.sink_tokens, end - window)
    kept = 1 / a.dilation if a.dilation else 0
    beyond = kept * PALETTE[FAR] + (1 - kept) * PALETTE[UNATTENDED]
    axes.fill((0, end, 0), (0, end, end), color=PALETTE[NEAR], lw=0)
    axes.fill((0, end - window, 0), (window, end, end), color=beyond, lw=0)
    axes.fill((0, sinks, sinks, 0), (window, window + sinks, end, end), color=PALETTE[SINK], lw=0)
    axes.set(xlim=(0, end), ylim=(end, 0), aspect="equal")
    axes.grid(False)


def draw_mask(axes, a):
    """The whole pattern; in the corner that a causal mask leaves white, the window's far edge."""
    if a.seq_len <= MOST_PAIRS:
        draw_pairs(axes, a, 0, 0, a.seq_len)
    else:
        draw_regions(axes, a)
    axes.set(xlabel="key position j (token)", ylabel="query position i (token)")
    whole_ticks(axes)
    side = min(max(24, 3 * a.dilation), 64)
    if a.seq_len < max(a.window_size + side, 2 * side):
        return
    query = min(a.seq_len - side, (a.seq_len + a.window_size) // 2)
    key = query - a.window_size
    inset = axes.inset_axes([0.55, 0.55, 0.44, 0.44], xticks=[], yticks=[])
    inset.spines[:].set_color("black")
    draw_pairs(inset, a, query, key, side)
    axes.indicate_inset((key - 0.5, query - 0.5, side, side), edgecolor="black", lw=0.8, alpha=1)


def whole_ticks(axes):
    """A few whole numbers, their thousands grouped."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axis.set_major_formatter("{x:,.0f}")


def legend_of_kinds(figure, a, *more):
    kinds = {"near (window)": NEAR, "far (dilated)": FAR}
    if a.sink_tokens:
        kinds["sinks"] = SINK
    kinds["causal, not attended"] = UNATTENDED
    handles = [Patch(facecolor=PALETTE[kind], label=name) for name, kind in kinds.items()]
    figure.legend(handles=[*handles, *more], loc="outside upper left", ncols=5)


def words_of_regions(a):
    """What a caption says of a mask that is not drawn pair by pair."""
    if a.seq_len <= MOST_PAIRS:
        return ""
    return " Beyond the window: in the colour of the mean density, 1/d; corner: pair by pair."


@matplotlib.rc_context(LOOK)
def plot_comparison(analyses):
    """The masks of several configurations in one grid, as a Figure."""
    columns = min(4, len(analyses))
    rows = -(-len(analyses) // columns)
    figure = Figure(figsize=(WIDTH, 0.8 + 1.95 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, a in zip(grid.flat, analyses, strict=False):
        draw_mask(axes, a)
        axes.label_outer()
        axes.set_title(f"{a.label}: {a.density:.1%}")
    for axes in grid.flat[len(analyses) :]:
        axes.set_axis_off()
    legend_of_kinds(figure, a)
    text = f"seq_len {a.seq_len:,}. Percentages: density, the share of causal pairs kept."
    caption_below(figure, text + words_of_regions(a))
    return figure


def draw_keys_per_query(axes, a):
    """The kinds of keys of each query, stacked up to full causal attention."""
    positions = np.unique(np.linspace(0, a.seq_len - 1, min(a.seq_len, 1024)).astype(np.int64))
    keys = np.stack(keys_per_query(positions, a.window_size, a.dilation, a.sink_tokens))
    keys = np.vstack([keys, positions + 1 - keys.sum(axis=0)])
    keys = np.column_stack([keys, keys[:, -1]])
    edges = np.append(positions, a.seq_len)  # query i fills [i, i + 1): a single one shows too
    colors = PALETTE[[NEAR, FAR, SINK, UNATTENDED]]
    axes.stackplot(edges, keys, colors=colors, step="post", linewidth=0)
    axes.set(
        xlim=(0, a.seq_len), ylim=(0, a.seq_len), xlabel="query position i", ylabel="keys per query"
    )
    mean, full = a.attended_pairs / a.seq_len, a.causal_pairs / a.seq_len
    axes.set_title(f"Keys per query: on average {mean:,.1f} of {full:,.1f}")
    whole_ticks(axes)


def draw_cost(axes, a):
    """FLOPs relative to full attention: attention alone and the whole step, full and sparse."""
    left_out = a.causal_pairs - a.attended_pairs
    sparse = [a.pair_flops * pairs for pairs in (a.near_pairs, a.far_pairs, a.sink_pairs)]
    full = [*sparse, a.pair_flops * left_out]
    rows = {
        "attention\nfull": [0, *full],
        "attention\nsparse": [0, *sparse, 0],
        "whole step\nfull": [a.linear_flops, *full],
        "whole step\nsparse": [a.linear_flops, *sparse, 0],
    }
    flops = np.array(list(rows.values()), dtype=float)  # (rows, parts)
    totals = flops.sum(axis=1)
    percent = 100 * flops / totals[[0, 0, 2, 2], None]
    left = np.zeros(len(rows))
    colors = [LINEAR_COLOR, *PALETTE[[NEAR, FAR, SINK, UNATTENDED]]]
    for widths, color in zip(percent.T, colors, strict=True):
        bars = axes.barh(list(rows), widths, left=left, color=color, lw=0)
        left += widths
    axes.bar_label(bars, map(EngFormatter(unit="FLOP", places=1), totals), padding=3, fontsize=7)
    axes.set(xlim=(0, 145), ylim=(3.5, -0.5), xticks=range(0, 101, 25))
    axes.set_xlabel("forward FLOPs, % of full causal attention's")
    axes.grid(False, axis="y")
    speedups = f"attention {a.attention_speedup:,.2f}x, step {a.step_speedup:,.3f}x"
    axes.set_title(f"Estimate: {speedups}")


@matplotlib.rc_context(LOOK)
def plot_configuration(a):
    """One PatternAnalysis: its mask, keys per query and cost, as a Figure."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    panels = figure.subplot_mosaic("mk;mc", width_ratios=(1.1, 1))
    draw_mask(panels["m"], a)
    panels["m"].set_title(f"{a.label}: {a.density:.2%} of the causal pairs")
    draw_keys_per_query(panels["k"], a)
    draw_cost(panels["c"], a)
    legend_of_kinds(figure, a, Patch(facecolor=LINEAR_COLOR, label="linear layers"))
    caption_below(figure, f"{a.model}. {ESTIMATE}{words_of_regions(a)}")
    return figure

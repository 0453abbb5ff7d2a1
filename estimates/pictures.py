"""The estimates of patterns as figures."""

from contextlib import contextmanager

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

from attention.pattern import causal_pairs, may_attend, near_far_pairs, sink_pairs
from estimates.pattern import ESTIMATE, describe_model, keys_per_query

MAX_CELLS = 512  # side of a mask picture; longer sequences are drawn in square blocks of pairs
DETAIL = 256  # positions drawn pair by pair beside such a picture
FUTURE, UNATTENDED, NEAR, FAR, SINK = range(5)  # kinds of pairs; the palette has their colours
PALETTE = np.array([(1, 1, 1), (0.88, 0.88, 0.88), *sns.color_palette("colorblind")[:3]])
DENSITY_COLORS = sns.color_palette("blend:#e0e0e0,#1b1b3a", as_cmap=True)
LINEAR_COLOR = (0.42, 0.42, 0.42)
QUERY_LABEL, KEY_LABEL = "query position i (token)", "key position j (token)"


# --- mask pictures -----------------------------------------------------------------------------
def pair_kinds(queries, keys, window_size, dilation, sink_tokens=0):
    """Kind of every pair of positions (Q,) x (K,): FUTURE, UNATTENDED, ... SINK, as (Q, K)."""
    queries, keys = queries[:, None], keys[None, :]
    r = queries - keys
    far = may_attend(queries, keys, window_size, dilation)
    sinks = may_attend(queries, keys, window_size, dilation, sink_tokens)
    conditions = [r < 0, r <= window_size, far, sinks]
    return np.select(conditions, [FUTURE, NEAR, FAR, SINK], UNATTENDED)


def block_shares(seq_len, window_size, dilation, cells=MAX_CELLS, sink_tokens=0):
    """Exact shares of the five kinds in square blocks of pairs: (n, n, 5) with n <= ``cells``.

    Also returns the block's side in tokens, 1 where every pair has its own cell.  A last block
    that reaches beyond the sequence counts the pattern as if it went on.
    """
    side = -(-seq_len // cells)
    n = -(-seq_len // side)
    # x tokens have x - r pairs at distance r; a block k blocks off the diagonal has
    # side - |r - k * side|.  The latter is the second difference of the former in x.
    counts = []
    for tokens in (max(k, 0) * side for k in range(-1, n + 1)):
        near, far = near_far_pairs(tokens, window_size, dilation)
        causal = causal_pairs(tokens)
        counts.append((-causal, causal - near - far, near, far, 0))
    shares = (np.diff(np.array(counts, dtype=object), n=2, axis=0) / side**2).astype(float)
    shares[:, FUTURE] += 1
    shares = np.vstack([shares, (1, 0, 0, 0, 0)])  # index -1: blocks above the diagonal
    offsets = np.subtract.outer(np.arange(n), np.arange(n))
    shares = shares[np.maximum(offsets, -1)]
    # sinks lie in the first columns; the first x queries have this many pairs with the first y
    columns = min(-(-sink_tokens // side), n)
    before = [
        [
            sink_pairs(x * side, window_size, dilation, min(y * side, sink_tokens))
            for y in range(columns + 1)
        ]
        for x in range(n + 1)
    ]
    sinks = np.diff(np.diff(np.array(before, dtype=object), axis=0), axis=1) / side**2
    shares[:, :columns, SINK] += sinks.astype(float)
    shares[:, :columns, UNATTENDED] -= sinks.astype(float)
    return shares, side


@contextmanager
def plot_style():
    """The suite's look, for the figures made or saved inside; global settings stay untouched."""
    style = sns.axes_style("ticks") | sns.plotting_context("paper", font_scale=0.8)
    style |= {"pdf.fonttype": 42, "axes.titlesize": 8, "axes.titleweight": "bold"}
    with matplotlib.rc_context(style):
        yield


def _kinds_legend(figure, a, *more):
    kinds = {"near (local)": NEAR, "far (dilated)": FAR}
    kinds |= {"sinks": SINK} if a.sink_tokens else {}
    kinds["causal, not attended"] = UNATTENDED
    handles = [Patch(fc=PALETTE[k], ec="0.6", lw=0.4, label=text) for text, k in kinds.items()]
    figure.legend(handles=[*handles, *more], loc="outside upper center", ncols=5, frameon=False)


def _caption(figure, text):
    figure.supxlabel(text, fontsize=7, color="0.3")


def _whole_ticks(*both):
    for axis in both:
        locator = MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1)
        axis.set_major_locator(locator)
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def _position_axes(axes, first_key, first_query, side):
    axes.set_xlim(first_key - 0.5, first_key + side - 0.5)
    axes.set_ylim(first_query + side - 0.5, first_query - 0.5)
    _whole_ticks(axes.xaxis, axes.yaxis)


def draw_mask(axes, a):
    """The whole pattern; above MAX_CELLS tokens a cell mixes the colours of its block's pairs."""
    shares, side = block_shares(a.seq_len, a.window_size, a.dilation, sink_tokens=a.sink_tokens)
    end = len(shares) * side - 0.5
    axes.imshow(shares @ PALETTE, extent=(-0.5, end, end, -0.5))
    _position_axes(axes, 0, 0, a.seq_len)


def draw_block_density(axes, a):
    """The whole pattern in blocks, each coloured by the share of its causal pairs that is kept."""
    shares, side = block_shares(a.seq_len, a.window_size, a.dilation, sink_tokens=a.sink_tokens)
    causal = np.ma.masked_equal(1 - shares[..., FUTURE], 0)
    kept = shares[..., [NEAR, FAR, SINK]].sum(-1) / causal
    end = len(shares) * side - 0.5
    colors = {"cmap": DENSITY_COLORS, "vmin": 0, "vmax": 1, "interpolation": "none"}
    image = axes.imshow(kept, extent=(-0.5, end, end, -0.5), **colors)
    _position_axes(axes, 0, 0, a.seq_len)
    place = axes.inset_axes([0.5, 0.88, 0.44, 0.05])  # in the corner that causal masks leave white
    options = {"orientation": "horizontal", "format": PercentFormatter(1), "ticks": (0, 0.5, 1)}
    bar = axes.figure.colorbar(image, cax=place, **options)
    bar.set_label(f"density of\n{side:,} x {side:,} pairs")


def draw_detail(axes, a, first_query, first_key, side):
    """``side`` x ``side`` pairs of the pattern, each in its own cell."""
    queries, keys = first_query + np.arange(side), first_key + np.arange(side)
    kinds = pair_kinds(queries, keys, a.window_size, a.dilation, a.sink_tokens)
    extent = (keys[0] - 0.5, keys[-1] + 0.5, queries[-1] + 0.5, queries[0] - 0.5)
    axes.imshow(PALETTE[kinds], extent=extent)
    _position_axes(axes, first_key, first_query, side)


def draw_edge_inset(axes, a):
    """Magnify the window's far edge, in the corner that a causal mask leaves white."""
    side = min(max(24, 3 * a.dilation), 64)
    if a.seq_len < max(a.window_size + side, 2 * side):
        return
    first_query = min(a.seq_len - side, (a.seq_len + a.window_size) // 2)
    inset = axes.inset_axes([0.55, 0.55, 0.44, 0.44])
    draw_detail(inset, a, first_query, first_query - a.window_size, side)
    inset.set(xticks=[], yticks=[])
    bounds = (first_query - a.window_size - 0.5, first_query - 0.5, side, side)
    indicator = axes.indicate_inset(bounds, inset, edgecolor="0.2", linewidth=0.6, alpha=1)
    # indicate_inset_zoom, and the choice of corners, would cross the box when y points down.
    for corner, connector in enumerate(indicator.connectors):
        connector.set_visible(corner in (1, 2))  # upper left, lower right


def plot_comparison(analyses):
    """The masks of several configurations in one grid, as a Figure."""
    columns = min(4, len(analyses))
    rows = -(-len(analyses) // columns)
    with plot_style():
        figure = Figure(figsize=(7.2, 0.8 + 1.95 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, a in zip(grid.flat, analyses, strict=False):
            draw_mask(axes, a)
            draw_edge_inset(axes, a)
            axes.set_title(f"{a.label}: {a.density:.1%}")
        for axes in grid.flat[len(analyses) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel(KEY_LABEL)
        for axes in grid[:, 0]:
            axes.set_ylabel(QUERY_LABEL)
        sns.despine(figure)
        _kinds_legend(figure, a)
        text = f"seq_len {a.seq_len:,}.  Percentages: density, the share of causal pairs kept."
        side = -(-a.seq_len // MAX_CELLS)
        blocks = (
            f"\nEach cell mixes the colours of its {side:,} x {side:,} pairs; insets: each pair."
        )
        _caption(figure, text + blocks * (side > 1))
    return figure


# --- pictures of one configuration -------------------------------------------------------------
def draw_keys_per_query(axes, a):
    """The kinds of keys of each query, stacked up to full causal attention."""
    positions = np.unique(np.linspace(0, a.seq_len - 1, min(a.seq_len, 1024)).astype(np.int64))
    stack = np.stack(keys_per_query(positions, a.window_size, a.dilation, a.sink_tokens))
    stack = np.vstack([stack, positions + 1 - stack.sum(axis=0)])
    stack = np.column_stack([stack, stack[:, -1]])
    x = np.append(positions, a.seq_len)  # query i fills [i, i + 1), so that a single one shows too
    axes.stackplot(
        x, stack, colors=PALETTE[[NEAR, FAR, SINK, UNATTENDED]], step="post", linewidth=0
    )
    axes.set(xlim=(0, a.seq_len), ylim=(0, a.seq_len), xlabel=QUERY_LABEL, ylabel="keys per query")
    digits = 1 if a.seq_len < 1000 else 0
    counts = (a.near_pairs, a.far_pairs, a.sink_pairs, a.causal_pairs)
    near, far, sinks, full = (f"{count / a.seq_len:,.{digits}f}" for count in counts)
    sinks = f"\n+ {sinks} sinks" if a.sink_tokens else ""
    axes.set_title(f"Mean keys: {near} near + {far} far{sinks} of {full}")
    _whole_ticks(axes.xaxis, axes.yaxis)


def draw_cost(axes, a):
    """FLOPs relative to full attention: attention alone and the whole step, full and sparse."""
    colors = [LINEAR_COLOR, *PALETTE[[NEAR, FAR, SINK, UNATTENDED]]]
    left_out = a.causal_pairs - a.attended_pairs
    pairs = np.array([a.near_pairs, a.far_pairs, a.sink_pairs, left_out])
    attention = (pairs / a.causal_pairs * a.flops_full).tolist()
    for row, (linear, left_out) in enumerate([(0, 1), (0, 0), (1, 1), (1, 0)]):
        parts = [linear * a.linear_flops, *attention[:3], left_out * attention[3]]
        widths = 100 * np.array(parts) / (linear * a.linear_flops + a.flops_full)
        axes.barh(row, widths, left=np.cumsum(widths) - widths, color=colors, linewidth=0)
        total = EngFormatter(unit="FLOP", places=1)(sum(parts))
        axes.text(sum(widths) + 2, row, total, va="center", fontsize=7)
    names = [f"{part}\n{how}" for part in ("attention", "whole step") for how in ("full", "sparse")]
    axes.set(yticks=range(4), yticklabels=names, ylim=(3.5, -0.5), xlim=(0, 145))
    axes.set(xticks=range(0, 101, 25), xlabel="forward FLOPs, % of full causal attention's")
    speedups = f"attention {a.attention_speedup:,.2f}x, step {a.step_speedup:,.3f}x"
    axes.set_title(f"Estimate: {speedups}")


def plot_configuration(a):
    """One PatternAnalysis: its mask, keys per query and cost, as a Figure."""
    coarse = a.seq_len > MAX_CELLS
    with plot_style():
        figure = Figure(figsize=(7.2, 5.2 if coarse else 4.4), layout="constrained")
        widths = (1, 1.2) if coarse else (1.1, 1)
        panels = figure.subplot_mosaic("mk;dc" if coarse else "mk;mc", width_ratios=widths)
        if coarse:
            draw_block_density(panels["m"], a)
            first_query = a.seq_len - DETAIL
            # A window wider than the detail would fill it: then look at the window's far edge.
            first_key = max(0, first_query - max(0, a.window_size - DETAIL // 2))
            draw_detail(panels["d"], a, first_query, first_key, DETAIL)
            panels["d"].set_title(f"The last {DETAIL} queries, pair by pair")
            panels["d"].set(xlabel=KEY_LABEL, ylabel=QUERY_LABEL)
        else:
            draw_mask(panels["m"], a)
            draw_edge_inset(panels["m"], a)
        panels["m"].set_title(f"{a.label}: {a.density:.2%} of the causal pairs")
        panels["m"].set(xlabel=KEY_LABEL, ylabel=QUERY_LABEL)
        draw_keys_per_query(panels["k"], a)
        draw_cost(panels["c"], a)
        sns.despine(figure)
        _kinds_legend(figure, a, Patch(facecolor=LINEAR_COLOR, label="linear layers"))
        _caption(figure, f"{describe_model(a)}.  {ESTIMATE}")
    return figure

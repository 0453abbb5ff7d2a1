"""The estimates of patterns as figures; ``a`` is a PatternAnalysis."""

import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from attention.pattern import may_attend
from figures.frame import caption_below, empty_figure, new_figure
from figures.look import OUR_LOOK, arm_styles
from machine.command import counted
from studies.pictures import error_bars
from studies.tables import measured_rows

MOST_PAIRS = 512  # side of a mask drawn pair by pair; of a longer one the regions are drawn
MOST_MASKS = 6  # in the figure of one configuration: kinds of heads that it shows
FUTURE, UNATTENDED, NEAR, FAR, SINK = range(5)  # kinds of pairs; the palette has their colours
PALETTE = np.array([(1, 1, 1), (0.88, 0.88, 0.88), *sns.color_palette("colorblind")[:3]])
STACKED = [NEAR, FAR, SINK, UNATTENDED]
LINEAR_COLOR = (0.42, 0.42, 0.42)
ESTIMATE = "Speed-ups: estimates from FLOP counts, not measured."


def pair_kinds(head, queries, keys):
    """Kind of every pair of positions (Q,) x (K,): FUTURE, UNATTENDED, ... SINK, as (Q, K)."""
    queries, keys = queries[:, None], keys[None, :]
    far = may_attend(queries, keys, *head._replace(sink_tokens=0))
    sinks = may_attend(queries, keys, *head)
    conditions = [keys > queries, queries - keys <= head.window_size, far, sinks]
    return np.select(conditions, [FUTURE, NEAR, FAR, SINK], UNATTENDED)


def draw_pairs(axes, head, first_query, first_key, side):
    """``side`` x ``side`` pairs of the pattern, each in its own cell."""
    queries, keys = first_query + np.arange(side), first_key + np.arange(side)
    extent = (keys[0] - 0.5, keys[-1] + 0.5, queries[-1] + 0.5, queries[0] - 0.5)
    axes.imshow(PALETTE[pair_kinds(head, queries, keys)], extent=extent)


def draw_regions(axes, head, end):
    """The window, what lies beyond it in the colour of its mean density, and the sinks."""
    window = min(head.window_size, end)
    sinks = min(head.sink_tokens, end - window)
    kept = 1 / head.dilation if head.dilation else 0
    beyond = kept * PALETTE[FAR] + (1 - kept) * PALETTE[UNATTENDED]
    axes.fill((0, end, 0), (0, end, end), color=PALETTE[NEAR], lw=0)
    axes.fill((0, end - window, 0), (window, end, end), color=beyond, lw=0)
    axes.fill((0, sinks, sinks, 0), (window, window + sinks, end, end), color=PALETTE[SINK], lw=0)
    axes.set(xlim=(0, end), ylim=(end, 0), aspect="equal")


def draw_mask(axes, head, seq_len):
    """A head's whole pattern, and in the white corner, enlarged, the far edge of its window."""
    if seq_len <= MOST_PAIRS:
        draw_pairs(axes, head, 0, 0, seq_len)
    else:
        draw_regions(axes, head, seq_len)
    axes.set(xlabel="key position j (token)", ylabel="query position i (token)")
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axis.set_major_formatter("{x:,.0f}")
    side = min(max(24, 3 * head.dilation), 64)
    if seq_len < max(head.window_size + side, 2 * side):
        return
    query = min(seq_len - side, (seq_len + head.window_size) // 2)
    key = query - head.window_size
    inset = axes.inset_axes([0.55, 0.55, 0.44, 0.44], xticks=[], yticks=[])
    inset.spines[:].set_color("black")
    draw_pairs(inset, head, query, key, side)
    axes.indicate_inset((key - 0.5, query - 0.5, side, side), edgecolor="black", lw=0.8, alpha=1)


def legend_and_caption(figure, a, text, *more):
    """A legend of the kinds of pairs and of further handles (``more``), and a text as caption."""
    kinds = {"near (window)": NEAR, "far (dilated)": FAR}
    if a.sink_tokens:
        kinds["sinks"] = SINK
    kinds["causal, not attended"] = UNATTENDED
    handles = [Patch(facecolor=PALETTE[kind], label=name) for name, kind in kinds.items()]
    figure.legend(handles=[*handles, *more], loc="outside upper left", ncols=5)
    if a.seq_len > MOST_PAIRS:
        text += " Beyond the window: in the colour of the mean density, 1/d; corner: pair by pair."
    caption_below(figure, text)


@OUR_LOOK
def plot_comparison(analyses):
    """The masks of several configurations in one grid, as a Figure."""
    columns = min(4, len(analyses))
    rows = -(-len(analyses) // columns)
    figure, grid = new_figure(rows, columns, 0.8 + 1.95 * rows, sharex=True, sharey=True)
    for axes, a in zip(grid.flat, analyses, strict=False):
        draw_mask(axes, next(iter(a.heads)), a.seq_len)
        axes.label_outer()
        axes.set_title(f"{a.label}: {a.density:.1%}")
    for axes in grid.flat[len(analyses) :]:
        axes.set_axis_off()
    text = f"seq_len {a.seq_len:,}. Percentages: density, the share of causal pairs kept."
    if any(len(a.heads) > 1 for a in analyses):
        text += " Where heads differ, the mask of one that is not full."
    legend_and_caption(figure, a, text)
    return figure


def draw_cost(axes, a):
    """FLOPs relative to full attention: attention alone and the whole step, full and sparse."""
    full = a.pair_flops * np.array(a.pairs, dtype=float)
    sparse = full * (1, 1, 1, 0)
    names = "attention\nfull", "attention\nsparse", "whole step\nfull", "whole step\nsparse"
    linear = np.array([[0], [0], [a.linear_flops], [a.linear_flops]], dtype=float)
    flops = np.hstack([linear, [full, sparse] * 2])  # (rows, parts)
    totals = flops.sum(axis=1)
    percent = 100 * flops / totals[[0, 0, 2, 2], None]
    left = np.zeros(len(names))
    for widths, color in zip(percent.T, [LINEAR_COLOR, *PALETTE[STACKED]], strict=True):
        bars = axes.barh(names, widths, left=left, color=color, lw=0)
        left += widths
    axes.bar_label(bars, map(EngFormatter(unit="FLOP", places=1), totals), padding=3, fontsize=7)
    axes.set(xlim=(0, 145), ylim=(3.5, -0.5), xticks=range(0, 101, 25))
    axes.set_xlabel("forward FLOPs, % of full causal attention's")
    axes.grid(False, axis="y")
    speedups = f"attention {a.attention_speedup:,.2f}x, step {a.step_speedup:,.3f}x"
    axes.set_title(f"Estimate: {speedups}")


@OUR_LOOK
def plot_configuration(a):
    """One PatternAnalysis: its mask and its cost, as a Figure; a mask for each kind of heads."""
    heads = list(a.heads.items())[:MOST_MASKS]
    figure = empty_figure(4.8)
    grid = figure.add_gridspec(2, len(heads), height_ratios=(1.5, 1))
    for column, (head, count) in enumerate(heads):
        axes = figure.add_subplot(grid[0, column])
        draw_mask(axes, head, a.seq_len)
        axes.set_title(f"{kind_of_head(head)}\n{count} of {counted(a.heads.total(), 'head')}")
        if len(heads) > 2:  # panels too narrow for the whole label
            axes.set_xlabel("key j (token)")
        if column:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)
    draw_cost(figure.add_subplot(grid[1, :]), a)
    linear = Patch(facecolor=LINEAR_COLOR, label="linear layers")
    text = f"{a.label}: {a.density:.2%} of the causal pairs. {a.model}. {ESTIMATE}"
    legend_and_caption(figure, a, text, linear)
    return figure


def kind_of_head(head):
    """What a head attends to, in words."""
    if head.dilation == 1:
        return "full"
    phase = f", phase {head.phase}" if head.phase else ""
    return f"w={head.window_size} d={head.dilation}{phase}"


def draw_measured(axes, content):
    """Measured speed-ups with their intervals; returns their handles, one a kind of positions."""
    handles = []
    for point, color in zip(content["points"], ("black", "white"), strict=False):
        look = {"color": "black", "marker": "D", "mfc": color, "ms": 4}
        for _, summary, gain in measured_rows(point):
            sparsity = 100 * (1 - summary["density"])
            axes.errorbar(sparsity, *error_bars([gain]), capsize=2, **look)
        name = f"measured, {point['positions']} positions"
        handles.append(Line2D([], [], ls="none", label=name, **look))
    return handles


@OUR_LOOK
def plot_tradeoff(analyses, content=None):
    """Sparsity against the estimated speed-up of the whole step, on Amdahl's curve, as a Figure.

    content: of a study of patterns, whose measured speed-ups are drawn over them.
    """
    share = analyses[0].attention_share
    figure, ((axes,),) = new_figure(1, 1, 3.6)
    sparsity = [a.sparsity for a in analyses]
    curve = np.linspace(min(sparsity), max(sparsity), 200)
    axes.plot(100 * curve, 1 / (1 - share * curve), color="0.6", lw=1, zorder=1)
    styles = arm_styles([a.label for a in analyses])
    for a in analyses:
        look = {"color": styles[a.label].color, "marker": styles[a.label].marker, "ms": 6}
        axes.plot(100 * a.sparsity, a.step_speedup, ls="none", label=a.label, **look)
    axes.axhline(1, color="black", lw=0.8, zorder=0.8)  # over the grid
    axes.yaxis.set_major_formatter("{x:.5g}x")
    handles = axes.get_legend_handles_labels()[0]
    source = ESTIMATE
    if content is not None:
        handles += draw_measured(axes, content)
        source = (
            "Coloured: estimates from FLOP counts. Black: measured on "
            f"{content['device_name']}, with 95 % t intervals over blocks."
        )
    axes.set(xlabel="sparsity: causal pairs left out (%)", ylabel="speed-up of the whole step")
    figure.legend(handles=handles, loc="outside right center")
    text = f"{analyses[0].model}. Attention's share of the FLOPs, full: {share:.2%}. "
    caption_below(figure, f"{text}Line: Amdahl's law. {source}")
    return figure

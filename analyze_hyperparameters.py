"""What a window_size and a dilation keep, and what that could save: exact counts, no model built.

``python analyze_hyperparameters.py`` compares eight configurations at 256 tokens;
``python analyze_hyperparameters.py 64 8 512`` analyses one (window_size dilation [seq_len]).
Pairs are counted in closed form, so any length is instant.  Speed-ups are estimates from those
counts; ``python main.py`` measures.

Letters: S sequence length, C d_model, L layers, V vocabulary, w window_size, d dilation,
N sink_tokens.
"""

import argparse
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

from gpt import model_flops
from metrics_utils import MetricsError, atomic_write, fitting, pattern_of_arm
from studies import load_study, measured_rows, recommend, warning_lines, with_interval
from window_attention import (
    attention_plan,
    causal_pairs,
    is_full_causal,
    may_attend,
    near_far_pairs,
    sink_pairs,
)

CONFIGURATIONS = ((128, 4), (128, 2), (96, 4), (96, 6), (80, 4), (80, 6), (64, 4), (64, 8))
SEQ_LEN, D_MODEL, LAYERS, VOCAB_SIZE = 256, 512, 8, 10_000
DEFAULT_STUDY = Path("output/pattern_study.json")
LARGEST = 2**40  # far beyond any use, and everything up to it fits the pictures' int64

MAX_CELLS = 512  # side of a mask picture; longer sequences are drawn in square blocks of pairs
DETAIL = 256  # positions drawn pair by pair beside such a picture
FUTURE, UNATTENDED, NEAR, FAR, SINK = range(5)  # kinds of pairs; the palette has their colours
PALETTE = np.array([(1, 1, 1), (0.88, 0.88, 0.88), *sns.color_palette("colorblind")[:3]])
DENSITY_COLORS = sns.color_palette("blend:#e0e0e0,#1b1b3a", as_cmap=True)
LINEAR_COLOR = (0.42, 0.42, 0.42)
ESTIMATE = "Speed-ups: estimates from FLOP counts, not measured."
QUERY_LABEL, KEY_LABEL = "query position i (token)", "key position j (token)"


# --- the numbers -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatternAnalysis:
    """One pattern at one length and its FLOPs in one model: the forward pass of one sequence.

    A multiply-add is 2 FLOPs.  Training costs 3 times the forward pass, full and sparse alike, so
    every ratio holds for it too.  The number of heads changes nothing.
    """

    window_size: int
    dilation: int
    seq_len: int
    d_model: int
    layers: int
    vocab_size: int
    causal_pairs: int  # (query, key) pairs of full causal attention: S (S + 1) / 2
    near_pairs: int
    far_pairs: int
    density: float  # share of the causal pairs that is kept: attended / causal, 0 to 1
    sparsity: float  # 1 - density
    mean_keys: float  # keys a query attends to, itself included: attended / S
    max_keys: int  # the last query's, which has the most
    linear_flops: int  # all matrix products but attention: S (24 L C^2 + 2 C V)
    flops_full: int  # full causal attention in all layers: 4 C L a pair
    flops_sparse: int  # attention over the pattern's pairs
    attention_share: float  # p = flops_full / (flops_full + linear_flops), 0 to 1
    attention_speedup: float  # estimate, attention alone: 1 / density
    step_speedup: float  # estimate, whole step, by Amdahl's law: 1 / (1 - p + p * density)
    sink_tokens: int = 0
    sink_pairs: int = 0  # those that are neither near nor far

    @property
    def label(self):
        """The configuration in words: ``w=96 d=4``, with ``N=4`` where there are sinks."""
        sinks = f" N={self.sink_tokens}" if self.sink_tokens else ""
        return f"w={self.window_size} d={self.dilation}{sinks}"

    @property
    def attended_pairs(self):
        """All pairs that are kept."""
        return self.near_pairs + self.far_pairs + self.sink_pairs


def keys_per_query(positions, window_size, dilation, sink_tokens=0):
    """Near, far and other sink keys of the queries at ``positions``: three of their shape.

    With t = i - w, query i has min(i, w) + 1 near keys and floor(t / d) far keys, none while t < d;
    of its min(N, t) sinks beyond the window those that are t modulo d are far keys already.
    """
    near = np.minimum(positions, window_size) + 1
    beyond = np.maximum(np.subtract(positions, window_size), 0)
    sinks = np.minimum(beyond, sink_tokens)
    if not dilation:
        return near, np.zeros_like(beyond), sinks
    are_far = (sinks - beyond % dilation + dilation - 1) // dilation
    return near, beyond // dilation, sinks - np.maximum(are_far, 0)


def analyze_pattern(
    window_size,
    dilation,
    seq_len=SEQ_LEN,
    d_model=D_MODEL,
    layers=LAYERS,
    vocab_size=VOCAB_SIZE,
    sink_tokens=0,
):
    """Count the pattern's pairs (closed form) and estimate its cost: a PatternAnalysis.

    Raises ValueError, with name and value, for anything but whole numbers of at least 1
    (dilation and sink_tokens: at least 0).
    """
    sizes = {"seq_len": seq_len, "d_model": d_model, "layers": layers, "vocab_size": vocab_size}
    pattern = {"window_size": window_size, "dilation": dilation, "sink_tokens": sink_tokens}
    for name, value in {**pattern, **sizes}.items():
        least = 0 if name in ("dilation", "sink_tokens") else 1
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not least <= value <= LARGEST:
            raise ValueError(
                f"{name} must be a whole number >= {least} and <= 2**40, got {value!r}"
            )
    near, far = near_far_pairs(seq_len, window_size, dilation)
    sinks = sink_pairs(seq_len, window_size, dilation, sink_tokens)
    attended = near + far + sinks
    causal = causal_pairs(seq_len)
    linear, per_pair = model_flops(**sizes)
    density = attended / causal
    share = per_pair * causal / (per_pair * causal + linear)
    return PatternAnalysis(
        **{**pattern, **sizes},
        **{"causal_pairs": causal, "near_pairs": near, "far_pairs": far, "sink_pairs": sinks},
        **{"density": density, "sparsity": 1 - density, "mean_keys": attended / seq_len},
        max_keys=int(sum(keys_per_query(seq_len - 1, **pattern))),
        linear_flops=linear,
        flops_full=per_pair * causal,
        flops_sparse=per_pair * attended,
        attention_share=share,
        attention_speedup=1 / density,
        step_speedup=1 / (1 - share + share * density),
    )


# --- the report --------------------------------------------------------------------------------


def _table(*rows):
    """Right-aligned text columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def _pattern_row(a):
    kinds = 3 if a.sink_tokens else 2  # near, far and, where there are any, sinks
    pairs = (a.near_pairs, a.far_pairs, a.sink_pairs)[:kinds]
    most = keys_per_query(a.seq_len - 1, a.window_size, a.dilation, a.sink_tokens)[:kinds]
    shares = f"{a.density:.2%}", f"{a.sparsity:.2%}"
    counts = (f"{count:,}" for count in (a.attended_pairs, *pairs))
    mean = f"{a.mean_keys:,.1f} = " + " + ".join(f"{count / a.seq_len:,.1f}" for count in pairs)
    largest = f"{a.max_keys:,} = " + " + ".join(f"{count:,}" for count in most)
    return *_name_cells(a), *shares, *counts, mean, largest


def _cost_row(a):
    costs = (a.flops_full, a.flops_sparse)
    whole = (cost + a.linear_flops for cost in costs)
    cells = map(EngFormatter(places=2), (*costs, *whole))
    return *_name_cells(a), *cells, f"{a.attention_speedup:.2f}x", f"{a.step_speedup:.3f}x"


def _name_cells(a):
    sinks = (str(a.sink_tokens),) if a.sink_tokens else ()
    return str(a.window_size), str(a.dilation), *sinks


def _remarks(analyses):
    """What the numbers themselves say, a sentence each."""
    for a in analyses:
        if is_full_causal(a.seq_len, a.window_size, a.dilation, a.sink_tokens):
            yield f"{a.label} leaves out nothing at this length: it is full causal attention."
        elif a.dilation == 0:
            sinks = " with sinks" if a.sink_tokens else ""
            yield f"{a.label} has no far keys: it is a pure sliding window{sinks}."
    least = min(a.density for a in analyses)
    sparsest = ", ".join(a.label for a in analyses if a.density == least)
    if len(analyses) > 1:
        yield f"Sparsest, so the fastest by this estimate: {sparsest} ({least:.2%} of the pairs)."
    yield "What a pattern does to the loss, these counts cannot tell."


def _plans(analyses):
    """How window_attention's ``auto`` evaluates the patterns, on a CPU and with CUDA."""
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        patterns = {}
        for a in analyses:
            pattern = a.window_size, a.dilation
            plan = attention_plan(a.seq_len, *pattern, dtype, device, a.sink_tokens)
            patterns.setdefault(plan, []).append(a.label)
        for plan, labels in patterns.items():
            which = "" if len(patterns) == 1 else f" for {', '.join(labels)}"
            kind = str(dtype).removeprefix("torch.")
            yield f"{device}, {kind}: {plan.evaluation}{which} ({plan.reason})"


def describe_model(a):
    """Length and model of an analysis in one line."""
    shape = f"seq_len {a.seq_len:,}, d_model {a.d_model:,}, {a.layers:,} layers"
    return f"{shape}, vocabulary {a.vocab_size:,}"


def measured_lines(content):
    """What a study of patterns measured, as lines of the report."""
    if content is None:
        return [
            "`python compare_models.py --study patterns` measures speed and quality of patterns;",
            "`python analyze_hyperparameters.py --measured` then shows them here.",
        ]
    lines = [
        f"MEASURED by --study patterns on {content['device_name']}, torch {content['torch']}; in "
        "brackets the 95 % t",
        "interval, paired by run.  times as fast: whole training step, over full attention in the "
        "best kernel.",
        *warning_lines(content),
    ]
    for point in content["points"]:
        rows = [
            ("w", "d", "sparsity", "whole est.", "times as fast", "val. loss - fused", "quality")
        ]
        for _, summary, gain in measured_rows(point):
            contrast = summary["contrast"]
            cells = str(summary["window_size"]), str(summary["dilation"])
            cells += f"{1 - summary['density']:.2%}", f"{summary['step_limit']:.3f}x"
            cells += with_interval(gain, "{:.3f}"), with_interval(contrast["val_loss"], "{:+.4f}")
            rows.append((*cells, contrast["quality"]["verdict"]))
        lines += [f"{point['positions']} positions:", _table(*rows), ""]
    return [*lines, "Recommendation, from these measurements alone:", *recommend(content)]


def format_report(analyses, content=None):
    """The report as text; ``analyses`` (at least one) share length, model and sink_tokens.

    content: of a study of patterns (see studies.py), whose measurements are shown too.
    """
    a = analyses[0]
    names, kinds = ("w", "d"), ("near", "far")
    if a.sink_tokens:
        names, kinds = (*names, "N"), (*kinds, "sink")
    keys = (f"{which} keys = {' + '.join(kinds)}" for which in ("mean", "max"))
    pairs = (f"{kind} pairs" for kind in kinds)
    header = *names, "density", "sparsity", "pairs", *pairs, *keys
    pattern = _table(header, *map(_pattern_row, analyses))
    costs = "attention full", "sparse", "whole full", "sparse", "attention est.", "whole est."
    return f"""\
Sliding-window + dilated attention: {describe_model(a)}

Pairs kept of {a.causal_pairs:,} causal (query, key) pairs, and keys per query:
{pattern}

FLOPs of one forward pass (one sequence, all layers; training: 3 times) and ESTIMATED speed-up:
{_table((*names, *costs), *map(_cost_row, analyses))}

Attention alone: 1 / density.  Whole step, by Amdahl's law: 1 / (1 - p + p * density), where
p = {a.attention_share:.2%} is attention's share of the FLOPs when it is full: at this length no
pattern can make the whole step more than {1 + a.flops_full / a.linear_flops:.3f}x faster.
These are estimates from FLOP counts: an upper bound that kernels, memory traffic and launches
do not reach, and only for an evaluation that skips the pairs it does not need.
{chr(10).join(_remarks(analyses))}

What --window-attention auto takes:
{chr(10).join(_plans(analyses))}

{chr(10).join(measured_lines(content))}
"""


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


# --- the trade-off picture ---------------------------------------------------------------------


def spread(values, gap, low, high):
    """Positions near ``values``, in their order, at least ``gap`` apart, within low and high."""
    order = np.argsort(values, kind="stable")
    slots = gap * np.arange(len(order))
    free = np.asarray(values, dtype=float)[order] - slots
    right = np.maximum.accumulate(free)
    left = np.minimum.accumulate(free[::-1])[::-1]
    placed = np.empty(len(order))
    # Both rows are ordered, so their mean is too; adding the slots parts them by the gap.
    placed[order] = np.clip((left + right) / 2, low, high - slots[-1]) + slots
    return placed


def _draw_speedup(axes, analyses, field, share, style):
    """One estimate against sparsity, on the curve 1 / (1 - share * sparsity) that it follows."""
    sparsity = np.array([a.sparsity for a in analyses])
    speedups = [getattr(a, field) for a in analyses]
    curve = np.linspace(sparsity.min(), sparsity.max(), 200)
    axes.plot(100 * curve, 1 / (1 - share * curve), color=style["color"], alpha=0.4, linewidth=1)
    axes.plot(100 * sparsity, speedups, linestyle="none", markersize=5, clip_on=False, **style)
    for x in 100 * sparsity:
        axes.axvline(x, color="0.9", linewidth=0.7, zorder=0)
    axes.set_ylim(1, 1 + 1.2 * max(max(speedups) - 1, 0.01))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4g}x"))


def _name_points(axes, analyses):
    """Write each configuration above the axes, joined to its sparsity; sets the x limits."""
    sparsity = [100 * a.sparsity for a in analyses]
    pad = max(0.1 * (max(sparsity) - min(sparsity)), 0.5)
    low, high = max(min(sparsity) - pad, 0), max(sparsity) + pad
    gap = (high - low) / max(12, len(analyses))
    places = spread(sparsity, gap, low + gap / 2, high - gap / 2)
    where = {"xycoords": axes.get_xaxis_transform(), "textcoords": axes.get_xaxis_transform()}
    line = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.7, "shrinkB": 0, "relpos": (0.5, 0)}
    for a, x, place in zip(analyses, sparsity, places, strict=True):
        text = a.label.replace(" ", "\n")
        axes.annotate(text, (x, 1), (place, 1.12), ha="center", size=7, arrowprops=line, **where)
    axes.set_xlim(low, high)


def _draw_measured(axes, content, colors):
    """Measured speed-ups with their intervals over the estimates, a colour a kind of positions."""
    for point, color, marker in zip(content["points"], colors, "Dv", strict=False):
        rows = measured_rows(point)
        x = [100 * (1 - summary["density"]) for _, summary, _ in rows]
        y = np.array([gain["mean"] for *_, gain in rows])
        ends = [[gain[end] or gain["mean"] for *_, gain in rows] for end in ("low", "high")]
        bars = abs(np.array(ends) - y)
        look = {"ls": "none", "ms": 4.5, "capsize": 2, "color": color, "marker": marker}
        label = f"measured, {point['positions']} positions"
        axes.errorbar(x, y, yerr=bars, **look, label=label, zorder=4)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.97 * min(ends[0])), max(high, 1.05 * max(ends[1])))
    axes.axhline(1, color="0.5", linewidth=0.8)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.15 * (high - low))  # for the legend, which then covers no point
    axes.legend(fontsize=7, loc="upper left", ncols=3)


def plot_tradeoff(analyses, content=None):
    """Sparsity against the estimated speed-up of attention and of the whole step, as a Figure.

    content: of a study of patterns, whose measured speed-ups of the step are drawn over them.
    """
    share, colors = analyses[0].attention_share, sns.color_palette("colorblind")
    with plot_style():
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True)
        style = {"marker": "o", "color": colors[2]}
        _draw_speedup(top, analyses, "attention_speedup", 1, style)
        style = {"marker": "s", "color": colors[4], "label": "estimated"}
        _draw_speedup(bottom, analyses, "step_speedup", share, style)
        note = ESTIMATE
        if content is not None:
            _draw_measured(bottom, content, [colors[0], colors[3]])
            note = f"Green and violet: estimates.  Measured: {content['device_name']}, "
            note += "with 95 % t intervals."
        _name_points(top, analyses)
        top.set_ylabel("attention alone,\nestimated speed-up")
        bottom.set_ylabel("whole step,\n" + "estimated " * (content is None) + "speed-up")
        bottom.set_xlabel("sparsity: causal pairs left out (%)")
        sns.despine(figure)
        text = f"{describe_model(analyses[0])}.  Attention's share of the FLOPs, full: {share:.2%}."
        _caption(figure, f"{text}\nLines: Amdahl's law.  {note}")
    return figure


# --- the command line --------------------------------------------------------------------------

EXAMPLE = "python analyze_hyperparameters.py 96 4 512"
DESCRIPTION = f"""\
What a sliding window + dilated pattern keeps of full causal attention, and the speed-up that
FLOP counts suggest (an estimate; `python main.py` measures).  Without arguments it compares
{" ".join(f"({w},{d})" for w, d in CONFIGURATIONS)}."""
EPILOG = f"""\
examples:
  python analyze_hyperparameters.py                  compare the eight configurations
  python analyze_hyperparameters.py --seq-len 4096   the same at another length
  python analyze_hyperparameters.py 96 4             one configuration
  {EXAMPLE}         one configuration at 512 tokens
  python analyze_hyperparameters.py --measured       measured patterns, and what to choose

dilation 0 means no far keys (a pure sliding window), dilation 1 is full causal attention.
Writes hyperparameter_analysis.txt and, as png and pdf, hyperparameter_comparison and
sparsity_speedup_tradeoff, or for one configuration config_wW_dD (config_wW_dD_nN with sinks) as
txt, png and pdf.
exit code: 0 done, 1 a file could not be written, 2 a wrong argument"""


def _whole(text):
    try:
        return int(text)
    except ValueError:
        message = f"must be a whole number, got {text!r}; example: {EXAMPLE}"
        raise argparse.ArgumentTypeError(message) from None


def build_parser():
    """The command line, with every default in its help."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    add = partial(parser.add_argument, type=_whole)
    add("window_size", nargs="?", help="previous tokens that are all attended to, at least 1")
    add("dilation", nargs="?", help="beyond them every dilation-th token, at least 0")
    add("seq_len", nargs="?", help=f"sequence length in tokens (default: {SEQ_LEN})")
    add("--seq-len", dest="length", metavar="S", help="the same, also for the comparison")
    add("--sink-tokens", metavar="N", default=0, help="first tokens seen by all (default: 0)")
    add("--d-model", metavar="C", default=D_MODEL, help="model width (default: %(default)s)")
    add("--layers", metavar="L", default=LAYERS, help="layers (default: %(default)s)")
    add("--vocab-size", metavar="V", default=VOCAB_SIZE, help="vocabulary (default: %(default)s)")
    add(
        "--measured",
        nargs="?",
        const=DEFAULT_STUDY,
        type=Path,
        metavar="FILE",
        help="the patterns, length and model of a study (compare_models.py --study patterns), with "
        f"what it measured (FILE: {DEFAULT_STUDY})",
    )
    add("--output-dir", type=Path, default=Path("output"), help="report (default: %(default)s)")
    add("--plots-dir", type=Path, default=Path("plots"), help="pictures (default: %(default)s)")
    return parser


def _measured_analyses(parser, args):
    """A study's content and the analyses of its patterns, or a usage error."""
    if args.window_size is not None or args.length is not None:
        parser.error("--measured takes patterns and length from the study: give neither")
    try:
        with fitting(args.measured):
            content = load_study(args.measured)
            if content["study"] != "patterns":
                raise MetricsError(f"{args.measured}: is no study of patterns")
            config = content["config"]
            sizes = config["seq_len"], config["d_model"], config["layers"]
            arms = [arm for point in content["points"] for arm in point["arms"]]
            patterns = dict.fromkeys(p for arm in arms if (p := pattern_of_arm(arm)))
            vocab_size = content["data"]["vocab_size"]
            sinks = config.get("sink_tokens", 0)
            return content, [analyze_pattern(*p, *sizes, vocab_size, sinks) for p in patterns]
    except MetricsError as error:
        parser.error(str(error))


def _analyses(parser, args):
    """The analyses the arguments ask for; a usage error where they make no sense."""
    if args.window_size is not None and args.dilation is None:
        parser.error(f"window_size {args.window_size} needs a dilation too; example: {EXAMPLE}")
    lengths = {args.seq_len, args.length} - {None} or {SEQ_LEN}
    if len(lengths) > 1:
        parser.error(f"seq_len is {args.seq_len} and --seq-len {args.length}: give one of the two")
    chosen = CONFIGURATIONS if args.window_size is None else [(args.window_size, args.dilation)]
    model = (*lengths, args.d_model, args.layers, args.vocab_size)
    try:
        return [analyze_pattern(w, d, *model, args.sink_tokens) for w, d in chosen]
    except ValueError as error:
        parser.error(f"{error}; example: {EXAMPLE}")


def save_figure(figure, path):
    """Write a figure at 300 dpi in the format of the path's suffix; equal figures, equal bytes."""
    options = {"format": path.suffix[1:], "dpi": 300}
    if path.suffix == ".pdf":
        options["metadata"] = {"CreationDate": None}
    with plot_style():
        atomic_write(path, lambda file: figure.savefig(file, **options))


def _writers(analyses, content, report, output_dir, plots_dir):
    """Each path to write, with the function that writes it."""
    a, several = analyses[0], len(analyses) > 1 or content is not None
    sinks = f"_n{a.sink_tokens}" if a.sink_tokens else ""
    name = f"config_w{a.window_size}_d{a.dilation}{sinks}"
    path = output_dir / f"{'hyperparameter_analysis' if several else name}.txt"
    yield path, partial(atomic_write, path, lambda file: file.write(report.encode()))
    figures = {name: lambda: plot_configuration(a)}
    if several:
        figures = {
            "hyperparameter_comparison": lambda: plot_comparison(analyses),
            "sparsity_speedup_tradeoff": lambda: plot_tradeoff(analyses, content),
        }
    for name, plot in figures.items():
        figure = plot()
        for path in (plots_dir / f"{name}.png", plots_dir / f"{name}.pdf"):
            yield path, partial(save_figure, figure, path)


def main(argv=None):
    """Report, write and list the files; returns the exit code.  Wrong usage: SystemExit(2)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    content = None
    if args.measured is None:
        analyses = _analyses(parser, args)
    else:
        content, analyses = _measured_analyses(parser, args)
    report = format_report(analyses, content)
    print(report)
    for path, write in _writers(analyses, content, report, args.output_dir, args.plots_dir):
        try:
            write()
        except KeyboardInterrupt:
            print("interrupted: the files listed are written", file=sys.stderr)
            return 130
        except OSError as error:
            print(f"{parser.prog}: error: {error.filename}: {error.strerror}", file=sys.stderr)
            return 1
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Sparsity against estimated and measured speed-up, as a figure."""

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from estimates.pattern import ESTIMATE, describe_model
from estimates.pictures import _caption, plot_style
from studies.measured import measured_rows


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

"""Sparsity against estimated and measured speed-up, as a figure."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from estimates.pictures import ESTIMATE
from figures.frame import caption_below
from figures.look import LOOK, WIDTH, arm_styles
from studies.measured import measured_rows

MEASURED = (  # by kind of positions, in black: the colours are those of the patterns
    {"color": "black", "marker": "D", "mfc": "black"},
    {"color": "black", "marker": "D", "mfc": "white"},
)


def draw_estimates(axes, analyses, styles, field, share):
    """One estimate against sparsity, on the curve 1 / (1 - share * sparsity) that it follows."""
    sparsity = [1 - a.density for a in analyses]
    curve = np.linspace(min(sparsity), max(sparsity), 200)
    axes.plot(100 * curve, 1 / (1 - share * curve), color="0.6", lw=1, zorder=1)
    for a in analyses:
        mark = styles[a.label].mark
        axes.plot(100 * (1 - a.density), getattr(a, field), ls="none", ms=6, label=a.label, **mark)
    axes.axhline(1, color="black", lw=0.8, zorder=0.5)
    axes.yaxis.set_major_formatter("{x:.5g}x")


def draw_measured(axes, content):
    """Measured speed-ups with their intervals; returns their handles, one a kind of positions."""
    handles = []
    for point, look in zip(content["points"], MEASURED, strict=False):
        for _, summary, gain in measured_rows(point):
            ends = [gain[end] or gain["mean"] for end in ("low", "high")]
            error = np.abs(np.subtract(ends, gain["mean"]))[:, None]
            x = 100 * (1 - summary["density"])
            axes.errorbar(x, gain["mean"], yerr=error, ms=4, capsize=2, **look)
        name = f"measured, {point['positions']} positions"
        handles.append(Line2D([], [], ls="none", ms=4, label=name, **look))
    return handles


@matplotlib.rc_context(LOOK)
def plot_tradeoff(analyses, content=None):
    """Sparsity against the estimated speed-up of attention and of the whole step, as a Figure.

    content: of a study of patterns, whose measured speed-ups of the step are drawn over them.
    """
    share, styles = analyses[0].attention_share, arm_styles([a.label for a in analyses])
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    draw_estimates(top, analyses, styles, "attention_speedup", 1)
    draw_estimates(bottom, analyses, styles, "step_speedup", share)
    handles = top.get_legend_handles_labels()[0]
    top.set_ylabel("attention alone,\nestimated speed-up")
    bottom.set_ylabel("whole step,\nestimated speed-up")
    text = f"{analyses[0].model}. Attention's share of the FLOPs, full: {share:.2%}. "
    text += f"Lines: Amdahl's law. {ESTIMATE}"
    if content is not None:
        handles += draw_measured(bottom, content)
        bottom.set_ylabel("whole step,\nspeed-up")
        text += f" Black: measured on {content['device_name']}, with 95 % t intervals over blocks."
    bottom.set_xlabel("sparsity: causal pairs left out (%)")
    figure.legend(handles=handles, loc="outside right center")
    caption_below(figure, text)
    return figure

"""What all figures share: the frame, the caption, panels, dots and axes."""

import textwrap

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from analysis.values import MEMORY, paired_trainings
from figures.look import WIDTH

CAPTION_COLUMNS = 134  # characters of 7 pt in WIDTH
TITLE_COLUMNS = 84  # of 9 pt, bold


def empty_figure(height):
    """A figure without axes."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def new_figure(rows, columns, height, **options):
    """A figure and its axes (rows, columns)."""
    fig = empty_figure(height)
    return fig, fig.subplots(rows, columns, squeeze=False, **options)


def caption_below(fig, text):
    """A text under the figure, in as many lines as it needs."""
    text = text.replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.wrap(text, CAPTION_COLUMNS, break_on_hyphens=False)
    fig.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="0.25")
    fig.set_label(text)  # for those who cannot see it


def title_lines(title, mark):
    """The title in as many lines as it needs, and the experiment's mark, if any, in brackets.

    The mark begins a line of its own where it does not fit into the last line of the title.
    """
    lines = textwrap.wrap(title, TITLE_COLUMNS)
    if mark and len(f"{lines[-1]} ({mark})") <= TITLE_COLUMNS:
        lines[-1] += f" ({mark})"
    elif mark:
        lines += textwrap.wrap(f"({mark})", TITLE_COLUMNS)
    return "\n".join(lines)


def count_trainings(data):
    """How many blocks a figure shows, and how many trainings failed, for its caption."""
    counts = {arm: len(data.ok[arm]) for arm in data.arms}
    most = max(counts.values())
    text = f"{most} blocks." if most > 1 else "1 block: no bands, no intervals."
    fewer = ", ".join(f"{arm}: {n}" for arm, n in counts.items() if n < most)
    if fewer:
        text = f"{most} blocks ({fewer}); two arms are compared over the blocks of both."
    failed = len(data.started) - sum(counts.values())
    return text + (f" Left out: {failed} failed." if failed else "")


def handles_of(styles):
    """The handles of a legend for {arm: ArmStyle}, a list."""
    return [Line2D([], [], **s.line, marker=s.marker, label=arm) for arm, s in styles.items()]


def finish(fig, data, title, caption, arms=None, extra=()):
    """Title and legend of the arms above, caption below; constrained layout makes room for both.

    The title says what is compared, and marks a partial experiment.
    """
    handles = [*handles_of({arm: data.styles[arm] for arm in arms or data.arms}), *extra]
    title = f"{title}: {data.compared}"
    lines = title_lines(title, data.mark)
    look = {"ncols": min(len(handles), 5), "handlelength": 3, "alignment": "left"}
    look |= {"title": lines, "title_fontproperties": {"weight": "bold", "size": 9}}
    legend = fig.legend(handles=handles, loc="outside upper left", **look)
    if data.mark:
        legend.get_title().set_color("#B00000")
    caption_below(fig, f"{caption} {count_trainings(data)} {data.setting}")
    fig.set_label(f"{title}. {fig.get_label()}")
    return fig


def fill_panel(ax, data, metrics, draw, compared=True):
    """Call ``draw(ax, data, *metrics)`` for a panel, or write in it why nothing can be drawn.

    compared: whether the panel compares arms, and so needs two of them and a block of all.
    """
    missing = [metric.name for metric in metrics if not data.has(metric)]
    if missing:
        text = f"{missing[0]}: not measured in every training"
    elif compared and len(data.arms) < 2:
        text = "one arm: nothing to compare"
    elif compared and not paired_trainings(data.ok, data.arms):
        text = "no block is complete in every arm"
    else:
        draw(ax, data, *metrics)
        return
    ax.set_axis_off()
    ax.text(0.5, 0.5, textwrap.fill(text, 40), transform=ax.transAxes, ha="center", va="center")


def dots(ax, x, y, style, arm, alpha=0.6):
    """A dot for each training."""
    look = {"color": style.color, "marker": style.marker, "alpha": alpha}
    ax.scatter(x, y, **look, s=14, linewidths=0, zorder=3, label=arm)


def metric_axis(axis, metric):
    """Name an axis, in short lines where it stands upright, and group its thousands."""
    name = f"{metric.name} ({metric.unit})"
    axis.set_label_text(textwrap.fill(name, 18) if axis.axis_name == "y" else name)
    if metric is MEMORY:
        axis.set_major_formatter("{x:,.12g}")


def length_axis(ax, lengths):
    """A logarithmic horizontal axis with a tick at each of the sorted sequence lengths."""
    ax.set_xscale("log")
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=30 if len(lengths) > 4 else 0)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)  # ticks alone would let 1 in


def log_axis(ax, unit, ticks=(1, 2, 5)):
    """A logarithmic vertical axis; unit: a format of x or a formatter."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=ticks))
    ax.yaxis.set_major_formatter(unit)
    ax.yaxis.set_minor_locator(NullLocator())

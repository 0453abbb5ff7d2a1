"""What several figures share: frames, captions, rows of arms, points with intervals."""

import textwrap

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from analysis.values import paired_trainings
from figures.data import MEMORY, SPEED
from figures.look import CAPTION_COLUMNS, WIDTH


def new_figure(data, rows, columns, height, **options):
    """A figure and its axes (rows, columns), with the mark of a partial experiment."""
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    if data.partial:
        fig.suptitle(data.partial, x=0.99, ha="right", color="#B00000", weight="bold", fontsize=9)
    return fig, fig.subplots(rows, columns, squeeze=False, **options)


def caption_below(fig, text):
    """A text under the figure, in as many lines as it needs."""
    text = text.replace(" %", "\N{NO-BREAK SPACE}%")
    columns = int(CAPTION_COLUMNS * fig.get_figwidth() / WIDTH)
    lines = textwrap.wrap(text, columns, break_on_hyphens=False)
    fig.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="0.25")


def count_trainings(data):
    """The n of the caption, and what was left out."""
    counts = {arm: len(data.ok[arm]) for arm in data.arms}
    most = max(counts.values())
    if min(counts.values()) < most:
        fewer = ", ".join(f"{arm}: {n}" for arm, n in counts.items() if n < most)
        text = f"{most} blocks ({fewer}); two arms are compared over the blocks of both."
    else:
        text = f"{most} blocks." if most > 1 else "1 block: no bands, no intervals."
    failed = len(data.started) - sum(counts.values())
    return text + (f" Left out: {failed} failed." if failed else "")


def finish(fig, data, caption, arms=None, extra=()):
    """Legend of the arms above, caption below; constrained layout makes room for both."""
    styles = {arm: data.styles[arm] for arm in arms or data.arms}
    handles = [Line2D([], [], **s.line, marker=s.marker, label=arm) for arm, s in styles.items()]
    handles += extra
    columns = min(len(handles), 5)
    fig.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3)
    caption_below(fig, f"{caption} {count_trainings(data)} {data.setting}")
    return fig


def missing_note(ax, data, metric, compared=True):
    """Say in a panel why it stays empty; False where there is something to draw."""
    if not data.has(metric):
        text = f"{metric.name}: not measured in every training"
    elif compared and len(data.arms) < 2:
        text = "one arm: nothing to compare"
    elif compared and not paired_trainings(data.ok, data.arms):
        text = "no block is complete in every arm"
    else:
        return False
    ax.set_axis_off()
    ax.text(0.5, 0.5, textwrap.fill(text, 40), transform=ax.transAxes, ha="center", va="center")
    return True


def fill_panels(axes, data, metrics, draw, compared=True):
    """``draw(ax, data, metric)`` in each metric's panel, or why there is nothing to draw."""
    for ax, metric in zip(axes, metrics, strict=True):
        if not missing_note(ax, data, metric, compared):
            draw(ax, data, metric)


def name_rows(ax, names):
    """A row for each name, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")


def side_text(ax, y, text, offset=0):
    """Text right of the axes, level with y; ``offset`` in points makes a second column."""
    place = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
    look = {"va": "center", "fontsize": 7, "annotation_clip": False}
    ax.annotate(text.replace("-", "−"), (1.02, y), (offset, 0), **place, **look)


def dots(ax, x, y, style, arm, alpha=0.6):
    """A dot for each training."""
    ax.scatter(x, y, **style.mark, s=14, alpha=alpha, linewidths=0, zorder=3, label=arm)


def whiskers(interval):
    """An ``Interval`` as matplotlib's errorbar wants it: (2, 1) distances, or None."""
    if interval.low is None:
        return None
    return [[interval.mean - interval.low], [interval.high - interval.mean]]


def mean_point(ax, x, y, style, arm, xerr=None, yerr=None):
    """A mean with its whiskers, in the arm's colour and marker, above everything else."""
    look = {"mec": "black", "ms": 6, "capsize": 2.5, "zorder": 5, "ls": "none"}
    ax.errorbar(x, y, xerr=xerr, yerr=yerr, **style.mark, **look, label=f"{arm} mean")


def row_of_values(ax, y, values, mean, style, arm):
    """Every training's value in a row, and below it their mean, an ``Interval``."""
    dots(ax, values, [y - 0.15] * len(values), style, arm)
    mean_point(ax, mean.mean, y + 0.15, style, arm, xerr=whiskers(mean))


def metric_axis(axis, metric):
    """Name an axis, in short lines where it stands upright, and group its thousands."""
    name = f"{metric.name} ({metric.unit})"
    axis.set_label_text(textwrap.fill(name, 18) if axis.axis_name == "y" else name)
    if metric in (SPEED, MEMORY):
        axis.set_major_formatter("{x:,.12g}")


def length_axis(ax, lengths):
    """A logarithmic horizontal axis with a tick at each of the sorted sequence lengths."""
    ax.set_xscale("log")
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=30 if len(lengths) > 4 else 0)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)  # ticks alone would let 1 in


def log_axis(ax, unit):
    """A logarithmic vertical axis; unit: a format of x or a formatter."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(unit)
    ax.yaxis.set_minor_locator(NullLocator())

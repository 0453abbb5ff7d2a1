"""What several figures share: frames, captions, ticks, points with intervals."""

import textwrap

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.data import went_well
from figures.look import CAPTION_COLUMNS, MEAN, SIDE_TEXT, WIDTH


# --- parts of figures --------------------------------------------------------------------------
def new_figure(data, rows, columns, height, **options):
    """A figure and its axes (rows, columns), with the mark of a partial experiment."""
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    if data.partial:
        fig.suptitle(data.partial, x=0.99, ha="right", color="#B00000", weight="bold", fontsize=9)
    return fig, fig.subplots(rows, columns, squeeze=False, **options)


def count_runs(data):
    """The n of the caption, and what was left out."""
    counts = {arm: len(data.ok[arm]) for arm in data.arms}
    most = max(counts.values())
    if len(set(counts.values())) == 1:
        text = f"n = {most} run{'s' * (most > 1)} per arm"
    else:
        text = "n = " + ", ".join(f"{n} {arm}" for arm, n in counts.items())
    text += ": no bands, no intervals." if most == 1 else "."
    if data.pairs and set(counts.values()) != {data.pairs}:
        text += f" Paired: {data.pairs} block{'s' * (data.pairs > 1)} complete in every arm."
        text += " Ratios: blocks complete in their two arms."
    failed = sum(not went_well(run) for _, run in data.launches)
    return text + (f" Left out: {failed} failed (see the per-run figure)." if failed else "")


def finish(fig, data, caption, arms=None, extra=()):
    """Legend of the arms above, caption below; constrained layout makes room for both."""
    styles = {arm: data.styles[arm] for arm in arms or data.arms}
    handles = [Line2D([], [], **s.line, marker=s.marker, label=arm) for arm, s in styles.items()]
    handles += extra
    columns = min(len(handles), 6)
    fig.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3)
    lines = textwrap.wrap(
        f"{caption} {count_runs(data)} {data.setting}", CAPTION_COLUMNS, break_on_hyphens=False
    )
    fig.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="0.25")
    return fig


def note(ax, text):
    """An empty panel that says why it is empty."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, textwrap.fill(text, 40), transform=ax.transAxes, ha="center", va="center")


def why_missing(data, metric, compare=True):
    """Why a panel of this metric stays empty, or ""."""
    if not data.has(metric):
        return f"{metric.name}: not measured in every run"
    if compare and len(data.arms) < 2:
        return "one arm: nothing to compare"
    return "no block is complete in every arm" if compare and not data.pairs else ""


def arm_ticks(ax, data, labels=None):
    ax.set_xticks(range(len(data.arms)), labels or data.arms)
    ax.set_xlim(-0.5, len(data.arms) - 0.5)
    ax.grid(False, axis="x")


def mean_point(ax, x, y, style, label, xerr=None):
    """A mean with its interval, in the arm's colour and marker, above everything else."""
    errors = {"xerr": xerr, "yerr": y.error}
    ax.errorbar(x, y.center, **errors, **style.mark, **MEAN, ls="none", label=f"{label} mean")


def dots(ax, x, y, style, **options):
    options = {"s": 14, "alpha": 0.6, "linewidths": 0, "zorder": 3} | options
    ax.scatter(x, y, **style.mark, **options)


def axis_label(metric):
    text = f"{metric.name} ({metric.unit})"
    return text if len(text) < 20 else text.replace(", ", ",\n").replace(" (", "\n(")


def side_text(ax, y, text, offset=0):
    """Text right of the axes, level with y; ``offset`` in points makes a second column."""
    place = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
    ax.annotate(text, (1.02, y), (offset, 0), **place, **SIDE_TEXT)


def shade(ax, x, low, high, style, arm):
    ax.fill_between(x, low, high, color=style.color, alpha=0.2, lw=0, label=f"{arm} band")

"""The figures of the two studies: what the arms take over the length, and patterns' trade-offs."""

import textwrap

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.values import ordered_arms
from figures.look import CAPTION_COLUMNS, FAILED, LOOK, MARGIN, WIDTH, arm_styles, save_figure
from studies.measured import equal_seconds, equal_tokens, pareto_front
from studies.summary import NO_ROOM
from studies.tables import points_of_kinds, setting

LENGTH_PANELS = {
    "step_ms": ("step time", lambda ms, _: EngFormatter(unit="s", sep=" ")(ms / 1e3)),
    "tokens_per_second": ("tokens/s", EngFormatter(sep=" ")),
    "peak_memory_mb": ("peak memory", "{x:,.0f} MB"),
}
LIMIT = {"color": "black", "ls": "--", "lw": 1}
PATTERN_PANELS = (
    ("equal tokens", "validation", "times as fast as fused"),
    ("equal seconds", "training", "times as fast as fused"),
    ("over training", "training", "tokens seen"),
)
# of patterns: by window; by the rest of the name
COLORS = "black", *sns.color_palette("colorblind")
MARKERS = "*so^Dv<>"
LINES = "-", "--", "-", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (8, 2)), ":"


@matplotlib.rc_context(LOOK)
def plot_study(content):
    """The study's figures: {file name without suffix: Figure}."""
    if content["study"] == "patterns":
        return {"pattern_pareto": _plot_pareto(content)}
    return {"length_scaling": _plot_scaling(content), "length_quality": _plot_quality(content)}


def save_figures(figures, plots_dir):
    """Write every figure as .png and .pdf; returns the paths."""
    saved = [save_figure(figure, plots_dir, name) for name, figure in figures.items()]
    return [path for paths in saved for path in paths]


def _bars(estimates):
    """Means (n,) and how far their intervals reach down and up (2, n), NaN where there is none."""
    values = [[estimate[key] for key in ("mean", "low", "high")] for estimate in estimates]
    mean, low, high = np.array(values, dtype=float).T
    return mean, np.array([mean - low, high - mean])


def _caption(figure, content, text):
    """The text, and the setting of the study, below a figure."""
    if any(point.get("mixed") for point in content["points"]):
        text += " MIXED trainings (see the table)."
    columns = int(CAPTION_COLUMNS * figure.get_figwidth() / WIDTH)
    lines = textwrap.wrap(f"{text} {setting(content)}", columns, break_on_hyphens=False)
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="0.25")


def _plot_scaling(content):
    """Step time, tokens/s and peak memory over the length, log-log, a row a kind of positions."""
    kinds = points_of_kinds(content)
    arms = content["points"][0]["arms"]
    styles = {arm: style for arm, style in arm_styles(arms).items() if arm in arms}
    figure = Figure(figsize=(7.2, 0.9 + 2.2 * len(kinds)), layout="constrained")
    rows = figure.subplots(len(kinds), len(LENGTH_PANELS), squeeze=False, sharex=True, sharey="col")
    for (kind, points), axes in zip(kinds.items(), rows, strict=True):
        axes[0].set_ylabel(f"{kind} positions")
        for ax, key in zip(axes, LENGTH_PANELS, strict=True):
            _scaling_panel(ax, points, key, styles)
    # after the bars, whose ends matplotlib would take for logarithms
    for column, (name, unit) in zip(rows.T, LENGTH_PANELS.values(), strict=True):
        column[0].set_title(name)
        for ax in column:
            _log_lengths(ax, content["points"])
            _log_values(ax, unit)
        column[-1].set_xlabel("sequence length S (tokens)")
    handles = [
        Line2D([], [], **style.line, marker=style.marker, label=arm)
        for arm, style in styles.items()
    ]
    handles.append(Line2D([], [], **LIMIT, label="fused at the FLOP limit"))
    if any(arm[NO_ROOM] for point in content["points"] for arm in point["arms"].values()):
        handles.append(Line2D([], [], **FAILED, label="out of memory"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    _caption(figure, content, "Bars: 95 % t interval.")
    return figure


def _scaling_panel(ax, points, key, styles):
    """Every arm's means over the length, fused at the FLOP limit, and where memory ran out."""
    for arm, style in styles.items():
        _line_with_bars(ax, {p["seq_len"]: p["arms"][arm][key] for p in points}, style)
        # in the margin: below where more is better, else above
        y = 0.05 if key == "tokens_per_second" else 0.95
        lost = [point["seq_len"] for point in points if point["arms"][arm][NO_ROOM]]
        place = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        if lost:
            ax.plot(lost, [y] * len(lost), **FAILED | {"color": style.color}, **place)
    measured = [point for point in points if "fused" in styles and point["arms"]["fused"][key]]
    if key != "peak_memory_mb":
        lengths = [point["seq_len"] for point in measured]
        ax.plot(lengths, [_limit(point, key) for point in measured], **LIMIT, zorder=2)


def _log_lengths(ax, points):
    lengths = sorted({point["seq_len"] for point in points})
    ax.set_xscale("log")
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=30 if len(lengths) > 4 else 0)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)  # ticks alone would let 1 in


def _log_values(ax, unit):
    ax.set_yscale("log")
    ax.margins(y=0.15)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(unit)
    ax.yaxis.set_minor_formatter(NullFormatter())


def _line_with_bars(ax, estimates, style):
    """Means over the length with their intervals, of {S: estimate, None where there is none}."""
    measured = {length: estimate for length, estimate in estimates.items() if estimate}
    if measured:
        means, ends = _bars(measured.values())
        look = {**style.line, "marker": style.marker, "ms": 4.5, "lw": 1.3, "capsize": 2}
        ax.errorbar(list(measured), means, yerr=ends, **look)


def _limit(point, key):
    """What fused would reach if its time followed the FLOPs that the pattern leaves."""
    fused = point["arms"]["fused"][key]["mean"]
    return fused / point["step_limit"] if key == "step_ms" else fused * point["step_limit"]


def _plot_quality(content):
    """Validation loss of window minus fused over the length, with its interval and the margin."""
    kinds, margin = points_of_kinds(content), content["config"]["equivalence_margin"]
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for ax, (kind, points) in zip(axes, kinds.items(), strict=True):
        _log_lengths(ax, points)
        ax.axhspan(-margin, margin, **MARGIN)
        ax.axhline(0, color="black", lw=0.8)
        contrasts = {p["seq_len"]: p["contrasts"].get("window/fused") for p in points}
        losses = {length: found and found["val_loss"] for length, found in contrasts.items()}
        _line_with_bars(ax, losses, arm_styles(())["window"])
        ax.set(title=f"{kind} positions", xlabel="sequence length S (tokens)")
    axes[0].set_ylabel("validation loss,\nwindow - fused (nats/token)")
    text = f"Bars: 95 % t interval, paired by block. Shaded: margin of {margin:g} nats."
    _caption(figure, content, text)
    return figure


def _plot_pareto(content):
    """Speed-up against loss at equal tokens and at equal seconds, and loss over training."""
    kinds = points_of_kinds(content)
    looks = _looks(ordered_arms({arm for point in content["points"] for arm in point["arms"]}))
    figure = Figure(figsize=(10.0, 0.8 + 3.0 * len(kinds)), layout="constrained")
    rows = figure.subplots(len(kinds), 3, squeeze=False)
    for (kind, (point,)), axes in zip(kinds.items(), rows, strict=True):
        _pareto_panel(axes[0], equal_tokens(point), looks)
        _pareto_panel(axes[1], equal_seconds(point), looks)
        _curve_panel(axes[2], point["curves"], looks)
        for ax, (when, loss, x) in zip(axes, PATTERN_PANELS, strict=True):
            ax.set(title=f"{when}, {kind} positions", xlabel=x)
            ax.set_ylabel(f"{loss} loss - fused (nats/token)")
    handles = [Line2D([], [], label=arm, **look) for arm, look in looks.items()]
    wide = {"ncols": min(9, len(handles)), "handlelength": 3.2}  # to tell the dashes apart
    figure.legend(handles=handles, loc="outside upper center", **wide)
    _caption(
        figure,
        content,
        f"S = {point['seq_len']:,}. Lower right is better. Rings, and the dashes between them: "
        "Pareto front of the means. d0: no far keys. Bars and bands: 95 % t interval, paired by "
        "block, cut where they leave the panel.",
    )
    return figure


def _looks(arms):
    """{arm: how it looks}: colour by window, marker and line by the rest of the pattern's name."""
    parts = [arm.partition("-") for arm in arms]
    windows = list(dict.fromkeys(window for window, _, _ in parts))
    rests = list(dict.fromkeys(rest for _, _, rest in parts))
    looks = {}
    for arm, (window, _, rest) in zip(arms, parts, strict=True):
        color = COLORS[windows.index(window) % len(COLORS)]
        nth = rests.index(rest)
        look = {"marker": MARKERS[nth % len(MARKERS)], "ls": LINES[nth % len(LINES)]}
        looks[arm] = look | {"color": color, "mfc": "white" if rest == "d0" else color}
    return looks


def _pareto_panel(ax, estimates, looks):
    """Every arm with both intervals; the front as rings and a line through them."""
    arms = list(estimates)
    x, xerr = _bars([gain for gain, _ in estimates.values()])
    y, yerr = _bars([loss for _, loss in estimates.values()])
    ax.plot(x, y, ls="none")
    _freeze(ax, 0.2, 0.5)
    ax.axhline(0, color="0.6", lw=0.7)
    ax.axvline(1, color="0.6", lw=0.7)
    small = {"ls": "none", "ms": 5, "elinewidth": 0.8, "capsize": 1.5, "zorder": 3}
    for i, arm in enumerate(arms):
        ax.errorbar(x[i], y[i], yerr[:, [i]], xerr[:, [i]], **looks[arm] | small)
    front = [arms.index(arm) for arm in pareto_front(estimates)]
    rings = {"marker": "o", "ms": 11, "mfc": "none", "mec": "black"}
    ax.plot(x[front], y[front], color="black", lw=0.8, ls="--", zorder=2, **rings)


def _freeze(ax, *room):
    """Limits for the means that are drawn, and room beside; of long intervals no more is shown."""
    ax.margins(*room)
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())


def _curve_panel(ax, curves, looks):
    """Loss difference over training, a line a pattern."""
    ax.axhline(0, color="black", lw=0.8)
    for arm, curve in curves.items():
        ax.plot(curve["tokens"], curve["mean"], lw=1.2, **looks[arm] | {"marker": None})
    _freeze(ax, 0.02, 0.3)
    for arm, curve in curves.items():
        low, high = np.array([curve["low"], curve["high"]], dtype=float)
        ax.fill_between(curve["tokens"], low, high, color=looks[arm]["color"], alpha=0.12, lw=0)
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.xaxis.set_major_locator(MaxNLocator(4))

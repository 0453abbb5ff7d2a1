"""The figures of the two studies: what the arms take over the length, and patterns' trade-offs."""

from functools import partial

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from analysis.values import ordered_arms
from analysis.words import Section, fact_table
from figures.frame import caption_below, handles_of, length_axis, log_axis, new_figure
from figures.look import FAILED, MARGIN, OUR_LOOK, STYLES, arm_styles
from figures.page import Page
from studies.saved import NO_ROOM
from studies.tables import measured_rows, points_of_kinds, setting, study_sections

LENGTH = "sequence length S (tokens)"
# of an arm's summary: title and unit
LENGTH_PANELS = {
    "step_ms": ("step time", "{x:,g} ms"),
    "peak_memory_mb": ("peak memory", "{x:,.0f} MB"),
}
LIMIT = {"color": "black", "ls": "--", "lw": 1}


@OUR_LOOK
def plot_study(content):
    """The study's figures: {file name without suffix: Figure}."""
    if content["study"] == "patterns":
        return {"pattern_pareto": _plot_pareto(content)}
    return {"length_scaling": _plot_scaling(content), "length_quality": _plot_quality(content)}


def study_page(content):
    """A study as a Page."""
    facts = content["config"] | {key: content[key] for key in ("device_name", "torch")}
    return Page(
        f"Study of {content['study']}",
        study_sections(content),
        [Section("Configuration and machine", [fact_table(facts)])],
        partial(plot_study, content),
    )


def error_bars(estimates):
    """Means (n,) and how far their intervals reach down and up (2, n), NaN where there is none."""
    values = [(estimate["mean"], estimate["low"], estimate["high"]) for estimate in estimates]
    mean, low, high = np.array(values, dtype=float).T
    return mean, np.array([mean - low, high - mean])


def _caption(figure, content, text):
    """The text, and the setting of the study, below a figure."""
    if any(point["mixed"] for point in content["points"]):
        text += " MIXED trainings (see the table)."
    caption_below(figure, f"{text} {setting(content)}")


def _plot_scaling(content):
    """Step time and peak memory over the length, log-log, a row a kind of positions."""
    kinds, arms = points_of_kinds(content), content["points"][0]["arms"]
    lengths = sorted({point["seq_len"] for point in content["points"]})
    styles, sizes = arm_styles(arms), (len(kinds), len(LENGTH_PANELS), 0.9 + 2.2 * len(kinds))
    figure, rows = new_figure(*sizes, sharex=True, sharey="col")
    for column, (key, (name, unit)) in zip(rows.T, LENGTH_PANELS.items(), strict=True):
        for ax, points in zip(column, kinds.values(), strict=True):
            _scaling_panel(ax, points, key, styles)
        for ax in column:  # after the bars, whose ends matplotlib would take for logarithms
            length_axis(ax, lengths)
            log_axis(ax, unit)
        column[0].set_title(name)
        column[-1].set_xlabel(LENGTH)
    for ax, kind in zip(rows[:, 0], kinds, strict=True):
        ax.set_ylabel(f"{kind} positions")
    handles = handles_of(styles)
    handles.append(Line2D([], [], **LIMIT, label="fused at the FLOP limit"))
    if any(arm[NO_ROOM] for point in content["points"] for arm in point["arms"].values()):
        handles.append(Line2D([], [], **FAILED, label="out of memory"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    _caption(figure, content, "Bars: 95 % t interval.")
    return figure


def _scaling_panel(ax, points, key, styles):
    """Every arm's means over the length, where memory ran out, and fused at the FLOP limit."""
    margin = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    for arm, style in styles.items():
        _line_with_bars(ax, {p["seq_len"]: p["arms"][arm][key] for p in points}, style)
        lost = [point["seq_len"] for point in points if point["arms"][arm][NO_ROOM]]
        if lost:  # at the top, where the worst values would be
            ax.plot(lost, [0.95] * len(lost), **FAILED | {"color": style.color}, **margin)
    limits = {}  # what fused would take if its time followed the FLOPs that the pattern leaves
    for point in points:
        fused = point["arms"].get("fused", {}).get("step_ms")
        if fused:
            limits[point["seq_len"]] = fused["mean"] / point["step_limit"]
    if key == "step_ms":
        ax.plot(limits.keys(), limits.values(), **LIMIT, zorder=2)
    ax.margins(y=0.15)


def _line_with_bars(ax, estimates, style):
    """Means over the length with their intervals, of {S: estimate, None where there is none}."""
    measured = {length: estimate for length, estimate in estimates.items() if estimate}
    if measured:
        look = {**style.line, "marker": style.marker, "ms": 4.5, "lw": 1.3, "capsize": 2}
        ax.errorbar(list(measured), *error_bars(measured.values()), **look)


def _plot_quality(content):
    """Validation loss of window minus fused over the length, with its interval and the margin."""
    kinds, margin = points_of_kinds(content), content["config"]["equivalence_margin"]
    figure, (axes,) = new_figure(1, len(kinds), 3.0, sharey=True)
    for ax, (kind, points) in zip(axes, kinds.items(), strict=True):
        ax.axhspan(-margin, margin, **MARGIN)
        ax.axhline(0, color="black", lw=0.8)
        contrasts = {p["seq_len"]: p["contrasts"].get("window/fused") for p in points}
        losses = {length: found and found["val_loss"] for length, found in contrasts.items()}
        _line_with_bars(ax, losses, STYLES["window"])
        length_axis(ax, [point["seq_len"] for point in points])
        ax.set(title=f"{kind} positions", xlabel=LENGTH)
    axes[0].set_ylabel("validation loss,\nwindow - fused (nats/token)")
    text = f"Bars: 95 % t interval, paired by block. Shaded: margin of {margin:g} nats."
    _caption(figure, content, text)
    return figure


def _plot_pareto(content):
    """Speed-up against validation loss, and training loss over the training."""
    kinds = points_of_kinds(content)
    arms = ordered_arms({arm for point in content["points"] for arm in point["arms"]})
    looks = arm_styles(arms)
    figure, rows = new_figure(len(kinds), 2, 1.0 + 2.8 * len(kinds))
    for (kind, (point,)), (left, right) in zip(kinds.items(), rows, strict=True):
        _pareto_panel(left, point, looks)
        left.set(title=f"{kind} positions", xlabel="times as fast as fused")
        left.set_ylabel("validation loss - fused (nats/token)")
        _curve_panel(right, point["curves"], looks)
        right.set(title=f"{kind} positions, over training", xlabel="tokens seen")
        right.set_ylabel("training loss - fused (nats/token)")
    handles = handles_of(looks)
    wide = {"ncols": min(5, len(handles)), "handlelength": 3.2}  # to tell the dashes apart
    figure.legend(handles=handles, loc="outside upper center", **wide)
    _caption(
        figure,
        content,
        f"S = {point['seq_len']:,}. Lower right is better. Rings, and the dashes between them: "
        "Pareto front of the means. d0: no far keys. Bars and bands: 95 % t interval, paired by "
        "block, cut where they leave the panel.",
    )
    return figure


def pareto_front(means):
    """The arms of {arm: (speed-up, loss)} that no other beats in both, slowest first."""
    front = []
    for arm, (speed, loss) in means.items():
        as_good = {other for other in means.values() if other[0] >= speed and other[1] <= loss}
        if as_good == {(speed, loss)}:
            front.append(arm)
    return sorted(front, key=means.get)


def _pareto_panel(ax, point, looks):
    """Every arm with both intervals; the front as rings and a line through them."""
    rows, means = measured_rows(point), {"fused": (1, 0)}
    for arm, summary, gain in rows:
        means[arm] = gain["mean"], summary["contrast"]["val_loss"]["mean"]
    ax.plot(*np.transpose(list(means.values())), ls="none")
    _freeze(ax, 0.2, 0.5)
    ax.axhline(0, color="0.6", lw=0.7)
    ax.axvline(1, color="0.6", lw=0.7)
    ax.plot(1, 0, **looks["fused"].line, marker=looks["fused"].marker)
    small = {"linestyle": "none", "ms": 5, "elinewidth": 0.8, "capsize": 1.5, "zorder": 3}
    for arm, summary, gain in rows:
        (x, x_ends), (y, y_ends) = map(error_bars, ([gain], [summary["contrast"]["val_loss"]]))
        look = {"color": looks[arm].color, "marker": looks[arm].marker}
        ax.errorbar(x, y, y_ends, x_ends, **look, **small)
    front = [means[arm] for arm in pareto_front(means)]
    rings = {"marker": "o", "ms": 11, "mfc": "none", "mec": "black"}
    ax.plot(*np.transpose(front), color="black", lw=0.8, ls="--", zorder=2, **rings)


def _freeze(ax, *room):
    """Limits for the means that are drawn, and room beside; of long intervals no more is shown."""
    ax.margins(*room)
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())


def _curve_panel(ax, curves, looks):
    """Loss difference over training, a line a pattern."""
    ax.axhline(0, color="black", lw=0.8)
    for arm, curve in curves.items():
        ax.plot(curve["tokens"], curve["mean"], lw=1.2, **looks[arm].line)
    _freeze(ax, 0.02, 0.3)
    for arm, curve in curves.items():
        low, high = np.array([curve["low"], curve["high"]], dtype=float)
        ax.fill_between(curve["tokens"], low, high, color=looks[arm].color, alpha=0.12, lw=0)
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.xaxis.set_major_locator(MaxNLocator(4))

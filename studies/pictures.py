"""The figures of the two studies: what the arms take over the length, and patterns' trade-offs."""

from functools import partial

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from analysis.answers import FULL_ATTENTION
from analysis.values import ordered_arms
from analysis.words import Section, fact_table
from figures.frame import caption_below, handles_of, length_axis, log_axis, new_figure
from figures.look import MARGIN, OUR_LOOK, arm_styles
from figures.page import Page
from studies.tables import measured_rows, points_of_kinds, setting, speed_up, study_sections

LENGTH = "sequence length S (tokens)"
LIMIT = {"ls": "--", "lw": 1, "alpha": 0.7}


@OUR_LOOK
def plot_study(content):
    """The study's figures: {file name without suffix: Figure}."""
    if content["study"] == "patterns":
        return {"pattern_pareto": _plot_pareto(content)}
    return {"length_scaling": _plot_lengths(content)}


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


def _plot_lengths(content):
    """Every arm's speed and loss against fused over the length; a row for a kind of positions."""
    kinds, margin = points_of_kinds(content), content["config"]["equivalence_margin"]
    pairs = dict.fromkeys(pair for point in content["points"] for pair in point["contrasts"])
    arms = [pair.removesuffix("/fused") for pair in pairs if pair.endswith("/fused")]
    lengths = sorted({point["seq_len"] for point in content["points"]})
    styles = arm_styles(arms)
    figure, rows = new_figure(len(kinds), 2, 1.1 + 2.2 * len(kinds), sharex=True, sharey="col")
    for (kind, points), (left, right) in zip(kinds.items(), rows, strict=True):
        left.axhline(1, color="black", lw=0.8)
        right.axhspan(-margin, margin, **MARGIN)
        right.axhline(0, color="black", lw=0.8)
        for arm, style in styles.items():
            found = {p["seq_len"]: p["contrasts"].get(f"{arm}/fused") for p in points}
            found = {length: contrast for length, contrast in found.items() if contrast}
            gains = {length: speed_up(contrast["time"]) for length, contrast in found.items()}
            _line_with_bars(left, gains, style)
            losses = {length: contrast["val_loss"] for length, contrast in found.items()}
            _line_with_bars(right, losses, style)
            _limit_line(left, points, arm, style)
        left.set_ylabel(f"{kind} positions")
    for ax in rows.flat:  # after the bars, whose ends matplotlib would take for logarithms
        length_axis(ax, lengths)
    log_axis(rows[0, 0], "{x:,.2g}", (1, 1.5, 2, 3, 5, 7))
    rows[0, 0].set_title("times as fast as fused")
    rows[0, 1].set_title("validation loss - fused (nats/token)")
    for ax in rows[-1]:
        ax.set_xlabel(LENGTH)
    handles = handles_of(styles)
    handles.append(Line2D([], [], **LIMIT, color="0.5", label="limit by the FLOPs left"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    text = f"Bars: 95 % t interval, paired by block. Shaded: margin of {margin:g} nats."
    _caption(figure, content, text)
    return figure


def _limit_line(ax, points, arm, style):
    """How many times as fast a step would be if its time followed the FLOPs that are left."""
    if arm in FULL_ATTENTION:
        return
    lengths = [point["seq_len"] for point in points]
    limits = [point["arms"][arm].get("step_limit") or point["step_limit"] for point in points]
    ax.plot(lengths, limits, **LIMIT, color=style.color, zorder=1, label=f"_{arm} limit")


def _line_with_bars(ax, estimates, style):
    """Means over the length with their intervals, of {S: estimate}."""
    if estimates:
        look = {**style.line, "marker": style.marker, "ms": 4.5, "lw": 1.3, "capsize": 2}
        ax.errorbar(list(estimates), *error_bars(estimates.values()), **look)


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
        x, x_ends = error_bars([gain])
        y, y_ends = error_bars([summary["contrast"]["val_loss"]])
        look = {"color": looks[arm].color, "marker": looks[arm].marker}
        ax.errorbar(x, y, y_ends, x_ends, **look, **small)
    front = [means[arm] for arm in pareto_front(means)]
    rings = {"marker": "o", "ms": 11, "mfc": "none", "mec": "black"}
    ax.plot(*np.transpose(front), color="black", lw=0.8, ls="--", zorder=2, **rings)


def _freeze(ax, *room):
    """Fix the limits to what is drawn so far and some room; long intervals do not widen them."""
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

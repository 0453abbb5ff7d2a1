"""The figures of a study of lengths."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

from figures.look import LOOK, MARGIN, arm_styles, save_figure
from studies.panels import _foot, _kinds, _points_with_bars, _setting
from studies.pareto import _plot_pareto
from studies.summary import NO_ROOM


# --- pictures ----------------------------------------------------------------------------------
def plot_study(content):
    """The study's figures: {file name without suffix: Figure}."""
    with matplotlib.rc_context(LOOK):
        if content["study"] == "patterns":
            return {"pattern_pareto": _plot_pareto(content)}
        return {"length_scaling": _plot_scaling(content), "length_quality": _plot_quality(content)}


def save_figures(figures, plots_dir):
    """Write every figure as .png and .pdf; returns the paths."""
    paths = []
    with matplotlib.rc_context(LOOK):
        for name, figure in figures.items():
            paths += save_figure(figure, plots_dir, name)
    return paths


def _log_lengths(ax, points):
    lengths = sorted({point["seq_len"] for point in points})
    ax.set_xscale("log")
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=30 if len(lengths) > 4 else 0)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)  # ticks alone would let 1 in


PANELS = (
    ("step_ms", "step time", lambda ms, _: EngFormatter(unit="s", sep=" ")(ms / 1e3)),
    ("tokens_per_second", "tokens/s", lambda n, _: EngFormatter(sep=" ")(n)),
    ("peak_memory_mb", "peak memory", lambda mb, _: f"{mb:,.0f} MB"),
)


def _plot_scaling(content):
    """Step time, tokens/s and peak memory over the length, log-log, a row a kind of positions."""
    kinds = _kinds(content)
    figure = Figure(figsize=(7.2, 0.9 + 2.2 * len(kinds)), layout="constrained")
    rows = figure.subplots(len(kinds), len(PANELS), squeeze=False, sharex=True, sharey="col")
    arms = dict.fromkeys(arm for point in content["points"] for arm in point["arms"])
    styles = {arm: style for arm, style in arm_styles(list(arms)).items() if arm in arms}
    for (kind, points), axes in zip(kinds.items(), rows, strict=True):
        for ax, (key, name, unit) in zip(axes, PANELS, strict=True):
            _log_lengths(ax, points)
            ax.set_yscale("log")
            for arm in arms:
                _scaling_line(ax, points, arm, key, styles[arm])
            limit = [
                (p["seq_len"], p["arms"]["fused"][key]["mean"], p["step_limit"])
                for p in points
                if key != "peak_memory_mb" and p["arms"].get("fused", {}).get(key)
            ]
            if limit:
                x, y, gain = map(np.array, zip(*limit, strict=True))
                y = y / gain if key == "step_ms" else y * gain
                ax.plot(x, y, color="black", ls="--", lw=1, zorder=2, label="_limit")
            ax.set_ylim(_extent(content, key))
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(unit)
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.set_title(f"{name}, {kind} positions")
    for ax in rows[-1]:
        ax.set_xlabel("sequence length S (tokens)")
    handles = [
        Line2D([], [], color=s.color, marker=s.marker, ls=s.linestyle, label=arm)
        for arm, s in styles.items()
    ]
    handles.append(Line2D([], [], color="black", ls="--", lw=1, label="fused at the FLOP limit"))
    failed = any(s[NO_ROOM] for p in content["points"] for s in p["arms"].values())
    if failed:
        handles.append(Line2D([], [], color="black", marker="X", ls="", label="out of memory"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    _foot(figure, _setting(content) + "; bars: 95 % t interval")
    return figure


def _extent(content, key):
    """Limits of a logarithmic axis for all means and intervals of ``key``."""
    found = [s[key] for p in content["points"] for s in p["arms"].values() if s[key]]
    ends = [e for f in found for k in ("mean", "low", "high") if (e := f[k]) and e > 0]
    return (min(ends) / 1.5, max(ends) * 1.5) if ends else (1, 10)


def _scaling_line(ax, points, arm, key, style):
    here = [(p["seq_len"], p["arms"][arm][key]) for p in points if p["arms"].get(arm, {}).get(key)]
    if here:
        x, estimates = zip(*here, strict=True)
        _points_with_bars(ax, x, estimates, style, linestyle=style.linestyle)
    lost = [p["seq_len"] for p in points if arm in p["arms"] and p["arms"][arm][NO_ROOM]]
    if lost:  # at the upper edge, or at the lower one where more is better
        y = 0.06 if key == "tokens_per_second" else 0.94
        where = ax.get_xaxis_transform()
        look = {"ms": 7, "color": style.color, "mec": "black", "clip_on": False}
        ax.plot(lost, [y] * len(lost), "X", **look, transform=where, scaley=False)


def _plot_quality(content):
    """Validation loss of window minus fused over the length, with its interval and the margin."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    kinds = _kinds(content)
    axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    style = arm_styles(["window"])["window"]
    for ax, (kind, points) in zip(axes, kinds.items(), strict=True):
        _log_lengths(ax, points)
        found = [
            (p["seq_len"], c["val_loss"])
            for p in points
            if (c := p["contrasts"].get("window/fused")) is not None
        ]
        margin = content["config"]["equivalence_margin"]
        ax.axhspan(-margin, margin, **MARGIN)
        ax.axhline(0, color="black", lw=0.8)
        if found:
            x, estimates = zip(*found, strict=True)
            _points_with_bars(ax, x, estimates, style, linestyle="-")
        ax.set(title=f"{kind} positions", xlabel="sequence length S (tokens)")
    axes[0].set_ylabel("validation loss,\nwindow - fused (nats/token)")
    _foot(
        figure,
        f"{_setting(content)}; bars: 95 % t interval, paired by run; shaded: margin of "
        f"{content['config']['equivalence_margin']:g} nats",
    )
    return figure

"""The figure of a study of patterns: speed against loss, and loss over training."""

import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from studies.panels import _foot, _kinds, _setting
from studies.summary import measured_rows

FAR_MARKERS, FAR_LINES = "o^Dv<>", ("-", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (8, 2)), ":")


def _pattern_looks(content):
    """{arm: how it looks}: colour by window, marker and line by dilation, open without far keys."""
    arms = {arm: s for point in content["points"] for arm, s in point["arms"].items()}
    patterns = {arm: (s["window_size"], s["dilation"]) for arm, s in arms.items() if arm != "fused"}
    windows, dilations = (sorted(set(values)) for values in zip(*patterns.values(), strict=True))
    dilations = [d for d in dilations if d]
    palette = sns.color_palette("colorblind", max(3, len(windows)))
    looks = {"fused": {"color": "black", "marker": "*", "ms": 8, "ls": "-"}}
    for arm, (window, dilation) in patterns.items():
        look = {"color": palette[windows.index(window)], "ms": 5, "ls": "--", "marker": "s"}
        if dilation:
            n = dilations.index(dilation)
            look["marker"] = FAR_MARKERS[n % len(FAR_MARKERS)]
            look["ls"] = FAR_LINES[n % len(FAR_LINES)]
        else:
            look["mfc"] = "white"
        looks[arm] = look
    return looks


def _plot_pareto(content):
    """Speed-up against loss at equal tokens and at equal seconds, and loss over training."""
    kinds = _kinds(content)
    figure = Figure(figsize=(10.0, 0.8 + 3.0 * len(kinds)), layout="constrained")
    rows = figure.subplots(len(kinds), 3, squeeze=False)
    looks = _pattern_looks(content)
    for (kind, points), axes in zip(kinds.items(), rows, strict=True):
        for point in points:
            _pareto_panel(axes[0], point, looks, "pareto", _token_points(point))
            _pareto_panel(axes[1], point, looks, "pareto_seconds", _second_points(point))
            _curve_panel(axes[2], point, looks)
        axes[0].set_title(f"equal tokens, {kind} positions")
        axes[1].set_title(f"equal seconds, {kind} positions")
        axes[2].set_title(f"over training, {kind} positions")
        axes[0].set_ylabel("validation loss - fused (nats/token)")
        axes[1].set_ylabel("training loss - fused (nats/token)")
        axes[2].set_ylabel("training loss - fused (nats/token)")
    rows[-1][0].set_xlabel("times as fast as fused")
    rows[-1][1].set_xlabel("times as fast as fused")
    rows[-1][2].set_xlabel("tokens seen")
    handles = [Line2D([], [], label=arm, **look) for arm, look in looks.items()]
    # long enough to tell the dashes apart
    look = {"ncols": min(9, len(handles)), "handlelength": 3.2}
    figure.legend(handles=handles, loc="outside upper center", **look)
    _foot(
        figure,
        f"{_setting(content)}, S {content['points'][0]['seq_len']:,}; lower right is better; "
        "rings, and the dashes between them: Pareto front of the means; d0: no far keys; bars and "
        "bands: 95 % t interval, paired by run, cut where they leave the panel",
    )
    return figure


def _token_points(point):
    return {arm: (gain, s["contrast"]["val_loss"]) for arm, s, gain in measured_rows(point)}


def _second_points(point):
    equal = (point["equal_seconds"] or {"differences": {}})["differences"]
    return {arm: (gain, equal[arm]) for arm, _, gain in measured_rows(point) if arm in equal}


def _pareto_panel(ax, point, looks, front, estimates):
    """Every pattern with both intervals; the front as rings and a line through them."""
    exact = {"mean": 1.0, "low": None, "high": None}
    estimates = {"fused": (exact, exact | {"mean": 0.0})} | estimates
    ax.axhline(0, color="0.6", lw=0.7)
    ax.axvline(1, color="0.6", lw=0.7)
    for arm, (x, y) in estimates.items():
        bars = {}
        for name, estimate in (("xerr", x), ("yerr", y)):
            if estimate["low"] is not None:
                ends = estimate["mean"] - estimate["low"], estimate["high"] - estimate["mean"]
                bars[name] = [[ends[0]], [ends[1]]]
        look = looks[arm] | {"ls": "none"}
        if point["arms"][arm][front]:
            ax.plot(x["mean"], y["mean"], "o", ms=look["ms"] + 6, mfc="none", mec="black", mew=1)
        ax.errorbar(x["mean"], y["mean"], **bars, **look, elinewidth=0.8, capsize=1.5, zorder=3)
    members = [estimates[arm] for arm in estimates if point["arms"][arm][front]]
    line = sorted((x["mean"], y["mean"]) for x, y in members)
    if len(line) > 1:
        ax.plot(*zip(*line, strict=True), color="black", lw=0.8, ls="--", zorder=2)
    xs, ys = zip(*estimates.values(), strict=True)
    ax.set(xlim=_window_of(xs), ylim=_window_of(ys))


def _window_of(estimates):
    """Limits of an axis: all means, and their intervals as far as the means keep half of it."""
    means = [e["mean"] for e in estimates]
    low, high = min(means), max(means)
    room = 0.5 * max(high - low, 1e-3 * max(abs(low), abs(high), 1e-3))
    ends = [e[k] for e in estimates for k in ("low", "high") if e[k] is not None]
    wide = min([low, *ends]), max([high, *ends])
    return max(wide[0], low - room) - 0.2 * room, min(wide[1], high + room) + 0.2 * room


def _curve_panel(ax, point, looks):
    """Loss difference over training, a line a pattern."""
    ax.axhline(0, color="black", lw=0.8)
    for arm, curve in point["curves"].items():
        look = {"color": looks[arm]["color"], "ls": looks[arm]["ls"]}
        ax.plot(curve["tokens"], curve["mean"], lw=1.2, **look)
        low, high = curve["low"], curve["high"]
        if None not in (*low, *high):
            ax.fill_between(curve["tokens"], low, high, color=look["color"], alpha=0.12, lw=0)
    ax.set_ylim(_window_of([{"mean": m, "low": None, "high": None} for m in _curve_ends(point)]))
    ax.xaxis.set_major_formatter(lambda n, _: EngFormatter(sep=" ")(n))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.margins(x=0.02)


def _curve_ends(point):
    """The largest and the smallest mean difference over training, and 0; with half as much room."""
    values = [0.0, *(m for curve in point["curves"].values() for m in curve["mean"])]
    low, high = min(values), max(values)
    return low - 0.3 * (high - low), high + 0.3 * (high - low)

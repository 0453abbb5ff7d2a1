"""Figures 4 to 6: speed, memory and quality against one another."""

import matplotlib
import numpy as np

from figures.data import LOSSES, MEMORY, SPEED, VAL_LOSS, absolute, relative
from figures.look import GROUPED, JOIN, LOOK, NEUTRAL, in_thousands, number
from figures.pieces import axis_label, dots, finish, mean_point, new_figure, note, why_missing


def emptiest_place(points):
    """Where in an axes an arrow with a word is farthest from all points; both in axes units.

    A place is a corner or, between points that take all four, the middle of the top or the bottom.
    """
    places = [(x, y) for x in (0.13, 0.87, 0.5) for y in (0.82, 0.18)]
    return max(places, key=lambda place: np.hypot(*(points - place).T).min())


def better_arrow(ax, points, direction):
    """An arrow towards better, where there is most room; points in data units."""
    x, y = emptiest_place(ax.transAxes.inverted().transform(ax.transData.transform(points)))
    above = y > 0.5
    center = np.array([x, y + (0.05 if above else -0.05)])  # the word lies towards the middle
    tip, tail = center + 0.06 * np.array(direction), center - 0.06 * np.array(direction)
    arrow = {"arrowstyle": "-|>", "color": "black", "lw": 1.2}
    ax.annotate("", tip, tail, "axes fraction", "axes fraction", arrowprops=arrow)
    offset, va = ((0, -15), "top") if above else ((0, 15), "bottom")
    look = {"ha": "center", "va": va, "fontsize": 7}
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over lines it may meet
    ax.annotate("better", center, offset, "axes fraction", "offset points", bbox=paper, **look)


def label_identical(ax, estimates, unit):
    """A labelled vertical line for each memory that was the same in every run of its arms."""
    same = {}
    for arm, estimate in estimates.items():
        if estimate.identical:
            same.setdefault(float(f"{estimate.center:.9g}"), []).append(arm)
    for level, (x, arms) in enumerate(sorted(same.items())):
        ax.axvline(x, color=NEUTRAL, lw=0.8, ls=":", zorder=1, label=f"_identical {' '.join(arms)}")
        text = f"{', '.join(arms)}: {number(x)}{unit} in every run"
        look = {"ha": "left" if x < np.mean(ax.get_xlim()) else "right", "fontsize": 7}
        place = (ax.get_xaxis_transform(), "offset points")
        ax.annotate(text, (x, 1), (0, 3 + 9 * level), *place, **look)


def cross(ax, x, y, style, arm):
    """A dot per run and the mean with its interval in both directions."""
    dots(ax, x.values, y.values, style, label=arm)
    mean_point(ax, x.center, y, style, arm, xerr=x.error)


def occupied(x, y):
    """Places (points, 2) that an arm's dots and the bars of its cross take."""
    places = [np.stack([x.values, y.values], axis=1)]
    for along, bar in enumerate((x, y)):
        if bar.low is not None:
            line = np.tile([x.center, y.center], (9, 1))
            line[:, along] = np.linspace(bar.low, bar.high, 9)
            places.append(line)
    return np.concatenate(places)


def scatter_panel(ax, data, metrics, estimate, direction):
    """Each arm's cloud with its cross; ``estimate`` is ``absolute`` or ``relative``."""
    clouds = {arm: tuple(estimate(data, arm, metric) for metric in metrics) for arm in data.arms}
    for arm, (x, y) in clouds.items():
        cross(ax, x, y, data.styles[arm], arm)
    ax.margins(0.18)
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    as_measured = estimate is absolute
    if metrics[0] is MEMORY:
        shown = data.arms if as_measured else data.arms[1:]
        label_identical(ax, {a: clouds[a][0] for a in shown}, " MB" if as_measured else "×")
    points = np.concatenate([occupied(x, y) for x, y in clouds.values()])
    better_arrow(ax, points, direction)
    for axis, metric in zip((ax.xaxis, ax.yaxis), metrics, strict=True):
        axis.set_label_text(axis_label(metric) if as_measured else relative_name(data, metric))
        if metric is SPEED and as_measured:
            in_thousands(axis)
        if metric is MEMORY and as_measured:
            axis.set_major_formatter(GROUPED)


def join_pairs(ax, data, metrics):
    arms = sorted(data.arms, key=lambda arm: data.values(arm, metrics[0]).mean())
    ax.plot(*([data.values(arm, m, paired=True) for arm in arms] for m in metrics), **JOIN)


def relative_name(data, metric):
    if metric in LOSSES:
        return f"{metric.name}, difference\nto {data.reference} ({metric.unit})"
    name = "speed-up over" if metric is SPEED else f"{metric.name} relative to"
    return f"{name} {data.reference} (×)"


def tradeoff(data, metrics, direction):
    """Two metrics against each other: as measured, and paired with the reference."""
    fig, ((left, right),) = new_figure(data, 1, 2, 3.9)
    missing = [text for metric in metrics if (text := why_missing(data, metric, compare=False))]
    if missing:
        note(left, missing[0])
    else:
        if data.pairs:
            join_pairs(left, data, metrics)
        scatter_panel(left, data, metrics, absolute, direction)
    missing += [text for metric in metrics if (text := why_missing(data, metric))]
    if missing:
        note(right, missing[0])
    else:
        scatter_panel(right, data, metrics, relative, direction)
        right.axvline(1, color="black", lw=0.6, zorder=1)
        right.axhline(0 if metrics[1] in LOSSES else 1, color="black", lw=0.6, zorder=1)
    caption = (
        "Left: as measured; a dot = one run, thin lines join the arms of a block. Right: each "
        f"block against its own {data.reference}. Outlined = mean, cross = 95 % t interval in both "
        "directions (of a ratio: on logs)."
    )
    return finish(fig, data, caption)


@matplotlib.rc_context(LOOK)
def speedup_quality(data):
    """4: speed against held-out loss."""
    return tradeoff(data, (SPEED, VAL_LOSS), direction=(1, -1))


@matplotlib.rc_context(LOOK)
def memory_quality(data):
    """5: peak memory against held-out loss."""
    return tradeoff(data, (MEMORY, VAL_LOSS), direction=(-1, -1))


@matplotlib.rc_context(LOOK)
def memory_speed(data):
    """6: peak memory against speed."""
    return tradeoff(data, (MEMORY, SPEED), direction=(-1, 1))

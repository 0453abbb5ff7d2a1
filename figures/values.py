"""Figures 2 to 7 and 9: what the trainings ended with, as measured and as ratios."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis import contrasts
from analysis.significance import log_interval, mean_interval, non_inferiority, paired_ratio
from analysis.values import MEMORY, OUTCOMES, PRACTICAL_SHARE, TIME, VAL_LOSS, shared_values
from analysis.words import amount, percent, with_interval
from figures.data import LOSSES, difference, ratio
from figures.frame import dots, fill_panel, finish, metric_axis, new_figure
from figures.look import MARGIN


def whiskers(interval):
    """An ``Interval`` as matplotlib's errorbar wants it: (2, 1) distances, or None."""
    if interval.low is None:
        return None
    return [[interval.mean - interval.low], [interval.high - interval.mean]]


def mean_point(ax, x, y, style, arm, xerr=None, yerr=None):
    """A mean with its whiskers, in the arm's colour and marker, above everything else."""
    look = {"color": style.color, "marker": style.marker, "mec": "black", "ms": 6, "ls": "none"}
    ax.errorbar(x, y, xerr=xerr, yerr=yerr, **look, capsize=2.5, zorder=5, label=f"{arm} mean")


def draw_rows(ax, data, arms, estimates, names=None, ticks=5):
    """A row for each arm, the first on top: every value and, below it, the mean with whiskers.

    estimates: for each row its values and their mean, an ``Interval``; names: of the rows, where
    those are not the arms'.
    """
    names = names or arms
    for y, (arm, name, (values, mean)) in enumerate(zip(arms, names, estimates, strict=True)):
        dots(ax, values, [y - 0.15] * len(values), data.styles[arm], name)
        mean_point(ax, mean.mean, y + 0.15, data.styles[arm], name, xerr=whiskers(mean))
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(ticks))


def side_text(ax, y, text):
    """Text right of the axes, level with y."""
    look = {"va": "center", "fontsize": 7}
    ax.text(1.02, y, text.replace("-", "−"), transform=ax.get_yaxis_transform(), **look)


def arm_rows(ax, data, metric):
    """A row for each arm: its trainings and their mean, which is geometric but for losses."""
    values = [data.values(arm, metric) for arm in data.arms]
    interval = mean_interval if metric in LOSSES else log_interval
    draw_rows(ax, data, data.arms, [(x, interval(x)) for x in values])
    metric_axis(ax.xaxis, metric)


def difference_rows(ax, data, metric):
    """Every block's difference to the reference, their mean, and the mean in numbers."""
    arms = data.arms[1:]
    estimates = [difference(data, arm, metric) for arm in arms]
    draw_rows(ax, data, arms, estimates, ticks=4)
    for y, (_, mean) in enumerate(estimates):
        shown = with_interval(mean.mean, mean.low, mean.high, "{:+.4f}".format)
        side_text(ax, y, shown.replace(" [", "\n["))  # in two lines: room for the panels
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xlabel(f"difference to {data.reference} ({metric.unit})")


def final_losses(data):
    """2: the loss at the end of the training and the held-out loss, block by block."""
    fig, axes = new_figure(2, 2, 2.2 + 0.5 * len(data.arms), sharey="row")
    for (above, below), metric in zip(axes.T, LOSSES, strict=True):
        fill_panel(above, data, [metric], arm_rows, compared=False)
        fill_panel(below, data, [metric], difference_rows)
    caption = (
        "Dot = one training, outlined = mean over blocks with its 95 % t interval. Below: paired "
        "differences, also in numbers."
    )
    return finish(fig, data, "Losses", caption)


def ratio_rows(ax, data, metric, pairs, names, remarks):
    """A row for each (arm, base): every block's ratio, and their mean with numbers and a remark."""
    estimates = [ratio(data, arm, metric, base) for arm, base in pairs]
    draw_rows(ax, data, [arm for arm, _ in pairs], estimates, names)
    for y, ((_, mean), remark) in enumerate(zip(estimates, remarks, strict=True)):
        side_text(ax, y, f"{with_interval(mean.mean, mean.low, mean.high)}\n{remark}")
    ax.axvline(1, color="black", lw=0.8)
    ax.set(title=metric.name, xlabel="ratio")


def relative_rows(ax, data, metric):
    """The ratio of every arm to the reference, and the arm's mean in text."""
    means = [amount(data.values(arm, metric).mean(), metric.unit) for arm in data.arms]
    pairs = [(arm, data.reference) for arm in data.arms]
    ratio_rows(ax, data, metric, pairs, data.arms, [f"{mean} {metric.unit}" for mean in means])
    ax.set_xlabel(f"ratio to {data.reference}")


def metrics_comparison(data):
    """3: every metric as a ratio to the reference arm, absolute values in text."""
    fig, axes = new_figure(2, 2, 2.1 + 0.66 * len(data.arms), sharey=True)
    for ax, metric in zip(axes.flat, OUTCOMES, strict=True):
        fill_panel(ax, data, [metric], relative_rows, compared=len(data.arms) > 1)
    caption = (
        "Outlined = geometric mean of the paired ratios, whisker and brackets = its 95 % t "
        "interval (on logs), dot = one block. Second line: the arm's mean."
    )
    return finish(fig, data, "Outcomes", caption)


def to_reference(ax, data, x, y):
    """Every block's ratio in metric x against its ratio in y or, of a loss y, the difference."""
    relative = f"relative to {data.reference} (×)"
    if y in LOSSES:
        estimate, no_change = difference, 0
        words = f"minus\nthat of {data.reference} ({y.unit})"
    else:
        estimate, no_change = ratio, 1
        words = relative
    for arm in data.arms:
        (x_values, x_mean), (y_values, y_mean) = ratio(data, arm, x), estimate(data, arm, y)
        dots(ax, x_values, y_values, data.styles[arm], arm)
        ends = whiskers(x_mean), whiskers(y_mean)
        mean_point(ax, x_mean.mean, y_mean.mean, data.styles[arm], arm, *ends)
    ax.axvline(1, color="black", lw=0.6, zorder=1)
    ax.axhline(no_change, color="black", lw=0.6, zorder=1)
    ax.set(xlabel=f"{x.name} {relative}", ylabel=f"{y.name} {words}")


def tradeoff(data, metrics, better):
    """4 to 6: two metrics against each other, both relative to the reference."""
    fig, ((ax,),) = new_figure(1, 1, 3.9)
    fill_panel(ax, data, metrics, to_reference)
    ax.margins(0.1)
    ax.set_title(f"better {better}", loc="right")
    caption = (
        f"Dot = one block against its {data.reference}, outlined = mean with its 95 % t intervals "
        "(of a ratio: on logs)."
    )
    title = " and ".join(metric.name for metric in metrics).capitalize()
    return finish(fig, data, title, caption)


def boxes(ax, data, metric):
    """The rows of the arms over the box of each arm's values."""
    arm_rows(ax, data, metric)
    values = [data.values(arm, metric) for arm in data.arms]
    places = np.arange(len(values)) - 0.15
    gray = {f"{part}props": {"color": "0.5"} for part in ("box", "whisker", "cap")}
    look = {"widths": 0.3, "medianprops": {"color": "black", "lw": 1.6}, "showfliers": False}
    turned = {"orientation": "horizontal", "manage_ticks": False}
    ax.boxplot(values, positions=places, **look, **gray, **turned)


def distributions(data):
    """7: the distribution of every metric over the blocks."""
    fig, axes = new_figure(2, 2, 2.2 + 0.66 * len(data.arms), sharey=True)
    for ax, metric in zip(axes.flat, OUTCOMES, strict=True):
        fill_panel(ax, data, [metric], boxes, compared=False)
    caption = (
        "Box = quartiles, black line = median, whiskers = last point within 1.5 box lengths, dot = "
        "one training, outlined = mean over blocks with its 95 % t interval (times and memory: "
        "geometric, on logs)."
    )
    return finish(fig, data, "Spread", caption)


def shown_pairs(data):
    """(arm, reference) pairs of the summary: the declared questions, then further arms."""
    asked = [(arm, base) for arm, base, _ in contrasts.contrasts_of(data.ok)]
    known = {arm for pair in asked for arm in pair}
    return asked + [(arm, data.reference) for arm in data.arms[1:] if arm not in known]


def ratio_verdict(found):
    """What a ``Ratio`` says, in words."""
    kind = contrasts.verdict(found)
    if kind == "undetected":
        return "no difference detected"
    words = "equal to 0.01 %" if kind == "same" else percent(found.ratio - 1, "+")
    if found.p is not None:
        return words
    return f"{words}, one block" if found.n == 1 else f"{words} in every block"


def verdict_on(data, arm, base, metric):
    """The verdict on a contrast; for the validation loss by the margin, if one was declared."""
    values = shared_values(data.ok, (arm, base), metric.key)
    if metric is VAL_LOSS and {arm, base} & set(data.idle):
        return "not trained: says nothing"
    if metric is VAL_LOSS and data.margin and values.shape[1] > 1:
        words = non_inferiority(*values, data.margin).verdict
        return f"{words} (margin {data.margin:g} nats)" if words == "not worse" else words
    return ratio_verdict(paired_ratio(*values))


def shade_no_difference(ax, data, metric, pairs):
    """Shade what counts as no difference in this metric: hatched or plain, for gray print."""
    if metric in (TIME, MEMORY):
        look = {"facecolor": "0.95", "edgecolor": "0.75", "lw": 0, "hatch": "////", "zorder": 0.5}
        ax.axvspan(1 - PRACTICAL_SHARE, 1 + PRACTICAL_SHARE, **look, label="_small")
    elif metric is VAL_LOSS and data.margin:
        for y, (_, base) in enumerate(pairs):
            share = data.margin / data.values(base, VAL_LOSS).mean()
            ax.barh(y, 2 * share, 0.8, left=1 - share, **MARGIN, label=f"_margin {y}")


def contrast_rows(ax, data, metric):
    """A ratio and a verdict for every declared question, over the shade of no difference."""
    pairs = shown_pairs(data)
    shade_no_difference(ax, data, metric, pairs)
    names = [f"{arm} / {base}" for arm, base in pairs]
    verdicts = [verdict_on(data, *pair, metric) for pair in pairs]
    ratio_rows(ax, data, metric, pairs, names, verdicts)
    ax.use_sticky_edges = False  # a margin beside the shades too
    ax.margins(x=0.1)


def summary(data):
    """9: what changed overall: ratios with intervals and a verdict in words."""
    height = 1.5 + len(OUTCOMES) * (0.75 + 0.32 * len(shown_pairs(data)))
    fig, axes = new_figure(len(OUTCOMES), 1, height)
    for ax, metric in zip(axes[:, 0], OUTCOMES, strict=True):
        fill_panel(ax, data, [metric], contrast_rows)
    caption = (
        "Ratio of the first arm to the second: dot = one block, outlined = geometric mean with its "
        "95 % t interval (on logs). Verdict: paired t-test at 5 %, not adjusted for several "
        f"questions. Hatched: differences below {100 * PRACTICAL_SHARE:g} %, too small to matter."
    )
    if data.margin:
        caption += (
            f" Yellow: margin of ± {data.margin:g} nats of validation loss; not worse = the 90 % t "
            "interval of the paired difference lies below it, worse = above, else undecided."
        )
    arms = dict.fromkeys(arm for arm, _ in shown_pairs(data)) or data.arms
    return finish(fig, data, "Contrasts", caption, arms)

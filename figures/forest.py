"""Figure 9: every contrast with its interval."""

import math

import matplotlib
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis.values import CONTRASTS, PRACTICAL_SHARE
from figures.data import (
    MEMORY,
    METRICS,
    TIME,
    VAL_LOSS,
    compare,
    loss_verdict,
    margin_span,
    ratio_text,
    verdict,
)
from figures.look import LOOK, MARGIN, MEAN, SMALL
from figures.pieces import finish, new_figure, note, side_text, why_missing


def contrasts(data):
    """(arm, reference) pairs of the summary: the three questions, then further arms."""
    asked = [(arm, base) for arm, base, _ in CONTRASTS if {arm, base} <= set(data.arms)]
    known = {arm for pair in asked for arm in pair}
    return asked + [(arm, data.reference) for arm in data.arms[1:] if arm not in known]


def shade_small(ax):
    """The band of differences too small to matter, over all rows; returns its ends."""
    span = 1 - PRACTICAL_SHARE, 1 + PRACTICAL_SHARE
    name = f"below {100 * PRACTICAL_SHARE:g} %: too small to matter"
    ax.axvspan(*span, **SMALL, label=f"_{name}")
    panel_key(ax, name, SMALL)
    return span


def shade_margin(ax, data, pairs):
    """The equivalence margin of each row, around its own reference; returns the spans' ends."""
    spans = [margin_span(data, *pair) for pair in pairs]
    for y, (low, high) in enumerate(spans):
        ax.barh(y, high - low, 0.8, low, **MARGIN, label=f"_margin {y}")
    panel_key(ax, f"equivalence margin ± {data.margin:g} nats", MARGIN)
    return [edge for span in spans for edge in span]


def panel_key(ax, name, look):
    """The key of a shade, above the text at the right of its panel."""
    place = {"loc": "lower left", "bbox_to_anchor": (1.02, 1), "borderpad": 0, "fontsize": 7}
    ax.legend(handles=[Patch(**look, label=name)], **place)


def shaded(ax, data, metric, pairs):
    """Shade what counts as no difference in this metric; returns ratios the axis must reach."""
    if metric in (TIME, MEMORY):
        return shade_small(ax)
    return shade_margin(ax, data, pairs) if metric is VAL_LOSS and data.margin else ()


def forest_row(ax, data, metric, y, pair):
    """One ratio with its interval, in numbers and in words; returns its ends."""
    ratio, estimate = compare(data, *pair, metric)
    look = {**data.styles[pair[0]].mark, **MEAN, "ls": "none", "label": " / ".join(pair)}
    ax.errorbar(ratio.ratio, y, xerr=estimate.error, **look)
    side_text(ax, y, ratio_text(ratio, metric.digits))
    words = loss_verdict(data, *pair) if metric is VAL_LOSS else verdict(ratio, metric)
    side_text(ax, y, words, offset=105 if data.pairs > 1 else 35)
    return ratio.ratio, ratio.low or 1, ratio.high or 1


def forest_panel(ax, data, metric, pairs):
    """Ratios of one metric on a log axis, over the shade of what counts as no difference."""
    edges = [*shaded(ax, data, metric, pairs), math.exp(1e-3)]
    for y, pair in enumerate(pairs):
        edges += forest_row(ax, data, metric, y, pair)
    ax.axvline(1, color="black", lw=0.8, zorder=1)
    ratio_axis(ax, 1.2 * max(abs(math.log(edge)) for edge in edges))
    ax.set_yticks(range(len(pairs)), [" / ".join(pair) for pair in pairs])
    ax.set_ylim(len(pairs) - 0.4, -0.6)
    ax.grid(False, axis="y")


def ratio_axis(ax, extent):
    """A log axis around 1 with plain numbers; ``extent`` in natural logs to both sides."""
    ax.set_xscale("log")
    ax.set_xlim(math.exp(-extent), math.exp(extent))
    near = MaxNLocator(7, steps=(1, 2, 5, 10))  # 1 is then a tick
    ax.xaxis.set_major_locator(near if extent < math.log(3) else LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.5g}"))
    ax.set_xlabel("ratio (log axis)")


def margin_caption(data):
    if data.margin is None or data.pairs < 2 or not data.has(VAL_LOSS):
        return ""
    return (
        " Validation loss instead: the 90 % t interval of the paired difference; not worse = all "
        f"of it below + {data.margin:g} nats, worse = all above, else undecided."
    )


@matplotlib.rc_context(LOOK)
def summary(data):
    """9: what changed overall: ratios with intervals and a verdict in words."""
    pairs = contrasts(data)
    height = 1.3 + len(METRICS) * (0.75 + 0.2 * max(len(pairs), 1))
    fig, axes = new_figure(data, len(METRICS), 1, height)
    for ax, metric in zip(axes[:, 0], METRICS, strict=True):
        missing = why_missing(data, metric)
        if missing:
            note(ax, missing)
            continue
        forest_panel(ax, data, metric, pairs)
        ax.set_title(metric.name, weight="bold")
    caption = (
        "Ratio of the first arm to the second: geometric mean over blocks with 95 % t interval (on "
        "logs); left of 1 = less; each axis has its own range. Verdict: paired t-test at 5 %, not "
        "adjusted for several questions; no difference detected does not mean equal."
        f"{margin_caption(data)}"
    )
    tested = dict.fromkeys(arm for arm, _ in pairs)
    return finish(fig, data, caption, [arm for arm in data.arms if arm in tested])

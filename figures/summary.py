"""Figure 9: contrasts of two arms, as ratios and with a verdict in words."""

from analysis import contrasts
from analysis.significance import non_inferiority, paired_ratio
from analysis.values import PRACTICAL_SHARE, shared_values
from analysis.words import percent, with_interval
from figures.data import MEMORY, METRICS, TIME, VAL_LOSS, ratio
from figures.frame import draw_rows, fill_panel, finish, new_figure, side_text
from figures.look import MARGIN


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
    """The verdict on a contrast; on the validation loss that on the margin, where declared."""
    values = shared_values(data.ok, (arm, base), metric.key)
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
    """Ratios of one metric with intervals, numbers and words, over the shade of no difference."""
    pairs = shown_pairs(data)
    shade_no_difference(ax, data, metric, pairs)
    estimates = [ratio(data, arm, metric, base) for arm, base in pairs]
    names = [f"{arm} / {base}" for arm, base in pairs]
    draw_rows(ax, data, [arm for arm, _ in pairs], estimates, names, ticks=6)
    for y, (pair, (_, mean)) in enumerate(zip(pairs, estimates, strict=True)):
        side_text(ax, y, with_interval(mean.mean, mean.low, mean.high))
        side_text(ax, y, verdict_on(data, *pair, metric), offset=105)
    ax.axvline(1, color="black", lw=0.8)
    ax.set(title=metric.name, xlabel="ratio")
    ax.use_sticky_edges = False  # a margin beside the shades too
    ax.margins(x=0.1)


def summary(data):
    """9: what changed overall: ratios with intervals and a verdict in words."""
    height = 1.5 + len(METRICS) * (0.75 + 0.26 * len(shown_pairs(data)))
    fig, axes = new_figure(data, len(METRICS), 1, height)
    for ax, metric in zip(axes[:, 0], METRICS, strict=True):
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
    return finish(fig, data, caption)

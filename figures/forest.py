"""Figure 9: every contrast with its interval."""

import matplotlib
from matplotlib.ticker import MaxNLocator

from analysis.significance import ALPHA, ROUNDING, non_inferiority, paired_ratio
from analysis.values import CONTRASTS, PRACTICAL_SHARE, SHOWN_SHARE
from figures.data import MEMORY, METRICS, TIME, VAL_LOSS, ratio
from figures.frame import finish, missing_note, name_rows, new_figure, row_of_values, side_text
from figures.look import LOOK, MARGIN, SMALL


def contrasts(data):
    """(arm, reference) pairs of the summary: the declared questions, then further arms."""
    asked = [(arm, base) for arm, base, _ in CONTRASTS if {arm, base} <= set(data.arms)]
    known = {arm for pair in asked for arm in pair}
    return asked + [(arm, data.reference) for arm in data.arms[1:] if arm not in known]


def verdict(found):
    """What a ``Ratio`` says, in words; a difference is named only where the test found one."""
    if found.p is not None and found.p >= ALPHA:
        return "no difference detected"
    change = found.ratio - 1
    if found.p is not None or abs(change) >= SHOWN_SHARE:
        digits = 1 if abs(change) >= 0.01 else 2
        words = f"{100 * change:+.{digits}f} %".replace("-", "−")
    else:
        words = "identical" if abs(change) < ROUNDING else "equal to 0.01 %"
    if found.p is not None:
        return words
    return f"{words}, one block" if found.n == 1 else f"{words} in every block"


def verdict_on(data, arm, base, metric):
    """The verdict on a contrast; on the validation loss that on the margin, where declared."""
    x, reference = data.pair(arm, base, metric)
    if metric is VAL_LOSS and data.margin and len(x) > 1:
        words = non_inferiority(x, reference, data.margin).verdict
        return f"{words} (margin {data.margin:g} nats)" if words == "not worse" else words
    return verdict(paired_ratio(x, reference))


def shade_no_difference(ax, data, metric, pairs):
    """Shade what counts as no difference in this metric."""
    if metric in (TIME, MEMORY):
        ax.axvspan(1 - PRACTICAL_SHARE, 1 + PRACTICAL_SHARE, **SMALL, label="_small")
    elif metric is VAL_LOSS and data.margin:
        for y, (_, base) in enumerate(pairs):
            share = data.margin / data.values(base, VAL_LOSS).mean()
            ax.barh(y, 2 * share, 0.8, left=1 - share, **MARGIN, label=f"_margin {y}")


def contrast_rows(ax, data, metric, pairs):
    """Ratios of one metric with intervals, numbers and words, over the shade of no difference."""
    shade_no_difference(ax, data, metric, pairs)
    names = [" / ".join(pair) for pair in pairs]
    for y, (pair, name) in enumerate(zip(pairs, names, strict=True)):
        estimate, style = ratio(data, *pair, metric), data.styles[pair[0]]
        row_of_values(ax, y, estimate, style, name)
        side_text(ax, y, estimate.with_interval("{:.4f}"))
        side_text(ax, y, verdict_on(data, *pair, metric), offset=105)
    ax.axvline(1, color="black", lw=0.8, zorder=1)
    name_rows(ax, names)
    ax.set(title=metric.name, xlabel="ratio")
    ax.use_sticky_edges = False  # a margin beside the shades too
    ax.margins(x=0.1)
    ax.xaxis.set_major_locator(MaxNLocator(6))


@matplotlib.rc_context(LOOK)
def summary(data):
    """9: what changed overall: ratios with intervals and a verdict in words."""
    pairs = contrasts(data)
    height = 1.5 + len(METRICS) * (0.75 + 0.26 * len(pairs))
    fig, axes = new_figure(data, len(METRICS), 1, height)
    for ax, metric in zip(axes[:, 0], METRICS, strict=True):
        if not missing_note(ax, data, metric):
            contrast_rows(ax, data, metric, pairs)
    caption = (
        "Ratio of the first arm to the second: dot = one block, outlined = geometric mean with "
        "95 % t interval (on logs); left of 1 = less; each axis has its own range. Verdict: paired "
        "t-test at 5 %, not adjusted for several questions; no difference detected does not mean "
        f"equal. Hatched: differences below {100 * PRACTICAL_SHARE:g} %, too small to matter."
    )
    if data.margin:
        caption += (
            f" Yellow: equivalence margin, ± {data.margin:g} nats of validation loss. The verdict "
            "on it, from two blocks on: not worse = the whole 90 % t interval of the paired "
            "difference lies below the margin, worse = all above, else undecided."
        )
    return finish(fig, data, caption)

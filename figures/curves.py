"""Figures 1, 8, 10 and 11: losses over a training, and the trainings of an experiment over time."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from scipy import stats

from analysis.significance import FEWEST_BLOCKS, LEVEL
from analysis.values import OUTCOMES, TRAIN_LOSS, VAL_LOSS, paired_trainings, smooth, table
from figures.frame import dots, empty_figure, fill_panel, finish, metric_axis, new_figure
from figures.look import FAILED

# A loss is smoothed over one of so many equal parts of a training, so that lines can be told apart.
CURVE_PARTS, CONVERGENCE_PARTS = 100, 30
SECONDS = "training time (s, timed steps, mean over blocks)"
CURVES_AND_DIFFERENCES = (
    "Above: bold = mean over blocks, thin = single trainings; below: mean of the paired "
    f"differences with its pointwise 95 % t interval, below {FEWEST_BLOCKS} blocks with the single "
    "ones. Vertical ranges of the last 90 % of the steps."
)


def draw_mean(ax, data, arm, x, rows):
    """The mean of ``rows`` (R, points) as a line with some markers."""
    style = data.styles[arm]
    every = max(len(x) // 8, 1)
    first = data.arms.index(arm) * every // len(data.arms)  # markers of two arms do not meet
    marks = {"marker": style.marker, "ms": 4, "markevery": (first, every)}
    ax.plot(x, rows.mean(axis=0), **style.line, **marks, lw=1.2, label=arm)
    ax.margins(x=0.02)


def draw_band(ax, data, arm, x, rows):
    """The mean of ``rows`` (R, points) in its pointwise t band.

    Fewer than FEWEST_BLOCKS rows are drawn themselves, for the band of two would hide all else.
    """
    if len(rows) < FEWEST_BLOCKS:
        draw_blocks(ax, data, arm, x, rows)
        return
    draw_mean(ax, data, arm, x, rows)
    mean = rows.mean(axis=0)
    half = stats.t.ppf((1 + LEVEL) / 2, len(rows) - 1) * stats.sem(rows, axis=0)
    look = {"color": data.styles[arm].color, "alpha": 0.2, "lw": 0, "label": f"{arm} band"}
    ax.fill_between(x, mean - half, mean + half, **look)


def draw_blocks(ax, data, arm, x, rows):
    """Each of ``rows`` (R, points) as a thin line behind the means of all arms, and their mean."""
    thin = {"lw": 0.6, "alpha": 0.5, "rasterized": True, "zorder": 1}
    ax.plot(x, rows.T, color=data.styles[arm].color, **thin, label=f"_{arm} training")
    draw_mean(ax, data, arm, x, rows)


def fit_to_late(ax, include=()):
    """Fit the vertical range to what is drawn of the last 90 % of the steps."""
    places = [line.get_xydata() for line in ax.lines]
    places += [path.vertices for band in ax.collections for path in band.get_paths()]
    x, y = np.concatenate(places).T
    y = np.append(y[x > 0.1 * x.max()], include)
    margin = 0.06 * (np.ptp(y) or 1)
    ax.set_ylim(y.min() - margin, y.max() + margin)


def tokens_seen(trainings):
    """Tokens trained on at the end of each step."""
    return trainings[0]["tokens_seen"]


def mean_seconds(trainings):
    """Seconds of training at the end of each step, the mean of these trainings."""
    return table(trainings, "step_seconds").cumsum(axis=1).mean(axis=0)


def smoothing_window(trainings, parts):
    """How many steps a loss is averaged over: one of ``parts`` of the shortest training.

    The number is odd, so that there is a middle one.
    """
    return min(training["total_steps"] for training in trainings) // parts | 1


def curves_of(trainings, metric, parts):
    """A loss in the course of trainings: its steps, from 0, (points,), and losses (R, points).

    The training loss is smoothed, see ``smoothing_window``.
    """
    if metric is VAL_LOSS:
        points = min(len(training["curve"]["steps"]) for training in trainings)
        losses = [training["curve"]["losses"][:points] for training in trainings]
        return np.array(trainings[0]["curve"]["steps"][:points]) - 1, np.array(losses, dtype=float)
    window = smoothing_window(trainings, parts)
    losses = smooth(table(trainings, "losses"), window)
    return np.arange(losses.shape[1]) + window // 2, losses


def draw_losses(ax, data, metric, places, parts=CURVE_PARTS):
    """Every training's loss and the means; places: a function that gives trainings' x by step."""
    for arm in data.arms:
        steps, losses = curves_of(data.ok[arm], metric, parts)
        draw_blocks(ax, data, arm, places(data.ok[arm])[steps], losses)
    fit_to_late(ax)


def draw_differences(ax, data, metric):
    """The paired difference of a loss to the reference over the tokens, beside a line at zero."""
    for arm in data.arms[1:]:
        blocks = paired_trainings(data.ok, (arm, data.reference))
        trainings = [training for block in blocks for training in block]
        steps, losses = curves_of(trainings, metric, CURVE_PARTS)
        draw_band(ax, data, arm, tokens_seen(trainings)[steps], losses[::2] - losses[1::2])
    fit_to_late(ax, include=[0])
    ax.axhline(0, color="black", lw=0.8)
    ax.set_ylabel(f"difference to {data.reference}\n(nats/token)")


def tokens_axis(ax):
    """A horizontal axis of the tokens that were trained on."""
    ax.tick_params(labelbottom=True)
    ax.set_xlabel("training tokens")
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def draw_without_model(ax, data):
    """A line for each loss that needs no model, unless it lies above all that is shown.

    Of those that lie below, which the models have not reached, the highest makes room for itself.
    """
    for words, loss in sorted(data.without_model.items(), key=lambda item: -item[1]):
        low, high = ax.get_ylim()
        if loss > high:
            continue
        ax.set_ylim(min(low, loss - 0.1 * (high - low)), high)
        ax.axhline(loss, color="black", lw=0.8, ls=":")
        low_half = loss < sum(ax.get_ylim()) / 2
        # off its line, and on white: curves would strike it through
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        place |= {"xytext": (-3, 2 if low_half else -2), "va": "bottom" if low_half else "top"}
        ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
        ax.annotate(words, (1, loss), fontsize=7, ha="right", bbox=ground, **place)
        if loss < low:
            break


def smoothing_text(window):
    """What a caption says of smoothed losses."""
    return f" All are centred moving averages of {window} steps." if window > 1 else ""


def training_curves(data):
    """1: training loss over tokens, and its paired difference to the reference."""
    fig, ((top,), (bottom,)) = new_figure(2, 1, 5.4, sharex=True, height_ratios=(3, 2))
    draw_losses(top, data, TRAIN_LOSS, tokens_seen)
    top.set_ylabel("training loss (nats/token)")
    draw_without_model(top, data)
    fill_panel(bottom, data, [TRAIN_LOSS], draw_differences)
    tokens_axis(bottom if bottom.axison else top)
    window = smoothing_window(data.ok[data.reference], CURVE_PARTS)
    caption = CURVES_AND_DIFFERENCES + smoothing_text(window)
    return finish(fig, data, "Training loss", caption)


def convergence(data):
    """10: training loss over seconds, smoothed where there are many steps."""
    fig, ((ax,),) = new_figure(1, 1, 3.7)
    draw_losses(ax, data, TRAIN_LOSS, mean_seconds, CONVERGENCE_PARTS)
    window = smoothing_window(data.ok[data.reference], CONVERGENCE_PARTS)
    smoothed = ", smoothed" if window > 1 else ""
    ax.set(xlabel=SECONDS, ylabel=f"training loss{smoothed} (nats/token)")
    caption = (
        "Bold = mean over blocks, thin = single trainings; vertical range of the last 90 % of the "
        "steps."
    )
    return finish(fig, data, "Training loss over time", caption + smoothing_text(window))


def validation(data):
    """11: held-out loss over tokens and seconds, and its paired difference to the reference.

    None unless it was evaluated in the course of every training.
    """
    if not all(training["curve"] for trainings in data.ok.values() for training in trainings):
        return None
    fig = empty_figure(5.4)
    axes = fig.subplot_mosaic("ts;dd", height_ratios=(3, 2))
    axes["s"].sharey(axes["t"])
    for ax, places in ((axes["s"], mean_seconds), (axes["t"], tokens_seen)):
        draw_losses(ax, data, VAL_LOSS, places)
        draw_without_model(ax, data)
    axes["s"].set_xlabel(SECONDS)
    axes["t"].set_ylabel("held-out loss (nats/token)")
    tokens_axis(axes["t"])
    fill_panel(axes["d"], data, [VAL_LOSS], draw_differences)
    tokens_axis(axes["d"])
    caption = (
        "Loss on the same held-out rows in every training, evaluated outside of the timed steps; "
        "of many rows a few, so that losses and differences may end elsewhere than the report's. "
    )
    return finish(fig, data, "Held-out loss", caption + CURVES_AND_DIFFERENCES)


def place_of(training):
    """Where a training stands in the order of time, from 1."""
    return training["index"] + 1


def mark_blocks_and_failures(ax, data):
    """Every second block gray, and a mark for every training that failed."""
    for _, training in data.started:
        x = place_of(training)
        if training["block"] % 2:
            ax.axvspan(x - 0.5, x + 0.5, color="0.94", lw=0, zorder=0)
        if training["status"] != "ok":
            ax.plot(x, 0.08, transform=ax.get_xaxis_transform(), label="_failed", **FAILED)
    ax.grid(False, axis="x")


def wall_times(ax, data):
    """Each training's seconds, the timed part in the arm's colour."""
    x = [place_of(training) for _, training in data.started]
    colors = [data.styles[arm].color for arm, _ in data.started]
    wall, timed = (
        np.nan_to_num([training[key] for _, training in data.started])
        for key in ("wall_time", "training_time")
    )
    ax.bar(x, timed, 0.8, color=colors, lw=0.4)
    ax.bar(x, np.maximum(wall - timed, 0), 0.8, timed, facecolor="white", edgecolor="0.5", lw=0.4)
    ax.set_ylabel("wall time (s)")
    mark_blocks_and_failures(ax, data)


def values_in_time(ax, data, metric):
    """A metric in the order of time, with every arm's mean as a line."""
    for arm in data.arms:
        style, values = data.styles[arm], data.values(arm, metric)
        x = [place_of(training) for training in data.ok[arm]]
        dots(ax, x, values, style, arm, alpha=0.9)
        ax.axhline(values.mean(), **style.line, lw=0.9, zorder=2, label=f"{arm} mean")
    metric_axis(ax.yaxis, metric)
    ax.margins(y=0.25)
    mark_blocks_and_failures(ax, data)


def per_run(data):
    """8: every training in the order of time, failed ones too: drift and outliers show here."""
    fig, axes = new_figure(1 + len(OUTCOMES), 1, 8.4, sharex=True)
    wall_times(axes[0, 0], data)
    for ax, metric in zip(axes[1:, 0], OUTCOMES, strict=True):
        fill_panel(ax, data, [metric], values_in_time, compared=False)
    last = axes[-1, 0]
    last.set(xlabel="training (order in time)", xlim=(0.3, place_of(data.started[-1][1]) + 0.7))
    last.xaxis.set_major_locator(MaxNLocator(15, integer=True, min_n_ticks=1))
    fig.align_ylabels()
    caption = (
        "Shading separates blocks. Top: the timed training in colour; white: warm-up, compiling, "
        "evaluation and the rest of its wall time. Horizontal lines: arm means."
    )
    arms = dict.fromkeys([*data.arms, *(arm for arm, _ in data.started)])
    failed = any(training["status"] != "ok" for _, training in data.started)
    extra = [Line2D([], [], label="failed", **FAILED)] if failed else []
    return finish(fig, data, "All trainings", caption, arms, extra)

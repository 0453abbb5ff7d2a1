"""Figures 1 and 10: losses over training."""

import matplotlib
import numpy as np

from figures.data import TRAIN_LOSS, drawn, smooth, smoothing_window, t_band, table
from figures.look import LOOK, in_thousands
from figures.pieces import finish, new_figure, note, shade, why_missing


def band_of_runs(ax, x, losses, style, arm):
    """Bold mean over the runs (R, steps) in its pointwise t band, thin single runs behind.

    Returns what the bold line, its band and the runs reach at each drawn point.
    """
    at = drawn(len(x))
    edges = losses[:, at]
    thin = {"lw": 0.3, "alpha": 0.3, "label": f"_{arm} run", "rasterized": True, "zorder": 1}
    ax.plot(x[at], edges.T, color=style.color, **thin)
    mean_line(ax, x[at], edges.mean(axis=0), style, arm, lw=1.2)
    if len(losses) == 1:
        return edges
    band = t_band(edges)
    shade(ax, x[at], *band, style, arm)
    return np.concatenate([edges, band])


def mean_line(ax, x, y, style, arm, lw):
    """A line with a marker now and then, so that it is known without its colour."""
    every = max(len(x) // 8, 1)
    marks = {"marker": style.marker, "ms": 4, "markevery": (int(style.phase * every), every)}
    ax.plot(x, y, **style.line, **marks, lw=lw, label=arm)
    ax.margins(x=0.02)


# --- the ten figures ---------------------------------------------------------------------------
def difference_curve(ax, data, arm):
    """Paired difference of the loss to the reference at each step; returns its drawn edges."""
    runs, base = data.paired[arm], data.paired[data.reference]
    steps = min(run["total_steps"] for run in (*runs, *base))
    at = drawn(steps)
    differences = (table(runs, "losses")[:, :steps] - table(base, "losses")[:, :steps])[:, at]
    x, style = runs[0]["tokens_seen"][at], data.styles[arm]
    edges = differences.mean(axis=0, keepdims=True)
    mean_line(ax, x, edges[0], style, arm, lw=0.8)
    if len(runs) > 1:
        edges = t_band(differences)
        shade(ax, x, *edges, style, arm)
    return edges


@matplotlib.rc_context(LOOK)
def training_curves(data):
    """1: training loss over tokens, and its paired difference to the reference."""
    options = {"sharex": True, "height_ratios": (3, 2)}
    fig, ((top,), (bottom,)) = new_figure(data, 2, 1, 5.4, **options)
    for arm in data.arms:
        losses = table(data.ok[arm], "losses")
        x = data.ok[arm][0]["tokens_seen"][: losses.shape[1]]
        band_of_runs(top, x, losses, data.styles[arm], arm)
    top.set_ylabel("training loss (nats/token)")
    missing = why_missing(data, TRAIN_LOSS)
    if missing:
        note(bottom, missing)
        top.tick_params(labelbottom=True)
    else:
        edges = [difference_curve(bottom, data, arm) for arm in data.arms[1:]]
        bottom.axhline(0, color="black", lw=0.8)
        late = np.concatenate([e[:, e.shape[1] // 10 :].ravel() for e in edges])
        low, high = min(late.min(), 0), max(late.max(), 0)
        bottom.set_ylim(low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1))
        bottom.set_ylabel(f"difference to {data.reference}\n(nats/token)")
    (top if missing else bottom).set_xlabel("training tokens")
    in_thousands(bottom.xaxis)
    caption = (
        "Above: bold = mean over runs, thin = single runs. Below: mean paired difference (same "
        "seed and data order); its vertical range fits the last 90 % of the steps. Bands = 95 % t "
        "interval of the mean, pointwise: each step by itself."
    )
    return finish(fig, data, caption)


def convergence_panel(ax, data, seconds):
    """Smoothed curves over tokens or seconds; returns the lowest and highest late value."""
    edges = []
    for arm in data.arms:
        raw = table(data.ok[arm], "losses")
        window = smoothing_window(raw.shape[1])
        smoothed = smooth(raw, window)
        x = data.ok[arm][0]["tokens_seen"].astype(float)
        if seconds:
            x = table(data.ok[arm], "step_seconds").cumsum(axis=1).mean(axis=0)
        x = x[window // 2 :][: smoothed.shape[1]]
        reached = band_of_runs(ax, x, smoothed, data.styles[arm], arm)
        late = reached[:, reached.shape[1] // 10 :]
        edges += [late.min(), late.max()]
    return min(edges), max(edges)


@matplotlib.rc_context(LOOK)
def convergence(data):
    """10: smoothed training loss over tokens and over seconds."""
    fig, ((left, right),) = new_figure(data, 1, 2, 3.7, sharey=True)
    low, high = convergence_panel(left, data, seconds=False)
    left.set(xlabel="training tokens", ylabel="training loss, smoothed (nats/token)")
    in_thousands(left.xaxis)
    if np.isfinite([run["step_seconds"].sum() for arm in data.arms for run in data.ok[arm]]).all():
        convergence_panel(right, data, seconds=True)
        right.set_xlabel("training time (s, timed steps, mean over runs)")
    else:
        note(right, "step times: not measured in every run")
    margin = 0.05 * (high - low or 1)
    left.set_ylim(low - margin, high + margin)
    steps = min(run["total_steps"] for arm in data.arms for run in data.ok[arm])
    caption = (
        f"Bold = mean over runs of the centred moving average ({smoothing_window(steps)} steps, "
        "each run smoothed first, full windows only), band = its 95 % t interval, pointwise: each "
        "step by itself; thin = single runs. The vertical range fits the last 90 % of the steps."
    )
    return finish(fig, data, caption)

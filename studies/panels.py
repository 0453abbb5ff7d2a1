"""What the figures of studies share."""

import textwrap

import numpy as np


def _setting(content):
    config = content["config"]
    mixed = any(point.get("mixed") for point in content["points"])
    note = "MIXED trainings (see the table); " if mixed else ""
    return (
        f"{note}{content['device_name']}, torch {content['torch']}, {config['dtype']}, compile "
        f"{config['compile']}; d_model {config['d_model']}, {config['n_heads']} heads, "
        f"{config['layers']} layers, {content['points'][0]['runs']} runs a point"
    )


def _kinds(content):
    """{kind of positions: its points, shortest first}."""
    kinds = dict.fromkeys(point["positions"] for point in content["points"])
    by_length = sorted(content["points"], key=lambda point: point["seq_len"])
    return {kind: [p for p in by_length if p["positions"] == kind] for kind in kinds}


def _points_with_bars(ax, x, estimates, style, **options):
    """Means with their intervals where there are any."""
    y = np.array([e["mean"] for e in estimates])
    low = np.array([e["mean"] if e["low"] is None else e["low"] for e in estimates])
    high = np.array([e["mean"] if e["high"] is None else e["high"] for e in estimates])
    low = np.maximum(low, y * 1e-3) if ax.get_yscale() == "log" else low
    look = {"color": style.color, "marker": style.marker, "ms": 4.5, "lw": 1.3, "capsize": 2}
    ax.errorbar(x, y, yerr=(y - low, high - y), **look, **options)


def _foot(figure, text):
    """The setting below a figure, in as many lines as its width needs."""
    columns = int(19 * figure.get_figwidth())
    text = text.replace("95 % t interval", "95\u00a0%\u00a0t\u00a0interval")  # one word to wrap
    figure.supxlabel("\n".join(textwrap.wrap(text, columns)), fontsize=6.5, color="0.35")

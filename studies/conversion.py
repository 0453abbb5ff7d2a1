"""What a conversion has found, as a table, a figure and a page; nothing is measured here."""

from functools import partial

import numpy as np

from analysis.words import Section, amount, fact_table
from figures.frame import caption_below, new_figure
from figures.look import OUR_LOOK
from figures.page import Page
from machine.command import counted

CHOICES = {
    "first": ("#0173B2", "o", "the first of every layer"),
    "probe": ("#D55E00", "s", "chosen by the probe"),
}


def conversion_page(content):
    """A conversion as a Page."""
    facts = content["config"] | content["environment"]
    return Page(
        "Conversion of a trained model",
        [Section("", answers(content)), conversion_section(content)],
        [Section("Configuration and machine", [fact_table(facts)])],
        partial(plot_conversion, content),
    )


def rise(content, row, key):
    """By how much a row's loss lies above the full model's, in nats; None where one is unknown."""
    full = content["rows"][0]
    return None if row is full or None in (row[key], full[key]) else row[key] - full[key]


def _moments(content):
    """{key of a row's loss: in words, when it was measured}."""
    steps = counted(content["config"]["max_steps"], "step")
    return {"untrained": "without training", "fine_tuned": f"after {steps}"}


def answers(content):
    """Which conversion loses least: a sentence before and one after the fine-tuning."""
    sentences = []
    for key, when in _moments(content).items():
        rises = {
            f"{row['arm']} ({row['chosen']})": rise(content, row, key)
            for row in content["rows"]
            if row["chosen"] != "all"
        }
        known = {name: risen for name, risen in rises.items() if risen is not None}
        said = "nothing is known"
        if known:
            best = min(known, key=known.get)
            said = f"{best} loses least, {amount(known[best], 'nats', '+')} nats a token"
        sentences.append(f"{when.capitalize()}: {said}")
    return sentences


def conversion_section(content):
    """The table of a conversion."""
    config, moments = content["config"], _moments(content)
    titles = ["attention", "full heads"]
    for when in moments.values():
        titles += [when, "rise"]
    table = [titles]
    for row in content["rows"]:
        line = [row["arm"], row["chosen"]]
        for key in moments:
            line += [amount(row[key], "nats"), amount(rise(content, row, key), "nats", "+")]
        table.append(line)
    sinks = f", {counted(config['sink_tokens'], 'sink token')}" if config["sink_tokens"] else ""
    explanation = (
        f"Validation loss in nats a token{sinks}; rise: above the same model with all its heads "
        f"full, trained on alike. Fine-tuning: {counted(config['max_steps'], 'step')}, "
        f"{content['tokens']:,} tokens, learning rate {config['lr']:g} ({config['schedule']}), "
        "batches of another seed. first, probe: the full heads are the first of every layer, or "
        "those without which the loss of a passage's second showing rises most."
    )
    return Section(f"Conversion of {content['weights']}", [explanation, table])


def _full_heads(row):
    """How many heads of a layer stay full."""
    return len(row["heads"][0])


def _rise_panel(ax, content, key):
    """The rise of a loss over the number of full heads, a line for each way to choose them."""
    for choice, (color, marker, label) in CHOICES.items():
        if choice == "probe" and content["importance"] is None:
            continue
        rows = [row for row in content["rows"] if row["chosen"] in (choice, "none")]
        rows.sort(key=_full_heads)
        rises = np.array([rise(content, row, key) for row in rows], dtype=float)  # None: NaN
        counts = [_full_heads(row) for row in rows]
        ax.plot(counts, rises, color=color, marker=marker, ms=4, label=label)
    ax.axhline(0, color="black", lw=0.8)
    ax.set(xlabel="full heads", xticks=sorted({_full_heads(row) for row in content["rows"]}))


def _some_of(count):
    """Whole numbers below ``count``, as many as a panel has room for."""
    return range(0, count, 1 + count // 9)


@OUR_LOOK
def plot_conversion(content):
    """The rise of the loss over the number of full heads, and what the probe found of each."""
    figure, ((*axes, heads),) = new_figure(1, 3, 2.6, width_ratios=(2, 2, 1.6))
    config, importance = content["config"], content["importance"]
    axes[1].sharey(axes[0])  # before anything is drawn, so that the range holds both
    for ax, (key, when) in zip(axes, _moments(content).items(), strict=True):
        _rise_panel(ax, content, key)
        ax.set_title(when)
    axes[0].set_ylabel("rise of validation loss\n(nats/token)")
    axes[0].legend()
    caption = (
        f"Other heads: {config['arms'][1]}. Rise: above the same model with all its heads full, "
        "trained on alike."
    )
    if importance is None:
        heads.set_axis_off()
    else:
        image = heads.imshow(importance, cmap="Reds", vmin=0, aspect="auto")
        heads.set(title="rise by one head", xlabel="head", ylabel="layer")
        heads.set(xticks=_some_of(len(importance[0])), yticks=_some_of(len(importance)))
        heads.grid(False)
        figure.colorbar(image, ax=heads)
        caption += (
            " Right: rise of the loss on the second showing of a passage when one head alone gets "
            "the window (nats/token)."
        )
    device = content["environment"]["device_name"]
    setting = f"{device}, seq_len {config['seq_len']}, {config['dtype']}."
    caption_below(figure, f"{caption} {setting}")
    return {"conversion": figure}

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


def answers(content):
    """The conversion that loses least, at once and after the fine-tuning, a sentence each."""
    sentences = []
    for key, when in _moments(content).items():
        found = {
            f"{row['arm']} ({row['chosen']})": rise(content, row, key)
            for row in content["rows"]
            if row["chosen"] != "all"
        }
        found = {name: risen for name, risen in found.items() if risen is not None}
        said = "nothing is known"
        if found:
            best = min(found, key=found.get)
            said = f"{best} loses least, {amount(found[best], 'nats', '+')} nats a token"
        sentences.append(f"{when.capitalize()}: {said}")
    return sentences


def _moments(content):
    steps = counted(content["config"]["max_steps"], "step")
    return {"untrained": "without training", "fine_tuned": f"after {steps}"}


def conversion_section(content):
    """The table of a conversion."""
    config, moments = content["config"], _moments(content)
    table = [["attention", "full heads", *(x for when in moments.values() for x in (when, "rise"))]]
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


@OUR_LOOK
def plot_conversion(content):
    """The rise of the loss over the number of full heads, and what the probe found of each."""
    figure, ((*axes, heads),) = new_figure(1, 3, 2.6, width_ratios=(2, 2, 1.6))
    config, counts = content["config"], {len(row["heads"][0]) for row in content["rows"]}
    for ax, (key, when) in zip(axes, _moments(content).items(), strict=True):
        for choice, (color, marker, label) in CHOICES.items():
            rises = {
                len(row["heads"][0]): rise(content, row, key)
                for row in content["rows"]
                if row["chosen"] in (choice, "none")
            }
            drawn = np.array(sorted(rises.items()), dtype=float).reshape(-1, 2)
            ax.plot(*drawn.T, color=color, marker=marker, ms=4, label=label)
        ax.axhline(0, color="black", lw=0.8)
        ax.set(title=when, xlabel="full heads", xticks=sorted(counts))
    axes[1].sharey(axes[0])
    axes[0].set_ylabel("rise of validation loss\n(nats/token)")
    axes[0].legend()
    if content["importance"] is None:
        heads.set_axis_off()
    else:
        image = heads.imshow(content["importance"], cmap="Reds", vmin=0, aspect="auto")
        heads.set(title="rise by one head", xlabel="head", ylabel="layer")
        heads.grid(False)
        figure.colorbar(image, ax=heads)
    pattern = content["rows"][1]["arm"] if len(content["rows"]) > 1 else "the window"
    caption_below(
        figure,
        f"Other heads: {pattern.partition('-f')[0]}. Rise: above the same model with all its heads "
        "full, trained on alike. Right: rise of the loss on the second showing of a passage when "
        f"one head alone gets the window (nats/token). {content['environment']['device_name']}, "
        f"seq_len {config['seq_len']}, {config['dtype']}.",
    )
    return {"conversion": figure}

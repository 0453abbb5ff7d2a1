"""How far back the trained models copy from: the records of training/reach.py over blocks."""

import numpy as np

from analysis.values import ordered_arms
from analysis.words import Section, mean_sd
from machine.command import counted

PASSAGE = 64  # tokens that are shown twice
REACH_GAIN = 0.1  # nats a token, from which on a model is said to copy


def reach_records(metrics):
    """{arm: the records of its trainings, by block} for the arms that have any, in their order."""
    found = {arm: [t["reach"] for t in metrics[arm] if t["reach"]] for arm in ordered_arms(metrics)}
    return {arm: records for arm, records in found.items() if records}


def gains_of(records):
    """The distances (D,) of an arm's records and their gains (blocks, D), in nats a token."""
    return records[0]["distances"], np.array([record["gains"] for record in records])


def _farthest(records):
    """From how far an arm copies, in words: every block's farthest distance with enough gain."""
    distances, gains = gains_of(records)
    farthest = np.where(gains >= REACH_GAIN, np.arange(len(distances)), -1).max(axis=1)
    found = []
    for place in np.unique(farthest):
        there = gains[farthest == place, place]
        where, gain = "from nowhere probed", ""
        if place >= 0:
            where = f"from as far as {distances[place]:,} tokens"
            gain = f"gain {there.mean():.2f} nats a token there, "
        found.append(f"{where} ({gain}{there.size} of {counted(len(gains), 'block')})")
    return " and ".join(found)


def reach_claims(metrics):
    """The claim on how far back the arms copy from; none where no training was probed."""
    found = reach_records(metrics)
    if not found:
        return []
    arms = ", ".join(f"{arm} copies {_farthest(records)}" for arm, records in found.items())
    passages = counted(next(iter(found.values()))[0]["passages"], "passage")
    return [
        f"Reach: {arms}. The gain is how much lower the loss of {PASSAGE} tokens of held-out text "
        f"is where the sequence has shown them before, a mean over {passages}; "
        f"from {REACH_GAIN:g} nats a token on a model is said to copy. This does not show how "
        "often text repeats itself so."
    ]


def reach_section(metrics):
    """The table of mean gains over blocks, a line for each arm; no parts where none was probed."""
    found = reach_records(metrics)
    rows = []
    for arm, records in found.items():
        distances, gains = gains_of(records)
        rows = rows or [["arm", "blocks", *(f"{distance:,}" for distance in distances)]]
        rows.append([arm, str(len(gains)), *(mean_sd(values, "gain") for values in gains.T)])
    title = "Gain on the second showing (nats a token) by distance in tokens, mean ± sd over blocks"
    return Section(title, [rows] if rows else [])

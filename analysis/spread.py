"""Validation losses block by block: the values themselves, and arms that a mean does not describe.

The loss falls in a sudden step when heads that look far back form, and a training may miss that
with one seed and not with another: then a mean stands for no training.
"""

import numpy as np

from analysis.reach import REACH_GAIN, gains_of, reach_records
from analysis.significance import FEWEST_BLOCKS
from analysis.values import ok_values, ordered_arms
from analysis.words import Section, amount

MOST_SHOWN = 10  # blocks in a table of them all; of more the report has median, least and most
# A wide spread is at least so many times the other arms' standard deviation, and so many nats.
WIDE, LEAST_SPREAD = 4, 0.05
KINDS_APART = 0.5  # nats a token, by which gains differ where some trainings copy and some do not
# Values split in two where the largest gap between the sorted ones is more than so many times the
# larger range inside a group: GAPS by number of blocks, GAP for others.  Normal values do so in
# 2.4, 2.2, 1.8 and 2.2 % of all draws of 3, 4, 5 and 6 blocks, below 1 % of more (200,000 draws).
GAPS, GAP = {3: 70, 4: 10, 5: 5}, 3


def groups(values):
    """Two sorted arrays where the values (n,) split in two, else None; n at least FEWEST_BLOCKS."""
    values = np.sort(values)
    gaps = np.diff(values)
    place = gaps.argmax() + 1
    low, high = values[:place], values[place:]
    inside = max(np.ptp(low), np.ptp(high))
    if gaps.max() <= max(LEAST_SPREAD, GAPS.get(values.size, GAP) * inside):
        return None
    return low, high


def _kinds(records):
    """In words, how many of an arm's trainings copy from a distance where others do not, or ""."""
    if len(records) < FEWEST_BLOCKS:
        return ""
    distances, gains = gains_of(records)
    split = (gains.min(axis=0) < REACH_GAIN) & (np.ptp(gains, axis=0) >= KINDS_APART)
    if not split.any():
        return ""
    place = split.argmax()
    able = int((gains[:, place] >= REACH_GAIN).sum())
    return (
        f"are of two kinds of training, {able} that copy from {distances[place]:,} tokens and "
        f"{len(gains) - able} that do not"
    )


def unsteady(metrics):
    """{arm: what its validation losses do} for the arms whose mean stands for no training."""
    losses = {arm: ok_values(metrics, arm, "val_loss") for arm in ordered_arms(metrics)}
    losses = {arm: values for arm, values in losses.items() if values.size >= FEWEST_BLOCKS}
    probed = reach_records(metrics)
    found = {}
    for arm, values in losses.items():
        others = [other.std(ddof=1) for name, other in losses.items() if name != arm]
        usual = np.median(others) if others else np.inf
        spread = values.std(ddof=1)
        if two := groups(values):
            low, high = (
                f"{x.size} from {amount(x.min(), 'nats')} to {amount(x.max(), 'nats')}" for x in two
            )
            found[arm] = f"lie in two groups, {low}, {high}"
        elif kinds := _kinds(probed.get(arm, [])):
            found[arm] = kinds
        elif spread >= max(LEAST_SPREAD, WIDE * usual):
            found[arm] = (
                f"vary from block to block by {amount(spread, 'nats')} nats (standard deviation), "
                f"those of the other arms by {amount(usual, 'nats')} (median)"
            )
    return found


def loss_section(metrics):
    """Every block's validation loss as a table, a row for each arm.

    No parts where there is one block alone or more than MOST_SHOWN.
    """
    rows = {
        arm: {t["block"]: t["val_loss"] for t in metrics[arm] if t["status"] == "ok"}
        for arm in ordered_arms(metrics)
    }
    blocks = sorted({block for row in rows.values() for block in row})
    table = [["block", *(str(block + 1) for block in blocks)]]
    for arm, row in rows.items():
        table.append([arm, *(amount(row.get(block), "nats") for block in blocks)])
    shown = 1 < len(blocks) <= MOST_SHOWN
    return Section("Validation loss of every block (nats)", [table] if shown else [])

"""What to use: the fastest pattern shown to be as good as fused and faster, and its confirmation.

The best of many looks better than it is, for its luck was chosen with it.  So an experiment with
several patterns keeps its last blocks out of the choice and asks them afterwards.
"""

from typing import NamedTuple

from analysis.contrasts import time_ratio
from analysis.significance import FEWEST_BLOCKS, non_inferiority
from analysis.values import (
    LONG_TOKENS,
    not_trained,
    ordered_arms,
    paired_trainings,
    pattern_of_arm,
    shared_values,
    tokens_of,
)
from analysis.words import amount
from machine.command import counted

TIED = 0.01  # where ratios of times differ by no more than this share, the sparser pattern is taken
FRESH = 2  # blocks kept out of the choice, where that leaves enough for it

AFTER_LONGER = "; longer training may rank patterns the other way round"


class Recommendation(NamedTuple):
    """What to use, and how it was found; blocks are numbered from 1."""

    use: str | None = None  # an arm; None: nothing can be said
    note: str = ""  # why nothing can be said
    patterns: tuple = ()  # the arms that were chosen from
    failed: tuple = ()  # of them, those with a failed training, and so not to be chosen
    blocks: tuple = ()  # that the choice was made on
    chosen: str | None = None  # the best pattern on them; None: none is good enough
    fresh: tuple = ()  # blocks that the choice did not see
    differences: tuple = ()  # on these: validation loss of chosen - fused, in nats
    time_ratio: float | None = None  # on these: chosen / fused, geometric mean
    confirmed: bool | None = None  # by these; None: there are none, or not all are trained
    tokens: int | None = None  # that a training of the chosen pattern saw


def patterns_of(arms):
    """The arms of the window model, those named by a pattern too, in their fixed order."""
    return tuple(arm for arm in ordered_arms(arms) if arm == "window" or pattern_of_arm(arm))


def fresh_blocks(arms, blocks):
    """How many of the last blocks an experiment keeps out of the choice among its patterns."""
    to_choose = "fused" in arms and len(patterns_of(arms)) > 1
    return FRESH if to_choose and blocks >= FEWEST_BLOCKS + FRESH else 0


def recommend(metrics, metadata):
    """The ``Recommendation`` of an experiment, among its patterns and fused."""
    plan = metadata["plan"]
    first_fresh = len(plan["orders"]) - plan["confirmation"]
    seen = _in_blocks(metrics, range(first_fresh))
    patterns = patterns_of(metrics)
    failed = tuple(arm for arm in patterns if _failed(seen[arm]))
    blocks = _seen_beside_fused(seen, patterns)
    fresh = tuple(range(first_fresh + 1, len(plan["orders"]) + 1))
    found = Recommendation(patterns=patterns, failed=failed, blocks=blocks, fresh=fresh)
    if note := _nothing_to_say(seen, metadata, found):
        return found._replace(note=note)
    ratios = good_patterns(seen, metadata, found.patterns)
    if not ratios:
        return found._replace(use="fused")
    chosen = choose(ratios, metadata)
    found = found._replace(
        use=chosen,
        chosen=chosen,
        blocks=_seen_beside_fused(seen, [chosen]),
        tokens=tokens_of(metrics, chosen),
    )
    return _confirm(found, metrics, metadata)


def _in_blocks(metrics, blocks):
    """The metrics of these blocks alone, which are counted from 0."""
    return {arm: [t for t in mine if t["block"] in blocks] for arm, mine in metrics.items()}


def _seen_beside_fused(metrics, patterns):
    """The blocks, from 1, in which fused ended well and one of the patterns was trained."""
    trained = {training["block"] for arm in patterns for training in metrics[arm]}
    fused = [t["block"] for t in metrics.get("fused", ()) if t["status"] == "ok"]
    return tuple(block + 1 for block in fused if block in trained)


def _nothing_to_say(metrics, metadata, found):
    """Why nothing can be recommended, in a few words, else ""."""
    if not found.patterns:
        return "no window model was trained"
    if "fused" not in metrics:
        return "fused, the best full attention, was not trained"
    if not any(paired_trainings(metrics, (arm, "fused")) for arm in found.patterns):
        return "no pattern and fused both ended well in a block"
    if metadata["plan"]["equivalence_margin"] is None:
        return "no margin for the loss was declared"
    idle = not_trained(metrics, metadata)
    return "not trained" if "fused" in idle or set(found.patterns) <= set(idle) else ""


def good_patterns(metrics, metadata, patterns):
    """{pattern: its time over fused's} of the patterns shown to be faster and not to be worse.

    A pattern that failed in a block is left out.
    """
    idle = not_trained(metrics, metadata)
    ratios = {}
    for arm in patterns:
        pair = arm, "fused"
        losses = shared_values(metrics, pair, "val_loss")
        if _failed(metrics[arm]) or arm in idle or not losses.size:
            continue
        ratio = time_ratio(metrics, pair)
        quality = non_inferiority(*losses, metadata["plan"]["equivalence_margin"])
        if ratio.high is not None and ratio.high < 1 and quality.verdict == "not worse":
            ratios[arm] = ratio.ratio
    return ratios


def _failed(trainings):
    return any(training["status"] != "ok" for training in trainings)


def choose(ratios, metadata):
    """The fastest of {pattern: time ratio}; of those tied, the one that keeps fewest pairs."""
    limit = min(ratios.values()) * (1 + TIED)
    used = metadata["attention"]
    density = {arm: used.get(arm, {}).get("density") for arm in ratios}
    if None in density.values():  # an earlier file
        density = {arm: _kept_by_name(arm) for arm in ratios}
    tied = [arm for arm, ratio in ratios.items() if ratio <= limit]
    return min(tied, key=lambda arm: (density[arm], ratios[arm]))


def _kept_by_name(arm):
    """A sort key: how much a pattern keeps of a long sequence, as far as its name tells."""
    pattern = pattern_of_arm(arm) or {"full_layers": 1, "full_heads": 0}
    full = 1 / pattern["full_layers"] if pattern["full_layers"] else 0
    far = 1 / pattern["dilation"] if pattern.get("dilation") else 0
    return full, pattern["full_heads"], far, pattern.get("window_size", 0)


def _confirm(found, metrics, metadata):
    """The recommendation, with what the fresh blocks say of the chosen pattern."""
    asked = _in_blocks(metrics, [block - 1 for block in found.fresh])
    pair = found.chosen, "fused"
    pairs = paired_trainings(asked, pair)
    if _failed(asked[found.chosen]):
        return found._replace(use="fused", confirmed=False)
    differences = tuple(chosen["val_loss"] - fused["val_loss"] for chosen, fused in pairs)
    margin = metadata["plan"]["equivalence_margin"]
    refuted = any(difference >= margin for difference in differences)
    waiting = not found.fresh or len(pairs) < len(found.fresh)
    if waiting and not refuted:
        return found
    ratio = time_ratio(asked, pair).ratio
    confirmed = ratio < 1 and not refuted
    return found._replace(
        use=found.chosen if confirmed else "fused",
        differences=differences,
        time_ratio=ratio,
        confirmed=confirmed,
    )


def recommendation_text(found):
    """A ``Recommendation`` in a sentence: what to use, chosen from what, and whether confirmed."""
    if found.use is None:
        return f"nothing can be said: {found.note}"
    if found.chosen is None:
        which = found.patterns[0] + " is not"
        if len(found.patterns) > 1:
            which = f"none of {len(found.patterns)} patterns is"
        blocks = counted(len(found.blocks), "block")
        if found.fresh:
            blocks += f", without the plan's last {len(found.fresh)}"
        text = f"fused: {which} shown to be as good and faster ({blocks})"
        failed = ", ".join(found.failed)
        return text + f"; a training of {failed} failed" * bool(failed)
    text = _chosen_text(found)
    if found.use == found.chosen and (found.tokens or LONG_TOKENS) < LONG_TOKENS:
        text += AFTER_LONGER
    return text


def _chosen_text(found):
    """How the pattern that was chosen was found, and whether it is confirmed, in a sentence."""
    blocks = counted(len(found.blocks), "block")
    if len(found.patterns) == 1:
        return f"{found.chosen}, as good as fused and faster ({blocks})"
    text = f"{found.chosen}, chosen from {len(found.patterns)} patterns on {blocks}, "
    if found.confirmed is None:
        return f"{text}not confirmed on fresh seeds"
    numbers = "a training failed"
    if found.differences:
        losses = ", ".join(amount(difference, "nats", "+") for difference in found.differences)
        numbers = f"{losses} nats, {found.time_ratio:.3f} times the time of fused"
    where = f"confirmed on {len(found.fresh)} fresh ones ({numbers})"
    return text + where if found.confirmed else f"fused: {text}was not {where}"

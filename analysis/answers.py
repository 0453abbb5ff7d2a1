"""The three lines that a report begins with: is it faster, is it as good, what to use."""

from analysis.claims import bound_text, verdict_text
from analysis.contrasts import time_ratio
from analysis.recommend import patterns_of, recommend, recommendation_text
from analysis.significance import non_inferiority
from analysis.values import (
    SMOKE_MARK,
    is_smoke_test,
    not_trained,
    ok_trainings,
    paired_trainings,
    planned_trainings,
    reading_marks,
    shared_values,
    tokens_of,
)
from analysis.words import amount
from machine.command import counted

FULL_ATTENTION = ("fused", "baseline", "published")  # the best first
ASKED = ("Faster", "As good", "Use")


def answers(metrics, metadata):
    """Three sentences on an experiment: is it faster, is it as good, and what to use.

    They are about the recommended pattern or, for want of one, the fastest.  A smoke test gets a
    single sentence, which says what it is for.
    """
    if is_smoke_test(metadata):
        planned = counted(planned_trainings(metadata), "training")
        ran = f"{len(ok_trainings(metrics))} of {planned} ended well"
        return [f"{SMOKE_MARK.capitalize()}; {ran}"]
    recommended = recommend(metrics, metadata)
    pair = _spoken_of(metrics, recommended)
    first = [f"nothing can be said: {recommended.note}"] * 2
    if pair:
        first = [_faster(metrics, pair), _as_good(metrics, metadata, pair)]
    texts = [*first, recommendation_text(recommended)]
    marks = "; ".join(reading_marks(metrics, metadata))
    marks = f" ({marks})" if marks else ""
    return [f"{name}{marks}: {text}" for name, text in zip(ASKED, texts, strict=True)]


def _spoken_of(metrics, recommended):
    """The pattern that the answers are about and its reference, None where no block has both."""
    reference = next((arm for arm in FULL_ATTENTION if arm in metrics), None)
    if recommended.chosen:
        return recommended.chosen, reference
    pairs = [(arm, reference) for arm in patterns_of(metrics)]
    pairs = [pair for pair in pairs if paired_trainings(metrics, pair)]
    return min(pairs, key=lambda pair: time_ratio(metrics, pair).ratio, default=None)


def _faster(metrics, pair):
    """Whether an arm trains faster than its reference, and by how much."""
    arm, reference = pair
    found = time_ratio(metrics, pair)
    sign, word = (-1, "less") if found.ratio < 1 else (1, "more")
    answer = "not shown"
    size = f"{100 * sign * (found.ratio - 1):.1f} %"
    if found.low is not None:
        if found.high < 1:
            answer = "yes"
        elif found.low > 1:
            answer = "no"
        low, high = sorted(100 * sign * (end - 1) for end in (found.low, found.high))
        size += f" [{low:.1f}, {high:.1f}]"
    evidence = found.note or counted(found.n, "block")
    if reference != "fused":
        evidence += "; the kernel differs too, so sparsity need not be the reason"
    return f"{answer}: {arm} takes {size} {word} training time than {reference} ({evidence})"


def _as_good(metrics, metadata, pair):
    """Whether an arm's loss is shown not to be worse than its reference's, and by how much."""
    if not_trained(metrics, metadata, pair):
        return "not trained: says nothing about quality"
    margin = metadata["plan"]["equivalence_margin"]
    losses = shared_values(metrics, pair, "val_loss")
    if not losses.size:
        return "not tested: no block has the validation losses of both"
    if margin is None:
        return "not tested: no margin for the loss was declared"
    found = non_inferiority(*losses, margin)
    answer = {"not worse": "yes", "worse": "no", "undecided": "not shown"}[found.verdict]
    text = f"{amount(found.mean, 'nats', '+')} nats{bound_text(found)}"
    trained = f"{counted(found.n, 'block')}, {tokens_of(metrics, pair[0]):,} tokens each"
    return f"{answer}: {verdict_text(found, *pair)}: {text} ({trained})"

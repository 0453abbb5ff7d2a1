"""What the report claims of an experiment: each claim a sentence, its evidence and its limits."""

import math

import numpy as np

from analysis.contrasts import contrasts_of, positive, primary_of
from analysis.power import ALPHA
from analysis.significance import LEVEL, ROUNDING, non_inferiority, paired_ratio
from analysis.values import PRACTICAL_SHARE, SHOWN_SHARE, declared_margin, shared_values
from analysis.words import interval, p_value

SPARSITY = ("window", "fused", "training_time")
LARGEST_LOSS = 50  # nats of difference beyond which a perplexity is no number for people
# --- the claims --------------------------------------------------------------------------------
EVERY_PAIR = ("dense", "masked")  # evaluations that compute the left-out pairs too
NO_SPARSITY = "This says nothing about sparsity, for both arms compute every pair."
NOT_SHOWN = {
    "sparsity alone": "This does not show that it would be so at another length, pattern, model or "
    "device.",
    "the kernel": NO_SPARSITY,
    "the mask bookkeeping": NO_SPARSITY,
}
NOT_THE_REASON = "This does not show that sparsity is the reason, for the kernel differs too."


def window_evaluation(metadata):
    """How the window arm evaluated its pattern, or None where the file does not say."""
    chosen = metadata["config"].get("window_attention")
    found = (metadata.get("pattern") or {}).get("evaluation")
    return found or (chosen if chosen != "auto" else None)


def not_shown(meaning, evaluation):
    """What a contrast leaves open, in a sentence."""
    if meaning == "sparsity alone" and evaluation in EVERY_PAIR:
        return (
            "This does not show what sparsity can bring, for the window was evaluated as "
            f"{evaluation}, which computes every pair."
        )
    return NOT_SHOWN.get(meaning, NOT_THE_REASON)


def describe_change(ratio, arm, reference, what="time"):
    """One sentence on a ratio arm / reference: size, interval, p and what it means."""
    word = "less" if ratio.ratio < 1 else "more"
    text = f"{arm} took {abs(1 - ratio.ratio):.2%} {word} {what} than {reference}"
    if ratio.p is None and abs(1 - ratio.ratio) < SHOWN_SHARE:
        within = "" if abs(1 - ratio.ratio) < ROUNDING else "to 0.01 %, "
        return f"{arm} took as much {what} as {reference} ({within}{ratio.note})."
    if ratio.low is None:
        return f"{text} ({ratio.note})."
    if ratio.low <= 1 <= ratio.high:
        return (
            f"{arm} against {reference}: no difference detected, ratio {ratio.ratio:.4f} "
            f"[{ratio.low:.4f}, {ratio.high:.4f}] includes 1, p {p_value(ratio.p)}."
        )
    # an interval of less time, in the direction that the sentence speaks of
    low, high = sorted((abs(1 - ratio.low), abs(1 - ratio.high)))
    text += f" [{low:.2%}, {high:.2%}], p {p_value(ratio.p)}"
    if abs(1 - ratio.ratio) < PRACTICAL_SHARE:
        text += f": significant, but below {PRACTICAL_SHARE:.0%}"
    return text + "."


def _family_size(found):
    return sum(compared.adjusted is not None for compared in found.values())


def _evidence(compared, family_size, primary=False):
    """The test behind a ratio and its p among the family's, in words."""
    if compared.ratio.p is None:
        return ""
    text = " Primary," if primary else ""
    text += f" {'p' if primary else 'P'}aired t-test on log ratios, {compared.ratio.n} runs"
    if compared.adjusted is not None:
        text += f"; adjusted p {p_value(compared.adjusted)} (Holm, {family_size} tests)"
        if compared.ratio.p < ALPHA <= compared.adjusted:
            text += ", which is not significant among so many"
    return text + "."


def ratio_claims(metrics, metadata, found):
    """A sentence for time and for memory of every contrast: size, interval, test, limits.

    The time of window against fused has a sentence of its own, ``sparsity_claims``.
    """
    claims = []
    primary, evaluation = primary_of(metadata), window_evaluation(metadata)
    for arm, reference, meaning in contrasts_of(metrics):
        for key, what in (("training_time", "time"), ("peak_memory_mb", "memory")):
            place, title = (arm, reference, key), f"{what.capitalize()} ({meaning}): "
            if place == SPARSITY and place in found:
                continue
            if place not in found:
                claims.append(f"{title}no claim, for no run gave both arms' {what}.")
                continue
            compared = found[place]
            claims.append(
                title
                + describe_change(compared.ratio, arm, reference, what)
                + _evidence(compared, _family_size(found), (*place, "ratio") in primary)
                + f" {not_shown(meaning, evaluation)}"
            )
    return claims


def describe_quality(x, reference, margin, arm, name):
    """Sentences on the held-out loss of an arm against a reference, over paired runs.

    Non-inferiority first, equivalence beside it; the difference in nats, percent and perplexity.
    """
    claim = non_inferiority(x, reference, margin)
    size = f"validation loss {abs(claim.mean):.4f} nats {'lower' if claim.mean < 0 else 'higher'}"
    if reference.mean() > 0 and abs(claim.mean) < LARGEST_LOSS:
        size += (
            f" ({100 * claim.mean / reference.mean():+.2f} %, "
            f"perplexity {100 * math.expm1(claim.mean):+.2f} %)"
        )
    words = {
        "not worse": f"{arm} is not worse than {name} by the margin of {margin:g} nats",
        "worse": f"{arm} is worse than {name} by more than the margin of {margin:g} nats",
        "undecided": f"whether {arm} is worse than {name} by {margin:g} nats is undecided",
    }[claim.verdict]
    text = f"{words}: {size}"
    if claim.upper is None:
        text += f" ({claim.note})."
    else:
        text += (
            f", at most {claim.upper:+.4f} (one-sided {LEVEL:.0%} bound), p "
            f"{p_value(claim.p_not_worse)} (non-inferiority, paired t-test, {claim.n} runs)."
            " Primary, so not adjusted."
        )
        text += (
            f" Equivalence within ±{margin:g}: {claim.equivalence}, {2 * LEVEL - 1:.0%} interval "
            f"[{claim.low:+.4f}, {claim.high:+.4f}], p {p_value(claim.p_equivalent)} (two "
            "one-sided tests)."
        )
    if claim.runs_needed is not None:
        text += f" About {claim.runs_needed} runs would decide it, if these are typical."
    return text


QUALITY_LIMITS = (
    "This does not show that it stays so with longer training, other data or a larger model."
)


def quality_claims(metrics, metadata):
    """A claim on the validation loss of the window arm against each full-attention arm."""
    margin, claims = declared_margin(metadata), []
    if margin is None:
        return claims
    for arm, reference, key, test in primary_of(metadata):
        if test == "ratio" or not {arm, reference} <= set(metrics):
            continue
        x, ref = shared_values(metrics, (arm, reference), key)
        words = f"{arm} against {reference}: no claim, for no run ended well in both."
        if x.size:
            words = f"{describe_quality(x, ref, margin, arm, reference)} {QUALITY_LIMITS}"
        claims.append(f"Quality: {words}")
    return claims


def both_claim(metrics, metadata, found):
    """Is the window arm faster than the control AND not worse?  An intersection-union test."""
    margin = declared_margin(metadata)
    if margin is None or SPARSITY not in found:
        return []
    ratio = found[SPARSITY].ratio
    x, ref = shared_values(metrics, ("window", "fused"), "val_loss")
    if not x.size:
        return []
    quality = non_inferiority(x, ref, margin)
    faster = ratio.p is not None and ratio.p < ALPHA and ratio.ratio < 1
    parts = (
        ("faster", faster, f"time ratio {ratio.ratio:.4f} {interval(ratio)}", ratio.p),
        ("not worse", quality.verdict == "not worse", "validation loss", quality.p_not_worse),
    )
    words = "is shown" if all(shown for _, shown, *_ in parts) else "is not shown"
    missing = [name for name, shown, *_ in parts if not shown]
    reason = " (neither part is)" if len(missing) == 2 else ""
    if len(missing) == 1:
        reason = f" ({missing[0]} is not)"
    evidence = "; ".join(f"{what}, p {p_value(p)}" for _, _, what, p in parts)
    return [
        f"Faster and not worse: of window against fused this {words}{reason}: {evidence}. Each "
        f"part counts at {ALPHA}; a claim that needs both needs no correction "
        f"(intersection-union). {not_shown('sparsity alone', window_evaluation(metadata))}"
    ]


def _sparsity_sentence(sparsity, seq_len, evaluation=None):
    """What the control says about sparsity itself: gained, brought nothing, or not shown."""
    evidence = describe_change(sparsity, "window", "fused")
    place = f"at sequence length {seq_len:,}"
    if evaluation in EVERY_PAIR:
        return f"The pattern as a mask, which spares no pair, {place}: {evidence}"
    if sparsity.low is None:
        return f"What sparsity does to the time {place} is not shown: {evidence}"
    if sparsity.high < 1 and 1 - sparsity.ratio >= PRACTICAL_SHARE:
        return f"Sparsity made training faster {place}: {evidence}"
    within = max(1 - sparsity.low, sparsity.high - 1) < PRACTICAL_SHARE
    if sparsity.low > 1 and sparsity.ratio - 1 >= PRACTICAL_SHARE:
        return f"Sparsity made training slower {place}: {evidence}"
    if sparsity.low > 1 or within:
        return f"Sparsity brought no speed worth the name {place}: {evidence}"
    return f"No speed from sparsity is shown {place}: {evidence}"


def sparsity_claims(metadata, found):
    """The claim on the time of window against fused, whatever became of the other arms."""
    if SPARSITY not in found:
        return []
    compared, evaluation = found[SPARSITY], window_evaluation(metadata)
    return [
        _sparsity_sentence(compared.ratio, metadata["config"]["seq_len"], evaluation)
        + _evidence(compared, _family_size(found), (*SPARSITY, "ratio") in primary_of(metadata))
        + f" {not_shown('sparsity alone', evaluation)}"
    ]


def _decomposition(metrics, metadata):
    """baseline / window = (baseline / fused) x (fused / window), over the runs all three ended."""
    if not {"baseline", "window", "fused"} <= set(metrics):
        return [
            "No decomposition: it needs the arms baseline, window and fused. Without the control "
            "fused, a gain of window over baseline may come from the kernel and not from sparsity."
        ]
    baseline, window, fused = shared_values(
        metrics, ("baseline", "window", "fused"), "training_time"
    )
    if not positive(window, np.concatenate([baseline, fused])):
        return ["No decomposition: in no run did baseline, window and fused all end well."]
    pairs = ((baseline, window), (baseline, fused), (fused, window))
    total, kernel, sparsity = (_times(paired_ratio(*pair)) for pair in pairs)
    name = "mask" if window_evaluation(metadata) in EVERY_PAIR else "sparsity"
    return [
        f"Where the speed comes from: window is {total} as fast as baseline = kernel {kernel} "
        f"(fused against baseline) x {name} {sparsity} (window against fused; below 1: slower), "
        f"geometric means over the {baseline.size} runs that all three finished; the tests of each "
        "are below."
    ]


def _times(ratio):
    """A speed-up with its interval."""
    bounds = "" if ratio.low is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{ratio.ratio:.3f}x{bounds}"


def claims_of(metrics, metadata, found):
    """Every claim of the report, a sentence or a few each, the most important first."""
    return [
        *_decomposition(metrics, metadata),
        *sparsity_claims(metadata, found),
        *quality_claims(metrics, metadata),
        *both_claim(metrics, metadata, found),
        *ratio_claims(metrics, metadata, found),
    ]

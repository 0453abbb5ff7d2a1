"""What the report claims of an experiment: each claim a sentence, its evidence and its limits."""

from analysis.contrasts import contrasts_of, primary_of, verdict
from analysis.significance import ALPHA, LEVEL, non_inferiority, paired_ratio
from analysis.values import PRACTICAL_SHARE, declared_margin, shared_values
from analysis.words import amount, p_value, percent, with_interval

SPARSITY = ("window", "fused", "training_time")
EVERY_PAIR = ("dense", "masked")  # evaluations that compute the left-out pairs too
NO_SPARSITY = "This says nothing about sparsity, for both arms compute every pair."
NOT_SHOWN = {
    "sparsity alone": "This does not show that it would be so at another length, pattern, model or "
    "device.",
    "the kernel": NO_SPARSITY,
    "the mask bookkeeping": NO_SPARSITY,
}
NOT_THE_REASON = "This does not show that sparsity is the reason, for the kernel differs too."
QUALITY_LIMITS = (
    "This does not show that it stays so with longer training, other data or a larger model."
)


def window_evaluation(metadata):
    """How the window arm evaluated its pattern, or None where the file does not say."""
    return (metadata.get("pattern") or {}).get("evaluation")


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
    found = verdict(ratio)
    if found == "same":
        return f"{arm} took as much {what} as {reference}, to 0.01 % ({ratio.note})."
    test = ratio.note or f"p {p_value(ratio.p)}"
    if found == "undetected":
        size = with_interval(ratio.ratio, ratio.low, ratio.high)
        return f"{arm} against {reference}: no difference detected, ratio {size}, {test}."
    share, low, high = abs(1 - ratio.ratio), None, None
    if ratio.low is not None:
        low, high = sorted((abs(1 - ratio.low), abs(1 - ratio.high)))
    size = with_interval(share, low, high, percent)
    text = f"{arm} took {size} {found} {what} than {reference} ({test})"
    if ratio.p is not None and share < PRACTICAL_SHARE:
        text += f": significant, but below {PRACTICAL_SHARE:.0%}"
    return text + "."


def _evidence(compared, family_size, primary):
    """The test behind a ratio and its p among the family's, in words."""
    if compared.ratio.p is None:
        return ""
    text = " Primary, paired" if primary else " Paired"
    text += f" t-test on log ratios, {compared.ratio.n} blocks"
    if compared.adjusted is not None:
        text += f"; adjusted p {p_value(compared.adjusted)} (Holm, {family_size} tests)"
        if compared.ratio.p < ALPHA <= compared.adjusted:
            text += ", which is not significant among so many"
    return text + "."


def _sparsity_title(ratio, seq_len, evaluation):
    """What the control says about sparsity itself: gained, brought nothing, or not shown."""
    place = f"at sequence length {seq_len:,}"
    if evaluation in EVERY_PAIR:
        return f"The pattern as a mask, which spares no pair, {place}"
    found = "No speed from sparsity is shown"
    if ratio.low is not None:
        within = max(1 - ratio.low, ratio.high - 1) < PRACTICAL_SHARE
        if ratio.high < 1 and 1 - ratio.ratio >= PRACTICAL_SHARE:
            found = "Sparsity made training faster"
        elif ratio.low > 1 and ratio.ratio - 1 >= PRACTICAL_SHARE:
            found = "Sparsity made training slower"
        elif ratio.low > 1 or within:
            found = "Sparsity brought no speed worth the name"
    return f"{found} {place}"


def ratio_claims(metrics, metadata, found):
    """A claim on the time and one on the memory of every contrast, sparsity's time first."""
    claims, evaluation, primary = [], window_evaluation(metadata), primary_of(metadata)
    family_size = sum(compared.adjusted is not None for compared in found.values())
    for arm, reference, meaning in contrasts_of(metrics):
        for key, what in (("training_time", "time"), ("peak_memory_mb", "memory")):
            place = arm, reference, key
            if place not in found:
                continue
            compared, title = found[place], f"{what.capitalize()} ({meaning})"
            if place == SPARSITY:
                title = _sparsity_title(compared.ratio, metadata["config"]["seq_len"], evaluation)
            change = describe_change(compared.ratio, arm, reference, what)
            evidence = _evidence(compared, family_size, (*place, "ratio") in primary)
            claims.append(f"{title}: {change}{evidence} {not_shown(meaning, evaluation)}")
    return claims


def describe_quality(x, reference, margin, arm, name):
    """Sentences on the held-out loss of an arm against a reference, over paired blocks."""
    claim = non_inferiority(x, reference, margin)
    verdicts = {
        "not worse": f"{arm} is not worse than {name} by the margin of {margin:g} nats",
        "worse": f"{arm} is worse than {name} by more than the margin of {margin:g} nats",
        "undecided": f"whether {arm} is worse than {name} by {margin:g} nats is undecided",
    }
    direction = "lower" if claim.mean < 0 else "higher"
    text = (
        f"{verdicts[claim.verdict]}: validation loss {amount(abs(claim.mean), 'nats')} nats "
        f"{direction} ({percent(claim.mean / reference.mean(), '+')})"
    )
    if claim.high is None:
        return f"{text} ({claim.note})."
    low, high = amount(claim.low, "nats", "+"), amount(claim.high, "nats", "+")
    text += (
        f", at most {high} (one-sided {LEVEL:.0%} bound), p {p_value(claim.p_not_worse)} "
        f"(non-inferiority, paired t-test, {claim.n} blocks). Primary, so not adjusted. "
        f"Equivalence within ±{margin:g}: {claim.equivalence}, {1 - 2 * ALPHA:.0%} interval "
        f"[{low}, {high}], p {p_value(claim.p_equivalent)} (two one-sided tests)."
    )
    if claim.runs_needed is not None:
        text += f" About {claim.runs_needed} blocks would decide it, if these are typical."
    return text


def quality_claims(metrics, metadata):
    """A claim on the validation loss of the window arm against each full-attention arm."""
    margin, claims = declared_margin(metadata), []
    for arm, reference, key, test in primary_of(metadata):
        x, ref = shared_values(metrics, (arm, reference), key)
        if test != "ratio" and margin is not None and x.size:
            words = describe_quality(x, ref, margin, arm, reference)
            claims.append(f"Quality: {words} {QUALITY_LIMITS}")
    return claims


def both_claim(metrics, metadata, found):
    """Is the window arm faster than the control AND not worse?  An intersection-union test."""
    margin = declared_margin(metadata)
    x, reference = shared_values(metrics, ("window", "fused"), "val_loss")
    if margin is None or SPARSITY not in found or not x.size:
        return []
    ratio, quality = found[SPARSITY].ratio, non_inferiority(x, reference, margin)
    missing = []
    if ratio.p is None or verdict(ratio) != "less":
        missing.append("faster")
    if quality.verdict != "not worse":
        missing.append("not worse")
    words = f"is not shown ({' and '.join(missing)})" if missing else "is shown"
    limits = not_shown("sparsity alone", window_evaluation(metadata))
    return [
        f"Faster and not worse: of window against fused this {words}: time ratio "
        f"{with_interval(ratio.ratio, ratio.low, ratio.high)}, p {p_value(ratio.p)}; validation "
        f"loss, p {p_value(quality.p_not_worse)}. Each part counts at {ALPHA}; a claim that needs "
        f"both needs no correction (intersection-union). {limits}"
    ]


def _times_as_fast(slower, faster):
    ratio = paired_ratio(slower, faster)
    return with_interval(ratio.ratio, ratio.low, ratio.high, "{:.3f}".format)


def decomposition(metrics, metadata):
    """baseline / window = (baseline / fused) x (fused / window), over the blocks of all three."""
    arms = ("baseline", "window", "fused")
    baseline, window, fused = shared_values(metrics, arms, "training_time")
    if not baseline.size:
        return (
            "No decomposition: it needs blocks in which baseline, window and fused all ended well. "
            "Without the control fused, a gain of window over baseline may come from the kernel "
            "and not from sparsity."
        )
    name = "mask" if window_evaluation(metadata) in EVERY_PAIR else "sparsity"
    return (
        f"Where the speed comes from: window is {_times_as_fast(baseline, window)} times as "
        f"fast as baseline = kernel {_times_as_fast(baseline, fused)} (fused against baseline) x "
        f"{name} {_times_as_fast(fused, window)} (window against fused; below 1: slower), "
        f"geometric means over the {baseline.size} blocks that all three finished; the tests of "
        "each are below."
    )


def claims_of(metrics, metadata, found):
    """Every claim of the report, the most important first; found: of ``compare``."""
    ratios = ratio_claims(metrics, metadata, found)
    return [
        decomposition(metrics, metadata),
        *ratios[:1],
        *both_claim(metrics, metadata, found),
        *quality_claims(metrics, metadata),
        *ratios[1:],
    ]

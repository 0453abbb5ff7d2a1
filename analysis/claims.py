"""What the report claims of an experiment: each claim a sentence, its evidence and its limits."""

import re
from itertools import zip_longest

import numpy as np

from analysis.contrasts import contrasts_of, primary_of, verdict
from analysis.reach import reach_claims
from analysis.significance import (
    ALPHA,
    LEVEL,
    largest_share,
    mean_interval,
    non_inferiority,
    paired_ratio,
)
from analysis.spread import unsteady
from analysis.values import (
    PRACTICAL_SHARE,
    loss_differences,
    not_trained,
    paired_trainings,
    shared_values,
    tokens_of,
)
from analysis.words import amount, p_value, percent, with_interval
from machine.command import counted

FEWEST_OF_TREND = 5  # steps
EVERY_PAIR = ("dense", "masked")  # evaluations that compute the left-out pairs too


def not_shown(meaning, used):
    """What a contrast leaves open, in a sentence; used: evaluation and density of its first arm."""
    evaluation = used["evaluation"]
    if "sparsity" not in meaning:
        return "This says nothing about sparsity, for both arms compute every pair."
    if used.get("density") == 1:
        return "This says nothing about sparsity, for the pattern leaves out no pair here."
    if meaning != "sparsity alone":
        return "This does not show that sparsity is the reason, for the kernel differs too."
    if evaluation in EVERY_PAIR:
        return (
            "This does not show what sparsity can bring, for the pattern was evaluated as "
            f"{evaluation}, which computes every pair."
        )
    return "This does not show that it would be so at another length, pattern, model or device."


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
    """The test behind a ratio, and its p adjusted for the family of tests, in words."""
    if compared.ratio.p is None:
        return ""
    text = " Primary, paired" if primary else " Paired"
    text += f" t-test on log ratios, {compared.ratio.n} blocks"
    if compared.adjusted is not None:
        text += f"; adjusted p {p_value(compared.adjusted)} (Holm, {family_size} tests)"
        if compared.ratio.p < ALPHA <= compared.adjusted:
            text += ", which is not significant among so many"
    return text + "."


def _sparsity_title(ratio, used, name):
    """What the control says about sparsity itself: gained, brought nothing, or not shown.

    name: " (w96-d0)" where several patterns must be told apart, else "".
    """
    if used.get("density") == 1:
        return f"The pattern{name}, which leaves out no pair here,"
    if used["evaluation"] in EVERY_PAIR:
        return f"The pattern{name} as a mask, which spares no pair,"
    if ratio.low is not None:
        if ratio.high < 1 and 1 - ratio.ratio >= PRACTICAL_SHARE:
            return f"Sparsity{name} made training faster"
        if ratio.low > 1 and ratio.ratio - 1 >= PRACTICAL_SHARE:
            return f"Sparsity{name} made training slower"
        if ratio.low > 1 or max(1 - ratio.low, ratio.high - 1) < PRACTICAL_SHARE:
            return f"Sparsity{name} brought no speed worth the name"
    return f"No speed from sparsity{name} is shown"


def ratio_claims(metrics, metadata, found, key, what):
    """A claim on the time or the memory (``what``) of every contrast, sparsity's first."""
    claims, contrasts = [], contrasts_of(metrics)
    family_size = sum(compared.adjusted is not None for compared in found.values())
    several = sum(meaning == "sparsity alone" for *_, meaning in contrasts) > 1
    # the sort is stable
    for arm, reference, meaning in sorted(contrasts, key=lambda c: c[2] != "sparsity alone"):
        if (arm, reference, key) not in found:
            continue
        compared = found[arm, reference, key]
        used = metadata["attention"].get(arm, metadata["pattern"])  # None in earlier files
        title = f"{what.capitalize()} ({meaning})"
        if title == "Time (sparsity alone)":
            title = _sparsity_title(compared.ratio, used, f" ({arm})" * several)
            title += f" at sequence length {metadata['config']['seq_len']:,}"
        change = describe_change(compared.ratio, arm, reference, what)
        primary = [arm, reference, key, "ratio"] in metadata["plan"]["primary"]
        evidence = _evidence(compared, family_size, primary)
        claims.append(f"{title}: {change}{evidence} {not_shown(meaning, used)}")
    return claims


def _seeds_that_may_be_worse(claim, differences):
    """For an arm that is not worse in the mean: how often it was worse, and how often it may be."""
    if claim.verdict != "not worse":
        return ""
    worse = int((differences > claim.margin).sum())
    return (
        f"It was worse by more than {claim.margin:g} nats in {worse} of {claim.n} blocks, and may "
        f"be with up to {largest_share(worse, claim.n):.0%} of all seeds ({LEVEL:.0%} bound)."
    )


def _block_by_block(differences, unsteady_arms):
    """The differences of all blocks, in words, where no mean describes one of the two arms."""
    if not unsteady_arms:
        return ""
    every = ", ".join(f"{difference:+.4f}" for difference in differences)
    return (
        f"No mean describes {' and '.join(sorted(unsteady_arms))}: block by block the difference "
        f"is {every}, the median {np.median(differences):+.4f} nats."
    )


def _trend(metrics, pair):
    """Which arm of a pair the training losses still moved in favour of at the end, in words.

    In each block, their difference changes over the last fifth of the steps by its least-squares
    slope times the number of these steps.
    """
    differences = loss_differences(paired_trainings(metrics, pair))
    fifth = differences.shape[1] // 5
    if len(differences) < 2 or fifth < FEWEST_OF_TREND:
        return ""
    slopes = np.polyfit(np.arange(fifth), differences[:, -fifth:].T, 1)[0]
    found = mean_interval(fifth * slopes)
    change = with_interval(found.mean, found.low, found.high, "{:+.4f}".format)
    change = f"their difference changed by {change} nats over the last fifth of the steps"
    if found.low <= 0 <= found.high:
        return f"No trend of the training losses at the end is shown: {change}."
    favoured = pair[0] if found.mean < 0 else pair[1]
    return f"The training losses still moved in favour of {favoured} at the end: {change}."


def _declared(plan, claim):
    """Whether a claim of quality was declared before the first training, in words."""
    if list(claim) not in plan["primary"]:
        return "Not declared before the first training, and not adjusted."
    alike = sum(test == claim[3] for *_, test in plan["primary"])
    return "Primary" + f", one of {alike} such claims, not adjusted for that" * (alike > 1) + "."


def bound_text(claim):
    """The one-sided bound of a ``QualityClaim`` in nats, in words; "" where there is none.

    It is the lower bound where the verdict is "worse", else the upper.
    """
    bound, end = ("least", claim.low) if claim.verdict == "worse" else ("most", claim.high)
    return "" if end is None else f", at {bound} {amount(end, 'nats', '+')}"


def verdict_text(claim, arm, reference):
    """The verdict of a ``QualityClaim`` of an arm in words."""
    nats = f"{claim.margin:g} nats"
    return {
        "not worse": f"{arm} is not worse than {reference} by {nats}",
        "worse": f"{arm} is worse than {reference} by more than {nats}",
        "undecided": f"whether {arm} is worse than {reference} by {nats} is undecided",
    }[claim.verdict]


def describe_quality(claim, arm, reference, loss, declared):
    """Sentences on a ``QualityClaim`` of an arm; loss: the mean of the reference, in nats.

    declared: a sentence on whether the plan declares it.
    """
    direction = "lower" if claim.mean < 0 else "higher"
    size = amount(abs(claim.mean), "nats")
    text = (
        f"{verdict_text(claim, arm, reference)}: validation loss {size} nats "
        f"{direction} ({percent(claim.mean / loss, '+')})"
    )
    if claim.high is None:
        return f"{text} ({claim.note})."
    low, high = amount(claim.low, "nats", "+"), amount(claim.high, "nats", "+")
    p, test = claim.p_not_worse, "non-inferiority"
    if claim.verdict == "worse":
        p, test = 1 - p, "inferiority"
    text += (
        f"{bound_text(claim)} (one-sided {LEVEL:.0%} bound), p {p_value(p)} "
        f"({test}, paired t-test, {claim.n} blocks). {declared} "
        f"Equivalence within ±{claim.margin:g}: {claim.equivalence}, {1 - 2 * ALPHA:.0%} interval "
        f"[{low}, {high}], p {p_value(claim.p_equivalent)} (two one-sided tests)."
    )
    if claim.runs_needed is not None:
        text += f" About {claim.runs_needed} blocks would decide it, if these are typical."
    return text


def _quality_claim(metrics, metadata, claim):
    """One claim of ``primary_of``; None where no block has both arms."""
    arm, reference, key, _ = claim
    x, ref = shared_values(metrics, (arm, reference), key)
    if not x.size:
        return None
    if idle := not_trained(metrics, metadata, (arm, reference)):
        return (
            f"Quality: not trained, so this says nothing about the quality of {arm} against "
            f"{reference}: {' and '.join(idle)} ended above the loss of always predicting the "
            f"frequencies of tokens, {metadata['data']['unigram_loss']:.3f} nats."
        )
    plan = metadata["plan"]
    found = non_inferiority(x, ref, plan["equivalence_margin"])
    tokens = tokens_of(metrics, arm)
    passes = tokens / metadata["config"]["seq_len"] / metadata["data"]["train_rows"]
    sentences = (
        f"Quality: {describe_quality(found, arm, reference, ref.mean(), _declared(plan, claim))}",
        _seeds_that_may_be_worse(found, x - ref),
        _block_by_block(x - ref, {arm, reference} & set(unsteady(metrics))),
        _trend(metrics, (arm, reference)),
        f"Trained on {tokens:,} tokens, {passes:,.2f} times the data.",
        "This does not show that it stays so with longer training, other data or a larger model.",
    )
    return " ".join(filter(None, sentences))


def quality_claims(metrics, metadata):
    """A claim on the validation loss of every pattern against full attention."""
    if metadata["plan"]["equivalence_margin"] is None:
        return []
    asked = [claim for claim in primary_of(metrics) if claim[3] == "non-inferiority"]
    return list(filter(None, (_quality_claim(metrics, metadata, claim) for claim in asked)))


def _times_as_fast(slower, faster):
    ratio = paired_ratio(slower, faster)
    return with_interval(ratio.ratio, ratio.low, ratio.high, "{:.3f}".format)


def decomposition(metrics, metadata):
    """baseline / window = (baseline / fused) x (fused / window), over the blocks of all three.

    A list with one claim, or an empty one where there is nothing to explain.
    """
    arms = ("baseline", "window", "fused")
    if not {"baseline", "window"} <= set(metrics):
        return []
    baseline, window, fused = shared_values(metrics, arms, "training_time")
    if not baseline.size:
        return [
            "No decomposition: it needs blocks in which baseline, window and fused all ended well. "
            "Without the control fused, a gain of window over baseline may come from the kernel "
            "and not from sparsity."
        ]
    name = "mask" if metadata["pattern"]["evaluation"] in EVERY_PAIR else "sparsity"
    return [
        f"Where the speed comes from: window is {_times_as_fast(baseline, window)} times as "
        f"fast as baseline = kernel {_times_as_fast(baseline, fused)} (fused against baseline) x "
        f"{name} {_times_as_fast(fused, window)} (window against fused; below 1: slower), "
        f"geometric means over {counted(baseline.size, 'block')} that all three finished; the "
        "tests of each are below."
    ]


def _caveats_once(claims):
    """The claims without an end, "Trained on" or "This does not show", that the next repeats."""
    kept = []
    for claim, following in zip_longest(claims, claims[1:], fillvalue=""):
        text, *end = re.split("( Trained on .*| This does not show .*)", claim, maxsplit=1)
        said_again = end and following.endswith(end[0])
        kept.append(text if said_again else claim)
    return kept


def claims_of(metrics, metadata, found):
    """Every claim of the report, those on time first; found: of ``compare``."""
    times = ratio_claims(metrics, metadata, found, "training_time", "time")
    quality = [*quality_claims(metrics, metadata), *reach_claims(metrics)]
    memory = ratio_claims(metrics, metadata, found, "peak_memory_mb", "memory")
    return _caveats_once([*decomposition(metrics, metadata), *times, *quality, *memory])

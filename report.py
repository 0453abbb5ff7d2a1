"""The report of a saved experiment: every claim with its evidence, and what it does not show.

    python metrics_utils.py [output/experiment_results.json]     prints it again, without torch

Everything is worked out from the metrics and metadata of metrics_utils, by the tests of
significance.py.
"""

import argparse
import math
import os
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metrics_utils import (
    CONTRASTS,
    OUTCOMES,
    PRACTICAL_SHARE,
    REPORT_NAME,
    RESULTS_NAME,
    SHOWN_SHARE,
    MetricsError,
    atomic_write,
    declared_margin,
    fitting,
    format_summary,
    launched,
    load_experiment,
    ok_values,
    ordered_arms,
    pattern_text,
    planned_trainings,
    ranks_text,
    shared_values,
    text_table,
    throttled,
)
from significance import (
    ALPHA,
    LEVEL,
    POWER,
    ROUNDING,
    carry_over,
    drift,
    holm,
    non_inferiority,
    outlying,
    paired_difference,
    paired_ratio,
    smallest_p,
    trend,
    two_sample_t,
)

FAMILY_OUTCOMES = ("training_time", "peak_memory_mb", "val_loss")  # tested for every contrast
PRIMARY = (  # what an experiment is made for, declared in its plan
    ("window", "fused", "training_time", "ratio"),
    ("window", "baseline", "training_time", "ratio"),
    ("window", "fused", "val_loss", "non-inferiority"),
    ("window", "baseline", "val_loss", "non-inferiority"),
)
SPARSITY = ("window", "fused", "training_time")
COLUMNS = 100
NOISY_SHARE, FAR_SHARE = 0.10, 0.50  # of the mean: pyperf's limits for calling runs unstable
FAR_OUT = 3.0  # interquartile ranges (Tukey 1977)
LARGEST_LOSS = 50  # nats of difference beyond which a perplexity is no number for people
SLOW_SHARE = 0.10  # by which the first training must be slower than the slowest other
# a step is held up beyond this many medians; more than this share of them are the arm's own way,
# fewer are told where they cost this share of the training time (effects here are a few percent)
HELD_UP, HELD_UP_STEPS, HELD_UP_TIME = 1.5, 0.02, 0.015


# --- words for numbers -------------------------------------------------------------------------


def _p_value(p):
    return "-" if p is None else f"{p:.2g}" if p >= 1e-15 else "< 1e-15"


def _starred(p):
    """A p-value with a mark where it is below ALPHA."""
    return _p_value(p) + ("*" if p is not None and p < ALPHA else " ")


def _number(value, template):
    return "-" if value is None else template.format(value)


def _interval(ratio):
    """A ratio's interval, or in its place why there is none."""
    return ratio.note if ratio.low is None else f"[{ratio.low:.4f}, {ratio.high:.4f}]"


def _wrapped(text, indent="  "):
    return textwrap.wrap(text, COLUMNS, subsequent_indent=indent, break_on_hyphens=False)


# --- what the runs say -------------------------------------------------------------------------


class Compared(NamedTuple):
    """One outcome of an arm against a reference, over the runs that both finished."""

    x: np.ndarray
    reference: np.ndarray
    ratio: object
    adjusted: float | None  # Holm's p over the declared family; None: not in it, or no test


def positive(x, reference):
    """Can a ratio be taken of these values?"""
    return bool(x.size) and min(x.min(), reference.min()) > 0


def contrasts_of(metrics):
    """(arm, reference, meaning) of every contrast whose arms were trained."""
    return [c for c in CONTRASTS if c[0] in metrics and c[1] in metrics]


def family_of(metrics, metadata):
    """[(arm, reference, outcome)] that Holm's correction is over, as the plan declares them."""
    declared = metadata.get("plan", {}).get("family")
    if declared is None:  # a file from before it was declared
        return [(a, b, key) for a, b, _ in contrasts_of(metrics) for key in FAMILY_OUTCOMES]
    return [tuple(item) for item in declared]


def compare(metrics, metadata):
    """{(arm, reference, outcome): Compared} of every contrast and outcome with positive pairs."""
    found = {}
    for arm, reference, _ in contrasts_of(metrics):
        for key, *_ in OUTCOMES:
            x, ref = shared_values(metrics, (arm, reference), key)
            if positive(x, ref):
                found[arm, reference, key] = Compared(x, ref, paired_ratio(x, ref), None)
    family = [place for place in family_of(metrics, metadata) if place in found]
    adjusted = holm([found[place].ratio.p for place in family])
    for place, p in zip(family, adjusted, strict=True):
        found[place] = found[place]._replace(adjusted=p)
    return found


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
            f"[{ratio.low:.4f}, {ratio.high:.4f}] includes 1, p {_p_value(ratio.p)}."
        )
    # an interval of less time, in the direction that the sentence speaks of
    low, high = sorted((abs(1 - ratio.low), abs(1 - ratio.high)))
    text += f" [{low:.2%}, {high:.2%}], p {_p_value(ratio.p)}"
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
        text += f"; adjusted p {_p_value(compared.adjusted)} (Holm, {family_size} tests)"
        if compared.ratio.p < ALPHA <= compared.adjusted:
            text += ", which is not significant among so many"
    return text + "."


def primary_of(metadata):
    """The claims that the plan declares as what the experiment is for."""
    declared = metadata.get("plan", {}).get("primary")
    return PRIMARY if declared is None else [tuple(claim) for claim in declared]


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
            f"{_p_value(claim.p_not_worse)} (non-inferiority, paired t-test, {claim.n} runs)."
            " Primary, so not adjusted."
        )
        text += (
            f" Equivalence within ±{margin:g}: {claim.equivalence}, {2 * LEVEL - 1:.0%} interval "
            f"[{claim.low:+.4f}, {claim.high:+.4f}], p {_p_value(claim.p_equivalent)} (two "
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
        ("faster", faster, f"time ratio {ratio.ratio:.4f} {_interval(ratio)}", ratio.p),
        ("not worse", quality.verdict == "not worse", "validation loss", quality.p_not_worse),
    )
    words = "is shown" if all(shown for _, shown, *_ in parts) else "is not shown"
    missing = [name for name, shown, *_ in parts if not shown]
    reason = " (neither part is)" if len(missing) == 2 else ""
    if len(missing) == 1:
        reason = f" ({missing[0]} is not)"
    evidence = "; ".join(f"{what}, p {_p_value(p)}" for _, _, what, p in parts)
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
    interval = "" if ratio.low is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{ratio.ratio:.3f}x{interval}"


def claims_of(metrics, metadata, found):
    """Every claim of the report, a sentence or a few each, the most important first."""
    return [
        *_decomposition(metrics, metadata),
        *sparsity_claims(metadata, found),
        *quality_claims(metrics, metadata),
        *both_claim(metrics, metadata, found),
        *ratio_claims(metrics, metadata, found),
    ]


def tests_of(metrics, metadata):
    """Every test of the report as a JSON-like list, so that the results carry them."""
    margin, tests = declared_margin(metadata), []
    for (arm, reference, key), compared in compare(metrics, metadata).items():
        test = {"arm": arm, "reference": reference, "outcome": key, **asdict(compared.ratio)}
        test |= {"adjusted_p": compared.adjusted}
        test["two_sample"] = asdict(two_sample_t(compared.x, compared.reference))
        if key == "val_loss":
            test["difference"] = asdict(paired_difference(compared.x, compared.reference))
            if margin is not None:
                claim = non_inferiority(compared.x, compared.reference, margin)
                test["quality"] = asdict(claim)
        tests.append(test)
    return tests


# --- the tables --------------------------------------------------------------------------------


def _tests_row(words, compared):
    """One outcome's ratio with its paired test; x and reference are per run."""
    x, reference, ratio, adjusted = compared
    return [
        words,
        f"{100 * (1 - x.mean() / reference.mean()):+.2f} %",
        f"{ratio.ratio:.4f}",
        _interval(ratio),
        _starred(ratio.p),
        _starred(adjusted),
        "> 1,000%" if (ratio.detectable or 0) > 10 else _number(ratio.detectable, "{:.2%}"),
    ]


def _more_tests_row(words, compared):
    """The same outcome by other tests: robust ones, and the published ones."""
    x, reference, ratio, _ = compared
    published = two_sample_t(x, reference)
    return [
        words,
        _starred(ratio.permutation_p),
        _starred(ratio.wilcoxon_p),
        _number(ratio.effect_size, "{:.2f}"),
        "-" if published.t is None else f"t {published.t:.2f}, p {_starred(published.p)}",
        _number(published.d, "{:.2f}"),
    ]


def _contrast_lines(metrics, found, arm, reference, meaning):
    header = ["", "improvement", "ratio", f"{LEVEL:.0%} interval", "p", "adjusted p", "detectable"]
    more = ["", "sign-flip p", "Wilcoxon p", "d_z", "two-sample t-test", "Cohen's d"]
    rows, more_rows, notes = [header], [more], []
    for key, words, *_ in OUTCOMES:
        if (arm, reference, key) in found:
            rows.append(_tests_row(words, found[arm, reference, key]))
            more_rows.append(_more_tests_row(words, found[arm, reference, key]))
        elif shared_values(metrics, (arm, reference), key)[0].size:
            notes.append(f"{words}: a value is not positive, so no ratio.")
    if len(rows) == 1 and not notes:
        return [f"{arm} against {reference}: no run in which both ended well, so no comparison."]
    title = f"{arm} against {reference} ({meaning})"
    return [title, *text_table(rows), *text_table(more_rows), *notes]


def _spread_lines(metrics):
    """Median, median absolute deviation and extremes: what a mean does not tell."""
    rows = [["arm"] + [f"{words} ({unit})" for _, words, unit, _ in OUTCOMES]]
    for arm in ordered_arms(metrics):
        cells = []
        for key, _, _, digits in OUTCOMES:
            x = ok_values(metrics, arm, key)
            if x.size > 1:
                middle = np.median(x)
                numbers = (middle, np.median(np.abs(x - middle)), x.min(), x.max())
                cells.append("{} ± {} ({} … {})".format(*(f"{v:,.{digits}f}" for v in numbers)))
            else:
                cells.append("-")
        rows.append([arm, *cells])
    return ["Median ± median absolute deviation (least … most)", *text_table(rows)]


LEGEND = [
    "improvement: of the mean, positive where the first arm is lower.",
    f"ratio: first arm over second, geometric mean over runs, {LEVEL:.0%} interval and p of the "
    "paired t-test on logs.",
    "adjusted p: Holm's, over the family of tests: every contrast's time, memory and validation "
    "loss, where it has a p (declared in the plan, but for files of the first version).",
    f"detectable: the change that these runs could have detected with {POWER:.0%} power.",
    "sign-flip: exact permutation test of the log ratios. d_z: paired effect size, mean over "
    "standard deviation of them.",
    "two-sample t-test and Cohen's d: as published; they ignore the pairing.",
    f"*: p below alpha = {ALPHA}. Contrasts use the runs that both arms finished; the table of "
    "means all of an arm's.",
]


# --- order, drift, outliers --------------------------------------------------------------------


def _per_run(metrics, *arms):
    """(training time, arm, run) of these arms' trainings that ended well, in launch order."""
    launches = [
        (run["training_time"], arm, run)
        for arm in arms
        for run in metrics[arm]
        if run["status"] == "ok" and 0 < run["training_time"] < math.inf
    ]
    launches.sort(key=lambda launch: launch[2]["launch_index"])
    return launches


def _percent(*logs):
    """A log effect with its interval as percent."""
    center, low, high = (100 * math.expm1(value) for value in logs)
    return f"{center:+.2f} % [{low:+.2f}, {high:+.2f}]"


def _position_line(metrics, arm, reference):
    """What coming one place later in a block does to the time of an arm against another."""
    by_run = [{run["run"]: run for *_, run in _per_run(metrics, a)} for a in (arm, reference)]
    pairs = [(by_run[0][run], by_run[1][run]) for run in sorted(set(by_run[0]) & set(by_run[1]))]
    title = f"position, {arm} against {reference}: "
    if not pairs:
        return title + "no run in which both ended well."
    places = [a["position"] - b["position"] for a, b in pairs]
    fit = trend(places, [math.log(a["training_time"] / b["training_time"]) for a, b in pairs])
    if fit.low is None:
        same = len(set(places)) == 1 and len(places) > 2
        return title + ("the same places in every run." if same else f"{fit.note}.")
    adjusted = (math.exp(fit.intercept), math.exp(fit.intercept_low), math.exp(fit.intercept_high))
    return (
        f"{title}one place later {_percent(fit.slope, fit.low, fit.high)}; adjusted for it the "
        "time ratio is {:.4f} [{:.4f}, {:.4f}].".format(*adjusted)
    )


def _drift_line(launches):
    values, arms = [v for v, *_ in launches], [arm for _, arm, _ in launches]
    found = drift(values, arms, [run["launch_index"] for *_, run in launches])
    if found.trend.low is None:
        return f"drift: {found.trend.note}."
    fit = found.trend
    rho = ""
    if found.rho is not None:
        rho = f"; Spearman's rho {found.rho:+.2f}, p {_p_value(found.rho_p)}"
    return f"drift: from one training to the next {_percent(fit.slope, fit.low, fit.high)}{rho}."


def _carry_over_line(launches):
    values, arms = [v for v, *_ in launches], [arm for _, arm, _ in launches]
    blocks, previous = zip(*((r["run"], r["previous_arm"]) for *_, r in launches), strict=True)
    found = carry_over(values, arms, list(blocks), list(previous))
    parts = [
        f"after {arm} {_percent(i.mean, i.low, i.high)}"
        for arm, i in sorted(found.items())
        if i.low is not None
    ]
    return f"carry-over: {', '.join(parts)}." if parts else "carry-over: too few trainings to tell."


def outlying_runs(metrics, ranges=1.5):
    """[(arm, run, outcome's words, value)] of the values outside Tukey's fences of their arm."""
    found = []
    for arm in ordered_arms(metrics):
        for key, words, *_ in OUTCOMES:
            runs = [r for r in metrics[arm] if r["status"] == "ok" and math.isfinite(r[key])]
            if runs:
                flags = outlying([run[key] for run in runs], ranges)
                found += [
                    (arm, run["run"], words, run[key])
                    for run, flag in zip(runs, flags, strict=True)
                    if flag
                ]
    return found


def _pairing_line(metrics, arm, reference):
    """How much of the spread of the times a block's trainings share."""
    x, ref = shared_values(metrics, (arm, reference), "training_time")
    if x.size < 3 or not positive(x, ref) or np.ptp(x) == 0 or np.ptp(ref) == 0:
        return None
    share = np.corrcoef(np.log(x), np.log(ref))[0, 1]
    return (
        f"pairing: the times of {arm} and {reference} correlate over the blocks with {share:+.2f}."
    )


def _check_lines(metrics):
    """Order, drift, carry-over and outliers of the training times: estimates, not verdicts."""
    launches = _per_run(metrics, *ordered_arms(metrics))
    if not launches:
        return []
    lines = ["Order, drift and outliers (training time; estimates with their 95% intervals)"]
    for arm, reference, _ in contrasts_of(metrics)[:3]:
        lines.append("  " + _position_line(metrics, arm, reference))
    lines.append("  " + _drift_line(launches))
    if any(run["previous_arm"] for *_, run in launches):
        lines.append("  " + _carry_over_line(launches))
    pairing = [_pairing_line(metrics, a, b) for a, b, _ in contrasts_of(metrics)[:3]]
    lines += ["  " + line for line in pairing if line]
    outliers = [f"{a} run {r + 1}: {words} {v:,.4g}" for a, r, words, v in outlying_runs(metrics)]
    lines.append(
        "  outlying (Tukey's fences; none dropped): " + ("; ".join(outliers) or "none") + "."
    )
    return lines


# --- warnings ----------------------------------------------------------------------------------


def split_blocks(metrics):
    """The runs (blocks) whose trainings were not all made by one launch of the program."""
    launches = {}
    for run in launched(metrics):
        launches.setdefault(run["run"], set()).add(run["launch_id"])
    return sorted(run for run, ids in launches.items() if len(ids) > 1)


def _spread_warnings(metrics):
    for arm in ordered_arms(metrics):
        times = ok_values(metrics, arm, "training_time")
        if times.size < 2:
            continue
        mean, deviation = times.mean(), times.std(ddof=1)
        if deviation >= NOISY_SHARE * mean:
            yield (
                f"{arm}: the training time varies by {deviation / mean:.0%} (standard deviation) "
                "from run to run: is another program using the machine?"
            )
        far = max(times, key=lambda seconds: abs(seconds - mean))
        if abs(far - mean) >= FAR_SHARE * mean:
            words = "more" if far > mean else "less"
            share = abs(far - mean) / mean
            yield f"{arm}: a training took {far:.2f} s, {share:.0%} {words} than the mean."


def _stall_warnings(metrics):
    """Trainings of which a few steps cost much of the time: no property of the arm."""
    for arm in ordered_arms(metrics):
        for run in metrics[arm]:
            steps = np.asarray(run["step_seconds"], dtype=np.float64)
            if run["status"] != "ok" or not steps.size or not np.isfinite(steps).all():
                continue
            usual, longest = float(np.median(steps)), int(np.argmax(steps))
            held_up = steps > HELD_UP * usual
            few = held_up.sum() <= max(1, HELD_UP_STEPS * steps.size)
            at_worst = f"step {longest + 1}: {1e3 * steps[longest]:,.1f} ms"
            cost = (steps[held_up] - usual).sum() / steps.sum() if usual > 0 else 0
            if few and cost >= HELD_UP_TIME:
                yield (
                    f"{arm}, run {run['run'] + 1}: {held_up.sum()} of {steps.size} steps took more "
                    f"than {HELD_UP:g} times the median ({1e3 * usual:,.1f} ms; {at_worst}) and "
                    f"cost {cost:.1%} of the training time: something held them up; they are kept."
                )


def _outlier_warnings(metrics):
    for arm, run, words, value in outlying_runs(metrics, FAR_OUT):
        yield f"{arm}, run {run + 1}: {words} {value:,.4g} is far from the others'; it is kept."
    first = next(iter(launched(metrics)), None)
    for arm in metrics:
        if first is not None and any(run is first for run in metrics[arm]):
            others = [r["training_time"] for r in metrics[arm] if r is not first]
            others = [seconds for seconds in others if math.isfinite(seconds)]
            if len(others) > 1 and first["training_time"] > max(others) * (1 + SLOW_SHARE):
                yield (
                    f"{arm}: the very first training took longer than every other: was the "
                    "machine still busy or cold?"
                )


def _device_warnings(metrics):
    for arm in ordered_arms(metrics):
        for run in metrics[arm]:
            if run["status"] != "ok":  # no comparison has its time
                continue
            place = f"{arm}, run {run['run'] + 1}"
            if words := throttled(run):
                yield f"{place}: the device slowed itself down ({', '.join(words)})."
            states = (run["device_before"], run["device_after"])
            if any(state and state.get("other_processes") for state in states):
                yield f"{place}: other processes were using the device."


def _mixed_warnings(metadata):
    for line in metadata.get("mixed", ()):
        yield f"MIXED: trainings that differ were taken together (--allow-mixed): {line}"


def _history_warnings(metrics, metadata):
    for run in split_blocks(metrics):
        yield (
            f"run {run + 1} was cut in two by a stop: its arms were not trained next to one "
            "another, so what drifts may not cancel in it."
        )
    for name in metadata.get("set_aside", ()):
        yield f"a damaged file was set aside (set_aside/{name}) and its training repeated."


def _plan_warnings(metadata):
    alpha = metadata.get("plan", {}).get("alpha", ALPHA)
    if alpha != ALPHA:
        yield f"the plan declares alpha {alpha}, and this version of the suite tests at {ALPHA}."


def _failure_warnings(metrics):
    failed = [run for run in launched(metrics) if run["status"] != "ok"]
    if len(failed) > 1:
        yield f"{len(failed)} trainings failed: with more than one, take no comparison as valid."
    pairs = [shared_values(metrics, c[:2], "training_time")[0] for c in contrasts_of(metrics)]
    blocks = min((pair.size for pair in pairs), default=0)
    if blocks == 1:
        yield "One run: no spread, no test. Use --runs 6 or more for both."
    if blocks >= 2 and smallest_p(blocks) >= ALPHA:
        yield (
            f"{blocks} runs: the exact tests cannot go below p {smallest_p(blocks):.4g}, so they "
            f"cannot reach {ALPHA} whatever the data. Use --runs 6 or more."
        )


def measurement_warnings(metrics, metadata):
    """What may have disturbed the measurements of an experiment, a sentence each."""
    return [
        *_history_warnings(metrics, metadata),
        *_spread_warnings(metrics),
        *_stall_warnings(metrics),
        *_outlier_warnings(metrics),
        *_device_warnings(metrics),
    ]


def find_warnings(metrics, metadata):
    """What a reader must know before the figures, a sentence each."""
    return [
        *_plan_warnings(metadata),
        *_mixed_warnings(metadata),
        *_failure_warnings(metrics),
        *measurement_warnings(metrics, metadata),
    ]


def _warning_lines(metrics, metadata):
    lines = []
    if metadata["status"] != "complete":
        done = sum(len(runs) for runs in metrics.values())
        lines.append(f"PARTIAL: {done} of {planned_trainings(metadata)} trainings.")
    for arm in ordered_arms(metrics):
        for run in metrics[arm]:
            if run["status"] != "ok":
                lines.append(f"{arm}, run {run['run'] + 1}: {run['status']}: {run['message']}")
    for warning in find_warnings(metrics, metadata):
        lines += _wrapped(f"warning: {warning}")
    return lines


# --- the whole ---------------------------------------------------------------------------------


def _pattern_line(config, pattern):
    line = f"pattern: {pattern_text(config)}"
    if pattern is None:  # a file from before it was recorded
        return line
    line += f", {pattern['density']:.1%} of the causal pairs"
    return line + (f", evaluated as {pattern['evaluation']}" if pattern["evaluation"] else "")


def _attention_line(attention):
    """What every arm's attention ran as, in words."""
    words = []
    for arm, used in attention.items():
        kernels = used.get("kernels") or [o.split("::")[-1] for o in used.get("operators", ())]
        words.append(
            f"{arm} {used['evaluation']}" + (f" ({', '.join(kernels)})" if kernels else "")
        )
    return "attention: " + "; ".join(words)


def _code_line(metadata):
    code = metadata.get("code") or {}
    revision = code.get("revision")
    where = f"revision {revision[:12]}" if revision else "no revision known"
    dirty = " with uncommitted changes" if code.get("dirty") else ""
    return f"code: {where}{dirty}, configuration {metadata.get('config_sha256', '')[:12]}"


def _plan_line(metadata):
    margin = declared_margin(metadata)
    plan = metadata["plan"]
    return (
        f"declared before the first run: equivalence margin {margin:g} nats of validation loss, "
        f"alpha {plan.get('alpha')}, {len(plan.get('family', ()))} tests in the family"
    )


def _heading_lines(metrics, metadata):
    config, data = metadata["config"], metadata["data"]
    world = metadata["environment"]
    compiled = "eager" if config["compile"] == "none" else f"compiled ({config['compile']})"
    title = "Sliding-window + dilated attention against full attention"
    lines = [
        f"{config['preset']} preset, {config['runs']} x {len(config['arms'])} trainings on "
        f"{world['device_name']}, torch {world['torch']}, {config['dtype']}, {compiled}"
        + ranks_text(config),
        f"model: d_model {config['d_model']}, {config['n_heads']} heads, {config['layers']} layers,"
        f" vocabulary {data['vocab_size']:,}, sequence length {config['seq_len']:,}"
        + (", rotary positions" if config.get("positions") == "rotary" else ""),
        _pattern_line(config, metadata.get("pattern")),
        f"data: {data['path']}, {data['train_rows']:,} rows for training, the last "
        f"{data['val_rows']:,} held out, {data['val_rows_used']:,} of them used for validation; "
        f"batches of {config['batch_size']}",
        f"peak memory: {metadata['memory_measure']}",
    ]
    if metadata.get("attention"):
        lines.append(_attention_line(metadata["attention"]))
    if declared_margin(metadata) is not None:  # else a file of the first version
        lines += [_code_line(metadata), _plan_line(metadata)]
    return [title, "=" * len(title), *(line for long in lines for line in _wrapped(long))]


def format_report(metrics, metadata):
    """The whole report as text: the claims, then the means and the tests behind them."""
    found = compare(metrics, metadata)
    claims = [f"{i}. {claim}" for i, claim in enumerate(claims_of(metrics, metadata, found), 1)]
    parts = [_heading_lines(metrics, metadata), _warning_lines(metrics, metadata)]
    parts.append(["Claims", *(line for claim in claims for line in _wrapped(claim, "   "))])
    parts.append(["Mean ± standard deviation over the runs", *format_summary(metrics).split("\n")])
    if any(ok_values(metrics, arm, "training_time").size > 1 for arm in metrics):
        parts.append(_spread_lines(metrics))
    for arm, reference, meaning in contrasts_of(metrics):
        parts.append(_contrast_lines(metrics, found, arm, reference, meaning))
    checks = _check_lines(metrics)
    parts.append([line for check in checks for line in _wrapped(check, "    ")])
    parts.append([line for sentence in LEGEND for line in _wrapped(sentence)])
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def write_report(metrics, metadata, output_dir, name=REPORT_NAME):
    """Write ``format_report`` into ``output_dir``; returns the path and the text."""
    text = format_report(metrics, metadata)
    path = Path(output_dir) / name
    # a path may hold what UTF-8 cannot say
    atomic_write(path, lambda file: file.write(text.encode(errors="backslashreplace")))
    return path, text


def main(argv=None):
    """Print the report of a saved experiment; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="metrics_utils.py",
        description="Print the report of a saved experiment again.",
        epilog="example: python metrics_utils.py results/h100_paper_10_runs.npz",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    results = f"output/{RESULTS_NAME}.json"
    parser.add_argument("results", nargs="?", default=results, help="saved metrics, .json or .npz")
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without ± gets a ? and not a traceback
            stream.reconfigure(errors="replace")
    try:
        with fitting(args.results):
            report = format_report(*load_experiment(args.results))
    except MetricsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        print(report, flush=True)
    except BrokenPipeError:  # as of `| head`: what was read is all that was wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: the report could not be written ({error.strerror})", file=sys.stderr)
        return 1
    return 0

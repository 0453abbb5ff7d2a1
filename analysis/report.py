"""The report of a saved experiment: every claim with its evidence, and what it does not show.

    python metrics_utils.py [output/experiment_results.json]     prints it again, without torch

Everything is worked out from the metrics and metadata of metrics.py, by the tests of
significance.py.
"""

import math
from pathlib import Path

import numpy as np

from analysis.claims import claims_of
from analysis.contrasts import compare, contrasts_of, positive
from analysis.drift import drift, trend
from analysis.metrics import REPORT_NAME
from analysis.power import ALPHA, POWER
from analysis.significance import LEVEL, two_sample_t
from analysis.values import (
    OUTCOMES,
    declared_margin,
    format_summary,
    ok_values,
    ordered_arms,
    pattern_text,
    planned_trainings,
    ranks_text,
    shared_values,
)
from analysis.warnings import find_warnings, outlying_runs
from analysis.words import interval, number, p_value, starred, text_table, wrapped
from machine.files import atomic_write


# --- the tables --------------------------------------------------------------------------------
def _tests_row(words, compared):
    """One outcome's ratio with its paired test; x and reference are per run."""
    x, reference, ratio, adjusted = compared
    return [
        words,
        f"{100 * (1 - x.mean() / reference.mean()):+.2f} %",
        f"{ratio.ratio:.4f}",
        interval(ratio),
        starred(ratio.p),
        starred(adjusted),
        "> 1,000%" if (ratio.detectable or 0) > 10 else number(ratio.detectable, "{:.2%}"),
    ]


def _more_tests_row(words, compared):
    """The same outcome by other tests: robust ones, and the published ones."""
    x, reference, ratio, _ = compared
    published = two_sample_t(x, reference)
    return [
        words,
        starred(ratio.permutation_p),
        number(ratio.effect_size, "{:.2f}"),
        "-" if published.t is None else f"t {published.t:.2f}, p {starred(published.p)}",
        number(published.d, "{:.2f}"),
    ]


def _contrast_lines(metrics, found, arm, reference, meaning):
    header = ["", "improvement", "ratio", f"{LEVEL:.0%} interval", "p", "adjusted p", "detectable"]
    more = ["", "sign-flip p", "d_z", "two-sample t-test", "Cohen's d"]
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
    launches.sort(key=lambda launch: launch[2]["index"])
    return launches


def _percent(*logs):
    """A log effect with its interval as percent."""
    center, low, high = (100 * math.expm1(value) for value in logs)
    return f"{center:+.2f} % [{low:+.2f}, {high:+.2f}]"


def _position_line(metrics, arm, reference):
    """What coming one place later in a block does to the time of an arm against another."""
    by_run = [{run["block"]: run for *_, run in _per_run(metrics, a)} for a in (arm, reference)]
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
    found = drift(values, arms, [run["index"] for *_, run in launches])
    if found.trend.low is None:
        return f"drift: {found.trend.note}."
    fit = found.trend
    rho = ""
    if found.rho is not None:
        rho = f"; Spearman's rho {found.rho:+.2f}, p {p_value(found.rho_p)}"
    return f"drift: from one training to the next {_percent(fit.slope, fit.low, fit.high)}{rho}."


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
    """Order, drift and outliers of the training times: estimates, not verdicts."""
    launches = _per_run(metrics, *ordered_arms(metrics))
    if not launches:
        return []
    lines = ["Order, drift and outliers (training time; estimates with their 95% intervals)"]
    for arm, reference, _ in contrasts_of(metrics)[:3]:
        lines.append("  " + _position_line(metrics, arm, reference))
    lines.append("  " + _drift_line(launches))
    pairing = [_pairing_line(metrics, a, b) for a, b, _ in contrasts_of(metrics)[:3]]
    lines += ["  " + line for line in pairing if line]
    outliers = [f"{a} run {r + 1}: {words} {v:,.4g}" for a, r, words, v in outlying_runs(metrics)]
    lines.append(
        "  outlying (Tukey's fences; none dropped): " + ("; ".join(outliers) or "none") + "."
    )
    return lines


def _warning_lines(metrics, metadata):
    lines = []
    if metadata["status"] != "complete":
        done = sum(len(runs) for runs in metrics.values())
        lines.append(f"PARTIAL: {done} of {planned_trainings(metadata)} trainings.")
    for arm in ordered_arms(metrics):
        for run in metrics[arm]:
            if run["status"] != "ok":
                lines.append(f"{arm}, run {run['block'] + 1}: {run['status']}: {run['message']}")
    for warning in find_warnings(metrics, metadata):
        lines += wrapped(f"warning: {warning}")
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
    return [title, "=" * len(title), *(line for long in lines for line in wrapped(long))]


def format_report(metrics, metadata):
    """The whole report as text: the claims, then the means and the tests behind them."""
    found = compare(metrics, metadata)
    claims = [f"{i}. {claim}" for i, claim in enumerate(claims_of(metrics, metadata, found), 1)]
    parts = [_heading_lines(metrics, metadata), _warning_lines(metrics, metadata)]
    parts.append(["Claims", *(line for claim in claims for line in wrapped(claim, "   "))])
    parts.append(["Mean ± standard deviation over the runs", *format_summary(metrics).split("\n")])
    if any(ok_values(metrics, arm, "training_time").size > 1 for arm in metrics):
        parts.append(_spread_lines(metrics))
    for arm, reference, meaning in contrasts_of(metrics):
        parts.append(_contrast_lines(metrics, found, arm, reference, meaning))
    checks = _check_lines(metrics)
    parts.append([line for check in checks for line in wrapped(check, "    ")])
    parts.append([line for sentence in LEGEND for line in wrapped(sentence)])
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def write_report(metrics, metadata, output_dir, name=REPORT_NAME):
    """Write ``format_report`` into ``output_dir``; returns the path and the text."""
    text = format_report(metrics, metadata)
    path = Path(output_dir) / name
    # a path may hold what UTF-8 cannot say
    atomic_write(path, lambda file: file.write(text.encode(errors="backslashreplace")))
    return path, text

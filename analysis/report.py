"""The report of a saved experiment: every claim with its evidence, and what it does not show."""

import math
from pathlib import Path

import numpy as np

from analysis import values, words
from analysis.answers import answers
from analysis.claims import claims_of
from analysis.contrasts import compare, contrasts_of
from analysis.metrics import REPORT_NAME
from analysis.reach import reach_section
from analysis.significance import (
    ALPHA,
    LEVEL,
    POWER,
    TOO_WIDE,
    WIDEST,
    drift,
    slope,
    two_sample_t,
)
from analysis.spread import loss_section
from analysis.warnings import find_warnings
from analysis.words import Section, report_text
from machine.command import counted
from machine.files import write_text

TITLE = "Sliding-window + dilated attention against full attention"
LEGEND = (
    "improvement: 1 - ratio, positive where the first arm is lower.",
    f"ratio: first arm over second, geometric mean over blocks, {LEVEL:.0%} interval and p of the "
    "paired t-test on logs.",
    "adjusted p: Holm's, over the declared family: every contrast's time, memory and validation "
    "loss, where it has a p.",
    f"detectable: the change that these blocks could have detected with {POWER:.0%} power.",
    "median ratio: of the blocks' ratios, which one block that is far off does not move.",
    "sign-flip: exact permutation test of the log ratios. d_z: paired effect size, mean over "
    "standard deviation of them.",
    "two-sample t-test and Cohen's d: as published; they ignore the pairing.",
    f"*: p below alpha = {ALPHA}. Contrasts use the blocks that both arms finished; the table of "
    "means all of an arm's trainings.",
)


def _recorded(metadata):
    """What ran and what the plan declares, as texts; files of the first version know neither."""
    lines, attention = [], []
    for arm, used in metadata["attention"].items():
        kernels = used["kernels"] or [name.split("::")[-1] for name in used["operators"]]
        detail = f" ({', '.join(kernels)})" if kernels else ""
        density = used.get("density")
        if density and values.pattern_of_arm(arm):  # window's has a line of its own
            detail += f", {density:.1%} of the causal pairs"
        attention.append(f"{arm} {used['evaluation']}{detail}")
    if attention:
        lines.append(f"attention: {'; '.join(attention)}")
    if code := metadata["code"]:
        revision = (code["revision"] or "unknown")[:12]
        dirty = " with uncommitted changes" if code["dirty"] else ""
        configuration = metadata["config_sha256"][:12]
        lines.append(f"code: revision {revision}{dirty}, configuration {configuration}")
    plan = metadata["plan"]
    if plan["equivalence_margin"]:
        kept = plan["confirmation"]
        lines.append(
            f"declared before the first block: equivalence margin {plan['equivalence_margin']:g} "
            f"nats of validation loss, alpha {plan['alpha']}, {len(plan['family'])} tests in the "
            "family" + f", the last {kept} blocks kept out of the choice of a pattern" * bool(kept)
        )
    return lines


def _pattern_in_words(metadata):
    """``pattern_text``; if ``window`` was trained, with what it keeps and how it was evaluated."""
    config, recorded = metadata["config"], metadata["pattern"]
    pattern = values.pattern_text(config)
    if "window" not in config["arms"]:
        return pattern
    if recorded["density"]:
        pattern += f", {recorded['density']:.1%} of the causal pairs"
    if recorded["evaluation"]:
        pattern += f", evaluated as {recorded['evaluation']}"
    return pattern


def heading(metadata):
    """What ran where, and on what data, as texts."""
    config, data, environment = metadata["config"], metadata["data"], metadata["environment"]
    compiled = "eager" if config["compile"] == "none" else f"compiled ({config['compile']})"
    rotary = ", rotary positions" if config["positions"] == "rotary" else ""
    lines = [
        f"{config['preset']} preset, {counted(config['runs'], 'block')} of "
        f"{counted(len(config['arms']), 'training')} on "
        f"{environment['device_name']}, torch {environment['torch']}, {config['dtype']}, "
        f"{compiled}{values.ranks_text(config)}",
        f"model: d_model {config['d_model']}, {counted(config['n_heads'], 'head')}, "
        f"{counted(config['layers'], 'layer')},"
        f" vocabulary {data['vocab_size']:,}, sequence length {config['seq_len']:,}{rotary}",
    ]
    if pattern := _pattern_in_words(metadata):
        lines.append(f"pattern: {pattern}")
    lines += [
        f"data: {data['path']}, {counted(data['train_rows'], 'row')} for training, the last "
        f"{data['val_rows']:,} held out, {data['val_rows_used']:,} of them used for validation; "
        f"batches of {config['batch_size']}",
        f"peak memory: {metadata['memory_measure']}",
    ]
    if data["unigram_loss"] is not None:
        without = (
            f"validation loss without a model: {math.log(data['vocab_size']):.3f} nats for equally "
            f"likely tokens, {data['unigram_loss']:.3f} from their frequencies"
        )
        if data["bigram_loss"] is not None:
            without += f", {data['bigram_loss']:.3f} from the token before alone"
        lines.append(without)
    return lines + _recorded(metadata)


def _problems(metrics, metadata):
    """The trainings that failed and the warnings, as texts."""
    lines = []
    for arm, training in values.trainings_of(metrics):
        if training["status"] != "ok":
            place = f"{arm}, block {training['block'] + 1}"
            lines.append(f"{place}: {training['status']}: {training['message']}")
    return lines + [f"warning: {warning}" for warning in find_warnings(metrics, metadata)]


def _contrast_section(found, arm, reference, meaning):
    """The two tables of a contrast: the paired test, then a robust one and the published ones."""
    interval = f"{LEVEL:.0%} interval"
    paired = [["", "improvement", "ratio", interval, "p", "adjusted p", "detectable"]]
    further = [["", "median ratio", "sign-flip p", "d_z", "two-sample t", "its p", "Cohen's d"]]
    for key, outcome, _ in values.OUTCOMES:
        if (arm, reference, key) not in found:
            continue
        x, ref, ratio, adjusted = found[arm, reference, key]
        published = two_sample_t(x, ref)
        paired.append(
            [
                outcome,
                words.percent(1 - ratio.ratio, "+"),
                f"{ratio.ratio:.4f}",
                ratio.note or f"[{ratio.low:.4f}, {ratio.high:.4f}]",
                words.starred(ratio.p),
                words.starred(adjusted),
                words.percent(ratio.detectable),
            ]
        )
        further.append(
            [
                outcome,
                f"{np.median(x / ref):.4f}",
                words.starred(ratio.permutation_p),
                words.amount(ratio.effect_size, "sd"),
                words.amount(published["t"], "sd"),
                words.starred(published["p"]),
                words.amount(published["d"], "sd"),
            ]
        )
    if len(paired) == 1:
        return Section("", [f"{arm} against {reference}: no block in which both ended well."])
    title = f"{arm} against {reference} ({meaning})"
    return Section(title, [paired] if x.size == 1 else [paired, further])


def _log_percent(effect):
    """The ``Interval`` of a log effect as a change in percent."""
    if effect.high - effect.low > math.log(WIDEST):
        return f"unknown ({TOO_WIDE})"
    shares = np.expm1([effect.mean, effect.low, effect.high])
    return words.with_interval(*shares, lambda share: words.percent(share, "+"))


def _check_section(metrics):
    """Position and drift of the training times: estimates, not verdicts."""
    trainings = values.ok_trainings(metrics)
    title = f"Order and drift (training time; estimates with their {LEVEL:.0%} intervals)"
    if len(trainings) < 3:
        return Section(title, [])
    effects = {}
    for arm, reference, _ in contrasts_of(metrics):
        pairs = values.paired_trainings(metrics, (arm, reference))
        places = [a["position"] - b["position"] for a, b in pairs]
        logs = [math.log(a["training_time"] / b["training_time"]) for a, b in pairs]
        name = f"position, {arm} against {reference}: one place later"
        effects[name] = slope(places, logs)
    seconds = [training["training_time"] for _, training in trainings]
    found = drift(seconds, [arm for arm, _ in trainings], [t["index"] for _, t in trainings])
    effects["drift: from one training to the next"] = found
    lines = [f"{name} {_log_percent(effect)}." for name, effect in effects.items() if effect]
    if len(lines) < len(effects):
        lines.append("what is not named here is unknown: fewer than 3 points, or no spread.")
    return Section(title, lines)


def report_sections(metrics, metadata):
    """The whole report: the answers first, then the claims, the means and the tests behind them."""
    found = compare(metrics, metadata)
    claims = claims_of(metrics, metadata, found) or ["none: no block has two arms to compare"]
    claims = [f"{place}. {claim}" for place, claim in enumerate(claims, 1)]
    medians = max(map(len, metrics.values())) > 1
    return [
        Section("", answers(metrics, metadata)),
        Section(TITLE, heading(metadata)),
        Section("", _problems(metrics, metadata)),
        Section("Claims", claims, "   "),
        Section(
            "Mean ± standard deviation over the blocks",
            [values.outcome_table(metrics, words.mean_sd)],
        ),
        Section(
            "Median ± median absolute deviation (least … most)",
            [values.outcome_table(metrics, words.median_mad)] if medians else [],
        ),
        loss_section(metrics),
        reach_section(metrics),
        *(_contrast_section(found, *contrast) for contrast in contrasts_of(metrics)),
        _check_section(metrics),
        Section("", LEGEND),
    ]


def format_report(metrics, metadata):
    """The whole report as text."""
    return report_text(report_sections(metrics, metadata))


def write_report(metrics, metadata, output_dir):
    """Write ``format_report`` into ``output_dir``; returns the path and the text."""
    text, path = format_report(metrics, metadata), Path(output_dir) / REPORT_NAME
    write_text(path, text)
    return path, text

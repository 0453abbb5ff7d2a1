"""A study in words: tables, warnings, and the pattern to choose."""

import textwrap

from analysis.words import text_table
from studies.points import point_name
from studies.summary import NO_ROOM, _inverse, measured_rows


# --- tables ------------------------------------------------------------------------------------
def with_interval(estimate, template):
    """An estimate with its interval in brackets, as text."""
    if estimate is None:
        return "-"
    value = template.format(estimate["mean"])
    if estimate["low"] is None:
        return value
    return f"{value} [{template.format(estimate['low'])}, {template.format(estimate['high'])}]"


def _gain(ratio):
    """A ratio of times turned into how many times as fast, with its interval."""
    if ratio is None:
        return "-"
    return with_interval(_inverse(ratio), "{:.3f}")


def _memory(contrast):
    return "-" if not contrast or not contrast["memory"] else f"{contrast['memory']['ratio']:.3f}"


def _outcome(arm):
    """An arm's step time and spread, or why there is none."""
    if arm["step_ms"] is not None:
        return with_interval(arm["step_ms"], "{:,.2f}")
    return "out of memory" if arm[NO_ROOM] else "diverged" if arm["diverged"] else "-"


def format_study(content):
    """A study's tables as text, a table for each kind of positions."""
    config = content["config"]
    gpus = content.get("gpus", 1)
    device = content["device_name"] + f" (each point on one of {gpus})" * (gpus > 1)
    lines = [
        f"Study of {content['study']}: {device}, torch {content['torch']}, "
        f"{config['dtype']}, compile {config['compile']}",
        f"model: d_model {config['d_model']}, {config['n_heads']} heads, {config['layers']} "
        f"layers; {content['points'][0]['steps']:,} steps of "
        f"{config['seq_len'] * config['batch_size']:,} tokens; learning rate "
        f"{config.get('schedule', 'cosine')} after the warm-up",
        "",
    ]
    lines += warning_lines(content)
    table = _length_table if content["study"] == "lengths" else _pattern_table
    for kind in dict.fromkeys(point["positions"] for point in content["points"]):
        here = [point for point in content["points"] if point["positions"] == kind]
        lines += [f"{kind} positions", *text_table(table(here)), ""]
        lines += _equal_lines(here) if content["study"] == "patterns" else []
    if content["study"] == "patterns":
        lines += [*recommend(content), ""]
    lines.append(
        "[ ]: 95 % t interval over the runs, paired by run where two arms are compared. faster: "
        "time of the other arm / time of the window arm.\nvalidation loss: window - other arm, "
        "nats a token, lower is better."
    )
    return "\n".join(lines)


def warning_lines(content):
    """What was taken together and what may have disturbed which point, as wrapped lines."""
    found = []
    for point in content["points"]:
        name = point_name(content["study"], point)
        found += [f"MIXED: {name}: {line}" for line in point.get("mixed", ())]
        # older files hold no warnings
        found += [f"warning: {name}: {warning}" for warning in point.get("warnings", ())]
    wrapped = [textwrap.wrap(w, 100, subsequent_indent="  ", break_on_hyphens=False) for w in found]
    return [line for lines in wrapped for line in lines] + [""] * bool(found)


def _length_table(points):
    rows = [["S", "pairs kept", "evaluation", "step baseline (ms)", "step fused (ms)"]]
    rows[0] += ["step window (ms)", "faster than fused", "limit", "faster than baseline"]
    rows[0] += ["memory/fused", "memory/baseline", "val. loss - fused"]
    for point in points:
        arms, contrasts = point["arms"], point["contrasts"]
        with_fused, with_baseline = (contrasts.get(f"window/{a}") for a in ("fused", "baseline"))
        row = [f"{point['seq_len']:,}", f"{point['density']:.1%}", point["evaluation"] or "-"]
        row += [_outcome(arms[a]) if a in arms else "-" for a in ("baseline", "fused", "window")]
        row += [_gain(with_fused and with_fused["time"]), f"{point['step_limit']:.3f}"]
        row += [_gain(with_baseline and with_baseline["time"])]
        row += [_memory(with_fused), _memory(with_baseline)]
        row += [with_interval(with_fused and with_fused["val_loss"], "{:+.4f}")]
        rows.append(row)
    return rows


def _pattern_table(points):
    rows = [["pattern", "pairs kept", "step (ms)", "faster than fused", "limit", "memory/fused"]]
    rows[0] += ["val. loss - fused", "quality", "on the front"]
    for point in points:
        for arm, summary in point["arms"].items():
            contrast = summary.get("contrast")
            row = [arm, f"{summary.get('density', 1):.1%}", _outcome(summary)]
            row += [_gain(contrast and contrast["time"]), f"{summary.get('step_limit', 1):.3f}"]
            row += [_memory(contrast), with_interval(contrast and contrast["val_loss"], "{:+.4f}")]
            row += [contrast["quality"]["verdict"] if contrast else "-"]
            rows.append([*row, "yes" if summary["pareto"] else ""])
    return rows


def _equal_lines(points):
    """Training losses at equal seconds, a line for each arm."""
    lines = []
    for point in points:
        equal = point["equal_seconds"]
        if equal is None:
            continue
        lines.append(
            f"after equal time, {equal['seconds']:.1f} s of training: training loss - fused (nats)"
        )
        rows = [["pattern", "difference", "on the front"]]
        for arm, difference in equal["differences"].items():
            on_front = "yes" if point["arms"][arm]["pareto_seconds"] else ""
            rows.append([arm, with_interval(difference, "{:+.4f}"), on_front])
        lines += [*text_table(rows), ""]
    return lines


def recommend(content):
    """Sentences on which pattern to choose, from the measurements of a study of patterns alone.

    For each kind of positions: the fastest pattern that is shown to be faster than fused and whose
    validation loss is shown not to be worse by the margin; or what is missing.
    """
    return [_recommendation(point) for point in content["points"]]


def _recommendation(point):
    kind, margin = f"{point['positions']} positions, S {point['seq_len']:,}", point["margin"]
    rows = measured_rows(point)
    if not rows:
        return f"{kind}: no pattern and fused ended well in the same run, so nothing to compare."
    faster = [row for row in rows if row[2]["low"] is not None and row[2]["low"] > 1]
    verdict = {arm: summary["contrast"]["quality"]["verdict"] for arm, summary, _ in rows}
    good = [row for row in faster if verdict[row[0]] == "not worse"]
    if good:
        arm, summary, gain = max(good, key=lambda row: row[2]["mean"])
        loss = summary["contrast"]["val_loss"]
        return (
            f"{kind}: {arm} is the fastest of {len(good)} pattern{'s' * (len(good) > 1)} shown to "
            f"be faster than fused and not worse by {margin:g} nats: "
            f"{with_interval(gain, '{:.3f}')} times as fast, validation loss "
            f"{with_interval(loss, '{:+.4f}')}."
        )
    words = f"{kind}: no pattern is shown to be both faster than fused and not worse by {margin:g}"
    words += f" nats; shown to be faster: {_names(faster)}; not worse: "
    words += _names([row for row in rows if verdict[row[0]] == "not worse"])
    undecided = [row for row in rows if verdict[row[0]] == "undecided"]
    if undecided:
        needed = [s["contrast"]["quality"]["runs_needed"] for _, s, _ in undecided]
        needed = [n for n in needed if n is not None]
        words += f"; quality undecided: {_names(undecided)}"
        words += f" (about {min(needed)} runs would decide the first)" if needed else ""
    return words + "."


def _names(rows):
    return ", ".join(arm for arm, *_ in rows) or "none"

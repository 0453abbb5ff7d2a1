"""A study in words: its setting, warnings, what to use, and tables.

An estimate is a dict with ``mean``, ``low`` and ``high``, the ends of its 95 % t interval, None
where there is none.
"""

from analysis.recommend import Recommendation, recommendation_text
from analysis.words import Section, report_text, with_interval
from machine.command import counted

STUDIES = ("lengths", "patterns")
NO_ROOM = "out_of_memory"  # what became of a training
EXPLANATION = (
    "[ ]: 95 % t interval over the blocks, paired where two arms are compared; on a log scale for "
    "times and ratios, whose means are geometric, and none beyond a factor of 10. faster: how many "
    "times as fast as the other arm. loss: nats a token, lower is better."
)


def point_name(study, config):
    """The name of a point's folder: ``rotary_1024``, or ``rotary`` in a study of patterns."""
    kind = config["positions"]
    return f"{kind}_{config['seq_len']}" if study == "lengths" else kind


def estimate_text(estimate, template):
    """An estimate with its interval in brackets, as text; "-" for None."""
    if estimate is None:
        return "-"
    return with_interval(estimate["mean"], estimate["low"], estimate["high"], template.format)


def speed_up(time):
    """How many times as fast, an estimate, from the dict of a ``Ratio`` of times."""
    low, high = (None if time[end] is None else 1 / time[end] for end in ("high", "low"))
    return {"mean": 1 / time["ratio"], "low": low, "high": high}


def measured_rows(point):
    """[(arm, its summary, speed-up over fused, an estimate)] of a point's patterns."""
    return [
        (arm, summary, speed_up(summary["contrast"]["time"]))
        for arm, summary in point["arms"].items()
        if summary.get("contrast")
    ]


def setting(content):
    """Device, model and amount of training, for the tables' head and the figures' captions."""
    config, point = content["config"], content["points"][0]
    return (
        f"{content['device_name']}, torch {content['torch']}, {config['dtype']}, compile "
        f"{config['compile']}; d_model {config['d_model']}, "
        f"{counted(config['n_heads'], 'head')}, {counted(config['layers'], 'layer')}; "
        f"blocks a point: {point['runs']}; {counted(point['steps'], 'step')} of "
        f"{config['seq_len'] * config['batch_size']:,} tokens; learning rate "
        f"{config['schedule']} after the warm-up"
    )


def points_of_kinds(content):
    """{kind of positions: its points, shortest first}."""
    kinds = {}
    for point in content["points"]:
        kinds.setdefault(point["positions"], []).append(point)
    return kinds


def study_sections(content):
    """A study: what to use, its setting, its warnings, and a table for each kind of positions."""
    rows_of = _length_rows if content["study"] == "lengths" else pattern_rows
    found = [
        Section("", uses(content["points"])),
        Section("", [f"Study of {content['study']}: {setting(content)}"]),
        Section("", warnings_of(content)),
    ]
    for kind, points in points_of_kinds(content).items():
        found.append(Section(f"{kind} positions", [table_of(rows_of(points))]))
    return [*found, Section("", [EXPLANATION])]


def format_study(content):
    """``study_sections`` as text."""
    return report_text(study_sections(content))


def table_of(rows):
    """Rows {column: text} as a table."""
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def uses(points):
    """What to use, a text for each of these points."""
    found = []
    for point in points:
        where = f"Use at S {point['seq_len']:,}, {point['positions']} positions"
        if marks := point.get("marks"):  # an earlier file has none
            where += f" ({'; '.join(marks)})"
        found.append(f"{where}: {recommendation_text(Recommendation(**point['recommendation']))}")
    return found


def warnings_of(content):
    """Mixed trainings, and what may have disturbed a measurement, point by point, as texts."""
    return [
        f"{kind}: {point_name(content['study'], point)}: {text}"
        for point in content["points"]
        for kind, found in (("MIXED", point["mixed"]), ("warning", point["warnings"]))
        for text in found
    ]


def _length_rows(points):
    """A row for each length, {column: text}."""
    rows = []
    for point in points:
        row = {
            "S": f"{point['seq_len']:,}",
            "pairs kept": f"{point['density']:.1%}",
            "evaluation": point["evaluation"] or "-",
            "limit": f"{point['step_limit']:.3f}",
        }
        row |= {f"step {arm} (ms)": _step_ms(found) for arm, found in point["arms"].items()}
        for pair, contrast in point["contrasts"].items():
            arm, reference = pair.split("/")
            row |= _cells(contrast, reference, f"{arm}: " * (arm != "window"))
        rows.append(row)
    return rows


def pattern_rows(points):
    """A row for each arm of the one point with this kind of positions, {column: text}."""
    (point,) = points
    rows = []
    for arm, found in point["arms"].items():
        contrast = found.get("contrast")
        row = {
            "pattern": arm,
            "pairs kept": f"{found.get('density', 1):.1%}",
            "limit": f"{found.get('step_limit', 1):.3f}",
            "step (ms)": _step_ms(found),
            **_cells(contrast, "fused"),
            "quality": contrast["quality"]["verdict"] if contrast else "-",
        }
        rows.append(row)
    return rows


def _cells(contrast, reference, arm=""):
    """What a contrast says, {column: text}; "-" for None.  arm: what columns begin with."""
    found = contrast or {"time": None, "memory": None, "val_loss": None}
    time, memory = found["time"], found["memory"]
    return {
        f"{arm}faster than {reference}": estimate_text(time and speed_up(time), "{:.3f}"),
        f"{arm}memory/{reference}": f"{memory['ratio']:.3f}" if memory else "-",
        f"{arm}val. loss - {reference}": estimate_text(found["val_loss"], "{:+.4f}"),
    }


def _step_ms(arm):
    """An arm's step time with its interval, or why there is none."""
    if arm["step_ms"] is not None:
        return estimate_text(arm["step_ms"], "{:,.2f}")
    return "out of memory" if arm[NO_ROOM] else "diverged"

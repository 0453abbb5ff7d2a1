"""The records of every benchmark as text: a table a length, what its columns say, what is missing.

Nothing is measured here; a record is the dict that the JSON file holds.
"""

from typing import NamedTuple

from analysis.words import text_table
from benchmarks.peers import FORWARD, ONE_TOKEN, TRAINING
from benchmarks.steps import STEP
from machine.files import missing_to_none


class Column(NamedTuple):
    """``form``: how the value that a record has under ``key`` is written; ``note``: what it is."""

    title: str
    key: str
    form: str = "{}"
    note: str = ""


# a table has those for which it has values
COLUMNS = [
    Column("peer", "peer"),
    Column("arm", "arm"),
    Column("compile", "compile"),
    Column("attends to", "attends"),
    *(Column(f"{timed} (ms)", timed) for timed in (FORWARD, TRAINING, ONE_TOKEN, STEP)),
    Column("over best full", "ratio_to_best_full", "{:.2f}x", "the fastest over all keys / this"),
    Column("fused over this", "fused_over_this", "{:.2f}x"),
    Column("read (MB)", "read_mb", "{:,.2f}", "keys and values"),
    Column("limit (ms)", "limit_ms", "{:,.3f}", "to read them as fast as a large copy does"),
    Column("of the limit", "share_of_limit", "{:.0%}", "the limit (else best full x pairs) / this"),
    Column("memory (MB)", "peak_memory_mb", "{:,.1f}", "peak of forward + backward, or of a step"),
    Column("error", "relative_error", "{:.1e}", "largest, against float64 on 384 tokens"),
]
NOTE = "ms: median ± half the interquartile range; what follows the times is of the last of them."


def results_text(records, skipped):
    """A table for each length, the meaning of the columns, and what was skipped."""
    lines, notes = [], {}
    for seq_len in dict.fromkeys(r["seq_len"] for r in records):
        rows = _rows([r for r in records if r["seq_len"] == seq_len])
        columns = [c for c in COLUMNS if any(row.get(c.key) is not None for row in rows)]
        table = [[column.title for column in columns]]
        table += [[_cell(row, column) for column in columns] for row in rows]
        lines += [_heading(rows[0]), *text_table(table), ""]
        notes |= {c.title: f"{c.title}: {c.note}." for c in columns if c.note}
    return "\n".join([*lines, NOTE, *notes.values(), *_skipped_lines(skipped)])


def _heading(record):
    heading = f"S {record['seq_len']:,}"
    if "density" in record:
        kept = record["density"]
        heading += f": the pattern keeps {kept:.2%} of the pairs, limit {1 / kept:.2f}x"
    if "copy_gb_per_s" in record:
        heading += f"; a copy moves {record['copy_gb_per_s']:,.0f} GB/s"
    return heading


def _rows(records):
    """A row for each name and compile mode: all its times, and the rest of its last record."""
    rows = {}
    for r in records:
        name = r.get("peer") or r["arm"]
        row = rows.setdefault((name, r.get("compile")), {})
        row |= missing_to_none(r)
        row[r["direction"]] = _time(r)
    return list(rows.values())


def _time(record):
    low, high = record["quartiles_ms"]
    digits = 3 if record["median_ms"] < 10 else 1
    return f"{record['median_ms']:,.{digits}f} ± {(high - low) / 2:,.{digits}f}"


def _cell(row, column):
    value = row.get(column.key)
    return "-" if value is None else column.form.format(value)


def _skipped_lines(skipped):
    """A line for each name and reason."""
    places = {}
    for item in skipped:
        name, timed = item.get("peer") or item["arm"], item["direction"]
        if "compile" in item:
            timed += f" (compile {item['compile']})"
        lengths, works = places.setdefault((name, item["reason"]), ([], []))
        lengths.append(f"{item['seq_len']:,}")
        works.append(timed)
    lines = []
    for (name, reason), (lengths, works) in places.items():
        where = " ".join(dict.fromkeys(lengths))
        lines.append(
            f"skipped: {name} at S {where}, {' and '.join(dict.fromkeys(works))}: {reason}"
        )
    return lines

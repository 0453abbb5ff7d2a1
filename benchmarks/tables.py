"""The records of the benchmarks as text: a table, a note on its columns, and what was skipped.

Nothing is measured here; a record is the dict that the JSON file holds.
"""

import math

from analysis.words import text_table
from attention.choose import attention_plan
from benchmarks.peers import ALL_DTYPES, DIRECTIONS, FORWARD, TRAINING


# --- table and picture -------------------------------------------------------------------------
def _time(record):
    low, high = record["quartiles_ms"]
    digits = 3 if record["median_ms"] < 10 else 1
    return f"{record['median_ms']:,.{digits}f} ± {(high - low) / 2:,.{digits}f}"


def _number(value, template):
    return "-" if value is None or math.isnan(value) else template.format(value)


ATTENTION_HEADER = ["peer", "attends to", f"{FORWARD} (ms)", f"{TRAINING} (ms)", "over best full"]
ATTENTION_HEADER += ["of the limit", "memory (MB)", "error"]
ATTENTION_NOTE = (
    "ms: median ± half the interquartile range. over best full: the fastest of flash, cudnn "
    "and efficient over this,\nforward + backward. of the limit: that times the share of the "
    "pairs. memory: peak of forward + backward beside the\ninputs. error: largest of output "
    "and gradients against float64 on 384 tokens."
)
DECODING_HEADER = ["peer", "attends to", "a token (ms)", "over best full", "read (MB)"]
DECODING_HEADER += ["limit (ms)", "of the limit", "error"]
DECODING_NOTE = (
    "a token: attention of one query alone, median ± half the interquartile range. over best "
    "full: the fastest that\nattends to all keys, over this. read: keys and values. limit: "
    "that at the speed of a large copy; what fits into a\ncache can be faster. error: against "
    "float64 on 384 tokens."
)
STEPS_HEADER = ["arm", "S", "B", "compile", "step (ms)", "fused over this", "memory (MB)"]


def format_attention(records, skipped):
    """The records of ``AttentionBenchmark`` as a table for each length, and what was skipped."""

    def title(first):
        w, d, dtype = first["window_size"], first["dilation"], ALL_DTYPES[first["dtype"]]
        plan = attention_plan(first["seq_len"], w, d, dtype, first["device"])
        return (
            f"S {_sizes(first)}: the pattern keeps {first['density']:.2%} of the pairs, "
            f"limit {1 / first['density']:.2f}x; auto takes {plan.evaluation}"
        )

    def rows(here):
        for name in dict.fromkeys(r["peer"] for r in here):
            found = {r["direction"]: r for r in here if r["peer"] == name}
            any_one, last = next(iter(found.values())), found.get(TRAINING, {})
            cells = [name, any_one["attends"]]
            cells += [_time(found[x]) if x in found else "-" for x in DIRECTIONS]
            cells.append(_number(last.get("ratio_to_best_full"), "{:.2f}x"))
            cells.append(_number(last.get("share_of_limit"), "{:.0%}"))
            cells.append(_number(last.get("peak_memory_mb"), "{:,.1f}"))
            yield [*cells, _number(any_one["relative_error"], "{:.1e}")]

    lines = _table_per_length(records, title, ATTENTION_HEADER, rows)
    return "\n".join([*lines, ATTENTION_NOTE, *_skipped_lines(skipped, "peer")])


def format_decoding(records, skipped):
    """The records of ``measure_decoding`` as a table for each context, and what was skipped."""

    def title(first):
        return f"context {_sizes(first)}: a copy moves {first['copy_gb_per_s']:,.0f} GB/s"

    def rows(here):
        for r in here:
            cells = [r["peer"], r["attends"], _time(r)]
            cells += [_number(r["ratio_to_best_full"], "{:.2f}x"), f"{r['read_mb']:,.2f}"]
            cells += [f"{r['limit_ms']:,.3f}", f"{r['share_of_limit']:.0%}"]
            yield [*cells, f"{r['relative_error']:.1e}"]

    lines = _table_per_length(records, title, DECODING_HEADER, rows)
    return "\n".join([*lines, DECODING_NOTE, *_skipped_lines(skipped, "peer")])


def format_steps(records, skipped):
    """The records of ``measure_steps`` as one table, and what was skipped."""
    rows = [STEPS_HEADER]
    for r in records:
        cells = [r["arm"], f"{r['seq_len']:,}", str(r["batch_size"]), r["compile"], _time(r)]
        cells += [_number(r["fused_over_this"], "{:.2f}x"), _number(r["peak_memory_mb"], "{:,.0f}")]
        rows.append(cells)
    return "\n".join([*text_table(rows), "", *_skipped_lines(skipped, "arm")])


def _sizes(r):
    """The length and the other sizes of a record's case."""
    return (
        f"{r['seq_len']:,} (B{r['batch_size']} H{r['heads']} D{r['head_dim']}, "
        f"w{r['window_size']} d{r['dilation']}, {r['dtype']})"
    )


def _table_per_length(records, title, header, rows):
    """The lines of a table for each length: ``title(its first record)``, header, ``rows(its)``."""
    lines = []
    for seq_len in dict.fromkeys(r["seq_len"] for r in records):
        here = [r for r in records if r["seq_len"] == seq_len]
        lines += [title(here[0]), *text_table([header, *rows(here)]), ""]
    return lines


def _skipped_lines(skipped, key):
    """What was skipped and why, a line for each name and reason."""
    where = {}
    for item in skipped:
        of = item.get("direction") or f"compile {item['compile']}"
        lengths = where.setdefault((item[key], item["reason"]), {})
        lengths.setdefault(f"{item['seq_len']:,}", []).append(of)
    lines = []
    for (name, reason), lengths in where.items():
        directions = {of for several in lengths.values() for of in several}
        only = f", {next(iter(directions))} only" if len(directions) == 1 else ""
        lines.append(f"skipped: {name} at S {' '.join(lengths)}{only}: {reason}")
    return lines

"""A benchmark's records as text: a table for each length, what its columns say, what was skipped.

Nothing is measured here, and no torch needed; a record is the dict that the JSON file holds.
"""

from analysis.warnings import disturbances, in_words
from analysis.words import Section
from machine.command import counted
from machine.files import missing_to_none

# what is timed: whole sequences, or the last query of one, whose keys and values are stored
FORWARD, TRAINING, ONE_TOKEN = "forward", "forward + backward", "one token"
STEP = "step"
ALL_KEYS = "all keys"
# {key of a record: title, and how its value is written}; a table has those that have values
COLUMNS = {
    "peer": ("peer", "{}"),
    "arm": ("arm", "{}"),
    "compile": ("compile", "{}"),
    "attends": ("attends to", "{}"),
    "evaluation": ("evaluation", "{}"),
    "density": ("pairs", "{:.1%}"),
    **{name: (f"{name} (ms)", "{}") for name in (FORWARD, TRAINING, ONE_TOKEN, STEP)},
    "ratio_to_best_full": ("over best full", "{:.2f}x"),
    "fused_over_this": ("fused over this", "{:.2f}x"),
    "read_mb": ("read (MB)", "{:,.2f}"),
    "limit_ms": ("limit (ms)", "{:,.3f}"),
    "share_of_limit": ("of the limit", "{:.0%}"),
    "peak_memory_mb": ("memory (MB)", "{:,.1f}"),
    "sent_mb": ("sent (MB)", "{:,.1f}"),
    "cache_mb": ("cache (MB)", "{:,.1f}"),
    "relative_error": ("error", "{:.1e}"),
}
NOTES = {
    "median_ms": "ms: median ± half the interquartile range; the rest is of the last of the times.",
    "ratio_to_best_full": "over best full: the fastest over all keys / this.",
    "read_mb": "read: keys and values; limit: to read them as fast as a large copy does.",
    "share_of_limit": "of the limit: the limit (else best full x pairs) / this.",
    "peak_memory_mb": "memory: peak of forward + backward, or of a step.",
    "sent_mb": "sent: by the rank that sends most, in a step, to those that share its sequences.",
    "cache_mb": "cache: keys and values that the model keeps.",
    "relative_error": "error: largest, against float64 on 384 tokens.",
}


def title_of(content):
    """Device, precision, sizes and pattern of a benchmark's content."""
    options, environment = content["options"], content["environment"]
    tokens, heads, head_dim = (options[key] for key in ("tokens", "heads", "head_dim"))
    batch = f"B{options['batch_size']}" if tokens is None else counted(tokens, "token")
    sizes = f"{batch} H{heads} D{head_dim}"
    title = f"{environment['device_name']}, {options['dtype']}, {sizes}"
    if not options["patterns"]:
        title += f", w{options['window_size']}-d{options['dilation']}"
    if options.get("step"):
        positions = options.get("positions", "learned")
        title += f", {counted(options['layers'], 'layer')}, {positions} positions"
    if options.get("checkpoint_blocks"):
        title += ", blocks checkpointed"
    if (shards := options.get("shard_sequence", 1)) > 1:
        title += f", sequences cut over {shards} ranks"
    return title


def benchmark_sections(content):
    """Everything that a benchmark's content says."""
    title = f"{title_of(content)}, torch {content['environment']['torch']}"
    return [Section("", [title]), *result_sections(content["records"], content["skipped"])]


def result_sections(records, skipped):
    """A table for each length, the meaning of the columns, and what was skipped."""
    found, shown = [], set()
    for seq_len in dict.fromkeys(r["seq_len"] for r in records):
        here = [r for r in records if r["seq_len"] == seq_len]
        rows = _rows(here)
        known = set().union(*rows)
        columns = {key: column for key, column in COLUMNS.items() if key in known}
        table = [[title for title, _ in columns.values()]]
        for row in rows:
            cells = []
            for key, (_, form) in columns.items():
                cells.append(form.format(row[key]) if key in row else "-")
            table.append(cells)
        heading = f"S {seq_len:,}"
        if "copy_gb_per_s" in rows[0]:
            heading += f"; a copy moves {rows[0]['copy_gb_per_s']:,.0f} GB/s"
        found.append(Section(heading, [table, *_disturbed_texts(here)]))
        shown |= known
    notes = [note for key, note in NOTES.items() if key in shown]
    if any(map(disturbances, records)):
        notes.append("!: disturbed, not to be quoted; repeat it on an idle machine.")
    return [*found, Section("", notes + _skipped_texts(skipped))]


def _disturbed_texts(records):
    """A text for every kind of time that was disturbed; it says by what."""
    seen = {}
    for r in records:
        for words in map(in_words, disturbances(r)):
            seen.setdefault(r["direction"], {})[words] = None
    return [f"! {direction}: {'; '.join(words)}" for direction, words in seen.items()]


def _rows(records):
    """A row for each name and compile mode: all its times, and the rest of its last record."""
    rows = {}
    for r in records:
        name = r.get("peer") or r["arm"]
        row = rows.setdefault((name, r.get("compile")), {})
        low, high = r["quartiles_ms"]
        digits = 3 if r["median_ms"] < 10 else 1
        row |= missing_to_none(r)
        time = f"{r['median_ms']:,.{digits}f}"
        if len(r["samples_ms"]) > 1:
            time += f" ± {(high - low) / 2:,.{digits}f}"
        row[r["direction"]] = time + " !" * bool(disturbances(r))
    return [{k: value for k, value in row.items() if value is not None} for row in rows.values()]


def _skipped_texts(skipped):
    """A text for each thing that was skipped and its reason, with all its lengths."""
    lengths = {}
    for item in skipped:
        what = item["direction"]
        if "compile" in item:
            what += f" (compile {item['compile']})"
        failure = item.get("peer") or item["arm"], what, item["reason"]
        lengths.setdefault(failure, []).append(f"{item['seq_len']:,}")
    return [
        f"skipped: {name} at S {' '.join(at)}, {what}: {reason}"
        for (name, what, reason), at in lengths.items()
    ]

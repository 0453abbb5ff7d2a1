"""The estimates of patterns as text."""

from matplotlib.ticker import EngFormatter

from analysis.recommend import AFTER_LONGER
from analysis.values import LONG_TOKENS
from analysis.words import Section, report_text, text_table
from machine.command import counted
from studies.tables import format_study, pattern_rows, points_of_kinds, setting, table_of, uses

HOW_TO_MEASURE = """\
`python compare_models.py --study patterns` measures speed and quality of patterns;
`python analyze_hyperparameters.py --measured` then shows them here."""


def pairs_table(analyses):
    """The pairs that each pattern keeps and the keys of a query, as lines."""
    rows = [("pattern", "density", "sparsity", "pairs", "near", "far", "sink", "mean keys", "most")]
    for a in analyses:
        counts = [f"{round(count):,}" for count in (a.attended_pairs, *a.pairs[:3])]
        keys = f"{a.attended_pairs / a.seq_len:,.1f}", f"{round(a.most_keys):,}"
        rows.append((a.label, f"{a.density:.2%}", f"{a.sparsity:.2%}", *counts, *keys))
    return text_table(rows)


def cost_table(analyses):
    """FLOPs, full and sparse, and the estimated speed-ups, as lines."""
    costs = "attention full", "sparse", "whole full", "sparse", "attention est.", "whole est."
    rows = [("pattern", *costs)]
    for a in analyses:
        flops = a.flops_full, a.flops_sparse, a.whole_full, a.whole_sparse
        cells = map(EngFormatter(places=2), flops)
        rows.append((a.label, *cells, f"{a.attention_speedup:.2f}x", f"{a.step_speedup:.3f}x"))
    return text_table(rows)


def remarks_on(analyses):
    """What the numbers themselves say, a sentence each."""
    for a in analyses:
        if a.attended_pairs == a.causal_pairs:
            yield f"{a.label} leaves out nothing at this length: it is full causal attention."
    least = min(a.density for a in analyses)
    sparsest = ", ".join(a.label for a in analyses if a.density == least)
    if len(analyses) > 1:
        yield f"Sparsest, so the fastest by this estimate: {sparsest} ({least:.2%} of the pairs)."
    yield "What a pattern does to the loss, these counts cannot tell."


def format_report(analyses, content=None):
    """The report as text; ``analyses`` (at least one) share length, model and sink_tokens.

    content: of a study of patterns (see studies/), whose tables follow.
    """
    a = analyses[0]
    causal = counted(a.causal_pairs, "causal (query, key) pair")
    pairs, costs = "\n".join(pairs_table(analyses)), "\n".join(cost_table(analyses))
    remarks = "\n".join(remarks_on(analyses))
    measured = HOW_TO_MEASURE if content is None else f"MEASURED\n{format_study(content)}"
    return f"""\
Sliding-window + dilated attention: {a.model}

Pairs kept of {causal}, and keys per query:
{pairs}

FLOPs of one forward pass (one sequence, all layers; training: 3 times) and ESTIMATED speed-up:
{costs}

Attention alone: 1 / density.  Whole step, by Amdahl's law: 1 / (1 - p + p * density), where
p = {a.attention_share:.2%} is attention's share of the FLOPs when it is full: at this length no
pattern can make the whole step more than {1 / (1 - a.attention_share):.3f}x faster.
These are upper bounds: memory traffic and the start of kernels keep them out of reach, and they
hold only for an evaluation that skips the pairs it does not need: estimates from FLOP counts.
{remarks}

{measured}
"""


def known_text(content, source, arms):
    """What a study found of the patterns asked for, and what to use by it, as text.

    content: of a study of patterns; source: its file; arms: the patterns, by their names.
    """
    found = [Section("", [f"MEASURED, from {source}: {setting(content)}"])]
    for kind, points in points_of_kinds(content).items():
        rows = pattern_rows(points)
        asked = [row for row in rows if _name(row["pattern"], content["config"]) in arms]
        measured = table_of(asked) if asked else "the pattern asked for was not trained there"
        found.append(Section(f"{kind} positions", [*uses(points), measured]))
    tokens = content["points"][0]["steps"]
    tokens *= content["config"]["seq_len"] * content["config"]["batch_size"]
    text = f"Every training saw {tokens:,} tokens" + AFTER_LONGER * (tokens < LONG_TOKENS)
    return report_text([*found, Section("", [text])])


def _name(arm, config):
    """The name of an arm's pattern, also of the arm ``window`` unless its heads differ."""
    if arm != "window" or config.get("full_heads") or config.get("stagger"):
        return arm
    return f"w{config['window_size']}-d{config['dilation']}"

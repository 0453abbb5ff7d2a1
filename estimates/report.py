"""The estimates of patterns as text."""

import torch
from matplotlib.ticker import EngFormatter

from attention.choose import attention_plan
from attention.pattern import is_full_causal
from estimates.pattern import describe_model, keys_per_query
from studies.measured import measured_rows, recommend, with_interval
from studies.tables import warning_lines


# --- the report --------------------------------------------------------------------------------
def _table(*rows):
    """Right-aligned text columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def _pattern_row(a):
    kinds = 3 if a.sink_tokens else 2  # near, far and, where there are any, sinks
    pairs = (a.near_pairs, a.far_pairs, a.sink_pairs)[:kinds]
    most = keys_per_query(a.seq_len - 1, a.window_size, a.dilation, a.sink_tokens)[:kinds]
    shares = f"{a.density:.2%}", f"{a.sparsity:.2%}"
    counts = (f"{count:,}" for count in (a.attended_pairs, *pairs))
    mean = f"{a.mean_keys:,.1f} = " + " + ".join(f"{count / a.seq_len:,.1f}" for count in pairs)
    largest = f"{a.max_keys:,} = " + " + ".join(f"{count:,}" for count in most)
    return *_name_cells(a), *shares, *counts, mean, largest


def _cost_row(a):
    costs = (a.flops_full, a.flops_sparse)
    whole = (cost + a.linear_flops for cost in costs)
    cells = map(EngFormatter(places=2), (*costs, *whole))
    return *_name_cells(a), *cells, f"{a.attention_speedup:.2f}x", f"{a.step_speedup:.3f}x"


def _name_cells(a):
    sinks = (str(a.sink_tokens),) if a.sink_tokens else ()
    return str(a.window_size), str(a.dilation), *sinks


def _remarks(analyses):
    """What the numbers themselves say, a sentence each."""
    for a in analyses:
        if is_full_causal(a.seq_len, a.window_size, a.dilation, a.sink_tokens):
            yield f"{a.label} leaves out nothing at this length: it is full causal attention."
        elif a.dilation == 0:
            sinks = " with sinks" if a.sink_tokens else ""
            yield f"{a.label} has no far keys: it is a pure sliding window{sinks}."
    least = min(a.density for a in analyses)
    sparsest = ", ".join(a.label for a in analyses if a.density == least)
    if len(analyses) > 1:
        yield f"Sparsest, so the fastest by this estimate: {sparsest} ({least:.2%} of the pairs)."
    yield "What a pattern does to the loss, these counts cannot tell."


def _plans(analyses):
    """How window_attention's ``auto`` evaluates the patterns, on a CPU and with CUDA."""
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        patterns = {}
        for a in analyses:
            pattern = a.window_size, a.dilation
            plan = attention_plan(a.seq_len, *pattern, dtype, device, a.sink_tokens)
            patterns.setdefault(plan, []).append(a.label)
        for plan, labels in patterns.items():
            which = "" if len(patterns) == 1 else f" for {', '.join(labels)}"
            kind = str(dtype).removeprefix("torch.")
            yield f"{device}, {kind}: {plan.evaluation}{which} ({plan.reason})"


def measured_lines(content):
    """What a study of patterns measured, as lines of the report."""
    if content is None:
        return [
            "`python compare_models.py --study patterns` measures speed and quality of patterns;",
            "`python analyze_hyperparameters.py --measured` then shows them here.",
        ]
    lines = [
        f"MEASURED by --study patterns on {content['device_name']}, torch {content['torch']}; in "
        "brackets the 95 % t",
        "interval, paired by run.  times as fast: whole training step, over full attention in the "
        "best kernel.",
        *warning_lines(content),
    ]
    for point in content["points"]:
        rows = [
            ("w", "d", "sparsity", "whole est.", "times as fast", "val. loss - fused", "quality")
        ]
        for _, summary, gain in measured_rows(point):
            contrast = summary["contrast"]
            cells = str(summary["window_size"]), str(summary["dilation"])
            cells += f"{1 - summary['density']:.2%}", f"{summary['step_limit']:.3f}x"
            cells += with_interval(gain, "{:.3f}"), with_interval(contrast["val_loss"], "{:+.4f}")
            rows.append((*cells, contrast["quality"]["verdict"]))
        lines += [f"{point['positions']} positions:", _table(*rows), ""]
    return [*lines, "Recommendation, from these measurements alone:", *recommend(content)]


def format_report(analyses, content=None):
    """The report as text; ``analyses`` (at least one) share length, model and sink_tokens.

    content: of a study of patterns (see studies/), whose measurements are shown too.
    """
    a = analyses[0]
    names, kinds = ("w", "d"), ("near", "far")
    if a.sink_tokens:
        names, kinds = (*names, "N"), (*kinds, "sink")
    keys = (f"{which} keys = {' + '.join(kinds)}" for which in ("mean", "max"))
    pairs = (f"{kind} pairs" for kind in kinds)
    header = *names, "density", "sparsity", "pairs", *pairs, *keys
    pattern = _table(header, *map(_pattern_row, analyses))
    costs = "attention full", "sparse", "whole full", "sparse", "attention est.", "whole est."
    return f"""\
Sliding-window + dilated attention: {describe_model(a)}

Pairs kept of {a.causal_pairs:,} causal (query, key) pairs, and keys per query:
{pattern}

FLOPs of one forward pass (one sequence, all layers; training: 3 times) and ESTIMATED speed-up:
{_table((*names, *costs), *map(_cost_row, analyses))}

Attention alone: 1 / density.  Whole step, by Amdahl's law: 1 / (1 - p + p * density), where
p = {a.attention_share:.2%} is attention's share of the FLOPs when it is full: at this length no
pattern can make the whole step more than {1 + a.flops_full / a.linear_flops:.3f}x faster.
These are estimates from FLOP counts: an upper bound that kernels, memory traffic and launches
do not reach, and only for an evaluation that skips the pairs it does not need.
{chr(10).join(_remarks(analyses))}

What --window-attention auto takes:
{chr(10).join(_plans(analyses))}

{chr(10).join(measured_lines(content))}
"""

"""Saved metrics: reading, writing, summarising and reporting them.  Needs no torch.

An experiment is two files with the same content: ``experiment_results.npz`` (numbers for programs,
loads with ``allow_pickle=False``) and ``experiment_results.json`` (for people and other languages).

In memory the metrics are ``{arm: [run, run, ...]}``, one dict a run with the keys of ``NUMBERS``,
``TEXTS`` and ``SERIES`` below, and the metadata (configuration, plan, versions, device, data) is
one JSON-like dict.  In the npz each number is an array over runs, ``<arm>_<name>`` (R,); each
series is ``<arm>_<name>`` (R, steps), padded at the end where a run stopped early; ``metadata``
holds the rest as the bytes of a JSON text.
"""

import json
import math
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from significance import ALPHA, LEVEL, paired_ratio, two_sample_t

SCHEMA_VERSION = 1
RESULTS_NAME = "experiment_results"
REPORT_NAME = "improved_comparison_results.txt"
ARM_ORDER = ("baseline", "window", "fused", "published")

# Per run and arm.  Times in seconds, memory in MB (2**20 bytes), losses in nats per token.
NUMBERS = {
    "run": int,  # the block, from 0
    "position": int,  # place in the block's order, from 0
    "launch_index": int,  # place in the whole experiment, from 0
    "seed": int,
    "total_steps": int,  # optimizer steps finished in the timed region
    "total_tokens": int,
    "training_time": float,  # the timed region: optimizer steps alone
    "tokens_per_second": float,
    "peak_memory_mb": float,
    "peak_reserved_mb": float,  # what the CUDA allocator held; missing on CPU
    "final_loss": float,
    "avg_loss_last_100": float,
    "val_loss": float,
    "compile_time": float,  # first step of a compiled model; 0 when eager
    "warmup_time": float,
    "eval_time": float,
    "wall_time": float,  # the whole training, set-up to evaluation
}
TEXTS = (
    "status",  # ok, diverged or out_of_memory
    "message",  # what happened, for a run that is not ok
    "order",  # the block's arms in the order they were trained, comma separated
    "started_at",  # UTC, ISO 8601
)
SERIES = {"losses": np.float32, "tokens_seen": np.int64, "step_seconds": np.float32}


# What numpy, json and zipfile raise over a truncated, mutated or foreign file.
_DAMAGE = (
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    EOFError,
    SyntaxError,  # numpy evaluates an array's header as a literal
    RuntimeError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)


_SECTIONS = ("config", "plan", "environment", "data", "pattern")  # of the metadata


class MetricsError(ValueError):
    """A metrics file that is missing, damaged or not ours; the message names the file."""


# --- files -------------------------------------------------------------------------------------


def atomic_write(path, write):
    """Write a file so that it is there whole or not at all.

    ``write`` gets a binary file object on a temporary file beside ``path``, which is flushed to
    disk and renamed over ``path``; on any error the temporary file is removed and an older
    ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private; results are not
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _missing_to_none(value):
    """``value`` for strict JSON: NaN and infinities become null, arrays become lists."""
    if isinstance(value, dict):
        return {str(k): _missing_to_none(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_missing_to_none(v) for v in value]
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32:  # shortest decimal that reads back as the same float32
            return [float(str(v)) if math.isfinite(v) else None for v in value]
        return _missing_to_none(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value, indent=None):
    """Strict JSON text (no NaN) of dicts, lists, numbers, texts and arrays."""
    return json.dumps(_missing_to_none(value), indent=indent, allow_nan=False)


def _normalised_run(run, where):
    """One run's dict with every key present and of its own type; MetricsError names what is off."""
    missing = [key for key in (*NUMBERS, *TEXTS, *SERIES) if key not in run]
    if missing:
        raise MetricsError(f"{where}: missing {', '.join(missing)}")
    out = {}
    try:
        for key, kind in NUMBERS.items():
            value = run[key]
            out[key] = math.nan if value is None and kind is float else kind(value)
            if kind is int and out[key] != value:
                raise ValueError(f"{key} is {value}, not a whole number")
        for key in TEXTS:
            if not isinstance(run[key], str):
                raise TypeError(f"{key} is not a text")
            out[key] = run[key]
        for key, dtype in SERIES.items():
            values = run[key]
            if np.issubdtype(dtype, np.floating) and not isinstance(values, np.ndarray):
                values = [math.nan if v is None else v for v in values]
            out[key] = np.array(values, dtype=dtype)
            if out[key].shape != (out["total_steps"],):
                raise ValueError(f"{key} has shape {out[key].shape}, not one value a step")
    except (TypeError, ValueError, OverflowError) as error:
        raise MetricsError(f"{where}: {error}") from None
    return out


def save_metrics(metrics, metadata, output_dir, name=RESULTS_NAME):
    """Write ``<name>.npz`` and ``<name>.json`` into ``output_dir``, each atomically.

    metrics: {arm: [run dict, ...]}; metadata: a JSON-like dict.  Returns the two paths.
    Raises MetricsError where a run lacks a key.
    """
    metrics = {
        arm: [_normalised_run(run, f"{arm} run {i}") for i, run in enumerate(runs)]
        for arm, runs in metrics.items()
    }
    metadata = {**metadata, "schema_version": SCHEMA_VERSION}
    arrays, texts = {}, {}
    for arm, runs in metrics.items():
        for key, kind in NUMBERS.items():
            dtype = np.int64 if kind is int else np.float64
            arrays[f"{arm}_{key}"] = np.array([run[key] for run in runs], dtype=dtype)
        for key, dtype in SERIES.items():
            longest = max((run["total_steps"] for run in runs), default=0)
            padding = np.nan if np.issubdtype(dtype, np.floating) else -1
            table = np.full((len(runs), longest), padding, dtype=dtype)
            for row, run in zip(table, runs, strict=True):
                row[: run["total_steps"]] = run[key]
            arrays[f"{arm}_{key}"] = table
        texts[arm] = [{key: run[key] for key in TEXTS} for run in runs]
    header = to_json({"metadata": metadata, "texts": texts}).encode()
    arrays["metadata"] = np.frombuffer(header, dtype=np.uint8)

    output_dir = Path(output_dir)
    npz_path, json_path = output_dir / f"{name}.npz", output_dir / f"{name}.json"
    atomic_write(npz_path, lambda file: np.savez_compressed(file, **arrays))
    text = to_json({"metadata": metadata, "metrics": metrics}, indent=1)
    atomic_write(json_path, lambda file: file.write(text.encode()))
    return npz_path, json_path


def _read_npz(path):
    with np.load(path, allow_pickle=False) as file:
        if "metadata" not in file.files:
            raise MetricsError(f"{path}: not a metrics file of this suite (no 'metadata' inside)")
        header = json.loads(file["metadata"].tobytes())
        metrics = {}
        for arm, texts in header["texts"].items():
            columns = {key: file[f"{arm}_{key}"] for key in (*NUMBERS, *SERIES)}
            runs = []
            for i, text in enumerate(texts):
                run = {key: columns[key][i].item() for key in NUMBERS}
                run |= {key: columns[key][i][: run["total_steps"]] for key in SERIES}
                runs.append(run | text)
            metrics[arm] = runs
    return metrics, header["metadata"]


def _read_json(path):
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return content["metrics"], content["metadata"]


def load_experiment(path):
    """Metrics and metadata of a saved experiment (.npz or .json): ``(metrics, metadata)``.

    Raises MetricsError, which names the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise MetricsError(f"{path}: no such file (python main.py writes one)")
    try:
        metrics, metadata = (_read_json if path.suffix == ".json" else _read_npz)(path)
        if not all(isinstance(metadata.get(key, {}), dict) for key in _SECTIONS):
            raise MetricsError(f"{path}: damaged: one of {', '.join(_SECTIONS)} is not a table")
        version = metadata.get("schema_version")
        if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            raise MetricsError(
                f"{path}: schema_version {version!r}, this suite reads up to {SCHEMA_VERSION}"
            )
        metrics = {
            arm: [_normalised_run(run, f"{path}: {arm} run {i}") for i, run in enumerate(runs)]
            for arm, runs in metrics.items()
        }
    except MetricsError:
        raise
    except OSError as error:
        raise MetricsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except KeyError as error:
        raise MetricsError(f"{path}: not a metrics file of this suite (no {error})") from None
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MetricsError(f"{path}: damaged or not a metrics file: {reason}") from None
    return metrics, metadata


def load_metrics(path):
    """Metrics of a saved experiment as ``{arm: [run dict, ...]}``; see ``load_experiment``."""
    return load_experiment(path)[0]


# --- summary and report ------------------------------------------------------------------------

# key, words, unit, digits; for every one of them less is better
OUTCOMES = (
    ("training_time", "training time", "s", 2),
    ("peak_memory_mb", "peak memory", "MB", 1),
    ("avg_loss_last_100", "loss, last 100 steps", "nats", 4),
    ("val_loss", "validation loss", "nats", 4),
)
CONTRASTS = (  # arm, reference, what the difference is
    ("window", "fused", "sparsity alone"),
    ("fused", "baseline", "the kernel"),
    ("window", "baseline", "the documented comparison: kernel and sparsity together"),
    ("baseline", "published", "the mask bookkeeping"),
    ("window", "published", "mask bookkeeping, kernel and sparsity together"),
)
PRACTICAL_SHARE = 0.01  # a difference below 1 % is called so, significant or not


def ordered_arms(metrics):
    """The arms in their fixed order (ARM_ORDER first, then any others by name)."""
    known = [arm for arm in ARM_ORDER if arm in metrics]
    return known + sorted(set(metrics) - set(known))


def ok_values(metrics, arm, key):
    """The finite values of ``key`` over the arm's runs that ended well, as an array."""
    values = np.array([run[key] for run in metrics[arm] if run["status"] == "ok"], dtype=np.float64)
    return values[np.isfinite(values)]


def shared_values(metrics, arms, key):
    """Values of ``key`` over the runs that all ``arms`` finished well, an equal array for each."""
    by_run = [
        {r["run"]: r[key] for r in metrics[arm] if r["status"] == "ok" and math.isfinite(r[key])}
        for arm in arms
    ]
    shared = sorted(set.intersection(*map(set, by_run)))
    return [np.array([values[run] for run in shared], dtype=np.float64) for values in by_run]


def _mean_std(values, digits):
    if not values.size:
        return "-"
    if values.size == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{values.mean():,.{digits}f} ± {values.std(ddof=1):,.{digits}f}"


def text_table(rows):
    """Rows of texts as aligned lines, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def format_summary(metrics):
    """Mean ± standard deviation over the runs, a line for each arm, as text."""
    rows = [["arm", "runs"] + [f"{words} ({unit})" for _, words, unit, _ in OUTCOMES]]
    for arm in ordered_arms(metrics):
        ended_well = sum(run["status"] == "ok" for run in metrics[arm])
        cells = [_mean_std(ok_values(metrics, arm, key), digits) for key, _, _, digits in OUTCOMES]
        rows.append([arm, str(ended_well), *cells])
    return "\n".join(text_table(rows))


def print_metrics_summary(metrics):
    """Print ``format_summary``: mean ± standard deviation of every arm."""
    print(format_summary(metrics))


def _p_value(p):
    return "-" if p is None else f"{p:.2g}" if p >= 1e-15 else "< 1e-15"


def _starred(p):
    """A p-value with a mark where it is below ALPHA."""
    return _p_value(p) + ("*" if p is not None and p < ALPHA else " ")


def _interval(ratio):
    """A ratio's interval, or in its place why there is none."""
    return ratio.note if ratio.low is None else f"[{ratio.low:.4f}, {ratio.high:.4f}]"


def _contrast_row(metrics, arm, reference, outcome):
    """One line of a contrast's table, or None where no run gave a pair of values."""
    key, words, *_ = outcome
    x, ref = shared_values(metrics, (arm, reference), key)
    if not x.size:
        return None
    if min(x.min(), ref.min()) <= 0:
        return [words, "-", "-", "a value is not positive", "-", "-", "-"]
    ratio, published = paired_ratio(x, ref), two_sample_t(x, ref)
    improvement = 100 * (1 - x.mean() / ref.mean())
    t_test = "-" if published.t is None else f"t {published.t:.2f}, p {_starred(published.p)}"
    effect = "-" if published.d is None else f"{published.d:.2f}"
    return [
        words,
        f"{improvement:+.2f} %",
        f"{ratio.ratio:.4f}",
        _interval(ratio),
        _starred(ratio.p),
        t_test,
        effect,
    ]


def _contrast_lines(metrics, arm, reference, meaning):
    header = ["", "improvement", "ratio", f"{LEVEL:.0%} interval", "paired p"]
    header += ["two-sample t-test", "Cohen's d"]
    rows = [_contrast_row(metrics, arm, reference, outcome) for outcome in OUTCOMES]
    rows = [row for row in rows if row is not None]
    if not rows:
        return [f"{arm} against {reference}: no run in which both ended well, so no comparison."]
    return [f"{arm} against {reference} ({meaning})", *text_table([header, *rows])]


def describe_time(ratio, arm, reference):
    """One sentence on a training-time ratio arm / reference: size, interval and what it means."""
    change = f"{abs(1 - ratio.ratio):.2%} {'less' if ratio.ratio < 1 else 'more'} time"
    text = f"{arm} took {change} than {reference}"
    if ratio.low is None:
        return f"{text} ({ratio.note})."
    # an interval of less time, in the direction that the sentence speaks of
    low, high = sorted((abs(1 - ratio.low), abs(1 - ratio.high)))
    if ratio.low <= 1 <= ratio.high:
        return (
            f"{arm} against {reference}: no difference detected, ratio {ratio.ratio:.4f} "
            f"[{ratio.low:.4f}, {ratio.high:.4f}] includes 1."
        )
    text += f" [{low:.2%}, {high:.2%}], p {_p_value(ratio.p)}"
    if abs(1 - ratio.ratio) < PRACTICAL_SHARE:
        text += f": significant, but below {PRACTICAL_SHARE:.0%}"
    return text + "."


def _sparsity_sentence(sparsity, seq_len):
    """What the control says about sparsity itself: gained, brought nothing, or not shown."""
    evidence = describe_time(sparsity, "window", "fused")
    place = f"at sequence length {seq_len:,}"
    if sparsity.low is None:
        return f"What sparsity does to the time {place} is not shown: {evidence}"
    if sparsity.high < 1 and 1 - sparsity.ratio >= PRACTICAL_SHARE:
        return f"Sparsity made training faster {place}: {evidence}"
    within = max(1 - sparsity.low, sparsity.high - 1) < PRACTICAL_SHARE
    if sparsity.low > 1 or sparsity.high < 1 or within:
        return f"Sparsity brought no speed worth the name {place}: {evidence}"
    return f"No speed from sparsity is shown {place}: {evidence}"


def _decomposition_lines(metrics, metadata):
    """baseline / window = (baseline / fused) x (fused / window), over the runs all three ended."""
    if not {"baseline", "window", "fused"} <= set(metrics):
        return [
            "No decomposition: it needs the arms baseline, window and fused. Without the control "
            "fused, a gain of window over baseline may come from the kernel and not from sparsity."
        ]
    baseline, window, fused = shared_values(
        metrics, ("baseline", "window", "fused"), "training_time"
    )
    if not window.size:
        return ["No decomposition: in no run did baseline, window and fused all end well."]
    total, kernel = paired_ratio(baseline, window), paired_ratio(baseline, fused)
    sparsity = paired_ratio(fused, window)
    return [
        "Where the speed comes from (training time, geometric means over the runs)",
        f"  window over baseline {total.ratio:.3f}x = kernel {kernel.ratio:.3f}x (fused over "
        f"baseline) x sparsity {sparsity.ratio:.3f}x (window over fused)",
        "  " + _sparsity_sentence(paired_ratio(window, fused), metadata["config"]["seq_len"]),
    ]


def _pattern_line(config, pattern):
    line = f"pattern: window_size {config['window_size']}, dilation {config['dilation']}"
    if pattern is None:  # a file from before it was recorded
        return line
    kept = f"{pattern['density']:.1%} of the causal pairs"
    return f"{line}, {kept}, evaluated as {pattern['evaluation']}"


def _heading_lines(metrics, metadata):
    config, data = metadata["config"], metadata["data"]
    world = metadata["environment"]
    compiled = "eager" if config["compile"] == "none" else f"compiled ({config['compile']})"
    title = "Sliding-window + dilated attention against full attention"
    return [
        title,
        "=" * len(title),
        f"{config['preset']} preset, {config['runs']} x {len(config['arms'])} trainings on "
        f"{world['device_name']}, torch {world['torch']}, {config['dtype']}, {compiled}",
        f"model: d_model {config['d_model']}, {config['n_heads']} heads, {config['layers']} layers,"
        f" vocabulary {data['vocab_size']:,}, sequence length {config['seq_len']:,}",
        _pattern_line(config, metadata.get("pattern")),
        f"data: {data['path']}, {data['train_rows']:,} rows for training, the last "
        f"{data['val_rows']:,} held out, {data['val_rows_used']:,} of them used for validation; "
        f"batches of {config['batch_size']}",
        f"peak memory: {metadata['memory_measure']}",
    ]


def _warning_lines(metrics, metadata):
    lines = []
    if metadata["status"] != "complete":
        done = sum(len(runs) for runs in metrics.values())
        planned = len(metadata["plan"]["orders"]) * len(metadata["config"]["arms"])
        lines.append(f"PARTIAL: {done} of {planned} trainings.")
    for arm in ordered_arms(metrics):
        for run in metrics[arm]:
            if run["status"] != "ok":
                lines.append(f"{arm}, run {run['run'] + 1}: {run['status']}: {run['message']}")
    if any(len(runs) == 1 for runs in metrics.values()):
        lines.append("One run: no spread, no test. Use --runs 6 or more for both.")
    return lines


def format_report(metrics, metadata):
    """The whole report as text: every arm, every contrast, and where the speed comes from."""
    parts = [_heading_lines(metrics, metadata), _warning_lines(metrics, metadata)]
    parts.append(["Mean ± standard deviation over the runs", *format_summary(metrics).split("\n")])
    for arm, reference, meaning in CONTRASTS:
        if arm in metrics and reference in metrics:
            parts.append(_contrast_lines(metrics, arm, reference, meaning))
    parts.append(_decomposition_lines(metrics, metadata))
    parts.append(
        [
            "improvement: of the mean, positive where the first arm is lower.",
            "ratio: first arm over second, geometric mean over runs, with the "
            f"{LEVEL:.0%} interval and p of the paired t-test on logs.",
            "two-sample t-test and Cohen's d: as published, unpaired. "
            f"*: p below alpha = {ALPHA}, no correction for the number of tests.",
            "Contrasts use the runs that both arms finished; the table of means all of an arm's.",
        ]
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def write_report(metrics, metadata, output_dir, name=REPORT_NAME):
    """Write ``format_report`` into ``output_dir``; returns the path and the text."""
    text = format_report(metrics, metadata)
    path = Path(output_dir) / name
    # a path may hold what UTF-8 cannot say
    atomic_write(path, lambda file: file.write(text.encode(errors="backslashreplace")))
    return path, text

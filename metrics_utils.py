"""Saved metrics: reading, writing and summarising them.  Needs no torch.

    python metrics_utils.py [output/experiment_results.json]     prints the report again

An experiment is two files with the same content: ``experiment_results.npz`` (numbers for programs,
loads with ``allow_pickle=False``) and ``experiment_results.json`` (for people and other languages).

In memory the metrics are ``{arm: [run, run, ...]}``, one dict a run with the keys of ``NUMBERS``,
``TEXTS``, ``RECORDS`` and ``SERIES`` below, and the metadata (configuration, plan, code, versions,
device, data) is one JSON-like dict.  In the npz each number is an array over runs,
``<arm>_<name>`` (R,); each series is ``<arm>_<name>`` (R, steps), padded at the end where a run
stopped early; ``metadata`` holds the rest as the bytes of a JSON text.
"""

import errno
import hashlib
import json
import math
import os
import re
import struct
import sys
import tempfile
import tokenize
import zipfile
import zlib
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

SCHEMA_VERSION, SUITE_VERSION = 2, "0.4.0"
RESULTS_NAME = "experiment_results"
REPORT_NAME = "improved_comparison_results.txt"
TEMPORARY_SUFFIX = ".tmp"  # of a file that is being written
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
    "ended_at",
    "launch_id",  # of the process that trained it: two in a block tell of a stop between them
    "previous_arm",  # what this process had trained before, "" for nothing
)
STATUSES = ("ok", "diverged", "out_of_memory")
RECORDS = ("device_before", "device_after")  # the device's clocks, temperature, ..., or None
SINCE_VERSION_2 = {
    "ended_at": "",
    "launch_id": "",
    "previous_arm": "",
    "device_before": None,
    "device_after": None,
}
SERIES = {"losses": np.float32, "tokens_seen": np.int64, "step_seconds": np.float32}


# What numpy, json and zipfile raise over a truncated, mutated or foreign file.
DAMAGE = (
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
    disk and renamed over ``path``, and the folder flushed too, so that not even a power cut takes
    it back; on any error the temporary file is removed and an older ``path`` stays as it was.
    Raises OSError, with ``path`` as its file name and the remedy in its words.
    """
    path = Path(path)
    temporary = None
    try:
        make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX
        )
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private; results are not
        os.replace(temporary, path)
        flush_folder(path.parent)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise explained(error, path) from None
        raise


def make_folder(folder):
    """Make a folder and its parents, so that they survive a power cut too."""
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        flush_folder(path.parent)


def flush_folder(folder):
    """Make renames and removals in a folder survive a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


REMEDIES = {
    errno.ENOSPC: "free some space on the disk and start again",
    errno.EDQUOT: "free some of your quota and start again",
    errno.EACCES: "make its folder writable or choose another one",
    errno.EPERM: "make its folder writable or choose another one",
    errno.EROFS: "choose a folder that is not read-only",
    errno.EISDIR: "a folder is in its place: move that away",
    errno.ENOTDIR: "a file is where its folder should be: move that away or choose another one",
    errno.EEXIST: "a file is where its folder should be: move that away or choose another one",
}


def explained(error, path):
    """An OSError of writing ``path`` with the reason and the remedy in one line."""
    if "cannot be" in str(error.strerror):
        return error
    remedy = REMEDIES.get(error.errno, "choose another folder")
    words = f"cannot be written ({error.strerror or error}): {remedy}"
    return OSError(error.errno or errno.EIO, words, str(path))


def utc_now():
    """The present time, UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


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


def file_sha256(path):
    """SHA-256 of a file's bytes as hexadecimal digits, or None where there is no such file."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def layers_text(value):
    """A number, or one for each layer, in words: "96" or "96,96,128,128"."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def pattern_text(config):
    """The pattern of a configuration (a dict) in words; files from before sinks name none."""
    names = ["window_size", "dilation"] + ["sink_tokens"] * bool(config.get("sink_tokens"))
    return ", ".join(f"{name} {layers_text(config[name])}" for name in names)


def ranks_text(config):
    """The processes that train together, in words; "" for one that takes its batches whole."""
    words, parts = "", config.get("gradient_accumulation", 1)
    if config.get("world_size", 1) > 1:  # files from before there were several name none
        words = f", {config['world_size']} ranks ({config['backend']})"
    return words + (f", gradients accumulated over {parts} micro-steps" if parts > 1 else "")


def json_sha256(value):
    """SHA-256 of a JSON-like value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sealed(content):
    """Strict JSON text of a dict with its own checksum, so that a change of it is noticed."""
    content = _missing_to_none(content)
    return json.dumps(content | {"sha256": json_sha256(content)}, indent=1, allow_nan=False)


def write_sealed(path, content):
    """Write ``sealed(content)``, whole or not at all."""
    text = sealed(content)
    atomic_write(path, lambda file: file.write(text.encode()))


def read_file(path, failure, remedy):
    """A file's bytes; otherwise raises ``failure``, an exception's class, with what is wrong.

    remedy: what to do where there is no such file, in words.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise failure(f"{path}: no such file: {remedy}") from None
    except OSError as error:
        raise failure(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # of a name that none can have
        raise failure(f"{str(path)!r}: cannot be read ({error})") from None


def unsealed(text):
    """The dict of ``sealed``'s text; ValueError where it was changed since."""
    content = json.loads(text)
    if content.pop("sha256") != json_sha256(content):
        raise ValueError("its checksum does not fit: it was changed after it was written")
    return content


def normalised_run(run, where):
    """One run's dict with every key present and of its own type; MetricsError names what is off."""
    run = SINCE_VERSION_2 | run
    missing = [key for key in (*NUMBERS, *TEXTS, *SERIES) if key not in run]
    if missing:
        raise MetricsError(f"{where}: missing {', '.join(missing)}")
    out = {}
    try:
        for key, kind in NUMBERS.items():
            value = run[key]
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise TypeError(f"{key} is {value!r}, not a number")
            out[key] = math.nan if value is None and kind is float else kind(value)
            if kind is int and out[key] != value:
                raise ValueError(f"{key} is {value}, not a whole number")
        for key in TEXTS:
            if not isinstance(run[key], str):
                raise TypeError(f"{key} is not a text")
            out[key] = run[key]
        if out["status"] not in STATUSES or min(out["run"], out["launch_index"]) < 0:
            raise ValueError("status, run or launch_index is none of this suite's")
        for key in RECORDS:
            if not isinstance(run[key], dict | None):
                raise TypeError(f"{key} is not a table")
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
        arm: [normalised_run(run, f"{arm} run {i}") for i, run in enumerate(runs)]
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
        texts[arm] = [{key: run[key] for key in (*TEXTS, *RECORDS)} for run in runs]
    header = to_json({"metadata": metadata, "texts": texts}).encode()
    arrays["metadata"] = np.frombuffer(header, dtype=np.uint8)

    output_dir = Path(output_dir)
    npz_path, json_path = output_dir / f"{name}.npz", output_dir / f"{name}.json"
    atomic_write(npz_path, lambda file: np.savez_compressed(file, **arrays))
    write_sealed(json_path, {"metadata": metadata, "metrics": metrics})
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
    text = Path(path).read_text(encoding="utf-8")
    sealed_since = '"sha256"' in text[-100:]  # files of the first version have no checksum
    content = unsealed(text) if sealed_since else json.loads(text)
    if not sealed_since and content["metadata"].get("schema_version") != 1:
        raise ValueError("its checksum is missing")
    return content["metrics"], content["metadata"]


def load_experiment(path):
    """Metrics and metadata of a saved experiment (.npz or .json): ``(metrics, metadata)``.

    Raises MetricsError, which names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise MetricsError(f"{path}: no such file (python main.py writes one)")
        metrics, metadata = (_read_json if path.suffix == ".json" else _read_npz)(path)
        if not all(isinstance(metadata.get(key, {}), dict) for key in _SECTIONS):
            raise MetricsError(f"{path}: damaged: one of {', '.join(_SECTIONS)} is not a table")
        version = metadata.get("schema_version")
        if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            raise MetricsError(
                f"{path}: schema_version {version!r}, this suite reads up to {SCHEMA_VERSION}"
            )
        metrics = {
            arm: [normalised_run(run, f"{path}: {arm} run {i}") for i, run in enumerate(runs)]
            for arm, runs in metrics.items()
        }
        for arm, runs in metrics.items():
            if len({run["run"] for run in runs}) < len(runs):
                raise MetricsError(f"{path}: damaged: holds a training of {arm} twice")
    except MetricsError:
        raise
    except OSError as error:
        raise MetricsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except KeyError as error:
        raise MetricsError(f"{path}: not a metrics file of this suite (no {error})") from None
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "pickle" in reason:  # numpy goes on to say how it could be loaded all the same
            reason = "it is no archive of arrays, or holds objects, which are never loaded"
        raise MetricsError(f"{path}: damaged or not a metrics file: {reason}") from None
    return metrics, metadata


@contextmanager
def fitting(path):
    """MetricsError for whatever a loaded file that does not fit makes the code inside raise."""
    try:
        yield
    except MetricsError:
        raise
    except (*DAMAGE, KeyError, ArithmeticError) as error:
        words = f"{path}: incomplete or not of this suite ({type(error).__name__}: {error})"
        raise MetricsError(words) from None


def load_metrics(path):
    """Metrics of a saved experiment as ``{arm: [run dict, ...]}``; see ``load_experiment``."""
    return load_experiment(path)[0]


# --- summary -----------------------------------------------------------------------------------

# key, words, unit, digits; for every one of them less is better
OUTCOMES = (
    ("training_time", "training time", "s", 2),
    ("peak_memory_mb", "peak memory", "MB", 1),
    ("avg_loss_last_100", "loss, last ≤ 100 steps", "nats", 4),
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
SHOWN_SHARE = 5e-5  # a smaller one would read 0.00 %


# What nvidia-smi calls the reasons for which a GPU runs slower than it was asked to.
THROTTLING = (
    "sw_power_cap",
    "hw_slowdown",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
)


def throttled(run):
    """The reasons for which the device was slowing itself down before or after a training."""
    states = [run[key] for key in RECORDS if run.get(key)]
    reasons = {reason for state in states for reason in state.get("throttle_reasons") or ()}
    return [reason for reason in THROTTLING if reason in reasons]


def declared_margin(metadata):
    """The equivalence margin written into the plan before the first run, None in older files."""
    margin = (metadata.get("plan") or {}).get("equivalence_margin")
    return margin if isinstance(margin, int | float) and 0 < margin < math.inf else None


def pairs_of(metrics):
    """(arm, run) of every training."""
    return [(arm, run) for arm, runs in metrics.items() for run in runs]


def launched(metrics):
    """All trainings, in the order in which the plan starts them."""
    return sorted((run for _, run in pairs_of(metrics)), key=lambda run: run["launch_index"])


def planned_trainings(metadata):
    """How many trainings an experiment's plan has: every arm in every run."""
    return len(metadata["plan"]["orders"]) * len(metadata["config"]["arms"])


def arm_of_pattern(window_size, dilation):
    """The name of the window arm with a pattern of its own: ``w96-d4``."""
    return f"w{window_size}-d{dilation}"


def pattern_of_arm(arm):
    """(window_size, dilation) of an arm that is named by its pattern, else None."""
    found = re.fullmatch(r"w(\d{1,10})-d(\d{1,10})", arm)
    return None if found is None else tuple(map(int, found.groups()))


def ordered_arms(metrics):
    """The arms in their fixed order (ARM_ORDER first, then any others by pattern or name)."""
    known = [arm for arm in ARM_ORDER if arm in metrics]
    return known + sorted(set(metrics) - set(known), key=lambda a: (pattern_of_arm(a) or (), a))


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


if __name__ == "__main__":
    from report import main  # it imports this file, as metrics_utils

    sys.exit(main())

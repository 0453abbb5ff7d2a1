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
import tempfile
import zipfile
from pathlib import Path

import numpy as np

SCHEMA_VERSION = 1
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
_DAMAGE = (ValueError, TypeError, AttributeError, IndexError, EOFError, zipfile.BadZipFile)


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
            out[key] = math.nan if run[key] is None and kind is float else kind(run[key])
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


def save_metrics(metrics, metadata, output_dir, name="experiment_results"):
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

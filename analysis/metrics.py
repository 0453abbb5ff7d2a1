"""Saved metrics: reading, writing and summarising them.  Needs no torch.

An experiment is two files with the same content: ``experiment_results.npz`` (numbers for programs,
loads with ``allow_pickle=False``) and ``experiment_results.json`` (for people and other languages).

In memory the metrics are ``{arm: [run, run, ...]}``, one dict a run with the keys of ``NUMBERS``,
``TEXTS``, ``RECORDS`` and ``SERIES`` below, and the metadata (configuration, plan, code, versions,
device, data) is one JSON-like dict.  In the npz each number is an array over runs,
``<arm>_<name>`` (R,); each series is ``<arm>_<name>`` (R, steps), padded at the end where a run
stopped early; ``metadata`` holds the rest as the bytes of a JSON text.
"""

import json
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from machine.command import UserError
from machine.files import DAMAGE, atomic_write, to_json, write_json

SCHEMA_VERSION, SUITE_VERSION = 3, "0.5.0"
RESULTS_NAME = "experiment_results"
REPORT_NAME = "improved_comparison_results.txt"
# Per run and arm.  Times in seconds, memory in MB (2**20 bytes), losses in nats per token.
NUMBERS = {
    "block": int,  # the block, from 0
    "position": int,  # place in the block's order, from 0
    "index": int,  # place in the whole experiment, from 0
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
    "process",  # of the process that trained it: two in a block tell of a stop between them
    "previous_arm",  # what this process had trained before, "" for nothing
)
STATUSES = ("ok", "diverged", "out_of_memory")
RECORDS = ("device_before", "device_after")  # the device's clocks, temperature, ..., or None
SINCE_VERSION_2 = {
    "ended_at": "",
    "process": "",
    "previous_arm": "",
    "device_before": None,
    "device_after": None,
}
SERIES = {"losses": np.float32, "tokens_seen": np.int64, "step_seconds": np.float32}
# what files of earlier versions call some of these
BEFORE_VERSION_3 = {
    "block": "run",
    "index": "launch_index",
    "process": "launch_id",
    "processes": "launches",
}
NEW_NAMES = {old: new for new, old in BEFORE_VERSION_3.items()}
_SECTIONS = ("config", "plan", "environment", "data", "pattern")  # of the metadata


class MetricsError(UserError):
    """A metrics file that is missing, damaged or not ours; the message names the file."""


def checked_training(run, where):
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
        if out["status"] not in STATUSES or min(out["block"], out["index"]) < 0:
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
        arm: [checked_training(run, f"{arm} run {i}") for i, run in enumerate(runs)]
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
    write_json(json_path, {"metadata": metadata, "metrics": metrics})
    return npz_path, json_path


def _renamed(table):
    """A table of any version with the present names of its keys."""
    return {NEW_NAMES.get(key, key): value for key, value in table.items()}


def _read_npz(path):
    with np.load(path, allow_pickle=False) as file:
        if "metadata" not in file.files:
            raise MetricsError(f"{path}: not a metrics file of this suite (no 'metadata' inside)")
        header = json.loads(file["metadata"].tobytes())
        old = header["metadata"].get("schema_version") in (1, 2)
        names = BEFORE_VERSION_3 if old else {}
        metrics = {}
        for arm, texts in header["texts"].items():
            columns = {key: file[f"{arm}_{names.get(key, key)}"] for key in (*NUMBERS, *SERIES)}
            runs = []
            for i, text in enumerate(texts):
                run = {key: columns[key][i].item() for key in NUMBERS}
                run |= {key: columns[key][i][: run["total_steps"]] for key in SERIES}
                runs.append(run | _renamed(text))
            metrics[arm] = runs
    return metrics, _renamed(header["metadata"])


def _read_json(path):
    text = Path(path).read_text(encoding="utf-8")
    content = json.loads(text)
    metrics = {arm: [_renamed(run) for run in runs] for arm, runs in content["metrics"].items()}
    return metrics, _renamed(content["metadata"])


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
            arm: [checked_training(run, f"{path}: {arm} run {i}") for i, run in enumerate(runs)]
            for arm, runs in metrics.items()
        }
        for arm, runs in metrics.items():
            if len({run["block"] for run in runs}) < len(runs):
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

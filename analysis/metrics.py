"""Saved metrics: reading and writing them.  Needs no torch.

An experiment is two files with the same content: ``experiment_results.npz`` (numbers for programs,
loads with ``allow_pickle=False``) and ``experiment_results.json`` (for people and other languages).

In memory the metrics are ``{arm: [training, training, ...]}``, one dict a training with the keys of
``NUMBERS``, ``TEXTS``, ``RECORDS`` and ``SERIES`` below, and the metadata (configuration, plan,
code, versions, device, data) is one JSON-like dict.  In the npz each number is an array over
trainings, ``<arm>_<name>`` (R,); each series is ``<arm>_<name>`` (R, steps), padded at the end
where a training stopped early; ``metadata`` holds the rest as the bytes of a JSON text.
"""

import io
import json
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from analysis.contrasts import family_of
from analysis.values import ARM_ORDER
from machine.command import UserError
from machine.files import atomic_write, read_file, to_json, write_json

SCHEMA_VERSION = 3
RESULTS_NAME = "experiment_results"
REPORT_NAME = "improved_comparison_results.txt"
# Per training.  Times in seconds, memory in MB (2**20 bytes), losses in nats per token.
NUMBERS = {
    "block": int,  # from 0
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
    "message",  # what happened, for a training that is not ok
    "order",  # the block's arms in the order they were trained, comma separated
    "started_at",  # UTC, ISO 8601
    "ended_at",
    "process",  # which one trained it: two of them in a block mean a stop in between
    "previous_arm",  # what this process had trained before, "" for nothing
)
RECORDS = (  # each a dict, or None
    "device_before",  # the device's clocks, temperature, ...
    "device_after",
    "curve",  # held-out losses in the course of the training: {"steps": [...], "losses": [...]}
    "reach",  # how far back the model copies from: training/reach.py
)
SERIES = {"losses": np.float32, "tokens_seen": np.int64, "step_seconds": np.float32}
SINCE_VERSION_2 = {"ended_at": "", "process": "", "previous_arm": "", **dict.fromkeys(RECORDS)}
RENAMED = {  # keys of files of versions 1 and 2, and their present names
    "run": "block",
    "launch_index": "index",
    "launch_id": "process",
    "launches": "processes",
}
LACKING = {  # what the metadata of earlier files lack, with the values that held then
    "config": {
        "positions": "learned",
        "sink_tokens": 0,
        "full_heads": 0,
        "stagger": False,
        "nope": False,
        "world_size": 1,
        "gradient_accumulation": 1,
        "checkpoint_blocks": False,
        "loss_chunk": 0,
        "shard_sequence": 1,
    },
    "plan": {
        "equivalence_margin": None,
        "primary": [],
        "family": family_of(ARM_ORDER),
        "confirmation": 0,
    },
    "data": {"unigram_loss": None, "bigram_loss": None},
    "pattern": {"density": None, "evaluation": None},
    "attention": {},
    "code": None,
    "mixed": [],
}


class MetricsError(UserError):
    """A metrics file that is missing, damaged or not ours; the message names the file."""


def checked_training(training):
    """A training's dict with every key, its numbers and series converted to their own types.

    Keys of versions 1 and 2 get their present names.  Raises KeyError for a missing key, and
    ValueError or TypeError for what is no number or has another length.
    """
    training = SINCE_VERSION_2 | _renamed(training)
    checked = {}
    for key, kind in NUMBERS.items():
        value = training[key]
        checked[key] = math.nan if value is None and kind is float else kind(value)
    for key in (*TEXTS, *RECORDS):
        checked[key] = training[key]
    for key, dtype in SERIES.items():
        checked[key] = np.array(training[key], dtype=dtype)  # None, of a JSON file, becomes NaN
        if checked[key].shape != (checked["total_steps"],):
            raise ValueError(f"{key} {checked[key].shape} of {checked['total_steps']} steps")
    return checked


def _renamed(table):
    """A table of any version with the present names of its keys."""
    return {RENAMED.get(key, key): value for key, value in table.items()}


def _checked_metrics(metrics):
    return {arm: [checked_training(t) for t in trainings] for arm, trainings in metrics.items()}


def _completed(metadata):
    """Metadata of any version with the present names, and all that earlier files lack."""
    completed = LACKING | _renamed(metadata)
    for section in ("config", "plan", "data"):
        completed[section] = LACKING[section] | completed[section]
    return completed


def _columns(arm, trainings):
    """The arrays of an arm's trainings, {<arm>_<name>: (R,) or (R, steps)}."""
    arrays = {}
    for key, kind in NUMBERS.items():
        arrays[f"{arm}_{key}"] = np.array([training[key] for training in trainings], dtype=kind)
    longest = max((training["total_steps"] for training in trainings), default=0)
    for key, dtype in SERIES.items():
        padding = np.nan if np.issubdtype(dtype, np.floating) else -1
        table = np.full((len(trainings), longest), padding, dtype=dtype)
        for row, training in zip(table, trainings, strict=True):
            row[: training["total_steps"]] = training[key]
        arrays[f"{arm}_{key}"] = table
    return arrays


def save_metrics(metrics, metadata, output_dir, name=RESULTS_NAME):
    """Write ``<name>.npz`` and ``<name>.json`` into ``output_dir``, each atomically.

    metrics: {arm: [training, ...]}; metadata: a JSON-like dict.  Returns the two paths.
    Raises KeyError, and writes nothing, where a training lacks a key.
    """
    metrics = _checked_metrics(metrics)
    metadata = {**metadata, "schema_version": SCHEMA_VERSION}
    arrays, texts = {}, {}
    for arm, trainings in metrics.items():
        arrays |= _columns(arm, trainings)
        texts[arm] = [{key: t[key] for key in (*TEXTS, *RECORDS)} for t in trainings]
    header = to_json({"metadata": metadata, "texts": texts}).encode()
    arrays["metadata"] = np.frombuffer(header, dtype=np.uint8)
    npz_path, json_path = Path(output_dir) / f"{name}.npz", Path(output_dir) / f"{name}.json"
    atomic_write(npz_path, lambda file: np.savez_compressed(file, **arrays))
    write_json(json_path, {"metadata": metadata, "metrics": metrics})
    return npz_path, json_path


def _read_npz(content):
    """The content of an npz file in the form of the JSON file's."""
    if not content.startswith(b"PK"):  # numpy would take it for a pickle
        raise ValueError("every .npz is a zip file, this is none")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = dict(file)
    saved = json.loads(arrays.pop("metadata").tobytes())
    metrics = {}
    for arm, texts in saved["texts"].items():
        mine = [name for name in arrays if name.startswith(f"{arm}_")]
        metrics[arm] = []
        for i, training in enumerate(texts):
            training |= {name.removeprefix(f"{arm}_"): arrays[name][i] for name in mine}
            for key in SERIES:
                training[key] = training[key][: training["total_steps"]]
            metrics[arm].append(training)
    return {"metadata": saved["metadata"], "metrics": metrics}


@contextmanager
def fitting(path):
    """A context for code that reads this file: what its content makes it raise is a MetricsError.

    A UserError stays as it is, and so does an OSError, which is about a file that is written.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # numpy and zipfile raise a dozen kinds over damage
        reason = f"{type(error).__name__}: {error}".splitlines()[0]  # numpy's have several lines
        words = f"incomplete or not of this suite, or damaged ({reason})"
        raise MetricsError(f"{path}: {words}") from None


def load_experiment(path):
    """Metrics and metadata of a saved experiment (.npz or .json): ``(metrics, metadata)``.

    Raises MetricsError, which names the file and what is wrong with it.
    """
    content = read_file(path, MetricsError, "python main.py writes one")
    with fitting(path):
        saved = json.loads(content) if Path(path).suffix == ".json" else _read_npz(content)
        version = saved["metadata"].get("schema_version")
        if version not in range(1, SCHEMA_VERSION + 1):
            words = f"schema_version {version!r}, this suite reads up to {SCHEMA_VERSION}"
            raise MetricsError(f"{path}: {words}: use the suite that wrote it")
        return _checked_metrics(saved["metrics"]), _completed(saved["metadata"])


def load_metrics(path):
    """Metrics of a saved experiment as ``{arm: [training, ...]}``; see ``load_experiment``."""
    return load_experiment(path)[0]

"""What a stop at any moment must not take: the plan, every finished training, one writer at a time.

    <folder>/plan.json              the experiment's plan and identity, before its first training
    <folder>/runs/003_window.npz    a finished training: its values step by step, and ``about``,
                                    the rest of it as JSON text

Everything else (results, report, plots) is made anew from these files.  Knows nothing of models.
"""

import contextlib
import io
import itertools
import json
import os
from datetime import datetime
from pathlib import Path

import filelock
import numpy as np

from analysis.metrics import (
    REPORT_NAME,
    RESULTS_NAME,
    SCHEMA_VERSION,
    SERIES,
    MetricsError,
    checked_training,
)
from machine import ranks
from machine.command import UserError
from machine.files import (
    DAMAGE,
    atomic_write,
    flush_folder,
    remove_leftovers,
    to_json,
    write_json,
)
from training.tokens import TOKENIZER_NAME
from training.weights import WEIGHTS_CONFIG_NAME, WEIGHTS_NAME

PLAN_NAME, RUNS_NAME, LOCK_NAME, ASIDE_NAME = "plan.json", "runs", ".lock", "set_aside"
RESULTS = (
    f"{RESULTS_NAME}.npz",
    f"{RESULTS_NAME}.json",
    REPORT_NAME,
    WEIGHTS_NAME,
    WEIGHTS_CONFIG_NAME,
)


class StoreError(UserError):
    """A folder that cannot be used as it is; the message names the file and the remedy."""


# the folder
@contextlib.contextmanager
def locked(folder):
    """Keep a second experiment out of ``folder`` as long as the block runs.

    The lock is the operating system's, on the file .lock: it ends with the process, however that
    ends, so a .lock that a killed one left behind keeps nobody out.  Of several ranks the first
    holds it.  Raises StoreError where another process does.
    """
    folder = Path(folder)
    lock = _lock_of(folder)
    ranks.from_first(_acquire, lock, folder)
    try:
        yield
    finally:
        lock.release()


def _lock_of(folder):
    return filelock.FileLock(folder / LOCK_NAME, timeout=0)


def _acquire(lock, folder):
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise StoreError(
            f"{folder}: another experiment is writing there: wait for it or choose another "
            "--output-dir"
        ) from None
    # of writes that a killed process did not end
    remove_leftovers(folder, (PLAN_NAME, TOKENIZER_NAME, *RESULTS))
    remove_leftovers(folder / RUNS_NAME, ["*"])


def is_empty(folder):
    """Is there an empty folder, or nothing at all?  A lock alone does not count."""
    folder = Path(folder)
    if not folder.is_dir():
        return not os.path.lexists(folder)
    return all(path.name == LOCK_NAME for path in folder.iterdir())


def move_aside(folder, data):
    """Rename an earlier experiment's folder out of the way; returns its new path, or None.

    data: the file of tokens, which must not go along.  Raises StoreError or OSError.
    """
    folder = Path(folder)
    if is_empty(folder):
        return None
    for inside in (Path.cwd(), Path(data)):
        if inside.resolve().is_relative_to(folder.resolve()):
            raise StoreError(
                f"--restart would rename {folder}, and {inside} lies inside: choose another "
                "--output-dir"
            )
    lock = _lock_of(folder)
    _acquire(lock, folder)
    try:
        moment = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        target = folder.rename(folder.with_name(f"{folder.name}_earlier_{moment}"))
        flush_folder(target.parent)
    finally:
        lock.release()
    return target


# the plan
def write_plan(folder, metadata):
    """Write the experiment's metadata as ``plan.json``, whole or not at all."""
    write_json(Path(folder) / PLAN_NAME, {**metadata, "schema_version": SCHEMA_VERSION})


def read_plan(folder):
    """The metadata of ``plan.json``; None where there is none, StoreError where it is damaged."""
    path = Path(folder) / PLAN_NAME
    try:
        metadata = json.loads(path.read_bytes())
        version = metadata["schema_version"]
        _ = metadata["identity"], metadata["processes"], metadata["plan"]["orders"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read ({error.strerror}): it must be a readable file"
        ) from None
    except (*DAMAGE, KeyError) as error:
        raise StoreError(
            f"{path}: damaged ({type(error).__name__}: {error}): restore it, or move this "
            "experiment aside with --restart"
        ) from None
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema_version {version!r}, this suite goes on with {SCHEMA_VERSION} only: "
            "use the suite that wrote it, or --restart"
        )
    return metadata


# finished trainings
def training_path(folder, arm, block):
    """Where a training is kept."""
    return Path(folder) / RUNS_NAME / f"{block:03d}_{arm}.npz"


def write_training(folder, experiment_id, arm, training):
    """Write a finished training, whole or not at all.

    Returns it as ``read_trainings`` would give it back; KeyError where it lacks a key.
    """
    training = checked_training(training)
    about = {
        "schema_version": SCHEMA_VERSION,
        "experiment_id": experiment_id,
        "arm": arm,
        "training": {key: value for key, value in training.items() if key not in SERIES},
    }
    arrays = {key: training[key] for key in SERIES}
    arrays["about"] = np.array(to_json(about))
    path = training_path(folder, arm, training["block"])
    atomic_write(path, lambda file: np.savez_compressed(file, **arrays))
    return training


def _read_training(path, metadata):
    """A training's arm and the training; MetricsError says what is wrong with it."""
    try:
        content = io.BytesIO(path.read_bytes())
    except OSError as error:  # of the disk or the system, and no word on the file itself
        raise StoreError(
            f"{path}: cannot be read ({error.strerror}): make it readable and start again"
        ) from None
    try:
        with np.load(content, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].item())
            series = {key: arrays[key] for key in SERIES}
        arm, training = about["arm"], checked_training(about["training"] | series)
        block = training["block"]
        order = metadata["plan"]["orders"][block]
        planned = (
            about["experiment_id"] == metadata["experiment_id"]
            and path.name == training_path("", arm, block).name
            and order[training["position"]] == arm
            and training["order"] == ",".join(order)
            and training["seed"] == metadata["plan"]["seeds"][block]
        )
    except (*DAMAGE, KeyError) as error:
        raise MetricsError(f"{path}: damaged ({type(error).__name__}: {error})") from None
    if not planned:
        raise MetricsError(f"{path}: not what the plan says")
    return arm, training


def read_trainings(folder, metadata):
    """The finished trainings as metrics, {arm: [training, ...]}, and what is damaged.

    metadata: of ``read_plan``.  The second result holds ``(path, reason)`` of every file that
    cannot be trusted; StoreError for one that cannot even be read.
    """
    metrics = {arm: [] for arm in metadata["config"]["arms"]}
    damaged = []
    for path in sorted((Path(folder) / RUNS_NAME).glob("*.npz")):
        try:
            arm, training = _read_training(path, metadata)
            metrics[arm].append(training)
        except MetricsError as error:
            damaged.append((path, str(error)))
    return metrics, damaged


def set_aside(folder, path):
    """Move a training's file into ``set_aside`` beside ``runs``; returns its new path."""
    aside = Path(folder) / ASIDE_NAME
    aside.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        moved = aside / f"{path.stem}_{number}.npz"
        if not moved.exists():
            break
    path.rename(moved)
    for place in (aside, path.parent):  # first where it is, then where it no longer is
        flush_folder(place)
    return moved


def files_aside(folder):
    """The names of the trainings' files that were ever set aside in this folder."""
    return sorted(path.name for path in (Path(folder) / ASIDE_NAME).glob("*.npz"))

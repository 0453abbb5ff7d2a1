"""The plan and the finished trainings on the disk, which survive a stop at any moment.

    <folder>/plan.json              the experiment's plan and identity, before its first training
    <folder>/runs/003_window.npz    a finished training: its values step by step, and ``about``,
                                    the rest of it as JSON text
    <folder>/.lock                  keeps a second experiment out

Everything else (results, report, plots) is made anew from these files.  Knows nothing of models.
"""

import io
import itertools
import json
import os
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import filelock
import numpy as np

from analysis.metrics import (
    REPORT_NAME,
    RESULTS_NAME,
    SCHEMA_VERSION,
    SERIES,
    TEXTS,
    checked_training,
)
from analysis.rows import CURVES_NAME, TRAININGS_NAME
from experiment.identity import differences
from figures.page import PAGE_NAME
from machine import ranks
from machine.command import UserError, say
from machine.files import atomic_write, check_like, read_file, remove_leftovers, to_json
from training.config_file import CONFIG_NAME
from training.tokens import TOKENIZER_NAME
from training.weights import WEIGHTS_CONFIG_NAME, WEIGHTS_FOLDER, WEIGHTS_NAME

PLAN_NAME, RUNS_NAME, LOCK_NAME, ASIDE_NAME = "plan.json", "runs", ".lock", "set_aside"
RESULTS = (f"{RESULTS_NAME}.npz", f"{RESULTS_NAME}.json", REPORT_NAME)
RESULTS += (TRAININGS_NAME, CURVES_NAME, PAGE_NAME, CONFIG_NAME, WEIGHTS_NAME, WEIGHTS_CONFIG_NAME)
# what ``check_like`` compares files with: the kinds of their values
PROCESS = {"process": "", "environment": {}}
REACH = {"passages": 0, "distances": [0]}
REACH |= {key: [0.0] for key in ("gains", "gain_errors", "positions", "position_losses")}
TRAINING = dict.fromkeys(TEXTS, "") | {"device_before": {}, "device_after": {}, "reach": REACH}
TRAINING |= {"curve": {"steps": [0], "losses": [0.0]}}


# the folder
def locked(folder):
    """Keep a second experiment out of ``folder`` from now to the end of a ``with`` block.

    The lock is the operating system's, on the file .lock: it ends with the process, however that
    ends, so a .lock that a killed process left behind keeps nobody out.  Of several ranks the first
    holds it.  Raises UserError where another process does.
    """
    return ranks.on_every(lambda: _lock(folder) if ranks.is_first() else nullcontext())


def _lock(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = filelock.FileLock(folder / LOCK_NAME).acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"{folder}: another experiment is writing there: wait for it or choose another "
            "--output-dir"
        ) from None
    except OSError as error:
        error.filename = str(folder / LOCK_NAME)  # on a disk without locks the error names no file
        raise
    # left of writes that a killed process did not finish
    remove_leftovers(folder, (PLAN_NAME, TOKENIZER_NAME, *RESULTS))
    for name in (RUNS_NAME, WEIGHTS_FOLDER):
        remove_leftovers(folder / name, ["*"])
    return held


def is_empty(folder):
    """Is there an empty folder, or nothing at all?  A lock alone does not count."""
    folder = Path(folder)
    if not folder.is_dir():
        return not os.path.lexists(folder)
    return all(path.name == LOCK_NAME for path in folder.iterdir())


def move_aside(folder, data):
    """Rename an earlier experiment's folder out of the way; says and returns where it is now.

    data: the file of tokens, which must not move with it.  Raises UserError or OSError.
    """
    folder = Path(folder)
    if is_empty(folder):
        return None
    for inside in (Path.cwd(), Path(data)):
        if inside.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--restart would rename {folder}, and {inside} lies inside: choose another "
                "--output-dir"
            )
    if folder.is_symlink():  # the link stays, and leads to an empty folder then
        folder = folder.resolve()
    with _lock(folder):
        moment = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        target = folder.rename(folder.with_name(f"{folder.name}_earlier_{moment}"))
        folder.mkdir()
    say(f"the old results are now in {target}")
    return target


# the plan
def read_plan(folder, now):
    """The metadata of ``plan.json``, None where there is none; UserError where it cannot be used.

    now: the metadata of a new experiment, whose keys it must have.
    """
    path = Path(folder) / PLAN_NAME
    if not os.path.lexists(path):
        return None
    content = read_file(path, UserError, "restore it, or --restart")
    try:
        metadata = json.loads(content)
        _check_plan(metadata, now)
    except Exception as error:  # json's, and what the shape of a foreign file makes a check raise
        raise UserError(
            f"{path}: damaged or of another version ({type(error).__name__}: {error}): restore "
            "it, use the suite that wrote it, or move this experiment aside with --restart"
        ) from None
    return metadata


def _check_plan(metadata, now):
    """Raise an exception of any kind for metadata that an experiment could not go on with."""
    if metadata["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version {metadata['schema_version']!r}, not {SCHEMA_VERSION}")
    for key, value in now.items():
        if not isinstance(metadata[key], type(value)):
            raise ValueError(f"{key} is {metadata[key]!r}")
    for table in ("config", "data", "plan"):
        if lacking := now[table].keys() - metadata[table].keys():
            raise ValueError(f"{table} lacks {', '.join(sorted(lacking))}")
    plan, arms = metadata["plan"], sorted(metadata["config"]["arms"])
    if any(sorted(order) != arms for order in plan["orders"]):
        raise ValueError(f"an order is not of the arms {', '.join(arms)}")
    if len(plan["orders"]) != len(plan["seeds"]):
        raise ValueError(f"{len(plan['orders'])} orders, {len(plan['seeds'])} seeds")
    like = now | {"processes": [PROCESS], "mixed": [""]}
    like["environment"] = now["environment"] | {"variables": {}}
    like["data"] = now["data"] | {"unigram_loss": 0.0, "bigram_loss": 0.0}  # known from the plan
    if differences(metadata["identity"], now["identity"]):  # other options: other values are fine
        like = {key: like[key] for key in ("processes", "mixed")}
    elif (plan["orders"], plan["seeds"]) != (now["plan"]["orders"], now["plan"]["seeds"]):
        raise ValueError("the orders or seeds are not those that its seed gives")
    check_like(metadata, json.loads(to_json(like)), "plan")


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


def _parse_training(content, name, metadata):
    """The arm and the training that a file's bytes hold; raises an exception of any kind."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].item())
        series = {key: arrays[key] for key in SERIES}
    arm, training = about["arm"], checked_training(about["training"] | series)
    check_like(training, TRAINING, "training")
    block = training["block"]
    order = metadata["plan"]["orders"][block]
    if not (
        about["experiment_id"] == metadata["experiment_id"]
        and name == training_path("", arm, block).name
        and order[training["position"]] == arm
        and training["order"] == ",".join(order)
        and training["seed"] == metadata["plan"]["seeds"][block]
    ):
        raise ValueError("not what the plan says")
    series = training["losses"], training["step_seconds"]
    if training["status"] == "ok" and not np.isfinite(series).all():
        raise ValueError("losses or times that are not finite")
    return arm, training


def read_trainings(folder, metadata):
    """The finished trainings as metrics, {arm: [training, ...]}, and what is damaged.

    metadata: of ``read_plan``.  The second result is a list with ``(path, reason)`` of every file
    that cannot be trusted.  Raises UserError for a file that cannot even be read.
    """
    metrics = {arm: [] for arm in metadata["config"]["arms"]}
    damaged = []
    for path in sorted((Path(folder) / RUNS_NAME).glob("*.npz")):
        content = read_file(path, UserError, "start again")
        try:
            arm, training = _parse_training(content, path.name, metadata)
        except Exception as error:  # numpy and zipfile raise a dozen kinds over damage
            damaged.append((path, f"{path}: damaged ({type(error).__name__}: {error})"))
        else:
            metrics[arm].append(training)
    return metrics, damaged


def set_aside(folder, path):
    """Move a training's file into ``set_aside`` beside ``runs``; returns its new path."""
    aside = Path(folder) / ASIDE_NAME
    aside.mkdir(parents=True, exist_ok=True)
    numbered = (aside / f"{path.stem}_{number}.npz" for number in itertools.count(1))
    return path.rename(next(moved for moved in numbered if not moved.exists()))

"""What a stop at any moment must not take: the plan, every finished training, one writer at a time.

    <folder>/plan.json              the experiment's plan and identity, before its first training
    <folder>/runs/003_window.npz    a finished training's values step by step
    <folder>/runs/003_window.json   its numbers, and the .npz file's checksum

A training counts once its .json is there, which is written last; everything else (results, report,
plots) is made anew from these files.  Knows nothing of models or devices and needs no torch.
"""

import contextlib
import itertools
import json
import os
import socket
from datetime import datetime
from pathlib import Path

import numpy as np

from analysis.metrics import SCHEMA_VERSION, SERIES, MetricsError, checked_training
from machine.files import (
    DAMAGE,
    atomic_write,
    file_sha256,
    flush_folder,
    make_folder,
    remove_leftovers,
    unsealed,
    utc_now,
    write_sealed,
)

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second experiment out of a folder there
    fcntl = None


PLAN_NAME, RUNS_NAME, LOCK_NAME, ASIDE_NAME = "plan.json", "runs", ".lock", "set_aside"


class StoreError(ValueError):
    """A folder that cannot be used as it is; the message names the file and the remedy."""


class Busy(StoreError):
    """A folder in which another process is writing; ``holder`` says which, in words."""

    def __init__(self, folder, holder):
        super().__init__(
            f"{folder}: another experiment is writing there ({holder}): wait for it or choose "
            "another --output-dir"
        )
        self.holder = holder


# --- one writer --------------------------------------------------------------------------------
@contextlib.contextmanager
def locked(folder, names=(), wait=False):
    """Keep a second experiment out of ``folder`` as long as the block runs.

    names: files that the block will write there; what a killed process left of them is removed.
    wait: for another process's block to end, where that is a matter of seconds.
    The lock is the operating system's, on the file .lock: it ends with the process, however that
    ends, so a .lock that a killed one left behind keeps nobody out.  Raises Busy where another
    process holds it.
    """
    folder = Path(folder)
    make_folder(folder)
    path = folder / LOCK_NAME
    handle = _locked_file(path, wait)
    try:
        remove_leftovers(folder, (PLAN_NAME, *names))
        remove_leftovers(folder / RUNS_NAME, ("[0-9]*_*.npz", "[0-9]*_*.json"))
        yield
    finally:
        if fcntl is not None:
            path.unlink(missing_ok=True)  # while the lock is held: nobody else's file
        os.close(handle)


def _locked_file(path, wait):
    """A handle of the lock file, locked, with the holder's name inside."""
    while True:
        try:
            # never through a link, which may lead to somebody's file
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            handle = os.open(path, flags, 0o666)
        except OSError as error:
            raise _no_lock(path, error) from None
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                # the holder before may have removed the file between our opening and locking it
                if not _is_still(path, handle):
                    os.close(handle)
                    continue
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": utc_now()}
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(holder).encode())
            return handle
        except BlockingIOError:
            holder = os.read(handle, 1000).decode(errors="replace")
            os.close(handle)
            raise Busy(path.parent, _holder_words(holder)) from None
        except OSError as error:
            os.close(handle)
            raise _no_lock(path, error) from None


def _no_lock(path, error):
    return OSError(
        error.errno,
        f"cannot be locked ({error.strerror}): remove what is there or choose another --output-dir",
        str(path),
    )


def _is_still(path, handle):
    """Is the open file the one that is at ``path`` now?"""
    try:
        return os.stat(path).st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def _holder_words(text):
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "it has just started"


# --- the plan ----------------------------------------------------------------------------------
def write_plan(folder, metadata):
    """Write the experiment's metadata as ``plan.json``, whole or not at all."""
    write_sealed(Path(folder) / PLAN_NAME, {**metadata, "schema_version": SCHEMA_VERSION})


def read_plan(folder):
    """The metadata of ``plan.json``; None where there is none, StoreError where it is damaged."""
    path = Path(folder) / PLAN_NAME
    try:
        metadata = unsealed(path.read_bytes())
        orders, seeds = metadata["plan"]["orders"], metadata["plan"]["seeds"]
        kinds = {"identity": dict, "config": dict, "experiment_id": str}
        kinds |= {"processes": list, "mixed": list, "parameters": dict, "steps": int}
        whole = all(isinstance(metadata[key], kind) for key, kind in kinds.items())
        if len(orders) != len(seeds) or not whole:
            raise ValueError("it is incomplete")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read ({error.strerror}): it must be a readable file"
        ) from None
    except (*DAMAGE, KeyError) as error:
        raise StoreError(
            f"{path}: damaged ({type(error).__name__}: {error}): restore it, or move this "
            "experiment's files aside with --restart"
        ) from None
    if metadata.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema_version {metadata.get('schema_version')!r}, this suite goes on with "
            f"{SCHEMA_VERSION} only: use the suite that wrote it, or --restart"
        )
    return metadata


# --- finished trainings ------------------------------------------------------------------------
def run_name(arm, run):
    """What a training's files are called, without their suffix."""
    return f"{run:03d}_{arm}"


def run_paths(folder, arm, run):
    """The .npz and the .json of a training."""
    name = run_name(arm, run)
    return tuple(Path(folder) / RUNS_NAME / f"{name}.{suffix}" for suffix in ("npz", "json"))


def write_run(folder, experiment_id, arm, run):
    """Write a finished training; it counts from the moment at which its .json is in place.

    Returns the run as ``read_runs`` would give it back; MetricsError where it lacks a key.
    """
    run = checked_training(run, f"{arm} run {run['block']}")
    arrays_path, path = run_paths(folder, arm, run["block"])
    series = {key: run[key] for key in SERIES}
    atomic_write(arrays_path, lambda file: np.savez_compressed(file, **series))
    content = {
        "schema_version": SCHEMA_VERSION,
        "experiment_id": experiment_id,
        "arm": arm,
        "arrays": arrays_path.name,
        "arrays_sha256": file_sha256(arrays_path),
        "training": {key: value for key, value in run.items() if key not in SERIES},
    }
    write_sealed(path, content)
    return run


def _read_run(path, metadata):
    """A training's arm and run from its .json; MetricsError says what is wrong with it."""
    try:
        content = unsealed(path.read_bytes())
        arrays_path = path.with_suffix(".npz")
        if content["experiment_id"] != metadata["experiment_id"]:
            raise MetricsError(f"{path}: of another experiment")
        if file_sha256(arrays_path) != content["arrays_sha256"]:
            raise MetricsError(f"{arrays_path}: not the file that was written with {path.name}")
        with np.load(arrays_path, allow_pickle=False) as arrays:
            series = {key: arrays[key] for key in SERIES}
        arm, run = content["arm"], checked_training(content["training"] | series, str(path))
        order = metadata["plan"]["orders"][run["block"]]
        planned = order[run["position"]] == arm and run["order"] == ",".join(order)
        if not planned or run["seed"] != metadata["plan"]["seeds"][run["block"]]:
            raise MetricsError(f"{path}: not what the plan says")
        if run_name(arm, run["block"]) != path.stem:
            raise MetricsError(f"{path}: holds another training, {arm} of run {run['block'] + 1}")
    except MetricsError:
        raise
    except OSError as error:  # of the disk or the system, and no word on the file itself
        raise StoreError(
            f"{path}: cannot be read ({error.strerror}): make it readable and start again"
        ) from None
    except (*DAMAGE, KeyError) as error:
        raise MetricsError(f"{path}: damaged ({type(error).__name__}: {error})") from None
    return arm, run


def read_runs(folder, metadata):
    """The finished trainings of an experiment as metrics, {arm: [run, ...]}, and what is damaged.

    metadata: of ``read_plan``.  The second result holds ``(json path, reason)`` of every file that
    cannot be trusted (StoreError for one that cannot even be read); an .npz without its .json is
    a training that was stopped while it was being written, and is passed over.
    """
    metrics = {arm: [] for arm in metadata["config"]["arms"]}
    damaged = []
    for path in sorted((Path(folder) / RUNS_NAME).glob("*.json")):
        try:
            arm, run = _read_run(path, metadata)
            metrics[arm].append(run)
        except MetricsError as error:
            damaged.append((path, str(error)))
    return {
        arm: sorted(runs, key=lambda run: run["block"]) for arm, runs in metrics.items()
    }, damaged


def set_aside(folder, path):
    """Move a damaged training's files into ``set_aside`` beside ``runs``; returns the new .json."""
    aside = Path(folder) / ASIDE_NAME
    make_folder(aside)
    for number in itertools.count(1):
        moved = aside / f"{path.stem}_{number}.json"
        if not moved.exists() and not moved.with_suffix(".npz").exists():
            break
    for suffix in (".json", ".npz"):
        if path.with_suffix(suffix).exists():
            path.with_suffix(suffix).rename(moved.with_suffix(suffix))
    for place in (aside, path.parent):  # first where they are, then where they no longer are
        flush_folder(place)
    return moved


def files_aside(folder):
    """The names of the trainings' files that were ever set aside in this folder."""
    return sorted(path.name for path in (Path(folder) / ASIDE_NAME).glob("*.json"))


def move_aside(folder, names):
    """Move an earlier experiment's files into a folder of their own; returns it, or None."""
    folder = Path(folder)
    old = [folder / name for name in (PLAN_NAME, RUNS_NAME, ASIDE_NAME, *names)]
    old = [path for path in old if path.exists()]
    if not old:
        return None
    try:
        moment = datetime.fromtimestamp(old[0].stat().st_mtime)
    except (ValueError, OverflowError, OSError):  # a clock that was far off
        moment = datetime.now()
    stamp = moment.strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        aside = folder / (f"earlier_{stamp}" + (f"_{number}" if number > 1 else ""))
        if not aside.exists():
            break
    make_folder(aside)
    # the plan goes first: without it, what a stop leaves half moved is never taken for the new
    try:
        for path in old:
            path.rename(aside / path.name)
    except OSError:  # all or nothing
        for path in old:
            if (aside / path.name).exists():
                (aside / path.name).rename(path)
        aside.rmdir()
        raise
    for place in (aside, folder):
        flush_folder(place)
    return aside

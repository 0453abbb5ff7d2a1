"""Ends a tiny experiment at chosen moments, goes on with it, and compares with an undisturbed one.

``python tests/experiment/crash_harness.py writes|kills FOLDER`` prints one JSON object, which
test_crash.py reads.  Python and torch are imported once: every experiment is a fork of this
process, so that a hundred of them take seconds.
"""

import builtins
import contextlib
import gc
import importlib
import io
import json
import os
import random
import signal
import stat
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

import compare_models
import studies.command
from analysis.metrics import load_experiment
from training import train as training_train
from training.weights import load_model

KILLS = 12
OPTIONS = "--seq-len 12 --d-model 8 --n-heads 2 --layers 1 --batch-size 2 --max-steps 3 --lr 1e-2"
OPTIONS += " --device cpu --window-size 3 --dilation 2 --warmup-steps 2 --val-batches 1"
OPTIONS += " --arms window fused --runs 1 --data training_data.npy"
BROKEN = 70


def new_folder(parent, name):
    folder = Path(parent) / name
    folder.mkdir()
    tokens = np.random.default_rng(0).integers(20, size=(30, 13)).astype(np.uint16)
    np.save(folder / "training_data.npy", tokens)
    (folder / "tokenizer.json").write_text("{}")  # is copied beside the weights
    return folder


def experiment(folder, prepare=dict):
    """The exit status of an experiment in ``folder``, in a process of its own.

    prepare: is called there first; what it returned by the end is left in found.json.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        seen = prepare()
        code = compare_models.main(OPTIONS.split())
        sys.setprofile(None)
        Path("found.json").write_text(json.dumps({"modules": list(sys.modules), **seen}))
        os._exit(code)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(BROKEN)


# moments
def copy_at_writes(cases):
    """Copy the folder at each change of the disk, as it would be left if this process ended."""
    seen, fsync, open_file, mkdir = {"count": 0}, os.fsync, io.open, os.mkdir

    def copy():
        seen["count"] += 1
        case = cases / str(seen["count"])
        subprocess.run(["cp", "-r", ".", case], check=True)
        return case

    def before(change):
        def wrapper(path, *arguments, **options):
            if os.path.exists(path) or change is mkdir:
                copy()
            return change(path, *arguments, **options)

        return wrapper

    def flush(handle):
        if stat.S_ISREG(os.fstat(handle).st_mode):
            for path in copy().rglob(".*.tmp"):  # half of the file has reached the disk
                os.truncate(path, path.stat().st_size // 2)
        fsync(handle)

    def opened(file, mode="r", *arguments, **options):
        found = open_file(file, mode, *arguments, **options)
        if "w" in mode:  # it is empty now
            copy()
        return found

    for name in ("replace", "rename", "unlink", "mkdir"):
        setattr(os, name, before(getattr(os, name)))
    os.fsync, io.open, builtins.open = flush, opened, opened
    return seen


def kill_at_call(number):
    """Let this process kill itself at its ``number``-th call of a function; counts them."""
    seen = {"count": 0}

    def profile(*_):
        seen["count"] += 1
        if seen["count"] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)
    return seen


# comparison
def outcome(folder):
    """What must be the same however often an experiment was stopped, as plain values."""
    output = folder / "output"
    found = [sorted(str(path.relative_to(output)) for path in output.rglob("*"))]
    for suffix in ("npz", "json"):
        metrics, metadata = load_experiment(output / f"experiment_results.{suffix}")
        for arm in sorted(metrics):
            for training in metrics[arm]:
                keys = ("block", "seed", "order", "position", "index", "val_loss")
                found.append([arm, *(training[key] for key in keys), training["losses"].tolist()])
        plan = metadata["plan"]
        found.append([plan["orders"], plan["seeds"], metadata["status"], metadata["set_aside"]])
    weights = torch.load(output / "window_model_weights.pt", weights_only=True)
    for arm in ("fused", "window"):
        weights |= load_model(output / "weights" / f"{arm}.safetensors").state_dict(prefix=arm)
    return found + [value.tolist() for value in weights.values()]


def goes_on(folder, undisturbed):
    """Does the same command end as if nothing had been, and is all whole that was there?"""
    for path in (folder / "output").glob("experiment_results.*"):
        load_experiment(path)
    kept = {path: path.read_bytes() for path in (folder / "output" / "runs").glob("*.npz")}
    assert experiment(folder) == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    return outcome(folder) == undisturbed


def failures(folders, undisturbed):
    """Go on with the experiment in every folder, and say where the end is another."""
    found = []
    for folder in folders:
        try:
            reason = "" if goes_on(folder, undisturbed) else "another outcome"
        except Exception:
            reason = traceback.format_exc()
        if reason:
            log = (folder / "log.txt").read_text()[-2000:]
            found.append({"folder": folder.name, "reason": reason, "log": log})
    return found


def main():
    torch.set_num_threads(1)
    mode, parent = sys.argv[1], Path(sys.argv[2])
    # a child process and figures would take most of the time, and write nothing of their own kind
    training_train.child_peak_memory_mb = lambda *_: 12.5
    studies.command.create_all_plots = lambda *_: []
    gc.collect = lambda: 0  # each training's would go through all of torch
    first, expected = new_folder(parent, "first"), new_folder(parent, "undisturbed")
    assert experiment(first) == 0, (first / "log.txt").read_text()
    for name in json.loads((first / "found.json").read_text())["modules"]:
        with contextlib.suppress(ImportError):  # ahead: else every fork would, for seconds
            importlib.import_module(name)
    cases = parent / "cases"
    cases.mkdir()
    watch = partial(copy_at_writes, cases) if mode == "writes" else partial(kill_at_call, 0)
    assert experiment(expected, watch) == 0, (expected / "log.txt").read_text()
    statuses = []
    if mode == "kills":  # the number of calls differs a little from one to the next
        calls = json.loads((expected / "found.json").read_text())["count"]
        for number in random.Random(2026).sample(range(1, int(0.97 * calls)), KILLS):
            folder = new_folder(cases, str(number))
            statuses.append(experiment(folder, partial(kill_at_call, number)))
    found = failures(sorted(cases.iterdir()), outcome(expected))
    print(json.dumps({"cases": len(list(cases.iterdir())), "failures": found, "killed": statuses}))


if __name__ == "__main__":
    main()

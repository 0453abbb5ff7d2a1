"""Ends a tiny experiment at chosen moments, goes on with it, and compares with an undisturbed one.

``python tests/experiment/crash_harness.py writes|kills FOLDER`` prints one JSON object, which
test_crash.py reads.  Python and torch are imported once: every experiment is a fork of this
process, so that a hundred of them take seconds.
"""

import builtins
import contextlib
import gc
import importlib
import json
import os
import random
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import torch._dynamo  # an optimizer loads it: in every fork, if it were not here

import compare_models
from analysis.metrics import load_experiment
from training import train as training_train

KILLS = 12
OPTIONS = "--seq-len 12 --d-model 8 --n-heads 2 --layers 1 --batch-size 2 --max-steps 3 --lr 1e-2"
OPTIONS += " --device cpu --window-size 3 --dilation 2 --warmup-steps 2 --val-batches 1"
OPTIONS += " --arms window fused --runs 1"
ENDED, BROKEN = 77, 70


def experiment(folder, prepare=lambda: None):
    """The exit status of an experiment in ``folder``, in a process of its own."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return os.waitstatus_to_exitcode(status)
    try:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        prepare()
        code = compare_models.main(OPTIONS.split())
        sys.setprofile(None)
        os._exit(code)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(BROKEN)


def new_folder(parent, name):
    folder = Path(parent) / name
    folder.mkdir()
    tokens = np.random.default_rng(0).integers(20, size=(30, 13)).astype(np.uint16)
    np.save(folder / "training_data.npy", tokens)
    (folder / "tokenizer.json").write_text("{}")  # is copied beside the weights
    return folder


# moments
class HalfWritten:
    """A file whose first write is a moment too: what it was given gets only half to the disk."""

    def __init__(self, file, is_the_end):
        self.file, self.is_the_end, self.written = file, is_the_end, False

    def write(self, data):
        if not self.written and self.is_the_end():
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            os._exit(ENDED)
        self.written = True
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


def end_at_write(number):
    """Patch this process to end before its ``number``-th change of the disk; counts them."""
    seen = {"changes": 0}

    def is_the_end():
        seen["changes"] += 1
        return seen["changes"] == number

    def counted(change):
        def wrapper(*args, **options):
            if is_the_end():
                os._exit(ENDED)
            return change(*args, **options)

        return wrapper

    def opened(open_file):
        def wrapper(file, mode="r", *args, **options):
            found = open_file(file, mode, *args, **options)
            return HalfWritten(found, is_the_end) if "w" in mode else found

        return wrapper

    for name in ("fsync", "replace", "rename", "unlink", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    os.fdopen, builtins.open = opened(os.fdopen), opened(builtins.open)
    return seen


def call_counter(number=0):
    """Count this process's calls of Python and C functions; kills it at the ``number``-th."""
    seen = {"calls": 0}

    def profile(*_):
        seen["calls"] += 1
        if seen["calls"] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)
    return seen


def at_exit(path, content):
    """Make this process end with writing ``content()`` to ``path`` as JSON."""
    leave = os._exit

    def write_and_leave(code):
        sys.setprofile(None)
        Path(path).write_text(json.dumps(content()))
        leave(code)

    os._exit = write_and_leave


# comparison
def outcome(folder):
    """What must be the same however often an experiment was stopped, as plain values."""
    output = Path(folder) / "output"
    found = {}
    for suffix in ("npz", "json"):
        metrics, metadata = load_experiment(output / f"experiment_results.{suffix}")
        trainings = {
            f"{arm} {training['block']}": [
                *(training[key] for key in ("seed", "order", "position", "index", "val_loss")),
                training["losses"].tobytes().hex(),
            ]
            for arm in sorted(metrics)
            for training in metrics[arm]
        }
        plan = {key: metadata["plan"][key] for key in ("orders", "seeds")}
        found[suffix] = [trainings, plan, metadata["status"], metadata["set_aside"]]
    weights = torch.load(output / "window_model_weights.pt", weights_only=True)
    found["weights"] = [float(value.double().sum()) for value in weights.values()]
    found["files"] = sorted(str(path.relative_to(output)) for path in output.rglob("*"))
    return found


def committed(folder):
    """The files of the trainings that were finished: going on must leave them as they are."""
    runs = (Path(folder) / "output" / "runs").glob("*.npz")
    return {path: path.read_bytes() for path in runs}


def goes_on(folder, undisturbed):
    """Does the same command end as if nothing had been, and was all there readable before it?"""
    for path in (folder / "output").glob("experiment_results.*"):
        load_experiment(path)
    kept = committed(folder)
    assert experiment(folder) == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    return outcome(folder) == undisturbed


def sweep(parent, moments, undisturbed):
    """End an experiment at every moment, go on, and say where the end is another."""
    failures, statuses = [], []
    for number, prepare in enumerate(moments):
        folder = new_folder(parent, f"case{number}")
        statuses.append(experiment(folder, prepare))
        try:
            reason = "" if goes_on(folder, undisturbed) else "another outcome"
        except Exception:
            reason = traceback.format_exc()
        if reason:
            log = (folder / "log.txt").read_text()[-2000:]
            failures.append({"moment": number, "reason": reason, "log": log})
    return {"statuses": statuses, "failures": failures}


def import_ahead(parent):
    """Import what an experiment imports on its way: else every fork would, for seconds."""
    folder = new_folder(parent, "ahead")
    names = folder / "names"
    status = experiment(folder, lambda: at_exit(names, lambda: list(sys.modules)))
    assert status == 0, (folder / "log.txt").read_text()
    for name in json.loads(names.read_text()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def main():
    torch.set_num_threads(1)
    mode, parent = sys.argv[1:]
    # a child process and figures would take most of the time, and write nothing of their own kind
    training_train.child_peak_memory_mb = lambda *_: 12.5
    compare_models.create_all_plots = lambda *_: []
    import_ahead(parent)
    gc.collect = lambda: 0  # each training's would go through all of torch
    end_at = {"writes": end_at_write, "kills": call_counter}[mode]
    expected = new_folder(parent, "undisturbed")
    count = expected / "count"

    def counting():
        seen = end_at(0)
        at_exit(count, lambda: seen)

    assert experiment(expected, counting) == 0, (expected / "log.txt").read_text()
    (last,) = json.loads(count.read_text()).values()
    numbers = range(1, last + 1)
    if mode == "kills":  # the number of calls differs a little from one to the next
        numbers = random.Random(2026).sample(range(1, int(0.97 * last)), KILLS)
    moments = [partial(end_at, number) for number in numbers]
    print(json.dumps(sweep(parent, moments, outcome(expected))))


if __name__ == "__main__":
    main()

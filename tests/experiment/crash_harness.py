"""Ends a tiny experiment at chosen moments, goes on with it, and compares with an undisturbed one.

``python tests/crash_harness.py writes|kills FOLDER`` prints one JSON object; test_crash_safety.py
reads it.  Python and torch are imported once: every experiment is a fork of this process, so that a
hundred of them take seconds.
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch._dynamo  # an optimizer loads it: in every fork, if it were not here

import compare_models
from analysis.metrics import load_experiment
from training import train as training_train

KILLS = 20
OPTIONS = "--seq-len 12 --d-model 8 --n-heads 2 --layers 1 --batch-size 2 --max-steps 3 --lr 1e-2"
OPTIONS += " --device cpu --window-size 3 --dilation 2 --warmup-steps 2 --val-batches 1"
OPTIONS += " --arms window fused --runs "
ENDED = 77


def experiment(folder, runs, prepare=lambda: None):
    """The exit status of an experiment in ``folder``, in a process of its own."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    try:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        prepare()
        code = compare_models.main([*OPTIONS.split(), str(runs)])
        sys.setprofile(None)
        os._exit(code)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)


def new_folder(parent, name):
    folder = Path(parent) / name
    folder.mkdir()
    tokens = np.random.default_rng(0).integers(20, size=(30, 13)).astype(np.uint16)
    np.save(folder / "training_data.npy", tokens)
    (folder / "tokenizer.json").write_text("{}")  # is copied beside the weights
    return folder


# --- moments -----------------------------------------------------------------------------------


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


def kill_at_call(number):
    """Make this process kill itself at its ``number``-th call of a Python or C function."""
    calls = 0

    def profile(*_):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)


def at_exit(path, text):
    """Make this process end with writing ``text()`` to ``path``."""
    leave = os._exit

    def write_and_leave(code):
        sys.setprofile(None)
        Path(path).write_text(text())
        leave(code)

    os._exit = write_and_leave


def count_calls(path):
    """Write to ``path`` how many function calls this process makes up to its end."""
    calls = 0

    def profile(*_):
        nonlocal calls
        calls += 1

    at_exit(path, lambda: str(calls))
    sys.setprofile(profile)


# --- comparison --------------------------------------------------------------------------------


def outcome(folder):
    """What must be the same however often an experiment was stopped, as plain values."""
    output = Path(folder) / "output"
    found = {}
    for suffix in ("npz", "json"):
        metrics, metadata = load_experiment(output / f"experiment_results.{suffix}")
        runs = {
            f"{arm} {run['block']}": [
                *(run[key] for key in ("seed", "order", "position", "index", "val_loss")),
                run["losses"].tobytes().hex(),
            ]
            for arm in sorted(metrics)
            for run in metrics[arm]
        }
        plan = {key: metadata["plan"][key] for key in ("orders", "seeds")}
        found[suffix] = [runs, plan, metadata["status"], metadata["set_aside"]]
    weights = torch.load(output / "window_model_weights.pt", weights_only=True)
    found["weights"] = [float(value.double().sum()) for value in weights.values()]
    found["files"] = sorted(str(path.relative_to(output)) for path in output.rglob("*"))
    return found


def committed(folder):
    """The files of the trainings that were finished: going on must leave them as they are."""
    runs = (Path(folder) / "output" / "runs").glob("*.json")
    return {path: path.read_bytes() for path in runs}


def readable(folder):
    """Whatever a stop left can be read: the results are there whole or not at all."""
    for path in (Path(folder) / "output").glob("experiment_results.*"):
        load_experiment(path)
    return True


def sweep(parent, runs, moments, expected):
    """End an experiment at every moment, go on, and say where the end is another."""
    failures, statuses = [], []
    undisturbed = outcome(expected)
    for number, prepare in enumerate(moments):
        folder = new_folder(parent, f"case{number}")
        statuses.append(experiment(folder, runs, prepare))
        try:
            whole, kept = readable(folder), committed(folder)
            again = experiment(folder, runs)
            same = whole and again == 0 and outcome(folder) == undisturbed
            same &= all(path.read_bytes() == content for path, content in kept.items())
        except Exception as error:
            same, again = False, repr(error)
        if not same:
            log = (folder / "log.txt").read_text()[-2000:]
            failures.append({"moment": number, "again": again, "log": log})
    return {"statuses": statuses, "failures": failures}


def import_ahead(parent):
    """Import what an experiment imports on its way: else every fork would, for seconds."""
    folder = new_folder(parent, "ahead")
    names = folder / "names"
    status = experiment(folder, 1, lambda: at_exit(names, lambda: "\n".join(list(sys.modules))))
    assert status == 0, (folder / "log.txt").read_text()
    for name in names.read_text().split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def main():
    torch.set_num_threads(1)
    mode, parent = sys.argv[1:]
    # a child process and figures would take most of the time, and write nothing of their own kind
    training_train.child_peak_memory_mb = lambda *_: 12.5
    compare_models.create_all_plots = lambda *_: []
    import_ahead(parent)
    gc.freeze()  # else every training's garbage collection goes through all of torch
    runs = 1 if mode == "writes" else 2
    expected = new_folder(parent, "undisturbed")
    if mode == "writes":
        count = expected / "count"

        def counting():
            seen = end_at_write(0)
            at_exit(count, lambda: str(seen["changes"]))

        assert experiment(expected, runs, counting) == 0, (expected / "log.txt").read_text()
        moments = [lambda k=k: end_at_write(k) for k in range(1, int(count.read_text()) + 1)]
    else:
        count = expected / "count"
        status = experiment(expected, runs, lambda: count_calls(count))
        assert status == 0, (expected / "log.txt").read_text()
        # the number of calls differs a little from run to run
        calls = int(0.97 * int(count.read_text()))
        chosen = random.Random(2026).sample(range(1, calls), KILLS)
        moments = [lambda k=k: kill_at_call(k) for k in chosen]
    print(json.dumps(sweep(parent, runs, moments, expected)))


if __name__ == "__main__":
    main()

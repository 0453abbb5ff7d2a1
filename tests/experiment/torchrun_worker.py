"""What torchrun starts in test_ranks.py: the experiment's command, with a fault where asked.

``torchrun ... torchrun_worker.py [options of main.py]`` is main.py; ``... torchrun_worker.py FILE``
runs every command line of FILE, {name: {"options": ..., "fault": ...}}, and the first rank writes
what came of them beside it.  A fault (FILE's or the variable FAULT) is "WHAT TRAINING STEP": what
happens to rank 1 in which training and which of its optimizer steps, counted from 1 with the
warm-up's; with "clock" its clock runs three times as fast from then on.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from small_experiment import diverge, run_out_of_memory

import compare_models
import studies.command
from benchmarks.steps import measure_steps
from experiment import run as experiment_run
from machine import ranks
from machine.command import run_command
from training import train as training_train
from training.config import make_config
from training.trainer import Trainer

training_train.child_peak_memory_mb = lambda *_: 12.5  # a process of its own, which takes seconds
studies.command.create_all_plots = lambda *_: []
torch.nn.Dropout.forward = lambda self, x: x  # ranks draw other masks than one process

TRAIN, UPDATE, LOCAL_GRADIENTS = training_train.train, Trainer.update, ranks.local_gradients
FASTER = SimpleNamespace(perf_counter=lambda: 3 * time.perf_counter())
FAULTS = {
    "kill": lambda trainer: os.kill(os.getpid(), signal.SIGKILL),
    "memory": run_out_of_memory,
    "diverge": diverge,
    "clock": lambda trainer: setattr(training_train, "time", FASTER),
}
fault = []  # of rank 1: what happens in which training of the case and which of its steps
weights, seeds = [], []  # of every training and rank: a checksum, what dropout follows from
counts = Counter()  # of this rank, with the estimates' steps


def begin(text):
    """Forget the case before, and set this one's fault."""
    for record in (fault, weights, seeds, counts):
        record.clear()
    training_train.time = time
    if text and ranks.rank() == 1:
        what, training, step = text.split()
        fault.extend([FAULTS[what], int(training), int(step)])


def train(config, arm, dataset, seed, device, progress):
    if "FAULT" in os.environ:
        begin(os.environ.pop("FAULT"))
    counts["trainings"], counts["steps of it"] = counts["trainings"] + 1, 0
    metrics, model = TRAIN(config, arm, dataset, seed, device, progress)
    if model is not None:
        mine = sum(value.double().abs().sum().item() for value in model.state_dict().values())
        weights.append(ranks.gather(mine))
        seeds.append(ranks.gather(torch.initial_seed()))
    return metrics, model


def update(trainer, *arguments, **options):
    counts["steps"] += 1
    counts["steps of it"] += 1
    if fault[1:] == [counts["trainings"], counts["steps of it"]]:
        fault[0](trainer)
    return UPDATE(trainer, *arguments, **options)


@contextmanager
def local_gradients(module):
    with LOCAL_GRADIENTS(module):
        counts["unsynchronized"] += not module.require_backward_grad_sync
        yield


def command(argv):
    """main.py's exit code."""
    story = partial(studies.command.tell, argv=argv)
    return run_command(compare_models.build_parser(), story, argv)


def fail_on(where):
    """Raise an error that is no user's on one rank."""
    if ranks.rank() == where:
        raise KeyError("none")


def error_of(function, where):
    """What a call says that fails on one rank: the kind of error and its words."""
    try:
        return function(fail_on, where)
    except Exception as error:
        return [type(error).__name__, str(error)]


def agreements():
    """What the functions of machine.ranks give on every rank."""
    mine = ranks.rank() + 1
    return ranks.gather(
        {
            "first": ranks.is_first(),
            "largest": ranks.largest(mine, -mine),
            "mean": ranks.mean([mine, 2]),
            "from first": ranks.from_first(ranks.rank),
            "first fails": error_of(ranks.from_first, 0),
            "other fails": error_of(ranks.on_every, 1),
            "none fails": error_of(ranks.on_every, 2),
        }
    )


def timed_steps():
    """The records of steps over shards of 32 tokens, as the benchmark has them."""
    sizes = {"seq_len": 64, "d_model": 16, "n_heads": 2, "layers": 2, "batch_size": 1}
    cut = {"world_size": 2, "shard_sequence": 2, "arms": ("fused", "w5-d0-f1")}
    config = make_config("paper", device="cpu", positions="rotary", **sizes, **cut)
    return measure_steps(config, torch.device("cpu"), rounds=2)


def run_all(path):
    found = {"agreements": agreements(), "steps": timed_steps()}
    for name, case in json.loads(path.read_text()).items():
        begin(case["fault"])
        try:
            code = command(case["options"].split())
        except Exception as error:  # the other cases are told all the same
            code = repr(error)
        found[name] = {"code": code, "weights": list(weights), "seeds": list(seeds), **counts}
    if ranks.is_first():
        path.with_name("found.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    experiment_run.train, Trainer.update, ranks.local_gradients = train, update, local_gradients
    if sys.argv[1].endswith(".json"):
        sys.exit(ranks.run(partial(run_all, Path(sys.argv[1]))))
    sys.exit(compare_models.main())

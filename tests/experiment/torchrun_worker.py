"""What torchrun starts in test_distributed.py: the experiment's command, with a fault where asked.

``torchrun ... torchrun_worker.py [options of main.py]`` is main.py; ``... torchrun_worker.py FILE``
runs every command line of FILE, {name: {"options": ..., "fault": ...}}, and rank 0 writes what came
of them beside it.  A fault is "WHAT RANK STEP": what happens to which rank in which optimizer step
of the last arm, counted from 1 with the two that try the memory and the warm-up's; with "clock" the
rank's clock runs three times as fast.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import compare_models
from experiment import run as experiment_run
from machine import ranks as machine_ranks
from training import train as training_train
from training import trainer as training_trainer

training_train.child_peak_memory_mb = lambda *_: 12.5  # a process of its own, which takes seconds
compare_models.create_all_plots = lambda *_: []
if "DROPOUT" not in os.environ:  # ranks draw other masks than one process, so losses would differ
    torch.nn.Dropout.forward = lambda self, x: x

TRAIN, UPDATE = training_train.train, training_trainer.Trainer.update
LOCAL_GRADIENTS = machine_ranks.local_gradients
CLOCK = SimpleNamespace(perf_counter=lambda: 3 * time.perf_counter())
weights, seeds = [], []  # of every training and rank: a checksum, what dropout follows from
counts = Counter()  # of rank 0, with the estimates


class Fault:
    """Makes one rank fail in one step."""

    def __init__(self, text=""):
        self.what, rank, self.step = text.split() if text else ("none", -1, 0)
        self.mine = int(rank) == machine_ranks.rank()
        self.trainings, self.steps = 0, 0
        training_train.time = CLOCK if self.mine and self.what == "clock" else time

    def __call__(self, trainer):
        self.steps += 1
        if not self.mine or self.trainings != 2 or self.steps != int(self.step):
            return
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.what == "diverge":
            with torch.no_grad():
                trainer.model.fc_out.bias.fill_(float("nan"))


fault = None


def set_fault(text):
    global fault
    fault = Fault(text)


def train(config, arm, dataset, seed, device, progress):
    global fault
    fault = fault or Fault(os.environ.get("FAULT"))
    fault.trainings, fault.steps = fault.trainings + 1, 0
    metrics, model = TRAIN(config, arm, dataset, seed, device, progress)
    if model is not None:
        mine = sum(value.double().abs().sum().item() for value in model.state_dict().values())
        weights.append(machine_ranks.gather(mine))
        seeds.append(machine_ranks.gather(torch.initial_seed()))
    return metrics, model


def update(trainer, *arguments, **options):
    if fault is not None:
        fault(trainer)
    counts["trained" if options.get("together", True) else "tried"] += 1
    return UPDATE(trainer, *arguments, **options)


def local_gradients(module):
    counts["unsynchronized"] += 1
    return LOCAL_GRADIENTS(module)


def run_all(path):
    found = {}
    for name, case in json.loads(path.read_text()).items():
        weights.clear(), seeds.clear(), counts.clear()
        machine_ranks.together(set_fault, case.get("fault", ""))
        code = compare_models._lead(case["options"].split())
        found[name] = {"code": code, "weights": list(weights), "seeds": list(seeds)}
        found[name]["steps"] = counts["tried"], counts["trained"]
        found[name]["unsynchronized"] = counts["unsynchronized"]
    path.with_name("found.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    experiment_run.train, training_trainer.Trainer.update = train, update
    machine_ranks.local_gradients = local_gradients
    if sys.argv[1].endswith(".json"):
        machine_ranks.lead_or_follow(lambda: run_all(Path(sys.argv[1])))
    sys.exit(compare_models.main())

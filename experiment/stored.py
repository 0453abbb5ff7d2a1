"""An experiment's folder: its plan, the trainings that are done, and those that wait."""

import os
import uuid
from pathlib import Path
from statistics import mean

from analysis.contrasts import tests_of
from analysis.metrics import SUITE_VERSION, save_metrics
from analysis.values import in_order, trainings_of
from analysis.warnings import find_warnings, split_blocks
from attention.pattern import attended_pairs, causal_pairs, density
from experiment.files import (
    ASIDE_NAME,
    RESULTS,
    RUNS_NAME,
    StoreError,
    files_aside,
    is_empty,
    read_plan,
    read_trainings,
    set_aside,
    training_path,
    write_plan,
    write_training,
)
from experiment.identity import can_be_mixed, differences, identity_of, plain_config
from experiment.plan import declare, make_plan
from machine import ranks
from machine.command import say
from machine.describe import describe_code, describe_environment
from machine.files import json_sha256, utc_now
from training.batches import planned_steps, validation_rows
from training.config import layer_patterns
from training.operators import attention_used
from training.train import MEMORY_STEPS
from training.trainer import parameter_counts

REMEDY = "choose another --output-dir, or --restart, which renames the old folder"


def describe_experiment(config, dataset, device):
    """The metadata that is known before the first training; every random choice is in ``plan``."""
    environment, code = describe_environment(device), describe_code()
    identity = identity_of(config, dataset, environment, code)
    used = {arm: attention_used(config, arm, device) for arm in config.arms}
    return {
        "experiment_id": uuid.uuid4().hex,
        "created_at": utc_now(),
        "suite_version": SUITE_VERSION,
        "config": plain_config(config),
        "config_sha256": json_sha256(identity["config"]),
        "identity": identity,
        "plan": make_plan(config) | declare(config),
        "code": code,
        "environment": environment,
        "data": describe_data(config, dataset, identity),
        "pattern": describe_pattern(config, used.get("window")),
        "attention": used,
        "parameters": parameter_counts(config, dataset.vocab_size),
        "steps": planned_steps(config, len(dataset.train)),
        "memory_measure": memory_measure(config, device),
        "processes": [],
        "mixed": [],
    }


def describe_data(config, dataset, identity):
    return {
        "path": str(config.data),
        "sha256": identity["data"],
        "tokenizer_sha256": identity["tokenizer"],
        "tokens": int(dataset.train.size + dataset.held_out.size),
        "train_rows": len(dataset.train),
        "val_rows": len(dataset.held_out),
        "val_rows_used": len(validation_rows(config, len(dataset.held_out))),
        "split": "the last 5 % of the rows are held out and never trained on",
        "vocab_size": dataset.vocab_size,
    }


def describe_pattern(config, used):
    """Pairs and density of one layer, the mean where layers differ, and their evaluation."""
    patterns = layer_patterns(config)
    return {
        "density": mean(density(config.seq_len, *pattern) for pattern in patterns),
        "attended_pairs": mean(attended_pairs(config.seq_len, *p) for p in patterns),
        "causal_pairs": causal_pairs(config.seq_len),
        "evaluation": used and used["evaluation"],
    }


def memory_measure(config, device):
    """What the figures of memory are, in words."""
    several = config.world_size > 1
    if device.type == "cuda":
        whose = " of the rank with the largest" if several else ""
        when = "with the warm-up" if config.records_graphs else "reset after the warm-up"
        return f"torch.cuda.max_memory_allocated{whose}, {when}"
    trained = f"{MEMORY_STEPS} eager steps" + " on one rank's share of the batch" * several
    return f"resident growth of a fresh process that trains {trained}"


class StoredExperiment:
    """An experiment's folder: its plan, the trainings that are done, and those that wait.

    Make one inside ``files.locked``.  A folder without a plan gets one.  One with a plan is
    gone on with where configuration, data, code and device are the same; StoreError lists what
    differs.  allow_mixed: go on all the same, and mark the results.  argv: the command line, for
    the record.
    """

    def __init__(self, config, dataset, device, allow_mixed=False, argv=None):
        self.folder = Path(config.output_dir)
        now = describe_experiment(config, dataset, device)
        before = read_plan(self.folder)
        if before is None:
            self._refuse_foreign()
        self.is_new = before is None
        self.metadata = before or now
        self.metrics, damaged = read_trainings(self.folder, self.metadata)
        self.changed = differences(self.metadata["identity"], now["identity"])
        if self.changed:
            self._mix(allow_mixed)
        for path, reason in damaged:
            moved = set_aside(self.folder, path)
            say(f"warning: {reason}; it is now {moved}, and its training will be repeated")
        self._keep_blocks_whole(now["environment"])
        process = {"process": uuid.uuid4().hex, "started_at": now["created_at"], "argv": argv}
        process |= {key: now[key] for key in ("config", "code", "environment", "attention")}
        self.process = process | {"differs": self.changed}

    def _refuse_foreign(self):
        names = [name for name in RESULTS if os.path.lexists(self.folder / name)]
        # an empty folder is what a write that failed leaves
        names += [n for n in (RUNS_NAME, ASIDE_NAME) if not is_empty(self.folder / n)]
        if names:
            raise StoreError(
                f"{self.folder} holds results without a plan.json ({', '.join(names)}), of an "
                f"older version or another program: {REMEDY}"
            )

    def _mix(self, allow_mixed):
        """Refuse to go on with what differs, or warn of it."""
        listed = "\n  ".join(self.changed)
        about = f"{self.folder} holds another experiment, {self.progress()}; what differs:\n  "
        about += f"{listed}\n"
        if not can_be_mixed(self.changed):
            raise StoreError(about + REMEDY)
        if not allow_mixed:
            raise StoreError(f"{about}{REMEDY}, or --allow-mixed, which goes on and marks them")
        say(f"warning: --allow-mixed goes on although this differs:\n  {listed}")

    def _keep_blocks_whole(self, environment):
        """A block that another GPU began is trained anew: its arms are compared pair by pair."""
        here = _gpu_of(environment)
        gpus = {p["process"]: _gpu_of(p["environment"]) for p in self.metadata["processes"]}
        waiting = {place["block"] for _, place in self.waiting()}
        for arm, training in trainings_of(self.metrics):
            block = training["block"]
            if block in waiting and gpus.get(training["process"]) != here:
                moved = set_aside(self.folder, training_path(self.folder, arm, block))
                say(
                    f"block {block + 1} was begun on another GPU: its training of {arm} is now "
                    f"{moved} and will be repeated here"
                )
                self.metrics[arm] = [one for one in self.metrics[arm] if one is not training]

    def progress(self):
        """How much is done, in words."""
        return f"{len(in_order(self.metrics))} of {len(self.trainings())} trainings done"

    def trainings(self):
        """(arm, place) of every planned training, in the plan's order."""
        planned = []
        for block, order in enumerate(self.metadata["plan"]["orders"]):
            for position, arm in enumerate(order):
                place = {"block": block, "position": position}
                planned.append((arm, place | {"order": ",".join(order)}))
        return planned

    def waiting(self):
        """The planned trainings that are not done."""
        done = {(arm, training["block"]) for arm, training in trainings_of(self.metrics)}
        return [
            (arm, place) for arm, place in self.trainings() if (arm, place["block"]) not in done
        ]

    def begin(self):
        """Note this process in the plan; from now on the folder holds the experiment."""
        known = self.metadata["mixed"]
        known += [line for line in self.changed if line not in known]
        self.metadata["processes"].append(self.process)
        if ranks.is_first():
            write_plan(self.folder, self.metadata)

    def finished(self, arm, training):
        """Save a finished training, and the results that follow from all of them."""
        index = 1 + max((one["index"] for one in in_order(self.metrics)), default=-1)
        training = training | {"index": index, "process": self.process["process"]}
        if ranks.is_first():
            experiment_id = self.metadata["experiment_id"]
            training = write_training(self.folder, experiment_id, arm, training)
        trainings = [*self.metrics[arm], training]
        self.metrics[arm] = sorted(trainings, key=lambda one: one["block"])
        if ranks.is_first():
            self.save_results()

    def save_results(self, with_tests=False):
        """Write ``experiment_results`` anew from the trainings; returns what is in it.

        with_tests: the contrasts' tests too, which take a second where there are many blocks.
        """
        content = self.metadata | {"status": "partial" if self.waiting() else "complete"}
        content["split_blocks"] = split_blocks(self.metrics)
        content["set_aside"] = files_aside(self.folder)
        content["warnings"] = find_warnings(self.metrics, content)
        if with_tests:
            content["tests"] = tests_of(self.metrics, content)
        save_metrics(self.metrics, content, self.folder)
        return self.metrics, content


def _gpu_of(environment):
    return (environment.get("gpu") or {}).get("uuid")

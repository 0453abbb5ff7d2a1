"""An experiment's folder: its plan, the trainings that are done, and those that wait."""

import errno
import itertools
import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from analysis.contrasts import tests_of
from analysis.metrics import (
    REPORT_NAME,
    RESULTS_NAME,
    SUITE_VERSION,
    MetricsError,
    load_experiment,
    save_metrics,
)
from analysis.values import in_order, trainings_of
from analysis.warnings import find_warnings, split_blocks
from attention.pattern import attended_pairs, causal_pairs, density
from experiment.files import (
    ASIDE_NAME,
    RUNS_NAME,
    StoreError,
    files_aside,
    move_aside,
    read_plan,
    read_runs,
    run_name,
    set_aside,
    write_plan,
    write_run,
)
from experiment.identity import _plain, can_be_mixed, identities_differ, identity_of
from experiment.plan import declare, make_plan
from machine.command import say
from machine.describe import describe_code, describe_environment
from machine.files import check_writable, json_sha256, utc_now
from training.batches import planned_steps, validation_rows
from training.config import layer_patterns
from training.operators import attention_used
from training.tokens import TOKENIZER_NAME
from training.train import MEMORY_STEPS
from training.trainer import parameter_counts
from training.weights import WEIGHTS_CONFIG_NAME, WEIGHTS_NAME

OWN_NAMES = (
    f"{RESULTS_NAME}.npz",
    f"{RESULTS_NAME}.json",
    REPORT_NAME,
    WEIGHTS_NAME,
    WEIGHTS_CONFIG_NAME,
)


def result_names(config):
    """An experiment's files beside plan and trainings; data in the same folder keep a tokenizer."""
    names = list(OWN_NAMES)
    if Path(config.data).resolve().parent != Path(config.output_dir).resolve():
        names.append(TOKENIZER_NAME)
    return names


def check_space(config, parameters, steps):
    """Raise OSError, before the first training, where the results would not fit on the disk."""
    steps_in_all = config.runs * len(config.arms) * steps
    # weights; every step's loss, tokens and seconds as text and compressed, the old results beside
    # the new while they are written; figures
    needed = 4 * max(parameters.values()) + 120 * steps_in_all + 30 * 2**20
    free = shutil.disk_usage(config.output_dir).free
    if free < needed:
        words = (
            f"{free / 1e6:,.0f} MB are free there, the results need about {needed / 1e6:,.0f} MB: "
            "free some space or choose another --output-dir"
        )
        raise OSError(errno.ENOSPC, words, str(config.output_dir))


def describe_experiment(config, dataset, device):
    """The metadata that is known before the first training; every random choice is in ``plan``."""
    patterns = layer_patterns(config)
    environment, code = describe_environment(device), describe_code()
    identity = identity_of(config, dataset, environment, code)
    used = {arm: attention_used(config, arm, device) for arm in config.arms}
    return {
        "experiment_id": uuid.uuid4().hex,
        "created_at": utc_now(),
        "suite_version": SUITE_VERSION,
        "config": _plain(asdict(config)),
        "config_sha256": json_sha256(identity["config"]),
        "identity": identity,
        "plan": make_plan(config) | declare(config),
        "code": code,
        "environment": environment,
        "data": {
            "path": str(config.data),
            "sha256": identity["data"],
            "tokenizer_sha256": identity["tokenizer"],
            "tokens": int(dataset.train.size + dataset.held_out.size),
            "train_rows": len(dataset.train),
            "val_rows": len(dataset.held_out),
            "val_rows_used": len(validation_rows(config, len(dataset.held_out))),
            "split": "the last 5 % of the rows are held out and never trained on",
            "vocab_size": dataset.vocab_size,
        },
        "pattern": {  # pairs: of one layer, the mean where layers differ
            "density": mean(density(config.seq_len, *pattern) for pattern in patterns),
            "attended_pairs": mean(attended_pairs(config.seq_len, *p) for p in patterns),
            "causal_pairs": causal_pairs(config.seq_len),
            "evaluation": used["window"]["evaluation"] if "window" in used else None,
        },
        "attention": used,
        "parameters": parameter_counts(config, dataset.vocab_size),
        "steps": planned_steps(config, len(dataset.train)),
        "memory_measure": memory_measure(config, device),
        "processes": [],
        "mixed": [],
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
    differs.  restart: the old files are moved aside first.  allow_mixed: go on all the same, and
    mark the results.  argv: the command line, for the record.
    """

    def __init__(self, config, dataset, device, restart=False, allow_mixed=False, argv=None):
        self.config, self.folder = config, Path(config.output_dir)
        if restart:
            move_old_results(config)
        now = describe_experiment(config, dataset, device)
        before = read_plan(self.folder)
        if before is None:
            self._refuse_foreign()
        self.new, self.steps = before is None, now["steps"]
        self.metadata = now if before is None else before
        self.metrics, damaged = read_runs(self.folder, self.metadata)
        self.changed = identities_differ(self.metadata["identity"], now["identity"])
        if self.changed:
            self._mix(allow_mixed)
        self._refuse_lost(damaged)
        for path, reason in damaged:
            moved = set_aside(self.folder, path)
            say(f"warning: {reason}; it is now {moved}, and its training will be repeated")
        launch = {"process": uuid.uuid4().hex, "started_at": now["created_at"], "argv": argv}
        launch |= {key: now[key] for key in ("config", "code", "environment", "attention")}
        self.launch = launch | {"differs": self.changed}

    def _refuse_foreign(self):
        names = [*OWN_NAMES]
        # an empty folder is what a write that failed leaves
        names += [name for name in (RUNS_NAME, ASIDE_NAME) if not empty(self.folder / name)]
        old = [name for name in names if os.path.lexists(self.folder / name)]
        if old:
            raise StoreError(
                f"{self.folder} holds results without a plan.json ({', '.join(old)}), of "
                "an older version or another program: choose another --output-dir, or --restart, "
                "which moves them aside"
            )

    def _refuse_lost(self, damaged):
        """Results that hold more trainings than runs/ are their last copy: never overwrite them."""
        try:
            metrics, metadata = load_experiment(self.folder / f"{RESULTS_NAME}.json")
        except MetricsError:
            return
        if metadata.get("experiment_id") != self.metadata["experiment_id"]:
            return
        known = {run_name(arm, run["block"]) for arm, run in trainings_of(self.metrics)}
        known |= {path.stem for path, _ in damaged}
        known |= {name.rsplit("_", 1)[0] for name in files_aside(self.folder)}
        held = {run_name(arm, run["block"]) for arm, run in trainings_of(metrics)}
        if lost := sorted(held - known):
            raise StoreError(
                f"{self.folder / RUNS_NAME} lacks trainings that {RESULTS_NAME}.json holds "
                f"({', '.join(lost)}): put them back, choose another --output-dir, or --restart, "
                "which moves the old results aside"
            )

    def _mix(self, allow_mixed):
        """Refuse to go on with what differs, or warn of it."""
        listed = "\n  ".join(self.changed)
        about = f"{self.folder} holds another experiment, {self.progress()}; what differs:\n  "
        about += f"{listed}\n"
        remedy = "choose another --output-dir, or --restart, which moves the old results aside"
        if not can_be_mixed(self.changed):
            raise StoreError(about + remedy)
        if not allow_mixed:
            raise StoreError(f"{about}{remedy}, or --allow-mixed, which goes on and marks them")
        say(f"warning: --allow-mixed goes on although this differs:\n  {listed}")

    def progress(self):
        """How much is done, in words."""
        return f"{len(in_order(self.metrics))} of {len(self.trainings())} trainings done"

    def trainings(self):
        """(arm, place) of every planned training, in the plan's order."""
        orders, indices = self.metadata["plan"]["orders"], itertools.count()
        return [
            (arm, {"block": run, "position": i, "index": next(indices), "order": ",".join(o)})
            for run, o in enumerate(orders)
            for i, arm in enumerate(o)
        ]

    def waiting(self):
        """The planned trainings that are not done."""
        done = {(arm, run["block"]) for arm, run in trainings_of(self.metrics)}
        return [
            (arm, place) for arm, place in self.trainings() if (arm, place["block"]) not in done
        ]

    def begin(self):
        """Note this launch in the plan; from now on the folder holds the experiment."""
        known = self.metadata["mixed"]
        known += [line for line in self.changed if line not in known]
        check_writable(self.folder / RUNS_NAME)
        self.metadata["processes"].append(self.launch)
        write_plan(self.folder, self.metadata)

    def finished(self, arm, run):
        """Save a finished training, and the results that follow from all of them."""
        run = write_run(self.folder, self.metadata["experiment_id"], arm, run)
        self.metrics[arm] = sorted([*self.metrics[arm], run], key=lambda run: run["block"])
        self.save_results()

    def next_index(self, planned):
        """The launch index of the next training: its place in time, also where it is repeated."""
        done = [run["index"] for run in in_order(self.metrics)]
        return max(planned, 1 + max(done, default=-1))

    def save_results(self, with_tests=False):
        """Write ``experiment_results`` anew from the trainings; returns what is in it.

        with_tests: the contrasts' tests too, which take a second where there are many runs.
        """
        content = self.metadata | {"status": "partial" if self.waiting() else "complete"}
        content["split_blocks"] = split_blocks(self.metrics)
        content["set_aside"] = files_aside(self.folder)
        content["warnings"] = find_warnings(self.metrics, content)
        if with_tests:
            content["tests"] = tests_of(self.metrics, content)
        save_metrics(self.metrics, content, self.folder)
        return self.metrics, content


def empty(folder):
    """Is there an empty folder, or nothing at all?"""
    return not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))


def move_old_results(config):
    """Move an experiment's files aside, in a folder that is locked, and say where they are."""
    moved = move_aside(Path(config.output_dir), result_names(config))
    if moved is not None:
        say(f"the old results are now in {moved}")

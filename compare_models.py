"""The experiment: every arm trained in every run, in balanced random order, measured and reported.

A run is a block: each arm once, from the same seed, adjacent in time, so that arms can be compared
pair by pair.  Every finished training is on the disk before the next begins, and the same command
goes on where a stop left off.  ``python main.py`` runs it from the command line;
``run_experiment`` from a notebook.
"""

import argparse
import errno
import itertools
import os
import shutil
import sys
import uuid
from dataclasses import asdict, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from tqdm import tqdm

import distributed
from create_model_plots import FIGURES, create_all_plots
from machine import (
    A_PATH,
    check_writable,
    describe_code,
    describe_environment,
    device_name,
    is_out_of_memory,
    resolve_device,
)
from metrics_utils import (
    CONTRASTS,
    REPORT_NAME,
    RESULTS_NAME,
    SUITE_VERSION,
    MetricsError,
    explained,
    file_sha256,
    json_sha256,
    launched,
    load_experiment,
    pairs_of,
    pattern_text,
    planned_trainings,
    ranks_text,
    save_metrics,
    utc_now,
)
from prepare_data import DEFAULT_PATH, TOKENIZER_NAME, describe, load_dataset, prepare_data
from report import (
    FAMILY_OUTCOMES,
    PRIMARY,
    find_warnings,
    split_blocks,
    tests_of,
    write_report,
)
from rotary import POSITIONS
from run_store import (
    ASIDE_NAME,
    RUNS_NAME,
    Busy,
    StoreError,
    Terminated,
    files_aside,
    finishing,
    identities_differ,
    locked,
    move_aside,
    read_plan,
    read_runs,
    remove_leftovers,
    run_name,
    set_aside,
    terminable,
    write_plan,
    write_run,
)
from significance import ALPHA
from studies import (
    DEFAULTS,
    LENGTHS,
    PATTERNS,
    STUDIES,
    STUDY_DEFAULTS,
    SharedStudy,
    format_study,
    length_points,
    parse_pattern,
    pattern_points,
    study_folder,
)
from train_model import (
    MEMORY_STEPS,
    PRESETS,
    ExperimentConfig,
    Trainer,
    attention_used,
    check_config,
    deterministic_algorithms,
    layer_patterns,
    make_config,
    parameter_counts,
    planned_steps,
    release_memory,
    train,
    validation_rows,
)
from weights import WEIGHTS_CONFIG_NAME, WEIGHTS_NAME, save_window_weights
from window_attention import attended_pairs, causal_pairs, density

EXIT_FAILED, EXIT_USAGE, EXIT_RUNS_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 3, 130, 143
NOT_CONFIG = ("preset", "dry_run", "debug", "restart", "allow_mixed")
NOT_CONFIG += ("study", "seq_lens", "patterns")
NOT_IDENTITY = ("preset", "data", "output_dir", "plots_dir")  # names and places, no influence
# options that experiments before them lack: no part of the identity while they change nothing
ADDED_LATER = {"positions": "learned", "sink_tokens": 0, "schedule": "cosine"}
ADDED_LATER |= {"gradient_accumulation": 1, "world_size": 1, "backend": "none"}
# what the plan rests on, and what makes curves of other steps: never to be mixed
PLANNED = tuple(
    f"config.{name}:"
    for name in ("runs", "seed", "arms", "equivalence_margin", "seq_len", "batch_size", "max_steps")
) + ("config.world_size:",)

MOST_PERMUTED = 6  # arms whose orders are all dealt: 120 squares

# for the estimate before the first training; measured times take over after it
CHILD_SECONDS = 4  # a fresh process imports torch
COMPILE_SECONDS = 20


# --- the plan ----------------------------------------------------------------------------------


def balanced_orders(arms, runs, rng):
    """For every run the order of its arms: random, and balanced as far as ``runs`` allows.

    The permutations of the arms are dealt as Latin squares (each arm once in each place), the
    squares and the rows inside a square in random order; all are used before one comes again.  So
    no order is used more than once oftener than another, and after every len(arms) runs each arm
    has been first, second, ... equally often.  With many arms there are too many permutations to
    deal them all: every square is then drawn anew.
    """
    size = len(arms)
    if size > MOST_PERMUTED:
        drawn = (arms[:1] + tuple(rng.permutation(arms[1:])) for _ in range(-(-runs // size)))
        orders = [square[k:] + square[:k] for square in drawn for k in rng.permutation(size)]
        return [tuple(map(str, order)) for order in orders[:runs]]
    rest = itertools.permutations(arms[1:])
    # the rotations of (first, *rest) form a Latin square, and the squares share no permutation
    squares = [[(arms[0], *tail)[k:] + (arms[0], *tail)[:k] for k in range(size)] for tail in rest]
    orders = []
    while len(orders) < runs:
        for square in rng.permutation(len(squares)):
            orders += [squares[square][row] for row in rng.permutation(size)]
    return orders[:runs]


def make_plan(config):
    """Orders and seeds of all runs, drawn from ``config.seed`` alone before anything is trained."""
    for_orders, for_seeds = np.random.SeedSequence(config.seed).spawn(2)
    orders = balanced_orders(config.arms, config.runs, np.random.default_rng(for_orders))
    seeds = for_seeds.generate_state(config.runs)
    return {"orders": [list(order) for order in orders], "seeds": [int(seed) for seed in seeds]}


# --- what every rank does ----------------------------------------------------------------------
# Functions for ``distributed.together``: rank 0 alone has the dataset and the bars in hand.


@lru_cache(maxsize=1)
def _data_of_rank(path, seq_len, batch_size):
    return load_dataset(path, seq_len, batch_size)


def _own(config, dataset):
    """This rank's device and data."""
    if dataset is None:
        dataset = _data_of_rank(config.data, config.seq_len, config.batch_size)
    return distributed.local_device(torch.device(config.device)), dataset


def train_here(config, arm, seed, dataset=None, progress=lambda steps_done, loss: None):
    """``train_model.train`` with this rank's device and data."""
    device, dataset = _own(config, dataset)
    release_memory(device)
    return train(config, arm, dataset, seed, device, progress)


def estimate_here(config, arm, dataset=None):
    """``estimate_seconds`` with this rank's device and data."""
    device, dataset = _own(config, dataset)
    return estimate_seconds(config, arm, dataset, device)


def ranks_that_differ(config):
    """What keeps the ranks from training one model: a line for each rank with other data or code.

    Machines need not share a disk, and each reads its own.
    """
    try:
        dataset = load_dataset(config.data, config.seq_len, config.batch_size)
        device = distributed.local_device(torch.device(config.device))
        mine = {"data": file_sha256(dataset.path), "code": describe_code()["sources_sha256"]}
        mine |= {"torch": torch.__version__, "device": device_name(device).split(" (")[0]}
    except (ValueError, OSError, distributed.Lost) as error:
        mine = {"problem": str(error)}
    first, *others = distributed.gather(mine)
    return [
        f"rank {rank}: {other.get('problem') or 'differs in ' + ', '.join(different)}"
        for rank, other in enumerate(others, start=1)
        if (different := [key for key in first if other.get(key) != first[key]])
    ]


def check_ranks(config):
    """Raise ValueError before hours of training where the ranks cannot train one model."""
    if distributed.size() > 1 and (lines := distributed.together(ranks_that_differ, config)):
        raise ValueError(
            "every rank needs the same data, code, torch and kind of device; " + "; ".join(lines)
        )


# --- what surrounds the experiment -------------------------------------------------------------


def estimate_seconds(config, arm, dataset, device):
    """Roughly how long one training of the arm takes, from two timed eager steps; None: too big."""
    eager = replace(config, compile="none")
    trainer = None
    try:
        with deterministic_algorithms(config.deterministic):
            trainer = Trainer(eager, arm, dataset.train, dataset.vocab_size, device, seed=0)
            first, rest = trainer.warm_up(steps=3)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        del trainer
        release_memory(device)
    step = rest / 2
    held_out = len(validation_rows(config, len(dataset.held_out))) / config.batch_size
    # a validation batch is a forward pass, a third of a step
    seconds = first + step * (planned_steps(config, len(dataset.train)) + 3 + held_out / 3)
    if device.type == "cpu":
        seconds += CHILD_SECONDS + 3 * step  # the process that measures memory
    return seconds + (COMPILE_SECONDS if config.compile != "none" else 0)


def format_seconds(seconds):
    """A rough duration in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Two bars on stderr, experiment and current training; plain lines where it is no terminal."""

    def __init__(self, config, steps, estimates, done=None):
        """done: metrics of the trainings that an earlier launch finished."""
        done = done or {arm: [] for arm in config.arms}
        self.steps, self.runs = steps, config.runs
        self.seconds = {arm: [s] if (s := estimates.get(arm)) else [] for arm in config.arms}
        self.measured = {arm: [run["wall_time"] for run in done[arm]] for arm in config.arms}
        self.waiting = {arm: config.runs - len(done[arm]) for arm in config.arms}
        self.whole = tqdm(
            total=config.runs * len(config.arms) * steps,
            initial=len(launched(done)) * steps,
            desc="experiment",
            unit="step",
            disable=None,
            mininterval=0.5,  # drawing takes host time that belongs to the training
            position=0,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps "
            "[{elapsed}{postfix}]",
        )
        self.current = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.current is not None:
            self.current.close()
        self.whole.close()

    def seconds_left(self, under_way=()):
        """Seconds that the waiting trainings will take, from measured times where there are any.

        under_way: {arm: share of a training still to come}.
        """
        means = {
            arm: float(np.mean(self.measured[arm] or self.seconds[arm]))
            for arm in self.waiting
            if self.measured[arm] or self.seconds[arm]
        }
        if not means:
            return None
        typical = float(np.mean(list(means.values())))
        return sum(
            (n + dict(under_way).get(arm, 0)) * means.get(arm, typical)
            for arm, n in self.waiting.items()
        )

    def start(self, run, arm):
        """A training begins; returns the callback for ``train_model.train``."""
        self.waiting[arm] -= 1
        self.current = tqdm(
            total=self.steps,
            desc=f"run {run + 1}/{self.runs} {arm}",
            unit="step",
            disable=None,
            mininterval=0.5,
            position=1,
            leave=False,
        )
        self.whole.set_postfix_str(f"about {self._left(arm, 1.0)} left", refresh=False)

        self.advanced = 0

        def advance(steps_done, loss):
            self.advanced = steps_done
            self.whole.update(1)
            self.current.update(1)
            if loss is not None:
                left = self._left(arm, 1 - steps_done / self.steps)
                self.current.set_postfix_str(f"loss {loss:.4f}", refresh=False)
                self.whole.set_postfix_str(f"about {left} left, loss {loss:.4f}", refresh=False)

        return advance

    def _left(self, arm=None, share=0.0):
        """The time left in words, with ``share`` of a training of ``arm`` that is under way."""
        left = self.seconds_left({arm: share} if arm else {})
        return "?" if left is None else format_seconds(left)

    def finish(self, run, arm, metrics):
        """A training ended: one line that says how."""
        steps_shown = self.advanced
        self.current.close()
        self.current = None
        self.whole.update(self.steps - steps_shown)
        self.measured[arm].append(metrics["wall_time"])
        if metrics["status"] == "ok":
            result = (
                f"{metrics['training_time']:.1f} s, {metrics['peak_memory_mb']:.0f} MB, "
                f"loss {metrics['final_loss']:.4f}, validation {metrics['val_loss']:.4f}"
            )
        else:
            result = f"{metrics['status'].replace('_', ' ')}: {metrics['message']}"
        say(f"run {run + 1}/{self.runs} {arm}: {result}; about {self._left()} left")


def say(text):
    """A line for the person at the screen: stderr, above the bars; stdout is the report alone."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


# --- files -------------------------------------------------------------------------------------


def ensure_data(path):
    """Prepare the default corpus where the default file is missing, and say so.

    A file that the user named is never made up: load_dataset says that it is missing.
    """
    if os.path.lexists(path) or path != DEFAULT_PATH:
        return
    say(f"{path} is missing: preparing it from the Python standard library's own source")
    say(describe(prepare_data(output=path)))


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


def save_window_model(model, config, dataset):
    """The window model's weights in the output folder, with what rebuilds it and decodes."""
    arguments = {
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "layers": config.layers,
        "vocab_size": dataset.vocab_size,
        "max_seq_len": config.seq_len,
        "window_size": config.window_size,
        "dilation": config.dilation,
        "sink_tokens": config.sink_tokens,
        "positions": config.positions,
    }
    tokenizer = tokenizer_of(dataset)
    tokenizer = tokenizer if tokenizer.is_file() else None
    save_window_weights(model, arguments, tokenizer, config.output_dir)


def tokenizer_of(dataset):
    """Where the tokenizer of a dataset lies, if there is one: beside its file."""
    return Path(dataset.path).resolve().parent / TOKENIZER_NAME


# --- the experiment ----------------------------------------------------------------------------


def identity_of_config(config):
    """The part of a configuration that decides what is trained."""
    chosen = _plain(asdict(config)).items()
    return {k: v for k, v in chosen if k not in NOT_IDENTITY and (k, v) not in ADDED_LATER.items()}


def identity_of(config, dataset, environment, code):
    """What must not change inside an experiment, for its trainings to be compared."""
    gpu = environment.get("gpu") or {}
    keys = ("device_name", "torch", "cuda", "cudnn", "float32_matmul_precision")
    # PyTorch itself sets some that name a folder, in the middle of a process
    variables = environment.get("variables", {}).items()
    variables = {name: value for name, value in variables if value != A_PATH}
    return {
        "config": identity_of_config(config),
        "code": code["sources_sha256"],
        "data": file_sha256(dataset.path),
        "tokenizer": file_sha256(tokenizer_of(dataset)),
        "device": {key: environment.get(key) for key in keys}
        | {"variables": variables}
        | {key: gpu.get(key) for key in ("uuid", "driver", "tf32_matmul", "tf32_cudnn")},
    }


def _plain(config):
    """A configuration as JSON gives it back."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()}


def declare(config):
    """What is to be tested, fixed in the plan before the first training."""
    contrasts = [(a, b) for a, b, _ in CONTRASTS if {a, b} <= set(config.arms)]
    return {
        "alpha": ALPHA,
        "equivalence_margin": config.equivalence_margin,
        "primary": [list(claim) for claim in PRIMARY if set(claim[:2]) <= set(config.arms)],
        "family": [[a, b, key] for a, b in contrasts for key in FAMILY_OUTCOMES],
    }


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
        "launches": [],
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

    Make one inside ``run_store.locked``.  A folder without a plan gets one.  One with a plan is
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
        launch = {"launch_id": uuid.uuid4().hex, "started_at": now["created_at"], "argv": argv}
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
        known = {run_name(arm, run["run"]) for arm, run in pairs_of(self.metrics)}
        known |= {path.stem for path, _ in damaged}
        known |= {name.rsplit("_", 1)[0] for name in files_aside(self.folder)}
        held = {run_name(arm, run["run"]) for arm, run in pairs_of(metrics)}
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
        return f"{len(launched(self.metrics))} of {len(self.trainings())} trainings done"

    def trainings(self):
        """(arm, place) of every planned training, in the plan's order."""
        orders, indices = self.metadata["plan"]["orders"], itertools.count()
        return [
            (arm, {"run": run, "position": i, "launch_index": next(indices), "order": ",".join(o)})
            for run, o in enumerate(orders)
            for i, arm in enumerate(o)
        ]

    def waiting(self):
        """The planned trainings that are not done."""
        done = {(arm, run["run"]) for arm, run in pairs_of(self.metrics)}
        return [(arm, place) for arm, place in self.trainings() if (arm, place["run"]) not in done]

    def begin(self):
        """Note this launch in the plan; from now on the folder holds the experiment."""
        known = self.metadata["mixed"]
        known += [line for line in self.changed if line not in known]
        check_writable(self.folder / RUNS_NAME)
        self.metadata["launches"].append(self.launch)
        write_plan(self.folder, self.metadata)

    def finished(self, arm, run):
        """Save a finished training, and the results that follow from all of them."""
        run = write_run(self.folder, self.metadata["experiment_id"], arm, run)
        self.metrics[arm] = sorted([*self.metrics[arm], run], key=lambda run: run["run"])
        self.save_results()

    def next_index(self, planned):
        """The launch index of the next training: its place in time, also where it is repeated."""
        done = [run["launch_index"] for run in launched(self.metrics)]
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


def can_be_mixed(changed):
    """May --allow-mixed go on although this differs (lines of ``identities_differ``)?"""
    return not any(line.startswith(PLANNED) for line in changed)


def move_old_results(config):
    """Move an experiment's files aside, in a folder that is locked, and say where they are."""
    moved = move_aside(Path(config.output_dir), result_names(config))
    if moved is not None:
        say(f"the old results are now in {moved}")


def identity_here(config, dataset):
    """``identity_of`` an experiment that would be begun here and now."""
    with deterministic_algorithms(config.deterministic):
        environment = describe_environment(torch.device(config.device))
        return identity_of(config, dataset, environment, describe_code())


def world_of(device):
    """The fields of a configuration that say which processes train."""
    return {"world_size": distributed.size(), "backend": distributed.backend(device)}


def run_experiment(
    config,
    dataset=None,
    restart=False,
    allow_mixed=False,
    before=lambda stored: None,
    after=lambda metrics, metadata: None,
    argv=None,
):
    """Train every arm in every run, each saved before the next, and go on where a stop left off.

    Returns ``(metrics, metadata)`` as metrics_utils keeps them.  Files go to
    ``config.output_dir``; see ``StoredExperiment`` for a folder that holds results already.
    ``before(stored)`` is called before the first training and may return estimates, {arm:
    seconds}; ``after(metrics, metadata)`` at the end, while the folder is still locked.
    """
    device = resolve_device(config.device)
    config = replace(config, device=str(device), **world_of(device))
    check_config(config)
    if dataset is None:
        dataset = load_dataset(config.data, config.seq_len, config.batch_size)
    # PyTorch looks for cuBLAS' setting at its first use: the mode must be on from the start
    names = result_names(config)
    with deterministic_algorithms(config.deterministic), locked(config.output_dir, names):
        stored = StoredExperiment(config, dataset, device, restart, allow_mixed, argv)
        if waiting := stored.waiting():
            check_space(config, stored.metadata["parameters"], stored.steps)
            estimates = before(stored) or {}
            stored.begin()
            train_waiting(stored, waiting, dataset, device, estimates)
        results = stored.save_results(with_tests=True)
        after(*results)
        return results


def train_waiting(stored, waiting, dataset, device, estimates):
    """Train what waits, in the plan's order; every finished training is saved at once."""
    config, metadata = stored.config, stored.metadata
    launch_id, previous_arm = stored.launch["launch_id"], ""
    with Progress(config, stored.steps, estimates, stored.metrics) as progress:
        for arm, place in waiting:
            run = place["run"]
            callback = progress.start(run, arm)
            place["launch_index"] = stored.next_index(place["launch_index"])
            seed = metadata["plan"]["seeds"][run]
            own = {"dataset": dataset, "progress": callback}
            result, model = distributed.together(train_here, config, arm, seed, **own)
            result |= place | {"launch_id": launch_id, "previous_arm": previous_arm}
            with finishing():
                if arm == "window" and run == 0 and model is not None:
                    save_window_model(model, config, dataset)
                stored.finished(arm, result)
            previous_arm = arm
            del model
            release_memory(device)
            progress.finish(run, arm, result)


# --- the command line --------------------------------------------------------------------------


def _default_text(name, default):
    """A field's default, or one for each preset where they differ."""
    values = {preset: changes.get(name, default) for preset, changes in PRESETS.items()}

    def show(value):
        return " ".join(value) if isinstance(value, tuple) else value

    if len(set(values.values())) == 1:
        return f"(default: {show(default)})"
    return "(default: " + ", ".join(f"{preset} {show(v)}" for preset, v in values.items()) + ")"


def build_parser():
    """The command line, derived from the fields of ExperimentConfig."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Train a GPT with full attention and with sliding-window + dilated attention, "
        "many times in balanced random order, and report what the sparsity buys in time, memory "
        "and quality. Prepares its data when there is none.",
        epilog="examples:\n"
        "  python main.py                             the whole experiment with this machine's "
        "preset\n"
        "  python main.py --dry-run                   what it would do, and roughly how long\n"
        "  python main.py --preset long --runs 3      where sparsity can pay (CUDA)\n"
        "  python main.py --window-size 64 --dilation 8 --output-dir out/64_8 --plots-dir "
        "out/64_8\n"
        "  python main.py --study lengths             from which length on sparsity pays\n"
        "  python main.py --study patterns            which window_size and dilation to choose\n"
        "  torchrun --standalone --nproc-per-node 8 main.py    the same on 8 GPUs\n\n"
        "every finished training is kept: after a stop the same command goes on from there\n\n"
        "exit codes: 0 done, 1 a file could not be written, 2 wrong options or data or a folder "
        "that holds another experiment, 3 done but a training diverged or ran out of memory, 130 "
        "interrupted, 143 terminated",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="paper: the published experiment; long: S 4096 in compiled bfloat16; laptop: small "
        "and short (default: paper with CUDA, laptop without)",
    )
    switch = {"action": "store_true", "default": False}
    parser.add_argument("--dry-run", help="print the plan and a time estimate, no more", **switch)
    parser.add_argument(
        "--restart", help="move the results in --output-dir aside and start anew", **switch
    )
    parser.add_argument(
        "--allow-mixed",
        help="go on with an experiment although configuration, data, code or device differ; the "
        "results are marked",
        **switch,
    )
    parser.add_argument("--debug", help="show the traceback of an error", **switch)
    study = parser.add_argument_group(
        "study",
        "Many experiments, each in a folder of its own below --output-dir, summed up in one table "
        "and in pictures. The defaults change: 3 runs, a constant learning rate, preset long with "
        "CUDA, fewer steps. The same command started once for each GPU shares the points.",
    )
    study.add_argument(
        "--study",
        choices=STUDIES,
        help="lengths: the arms at several sequence lengths, --batch-size x --seq-len tokens in "
        "every step; patterns: window models of many patterns against fused. Both with learned "
        "and with rotary positions, unless --positions chooses",
    )
    lengths = ", ".join(f"{' '.join(map(str, x))} ({device})" for device, x in LENGTHS.items())
    study.add_argument(
        "--seq-lens", nargs="+", type=int, metavar="S", help=f"of the lengths (default: {lengths})"
    )
    patterns = " ".join(f"{w}:{d}" for w, d in PATTERNS)
    study.add_argument(
        "--patterns", nargs="+", metavar="W:D", help=f"of the patterns (default: {patterns})"
    )
    groups = {}
    for item in fields(ExperimentConfig):
        if "group" not in item.metadata:
            continue
        title = item.metadata["group"]
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        typed = isinstance(item.default, str | int | float) and not isinstance(item.default, bool)
        options = ({"type": type(item.default)} if typed else {}) | item.metadata["argparse"]
        text = f"{item.metadata['help']} {_default_text(item.name, item.default)}"
        group.add_argument(f"--{item.name.replace('_', '-')}", help=text, **options)
    return parser


def config_from(arguments):
    """The checked configuration that parsed arguments mean; ValueError for what cannot be run."""
    chosen = {key: value for key, value in vars(arguments).items() if key not in NOT_CONFIG}
    if "arms" in chosen:
        chosen["arms"] = tuple(chosen["arms"])
    device = resolve_device(chosen.get("device", "auto"))
    if device.type == "cuda" and ":" in chosen.get("device", "") and distributed.size() > 1:
        raise ValueError(
            f"--device {chosen['device']} names one GPU for {distributed.size()} ranks: every rank "
            "takes its own, name cuda"
        )
    study = getattr(arguments, "study", None)
    large = "long" if study else "paper"
    preset = getattr(arguments, "preset", None) or (large if device.type == "cuda" else "laptop")
    if study:
        chosen = {**DEFAULTS, **STUDY_DEFAULTS[study, device.type], **chosen}
    graphs = PRESETS[preset].get("compile") == "reduce-overhead" and "compile" not in chosen
    if graphs and chosen.get("gradient_accumulation", 1) > 1:
        say("note: CUDA graphs do not go with --gradient-accumulation: --compile default instead")
        chosen["compile"] = "default"
    return make_config(preset, **{**chosen, "device": str(device), **world_of(device)})


def _refuse_study_options(arguments):
    """ValueError for options of a study that is not asked for."""
    for option, study in (("seq_lens", "lengths"), ("patterns", "patterns")):
        if hasattr(arguments, option) and getattr(arguments, "study", None) != study:
            raise ValueError(f"--{option.replace('_', '-')} belongs to --study {study}")


def points_from(arguments, config):
    """The points of the study that parsed arguments mean; ValueError for what cannot be run."""
    _refuse_study_options(arguments)
    positions = (arguments.positions,) if hasattr(arguments, "positions") else POSITIONS
    if arguments.study == "lengths":
        lengths = getattr(arguments, "seq_lens", LENGTHS[torch.device(config.device).type])
        return length_points(lengths, positions, config.batch_size, config.seq_len)
    if hasattr(arguments, "arms"):
        raise ValueError("--arms does not go with --study patterns: name --patterns")
    patterns = [parse_pattern(text) for text in getattr(arguments, "patterns", ())] or PATTERNS
    return pattern_points(patterns, positions)


def introduce(config, dataset, device, parameters):
    """Say what is about to happen."""
    steps = planned_steps(config, len(dataset.train))
    tokens = config.batch_size * config.seq_len
    pattern = ""
    if "window" in config.arms:
        kept = mean(density(config.seq_len, *pattern) for pattern in layer_patterns(config))
        pattern = f"; {pattern_text(asdict(config))} keep {kept:.1%} of the causal pairs"
    used = len(validation_rows(config, len(dataset.held_out)))
    compiled = "eager" if config.compile == "none" else f"torch.compile ({config.compile})"
    rotary = " with rotary positions" if config.positions == "rotary" else ""
    say(
        f"{config.preset} preset on {device_name(device)}: "
        f"{config.runs} run{'s' * (config.runs > 1)} x {len(config.arms)} "
        f"arm{'s' * (len(config.arms) > 1)} ({', '.join(config.arms)}), "
        f"{config.dtype}, {compiled}{ranks_text(asdict(config))}\n"
        f"  model: {max(parameters.values()) / 1e6:.1f} M parameters{rotary}, sequence length "
        f"{config.seq_len:,}{pattern}\n"
        f"  a training: {steps:,} steps of {tokens:,} tokens "
        f"({steps * config.batch_size / len(dataset.train):.2f} passes over {len(dataset.train):,}"
        f" rows); validation on {used:,} of {len(dataset.held_out):,} held-out rows"
    )
    if config.warmup_steps >= steps:
        say(
            f"  note: the learning rate is still rising at the end: --warmup-steps "
            f"{config.warmup_steps}, {steps} steps"
        )


def total_seconds(estimates, waiting):
    """Seconds of all waiting trainings whose time is known; {arm: seconds}, {arm: trainings}."""
    return sum(waiting[arm] * seconds for arm, seconds in estimates.items() if seconds)


def estimate_and_introduce(config, dataset, device, parameters, waiting):
    """``introduce``, and roughly how long it will take, from steps that are timed now.

    waiting: {arm: trainings}.  Returns {arm: seconds of one training, or None: too big}.
    """
    introduce(config, dataset, device, parameters)
    estimates = {
        arm: distributed.together(estimate_here, config, arm, dataset=dataset)
        for arm in config.arms
        if waiting[arm]
    }
    total = total_seconds(estimates, waiting)
    left = sum(waiting.values())
    scope = "in all" if left == config.runs * len(config.arms) else f"for the {left} that are left"
    say(
        f"  roughly {format_seconds(total)} {scope}, if the machine stays as busy as it is now, "
        "and a few seconds for the plots"
    )
    outlook = "when tried: its trainings will probably fail"
    if config.compile != "none":  # the steps that were tried are eager
        outlook = "when tried without torch.compile, which usually takes more: it may still fit"
    for arm, estimate in estimates.items():
        if estimate is None:
            say(f"  {arm} ran out of memory {outlook}")
    return estimates


def prepare_experiment(arguments):
    """Everything that can be wrong with options, folders and data, before hours of training.

    Returns the configuration and the dataset; raises ValueError or OSError.
    """
    config = config_from(arguments)
    _refuse_study_options(arguments)
    ensure_data(config.data)
    dataset = load_dataset(config.data, config.seq_len, config.batch_size)
    check_ranks(config)
    if config.window_attention == "split":
        with deterministic_algorithms(config.deterministic):
            for arm in config.arms:  # ValueError if it can't
                attention_used(config, arm, torch.device(config.device))
    if not arguments.dry_run:
        check_writable(config.output_dir, config.plots_dir)
    return config, dataset


def prepare_study(arguments):
    """The same for a study: its configuration, and [(point, configuration, dataset)]."""
    config = config_from(arguments)
    points = points_from(arguments, config)
    ensure_data(config.data)
    prepared = []
    for point in points:
        folder = study_folder(config.output_dir, arguments.study) / point.name
        here = replace(config, **point.changes, output_dir=str(folder))
        try:
            check_config(here)
            dataset = load_dataset(here.data, here.seq_len, here.batch_size)
        except ValueError as error:
            raise ValueError(f"point {point.name}: {error}") from None
        prepared.append((point, here, dataset))
    check_ranks(prepared[0][1])
    if not arguments.dry_run:
        check_writable(config.output_dir, config.plots_dir)
    return config, prepared


def dry_run(config, dataset, restart=False, allow_mixed=False):
    """Say what would be done, and how long it would take; the plan goes to stdout.

    Returns the seconds that it would take, roughly.
    """
    device, seconds = torch.device(config.device), 0
    identity = identity_here(config, dataset)
    waiting, note = _what_it_would_do(config, identity, restart, allow_mixed)
    if any(waiting.values()):
        parameters = parameter_counts(config, dataset.vocab_size)
        with deterministic_algorithms(config.deterministic):
            estimates = estimate_and_introduce(config, dataset, device, parameters, waiting)
        seconds = total_seconds(estimates, waiting)
    if note:
        say(note)
    plan = make_plan(config)
    for run, (order, seed) in enumerate(zip(plan["orders"], plan["seeds"], strict=True)):
        print(f"run {run + 1}: {', '.join(order)} (seed {seed})")
    return seconds


def _what_it_would_do(config, identity, restart, allow_mixed):
    """{arm: trainings to come}, and a sentence on the experiment in the folder, None without."""
    waiting = dict.fromkeys(config.arms, config.runs)
    before = read_plan(config.output_dir)
    if before is None:
        return waiting, None
    changed = identities_differ(before["identity"], identity)
    done = read_runs(config.output_dir, before)[0]
    if restart:
        answer = "move it aside"
    elif changed and not (allow_mixed and can_be_mixed(changed)):
        answer, waiting = "refuse", dict.fromkeys(waiting, 0)
    else:
        waiting = {arm: n - len(done.get(arm, ())) for arm, n in waiting.items()}
        goes_on = any(waiting.values())
        answer = f"go on after {len(launched(done))}" if goes_on else "report it again"
        answer += " and mark the results" if changed and goes_on else ""
    if changed and not restart:
        answer += ", for this differs:\n    " + "\n    ".join(changed)
    return waiting, (
        f"  {config.output_dir} holds an experiment, {len(launched(done))} trainings done; without "
        f"--dry-run this command would {answer}"
    )


def begin_experiment(config, dataset, stored):
    """Say what is about to be trained, and roughly how long it will take."""
    if not stored.new:
        say(f"resuming: {stored.progress()}")
    waiting = dict.fromkeys(config.arms, 0)
    for arm, _ in stored.waiting():
        waiting[arm] += 1
    device, parameters = torch.device(config.device), stored.metadata["parameters"]
    return estimate_and_introduce(config, dataset, device, parameters, waiting)


def run_and_report(config, dataset, arguments, argv):
    """The experiment, its report on stdout and in a file, and its plots; returns the exit code."""
    codes, began = [], []

    def begin(stored):
        began.append(True)
        return begin_experiment(config, dataset, stored)

    def report(metrics, metadata):
        if metadata["launches"] and not began:
            say(f"complete: all {len(launched(metrics))} trainings are done; reporting them again")
        codes.append(report_results(config, metrics, metadata))

    options = {"restart": arguments.restart, "allow_mixed": arguments.allow_mixed}
    try:
        run_experiment(config, dataset, **options, before=begin, after=report, argv=argv)
        return codes[0]
    except KeyboardInterrupt as stop:
        _say_stopped(stop, f": {_kept(config, arguments.restart)}")
        return _exit_code(stop)


# --- studies -----------------------------------------------------------------------------------


def points_here(study, prepared, allow_mixed, restart=False):
    """The points of ``prepared`` that this launch is to train, each announced first."""
    for number, (point, here, dataset) in enumerate(prepared, start=1):
        say(f"point {number} of {len(prepared)}: {point.name}")
        identity = study.identity | {"config": identity_of_config(here)}
        elsewhere = study.of_another_gpu(here.output_dir, identity, allow_mixed)
        if elsewhere and not restart:
            say(f"  {elsewhere}")
        else:
            yield point, here, dataset


def dry_run_study(study, prepared, restart, allow_mixed):
    """``dry_run`` of every point, and roughly how long all take."""
    seconds = 0
    for point, here, dataset in points_here(study, prepared, allow_mixed, restart):
        print(f"{point.name}:")
        seconds += dry_run(here, dataset, restart, allow_mixed)
    say(f"all {len(prepared)} points: roughly {format_seconds(seconds)}")


def run_study(config, prepared, arguments, argv):
    """A study's experiments, one after the other, and what they come to; returns the exit code.

    What another launch trains at this moment is left to it, and what one has completed is taken.
    """
    try:
        _, first, dataset = prepared[0]
        identity = identity_here(first, dataset)
        study = SharedStudy(arguments.study, config.output_dir, config.plots_dir, identity, say)
        if arguments.dry_run:
            dry_run_study(study, prepared, arguments.restart, arguments.allow_mixed)
            return 0
        if arguments.restart:  # all before the first training, so that the same command goes on
            for _, here, _ in prepared:
                with locked(here.output_dir, result_names(here)):
                    move_old_results(here)
        for point, here, dataset in points_here(study, prepared, arguments.allow_mixed):
            options = {"allow_mixed": arguments.allow_mixed, "argv": argv}
            options["before"] = partial(begin_experiment, here, dataset)
            try:
                results = run_experiment(here, dataset, **options)
            except Busy as busy:
                say(f"  left to the launch that trains it: {busy.holder}")
                continue
            write_report(*results, here.output_dir)
            study.own[point.name] = results
            study.sum_up()
        return report_study(study)
    except KeyboardInterrupt as stop:
        command = "the same command without --restart" if arguments.restart else "the same command"
        kept = f"finished trainings are kept below {config.output_dir}"
        _say_stopped(stop, f": {kept}; {command} goes on from there")
        return _exit_code(stop)


def report_study(study):
    """Print a study's tables and draw its figures; returns the exit code.

    Memory that ran out is a result of a study, and no failure.
    """
    content, paths = study.sum_up(draw=True)
    if content is None:
        say("no point is complete yet: the launches that train them will report the study")
        return 0
    print(format_study(content), flush=True)
    say("written: " + ", ".join(str(path) for path in paths if path.suffix != ".pdf"))
    arms = [arm for point in content["points"] for arm in point["arms"].values()]
    return EXIT_RUNS_FAILED if any(arm["diverged"] for arm in arms) else 0


# --- from the command line to the exit code ----------------------------------------------------


def _say_stopped(stop, what):
    """Say that a signal ended it, unless another rank has said why all end."""
    if distributed.first_to_speak():
        word = "terminated" if isinstance(stop, Terminated) else "interrupted"
        # torchrun does so where a rank has ended, and names it
        say(word + " by torchrun" * (distributed.size() > 1) + what)


def _exit_code(stop):
    return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED


def report_results(config, metrics, metadata):
    """Write and print the report and draw the plots; returns the exit code."""
    report_path, report = write_report(metrics, metadata, config.output_dir)
    paths = [Path(config.output_dir) / f"{RESULTS_NAME}.npz", report_path]
    finished_well = [run for run in launched(metrics) if run["status"] == "ok"]
    if finished_well:
        figures = [f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")]
        remove_leftovers(config.plots_dir, figures)
        paths += create_all_plots(metrics, metadata, config.plots_dir)
    print(report, flush=True)
    say("written: " + ", ".join(str(path) for path in paths if path.suffix != ".pdf"))
    return 0 if len(finished_well) == len(launched(metrics)) else EXIT_RUNS_FAILED


def _kept(config, restarted):
    """What an interrupted experiment leaves, in words, and how to go on."""
    plan = read_plan(config.output_dir)
    done = launched(read_runs(config.output_dir, plan)[0]) if plan else ()
    if not done:
        return "no training had been finished, so nothing was kept"
    total = planned_trainings(plan)
    command = "the same command without --restart" if restarted else "the same command"
    return (
        f"{len(done)} of {total} trainings are kept in {config.output_dir}; {command} goes on from "
        "there"
    )


def main(argv=None):
    """The command line of the experiment; returns the exit code (see --help).

    Of the ranks that torchrun started, rank 0 alone reads it; the others do as rank 0 says.
    """
    return distributed.lead_or_follow(partial(_lead, argv))


def _lead(argv):
    arguments = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without ± gets a ? and not a traceback
            stream.reconfigure(errors="replace")
    with terminable():
        argv = sys.argv[1:] if argv is None else argv
        try:
            study = hasattr(arguments, "study")
            try:
                config, prepared = (prepare_study if study else prepare_experiment)(arguments)
            except ValueError as error:
                return _complain(error, arguments, EXIT_USAGE)
            if study:
                return run_study(config, prepared, arguments, argv)
            if arguments.dry_run:
                dry_run(config, prepared, arguments.restart, arguments.allow_mixed)
                return 0
            return run_and_report(config, prepared, arguments, argv)
        except StoreError as error:
            return _complain(error, arguments, EXIT_USAGE)
        except OSError as error:
            return _complain(error, arguments, EXIT_FAILED)
        except KeyboardInterrupt as stop:
            _say_stopped(stop, " before the first training")
            return _exit_code(stop)


def _complain(error, arguments, code):
    """One line for an error, or its traceback with --debug; returns ``code``."""
    if arguments.debug:
        raise error
    words = error
    if isinstance(error, OSError) and error.filename is not None:
        error = explained(error, error.filename)
        words = f"{error.filename}: {error.strerror}"
    print(f"error: {words}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

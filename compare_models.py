"""The experiment: every arm trained in every run, in balanced random order, measured and reported.

A run is a block: each arm once, from the same seed, adjacent in time, so that arms can be compared
pair by pair.  ``python main.py`` runs it from the command line; ``run_experiment`` from a notebook.
"""

import argparse
import itertools
import os
import sys
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from create_model_plots import create_all_plots
from machine import check_writable, describe_environment, is_out_of_memory, resolve_device
from metrics_utils import (
    REPORT_NAME,
    RESULTS_NAME,
    atomic_write,
    load_metrics,
    save_metrics,
    to_json,
    write_report,
)
from prepare_data import DEFAULT_PATH, TOKENIZER_NAME, describe, load_dataset, prepare_data
from train_model import (
    DTYPES,
    MEMORY_STEPS,
    PRESETS,
    ExperimentConfig,
    Trainer,
    build_model,
    make_config,
    planned_steps,
    release_memory,
    train,
    validation_rows,
)
from window_attention import attended_pairs, attention_plan, causal_pairs, density

EXIT_FAILED, EXIT_USAGE, EXIT_RUNS_FAILED, EXIT_INTERRUPTED = 1, 2, 3, 130
WEIGHTS_NAME = "window_model_weights.pt"
WEIGHTS_CONFIG_NAME = "window_model_config.json"
NOT_CONFIG = ("preset", "dry_run", "debug")

# for the estimate before the first training; measured times take over after it
CHILD_SECONDS = 4  # a fresh process imports torch
COMPILE_SECONDS = 20


# --- the plan ----------------------------------------------------------------------------------


def balanced_orders(arms, runs, rng):
    """For every run the order of its arms: random, and balanced as far as ``runs`` allows.

    The permutations of the arms are dealt as Latin squares (each arm once in each place), the
    squares and the rows inside a square in random order; all are used before one comes again.  So
    no order is used more than once oftener than another, and after every len(arms) runs each arm
    has been first, second, ... equally often.
    """
    size = len(arms)
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


# --- what surrounds the experiment -------------------------------------------------------------


def estimate_seconds(config, arm, dataset, device):
    """Roughly how long one training of the arm takes, from two timed eager steps; None: too big."""
    eager = replace(config, compile="none")
    trainer = None
    try:
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

    def __init__(self, config, steps, estimates):
        self.steps, self.trainings = steps, config.runs * len(config.arms)
        self.runs = config.runs
        self.seconds = {arm: [] if s is None else [s] for arm, s in estimates.items()}
        self.measured = {arm: [] for arm in config.arms}
        self.waiting = dict.fromkeys(config.arms, config.runs)
        self.whole = tqdm(
            total=self.trainings * steps,
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


def move_aside(output_dir, data):
    """Move an earlier experiment's files into a folder of their own; returns it, or None.

    ``data``, where it lies in the same folder, keeps its tokenizer.
    """
    output_dir = Path(output_dir)
    names = [f"{RESULTS_NAME}.npz", f"{RESULTS_NAME}.json", REPORT_NAME, WEIGHTS_NAME]
    names += [WEIGHTS_CONFIG_NAME]
    if Path(data).resolve().parent != output_dir.resolve():
        names.append(TOKENIZER_NAME)
    old = [output_dir / name for name in names if (output_dir / name).exists()]
    if not old:
        return None
    stamp = datetime.fromtimestamp(old[0].stat().st_mtime).strftime("%Y-%m-%d_%H-%M-%S")
    folder = output_dir / f"earlier_{stamp}"
    for number in itertools.count(2):
        if not folder.exists():
            break
        folder = output_dir / f"earlier_{stamp}_{number}"
    folder.mkdir()
    for path in old:
        path.rename(folder / path.name)
    return folder


def save_window_weights(model, config, dataset, output_dir):
    """The window model's state_dict, and beside it what is needed to build it and to decode."""
    output_dir = Path(output_dir)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    atomic_write(output_dir / WEIGHTS_NAME, lambda file: torch.save(weights, file))
    tokenizer = Path(config.data).resolve().parent / TOKENIZER_NAME
    if tokenizer.is_file():
        atomic_write(output_dir / TOKENIZER_NAME, lambda file: file.write(tokenizer.read_bytes()))
    arguments = {
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "layers": config.layers,
        "vocab_size": dataset.vocab_size,
        "max_seq_len": config.seq_len,
        "window_size": config.window_size,
        "dilation": config.dilation,
    }
    content = {
        "model": "GPTWindowModel",
        "arguments": arguments,
        "tokenizer": TOKENIZER_NAME if tokenizer.is_file() else None,
        "weights": WEIGHTS_NAME,
    }
    text = to_json(content, indent=1)
    atomic_write(output_dir / WEIGHTS_CONFIG_NAME, lambda file: file.write(text.encode()))


# --- the experiment ----------------------------------------------------------------------------


def describe_experiment(config, dataset, device):
    """The metadata that is known before the first training; every random choice is in ``plan``."""
    pattern = (config.seq_len, config.window_size, config.dilation)
    return {
        "status": "partial",
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": asdict(config),
        "plan": make_plan(config),
        "environment": describe_environment(device),
        "data": {
            "path": str(config.data),
            "train_rows": len(dataset.train),
            "val_rows": len(dataset.held_out),
            "val_rows_used": len(validation_rows(config, len(dataset.held_out))),
            "split": "the last 5 % of the rows are held out and never trained on",
            "vocab_size": dataset.vocab_size,
        },
        "pattern": {
            "density": density(*pattern),
            "attended_pairs": attended_pairs(*pattern),
            "causal_pairs": causal_pairs(config.seq_len),
            "evaluation": config.window_attention
            if config.window_attention != "auto"
            else attention_plan(*pattern, DTYPES[config.dtype], device).evaluation,
        },
        "steps": planned_steps(config, len(dataset.train)),
        "memory_measure": "torch.cuda.max_memory_allocated, reset after the warm-up"
        if device.type == "cuda"
        else f"resident growth of a fresh process that trains {MEMORY_STEPS} eager steps",
    }


def run_experiment(config, dataset=None, estimates=None):
    """Train every arm in every run and save after every training.

    Returns ``(metrics, metadata)`` as metrics_utils keeps them.  Files go to
    ``config.output_dir``, where an earlier experiment's are moved aside; a stop at any moment
    leaves there what was finished.
    """
    device = resolve_device(config.device)
    if dataset is None:
        dataset = load_dataset(config.data, config.seq_len, config.batch_size)
    moved = move_aside(config.output_dir, config.data)
    if moved is not None:
        say(f"an earlier experiment's files are now in {moved}")
    metadata = describe_experiment(config, dataset, device)
    metrics = {arm: [] for arm in config.arms}
    estimates = estimates or dict.fromkeys(config.arms)
    launches = itertools.count()
    orders, seeds = metadata["plan"]["orders"], metadata["plan"]["seeds"]
    with Progress(config, metadata["steps"], estimates) as progress:
        for run, (order, seed) in enumerate(zip(orders, seeds, strict=True)):
            for position, arm in enumerate(order):
                place = {"run": run, "position": position, "launch_index": next(launches)}
                place["order"] = ",".join(order)
                callback = progress.start(run, arm)
                release_memory(device)
                result, model = train(config, arm, dataset, seed, device, callback)
                if arm == "window" and run == 0 and model is not None:
                    save_window_weights(model, config, dataset, config.output_dir)
                del model
                release_memory(device)
                metrics[arm].append(place | result)
                if len(launched(metrics)) == len(orders) * len(config.arms):
                    metadata["status"] = "complete"
                save_metrics(metrics, metadata, config.output_dir)
                progress.finish(run, arm, result)
    return metrics, metadata


def launched(metrics):
    """All trainings so far, in the order in which they were started."""
    runs = [run for runs in metrics.values() for run in runs]
    return sorted(runs, key=lambda run: run["launch_index"])


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
        "out/64_8\n\n"
        "exit codes: 0 done, 1 a file could not be written, 2 wrong options or data, 3 done but "
        "a training diverged or ran out of memory, 130 interrupted",
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
    parser.add_argument("--debug", help="show the traceback of an error", **switch)
    groups = {}
    for item in fields(ExperimentConfig):
        if "group" not in item.metadata:
            continue
        title = item.metadata["group"]
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        options = {"type": type(item.default)} if not isinstance(item.default, tuple) else {}
        options |= item.metadata["argparse"]
        text = f"{item.metadata['help']} {_default_text(item.name, item.default)}"
        group.add_argument(f"--{item.name.replace('_', '-')}", help=text, **options)
    return parser


def config_from(arguments):
    """The checked configuration that parsed arguments mean; ValueError for what cannot be run."""
    chosen = {key: value for key, value in vars(arguments).items() if key not in NOT_CONFIG}
    if "arms" in chosen:
        chosen["arms"] = tuple(chosen["arms"])
    device = resolve_device(chosen.get("device", "auto"))
    preset = getattr(arguments, "preset", None) or ("paper" if device.type == "cuda" else "laptop")
    return make_config(preset, **{**chosen, "device": str(device)})


def introduce(config, dataset, device, estimates):
    """Say what is about to happen, and roughly how long it will take."""
    steps = planned_steps(config, len(dataset.train))
    tokens = config.batch_size * config.seq_len
    kept = density(config.seq_len, config.window_size, config.dilation)
    with torch.device("meta"):  # shapes alone, no memory
        model = build_model(config, "fused", dataset.vocab_size, torch.device("meta"), seed=0)
    parameters = sum(p.numel() for p in model.parameters())
    used = len(validation_rows(config, len(dataset.held_out)))
    seconds = [s for s in estimates.values() if s is not None]
    total = config.runs * sum(seconds)
    compiled = "eager" if config.compile == "none" else f"torch.compile ({config.compile})"
    say(
        f"{config.preset} preset on {describe_environment(device)['device_name']}: "
        f"{config.runs} runs x {len(config.arms)} arms ({', '.join(config.arms)}), "
        f"{config.dtype}, {compiled}\n"
        f"  model: {parameters / 1e6:.1f} M parameters, sequence length {config.seq_len:,}; "
        f"window_size {config.window_size}, dilation {config.dilation} keep {kept:.1%} of the "
        f"causal pairs\n"
        f"  a training: {steps:,} steps of {tokens:,} tokens "
        f"({steps * config.batch_size / len(dataset.train):.2f} passes over {len(dataset.train):,}"
        f" rows); validation on {used:,} of {len(dataset.held_out):,} held-out rows\n"
        f"  roughly {format_seconds(total)} in all, and a few seconds for the plots"
    )
    for arm, estimate in estimates.items():
        if estimate is None:
            say(f"  {arm} ran out of memory when tried: its trainings will probably fail")
    if config.warmup_steps >= steps:
        say(
            f"  note: the learning rate is still rising at the end: --warmup-steps "
            f"{config.warmup_steps}, {steps} steps"
        )


def prepare_experiment(arguments):
    """Everything that can be wrong with options, folders and data, before hours of training.

    Returns the configuration and the dataset; raises ValueError or OSError.
    """
    config = config_from(arguments)
    ensure_data(config.data)
    dataset = load_dataset(config.data, config.seq_len, config.batch_size)
    if not arguments.dry_run:
        check_writable(config.output_dir, config.plots_dir)
    return config, dataset


def print_plan(config):
    """The order of the arms and the seed of every run, on stdout."""
    plan = make_plan(config)
    for run, (order, seed) in enumerate(zip(plan["orders"], plan["seeds"], strict=True)):
        print(f"run {run + 1}: {', '.join(order)} (seed {seed})")


def run_and_report(config, dataset, estimates):
    """The experiment, its report on stdout and in a file, and its plots; returns the exit code."""
    try:
        metrics, metadata = run_experiment(config, dataset, estimates)
        return report_results(config, metrics, metadata)
    except KeyboardInterrupt:
        say(f"interrupted: {_kept(config)}")
        return EXIT_INTERRUPTED


def report_results(config, metrics, metadata):
    """Write and print the report and draw the plots; returns the exit code."""
    report_path, report = write_report(metrics, metadata, config.output_dir)
    paths = [Path(config.output_dir) / f"{RESULTS_NAME}.npz", report_path]
    finished_well = [run for run in launched(metrics) if run["status"] == "ok"]
    if finished_well:
        paths += create_all_plots(metrics, metadata, config.plots_dir)
    print(report, flush=True)
    say("written: " + ", ".join(str(path) for path in paths if path.suffix != ".pdf"))
    return 0 if len(finished_well) == len(launched(metrics)) else EXIT_RUNS_FAILED


def _kept(config):
    """What an interrupted experiment leaves, in words."""
    path = Path(config.output_dir) / f"{RESULTS_NAME}.npz"
    if not path.exists():
        return "no training had been finished, so nothing was kept"
    done = len(launched(load_metrics(path)))
    return f"{done} of {config.runs * len(config.arms)} trainings are kept in {path}"


def main(argv=None):
    """The command line of the experiment; returns the exit code (see --help)."""
    arguments = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without ± gets a ? and not a traceback
            stream.reconfigure(errors="replace")
    try:
        try:
            config, dataset = prepare_experiment(arguments)
        except ValueError as error:
            return _complain(error, arguments, EXIT_USAGE)
        device = torch.device(config.device)
        estimates = {arm: estimate_seconds(config, arm, dataset, device) for arm in config.arms}
        introduce(config, dataset, device, estimates)
        if arguments.dry_run:
            print_plan(config)
            return 0
        return run_and_report(config, dataset, estimates)
    except OSError as error:
        return _complain(error, arguments, EXIT_FAILED)
    except KeyboardInterrupt:
        say("interrupted before the first training")
        return EXIT_INTERRUPTED


def _complain(error, arguments, code):
    """One line for an error, or its traceback with --debug; returns ``code``."""
    if arguments.debug:
        raise error
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

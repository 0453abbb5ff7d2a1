"""The experiment: every waiting training in the plan's order, each saved at once."""

from dataclasses import replace

from analysis.report import heading
from analysis.values import in_order
from analysis.words import Section, section_lines
from experiment.estimate import estimate
from experiment.files import is_empty, locked, move_aside
from experiment.progress import Progress
from experiment.stored import StoredExperiment
from machine import ranks
from machine.command import say
from machine.device import resolve_device
from training.tokens import load_dataset
from training.train import train
from training.trainer import check_compiler, deterministic_algorithms, release_memory


def run_experiment(config, dataset=None, restart=False, allow_mixed=False, argv=None):
    """Train every arm in every block, each saved before the next, and go on after a stop.

    Returns ``(metrics, metadata)`` as metrics_utils keeps them; None on all ranks but the first.
    Files go to ``config.output_dir``; see ``StoredExperiment`` for a folder that holds results
    already.  restart: rename that folder first.  argv: the command line, for the record.
    """
    if dataset is None:
        dataset = load_dataset(config.data, config.seq_len, config.batch_size)
    config, device = _with_device(config)
    if restart:
        ranks.from_first(move_aside, config.output_dir, config.data)
    # cuBLAS is set up at its first use, by a setting of this mode: it must be on from the start
    with deterministic_algorithms(config.deterministic), locked(config.output_dir):
        stored = ranks.from_first(StoredExperiment, config, dataset, device, allow_mixed)
        announce(stored, dataset, device)
        if stored.waiting():
            ranks.on_every(check_compiler, config, device)
            stored.begin(argv)
            train_waiting(stored, dataset, device)
        return stored.save_results() if ranks.is_first() else None


def dry_run(config, dataset, restart=False, allow_mixed=False):
    """Say what ``run_experiment`` would do, and raise what it would; the plan goes to stdout.

    Trains no model and writes nothing.  Returns roughly how many seconds it would take.
    """
    config, device = _with_device(config)
    if restart and not is_empty(config.output_dir):
        say(f"without --dry-run {config.output_dir} would be renamed, to start anew")
    with deterministic_algorithms(config.deterministic):
        stored = ranks.from_first(StoredExperiment, config, dataset, device, allow_mixed, restart)
        seconds = announce(stored, dataset, device)
    plan = stored.metadata["plan"]
    for block, (order, seed) in enumerate(zip(plan["orders"], plan["seeds"], strict=True), 1):
        print(f"block {block}: {', '.join(order)} (seed {seed})")
    return seconds


def _with_device(config):
    """The configuration with its device's own name, and the device of this rank."""
    device = resolve_device(config.device)
    return replace(config, device=str(device)), ranks.local_device(device)


def announce(stored, dataset, device):
    """Say what is to be done, and how long it will take; returns the seconds, roughly."""
    if not stored.waiting():
        say(f"complete: {stored.progress()}; reporting again")
        return 0
    if in_order(stored.metrics):
        say(f"resuming: {stored.progress()}")
    say("\n".join(section_lines(Section("", heading(stored.metadata)))))
    return estimate(stored, dataset, device)


def train_waiting(stored, dataset, device):
    """Train what waits, in the plan's order; every finished training is saved at once."""
    config, plan, previous_arm = stored.config, stored.metadata["plan"], ""
    done = len(in_order(stored.metrics))
    with Progress(len(stored.trainings()), done, stored.metadata["steps"]) as progress:
        for arm, place in stored.waiting():
            block = place["block"]
            name = f"block {block + 1}/{len(plan['orders'])} {arm}"
            release_memory(device)
            progress.set_description(name)
            seed = plan["seeds"][block]
            training, model = train(config, arm, dataset, seed, device, progress.advance)
            training |= place | {"previous_arm": previous_arm}
            stored.finished(arm, training, model)
            progress.finish(name, training)
            previous_arm = arm
            del model
    release_memory(device)

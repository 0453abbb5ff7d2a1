"""The experiment: every waiting training in the plan's order, each saved at once."""

from collections import Counter
from dataclasses import replace

import torch

from experiment.estimate import estimate, introduce
from experiment.files import locked, move_aside
from experiment.identity import tokenizer_of
from experiment.progress import Progress
from experiment.stored import StoredExperiment
from machine import ranks
from machine.command import say
from machine.device import resolve_device
from training.tokens import load_dataset
from training.train import train
from training.trainer import deterministic_algorithms, release_memory
from training.weights import save_window_weights


def run_experiment(config, dataset=None, restart=False, allow_mixed=False, argv=None):
    """Train every arm in every block, each saved before the next, and go on after a stop.

    Returns ``(metrics, metadata)`` as metrics_utils keeps them; of several ranks the first does,
    the others None.  Files go to ``config.output_dir``; see ``StoredExperiment`` for a folder that
    holds results already.  restart: rename that folder first.  argv: the command line, for the
    record.
    """
    if dataset is None:
        dataset = load_dataset(config.data, config.seq_len, config.batch_size)
    config = replace(config, device=str(resolve_device(config.device)))
    device = ranks.local_device(torch.device(config.device))
    if restart and (moved := ranks.from_first(move_aside, config.output_dir, config.data)):
        say(f"the old results are now in {moved}")
    # PyTorch looks for cuBLAS' setting at its first use: the mode must be on from the start
    with deterministic_algorithms(config.deterministic), locked(config.output_dir):
        stored = ranks.from_first(StoredExperiment, config, dataset, device, allow_mixed, argv)
        if waiting := stored.waiting():
            if not stored.is_new:
                say(f"resuming: {stored.progress()}")
            introduce(stored.metadata)
            counts = Counter(arm for arm, _ in waiting)
            estimate(config, stored.metadata, dataset, device, counts)
            stored.begin()
            train_waiting(stored, waiting, config, dataset, device)
        else:
            say(f"complete: all {len(stored.trainings())} trainings are done; reporting them again")
        return stored.save_results(with_tests=True) if ranks.is_first() else None


def train_waiting(stored, waiting, config, dataset, device):
    """Train what waits, in the plan's order; every finished training is saved at once."""
    seeds, previous_arm = stored.metadata["plan"]["seeds"], ""
    with Progress(config, stored.metadata["steps"], stored.metrics) as progress:
        for arm, place in waiting:
            block = place["block"]
            release_memory(device)
            callback = progress.start(block, arm)
            training, model = train(config, arm, dataset, seeds[block], device, callback)
            training |= place | {"previous_arm": previous_arm}
            if arm == "window" and block == 0 and model is not None and ranks.is_first():
                save_window_model(model, config, dataset)
            stored.finished(arm, training)
            progress.finish(block, arm, training)
            previous_arm = arm
            del model
    release_memory(device)


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

"""The experiment: every waiting training in the plan's order, each saved at once."""

import os
from dataclasses import replace

import torch

from experiment.estimate import _own
from experiment.files import locked
from experiment.identity import tokenizer_of
from experiment.progress import Progress
from experiment.stored import StoredExperiment, check_space, result_names
from machine import ranks
from machine.command import say
from machine.describe import describe_code
from machine.device import device_name, resolve_device
from machine.files import file_sha256
from machine.signals import finishing
from training.config import check_config
from training.prepare import prepare_data
from training.tokens import DEFAULT_PATH, load_dataset
from training.train import train
from training.trainer import deterministic_algorithms, release_memory
from training.weights import save_window_weights


def train_here(config, arm, seed, dataset=None, progress=lambda steps_done, loss: None):
    """``training.train.train`` with this rank's device and data."""
    device, dataset = _own(config, dataset)
    release_memory(device)
    return train(config, arm, dataset, seed, device, progress)


def ranks_that_differ(config):
    """What keeps the ranks from training one model: a line for each rank with other data or code.

    Machines need not share a disk, and each reads its own.
    """
    try:
        dataset = load_dataset(config.data, config.seq_len, config.batch_size)
        device = ranks.local_device(torch.device(config.device))
        mine = {"data": file_sha256(dataset.path), "code": describe_code()["sources_sha256"]}
        mine |= {"torch": torch.__version__, "device": device_name(device).split(" (")[0]}
    except (ValueError, OSError, ranks.Lost) as error:
        mine = {"problem": str(error)}
    first, *others = ranks.gather(mine)
    return [
        f"rank {rank}: {other.get('problem') or 'differs in ' + ', '.join(different)}"
        for rank, other in enumerate(others, start=1)
        if (different := [key for key in first if other.get(key) != first[key]])
    ]


def check_ranks(config):
    """Raise ValueError before hours of training where the ranks cannot train one model."""
    if ranks.size() > 1 and (lines := ranks.together(ranks_that_differ, config)):
        raise ValueError(
            "every rank needs the same data, code, torch and kind of device; " + "; ".join(lines)
        )


# --- files -------------------------------------------------------------------------------------
def ensure_data(path):
    """Prepare the default corpus where the default file is missing, and say so.

    A file that the user named is never made up: load_dataset says that it is missing.
    """
    if os.path.lexists(path) or path != DEFAULT_PATH:
        return
    say(f"{path} is missing: preparing it from the Python standard library's own source")
    summary, _ = prepare_data(output=path)
    say(summary)


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


def world_of(device):
    """The fields of a configuration that say which processes train."""
    return {"world_size": ranks.size(), "backend": ranks.backend(device)}


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
    launch_id, previous_arm = stored.launch["process"], ""
    with Progress(config, stored.steps, estimates, stored.metrics) as progress:
        for arm, place in waiting:
            run = place["block"]
            callback = progress.start(run, arm)
            place["index"] = stored.next_index(place["index"])
            seed = metadata["plan"]["seeds"][run]
            own = {"dataset": dataset, "progress": callback}
            result, model = ranks.together(train_here, config, arm, seed, **own)
            result |= place | {"process": launch_id, "previous_arm": previous_arm}
            with finishing():
                if arm == "window" and run == 0 and model is not None:
                    save_window_model(model, config, dataset)
                stored.finished(arm, result)
            previous_arm = arm
            del model
            release_memory(device)
            progress.finish(run, arm, result)

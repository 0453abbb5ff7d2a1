"""An experiment of a second, by the command or by a call, and ways to stop and break it."""

import os
import signal

import numpy as np
import torch

import studies.command
from compare_models import main
from experiment import run as experiment_run
from studies.command import config_from
from studies.options import build_parser
from training import train as training_train

TINY = "--seq-len 24 --d-model 16 --n-heads 2 --layers 1 --batch-size 2 --max-steps 4 --device cpu"
TINY += " --window-size 5 --dilation 3 --warmup-steps 2 --val-batches 1 --lr 1e-2"
TINY += " --data training_data.npy --eval-every 0 --reach-passages 0"
BLOCK = "--runs 1 --arms window fused"
RESULTS = [
    "config.toml",
    "curves.csv",
    "experiment_results.json",
    "experiment_results.npz",
    "improved_comparison_results.txt",
    "plan.json",
    "runs",
    "trainings.csv",
    "weights",
    "window_model_config.json",
    "window_model_weights.pt",
]


def write_data(folder, rows=60):
    """Random tokens below 40 in rows of 25."""
    tokens = np.random.default_rng(0).integers(40, size=(rows, 25))
    np.save(folder / "training_data.npy", tokens.astype(np.uint16))


def prepare_workplace(folder, monkeypatch):
    """Go to a folder with a small data file; no child process and no plots there, to be quick."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(studies.command, "create_all_plots", lambda *_: [])
    monkeypatch.setattr(training_train, "child_peak_memory_mb", lambda *_: 12.5)
    write_data(folder)
    return folder


def run_main(options=""):
    """The exit code of the command with tiny sizes."""
    return main([*TINY.split(), *options.split()])


def tiny_config(options=BLOCK):
    """The configuration that the same options mean."""
    return config_from(build_parser().parse_args([*TINY.split(), *options.split()]))


def contents(folder):
    """The names in a folder, sorted, without the lock's."""
    return sorted(name for name in os.listdir(folder) if name != ".lock")


def same_losses(old, new):
    """Are the losses and validation losses equal bit by bit?"""
    assert set(old) == set(new)
    for arm in old:
        for before, after in zip(old[arm], new[arm], strict=True):
            assert before["losses"].tobytes() == after["losses"].tobytes()
            assert before["val_loss"] == after["val_loss"]
    return True


def stop_at(monkeypatch, number, signum=signal.SIGINT):
    """Send this process a signal in the middle of its ``number``-th training; counts them."""
    started, train = [], training_train.train

    def stopped(config, arm, dataset, seed, device, progress):
        started.append(arm)
        if len(started) == number:

            def progress(*_):
                signal.raise_signal(signum)

        return train(config, arm, dataset, seed, device, progress)

    monkeypatch.setattr(experiment_run, "train", stopped)
    return started


def break_training(monkeypatch, arm, fail):
    """Call ``fail(trainer)`` before the timed steps of one arm, not before the estimate's."""
    timed_steps = training_train.timed_steps

    def maybe(trainer, *arguments):
        if trainer.arm == arm:
            fail(trainer)
        return timed_steps(trainer, *arguments)

    monkeypatch.setattr(training_train, "timed_steps", maybe)


def diverge(trainer):
    with torch.no_grad():
        trainer.model.fc_out.bias.fill_(float("nan"))


def run_out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")

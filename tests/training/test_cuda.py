"""Trainings on CUDA: their memory, and what CUDA graphs and evaluations leave as it is."""

import math

import numpy as np
import pytest
import torch
from tiny import needs_cuda, tiny_config, tiny_dataset

from training.train import train
from training.trainer import Trainer, release_memory

pytestmark = needs_cuda


def test_peak_memory_is_this_trainings_own():
    device = torch.device("cuda")
    dataset = tiny_dataset()
    release_memory(device)
    peaks = []
    for _ in range(2):
        metrics, model = train(tiny_config(), "window", dataset, 7, device)
        peaks.append(metrics["peak_memory_mb"])
        del model
        release_memory(device)
    assert peaks[0] == peaks[1] > 0
    assert metrics["peak_reserved_mb"] >= peaks[1]


@pytest.mark.parametrize("arm", ("baseline", "window", "fused"))
def test_graphs_train_the_same_in_the_same_memory(arm):
    """Their replays allocate nothing: what the steps take must be seen when they are recorded."""
    # a rate at which six steps lower the loss by 0.007, and rounding is not carried on
    sizes = {"seq_len": 1100, "d_model": 128, "batch_size": 4, "lr": 1e-3}
    sizes["window_attention"] = "split"
    dataset = tiny_dataset(12, 1100)
    device = torch.device("cuda")
    found, left = [], []
    for mode in ("default", "reduce-overhead", "reduce-overhead"):
        config = tiny_config(dtype="bfloat16", compile=mode, **sizes)
        metrics, model = train(config, arm, dataset, 7, device)
        del model
        release_memory(device)
        found.append(metrics)
        left.append(torch.cuda.memory_allocated())
    calls, *graphs = found
    for metrics in graphs:
        np.testing.assert_allclose(metrics["losses"], calls["losses"], atol=0.003)
        # calls on several streams take more where a busy GPU is late to give their memory back
        assert 0.5 < metrics["peak_memory_mb"] / calls["peak_memory_mb"] < 1.5
    # what stays (a workspace of cuBLAS is 32 MiB on a Hopper GPU) is not more after each training
    assert left[2] - left[1] < 2**20


@pytest.mark.parametrize("mode", ["none", "reduce-overhead"])
def test_evaluations_leave_graphs_and_memory_as_they_are(mode):
    # so low a rate that the losses do not carry rounding on from step to step
    sizes = {"seq_len": 1100, "d_model": 128, "batch_size": 4, "max_steps": 12, "lr": 1e-5}
    found = []
    for every in (0, 0, 5):  # a process's first training leaves workspaces behind
        config = tiny_config(dtype="bfloat16", compile=mode, eval_every=every, **sizes)
        metrics, model = train(config, "fused", tiny_dataset(24, 1100), 7, torch.device("cuda"))
        del model
        release_memory(torch.device("cuda"))
        found.append(metrics)
    _, without, metrics = found
    assert metrics["curve"]["steps"] == [5, 10, 12]
    # the kernels' sums in bfloat16 differ from training to training
    np.testing.assert_allclose(metrics["losses"], without["losses"], rtol=0.01)
    assert metrics["peak_memory_mb"] == pytest.approx(without["peak_memory_mb"], rel=0.02)
    assert metrics["peak_reserved_mb"] < 1.02 * without["peak_reserved_mb"]


def test_an_evaluation_has_the_memory_of_the_graphs(monkeypatch):
    """Dense attention's steps keep their scores in the graphs, most of the peak."""
    taken, evaluate = [], Trainer.evaluate

    def noted(trainer, held_out):
        taken.append(torch.cuda.memory_allocated())
        return evaluate(trainer, held_out)

    monkeypatch.setattr(Trainer, "evaluate", noted)
    sizes = {"seq_len": 2048, "d_model": 128, "n_heads": 8, "batch_size": 4}
    config = tiny_config(dtype="bfloat16", compile="reduce-overhead", **sizes)
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated()
    metrics, model = train(config, "baseline", tiny_dataset(12, 2048), 7, device)
    assert metrics["status"] == "ok" and math.isfinite(metrics["val_loss"])
    assert taken[0] - before < 0.3 * metrics["peak_memory_mb"] * 2**20
    del model
    release_memory(device)

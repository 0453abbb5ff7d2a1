"""Logs of TensorBoard: what it reads there is what was measured."""

import sys

import pytest
from conftest import ROOT, make_experiment

import metrics_utils
from analysis.metrics import save_metrics
from experiment.tensorboard import write_tensorboard


def scalars(folder, name):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = accumulators.EventAccumulator(str(folder), {"scalars": 0})
    accumulator.Reload()
    return {event.step: event.value for event in accumulator.Scalars(name)}


def test_every_training_is_a_run_with_its_losses(tmp_path):
    pytest.importorskip("tensorboard")
    metrics, metadata = make_experiment(2, steps=12)
    metadata["config"] |= {"lr": 1e-3, "positions": "learned"}
    metrics["fused"][1]["curve"] = {"steps": [5, 12], "losses": [3.5, 2.5]}
    write_tensorboard(metrics, metadata, tmp_path)
    for arm, trainings in metrics.items():
        for training in trainings:
            found = scalars(tmp_path / arm / f"block_{training['block'] + 1}", "training_loss")
            assert found == dict(enumerate(training["losses"].tolist(), start=1))
    assert scalars(tmp_path / "fused/block_2", "validation_loss") == {5: 3.5, 12: 2.5}
    (outcome,) = scalars(tmp_path / "fused/block_2", "outcome/val_loss").values()
    assert outcome == pytest.approx(metrics["fused"][1]["val_loss"], rel=1e-6)


def test_without_the_package_nothing_is_begun_and_the_remedy_is_named(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    save_metrics(*make_experiment(1), tmp_path)
    options = [str(tmp_path / "experiment_results.npz"), "--tensorboard", str(tmp_path / "logs")]
    assert metrics_utils.main(options) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_a_study_has_no_logs(tmp_path, capsys):
    assert (
        metrics_utils.main([str(ROOT / "results/h100_length_study.json"), "--tensorboard", "logs"])
        == 2
    )
    assert "takes an experiment's file" in capsys.readouterr().err

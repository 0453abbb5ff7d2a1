"""What must not change inside an experiment, where two differ, and what may be mixed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from small_experiment import run_main

from experiment import stored as experiment_stored
from experiment.identity import differences, identity_of_config
from training.config import make_config

ONE = "--runs 1 --arms fused"


def test_names_places_and_the_number_of_the_gpu_are_no_part_of_it():
    config = make_config(device="cuda:0")
    elsewhere = replace(config, device="cuda:1", output_dir="x", plots_dir="y", preset="laptop")
    assert identity_of_config(elsewhere) == identity_of_config(config)
    for change in ({"device": "cpu"}, {"dilation": (4, 1)}, {"world_size": 2}):
        assert identity_of_config(replace(config, **change)) != identity_of_config(config)


def test_differences_name_the_place_and_both_values():
    before = {"config": {"lr": 0.1, "arms": ["a"]}, "code": "a" * 64, "data": None, "gone": 1}
    now = {"config": {"lr": 0.2, "arms": ["a"]}, "code": "b" * 64, "data": "x"}
    assert differences(before, now) == [
        "config.lr: 0.1 before, 0.2 now",
        f"code: {'a' * 12}... before, {'b' * 12}... now",
        'data: null before, "x" now',
        "gone: 1 before, null now",
    ]
    assert differences(now, now) == []


def test_other_data_code_and_device_are_listed(workplace, monkeypatch, capsys):
    assert run_main(ONE) == 0
    tokens = np.load("training_data.npy")
    tokens[0, 0] += 1
    np.save("training_data.npy", tokens)
    Path("tokenizer.json").write_text("{}")
    other = {"device_name": "other", "torch": "9"}
    monkeypatch.setattr(experiment_stored, "describe_code", lambda: {"sources_sha256": "f" * 64})
    monkeypatch.setattr(experiment_stored, "describe_environment", lambda _: other)
    assert run_main(ONE) == 2
    error = capsys.readouterr().err
    for place in ("data: ", "tokenizer: null before", "code: ", "device.device_name: ", "torch: "):
        assert place in error


def test_a_variable_that_changes_results_is_listed_and_one_of_folders_is_not(
    workplace, monkeypatch, capsys
):
    assert run_main(ONE) == 0
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/some/folder")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run_main(ONE) == 0
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert run_main(ONE) == 2
    assert 'NVIDIA_TF32_OVERRIDE: null before, "0" now' in capsys.readouterr().err

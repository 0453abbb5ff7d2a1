"""What a reader must know before the figures."""

import numpy as np
import pytest
from conftest import make_experiment

from analysis.report import format_report
from analysis.values import THROTTLING, throttled
from analysis.warnings import find_warnings, split_blocks


def test_a_clean_experiment_has_no_warning():
    assert find_warnings(*make_experiment(6, seed=1)) == []


def test_few_blocks_are_warned_that_the_exact_test_cannot_reach_its_level():
    for blocks, p in ((2, "0.5"), (5, "0.0625")):
        warnings = " ".join(find_warnings(*make_experiment(blocks)))
        assert f"{blocks} blocks: the exact test cannot go below p {p}" in warnings
    assert "exact test" not in " ".join(find_warnings(*make_experiment(6)))


def test_few_pairs_are_warned_of_also_where_every_arm_has_many_blocks():
    metrics, metadata = make_experiment(7)
    for i, arm in enumerate(metrics):
        metrics[arm][i] |= {"status": "diverged", "message": "the loss became nan at step 3"}
    warnings = " ".join(find_warnings(metrics, metadata))
    assert "5 blocks: the exact test cannot go below" in warnings
    assert "3 trainings failed: with more than one, take no comparison as valid" in warnings


def disturb(metrics, metadata, name):
    if name == "noise":
        for i, training in enumerate(metrics["window"]):
            training["training_time"] *= 1 + 0.2 * (-1) ** i
    elif name == "hot":
        metrics["fused"][1]["device_after"] = {"throttle_reasons": ["hw_slowdown"]}
    elif name == "busy":
        metrics["window"][3]["device_before"] = {"other_processes": 2}
    elif name == "stall":
        metrics["window"][1]["step_seconds"][30] = 0.9
    elif name == "split":
        metrics["window"][4]["process"] = "second"
    elif name == "mixed":
        metadata["mixed"] = ["config.lr: 0.1 before, 0.2 now"]
    elif name == "aside":
        metadata["set_aside"] = ["a.npz"]
    elif name == "far":
        metrics["window"][2]["training_time"] = 0.77


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("noise", "window: the training time varies by 2"),
        ("hot", "fused, block 2: the device slowed itself down (hw_slowdown)"),
        ("busy", "window, block 4: other processes were using the device"),
        ("stall", "window, block 2: 1 of 40 steps took more than 1.5 times the median"),
        ("split", "block 5 was cut in two by a stop"),
        ("mixed", "MIXED: trainings that differ were taken together (--allow-mixed): config.lr"),
        ("aside", "a training was set aside (set_aside/a.npz) and repeated"),
        ("far", "window: a training took 0.77 s, far from the others' times; it is kept"),
    ],
)
def test_what_a_reader_must_know_is_warned_of(name, words):
    metrics, metadata = make_experiment(6, seed=1)
    disturb(metrics, metadata, name)
    (warning,) = find_warnings(metrics, metadata)
    assert words in warning
    assert words in " ".join(format_report(metrics, metadata).split())


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([0.1] * 98 + [1.1, 1.1], "(100.0 ms; step 99: 1,100.0 ms) and cost 16.7% of"),
        ([0.1] * 97 + [1.1] * 3, ""),  # 3 % of the steps: so the arm is
        ([0.1] * 99 + [0.2], ""),  # costs 1 %
        ([0.1] * 9 + [0.14], ""),  # 1.4 times the median
    ],
)
def test_only_few_steps_that_cost_much_of_a_training_are_a_stall(steps, words):
    metrics, metadata = make_experiment(6, seed=1)
    metrics["window"][1]["step_seconds"] = np.array(steps, np.float32)
    warnings = find_warnings(metrics, metadata)
    assert len(warnings) == bool(words) and words in " ".join(warnings)


def test_what_slowed_a_failed_training_is_not_warned_of():
    metrics, metadata = make_experiment(7, seed=1)
    metrics["window"][1] |= {"status": "out_of_memory", "message": "8 GiB"}
    metrics["window"][1]["device_after"] = {"throttle_reasons": ["sw_power_cap"]}
    metrics["window"][1]["step_seconds"][30] = 0.9
    assert find_warnings(metrics, metadata) == []


def test_a_block_is_split_when_two_processes_trained_it(experiment):
    metrics, _ = experiment
    assert split_blocks(metrics) == []
    metrics["fused"][2]["process"] = metrics["fused"][3]["process"] = "second"
    for arm in metrics:
        metrics[arm][3]["process"] = "second"
    assert split_blocks(metrics) == [2]


def test_a_throttled_training_is_told_from_an_idle_one():
    states = [None, {"throttle_reasons": ["gpu_idle"]}, {"throttle_reasons": None}]
    assert all(throttled({"device_before": s, "device_after": None}) == [] for s in states)
    hot = {"throttle_reasons": ["gpu_idle", "hw_thermal_slowdown", "sw_power_cap"]}
    assert throttled({"device_before": None, "device_after": hot}) == [THROTTLING[0], THROTTLING[3]]

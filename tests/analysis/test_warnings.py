"""What a reader must know before the figures."""

import re

import numpy as np
import pytest
from conftest import flat, make_experiment

from analysis.report import format_report
from analysis.warnings import disturbances, find_warnings, risen, split_blocks
from figures.data import prepare

LOADED = {"load_average_1min": 2.6, "cores": 2}
WAITED = {
    "device_before": {"load_average_1min": 9, "cores": 2, "ran_s": 1, "waited_s": 2},
    "device_after": {"load_average_1min": 9, "cores": 2, "ran_s": 4, "waited_s": 3},
}


def test_a_clean_experiment_has_no_warning():
    assert find_warnings(*make_experiment(6, seed=1)) == []


def test_few_blocks_are_warned_that_the_exact_test_cannot_reach_its_level():
    for blocks, p in ((2, "0.5"), (5, "0.0625")):
        warnings = " ".join(find_warnings(*make_experiment(blocks)))
        assert f"{blocks} blocks: the exact test cannot go below p {p}" in warnings
    assert "exact test" not in " ".join(find_warnings(*make_experiment(6)))


def test_an_arm_that_always_failed_does_not_hide_that_the_others_have_few_blocks():
    metrics, metadata = make_experiment(4)
    for training in metrics["baseline"]:
        training["status"] = "out_of_memory"
    assert "4 blocks: the exact test cannot go below p 0.125" in " ".join(
        find_warnings(metrics, metadata)
    )


def test_of_a_stopped_experiment_they_say_which_comparison_has_few_blocks():
    metrics, metadata = make_experiment(3, arms=("fused", "w96-d0", "w96-d4"))
    del metrics["w96-d0"][1:]
    assert find_warnings(metrics, metadata)[0].startswith("w96-d0 against fused: One block: no")
    metrics["w96-d0"] += make_experiment(2, arms=("w96-d0",))[0]["w96-d0"][1:]
    assert find_warnings(metrics, metadata)[0].startswith("w96-d0 against fused: 2 blocks: the ex")


def test_few_pairs_are_warned_of_also_where_every_arm_has_many_blocks():
    metrics, metadata = make_experiment(7)
    for i, arm in enumerate(metrics):
        metrics[arm][i] |= {"status": "diverged", "message": "the loss became nan at step 3"}
    warnings = " ".join(find_warnings(metrics, metadata))
    assert "5 blocks: the exact test cannot go below" in warnings
    assert "3 trainings failed: with more than one, take no comparison as valid" in warnings


@pytest.mark.parametrize(
    ("arm", "block", "change", "words"),
    [
        ("window", 0, {"training_time": 1.27}, "window: the training time varies by 28%"),
        (
            "fused",
            1,
            {"device_after": {"throttle_reasons": ["hw_slowdown"]}},
            "down: block 2 (hw_slowdown).",
        ),
        ("window", 3, {"device_before": {"other_processes": 2}}, "using the device: block 4."),
        ("window", 1, WAITED, "window: threads waited for a core that others had: block 2 (25% of"),
        ("window", 4, {"process": "second"}, "block 5 was cut in two by a stop"),
    ],
)
def test_what_disturbed_a_training_is_warned_of(arm, block, change, words):
    metrics, metadata = make_experiment(6, seed=1)
    metrics[arm][block] |= change
    warnings = " ".join(find_warnings(metrics, metadata))
    assert words in warnings
    assert words in flat(format_report(metrics, metadata))


def test_blocks_that_the_same_disturbed_share_a_line():
    metrics, metadata = make_experiment(6, seed=1)
    for block in (1, 4):
        metrics["fused"][block] |= WAITED
    (line,) = find_warnings(metrics, metadata)
    assert line.endswith(": block 2 (25% of the time), block 5 (25% of the time).")


def around(before, after):
    return {"device_before": before, "device_after": after}


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (around(None, None), ""),
        (around({"ran_s": 1, "waited_s": 2}, {"ran_s": 1.96, "waited_s": 2.04}), ""),  # 4 %
        (around({"ran_s": 1, "waited_s": 2}, {"ran_s": 1, "waited_s": 2}), ""),
        # what the threads met is known better than what the host's load means for them
        (around({**LOADED, "ran_s": 1, "waited_s": 2}, {**LOADED, "ran_s": 9, "waited_s": 2}), ""),
        (around(LOADED, LOADED), "more was running than there are cores, load average 2.6 then"),
        (around(LOADED, {"load_average_1min": 2, "cores": 2}), ""),  # as many as it may itself use
        (around({"load_average_1min": 2.6}, {"load_average_1min": 2.6}), ""),  # an earlier file
        ({"samples_ms": [6.7]}, ""),
        ({"samples_ms": [6.7, 6.8, 6.6, 6.7, 9.9, 6.6]}, ""),  # one round held up
        ({"samples_ms": [6.7, 4.8, 6.6, 7.7, 9.9, 6.7]}, "times spread or drift by 10% or more"),
        ({"samples_ms": [6.1, 6.2, 6.3, 6.8, 6.9, 6.9]}, "times spread or drift by 10% or more"),
    ],
)
def test_what_counts_as_a_disturbance(measured, words):
    seen = [", ".join(filter(None, item)) for item in disturbances(measured)]
    assert len(seen) == bool(words) and "".join(seen).startswith(words)


def test_what_was_mixed_is_warned_of():
    metrics, metadata = make_experiment(6, seed=1)
    metadata["mixed"] = ["config.lr: 0.1 before, 0.2 now"]
    assert find_warnings(metrics, metadata) == [
        "MIXED: trainings that differ were taken together (--allow-mixed): config.lr: 0.1 before, "
        "0.2 now",
    ]


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


def test_an_arm_above_the_unigram_loss_takes_the_claims_of_quality_with_it():
    """Its losses say nothing, which report and figures must not keep to themselves."""
    metrics, metadata = make_experiment(6)
    report = flat(format_report(metrics, metadata))
    assert "NOT TRAINED" not in report and "is not worse than" in report
    assert prepare(metrics, metadata).mark == ""
    of_window = np.mean([training["val_loss"] for training in metrics["window"]])
    metadata["data"]["unigram_loss"] = of_window - 1e-6
    report = flat(format_report(metrics, metadata))
    assert "NOT TRAINED: " in report and "Quality: not trained, so this says nothing" in report
    assert f"{of_window:.3f} from their frequencies, 14.000 from the token before" in report
    assert "worse than" not in report.split("Quality:")[1].split("Memory")[0]
    assert prepare(metrics, metadata).mark == "not trained"
    metadata["data"]["unigram_loss"] = None  # of an earlier file
    assert "NOT TRAINED" not in format_report(metrics, metadata)


@pytest.mark.parametrize("steps", [12, 31, 60, 300, 2000])
def test_noise_alone_is_no_rise(steps):
    for seed in range(200):
        rng = np.random.default_rng([steps, seed])
        falling = 4 * np.exp(-np.arange(steps) / rng.uniform(1, steps))
        losses = 5 + rng.choice([0, 1]) * falling + rng.uniform(0.02, 1) * rng.normal(size=steps)
        losses[rng.integers(steps)] += rng.uniform(0, 5)  # one step alone is no rise either
        assert risen(losses, 0) is None, (steps, seed)


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_that_rises_after_the_warm_up_is_warned_of_once(seed):
    metrics, metadata = make_experiment(6, steps=100, seed=1)
    rng = np.random.default_rng(seed)
    place = int(rng.integers(30, 80))
    losses = 7 - 0.02 * np.arange(100) + rng.normal(0, 0.05, 100)
    losses[:8] += 3 * np.arange(8)  # the warm-up, 10 steps, may do so
    metrics["fused"][1]["losses"] = losses.astype(np.float32)
    assert find_warnings(metrics, metadata) == []
    losses[place:] += 1.5
    metrics["fused"][1]["losses"] = losses.astype(np.float32)
    (warning,) = find_warnings(metrics, metadata)
    words = r"fused, block 2: the loss rose from (.*) \(step (\d+)\) to (.*) \(step (\d+)\) after"
    low, low_step, high, high_step = map(float, re.match(words, warning).groups())
    assert low_step < place < high_step
    for loss, step in ((low, low_step), (high, high_step)):  # the centre of ten steps
        assert loss == pytest.approx(losses[int(step) - 6 : int(step) + 4].mean(), abs=0.01)


def test_times_that_vary_are_told_with_what_was_recorded():
    metrics, metadata = make_experiment(6, seed=1)
    busy = {"load_average_1min": 17.25, "other_processes": 2, "sm_clock_mhz": None}
    metrics["window"][3] |= {"training_time": 1.5, "device_before": busy}
    fast = {"training_time": 0.5, "device_before": None, "device_after": None}
    metrics["window"][4] |= fast
    warning = next(line for line in find_warnings(metrics, metadata) if "varies" in line)
    assert "fastest block 5 (0.50 s, nothing recorded of the device), slowest " in warning
    assert "slowest block 4 (1.50 s, load average 17.25 then 0.5, other processes 2)." in warning
    assert "?" not in warning

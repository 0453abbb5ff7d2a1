"""An experiment prepared for drawing: who is compared, the words on it, and estimates."""

import math

import numpy as np
import pytest
from conftest import make_experiment

from analysis.metrics import MetricsError
from analysis.values import TIME, smooth, throttled
from figures.data import describe_setting, losses_without_model, prepare, ratio
from figures.look import STYLES, arm_styles


def test_a_failed_training_leaves_the_means_and_its_block_leaves_the_pairs(prepared):
    data = prepared("failed")
    assert {arm: len(data.ok[arm]) for arm in data.arms} == {"fused": 4, "baseline": 3, "window": 4}
    assert len(ratio(data, "window", TIME)[0]) == 4
    assert len(ratio(data, "window", TIME, "baseline")[0]) == 3


def test_an_experiment_without_a_good_training_is_refused():
    metrics, metadata = make_experiment(1, ("window",))
    metrics["window"][0]["status"] = "diverged"
    with pytest.raises(MetricsError, match="no training went well"):
        prepare(metrics, metadata)


@pytest.mark.parametrize(
    "arms, expected",
    [
        (("window", "fused", "baseline"), ["fused", "baseline", "window"]),
        (("window", "fused", "w8-d2"), ["fused", "window", "w8-d2"]),
        (("published", "window"), ["window", "published"]),
    ],
)
def test_the_reference_comes_first(arms, expected, prepared):
    assert prepared(2, arms).arms == expected


def test_the_setting_names_the_revision_and_no_pattern_that_no_arm_has():
    _, metadata = make_experiment(2, ("fused", "w32-d0"))
    metadata["code"] = {"revision": "0123abc", "dirty": True}
    assert describe_setting(metadata) == "2-core CPU, seq_len 1024, float32, git 0123abc+"


def test_a_file_of_unlike_trainings_is_marked():
    metrics, metadata = make_experiment(1)
    data = prepare(metrics, metadata | {"mixed": ["code"]})
    assert data.mark == "mixed: trainings that differ"


def test_a_smoke_test_is_marked_beside_everything_else():
    metrics, metadata = make_experiment(1)
    metadata["config"]["preset"] = "smoke"
    data = prepare(metrics, metadata | {"mixed": ["code"]})
    smoke = "smoke test: says nothing about time or quality"
    assert data.mark == f"{smoke}; mixed: trainings that differ"


def test_smoothing_a_straight_line_changes_nothing_and_leaves_no_lag():
    line = np.arange(50.0)[None]
    np.testing.assert_allclose(smooth(line, 7), line[:, 3:-3])


def test_known_arms_have_fixed_looks_and_many_arms_all_look_different():
    styles = arm_styles(["window", *(f"w{window}-d0" for window in range(1, 31))])
    assert styles["window"] == arm_styles(["odd", "window"])["window"] == STYLES["window"]
    assert len({(style.color, style.marker) for style in styles.values()}) == 31


def test_every_arm_of_the_long_experiment_has_a_colour_and_a_marker_of_its_own():
    arms = ("fused", "window", "w96-d4-s", "w96-d0", "w96-d0-f1", "w32-d0-f1", "w96-d0-e4")
    styles = [arm_styles(arms)[arm] for arm in arms]
    assert len({style.color for style in styles}) == len({style.marker for style in styles}) == 7


@pytest.mark.parametrize("reading", [None, {}, {"throttle_reasons": None}])
def test_a_gpu_at_its_pace_is_not_throttled(reading):
    assert throttled({"device_before": reading, "device_after": reading}) == []


def test_the_losses_without_a_model_are_those_of_the_data():
    _, metadata = make_experiment(2)
    about = metadata["data"] | {"unigram_loss": 5.5, "bigram_loss": None}
    assert losses_without_model(about) == {
        "loss of equally likely tokens": pytest.approx(math.log(about["vocab_size"])),
        "loss of tokens' frequencies": 5.5,
    }

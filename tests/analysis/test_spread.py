"""Arms whose validation losses no mean describes, and the losses block by block."""

import numpy as np
import pytest
from conftest import add_reach, flat, make_experiment

from analysis.report import format_report
from analysis.spread import groups, loss_section, unsteady
from analysis.warnings import find_warnings
from analysis.words import section_lines


def with_losses(losses):
    """An experiment of two further arms beside one with these validation losses, block by block."""
    metrics, metadata = make_experiment(len(losses), arms=("fused", "w96-d0-f1", "w96-d4"))
    rng = np.random.default_rng(0)
    for arm, trainings in metrics.items():
        mine = losses if arm == "w96-d4" else 1.7 + rng.normal(0, 0.02, len(losses))
        for training, loss in zip(trainings, mine, strict=True):
            training["val_loss"] = float(loss)
    return metrics, metadata


@pytest.mark.parametrize("blocks", range(3, 11))
def test_normal_losses_are_seldom_taken_for_two_groups(blocks):
    rng = np.random.default_rng(blocks)
    found = sum(groups(rng.normal(2, 1, blocks)) is not None for _ in range(4000))
    assert found < 0.035 * 4000


@pytest.mark.parametrize("blocks", range(4, 11))
def test_two_groups_are_found_wherever_they_part(blocks):
    rng = np.random.default_rng(blocks)
    for few in range(1, blocks):
        values = rng.uniform(0, 0.02, blocks) + 1.64
        values[:few] += 0.3
        low, high = groups(rng.permutation(values))
        assert sorted(values[few:]) == low.tolist() and sorted(values[:few]) == high.tolist()
    assert groups(values * 0.1) is None  # too near one another to matter


def test_an_arm_without_a_mean_has_its_blocks_in_warning_table_and_claim():
    losses = [1.944, 1.640, 1.660, 1.652]
    metrics, metadata = with_losses(losses)
    assert list(unsteady(metrics)) == ["w96-d4"]
    (warning,) = (line for line in find_warnings(metrics, metadata) if "stand for" in line)
    assert warning.startswith(
        "w96-d4: the validation losses lie in two groups, 3 from 1.6400 to 1.6600, "
        "1 from 1.9440 to 1.9440"
    )
    report = format_report(metrics, metadata)
    assert "w96-d4     1.9440  1.6400  1.6600  1.6520" in report
    of_fused = [training["val_loss"] for training in metrics["fused"]]
    differences = np.subtract(losses, of_fused)
    every = ", ".join(f"{difference:+.4f}" for difference in differences)
    text = flat(report)
    words = f"No mean describes w96-d4: block by block the difference is {every}, the median"
    assert f"{words} {np.median(differences):+.4f} nats" in text
    assert text.count("No mean describes") == 1


def test_trainings_that_copy_and_trainings_that_do_not_are_of_two_kinds():
    metrics, _ = with_losses([1.67, 1.75, 1.751, 1.74])
    add_reach(metrics, {"fused": 960, "w96-d4": 256})
    assert unsteady(metrics) == {}
    metrics["w96-d4"][0]["reach"]["gains"][2] = 0.4
    assert unsteady(metrics) == {}  # not far enough from those of the others
    metrics["w96-d4"][0]["reach"]["gains"][2] = 0.7
    words = "are of two kinds of training, 1 that copy from 512 tokens and 3 that do not"
    assert unsteady(metrics) == {"w96-d4": words}
    for trainings in metrics.values():
        del trainings[2:]
    assert unsteady(metrics) == {}  # too few


def test_a_spread_many_times_that_of_the_others_is_warned_of():
    metrics, _ = with_losses([1.6, 1.75, 1.9, 2.05])
    assert "vary from block to block by 0.1936 nats" in unsteady(metrics)["w96-d4"]
    assert unsteady(with_losses([1.68, 1.7, 1.73, 1.75])[0]) == {}
    assert unsteady(with_losses([1.6, 2.0])[0]) == {}  # two blocks


def test_an_arm_alone_has_no_others_to_be_compared_with():
    metrics, _ = make_experiment(5, arms=("fused",))
    assert unsteady(metrics) == {}


def test_a_block_that_failed_is_a_gap_and_many_blocks_have_no_table():
    metrics, _ = make_experiment(3)
    metrics["window"][1] |= {"status": "diverged", "val_loss": float("nan")}
    lines = section_lines(loss_section(metrics))
    assert lines[1].split() == ["block", "1", "2", "3"]
    first, gap, last = lines[3].split()[1:]
    assert gap == "-" and float(first) == pytest.approx(metrics["window"][0]["val_loss"], abs=5e-5)
    assert float(last) == pytest.approx(metrics["window"][2]["val_loss"], abs=5e-5)
    for blocks in (1, 11):
        assert loss_section(make_experiment(blocks)[0]).parts == []

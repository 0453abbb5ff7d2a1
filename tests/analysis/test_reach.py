"""What the report says of the reach probe, from records whose reach is known."""

import re

import numpy as np
import pytest
from conftest import ROOT, add_reach, flat, make_experiment

from analysis.metrics import load_experiment, save_metrics
from analysis.reach import reach_claims, reach_section
from analysis.report import format_report
from analysis.words import section_lines


def give_gains(metrics, arm, gains):
    """The trainings of an arm gain this much, (blocks, distances)."""
    add_reach(metrics, {arm: 128})
    for training, of_block in zip(metrics[arm], gains, strict=True):
        training["reach"]["gains"] = of_block


@pytest.fixture
def probed():
    metrics, metadata = make_experiment(3, ("fused", "window", "w9-d0", "baseline"))
    nothing, some = np.random.default_rng().uniform(-0.05, 0.05, (2, 3)).tolist()
    give_gains(metrics, "fused", [[1, 1, 1, 0.5 + x] for x in nothing])
    give_gains(metrics, "window", [[1, 0, 0.36, x] for x in some])
    metrics["window"][1]["reach"]["gains"][2] = 0.03  # one block that does not copy
    give_gains(metrics, "w9-d0", [[0.09, x, x, x] for x in nothing])
    metrics["fused"][1]["reach"] = None  # as of a training that failed
    return metrics, metadata


def test_the_claim_names_the_farthest_distance_with_a_gain_in_every_block(probed):
    (claim,) = reach_claims(probed[0])
    farthest = np.mean([t["reach"]["gains"][3] for t in probed[0]["fused"] if t["reach"]])
    words = f"fused copies from as far as 960 tokens (gain {farthest:.2f} nats a token there, 2 of"
    assert f"{words} 2 blocks)" in claim
    assert (
        "window copies from as far as 128 tokens (gain 1.00 nats a token there, 1 of 3 blocks) and "
        "from as far as 512 tokens (gain 0.36 nats a token there, 2 of 3 blocks)" in claim
    )
    assert "w9-d0 copies from nowhere probed (3 of 3 blocks)" in claim
    assert "baseline" not in claim and "64 tokens" in claim and "200 passages" in claim


def test_one_block_of_large_gain_does_not_stand_for_the_others():
    metrics, _ = load_experiment(ROOT / "results" / "h200_long_windows.npz")
    (claim,) = reach_claims(metrics)
    assert (
        "w512-d0-f1 copies from as far as 512 tokens (gain 1.91 nats a token there, 2 of 3 blocks) "
        "and from as far as 2,048 tokens (gain 0.35 nats a token there, 1 of 3 blocks)" in claim
    )


def test_the_table_has_every_gain_and_the_report_holds_both(probed):
    title, header, *rows = section_lines(reach_section(probed[0]))
    assert header.split() == ["arm", "blocks", "128", "256", "512", "960"]
    cells = {row.split()[0]: re.split("  +", row)[1:] for row in rows}
    gains = np.array([training["reach"]["gains"] for training in probed[0]["window"]])
    means, deviations = gains.mean(axis=0), gains.std(axis=0, ddof=1)
    expected = [f"{m:.2f} ± {d:.2f}" for m, d in zip(means, deviations, strict=True)]
    assert cells["window"] == ["3", *expected]
    assert cells["fused"][0] == "2" and "baseline" not in cells
    report = format_report(*probed)
    assert title in report and reach_claims(probed[0])[0] in flat(report)


def test_without_a_probe_the_report_says_nothing_of_it():
    metrics, metadata = make_experiment()
    assert reach_claims(metrics) == reach_section(metrics).parts == []
    assert "Reach" not in format_report(metrics, metadata)


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_records_are_kept(tmp_path, probed, suffix):
    save_metrics(*probed, tmp_path)
    loaded, _ = load_experiment(tmp_path / f"experiment_results{suffix}")
    for arm, trainings in probed[0].items():
        assert [t["reach"] for t in loaded[arm]] == [t["reach"] for t in trainings]

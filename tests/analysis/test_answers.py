"""The three lines that a report begins with."""

import re

import numpy as np
import pytest
from conftest import ROOT, make_experiment, set_beside_fused
from scipy import stats

from analysis.answers import answers
from analysis.metrics import load_experiment
from analysis.recommend import AFTER_LONGER
from analysis.report import format_report
from analysis.words import Section, section_lines


def made(factors=(0.8, 0.81, 0.82, 0.805), differences=(-0.04, -0.041, -0.043, -0.042), **options):
    """An experiment whose first arm differs so from fused in time and validation loss."""
    options = {"arms": ("window", "fused")} | options
    metrics, metadata = make_experiment(len(factors), **options)
    set_beside_fused(metrics, options["arms"][0], factors, differences)
    return metrics, metadata


def test_the_numbers_are_those_of_the_pairs():
    factors, differences = (0.8, 0.81, 0.82, 0.805), (-0.04, -0.041, -0.043, -0.042)
    logs = stats.ttest_1samp(np.log(factors), 0).confidence_interval(0.95)
    low, high = 100 * (1 - np.exp([logs.high, logs.low]))
    bound = np.mean(differences) + stats.sem(differences) * stats.t.ppf(0.95, 3)
    assert answers(*made(factors, differences)) == [
        f"Faster: yes: window takes {100 * (1 - stats.gmean(factors)):.1f} % [{low:.1f}, "
        f"{high:.1f}] less training time than fused (4 blocks)",
        f"As good: yes: window is not worse than fused by 0.02 nats: {np.mean(differences):+.4f} "
        f"nats, at most {bound:+.4f} (4 blocks, 81,920 tokens each)",
        "Use: window, as good as fused and faster (4 blocks)" + AFTER_LONGER,
    ]


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ((1.2, 1.21, 1.22), "no: window takes 21.0 % [18.5, 23.5] more training time than fused"),
        ((0.9, 1.1, 0.95), "not shown: window takes 2.0 % [-26.8, 24.3] less training time"),
        ((0.9,), "not shown: window takes 10.0 % less training time than fused (one block: no te"),
    ],
)
def test_is_it_faster(factors, words):
    first, *_ = answers(*made(factors, [0.0] * len(factors)))
    assert words in first


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        (
            (0.1, 0.11, 0.12),
            "no: window is worse than fused by more than 0.02 nats: +0.1100 nats,",
        ),
        ((0.1, 0.11, 0.12), "at least +0.0931 (3 blocks, 81,920 tokens each)"),
        (
            (0.0, 0.04, -0.03),
            "not shown: whether window is worse than fused by 0.02 nats is undecided: +0.003",
        ),
        ((0.0,), "worse than fused by 0.02 nats is undecided: +0.0000 nats (1 bl"),
    ],
)
def test_is_it_as_good(differences, words):
    _, second, _ = answers(*made([1.0 + 0.1 * d for d in differences], differences))
    assert second.startswith("As good: ") and words in second


def test_models_that_were_not_trained_say_nothing_about_quality():
    metrics, metadata = made()
    metadata["data"]["unigram_loss"] = 0.1
    _, *last = answers(metrics, metadata)
    assert last == [
        "As good: not trained: says nothing about quality",
        "Use: nothing can be said: not trained",
    ]


def test_they_speak_of_the_recommended_pattern_and_else_of_the_fastest():
    metrics, metadata = made(arms=("w96-d4", "fused", "w32-d0"))
    set_beside_fused(metrics, "w32-d0", [0.5] * 4, [1, 1.01, 1.02, 1.03])
    assert all("w96-d4" in answer for answer in answers(metrics, metadata))
    for training in metrics["w96-d4"]:
        training["val_loss"] += 1
    *about, use = answers(metrics, metadata)
    assert all("w32-d0" in answer for answer in about) and use.startswith("Use: fused: none of 2")


def test_without_fused_they_say_against_what_and_recommend_nothing():
    metrics, metadata = made()
    metrics = {"window": metrics["window"], "baseline": metrics["fused"]}
    first, second, use = answers(metrics, metadata)
    assert (
        "than baseline (4 blocks; the kernel differs too" in first
        and "worse than baseline by" in second
    )
    assert use == "Use: nothing can be said: fused, the best full attention, was not trained"


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (("baseline", "fused"), "no window model was trained"),
        (("window",), "fused, the best full attention, was not trained"),
    ],
)
def test_one_kind_of_arm_alone_answers_nothing(arms, words):
    first, second, _ = answers(*make_experiment(3, arms=arms))
    assert first == f"Faster: nothing can be said: {words}" and second.endswith(words)


def test_trainings_that_all_failed_answer_nothing():
    metrics, metadata = made()
    for training in metrics["fused"]:
        training["status"] = "diverged"
    first, second, use = answers(metrics, metadata)
    words = "nothing can be said: no pattern and fused both ended well in a block"
    assert (first, second) == (f"Faster: {words}", f"As good: {words}")
    assert use == "Use: nothing can be said: no pattern and fused both ended well in a block"


def test_what_is_partial_or_mixed_is_marked_in_every_answer():
    metrics, metadata = made()
    metrics["window"].pop()
    metadata |= {"status": "partial", "mixed": ["config.lr: 0.1 before, 0.2 now"]}
    for name, answer in zip(("Faster", "As good", "Use"), answers(metrics, metadata), strict=True):
        assert answer.startswith(f"{name} (partial: 7/8 trainings; mixed: trainings that differ): ")


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.npz")), ids=lambda p: p.stem)
def test_every_experiment_kept_is_answered_first_in_a_few_lines(path):
    metrics, metadata = load_experiment(path)
    lines = section_lines(Section("", answers(metrics, metadata)))
    assert format_report(metrics, metadata).splitlines()[: len(lines)] == lines
    assert len(lines) <= 6 and max(map(len, lines)) <= 100
    begun = [line for line in lines if line[0] != " "]
    assert len(begun) == 3
    for line, name in zip(begun, ("Faster", "As good", "Use"), strict=True):
        assert re.match(rf"{name}( \(partial: \d+/\d+ trainings\))?: ", line)


def test_a_smoke_test_says_how_many_trainings_ended_well():
    metrics, metadata = made()
    metadata["config"]["preset"] = "smoke"
    metrics["window"][0]["status"] = "diverged"
    assert answers(metrics, metadata) == [
        "Smoke test: says nothing about time or quality; 7 of 8 trainings ended well"
    ]

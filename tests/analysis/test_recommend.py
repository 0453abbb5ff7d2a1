"""What is recommended, against a search through all patterns made here."""

import json

import numpy as np
import pytest
from conftest import make_experiment, set_beside_fused
from scipy import stats

from analysis.recommend import AFTER_LONGER, Recommendation, recommend, recommendation_text
from experiment.plan import declare
from training.config import make_config

PATTERNS = ("w32-d0", "w96-d0", "w96-d4", "w96-d0-f1")


def random_experiment(seed):
    """An experiment whose patterns differ in speed, loss, density and failures by chance."""
    rng = np.random.default_rng(seed)
    blocks = int(rng.integers(2, 9))
    metrics, metadata = make_experiment(blocks, arms=("fused", *PATTERNS))
    metadata["plan"] |= {"confirmation": 2 * (blocks >= 5)}
    for arm in PATTERNS:
        metadata["attention"][arm] = {"density": float(rng.uniform(0.1, 0.9))}
        shift, factor = rng.choice([-0.05, 0.0, 0.03]), rng.choice([0.8, 0.803, 0.9, 0.99, 1.1])
        losses, times = rng.normal(shift, 0.01, blocks), factor * rng.normal(1, 0.002, blocks)
        set_beside_fused(metrics, arm, times, losses)
        for training in metrics[arm]:
            if rng.random() < 0.03:
                training["status"] = "diverged"
    return metrics, metadata


def columns(metrics, arm, blocks):
    """Loss differences and log time ratios to fused (blocks,), and whether none has failed."""
    rows = [(metrics[arm][block], metrics["fused"][block]) for block in blocks]
    losses = np.array([mine["val_loss"] - fused["val_loss"] for mine, fused in rows])
    logs = np.log([mine["training_time"] / fused["training_time"] for mine, fused in rows])
    return losses, logs, all(mine["status"] == "ok" for mine, _ in rows)


def searched(metrics, metadata):
    """What to use, what was chosen and whether it is confirmed, by a search through all."""
    count, margin = len(metrics["fused"]), 0.02
    fresh = metadata["plan"]["confirmation"]
    good = []
    for arm in PATTERNS:
        losses, logs, well = columns(metrics, arm, range(count - fresh))
        error = stats.sem(losses) * stats.t.isf(0.05, losses.size - 1)
        slowest = logs.mean() + stats.sem(logs) * stats.t.isf(0.025, logs.size - 1)
        if well and losses.size > 2 and losses.mean() + error < margin and slowest < 0:
            good.append((np.exp(logs.mean()), arm))
    if not good:
        return "fused", None, None
    nearly = [arm for ratio, arm in good if ratio / min(good)[0] <= 1.01]
    chosen = min(nearly, key=lambda arm: metadata["attention"][arm]["density"])
    if not fresh:
        return chosen, chosen, None
    losses, logs, well = columns(metrics, chosen, range(count - fresh, count))
    confirmed = bool(well and losses.max() < margin and logs.mean() < 0)
    return chosen if confirmed else "fused", chosen, confirmed


def test_it_is_what_a_search_through_all_patterns_finds():
    seen = set()
    for seed in np.random.SeedSequence().generate_state(150):
        metrics, metadata = random_experiment(seed)
        expected = searched(metrics, metadata)
        found = recommend(metrics, metadata)
        assert (found.use, found.chosen, found.confirmed) == expected, seed
        seen.add((expected[1] is None, expected[2]))
        text = recommendation_text(found)
        assert text.startswith(found.use) and len(text) < 230
        assert Recommendation(**json.loads(json.dumps(found._asdict())))[:2] == found[:2]
    assert seen == {(True, None), (False, None), (False, True), (False, False)}


def made(differences, factors, patterns=PATTERNS[:2], confirmation=2):
    """An experiment of these patterns: differences and factors to fused, (patterns, blocks)."""
    metrics, metadata = make_experiment(len(factors[0]), arms=("fused", *patterns))
    metadata["plan"]["confirmation"] = confirmation
    for arm, losses, times in zip(patterns, differences, factors, strict=True):
        set_beside_fused(metrics, arm, times, losses)
    return metrics, metadata


GOOD, WORSE = (-0.04, -0.041, -0.042, -0.043, -0.0412), (0.1, 0.101, 0.102, 0.103, 0.1)
FAST, SLOW = (0.8, 0.801, 0.802, 0.81, 0.82), (1.1, 1.1001, 1.1002, 1.1, 1.1)


def test_the_fresh_blocks_confirm_it_or_do_not():
    found = recommend(*made([GOOD, WORSE], [FAST, FAST]))
    assert recommendation_text(found) == (
        "w32-d0, chosen from 2 patterns on 3 blocks, confirmed on 2 fresh ones "
        "(-0.0430, -0.0412 nats, 0.815 times the time of fused)" + AFTER_LONGER
    )
    assert found.fresh == (4, 5) and found.confirmed and found.use == "w32-d0"
    found = recommend(*made([(*GOOD[:4], 0.02001), WORSE], [FAST, FAST]))
    assert recommendation_text(found).startswith(
        "fused: w32-d0, chosen from 2 patterns on 3 blocks, was not confirmed on 2 fresh ones"
    )
    slower = recommend(*made([GOOD, WORSE], [(*FAST[:3], 1.1, 1.2), FAST]))
    assert slower.use == "fused" and slower.confirmed is False


def test_a_fresh_block_that_is_missing_confirms_nothing():
    metrics, metadata = made([GOOD, WORSE], [FAST, FAST])
    metrics["fused"].pop()
    text = recommendation_text(recommend(metrics, metadata))
    assert text.endswith("on 3 blocks, not confirmed on fresh seeds" + AFTER_LONGER)
    metrics["w32-d0"][4]["status"] = "diverged"
    text = recommendation_text(recommend(metrics, metadata))
    assert text.startswith("fused: ") and text.endswith("2 fresh ones (a training failed)")


def test_one_fresh_block_above_the_margin_is_enough_to_refute():
    metrics, metadata = made([(*GOOD[:3], 0.3, -0.04), WORSE], [FAST, FAST])
    metrics["w32-d0"].pop()
    found = recommend(metrics, metadata)
    assert found.use == "fused" and found.confirmed is False
    assert "not confirmed on 2 fresh ones (+0.3000 nats, 0.810 times" in recommendation_text(found)


def test_without_fresh_blocks_all_are_chosen_on():
    found = recommend(*made([GOOD, WORSE], [FAST, FAST], confirmation=0))
    words = "w32-d0, chosen from 2 patterns on 5 blocks, not confirmed on fresh seeds"
    assert recommendation_text(found) == words + AFTER_LONGER
    assert recommendation_text(found._replace(tokens=100_000_000)) == words


def test_where_no_pattern_is_good_enough_fused_is():
    found = recommend(*made([GOOD, WORSE], [SLOW, FAST]))
    words = "fused: none of 2 patterns is shown to be as good and faster (3 blocks"
    assert recommendation_text(found) == words + ", without the plan's last 2)"
    found = recommend(*made([GOOD, WORSE], [SLOW, FAST], confirmation=0))
    assert recommendation_text(found) == words.replace("3", "5") + ")"


def test_one_pattern_is_not_chosen():
    one = {"patterns": ("window",), "confirmation": 0}
    found = recommend(*made([GOOD], [FAST], **one))
    words = "window, as good as fused and faster (5 blocks)"
    assert recommendation_text(found) == words + AFTER_LONGER
    found = recommend(*made([GOOD], [SLOW], **one))
    words = "fused: window is not shown to be as good and faster (5 blocks)"
    assert recommendation_text(found) == words


def test_that_a_training_failed_is_the_reason():
    metrics, metadata = made([GOOD], [FAST], patterns=("window",), confirmation=0)
    metrics["window"][1]["status"] = "diverged"
    text = recommendation_text(recommend(metrics, metadata))
    assert text.endswith("(5 blocks); a training of window failed")


def test_only_blocks_that_have_both_are_counted():
    """In an unfinished experiment fused may be a block ahead, or two."""
    one = {"patterns": ("window",), "confirmation": 0}
    for factors, words in ((FAST, "window, as good as"), (SLOW, "fused: window is not shown")):
        metrics, metadata = made([GOOD], [factors], **one)
        del metrics["window"][3:]
        text = recommendation_text(recommend(metrics, metadata))
        assert text.startswith(words) and "(3 blocks)" in text
    metrics, metadata = made([GOOD, GOOD], [SLOW, FAST], confirmation=0)
    metrics["w96-d0"].pop()
    text = recommendation_text(recommend(metrics, metadata))
    assert text.startswith("w96-d0, chosen from 2 patterns on 4 blocks")


def test_of_equally_fast_patterns_the_sparser_is_taken():
    for density, chosen in ((0.1, "w96-d0"), (0.9, "w32-d0")):
        nearly = tuple(1.009 * factor for factor in FAST)
        metrics, metadata = made([GOOD, GOOD], [FAST, nearly])
        metadata["attention"] = {"w32-d0": {"density": 0.5}, "w96-d0": {"density": density}}
        assert recommend(metrics, metadata).chosen == chosen
    for arms, chosen in (  # of an earlier file, which has no densities: by their names
        (("w96-d0", "w32-d0"), "w32-d0"),
        (("w32-d8", "w96-d0"), "w96-d0"),
        (("w32-d8", "w32-d16"), "w32-d16"),
        (("w32-d0-f1", "w96-d8"), "w96-d8"),
        (("w32-d0-e4", "w32-d0-f1"), "w32-d0-f1"),
        (("window", "w96-d1"), "w96-d1"),
    ):
        metrics, metadata = made([GOOD, GOOD], [FAST, nearly], patterns=arms)
        metadata["attention"] = {}
        assert recommend(metrics, metadata).chosen == chosen


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda metrics, metadata: metrics.pop("fused"), "fused, the best full attention, was not"),
        (lambda metrics, metadata: metrics.pop("w32-d0"), "no window model was trained"),
        (
            lambda metrics, metadata: metrics["fused"].clear(),
            "no pattern and fused both ended",
        ),
        (lambda metrics, metadata: metadata["data"].update(unigram_loss=0.1), "not trained"),
        (
            lambda metrics, metadata: metadata["plan"].update(equivalence_margin=None),
            "no margin for the loss was declared",
        ),
    ],
)
def test_why_nothing_can_be_said(change, words):
    experiment = made([GOOD], [FAST], patterns=("w32-d0",), confirmation=0)
    change(*experiment)
    found = recommend(*experiment)
    assert found.use is None
    assert recommendation_text(found).startswith(f"nothing can be said: {words}")


def test_an_arm_that_was_not_trained_is_not_chosen():
    metrics, metadata = made([WORSE, GOOD], [FAST, FAST])
    for training in metrics["w32-d0"]:
        training["val_loss"] = metadata["data"]["unigram_loss"]
    assert recommend(metrics, metadata).use == "w96-d0"


@pytest.mark.parametrize(
    ("arms", "runs", "fresh"),
    [
        (("fused", "w96-d4", "w96-d0"), 4, 0),
        (("fused", "window", "w96-d0"), 5, 2),
        (("fused", "w96-d4", "w96-d0"), 6, 2),
        (("baseline", "fused", "window"), 9, 0),
        (("baseline", "w96-d4", "w96-d0"), 9, 0),
    ],
)
def test_blocks_for_the_confirmation_are_declared(arms, runs, fresh):
    assert declare(make_config(arms=arms, runs=runs))["confirmation"] == fresh

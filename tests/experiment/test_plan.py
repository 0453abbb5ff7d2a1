"""Orders are balanced, and the plan is fixed before anything is trained."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment.plan import balanced_orders, declare, make_plan
from training.config import make_config


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 60), st.integers(0, 2**32))
def test_orders_are_balanced(arms, blocks, seed):
    arms = tuple("abcd"[:arms])
    orders = balanced_orders(arms, blocks, np.random.default_rng(seed))
    assert len(orders) == blocks
    assert all(sorted(order) == sorted(arms) for order in orders)
    counts = Counter(orders)
    every = [counts[order] for order in itertools.permutations(arms)]
    assert max(every) - min(every) <= 1
    for start in range(0, blocks - len(arms) + 1, len(arms)):
        square = orders[start : start + len(arms)]
        assert all(len(set(column)) == len(arms) for column in zip(*square, strict=True))


@pytest.mark.parametrize("size", [2, 6, 7, 12])
def test_orders_of_many_arms_are_balanced_too(size):
    arms = tuple(f"w{n}-d0" for n in range(1, size + 1))
    orders = balanced_orders(arms, 2 * size, np.random.default_rng(0))
    assert all(sorted(order) == sorted(arms) for order in orders)
    for place in range(size):
        assert set(Counter(order[place] for order in orders).values()) == {2}
    assert all(type(arm) is str for order in orders for arm in order)


def test_the_plan_follows_from_the_seed_alone():
    plan = make_plan(make_config(runs=7, seed=5))
    torch.manual_seed(1)
    np.random.seed(1)
    assert make_plan(make_config(runs=7, seed=5, lr=1.0)) == plan
    other = make_plan(make_config(runs=7, seed=6))
    assert other["orders"] != plan["orders"] and other["seeds"] != plan["seeds"]
    assert len(set(plan["seeds"])) == 7
    longer = make_plan(make_config(runs=9, seed=5))
    assert longer["seeds"][:7] == plan["seeds"] and longer["orders"][:7] == plan["orders"]
    json.dumps(plan)


def test_only_what_the_arms_can_answer_is_declared():
    declared = declare(make_config(arms=("window", "fused"), equivalence_margin=0.1))
    assert declared["equivalence_margin"] == 0.1
    for line in declared["primary"] + declared["family"]:
        assert line[:2] == ["window", "fused"]
    assert [line[2] for line in declared["primary"]] == ["training_time", "val_loss"]


PATTERNS = ("w96-d4-s", "w32-d0-f1", "w96-d0-e4")


@pytest.mark.parametrize(
    ("others", "reference"),
    [
        (("fused",), "fused"),
        (("baseline", "fused"), "fused"),
        (("baseline",), "baseline"),
        (("published",), None),
    ],
)
def test_every_pattern_is_declared_against_one_full_attention(others, reference):
    declared = declare(make_config(arms=(*PATTERNS, *others), layers=8))
    mine = [line for line in declared["family"] if line[0] in PATTERNS]
    outcomes = ("training_time", "peak_memory_mb", "val_loss")
    asked = [[arm, reference, key] for arm in PATTERNS for key in outcomes]
    assert sorted(mine) == sorted(asked if reference else [])
    tests = [["training_time", "ratio"], ["val_loss", "non-inferiority"]]
    asked = [[arm, reference, *test] for arm in PATTERNS for test in tests]
    assert sorted(declared["primary"]) == sorted(asked if reference else [])


def test_the_declared_tests_of_the_documented_arms_are_as_ever():
    declared = declare(make_config(arms=("baseline", "window", "fused")))
    pairs = [["window", "fused"], ["fused", "baseline"], ["window", "baseline"]]
    keys = ("training_time", "peak_memory_mb", "val_loss")
    assert declared["family"] == [[*pair, key] for pair in pairs for key in keys]
    assert declared["primary"] == [
        [*pair, *test]
        for test in (["training_time", "ratio"], ["val_loss", "non-inferiority"])
        for pair in (pairs[0], pairs[2])
    ]

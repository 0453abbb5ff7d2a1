"""Which rows a step trains on, how fast it learns, and how many steps there are."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from tiny import tiny_config

from training.batches import (
    CURVE_TOKENS,
    UNIGRAM_WEIGHT,
    batches,
    curve_rows,
    learning_rate,
    losses_of_counts,
    planned_steps,
    validation_rows,
)
from training.tokens import Dataset


def test_schedule_rises_linearly_then_falls_as_a_cosine_to_a_tenth():
    rates = [learning_rate(step, 1000, 3e-4, 500) for step in range(1001)]
    assert rates[0] == pytest.approx(3e-4 / 500)
    assert rates[499] == rates[500] == pytest.approx(3e-4)
    assert rates[750] == pytest.approx(3e-4 * 0.55)
    assert rates[1000] == pytest.approx(3e-5)
    assert np.all(np.diff(rates[:500]) > 0) and np.all(np.diff(rates[500:]) < 0)
    assert learning_rate(0, 10, 1.0, 0) == 1.0


def test_a_constant_schedule_stays_at_its_peak():
    assert [learning_rate(step, 9, 0.5, 2, "constant") for step in range(4)] == [
        0.25,
        0.5,
        0.5,
        0.5,
    ]


def test_one_pass_uses_every_row_once_and_the_next_pass_another_order():
    rows = np.arange(9)[:, None]

    def draw(seed):
        return [batch.ravel().tolist() for batch in batches(rows, 2, 8, seed)]

    first, second = np.ravel(draw(3)[:4]).tolist(), np.ravel(draw(3)[4:]).tolist()
    assert len(set(first)) == len(set(second)) == 8
    assert first != second
    assert draw(3) == draw(3) != draw(4)


def test_planned_steps_are_one_pass_unless_told():
    assert planned_steps(tiny_config(max_steps=0), 21) == 10
    assert planned_steps(tiny_config(max_steps=50), 21) == 50


def test_held_out_rows_are_evenly_spread_ends_included():
    assert validation_rows(tiny_config(val_batches=0), 7).tolist() == list(range(7))
    assert validation_rows(tiny_config(val_batches=2), 7).tolist() == [0, 2, 4, 6]
    assert validation_rows(tiny_config(val_batches=9), 7).tolist() == list(range(7))


@pytest.mark.parametrize(("seq_len", "rows"), [(24, 31), (16_384, 16), (2 * CURVE_TOKENS, 1)])
def test_a_curve_takes_few_tokens_at_least_a_row_and_at_most_all(seq_len, rows):
    used = curve_rows(tiny_config(seq_len=seq_len), 31)
    assert len(set(used)) == rows and used[0] == 0
    if rows > 1:
        assert used[-1] == 30 and np.ptp(np.diff(used)) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_the_training_rows_and_of_pairs_inside_them(monkeypatch, seed):
    monkeypatch.setattr("training.batches.COUNTED_AT_ONCE", 40)  # several parts
    rng = np.random.default_rng(seed)
    vocab_size = int(rng.integers(3, 9))
    dtype = (np.uint16, np.int32, np.uint64, np.int64)[seed]
    tokens = rng.integers(0, vocab_size - 1, (41, 9)).astype(dtype)
    train, held_out = tokens[:35], tokens[35:]
    singles = Counter(int(token) for token in train.ravel())
    pairs = Counter((int(a), int(b)) for row in train for a, b in itertools.pairwise(row))
    contexts = Counter(int(a) for row in train for a in row[:-1])
    of_tokens, of_pairs, used = [], [], [0, 2, 5]
    for row in held_out[used]:
        for a, b in itertools.pairwise(map(int, row)):
            share = (singles[b] + 1) / (train.size + vocab_size)
            weight = UNIGRAM_WEIGHT
            of_tokens.append(-math.log(share))
            of_pairs.append(-math.log((pairs[a, b] + weight * share) / (contexts[a] + weight)))
    found = losses_of_counts(Dataset("made up", train, held_out, vocab_size), used)
    expected = {"unigram_loss": np.mean(of_tokens), "bigram_loss": np.mean(of_pairs)}
    assert found == pytest.approx(expected, rel=1e-12)


def test_pairs_need_no_table_of_the_vocabulary():
    rows = np.random.default_rng(0).integers(2**21 - 5, 2**21, (20, 17))
    found = losses_of_counts(Dataset("made up", rows[:15], rows[15:], 2**21), np.arange(5))
    assert math.log(5) < found["bigram_loss"] < math.log(2**21)

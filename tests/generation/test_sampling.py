"""Drawn tokens have the frequencies of an independent calculation."""

import math

import pytest
import torch

from generation.sampling import draw


def frequencies(logits, draws=40_000, **options):
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(logits).expand(draws, -1)
    ids = draw(rows, generator=generator, **options)
    return torch.bincount(ids, minlength=len(logits)).double() / draws


def expected_frequencies(logits, temperature=1.0, top_k=None, top_p=None):
    """By hand: tempered probabilities, the k largest, then the fewest that reach top_p."""
    weights = {i: math.exp(x / temperature) for i, x in enumerate(logits)}
    order = sorted(weights, key=lambda i: -weights[i])[: top_k or len(weights)]
    total, reached, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if top_p is not None and reached >= top_p:
            break
        kept.append(i)
        reached += weights[i] / total
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_k": 1},
        {"top_k": 100},
        {"top_p": 0.6},
        {"top_p": 0.01},
        {"top_p": 1.0},
        {"top_k": 4, "top_p": 0.8, "temperature": 1.7},
        {"top_k": 2, "top_p": 0.99},
    ],
)
def test_draws_have_the_frequencies_of_an_independent_calculation(options):
    logits = [0.3, -1.0, 1.5, 0.0, 1.1, -4.0]
    found = frequencies(logits, **options)
    for frequency, expected in zip(found, expected_frequencies(logits, **options), strict=True):
        # 5 standard deviations of a frequency
        assert abs(frequency - expected) <= 5 * math.sqrt(expected * (1 - expected) / 40_000)


def test_extreme_temperatures():
    rows = torch.tensor([[0.3, 80.0, 79.9], [5.0, -1e30, 3.0]])
    for temperature in (0, 1e-45, 1e-310):
        assert draw(rows, temperature).tolist() == [1, 0]
    assert set(draw(rows[:1].expand(500, -1), 1e9).tolist()) == {0, 1, 2}

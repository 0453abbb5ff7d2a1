"""Orders and seeds of all blocks, drawn and declared before the first training."""

import itertools

import numpy as np

from analysis.contrasts import family_of, primary_of
from analysis.recommend import fresh_blocks
from analysis.significance import ALPHA

MOST_PERMUTED = 6  # arms whose orders are all dealt: 120 squares


def balanced_orders(arms, blocks, rng):
    """For every block the order of its arms: random, and balanced as far as ``blocks`` allows.

    The permutations of the arms are dealt as Latin squares (each arm once in each place), the
    squares and the rows inside a square in random order; all are used before one comes again.  So
    no order comes more than once oftener than another, and after every len(arms) blocks each arm
    has been first, second, ... equally often.  Many arms have too many permutations to deal them
    all: every square is then drawn anew.
    """
    first, *others = arms
    orders = []
    if len(arms) > MOST_PERMUTED:
        while len(orders) < blocks:
            square = _rotations((first, *map(str, rng.permutation(others))))
            orders += [square[row] for row in rng.permutation(len(arms))]
        return orders[:blocks]
    # the squares share no permutation, for each has one of those that begin with the first arm
    squares = [_rotations((first, *rest)) for rest in itertools.permutations(others)]
    while len(orders) < blocks:
        for number in rng.permutation(len(squares)):
            orders += [squares[number][row] for row in rng.permutation(len(arms))]
    return orders[:blocks]


def _rotations(order):
    """The order begun at each of its places in turn: a Latin square."""
    return [order[k:] + order[:k] for k in range(len(order))]


def make_plan(config):
    """Orders and seeds of all blocks, drawn from ``config.seed`` alone before any training."""
    for_orders, for_seeds = np.random.SeedSequence(config.seed).spawn(2)
    orders = balanced_orders(config.arms, config.runs, np.random.default_rng(for_orders))
    seeds = for_seeds.generate_state(config.runs)
    return {"orders": [list(order) for order in orders], "seeds": [int(seed) for seed in seeds]}


def declare(config):
    """What is to be tested, fixed in the plan before the first training."""
    return {
        "alpha": ALPHA,
        "equivalence_margin": config.equivalence_margin,
        "primary": [list(claim) for claim in primary_of(config.arms)],
        "family": [list(test) for test in family_of(config.arms)],
        "confirmation": fresh_blocks(config.arms, config.runs),
    }

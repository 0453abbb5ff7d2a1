"""Attention of a sequence that is cut over several ranks: two and three processes of gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tiny import needs_cuda

from attention.exchange import Shards, Zigzag
from attention.pattern import FULL, Pattern, causal_pairs
from attention.shards import check_shards

WORKER = Path(__file__).with_name("shards_worker.py")
TRIALS = 120


def found_by(ranks, device="cpu"):
    """{number of ranks: what each of so many says}, from random cases of a fresh seed."""
    seed = int.from_bytes(os.urandom(3), "little")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", WORKER, str(seed), str(TRIALS), device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    every = json.loads(done.stdout)
    of_size = {size: [rank[str(size)] for rank in every[:size]] for size in range(2, ranks + 1)}
    return seed, of_size


@pytest.fixture(scope="module")
def three_processes():
    return found_by(3)


@pytest.fixture(params=[2, 3])
def found(three_processes, request):
    """The seed, and what every one of two or three ranks says."""
    seed, of_size = three_processes
    return seed, of_size[request.param]


def test_out_and_gradients_are_those_of_the_whole_sequence(found):
    """In float64, every kind of head; shards from 1 token on, shorter than w + d, odd ones."""
    seed, ranks = found
    assert [text for rank in ranks for text in rank["wrong"]] == [], f"seed {seed}"
    assert all(count > 5 for count in ranks[0]["groups"].values())


def test_second_derivatives_are_refused(found):
    """They would lack all that came from other ranks."""
    assert all(rank["refuses"] for rank in found[1])


def test_longer_sequences_take_no_more_operators(found):
    """Of the classes of dilated heads a gradient is added up in one, not key by key."""
    assert all(short == long > 0 for short, long in (rank["operators"] for rank in found[1]))


def test_the_bytes_that_travel_are_those_of_the_formula(found):
    for rank in found[1]:
        for counted, expected in rank["bytes"]:
            assert counted == expected
    window_alone = found[1][0]["bytes"][2][0]
    assert set(window_alone) == {"halo"}  # of the first rank, whose keys come back from none


def test_rows_of_all_ranks_are_put_together(found):
    ranks = found[1]
    first_rows = [0, 1, 2], [3, 4, 5]
    whole = [[n + 10 * rank for rank in range(len(ranks)) for n in row] for row in first_rows]
    assert all(rank["rows"] == whole for rank in ranks)


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_two_gpus():
    seed, of_size = found_by(2, "cuda")
    assert [text for rank in of_size[2] for text in rank["wrong"]] == [], f"seed {seed}"
    assert [rank["other GPUs"] for rank in of_size[2]] == [[], []]


# without processes
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_every_rank_has_the_same_work(ranks, length):
    """Pairs of full heads; an odd shard's chunks differ by one token."""
    zigzags = [Zigzag(Shards(None, rank, ranks), length) for rank in range(ranks)]
    computed, pairs = [], []
    for zigzag in zigzags:
        spans = [range(end - (rows.stop - rows.start), end) for rows, end in zigzag.spans()]
        computed += [token for span in spans for token in span]
        pairs.append(sum(token + 1 for span in spans for token in span))
    seq_len = ranks * length
    assert sorted(computed) == list(range(seq_len)) and sum(pairs) == causal_pairs(seq_len)
    if length % 2 == 0:
        assert len(set(pairs)) == 1
    assert max(pairs) - min(pairs) <= (length % 2) * 2 * seq_len


@pytest.mark.parametrize(
    ("seq_len", "shards", "pattern", "words"),
    [
        (100, 3, Pattern(5, 0), "100 tokens cannot be cut into 3 equal shards: choose 99 tokens"),
        (2, 3, FULL, "2 tokens cannot be cut into 3 equal shards: choose 3 tokens"),
        (96, 4, Pattern(24, 4), "a shard of 24 tokens .* 25 tokens: choose 3 shards"),
        (96, 4, Pattern(2, 0, 25), "25 tokens: choose 3 shards"),
        (100, 5, Pattern(32, 4), "33 tokens: choose 2 shards"),
        (8, 2, Pattern(9, 4), "leave them whole"),
        (8, 0, FULL, "shards must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_cut_is_said(seq_len, shards, pattern, words):
    with pytest.raises(ValueError, match=words):
        check_shards(seq_len, shards, pattern)


@pytest.mark.parametrize("pattern", [FULL, Pattern(96, 1), Pattern(23, 0, 24)])
def test_shards_that_just_hold_the_pattern_are_fine(pattern):
    check_shards(96, 4, pattern)

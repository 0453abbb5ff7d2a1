"""What the tests of the benchmarks share."""

import pytest
import torch

from benchmarks.attention import AttentionBenchmark
from benchmarks.peers import FORWARD, PEERS, TRAINING, Case


@pytest.fixture(scope="session")
def cpu():
    return torch.device("cpu")


@pytest.fixture(scope="session")
def measured(cpu):
    """(records, skipped) of two lengths and all kinds of peers."""
    peers = {name: PEERS[name] for name in ("split", "dense", "flash", "cudnn")}
    benchmark = AttentionBenchmark(peers, [FORWARD, TRAINING], cpu, rounds=3, memory=False)
    records, skipped = benchmark.measure(Case(1, 32, 2, 8, 10, 3, "float32", "cpu"))
    more, more_skipped = benchmark.measure(Case(1, 64, 2, 8, 10, 3, "float32", "cpu"))
    return records + more, skipped + more_skipped

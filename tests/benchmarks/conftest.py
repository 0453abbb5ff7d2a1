"""What the tests of the benchmarks share."""

import pytest
import torch

from benchmarks import attention
from benchmarks.attention import errors_of, measure_attention
from benchmarks.peers import FORWARD, PEERS, TRAINING, Case


@pytest.fixture(scope="session")
def cpu():
    return torch.device("cpu")


@pytest.fixture(scope="session")
def measured():
    """(records, skipped) of two lengths and all kinds of peers."""
    peers = {name: PEERS[name] for name in ("split", "dense", "flash", "cudnn")}
    cases = [Case(1, seq_len, 2, 8, 10, 3, "float32", "cpu") for seq_len in (32, 64)]
    errors = errors_of(peers, [FORWARD, TRAINING], cases[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "growth_in_child", lambda *job: 7.0)
        (records, skipped), (more, more_skipped) = (
            measure_attention(case, peers, errors, rounds=3) for case in cases
        )
    return records + more, skipped + more_skipped

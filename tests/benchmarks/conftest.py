"""What the tests of the benchmarks share."""

import pytest

from benchmarks.attention import measure_attention
from benchmarks.peers import Case, known_peers
from benchmarks.tables import FORWARD, TRAINING


@pytest.fixture(scope="session")
def measured():
    """(records, skipped) of two lengths and all kinds of peers."""
    known = known_peers("w10-d3")
    peers = {name: known[name] for name in ("split", "dense", "flash", "cudnn")}
    cases = [Case(1, seq_len, 2, 8, "float32", "cpu") for seq_len in (32, 64)]
    (records, skipped), (more, more_skipped) = (
        measure_attention(case, peers, [FORWARD, TRAINING], rounds=3) for case in cases
    )
    return records + more, skipped + more_skipped

"""One new token is exact, and set against what memory can do."""

import pytest

from attention import window_mask
from benchmarks.peers import Case, error_of, known_peers
from benchmarks.tables import ALL_KEYS, ONE_TOKEN
from benchmarks.timing import Unavailable


@pytest.mark.parametrize("name", ["window", "full", "flash", "math"])
@pytest.mark.parametrize("pattern", ["w10-d3", "w10-d0", "w96-d1", "w10-d3-s-f1"])
def test_every_peer_is_exact(name, pattern):
    peer = known_peers(pattern, decode=True)[name]
    assert error_of(peer, Case(2, 64, 2, 8, "float32", "cpu"), ONE_TOKEN) < 1e-5


def test_a_peer_over_other_keys_is_refused():
    full = known_peers("w10-d3", decode=True)["flash"]
    other = full._replace(attends="w10-d3")
    with pytest.raises(Unavailable, match="gives other results than textbook attention"):
        error_of(other, Case(1, 64, 2, 8, "float32", "cpu"), ONE_TOKEN)


@pytest.mark.parametrize(("seq_len", "keys"), [(1, 1), (11, 11), (13, 11), (14, 12), (64, 28)])
def test_a_step_reads_the_keys_and_values_of_the_mask(seq_len, keys):
    case = Case(1, seq_len, 2, 8, "float32", "cpu")
    assert window_mask(seq_len, 10, 3)[-1].sum() == keys
    of_a_key = 2 * 2 * 8 * 4  # keys and values, H2, D8, 4 bytes
    assert case.bytes_read("w10-d3") == keys * of_a_key
    assert case.bytes_read(ALL_KEYS) == seq_len * of_a_key

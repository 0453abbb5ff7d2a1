"""What a step reads of the kept keys, and what it gives, against dense attention."""

import pytest
import torch

from attention.cache import KeyValueCache, decode_kernel
from attention.pattern import Pattern


def test_a_step_reads_the_keys_of_its_pattern_and_copies_none():
    cache = KeyValueCache((2, 3, 8), 200, Pattern(9, 4))
    numbers = torch.randn(2, 2, 200, 3, 8)
    (heads, *_), *_ = cache.groups
    cache.write(*numbers[:, :, :150])
    for slot in range(150, 200):
        cache.write(*numbers[:, :, slot : slot + 1])
        near, far = heads.parts(slot)
        assert near[0].shape[2] == 10 and far[0].shape[2] == (slot - 9) // 4
        for part, store in ((near, heads.near), (far, heads.far)):
            for tensor in part[:2]:
                flat = tensor.flatten(0, 1)  # as the products take them
                assert flat.untyped_storage().data_ptr() == store.untyped_storage().data_ptr()
        expected = numbers[0][:, (slot - 9) % 4 : slot - 9 : 4].transpose(1, 2)
        assert torch.equal(far[0], expected)


@torch._dynamo.config.patch(recompile_limit=20)
def test_a_step_compiles_as_one_graph():
    """From the fourth on with far keys, whose place and residue class vary from step to step."""
    q, k, v = torch.randn(3, 1, 6, 3, 4)
    compiled, eager = (KeyValueCache((1, 3, 4), 6, Pattern(1, 2)) for _ in range(2))

    def step(cache, token):
        cache.write(k[:, token], v[:, token])
        return cache.attend(q[:, token])

    compiled_step = torch.compile(step, backend="eager", fullgraph=True)
    for slot in range(6):
        token = slice(slot, slot + 1)
        torch.testing.assert_close(compiled_step(compiled, token), step(eager, token))


def test_products_take_the_place_of_kernels_that_are_not_there():
    assert decode_kernel(torch.device("cpu"), torch.float32, 8) == "cpu"
    assert decode_kernel(torch.device("meta"), torch.float32, 8) is None
    assert decode_kernel(torch.device("cuda"), torch.float32, 8) is None


@pytest.mark.parametrize("pattern", [Pattern(1, 1), Pattern(3, 2), Pattern(3, 0, 2)])
def test_a_full_cache_is_refused(pattern):
    numbers = torch.randn(2, 1, 21, 1, 4)
    with pytest.raises(ValueError, match="21 tokens do not fit into a cache of 20"):
        KeyValueCache((1, 1, 4), 20, pattern).write(*numbers)
    cache = KeyValueCache((1, 1, 4), 20, pattern)
    cache.write(*numbers[:, :, :20])
    with pytest.raises(ValueError, match="21 tokens do not fit"):
        cache.write(*numbers[:, :, 20:])


def test_a_second_prompt_is_refused():
    cache = KeyValueCache((1, 1, 4), 20, Pattern(3, 2))
    numbers = torch.randn(2, 1, 5, 1, 4)
    cache.write(*numbers)
    with pytest.raises(ValueError, match="one follows at a time, not 5"):
        cache.write(*numbers)
    assert cache.filled == 5

"""What a step reads of the kept keys, and what it gives, against dense attention."""

import pytest
import torch

from attention.cache import KeyValueCache, decode_kernel
from attention.full import dense_attention
from attention.masks import cached_mask
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


@pytest.mark.parametrize("kernel", ["cpu", None])
@pytest.mark.parametrize("pattern", [Pattern(9, 4), Pattern(5, 1), Pattern(7, 0), Pattern(9, 3, 5)])
def test_a_step_by_kernel_or_products_equals_dense_attention(kernel, pattern, monkeypatch):
    monkeypatch.setattr("attention.cache.decode_kernel", lambda *_: kernel)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 120, 3, 8, generator=generator, dtype=torch.float64)
    expected = dense_attention(q, k, v, cached_mask(120, 3, q.device, None, *pattern))
    cache = KeyValueCache((2, 3, 8), 120, pattern, dtype=torch.float64)
    cache.write(k[:, :60], v[:, :60])
    for slot in range(60, 120):
        now = slice(slot, slot + 1)
        cache.write(k[:, now], v[:, now])
        out = cache.attend(q[:, now])
        torch.testing.assert_close(out, expected[:, now], rtol=1e-9, atol=1e-12)


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

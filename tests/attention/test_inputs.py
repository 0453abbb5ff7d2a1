"""What the public functions refuse, in one clear line, and what they promise for odd inputs."""

import math

import numpy as np
import pytest
import torch

from attention import attended_pairs, dense_attention, density, fused_attention
from attention.cache import KeyValueCache
from attention.choose import attention_plan, window_attention
from attention.full import FULL_ATTENTION
from attention.pattern import Pattern, draw_pattern, window_mask
from attention.rotary import rotate

X = torch.randn(1, 8, 4, 6)
MASK = window_mask(8, 3, 2)


def masked(q, k, v):
    return fused_attention(q, k, v, MASK)


def dense(q, k, v):
    return dense_attention(q, k, v, MASK)


def window(q, k, v):
    return window_attention(q, k, v, 3, 2)


@pytest.mark.parametrize("attend", [window, dense, masked, fused_attention])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"q": X[0]}, r"q must be a \(B, S, H, D\) tensor of floats, got torch.float32 \(8, 4, 6"),
        ({"q": X[None]}, r"q must be .* got torch.float32 \(1, 1, 8, 4, 6\)"),
        ({"k": X.long()}, "k must be .* got torch.int64"),
        ({"v": X.numpy()}, "v must be .* got <class 'numpy.ndarray'>"),
        ({"q": X.bfloat16()}, "one dtype and device, got torch.bfloat16 on cpu, torch.float32 on"),
        ({"v": X.to("meta")}, "torch.float32 on cpu, torch.float32 on meta"),
        ({"k": X[:, :5], "v": X[:, :5]}, r"must be alike.*k \(1, 5, 4, 6\), v \(1, 5, 4, 6\)"),
        ({"v": X[:, :5]}, r"must be alike.*v \(1, 5, 4, 6\)"),  # was read beyond its end
        ({"q": X.repeat(1, 2, 1, 1)}, r"must be alike.*q \(1, 16, 4, 6\)"),
        ({"k": X.expand(2, -1, -1, -1)}, r"must be alike.*k \(2, 8, 4, 6\)"),
        ({"k": X[:, :, :3], "v": X[:, :, :3]}, r"divide those of q.*k \(1, 8, 3, 6\)"),
        ({"v": X[..., :3]}, r"must be alike.*v \(1, 8, 4, 3\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(attend, changes, words):
    with pytest.raises(ValueError, match=words):
        attend(**{"q": X, "k": X, "v": X} | changes)


@pytest.mark.parametrize("attend", [dense_attention, fused_attention])
def test_masks_that_do_not_fit_are_named(attend):
    for mask in (MASK[:4], MASK[:, :1], MASK.to("meta")):
        with pytest.raises(ValueError, match=r"for 8 tokens on cpu mask must be \(8, 8\), got"):
            attend(X, X, X, mask)


def test_every_public_function_takes_grouped_queries():
    grouped = [X, X[:, :, :2], X[:, :, 2:]]
    expected = window_attention(*grouped, 3, 2, "dense")
    for attend in (dense, masked):
        torch.testing.assert_close(attend(*grouped), expected)


@pytest.mark.parametrize("attend", [window, dense, masked])
def test_autocast_takes_tensors_of_several_dtypes(attend):
    """As scaled_dot_product_attention does: norms or rotations may leave q and k in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(X, X, X.bfloat16())
        assert torch.equal(found, attend(X.bfloat16(), X.bfloat16(), X.bfloat16()))
        with pytest.raises(ValueError, match="one dtype and device"):
            attend(X, X, X.double())


def test_numbers_of_numpy_are_whole_numbers():
    numbers = np.int64(3), np.uint8(2)
    expected = window_attention(X, X, X, 3, 2, "split", 1, full_heads=1, stagger=True)
    options = {"sink_tokens": np.int32(1), "full_heads": np.int64(1), "stagger": np.True_}
    assert torch.equal(window_attention(X, X, X, *numbers, "split", **options), expected)
    assert torch.equal(window_mask(np.uint8(200), *numbers), window_mask(200, 3, 2))
    assert attended_pairs(np.int32(10**6), np.int32(96), np.int32(4)) == attended_pairs(
        10**6, 96, 4
    )
    assert draw_pattern(np.int8(6), *numbers) == draw_pattern(6, 3, 2)
    assert torch.equal(rotate(X, np.int64(3)), rotate(X, 3))
    cache = KeyValueCache((1, 4, 6), np.int64(8), Pattern(*numbers), n_heads=np.int64(4))
    cache.write(X, X)
    assert cache.attend(X[:, :1]).shape == (1, 1, 4, 6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: window_mask(-1, 3, 2), "seq_len must be at least 0, got -1"),
        (lambda: window_mask(8, 3, 2, phase=1.5), "phase must be a whole number, got 1.5"),
        (lambda: attended_pairs(8.5, 3, 2), "seq_len must be a whole number, got 8.5"),
        (lambda: density(0, 3, 2), "seq_len must be at least 1, got 0"),
        (lambda: draw_pattern("8", 3, 2), "seq_len must be a whole number, got '8'"),
        (lambda: attention_plan(-4, Pattern(3, 2), 2), "seq_len must be at least 0, got -4"),
        (lambda: attention_plan(8, Pattern(3, 2), 0), "n_heads must be at least 1, got 0"),
        (lambda: rotate(X[0]), r"x must be a \(B, S, H, D\) tensor of floats, got torch.float32"),
        (lambda: rotate(X.long()), r"x must be .* got torch.int64 \(1, 8, 4, 6\)"),
        (lambda: rotate(X, -1), "first_position must be at least 0, got -1"),
        (lambda: rotate(X, 1.5), "first_position must be a whole number, got 1.5"),
        (lambda: KeyValueCache((1, 4, 6), -1, Pattern(3, 2)), "length must be at least 0, got -1"),
        (
            lambda: KeyValueCache((1, 4, 6), 8, Pattern(3, 2), n_heads=0),
            "n_heads must be at least 1, got 0",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("tokens", [5, 1])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:1],  # one batch for two and one head for four were spread over all
        lambda x: x[:, :, :1],
        lambda x: x[..., :1],
        lambda x: x.repeat(1, 1, 2, 1),  # the second half was dropped
        lambda x: x.double(),
        lambda x: x.to("meta"),
        lambda x: x[0],
    ],
)
def test_a_cache_refuses_keys_values_and_queries_of_another_kind(change, tokens):
    cache = KeyValueCache((2, 4, 6), 8, Pattern(3, 2))
    x = torch.randn(2, tokens, 4, 6)
    for k, v, name in ((change(x), x, "k"), (x, change(x), "v")):
        with pytest.raises(ValueError, match=rf"cache {name} must be \(2, .*float32 on cpu, got"):
            cache.write(k, v)
    assert cache.filled == 0
    cache.write(x, x)
    # more heads were read beyond the end, fewer ended the process
    for q in (change(x[:, :1]), torch.randn(2, 2, 4, 6), torch.randn(2, 1, 3, 6)):
        with pytest.raises(ValueError, match=r"cache q must be \(2, 1, 4, 6\) torch.float32 on"):
            cache.attend(q)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("evaluation", ["dense", "masked", "split"])
def test_what_is_not_finite_stays_in_its_head_and_makes_no_wrong_number(evaluation, which, value):
    """Queries that may not attend to the key have their own result or none, never another."""
    tensors = {name: torch.randn(2, 300, 2, 8) for name in "qkv"}
    expected = window_attention(**tensors, window_size=20, dilation=4, evaluation=evaluation)
    tensors[which][0, 100, 0] = value
    out = window_attention(**tensors, window_size=20, dilation=4, evaluation=evaluation)
    sees = window_mask(300, 20, 4)[:, 100]
    others = out[0, ~sees, 0]
    as_before = (others == expected[0, ~sees, 0]).all(-1)
    assert (as_before | ~others.isfinite().all(-1)).all()
    assert as_before.all() or (evaluation, which) != ("dense", "k")
    out[0, :, 0] = expected[0, :, 0]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("evaluation", ["dense", "masked", "split"])
def test_dense_alone_has_second_derivatives(evaluation):
    q = X.clone().requires_grad_()
    out = window_attention(q, X, X, 3, 2, evaluation)

    def second():
        (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        return torch.autograd.grad(first.square().sum(), q)[0]

    if evaluation == "dense":
        assert second().isfinite().all()
    else:
        words = "no second derivative: choose dense" if evaluation == "split" else "derivative for"
        with pytest.raises(RuntimeError, match=words):
            second()


def test_the_plan_of_a_dtype_without_measurements_says_so():
    def reason(dtype, device):
        return attention_plan(4096, Pattern(96, 4), 2, dtype, device).reason

    assert reason(torch.float16, "cpu") == "split was not measured for float16 on cpu"
    assert reason(torch.float64, "cuda") == "split has no kernel for float64 on cuda"


class Exported(torch.nn.Module):
    def __init__(self, evaluation):
        super().__init__()
        self.evaluation = evaluation

    def forward(self, q, k, v):
        return window_attention(q, k, v, 3, 2, self.evaluation)


@pytest.mark.parametrize("evaluation", ["dense", "masked", "split"])
def test_an_exported_program_has_gradients_or_says_what_has(evaluation):
    k, v = torch.randn(2, *X.shape)
    program = torch.export.export(Exported(evaluation), (X, k, v)).module()
    q = X.clone().requires_grad_()
    out = program(q, k, v)
    torch.testing.assert_close(out, window(q, k, v))
    if evaluation == "split":
        with pytest.raises(RuntimeError, match="no gradients: export dense or masked"):
            out.sum().backward()
    else:
        out.sum().backward()
        assert q.grad.norm() > 0


def test_full_attention_with_a_kept_mask_compiles_for_lengths_that_vary():
    torch.compiler.reset()
    attend = FULL_ATTENTION["dense"]
    compiled = torch.compile(attend, dynamic=True, fullgraph=True, backend="aot_eager")
    for x in (X, torch.randn(1, 21, 4, 6)):
        torch.testing.assert_close(compiled(x, x, x), attend(x, x, x))

"""Every evaluation against attention by hand; what ``auto`` takes; compiled as one graph."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.choose import attention_plan, window_attention
from attention.full import FULL_ATTENTION
from attention.kept import constant_of_a_graph
from attention.kernels import KERNELS
from attention.pattern import Pattern
from attention.split import _split_kernels

CPU_KERNEL = KERNELS["cpu"]
COMPILED = {"dtype": torch.bfloat16, "device": "cuda", "compiled": True}
ON_CPU = ("auto", "dense", "masked", "split")


def attention_by_hand(q, k, v, allowed):
    """Softmax attention in float64, one query at a time over the list of its keys."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    for query, row in enumerate(allowed):
        keys = [key for key, kept in enumerate(row) if kept]
        scores = torch.einsum("bhd,bkhd->bhk", q[:, query], k[:, keys]) / math.sqrt(q.shape[-1])
        out[:, query] = torch.einsum("bhk,bkhd->bhd", scores.softmax(-1), v[:, keys])
    return out


def check_by_hand(attend, qkv, allowed):
    """The output and the gradients of ``attend(q, k, v)``."""
    exact = qkv.detach().double().requires_grad_()
    out, reference = attend(*qkv.unbind(2)), attention_by_hand(*exact.unbind(2), allowed)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    reference.backward(upstream.double())
    assert (out - reference).norm() < 1e-5 * reference.norm()
    for found, expected in zip(qkv.grad.unbind(2), exact.grad.unbind(2), strict=True):
        # a single token has one key, so its dq and dk are exactly 0
        assert (found - expected).norm() < 1e-4 * expected.norm() + 1e-5


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(0, 45), st.integers(0, 45)),  # S, w, d
    st.one_of(st.just(0), st.integers(1, 45)),
    st.sampled_from(ON_CPU),
    st.integers(0, 2**31),
)
def test_every_evaluation_equals_attention_by_hand(
    pattern_by_hand, random_qkv, pattern, sinks, evaluation, seed
):
    seq_len, *window_and_dilation = pattern
    allowed, *_ = pattern_by_hand(*pattern, sinks)
    qkv = random_qkv(2, seq_len, 2, 5, seed=seed)
    check_by_hand(
        lambda q, k, v: window_attention(q, k, v, *window_and_dilation, evaluation, sinks),
        qkv,
        allowed,
    )


@pytest.mark.parametrize("name", FULL_ATTENTION)
def test_full_attention_equals_attention_by_hand(pattern_by_hand, random_qkv, name):
    allowed, *_ = pattern_by_hand(19, 19, 0)
    check_by_hand(FULL_ATTENTION[name], random_qkv(2, 19, 3, 4), allowed)


@pytest.mark.parametrize("evaluation", ON_CPU)
def test_a_window_as_long_as_the_sequence_is_full_attention(random_qkv, evaluation):
    q, k, v = random_qkv(2, 24, 2, 8).unbind(2)
    full = FULL_ATTENTION["fused"](q, k, v)
    for window_size, dilation in ((24, 3), (23, 0), (1, 1), (500, 0)):
        out = window_attention(q, k, v, window_size, dilation, evaluation)
        torch.testing.assert_close(out, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("evaluation", ON_CPU)
def test_only_keys_inside_the_pattern_matter(pattern_by_hand, random_qkv, evaluation, sinks):
    """Within one layer: each key in turn is changed, and exactly the rows that see it move."""
    seq_len, window_size, dilation = 23, 4, 3
    q, k, v = (x.detach() for x in random_qkv(1, seq_len, 2, 6).unbind(2))
    before = window_attention(q, k, v, window_size, dilation, evaluation, sinks)
    allowed, *_ = pattern_by_hand(seq_len, window_size, dilation, sinks)
    for key in range(seq_len):
        moved_k, moved_v = k.clone(), v.clone()
        moved_k[:, key] += 3
        moved_v[:, key] -= 5
        after = window_attention(q, moved_k, moved_v, window_size, dilation, evaluation, sinks)
        changed = (after != before).flatten(2).any(-1)[0].tolist()
        assert changed == [row[key] for row in allowed]


@pytest.mark.parametrize(
    ("seq_len", "pattern", "options", "evaluation"),
    [
        (4096, Pattern(96, 4), {}, "split"),
        (4096, Pattern(96, 0), {}, "split"),
        (4096, Pattern(96, 4, full_heads=1, stagger=True), {}, "split"),
        (64, Pattern(16, 4), {}, "masked"),
        (4096, Pattern(96, 4), {"dtype": torch.bfloat16, "device": "cuda"}, "split"),
        (4096, Pattern(96, 4), {"dtype": torch.float64, "device": "cuda"}, "masked"),
        (4096, Pattern(96, 1), {}, "masked"),
        (4096, Pattern(96, 4, full_heads=2), {}, "masked"),
        (4096, Pattern(5000, 4), {}, "masked"),
        (4096, Pattern(2000, 4), {}, "masked"),
        (4096, Pattern(96, 4, 256), {}, "split"),
        (4096, Pattern(96, 4, 257), {}, "masked"),
        (4096, Pattern(96, 0, full_heads=1), COMPILED, "flex"),
        (2**17, Pattern(96, 0, full_heads=1), COMPILED, "split"),
        (4096, Pattern(96, 0), COMPILED | {"head_dim": 8}, "split"),
        (2048, Pattern(96, 4, stagger=True), COMPILED, "flex"),
        (2048, Pattern(96, 4), COMPILED, "split"),
        (1024, Pattern(96, 4), COMPILED, "flex"),
        (4096, Pattern(96, 4), COMPILED, "split"),
        (4096, Pattern(96, 0), COMPILED | {"compiled": False}, "split"),
        (4096, Pattern(96, 0), COMPILED | {"dtype": torch.float32}, "split"),
    ],
)
def test_the_plan_names_its_choice_and_why(seq_len, pattern, options, evaluation):
    plan = attention_plan(seq_len, pattern, 2, **options)
    assert plan.evaluation == evaluation and plan.reason


def test_wrong_arguments_are_named():
    q = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ValueError, match=r"unknown window attention 'flash'.*dense, masked"):
        window_attention(q, q, q, 4, 2, "flash")
    with pytest.raises(ValueError, match="window_size must be at least 0, got -1"):
        window_attention(q, q, q, -1, 2)
    with pytest.raises(ValueError, match="flex attention needs CUDA, not cpu"):
        window_attention(q, q, q, 4, 2, "flex")


def raising(*_):
    raise TypeError("another signature")


def one_percent_more(*arguments):
    out, lse = CPU_KERNEL.forward(*arguments)
    return 1.01 * out, lse


@pytest.mark.parametrize("forward", [raising, one_percent_more])
def test_a_kernel_that_does_not_work_warns_once_and_masked_takes_its_place(
    random_qkv, monkeypatch, forward
):
    monkeypatch.setitem(KERNELS, "cpu", CPU_KERNEL._replace(forward=forward))
    _split_kernels.clear()
    q, k, v = random_qkv(1, 600, 1, 4).unbind(2)
    with pytest.warns(UserWarning, match="split attention does not work here") as warned:
        for _ in range(2):
            out = window_attention(q, k, v, 5, 3)
    assert len(warned) == 1
    assert torch.equal(out, window_attention(q, k, v, 5, 3, "masked"))
    with pytest.raises(ValueError, match=r"no kernel for torch.float32 with head_dim 4 on cpu"):
        window_attention(q, k, v, 5, 3, "split")
    _split_kernels.clear()


@pytest.mark.parametrize(
    ("backend", "evaluation", "batch", "seq_len", "sinks"),
    [
        ("aot_eager", "auto", 1, 17, 0),
        ("aot_eager", "dense", 1, 17, 2),
        ("aot_eager", "masked", 2, 24, 2),
        ("inductor", "split", 1, 17, 0),  # all residue classes are equally long
        ("aot_eager", "split", 1, 24, 0),
        ("aot_eager", "split", 2, 3, 0),  # no far keys
        ("inductor", "split", 2, 20, 3),
        ("aot_eager", "split", 1, 7, 9),  # no far keys, more sinks than tokens
    ],
)
def test_works_compiled_as_one_graph(random_qkv, backend, evaluation, batch, seq_len, sinks):
    def gradients_of(attend, qkv):
        out = attend(*qkv, 5, 3, evaluation, sinks)
        upstream = torch.linspace(-1, 1, out.numel()).view_as(out)
        return out, *torch.autograd.grad(out, qkv, upstream)

    torch.compiler.reset()  # it counts what it compiled of window_attention before
    options = {"fullgraph": True, "dynamic": False, "backend": backend}
    compiled = torch.compile(window_attention, **options)
    fused = random_qkv(batch, seq_len, 2, 8).unbind(2)
    for qkv in (fused, [x.detach().clone().requires_grad_() for x in fused]):
        found, expected = gradients_of(compiled, qkv), gradients_of(window_attention, qkv)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_sinks_compile_in_bfloat16_and_in_autocast(random_qkv):
    """Inside autocast the sinks' products would be rounded to 16 bits were it not switched off."""
    torch.compiler.reset()
    compiled = torch.compile(window_attention, fullgraph=True, backend="aot_eager")
    qkv = random_qkv(1, 300, 2, 16).detach().bfloat16().requires_grad_()
    exact = qkv.detach().double().requires_grad_()

    def results(attend, x, evaluation="split"):
        out = attend(*x.unbind(2), 10, 0, evaluation, 8)
        return out, torch.autograd.grad(out, x, torch.ones_like(out))[0]

    reference = results(window_attention, exact, "dense")
    plain = results(window_attention, qkv)
    with torch.autocast("cpu", torch.bfloat16):
        eager, fused = results(window_attention, qkv), results(compiled, qkv)
    assert eager[0].dtype == fused[0].dtype == torch.bfloat16
    assert all(map(torch.equal, eager, plain))
    for found, expected in zip((*eager, *fused), reference * 2, strict=True):
        assert (found - expected).norm() < 5e-3 * expected.norm()


def test_the_mark_is_the_compilers():
    theirs = torch.compiler.assume_constant_result(lambda: 0)
    assert vars(constant_of_a_graph(lambda: 0)) == vars(theirs) != {}

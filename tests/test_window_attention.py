"""The pattern against a literal double loop; its evaluations against float64 attention."""

import math
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attention.choose import EVALUATIONS, attention_plan, window_attention
from attention.full import FULL_ATTENTION
from attention.masks import cached_window_mask, clear_mask_cache, constant_of_a_graph
from attention.pattern import (
    attended_pairs,
    causal_pairs,
    density,
    draw_pattern,
    is_full_causal,
    may_attend,
    near_far_pairs,
    sink_pairs,
    window_mask,
)
from attention.split import _split_kernels
from gpt_win import GPTWindowModel

PATTERN = st.tuples(st.integers(1, 40), st.integers(1, 45), st.integers(0, 45))  # S, w, d
SINKS = st.one_of(st.just(0), st.integers(1, 45))


def pattern_by_hand(seq_len, window_size, dilation, sink_tokens=0):
    """The keys of every query, written out from the words of the definition.

    Also returns how many pairs are near, far and, beside them, sinks.
    """
    allowed = [[False] * seq_len for _ in range(seq_len)]
    near, far, sinks = 0, 0, 0
    for query in range(seq_len):
        for key in range(max(0, query - window_size), query + 1):
            allowed[query][key] = True
            near += 1
        if dilation:
            key = query - window_size - dilation
            while key >= 0:
                far += not allowed[query][key]
                allowed[query][key] = True
                key -= dilation
        for key in range(min(sink_tokens, query + 1)):
            sinks += not allowed[query][key]
            allowed[query][key] = True
    return allowed, near, far, sinks


def attention_by_hand(q, k, v, allowed):
    """Softmax attention in float64, one query at a time over the list of its keys."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    for query, row in enumerate(allowed):
        keys = [key for key, kept in enumerate(row) if kept]
        scores = torch.einsum("bhd,bkhd->bhk", q[:, query], k[:, keys]) / math.sqrt(q.shape[-1])
        out[:, query] = torch.einsum("bhk,bkhd->bhd", scores.softmax(-1), v[:, keys])
    return out


def random_qkv(batch, seq_len, heads, head_dim, dtype=torch.float32, seed=0):
    """Views of one fused projection, (B, S, H, D) each, as the models make them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, seq_len, 3, heads, head_dim)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def relative_error(value, reference):
    return ((value.double() - reference).norm() / reference.norm()).item()


@settings(max_examples=300, deadline=None)
@given(PATTERN, SINKS)
def test_mask_and_counts_equal_a_literal_double_loop(pattern, sink_tokens):
    allowed, near, far, sinks = pattern_by_hand(*pattern, sink_tokens)
    assert window_mask(*pattern, sink_tokens=sink_tokens).tolist() == allowed
    assert near_far_pairs(*pattern) == (near, far)
    assert sink_pairs(*pattern, sink_tokens) == sinks
    assert attended_pairs(*pattern, sink_tokens) == near + far + sinks
    whole = near + far + sinks == causal_pairs(pattern[0])
    assert is_full_causal(*pattern, sink_tokens) == whole
    assert density(*pattern, sink_tokens) == (near + far + sinks) / causal_pairs(pattern[0])


@pytest.mark.parametrize("dilation", [0, 1, 2, 7, 30])
@pytest.mark.parametrize("window_size", [1, 3, 16, 17, 40])
def test_mask_of_named_cases(window_size, dilation):
    for seq_len in (1, 2, window_size, window_size + 1, 17):
        allowed, *_ = pattern_by_hand(seq_len, window_size, dilation)
        assert window_mask(seq_len, window_size, dilation).tolist() == allowed


def test_published_count():
    assert attended_pairs(256, 96, 4) == int(window_mask(256, 96, 4).sum()) == 23_296
    assert causal_pairs(256) == 32_896
    assert density(256, 96, 4) == pytest.approx(0.7082, abs=5e-5)


def test_dilation_one_is_full_and_zero_is_the_pure_window():
    full = torch.ones(33, 33, dtype=torch.bool).tril()
    assert torch.equal(window_mask(33, 5, 1), full)
    assert torch.equal(window_mask(33, 32, 0), full)
    assert torch.equal(window_mask(33, 5, 0), full & torch.ones_like(full).triu(-5))
    assert is_full_causal(33, 5, 1) and is_full_causal(33, 32, 0) and not is_full_causal(33, 31, 0)


def test_counts_of_a_long_sequence_need_no_mask():
    near, far = near_far_pairs(10**9, 96, 4)
    assert near == 97 * 10**9 - 96 * 97 // 2
    assert far == sum((n // 4) for n in range(4)) + 4 * (q := (10**9 - 96) // 4) * (q - 1) // 2


def test_one_definition_for_integers_and_arrays():
    mask = window_mask(20, 3, 4)
    assert all(may_attend(i, j, 3, 4) == mask[i, j] for i in range(20) for j in range(20))


LONG_PATTERN = st.tuples(st.integers(1, 420), st.integers(1, 150), st.integers(0, 30))


def relative_errors(window_size, dilation, qkv, evaluation, sink_tokens=0):
    """Errors of the output and of the gradients of q, k, v against dense attention in float64."""
    qkv = qkv.detach().requires_grad_()
    reference_qkv = qkv.detach().double().requires_grad_()
    upstream = torch.randn_like(qkv[:, :, 0])
    out = window_attention(*qkv.unbind(2), window_size, dilation, evaluation, sink_tokens)
    out.backward(upstream)
    pattern = window_size, dilation, "dense", sink_tokens
    reference = window_attention(*reference_qkv.unbind(2), *pattern)
    reference.backward(upstream.double())
    # queries and keys of a single token have no gradient but rounding: v's then gives the scale
    least = 0.1 * reference_qkv.grad.norm()
    errors = [relative_error(out, reference)]
    for value, expected in zip(qkv.grad.unbind(2), reference_qkv.grad.unbind(2), strict=True):
        errors.append(((value - expected).norm() / expected.norm().clamp_min(least)).item())
    return errors


@settings(max_examples=60, deadline=None)
@given(LONG_PATTERN, st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(0, 99))
def test_split_equals_dense_in_float64(pattern, batch, heads, head_dim, seed):
    seq_len, window_size, dilation = pattern
    qkv = random_qkv(batch, seq_len, heads, head_dim, seed=seed)
    assert max(relative_errors(window_size, dilation, qkv, "split")) < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    LONG_PATTERN,
    st.one_of(st.integers(1, 8), st.integers(9, 500)),
    st.integers(1, 2),
    st.integers(1, 40),
    st.integers(0, 99),
)
@example((1, 1, 0), 3, 1, 4, 0)
@example((150, 9, 5), 400, 2, 8, 0)  # more sinks than tokens
@example((150, 9, 5), 30, 2, 8, 0)  # more sinks than near keys
@example((333, 20, 0), 4, 2, 7, 0)
@example((333, 20, 1), 4, 2, 7, 0)
@example((60, 40, 25), 4, 2, 8, 0)  # no far keys
@example((41, 40, 25), 4, 2, 8, 0)  # all keys near
@example((42, 40, 25), 4, 2, 8, 0)  # a single pair is a sink's alone
def test_split_with_sinks_equals_dense_in_float64(pattern, sinks, batch, head_dim, seed):
    seq_len, window_size, dilation = pattern
    qkv = random_qkv(batch, seq_len, 2, head_dim, seed=seed)
    assert max(relative_errors(window_size, dilation, qkv, "split", sinks)) < 1e-5


@pytest.mark.parametrize("dilation", [0, 3, 16])
@pytest.mark.parametrize("window_size", [1, 64, 96, 300])
def test_split_of_long_sequences(window_size, dilation):
    """Several chunks, a rest, residue classes of both lengths; wide windows have other chunks."""
    qkv = random_qkv(2, 1001, 2, 8, seed=window_size)
    assert max(relative_errors(window_size, dilation, qkv, "split")) < 1e-5


@pytest.mark.parametrize("sinks", [0, 1, 4, 64])
@pytest.mark.parametrize("pattern", [(48, 4), (10, 1), (200, 16), (10, 0)])
def test_split_in_bfloat16_is_as_good_as_full_attention(pattern, sinks):
    """Few near keys against many far ones (10, 1) show a weight that is rounded to 16 bits."""
    qkv = random_qkv(1, 700, 2, 64).detach().bfloat16().requires_grad_()
    errors = relative_errors(*pattern, qkv, "split", sinks)
    full = relative_errors(700, 4, qkv, "masked")
    assert max(errors) < 1e-2
    assert all(mine < 1.5 * other for mine, other in zip(errors, full, strict=True))


@pytest.mark.parametrize("sinks", [0, 3])
def test_split_gradients_by_finite_differences(sinks):
    q, k, v = random_qkv(1, 90, 1, 2, dtype=torch.float64).unbind(2)
    for function in (
        lambda x: window_attention(x, k.detach(), v.detach(), 5, 7, "split", sinks),
        lambda x: window_attention(q.detach(), x, v.detach(), 5, 7, "split", sinks),
        lambda x: window_attention(q.detach(), k.detach(), x, 5, 7, "split", sinks),
    ):
        assert torch.autograd.gradcheck(function, q.detach().clone().requires_grad_())


def layouts(x):
    """The same values (B, S, H, D) under other strides."""
    yield x
    yield x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)  # (B, H, S, D) in memory
    yield x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)  # D is not the last in memory
    yield torch.stack([x, x], dim=1)[:, 1]
    yield x[:1].expand_as(x) if torch.equal(x[:1].expand_as(x), x) else x


@pytest.mark.parametrize("sinks", [0, 3])
def test_split_takes_any_layout(sinks):
    x = torch.randn(1, 200, 2, 8).repeat(2, 1, 1, 1)
    expected = window_attention(x, x, x, 30, 4, "dense", sinks)
    for layout in layouts(x):
        out = window_attention(layout, layout, layout, 30, 4, "split", sinks)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sinks", [0, 8])
@pytest.mark.parametrize("case", ["huge", "one key", "equal"])
def test_split_survives_extreme_logits(case, sinks):
    qkv = random_qkv(1, 300, 2, 16).detach()
    if case == "huge":
        qkv[:, :, :2] *= 100  # logits of the order of 1e4
    elif case == "one key":
        qkv[:, 7, 1] *= 1e4
    else:
        qkv[:, :, :2] = 1.0
    qkv.requires_grad_()
    out = window_attention(*qkv.unbind(2), 20, 5, "split", sinks)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(qkv.grad).all()
    reference = window_attention(*qkv.detach().double().unbind(2), 20, 5, "dense", sinks)
    torch.testing.assert_close(out.double(), reference, rtol=1e-3, atol=1e-4)


def test_split_reads_nothing_beyond_the_sequence():
    """NaN around a slice of a longer tensor reach neither the output nor the gradients."""
    surroundings = torch.full((1, 400, 3, 2, 8), float("nan"))
    surroundings[:, 50:301] = torch.randn(1, 251, 3, 2, 8)
    qkv = surroundings.requires_grad_()
    out = window_attention(*qkv[:, 50:301].unbind(2), 20, 6, "split", 4)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(qkv.grad).all()
    assert not qkv.grad[:, :50].any() and not qkv.grad[:, 301:].any()


def test_split_repeats_bitwise_and_works_without_gradients():
    qkv = random_qkv(2, 333, 2, 8)
    outs, gradients = [], []
    for _ in range(2):
        out = window_attention(*qkv.unbind(2), 40, 4, "split")
        gradients.append(torch.autograd.grad(out.square().sum(), qkv)[0])
        outs.append(out)
    assert torch.equal(*outs) and torch.equal(*gradients)
    with torch.no_grad():
        assert torch.equal(window_attention(*qkv.unbind(2), 40, 4, "split"), outs[0])


def test_split_has_no_second_derivative_and_says_so():
    q, k, v = random_qkv(1, 30, 1, 4).unbind(2)
    out = window_attention(q, k, v, 5, 3, "split", 2)
    gradient = torch.autograd.grad(out.sum(), q, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative: choose dense"):
        gradient.sum().backward()


def test_split_never_holds_a_square_of_the_sequence():
    """Forward and backward at 65,536 tokens in a process of its own, by its peak memory."""
    code = """
import resource, torch
from attention import window_attention
torch.set_num_threads(2)
qkv = torch.randn(1, 65536, 3, 1, 16, requires_grad=True)
window_attention(*qkv.unbind(2), 96, 64, "split", 4).sum().backward()
assert torch.isfinite(qkv.grad).all()
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # (65,536)^2 bits alone would be 0.5 GB and a float32 square 17 GB
    assert float(done.stdout) < 1.0


def test_training_with_split_and_with_dense_gives_the_same_losses():
    losses = []
    for attention in ("dense", "split"):
        torch.manual_seed(0)
        # float64, for AdamW turns rounding of tiny gradients into steps of full length
        model = GPTWindowModel(16, 2, 2, 20, 200, 10, 3, attention, dropout=0.0).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(1)
        losses.append([])
        for _ in range(50):
            start = torch.randint(20, (2, 1), generator=generator)
            tokens = (start + torch.arange(201)) % 20
            logits = model(tokens[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] < 0.5 * losses[0][0]


@pytest.mark.parametrize(
    ("arguments", "evaluation"),
    [
        ((4096, 96, 4), "split"),
        ((4096, 96, 0), "split"),
        ((64, 16, 4), "masked"),
        ((4096, 96, 4, torch.bfloat16, "cuda"), "split"),
        ((4096, 96, 4, torch.float64, "cuda"), "masked"),
        ((4096, 96, 1), "masked"),
        ((4096, 5000, 4), "masked"),
        ((4096, 2000, 4), "masked"),
        ((4096, 96, 4, torch.float32, "cpu", 4), "split"),
        ((4096, 96, 4, torch.float32, "cpu", 256), "split"),
        ((4096, 96, 4, torch.float32, "cpu", 257), "masked"),
    ],
)
def test_the_plan_names_its_choice_and_why(arguments, evaluation):
    plan = attention_plan(*arguments)
    assert plan.evaluation == evaluation and plan.reason


@settings(max_examples=60, deadline=None)
@given(
    PATTERN,
    SINKS,
    st.sampled_from([e for e in EVALUATIONS if e != "auto"]),
    st.integers(0, 2**31),
)
def test_every_evaluation_equals_attention_by_hand_with_gradients(pattern, sinks, evaluation, seed):
    seq_len, window_size, dilation = pattern
    allowed, *_ = pattern_by_hand(*pattern, sinks)
    qkv = random_qkv(2, seq_len, 2, 5, seed=seed)
    out = window_attention(*qkv.unbind(2), window_size, dilation, evaluation, sinks)
    reference_qkv = qkv.detach().double().requires_grad_()
    reference = attention_by_hand(*reference_qkv.unbind(2), allowed)
    assert relative_error(out, reference) < 1e-5
    upstream = torch.randn_like(out)
    out.backward(upstream)
    reference.backward(upstream.double())
    for name, gradient, expected in zip(
        "qkv", qkv.grad.unbind(2), reference_qkv.grad.unbind(2), strict=True
    ):
        # a single token has one key, so its dq and dk are exactly 0
        if expected.norm() > 1e-12:
            assert relative_error(gradient, expected) < 1e-4, name
        else:
            assert gradient.norm() < 1e-5, name


@pytest.mark.parametrize("name", FULL_ATTENTION)
def test_full_attention_by_hand_with_gradients(name):
    qkv = random_qkv(2, 19, 3, 4)
    reference_qkv = qkv.detach().double().requires_grad_()
    out = FULL_ATTENTION[name](*qkv.unbind(2))
    reference = attention_by_hand(*reference_qkv.unbind(2), pattern_by_hand(19, 19, 0)[0])
    out.sum().backward()
    reference.sum().backward()
    assert relative_error(out, reference) < 1e-6
    assert relative_error(qkv.grad, reference_qkv.grad) < 1e-5


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_a_window_as_long_as_the_sequence_is_full_attention(evaluation):
    q, k, v = random_qkv(2, 24, 2, 8).unbind(2)
    full = FULL_ATTENTION["fused"](q, k, v)
    for window_size, dilation in ((24, 3), (23, 0), (1, 1), (500, 0)):
        out = window_attention(q, k, v, window_size, dilation, evaluation)
        torch.testing.assert_close(out, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_only_keys_inside_the_pattern_matter(evaluation, sinks):
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
    ("evaluation", "batch", "seq_len", "sinks"),
    [
        ("auto", 1, 17, 0),
        ("dense", 1, 17, 2),
        ("masked", 2, 24, 2),
        ("split", 1, 17, 0),  # all residue classes are equally long
        ("split", 1, 24, 0),
        ("split", 2, 20, 0),
        ("split", 2, 3, 0),  # no far keys
        ("split", 2, 20, 3),
        ("split", 1, 7, 9),  # no far keys, more sinks than tokens
    ],
)
def test_works_compiled_as_one_graph(evaluation, batch, seq_len, sinks):
    def gradients_of(attend, qkv):
        out = attend(*qkv, 5, 3, evaluation, sinks)
        upstream = torch.linspace(-1, 1, out.numel()).view_as(out)
        return out, *torch.autograd.grad(out, qkv, upstream)

    torch.compiler.reset()  # it counts what it compiled of window_attention before
    compiled = torch.compile(window_attention, fullgraph=True, dynamic=False)
    fused = random_qkv(batch, seq_len, 2, 8).unbind(2)
    for qkv in (fused, [x.detach().clone().requires_grad_() for x in fused]):
        for mine, expected in zip(
            gradients_of(compiled, qkv), gradients_of(window_attention, qkv), strict=True
        ):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


def test_the_compilers_mark_is_set_without_loading_the_compiler():
    theirs = torch.compiler.assume_constant_result(lambda: 0)
    assert vars(constant_of_a_graph(lambda: 0)) == vars(theirs) != {}
    code = "import sys, compare_models, generate; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_sinks_compile_in_bfloat16_and_in_autocast():
    """Inside autocast the sinks' products would be rounded to 16 bits were it not switched off."""
    torch.compiler.reset()
    compiled = torch.compile(window_attention, fullgraph=True, dynamic=False)
    qkv = random_qkv(1, 300, 2, 16).detach().bfloat16().requires_grad_()
    errors = {}
    for name, attend in (("eager", window_attention), ("compiled", compiled)):
        with torch.autocast("cpu", torch.bfloat16):
            out = attend(*qkv.unbind(2), 10, 0, "split", 8)
            assert out.dtype == torch.bfloat16
            gradient = torch.autograd.grad(out, qkv, torch.ones_like(out))[0]
        exact = qkv.detach().double().requires_grad_()
        reference = window_attention(*exact.unbind(2), 10, 0, "dense", 8)
        expected = torch.autograd.grad(reference, exact, torch.ones_like(reference))[0]
        errors[name] = relative_error(out, reference), relative_error(gradient, expected)
    out = window_attention(*qkv.unbind(2), 10, 0, "split", 8)
    gradient = torch.autograd.grad(out, qkv, torch.ones_like(out))[0]
    assert errors["eager"] == (relative_error(out, reference), relative_error(gradient, expected))
    assert max(*errors["eager"], *errors["compiled"]) < 5e-3


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_what_is_kept_from_a_call_without_gradients_serves_a_training(evaluation):
    clear_mask_cache()
    _split_kernels.cache_clear()  # they are tried with gradients
    qkv = random_qkv(1, 40, 1, 4)
    with torch.inference_mode():
        expected = window_attention(*qkv.unbind(2), 5, 3, evaluation)
    out = window_attention(*qkv.unbind(2), 5, 3, evaluation)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    assert qkv.grad.norm() > 0


def test_sinks_that_no_query_needs_cost_nothing(monkeypatch):
    """Without a pair that only a sink keeps the third part is not computed at all."""
    monkeypatch.setattr("attention.sinks._sink_products", None)
    q, k, v = random_qkv(1, 30, 1, 4).unbind(2)
    for window_size, dilation, sinks in ((5, 3, 0), (5, 1, 4), (29, 3, 4), (60, 0, 4)):
        window_attention(q, k, v, window_size, dilation, "split", sinks).sum().backward()
    with pytest.raises(TypeError):
        window_attention(q, k, v, 28, 3, "split", 4)


def test_masks_are_shared_until_the_cache_is_cleared():
    device = torch.device("cpu")
    mask = cached_window_mask(12, 3, 2, device)
    assert cached_window_mask(12, 3, 2, device) is mask
    assert cached_window_mask(12, 3, 2, device, 1).sum() > mask.sum()
    clear_mask_cache()
    assert cached_window_mask(12, 3, 2, device) is not mask


@pytest.mark.parametrize(
    ("window_size", "dilation", "sinks", "words"),
    [
        (0, 4, 0, "window_size must be at least 1, got 0"),
        (-3, 4, 0, "window_size must be at least 1, got -3"),
        (96, -1, 0, "dilation must be at least 0, got -1"),
        (9.5, 4, 0, "window_size must be a whole number, got 9.5"),
        (96, True, 0, "dilation must be a whole number, got True"),
        (96, 4, -1, "sink_tokens must be at least 0, got -1"),
        (96, 4, 1.0, "sink_tokens must be a whole number, got 1.0"),
    ],
)
def test_a_wrong_pattern_is_named(window_size, dilation, sinks, words):
    q = torch.zeros(1, 2, 1, 4)
    for call in (
        lambda: window_mask(8, window_size, dilation, sink_tokens=sinks),
        lambda: attended_pairs(8, window_size, dilation, sinks),
        lambda: window_attention(q, q, q, window_size, dilation, sink_tokens=sinks),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_an_unknown_evaluation_is_named():
    q = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ValueError, match=r"unknown window attention 'flash'.*dense, masked"):
        window_attention(q, q, q, 4, 2, "flash")


def test_the_drawing_shows_the_pattern():
    assert draw_pattern(6, 1, 2).splitlines() == [
        "#",
        "# #",
        ". # #",
        "o . # #",
        ". o . # #",
        "o . o . # #",
    ]
    assert draw_pattern(6, 1, 2, 1).splitlines() == [
        "#",
        "# #",
        "s # #",
        "o . # #",
        "s o . # #",
        "o . o . # #",
    ]

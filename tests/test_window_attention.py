"""The pattern against a literal double loop; its evaluations against float64 attention."""

import math
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import FULL_ATTENTION
from gpt_win import GPTWindowModel
from window_attention import (
    EVALUATIONS,
    attended_pairs,
    attention_plan,
    cached_window_mask,
    causal_pairs,
    clear_mask_cache,
    density,
    draw_pattern,
    is_full_causal,
    may_attend,
    near_far_pairs,
    window_attention,
    window_mask,
)

PATTERN = st.tuples(st.integers(1, 40), st.integers(1, 45), st.integers(0, 45))  # S, w, d


def pattern_by_hand(seq_len, window_size, dilation):
    """The keys of every query, written out from the words of the definition."""
    allowed = [[False] * seq_len for _ in range(seq_len)]
    near, far = 0, 0
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
    return allowed, near, far


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
@given(PATTERN)
def test_mask_and_counts_equal_a_literal_double_loop(pattern):
    allowed, near, far = pattern_by_hand(*pattern)
    assert window_mask(*pattern).tolist() == allowed
    assert near_far_pairs(*pattern) == (near, far)
    assert attended_pairs(*pattern) == near + far


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


def relative_errors(window_size, dilation, qkv, evaluation):
    """Errors of the output and of the gradients of q, k, v against dense attention in float64."""
    qkv = qkv.detach().requires_grad_()
    reference_qkv = qkv.detach().double().requires_grad_()
    upstream = torch.randn_like(qkv[:, :, 0])
    out = window_attention(*qkv.unbind(2), window_size, dilation, evaluation)
    out.backward(upstream)
    reference = window_attention(*reference_qkv.unbind(2), window_size, dilation, "dense")
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


@pytest.mark.parametrize("dilation", [0, 3, 16])
@pytest.mark.parametrize("window_size", [1, 64, 96, 300])
def test_split_of_long_sequences(window_size, dilation):
    """Several chunks, a rest, residue classes of both lengths; wide windows have other chunks."""
    qkv = random_qkv(2, 1001, 2, 8, seed=window_size)
    assert max(relative_errors(window_size, dilation, qkv, "split")) < 1e-5


@pytest.mark.parametrize("pattern", [(48, 4), (10, 1), (200, 16)])
def test_split_in_bfloat16_is_as_good_as_full_attention(pattern):
    """Few near keys against many far ones (10, 1) show a weight that is rounded to 16 bits."""
    qkv = random_qkv(1, 700, 2, 64).detach().bfloat16().requires_grad_()
    errors = relative_errors(*pattern, qkv, "split")
    full = relative_errors(700, 4, qkv, "masked")
    assert max(errors) < 1e-2
    assert all(mine < 1.5 * other for mine, other in zip(errors, full, strict=True))


def test_split_gradients_by_finite_differences():
    q, k, v = random_qkv(1, 90, 1, 2, dtype=torch.float64).unbind(2)
    for function in (
        lambda x: window_attention(x, k.detach(), v.detach(), 5, 7, "split"),
        lambda x: window_attention(q.detach(), x, v.detach(), 5, 7, "split"),
        lambda x: window_attention(q.detach(), k.detach(), x, 5, 7, "split"),
    ):
        assert torch.autograd.gradcheck(function, q.detach().clone().requires_grad_())


def layouts(x):
    """The same values (B, S, H, D) under other strides."""
    yield x
    yield x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)  # (B, H, S, D) in memory
    yield x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)  # D is not the last in memory
    yield torch.stack([x, x], dim=1)[:, 1]
    yield x[:1].expand_as(x) if torch.equal(x[:1].expand_as(x), x) else x


def test_split_takes_any_layout():
    x = torch.randn(1, 200, 2, 8).repeat(2, 1, 1, 1)
    expected = window_attention(x, x, x, 30, 4, "dense")
    for layout in layouts(x):
        out = window_attention(layout, layout, layout, 30, 4, "split")
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["huge", "one key", "equal"])
def test_split_survives_extreme_logits(case):
    qkv = random_qkv(1, 300, 2, 16).detach()
    if case == "huge":
        qkv[:, :, :2] *= 100  # logits of the order of 1e4
    elif case == "one key":
        qkv[:, 7, 1] *= 1e4
    else:
        qkv[:, :, :2] = 1.0
    qkv.requires_grad_()
    out = window_attention(*qkv.unbind(2), 20, 5, "split")
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(qkv.grad).all()
    reference = window_attention(*qkv.detach().double().unbind(2), 20, 5, "dense")
    torch.testing.assert_close(out.double(), reference, rtol=1e-3, atol=1e-4)


def test_split_reads_nothing_beyond_the_sequence():
    """NaN around a slice of a longer tensor reach neither the output nor the gradients."""
    surroundings = torch.full((1, 400, 3, 2, 8), float("nan"))
    surroundings[:, 50:301] = torch.randn(1, 251, 3, 2, 8)
    qkv = surroundings.requires_grad_()
    out = window_attention(*qkv[:, 50:301].unbind(2), 20, 6, "split")
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
    out = window_attention(q, k, v, 5, 3, "split")
    gradient = torch.autograd.grad(out.sum(), q, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative: choose dense"):
        gradient.sum().backward()


def test_split_never_holds_a_square_of_the_sequence():
    """Forward and backward at 65,536 tokens in a process of its own, by its peak memory."""
    code = """
import resource, torch
from window_attention import window_attention
torch.set_num_threads(2)
qkv = torch.randn(1, 65536, 3, 1, 16, requires_grad=True)
window_attention(*qkv.unbind(2), 96, 64, "split").sum().backward()
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
    ],
)
def test_the_plan_names_its_choice_and_why(arguments, evaluation):
    plan = attention_plan(*arguments)
    assert plan.evaluation == evaluation and plan.reason


@settings(max_examples=60, deadline=None)
@given(PATTERN, st.sampled_from([e for e in EVALUATIONS if e != "auto"]), st.integers(0, 2**31))
def test_every_evaluation_equals_attention_by_hand_with_gradients(pattern, evaluation, seed):
    seq_len, window_size, dilation = pattern
    allowed, *_ = pattern_by_hand(*pattern)
    qkv = random_qkv(2, seq_len, 2, 5, seed=seed)
    out = window_attention(*qkv.unbind(2), window_size, dilation, evaluation)
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


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_only_keys_inside_the_pattern_matter(evaluation):
    """Within one layer: each key in turn is changed, and exactly the rows that see it move."""
    seq_len, window_size, dilation = 23, 4, 3
    q, k, v = (x.detach() for x in random_qkv(1, seq_len, 2, 6).unbind(2))
    before = window_attention(q, k, v, window_size, dilation, evaluation)
    allowed, *_ = pattern_by_hand(seq_len, window_size, dilation)
    for key in range(seq_len):
        moved_k, moved_v = k.clone(), v.clone()
        moved_k[:, key] += 3
        moved_v[:, key] -= 5
        after = window_attention(q, moved_k, moved_v, window_size, dilation, evaluation)
        changed = (after != before).flatten(2).any(-1)[0].tolist()
        assert changed == [row[key] for row in allowed]


@pytest.mark.parametrize(
    ("evaluation", "batch", "seq_len"),
    [
        ("auto", 1, 17),
        ("dense", 1, 17),
        ("masked", 2, 24),
        ("split", 1, 17),  # all residue classes are equally long
        ("split", 1, 24),
        ("split", 2, 20),
        ("split", 2, 3),  # no far keys
    ],
)
def test_works_compiled_as_one_graph(evaluation, batch, seq_len):
    def gradients_of(attend, qkv):
        out = attend(*qkv, 5, 3, evaluation)
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


def test_masks_are_shared_until_the_cache_is_cleared():
    device = torch.device("cpu")
    mask = cached_window_mask(12, 3, 2, device)
    assert cached_window_mask(12, 3, 2, device) is mask
    clear_mask_cache()
    assert cached_window_mask(12, 3, 2, device) is not mask


@pytest.mark.parametrize(
    ("window_size", "dilation", "words"),
    [
        (0, 4, "window_size must be at least 1, got 0"),
        (-3, 4, "window_size must be at least 1, got -3"),
        (96, -1, "dilation must be at least 0, got -1"),
        (9.5, 4, "window_size must be a whole number, got 9.5"),
        (96, True, "dilation must be a whole number, got True"),
    ],
)
def test_a_wrong_pattern_is_named(window_size, dilation, words):
    q = torch.zeros(1, 2, 1, 4)
    for call in (
        lambda: window_mask(8, window_size, dilation),
        lambda: attended_pairs(8, window_size, dilation),
        lambda: window_attention(q, q, q, window_size, dilation),
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

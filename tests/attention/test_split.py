"""Split attention, outputs and gradients, against dense attention in float64."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from attention.choose import window_attention
from gpt_win import GPTWindowModel


def relative_errors(window_size, dilation, qkv, evaluation="split", sinks=0):
    """Errors of the output and of the gradients of q, k, v against dense attention in float64."""
    qkv = qkv.detach().requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    upstream = torch.randn_like(qkv[:, :, 0])
    out = window_attention(*qkv.unbind(2), window_size, dilation, evaluation, sinks)
    out.backward(upstream)
    reference = window_attention(*exact.unbind(2), window_size, dilation, "dense", sinks)
    reference.backward(upstream.double())
    errors = [((out - reference).norm() / reference.norm()).item()]
    # queries and keys of a single token have no gradient but rounding: v's then gives the scale
    least = 0.1 * exact.grad.norm()
    for value, expected in zip(qkv.grad.unbind(2), exact.grad.unbind(2), strict=True):
        errors.append(((value - expected).norm() / expected.norm().clamp_min(least)).item())
    return errors


@pytest.mark.parametrize("dilation", [0, 3, 16])
@pytest.mark.parametrize("window_size", [1, 96, 300])
def test_split_of_long_sequences(random_qkv, window_size, dilation):
    """Several chunks, a rest, residue classes of both lengths; wide windows have other chunks."""
    qkv = random_qkv(2, 1001, 2, 8, seed=window_size)
    assert max(relative_errors(window_size, dilation, qkv)) < 1e-5


@pytest.mark.parametrize("sinks", [0, 4, 64])
@pytest.mark.parametrize("pattern", [(48, 4), (10, 1), (200, 16), (10, 0)])
def test_split_in_bfloat16_is_as_good_as_full_attention(random_qkv, pattern, sinks):
    """Few near keys against many far ones (10, 1) show a weight that is rounded to 16 bits."""
    qkv = random_qkv(1, 700, 2, 64).detach().bfloat16().requires_grad_()
    errors = relative_errors(*pattern, qkv, sinks=sinks)
    full = relative_errors(700, 4, qkv, "masked")
    assert max(errors) < 1e-2
    assert all(mine < 1.5 * other for mine, other in zip(errors, full, strict=True))


def layouts(x):
    """The same values (B, S, H, D) under other strides."""
    yield x
    yield x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)  # (B, H, S, D) in memory
    yield x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)  # D is not the last in memory
    yield torch.stack([x, x], dim=1)[:, 1]
    yield x[:1].expand_as(x)


@pytest.mark.parametrize("options", [{}, {"full_heads": 1, "stagger": True}])
@pytest.mark.parametrize("sinks", [0, 3])
def test_split_takes_any_layout(sinks, options):
    x = torch.randn(1, 200, 2, 8).repeat(2, 1, 1, 1)
    expected = window_attention(x, x, x, 30, 4, "dense", sinks, **options)
    for layout in layouts(x):
        out = window_attention(layout, layout, layout, 30, 4, "split", sinks, **options)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sinks", [0, 8])
@pytest.mark.parametrize("case", ["huge", "one key", "equal"])
def test_split_survives_extreme_logits(random_qkv, case, sinks):
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


def test_split_repeats_bitwise_and_works_without_gradients(random_qkv):
    qkv = random_qkv(2, 333, 2, 8)
    outs, gradients = [], []
    for _ in range(2):
        out = window_attention(*qkv.unbind(2), 40, 4, "split")
        gradients.append(torch.autograd.grad(out.square().sum(), qkv)[0])
        outs.append(out)
    assert torch.equal(*outs) and torch.equal(*gradients)
    with torch.no_grad():
        assert torch.equal(window_attention(*qkv.unbind(2), 40, 4, "split"), outs[0])


def test_split_never_holds_a_square_of_the_sequence():
    """Forward and backward at 32,768 tokens in a process of its own, by its peak memory."""
    code = """
import torch
from attention import window_attention
torch.set_num_threads(2)
qkv = torch.randn(1, 32768, 3, 1, 8, requires_grad=True)
window_attention(*qkv.unbind(2), 96, 64, "split", 4).sum().backward()
assert torch.isfinite(qkv.grad).all()
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # a float32 square would be 4.3 GB, and its mask another one
    assert float(done.stdout) < 1.0


def test_sinks_that_no_query_needs_cost_nothing(random_qkv, monkeypatch):
    """Without a pair that only a sink keeps the third part is not computed at all."""
    monkeypatch.setattr("attention.split.merge_sinks", None)
    q, k, v = random_qkv(1, 30, 1, 4).unbind(2)
    for window_size, dilation, sinks in ((5, 3, 0), (5, 1, 4), (29, 3, 4), (60, 0, 4)):
        window_attention(q, k, v, window_size, dilation, "split", sinks).sum().backward()
    with pytest.raises(TypeError):
        window_attention(q, k, v, 20, 3, "split", 4)


def test_training_with_split_and_with_dense_gives_the_same_losses():
    losses = []
    for attention in ("dense", "split"):
        torch.manual_seed(0)
        # float64, for AdamW turns rounding of tiny gradients into steps of full length
        model = GPTWindowModel(16, 2, 2, 20, 100, 10, 3, attention, dropout=0.0).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(1)
        losses.append([])
        for _ in range(40):
            start = torch.randint(20, (2, 1), generator=generator)
            tokens = (start + torch.arange(101)) % 20
            logits = model(tokens[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] < 0.5 * losses[0][0]

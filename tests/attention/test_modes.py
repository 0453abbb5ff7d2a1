"""First calls inside PyTorch's modes: right, or one clear error, and nothing of them is kept."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier

import pytest
import torch
from conftest import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from attention import dense_attention, kernels, masks, rotary, split, window_attention, window_mask
from attention.kept import kept

EVALUATIONS = "auto", "dense", "masked", "split"
SEQ_LEN = 600  # auto takes split


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def attend(qkv, evaluation, rotated=True):
    q, k, v = qkv.unbind(0)
    if rotated:
        q, k = rotary.rotate(q), rotary.rotate(k)
    return window_attention(q, k, v, 20, 7, evaluation)


def exact(qkv):
    """Output and gradient in float64, by the definition."""
    leaf = qkv.detach().double().requires_grad_()
    q, k, v = leaf.unbind(0)
    mask = window_mask(SEQ_LEN, 20, 7)
    out = dense_attention(rotary.rotate(q), rotary.rotate(k), v, mask)
    return out, torch.autograd.grad(out.sum(), leaf)[0]


def random_qkv(**options):
    return torch.randn(3, 1, SEQ_LEN, 2, 8, **options)


def fake(qkv, evaluation):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # for masks and tables
        assert attend(mode.from_tensor(qkv.detach()), evaluation).shape == (1, SEQ_LEN, 2, 8)


def on_meta(qkv, evaluation):
    assert attend(qkv.detach().to("meta"), evaluation).shape == (1, SEQ_LEN, 2, 8)


def exported(qkv, evaluation):
    class Model(torch.nn.Module):
        def forward(self, qkv):
            return attend(qkv, evaluation)

    program = torch.export.export(Model(), (qkv.detach(),), strict=False)
    return program.module()(qkv.detach())


def inside(context):
    def call(qkv, evaluation):
        with context():
            return attend(qkv, evaluation)

    return call


def with_defaults(set_default, value, usual):
    def call(qkv, evaluation):
        set_default(value)
        try:
            return attend(qkv, evaluation)
        finally:
            set_default(usual)

    return call


MODES = {
    "plain": inside(nullcontext),
    "checkpoint": lambda qkv, evaluation: checkpoint(attend, qkv, evaluation, use_reentrant=False),
    "saved on the CPU": inside(torch.autograd.graph.save_on_cpu),
    "inference": inside(torch.inference_mode),
    "no_grad": inside(torch.no_grad),
    "autocast": inside(lambda: torch.autocast("cpu", torch.bfloat16)),
    "dispatch": inside(Dispatched),
    "function": inside(Called),
    "meta device": inside(lambda: torch.device("meta")),
    "default device": with_defaults(torch.set_default_device, "meta", None),
    "default dtype": with_defaults(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic": with_defaults(torch.use_deterministic_algorithms, True, False),
    "vmap": lambda qkv, evaluation: torch.vmap(attend, (0, None))(qkv[None], evaluation)[0],
    "func.grad": lambda qkv, evaluation: torch.func.grad(lambda x: attend(x, evaluation).sum())(
        qkv
    ),
    "jvp": lambda qkv, evaluation: torch.func.jvp(
        lambda x: attend(x, evaluation), (qkv.detach(),), (torch.ones_like(qkv),)
    )[0],
    "fake": fake,
    "meta": on_meta,
    "export": exported,
}
ERRORS = {
    **dict.fromkeys([(mode, "split") for mode in ("vmap", "func.grad", "jvp")], "choose dense"),
    ("jvp", "auto"): "forward AD",  # of PyTorch's kernel on a CPU
    ("jvp", "masked"): "forward AD",
    ("meta", "split"): "no kernel for torch.float32 with head_dim 8 on meta: choose masked",
}


@pytest.mark.parametrize("evaluation", EVALUATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_a_first_call_in_a_mode_leaves_nothing_behind(mode, evaluation):
    for function in (
        masks._kept_mask,
        rotary.cached_rotations,
        split._split_kernels,
        kernels._kept_bias,
    ):
        function.clear()
    qkv = random_qkv(requires_grad=True)
    expected, gradient = exact(qkv)
    if (mode, evaluation) in ERRORS:
        with pytest.raises((ValueError, NotImplementedError), match=ERRORS[mode, evaluation]):
            MODES[mode](qkv, evaluation)
    else:
        found = MODES[mode](qkv, evaluation)
        if mode not in ("autocast", "fake", "meta"):
            right = gradient if mode == "func.grad" else expected
            torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-5)
    out = attend(qkv, evaluation)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(out.sum(), qkv)[0]
    torch.testing.assert_close(found.double(), gradient, rtol=1e-4, atol=1e-5)


def test_a_process_loads_no_compiler_and_may_begin_with_checkpointing():
    program = """
import sys, torch, gpt_win
assert "torch._dynamo" not in sys.modules
from torch.utils.checkpoint import checkpoint
from attention import window_attention
x = torch.randn(3, 1, 600, 2, 8, requires_grad=True)
attend = lambda x: window_attention(*x.unbind(0), 20, 7)
checkpoint(attend, x, use_reentrant=False).sum().backward()
assert torch.equal(x.grad, torch.autograd.grad(attend(x).sum(), x)[0])
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_so_many_results_are_kept_of_those_that_were_used_last_whoever_asks():
    made, together = [], Barrier(4, timeout=60)

    @kept(3)
    def square(number):
        made.append(number)
        if number >= 10:
            together.wait()  # four threads make one each at the same time
        return number**2

    for number in (0, 1, 2, 0, 3, 0, 1):
        assert square(number) == number**2
    assert made == [0, 1, 2, 3, 1] and list(square.results) == [(3,), (0,), (1,)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(square, range(10, 14))) == [100, 121, 144, 169]
    assert len(square.results) == 3

"""On a GPU: every kernel that can serve split attention and decoding, against float64."""

from functools import partial

import pytest
import torch
from tiny import needs_cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention.cache import KeyValueCache, decode_kernel
from attention.choose import window_attention
from attention.full import dense_attention, fused_attention
from attention.kernels import CAUSAL, CHOICES, KERNELS
from attention.masks import cached_mask
from attention.pattern import Pattern, window_mask
from attention.split import split_attention, split_kernels
from gpt import GPTModel
from gpt_win import GPTWindowModel

pytestmark = needs_cuda
CASES = [  # B, S, H, D, Pattern
    (1, 1, 1, 8, Pattern(1, 1)),
    (2, 257, 3, 64, Pattern(96, 4)),  # classes of two lengths
    (2, 292, 4, 64, Pattern(96, 4)),  # equal classes: one launch
    (1, 1024, 2, 32, Pattern(96, 4)),
    (3, 500, 2, 64, Pattern(33, 0)),
    (2, 700, 2, 24, Pattern(200, 16)),
    (2, 130, 2, 64, Pattern(126, 3)),  # a single query has a far key
    (1, 90, 2, 64, Pattern(200, 7)),
    (1, 333, 2, 20, Pattern(17, 400)),  # head_dim is padded
    (2, 1000, 2, 128, Pattern(10, 1)),
    (2, 292, 4, 64, Pattern(96, 4, 4)),
    (1, 257, 3, 64, Pattern(33, 0, 1)),
    (2, 300, 2, 20, Pattern(17, 5, 64)),
    (1, 90, 2, 64, Pattern(60, 40, 7)),  # no far keys
    (1, 300, 1, 128, Pattern(20, 3, 400)),  # more sinks than tokens
    (2, 257, 4, 64, Pattern(96, 0, full_heads=1)),
    (2, 300, 4, 64, Pattern(33, 3, 5, full_heads=1, stagger=True, first_phase=1)),
    (2, 292, 8, 32, Pattern(96, 4, stagger=True)),
    (1, 333, 3, 64, Pattern(0, 0, full_heads=3)),
    (3, 200, 2, 256, Pattern(0, 0)),
]


def errors(attend, qkv, upstream, reference):
    """Relative errors of out, dq, dk and dv."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = attend(*leaves)
    values = [out, *torch.autograd.grad(out, leaves, upstream)]
    return [
        ((value.double() - expected).norm() / (expected.norm() + 1e-9)).item()
        for value, expected in zip(values, reference, strict=True)
    ]


def reference_of(qkv, upstream, mask):
    leaves = [x.detach().double().requires_grad_() for x in qkv]
    out = dense_attention(*leaves, mask)
    return [out, *torch.autograd.grad(out, leaves, upstream.double())]


@pytest.mark.parametrize("layout", ["contiguous", "fused projection", "heads first"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_equals_dense_in_float64(case, dtype, layout):
    B, S, H, D, pattern = case
    generator = torch.Generator("cuda").manual_seed(S)
    numbers = torch.randn(4, B, S, H, D, generator=generator, device="cuda").to(dtype)
    *qkv, upstream = numbers
    if layout == "fused projection":
        qkv = torch.stack(qkv, dim=2).unbind(2)
    elif layout == "heads first":
        qkv = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv]
    mask = cached_mask(S, H, qkv[0].device, None, *pattern)
    reference = reference_of(qkv, upstream, mask)
    full_reference = reference_of(qkv, upstream, window_mask(S, 1, 1, "cuda"))
    full = errors(fused_attention, qkv, upstream, full_reference)
    for kernels in CHOICES["cuda", dtype]:
        mine = errors(
            lambda q, k, v, kernels=kernels: split_attention(q, k, v, pattern, kernels),
            qkv,
            upstream,
            reference,
        )
        # where queries see one key dq and dk are 0, which has no relative error
        one_key = S == 1 or (pattern[:3] == (0, 0, 0) and pattern.full_heads == 0)
        pairs = list(zip(mine, full, strict=True))[:: 3 if one_key else 1]
        if dtype == torch.float32:
            assert all(a < 1e-5 for a, _ in pairs), (kernels, mine)
        else:
            assert all(a < 1e-2 and a <= 1.5 * b for a, b in pairs), (kernels, pairs)


@pytest.mark.parametrize("mode", ["eager", "default", "reduce-overhead"])
@pytest.mark.parametrize("case", [CASES[n] for n in (1, 6, 15, 16, 17, 18)], ids=str)
def test_flex_equals_dense_in_float64(case, mode):
    torch.compiler.reset()
    B, S, H, D, pattern = case
    *qkv, upstream = torch.randn(4, B, S, H, D, device="cuda", dtype=torch.bfloat16)
    reference = reference_of(qkv, upstream, cached_mask(S, H, qkv[0].device, None, *pattern))
    full_reference = reference_of(qkv, upstream, window_mask(S, 1, 1, "cuda"))
    full = errors(fused_attention, qkv, upstream, full_reference)
    attend = partial(window_attention, evaluation="flex", **pattern._asdict())
    if mode != "eager":
        attend = torch.compile(attend, fullgraph=True, dynamic=False, mode=mode)
    for _ in range(3):
        mine = errors(attend, qkv, upstream, reference)
        assert all(a < 1e-2 and a <= 1.5 * b for a, b in zip(mine, full, strict=True)), mine


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize(
    ("seq_len", "options"),
    [
        (1021, {}),
        (1024, {}),
        (1021, {"sink_tokens": 4, "positions": "rotary"}),
        (1021, {"full_heads": 1, "positions": "rotary", "nope": True}),
        (1024, {"stagger": True, "full_heads": (0, 1)}),
    ],
)
def test_compiled_as_one_graph(seq_len, options, mode):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = GPTWindowModel(128, 2, 2, 50, seq_len, 96, 4, "split", dropout=0.0, **options).cuda()
    tokens = torch.randint(50, (2, seq_len), device="cuda")

    def loss_of(forward):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = forward(tokens).float().square().mean()
        loss.backward()
        return loss.item(), model.layers[0].mha.qkv.grad.clone()

    expected, gradient = loss_of(model)
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for _ in range(3):
        loss, compiled_gradient = loss_of(compiled)
        assert loss == pytest.approx(expected, rel=1e-2)
        assert (compiled_gradient - gradient).norm() < 5e-2 * gradient.norm()


def test_autocast_takes_float32_and_the_best_kernels_are_found():
    q, k, v = torch.randn(3, 1, 2048, 2, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        for sinks in (0, 4):
            assert window_attention(q, k, v, 96, 4, "split", sinks).dtype == torch.bfloat16
    device = torch.device("cuda", torch.cuda.current_device())
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert split_kernels(device, dtype, 64) in CHOICES["cuda", dtype]
    with pytest.raises(ValueError, match="split attention has no kernel"):
        window_attention(*torch.randn(3, 1, 64, 2, 8, device="cuda").double(), 8, 4, "split")


@pytest.mark.parametrize("case", ["huge", "one key", "equal"])
def test_extreme_logits_stay_finite(case):
    qkv = torch.randn(1, 600, 3, 2, 64, device="cuda")
    if case == "huge":
        qkv[:, :, :2] *= 100
    elif case == "one key":
        qkv[:, 7, 1] *= 1e4
    else:
        qkv[:, :, :2] = 1.0
    qkv = qkv.bfloat16().requires_grad_()
    out = window_attention(*qkv.unbind(2), 20, 5, "split", 4)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(qkv.grad).all()


@pytest.mark.parametrize("heads_first", [False, True])
def test_cudnn_gradients_are_right_whatever_layouts_came_before(heads_first):
    """PyTorch's plans for cuDNN forget the strides of out and of its gradient."""
    qkv = torch.randn(3, 1, 190, 2, 64, device="cuda", dtype=torch.bfloat16)
    upstream = torch.randn_like(qkv[0])
    if heads_first:
        qkv = qkv.transpose(2, 3).contiguous().transpose(2, 3)
    reference = reference_of(qkv, upstream, window_mask(190, 1, 1, "cuda"))
    full = partial(split_attention, pattern=Pattern(0, 1), kernels=("flash", "cudnn"))
    layouts = upstream, upstream.transpose(1, 2).contiguous().transpose(1, 2)
    for attend in (full, fused_attention, full):
        for gradient in layouts:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                found = errors(attend, qkv, gradient, reference)
            if attend is full:
                assert max(found) < 1e-2, found


def test_the_efficient_kernel_takes_log_sum_exps_of_any_strides():
    """Its own begin at multiples of 32 bytes; those of a part of the heads or queries do not."""
    q, k, v, upstream = torch.randn(4, 1, 1, 64, 32, device="cuda")
    kernel = KERNELS["efficient"]
    out, lse = kernel.forward(q, k, v, CAUSAL, 0.2)
    strided = torch.zeros(1, 3, 67, device="cuda")[:, 1:2, 2:66]
    strided.copy_(lse)
    expected = kernel.backward(upstream, q, k, v, out, lse, CAUSAL, 0.2)
    found = kernel.backward(upstream, q, k, v, out, strided, CAUSAL, 0.2)
    assert all(torch.allclose(x, y) for x, y in zip(found, expected, strict=True))


def test_deterministic_mode_takes_kernels_that_repeat_bitwise():
    device = torch.device("cuda", torch.cuda.current_device())
    torch.use_deterministic_algorithms(True)
    try:
        assert "cudnn" not in split_kernels(device, torch.bfloat16, 64)
        qkv = torch.randn(2, 700, 3, 2, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
        gradients = []
        for _ in range(2):
            out = window_attention(*qkv.unbind(2), 96, 4, "split", 4)
            gradients.append(torch.autograd.grad(out.square().sum(), qkv)[0])
        assert torch.equal(*gradients)
    finally:
        torch.use_deterministic_algorithms(False)


def test_memory_that_both_streams_use_is_never_overwritten_early():
    """The next call's results may take the memory of the last call's, but not before their use."""
    torch.manual_seed(0)
    inputs = [
        torch.randn(3, 1, S, 2, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for S in (4096, 1021, 6000, 300)
    ]

    def gradient_of(qkv):
        out = window_attention(*qkv.unbind(0), 96, 4, "split")
        return torch.autograd.grad((out.float() * qkv[0]).sum(), qkv)[0]

    expected = []
    for qkv in inputs:
        expected.append(gradient_of(qkv))
        torch.cuda.synchronize()
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    found = []
    for n in range(40):
        with torch.cuda.stream(other if n % 2 else torch.cuda.current_stream()):
            found.append(gradient_of(inputs[n % 4]))
    torch.cuda.synchronize()
    for n, gradient in enumerate(found):  # cuDNN's backward adds in no fixed order
        assert (gradient - expected[n % 4]).norm() < 1e-2 * expected[n % 4].norm(), n


@pytest.mark.parametrize(
    ("model_class", "options"),
    [
        (GPTModel, {}),
        (GPTModel, {"positions": "rotary"}),
        (GPTWindowModel, {"window_size": 20, "dilation": 4}),
        (GPTWindowModel, {"window_size": 20, "dilation": 0, "sink_tokens": 4}),
        (GPTWindowModel, {"window_size": [7, 40], "dilation": [5, 1], "sink_tokens": 9}),
        (GPTWindowModel, {"window_size": 9, "full_heads": 1, "stagger": True}),
    ],
)
@pytest.mark.parametrize("lengths", [(64, 64), (50, 3, 64)])
def test_cached_decoding_equals_recomputation_in_float32(model_class, options, lengths):
    torch.manual_seed(0)
    model = model_class(64, 2, 2, 50, 128, **options).cuda().eval()
    for parameter in model.parameters():
        parameter.data.mul_(10 if parameter.ndim > 1 else 1)
    rows = [torch.randint(50, (length,), device="cuda") for length in lengths]
    found = model.generate(rows, 60, temperature=0)
    with torch.no_grad():
        for row, tokens in zip(rows, found, strict=True):
            logits = model(tokens[None, :-1])[0, len(row) - 1 :]
            assert torch.equal(logits.argmax(-1), tokens[len(row) :])


PATTERNS = [
    Pattern(96, 4),
    Pattern(96, 4, 5),
    Pattern(1, 1),
    Pattern(33, 0, full_heads=1),
    Pattern(33, 3, full_heads=1, stagger=True),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_step_equals_dense_in_float64(dtype, pattern):
    q, k, v = torch.randn(3, 2, 3000, 4, 64, device="cuda").to(dtype)
    cache = KeyValueCache((2, 4, 64), 3000, pattern, dtype=dtype, device="cuda")
    cache.write(k[:, :-1], v[:, :-1])
    cache.write(k[:, -1:], v[:, -1:])
    options = pattern._asdict()
    whole = window_attention(q.double(), k.double(), v.double(), evaluation="dense", **options)
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    expected = whole[:, -1:]
    for out in (cache.attend(q[:, -1:]), window_attention(q[:, -1:], k, v, **options)):
        assert (out - expected).norm() < limit * expected.norm()


def test_a_step_takes_flash_attention_in_16_bits():
    device = torch.device("cuda", torch.cuda.current_device())
    assert decode_kernel(device, torch.bfloat16, 64) == "flash"
    assert decode_kernel(device, torch.float32, 64) is None

"""The choice among the evaluations, and the one entry to all: ``window_attention``."""

import operator
from typing import NamedTuple

import torch

from attention.flex import flex_over_pattern
from attention.full import checked, repeated, sdpa, textbook
from attention.kernels import CHOICES
from attention.last import by_mask, by_slices, can_gather
from attention.masks import cached_mask
from attention.pattern import Pattern, whole
from attention.split import split_attention, split_kernels

EVALUATIONS = ("auto", "dense", "masked", "split", "flex")
MOST_SINKS = 256  # with more auto does not take split, whose sink part has scores (B, H, S, N)
# Tokens from which split beats masked, by device type and dtype.  Measured with
# benchmark_attention.py, forward and backward, w96 d4, split against masked, in ms.  2 CPU cores,
# torch 2.13.0, B1 H4 D32: 4.8 to 3.8 at 384 tokens, 5.7 to 8.2 at 512.  H200, torch 2.11, B8 H16
# D32: bfloat16 0.306 (compiled 0.240) to 0.295 at 768 and 0.384 (0.301) to 0.492 at 1024; float32
# 1.47 to 0.89 at 512 and 1.87 to 1.90 at 768.  Dense was slower than masked everywhere.
SPLIT_FROM = {
    ("cpu", torch.float32): 512,
    ("cpu", torch.float64): 512,
    ("cpu", torch.bfloat16): 512,
    ("cuda", torch.bfloat16): 1024,
    ("cuda", torch.float16): 1024,
    ("cuda", torch.float32): 768,
}
# Lengths up to which flex is the fastest inside torch.compile on CUDA, by what the heads that are
# not full attend to.  Measured with benchmark_attention.py --patterns on an H100, torch 2.11,
# bfloat16, D64, forward and backward, flex against split, in ms.  w96 d0, 1 of 8 heads full: 0.338
# to 0.427 at 4,096 tokens, 0.692 to 0.683 at 16,384, 2.09 to 1.75 at 32,768; no head full: 0.248 to
# 0.277 at 16,384.  w96 d4: 0.232 to 0.280 at 1,024 (masked 0.284), 0.712 to 0.558 at 2,048;
# staggered: 0.726 to 0.820 at 2,048, 1.30 to 0.89 at 4,096.  At 256 tokens flex took 0.037 to 0.039
# ms of all of these, masked 0.040 to 0.069.
FLEX_TO = {"window": 32_768, "window and full heads": 12_288, "far": 1_536, "staggered": 3_072}
FLEX_DTYPES = (torch.bfloat16, torch.float16)
FLEX_HEAD_DIM = 16  # the least that it takes


class Plan(NamedTuple):
    """What ``auto`` picks, and why, in words."""

    evaluation: str
    reason: str


def _kind_of(pattern):
    """What the heads that are not full attend to: a key of FLEX_TO."""
    if pattern.dilation:
        return "staggered" if pattern.stagger else "far"
    return "window and full heads" if pattern.full_heads else "window"


def attention_plan(
    seq_len, pattern, n_heads, dtype=torch.float32, device="cpu", compiled=False, head_dim=64
):
    """The ``Plan`` of ``auto``: what it picks for a length, a ``Pattern``, a dtype and a device.

    device: a torch.device or its type, "cpu" or "cuda"; this machine need not have it.
    compiled: whether the caller is compiled; if not, ``auto`` never picks flex.
    """
    seq_len, pattern = whole("seq_len", seq_len), pattern.checked(n_heads)
    device_type = torch.device(device).type
    if pattern.is_full(seq_len, n_heads):
        return Plan("masked", "the pattern leaves out no pair: full causal attention")
    most = FLEX_TO[_kind_of(pattern)]
    generated = compiled and device_type == "cuda" and dtype in FLEX_DTYPES
    if generated and head_dim >= FLEX_HEAD_DIM and seq_len <= most:
        return Plan("flex", f"up to {most:,} tokens flex was measured to be faster")
    least = SPLIT_FROM.get((device_type, dtype))
    if least is None:
        lacking = "was not measured" if (device_type, dtype) in CHOICES else "has no kernel"
        return Plan("masked", f"split {lacking} for {str(dtype)[6:]} on {device_type}")
    if seq_len < least:
        return Plan("masked", f"below {least} tokens masked was measured to be faster")
    if 3 * pattern.window_size > seq_len:
        return Plan("masked", "a window over a third of the sequence leaves little to skip")
    if pattern.sink_tokens > MOST_SINKS:
        return Plan("masked", f"split holds the scores of the sinks, more than {MOST_SINKS}")
    return Plan("split", f"from {least} tokens on split was measured to be faster")


def window_attention(
    q, k, v, window_size, dilation, evaluation="auto", sink_tokens=0, scale=None, **heads
):
    """Causal attention over the sliding-window + dilated pattern of ``may_attend``.

    q: (B, S, H, D), any floating dtype.  k, v: the same, or with fewer heads, a divisor of H: then
    each serves H / that many neighbouring heads of q (grouped queries).  Returns (B, S, H, D).
    q may have fewer tokens than k and v, the last ones: a step of decoding, or a chunk, over a
    cache.  Then there are only ``masked`` and ``auto``.  For one query without gradients ``auto``
    reads nothing but the keys of its pattern; otherwise it is ``masked``.
    scale: what the scores are multiplied by, 1 / sqrt(D) by default; for another one q is scaled.
    evaluation: ``dense`` (textbook), ``masked`` (scaled_dot_product_attention with the cached
    mask), ``split`` (cost follows the attended pairs), ``flex`` (one FlexAttention call, to be
    compiled on CUDA) or ``auto`` (see ``attention_plan``); all give the same result within
    rounding.  Inside torch.autocast all compute in its dtype, as scaled_dot_product_attention does.
    Only ``dense`` has second and forward-mode derivatives.  A program of torch.export has one fixed
    length, and with ``split`` no gradients.
    heads: how they differ: full_heads, stagger and first_phase of ``pattern.Pattern``.

    A key outside a query's pattern has no influence on its result while keys and values are finite.
    Where one is not, the query's result is either the right one or not finite, never a wrong
    number, and other batches and heads are not affected (tested on a CPU).  Which queries become
    not finite differs between evaluations, and nothing is promised of gradients.  So fill padding
    with finite numbers.

    Raises ValueError for tensors that do not fit one another, for what is no pattern, for an
    unknown evaluation, and for one that these tensors cannot have.
    """
    q, k, v = checked(q, k, v, fewer_queries=True)
    pattern = Pattern(window_size, dilation, sink_tokens, **heads).checked(q.shape[2])
    if evaluation not in EVALUATIONS:
        known = ", ".join(EVALUATIONS)
        raise ValueError(f"unknown window attention {evaluation!r}: choose one of {known}")
    usual = q.shape[3] ** -0.5
    if scale is not None and scale != usual:
        q = q * (scale / usual)
    if q.shape[1] < k.shape[1]:
        return _evaluate_last(q, k, v, pattern, evaluation)
    return _evaluate(q, *repeated(k, v, q.shape[2]), pattern, evaluation)


def _evaluate_last(q, k, v, pattern, evaluation):
    """Attention where q has fewer tokens than k and v."""
    if evaluation not in ("auto", "masked"):
        raise ValueError(f"{evaluation} needs as many queries as keys: choose masked or auto")
    evaluate = by_slices if evaluation == "auto" and can_gather(q, k, v) else by_mask
    return evaluate(q, k, v, pattern)


def _evaluate(q, k, v, pattern, evaluation):
    """Attention over a ``Pattern`` by the evaluation of that name."""
    # plain ints: torch.compile(dynamic=True) may have symbols here, which are no keys for a cache
    seq_len, n_heads, head_dim = map(operator.index, q.shape[1:])
    compiled = torch.compiler.is_compiling()
    # torch.compile resolves transforms itself
    transformed = not compiled and torch._C._are_functorch_transforms_active()
    if transformed and evaluation == "split":
        remedy = "choose dense, or masked for all but jvp"
        raise ValueError(f"split attention has no torch.func transforms: {remedy}")
    planned = evaluation == "auto"
    if planned:
        plan = attention_plan(seq_len, pattern, n_heads, q.dtype, q.device, compiled, head_dim)
        evaluation = "masked" if transformed else plan.evaluation
    if evaluation == "flex":
        return flex_over_pattern(q, k, v, pattern)
    if evaluation == "split" and q.numel():
        kernels = split_kernels(q.device, q.dtype, head_dim)
        if kernels is not None:
            return split_attention(q, k, v, pattern, kernels)
        if not planned:
            asked = f"{q.dtype} with head_dim {head_dim} on {q.device}"
            raise ValueError(f"split attention has no kernel for {asked}: choose masked")
    if evaluation == "dense":
        return textbook(q, k, v, cached_mask(seq_len, n_heads, q.device, None, *pattern))
    if pattern.is_full(seq_len, n_heads):
        return sdpa(q, k, v)
    return sdpa(q, k, v, cached_mask(seq_len, n_heads, q.device, q.dtype, *pattern))

"""The choice among the evaluations, and the one entry to all: ``window_attention``."""

from typing import NamedTuple

import torch

from attention.full import dense_attention, fused_attention
from attention.masks import cached_window_mask
from attention.pattern import check_pattern, is_full_causal
from attention.split import split_attention, split_kernels

EVALUATIONS = ("auto", "dense", "masked", "split")
MOST_SINKS = 256  # beyond them auto leaves split alone, whose sink part has scores (B, H, S, N)
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


class Plan(NamedTuple):
    """What ``auto`` picks, and why, in words."""

    evaluation: str
    reason: str


def attention_plan(
    seq_len, window_size, dilation, dtype=torch.float32, device="cpu", sink_tokens=0
):
    """The ``Plan`` of ``auto``: what it picks for a length, a pattern, a dtype and a device.

    device: a torch.device or its type, "cpu" or "cuda"; it need not be there.
    """
    check_pattern(window_size, dilation, sink_tokens)
    device_type = torch.device(device).type
    if is_full_causal(seq_len, window_size, dilation, sink_tokens):
        return Plan("masked", "the pattern leaves out no pair: full causal attention")
    least = SPLIT_FROM.get((device_type, dtype))
    if least is None:
        return Plan("masked", f"split has no kernel for {str(dtype)[6:]} on {device_type}")
    if seq_len < least:
        return Plan("masked", f"below {least} tokens masked was measured to be faster")
    if 3 * window_size > seq_len:
        return Plan("masked", "a window over a third of the sequence leaves little to skip")
    if sink_tokens > MOST_SINKS:
        return Plan("masked", f"split holds the scores of the sinks, more than {MOST_SINKS}")
    return Plan("split", f"from {least} tokens on split was measured to be faster")


def window_attention(q, k, v, window_size, dilation, evaluation="auto", sink_tokens=0):
    """Causal attention over the sliding-window + dilated pattern of ``may_attend``.

    q, k, v: (B, S, H, D), any floating dtype, on one device.  Returns (B, S, H, D).
    evaluation: ``dense`` (textbook), ``masked`` (scaled_dot_product_attention with the cached
    mask), ``split`` (cost follows the attended pairs) or ``auto`` (see ``attention_plan``); all
    give the same result within rounding.  Inside torch.autocast all compute in its dtype, as
    scaled_dot_product_attention does.
    Raises ValueError for window_size < 1, dilation < 0, sink_tokens < 0, an unknown evaluation, or
    split where PyTorch has no kernels for it.
    """
    check_pattern(window_size, dilation, sink_tokens)
    if evaluation not in EVALUATIONS:
        known = ", ".join(EVALUATIONS)
        raise ValueError(f"unknown window attention {evaluation!r}: choose one of {known}")
    seq_len, device = q.shape[1], q.device
    if torch.is_autocast_enabled(device.type) and q.dtype != torch.float64:
        q, k, v = (x.to(torch.get_autocast_dtype(device.type)) for x in (q, k, v))
    planned = evaluation == "auto"
    if planned:
        plan = attention_plan(seq_len, window_size, dilation, q.dtype, device, sink_tokens)
        evaluation = plan.evaluation
    if evaluation == "split" and q.numel():
        head_dim = q.shape[-1]
        kernels = split_kernels(device, q.dtype, head_dim)
        if kernels is not None:
            return split_attention(q, k, v, window_size, dilation, kernels, sink_tokens)
        if not planned:
            raise ValueError(
                f"split attention has no kernel for {q.dtype} with head_dim {head_dim} on "
                f"{device}: choose masked"
            )
    if evaluation == "dense":
        mask = cached_window_mask(seq_len, window_size, dilation, device, sink_tokens)
        return dense_attention(q, k, v, mask)
    if is_full_causal(seq_len, window_size, dilation, sink_tokens):
        return fused_attention(q, k, v)
    bias = cached_window_mask(seq_len, window_size, dilation, device, sink_tokens, q.dtype)
    return fused_attention(q, k, v, bias)

"""Split attention: near, far and sink part, each by its own kernel, merged into one softmax."""

import functools
import warnings
from functools import partial

import torch
import torch.nn.functional as F

from attention.full import dense_attention
from attention.kernels import CHOICES, CUDA_HEAD_DIM, KERNELS
from attention.masks import constant_of_a_graph
from attention.parts import (
    _empty_results,
    _far,
    _far_backward,
    _foldable,
    _keys_read,
    _near,
    _near_backward,
    _readable,
    _rows,
    far_parts,
    first_with_far_keys,
)
from attention.pattern import window_mask
from attention.sinks import _merge_sinks, _sink_backward


def _beside(device, one, other):
    """What both functions return; on CUDA the kernels of both may run at the same time.

    Neither part alone fills a GPU to its end, and the backward kernels begin and end with passes
    that only move memory.  Forward and backward, compiled, took 0.95 of the time one after the
    other at 1,024 tokens (H200, B8 H16 D32), 0.96 at 4,096 and 0.99 from 16,384 on (B1 H16 D64).
    """
    if device.type != "cuda":
        return one(), other()
    stream = torch.cuda.current_stream(device)
    side = _side_stream(stream)
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        from_side = one()
    other_results = other()
    stream.wait_stream(side)
    return from_side, other_results


@functools.cache
def _side_stream(stream):
    """A stream that only works between a wait for ``stream`` and one of ``stream`` for it.

    Tensors made on it may therefore be used and freed on ``stream`` as if they were its own.
    PyTorch hands streams out in turn and again; few programs take any of high priority.  (One of
    ordinary priority would gain another 1 to 2 % from 16,384 tokens on.)
    """
    return torch.cuda.Stream(stream.device, priority=-1)


@torch.library.custom_op("window_attention::near_and_far", mutates_args=())
def _near_and_far(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window_size: int,
    dilation: int,
    scale: float,
    near: str,
    far: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both parts, not merged: out (B, S, H, D) and log-sum-exp (B, H, S) of each.

    The far part has only the M queries that have far keys: (B, M, H, D) and (B, H, M).
    """
    q, k, v = map(_readable, (q, k, v))
    late = q[:, first_with_far_keys(q.shape[1], window_size, dilation) :]
    of_near = partial(_near, q, k, v, window_size, scale, KERNELS[near])
    if not late.shape[1]:
        return *of_near(), *_empty_results(late)
    of_far = partial(_far, late, k, v, dilation, scale, KERNELS[far])
    near_results, far_results = _beside(q.device, of_near, of_far)
    return *near_results, *far_results


@_near_and_far.register_fake
def _(q, k, v, window_size, dilation, scale, near, far):
    late = q[:, first_with_far_keys(q.shape[1], window_size, dilation) :]
    return *_empty_results(q), *_empty_results(late)


@torch.library.custom_op("window_attention::near_and_far_backward", mutates_args=())
def _near_and_far_backward(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    window_size: int,
    dilation: int,
    scale: float,
    near: str,
    far: str,
) -> list[torch.Tensor]:
    """The shares of dq, dk and dv of the near part, (B, S, H, D) each, then of the far part.

    out and lse are the merged ones.  The far part's dq is that of the queries with far keys, its
    dk and dv those of the keys it reads, the first ones.
    """
    gradient, q, k, v, out = map(_readable, (gradient, q, k, v, out))
    first = first_with_far_keys(q.shape[1], window_size, dilation)
    merged = out, lse, window_size, scale, KERNELS[near]
    of_near = partial(_near_backward, gradient, q, k, v, *merged)
    if first == q.shape[1]:
        return [*of_near(), *(x.new_empty(_rows(x, 0)) for x in (q, k, v))]
    merged = out[:, first:], lse[:, :, first:], dilation, scale, KERNELS[far]
    of_far = partial(_far_backward, gradient[:, first:], q[:, first:], k, v, *merged)
    near_results, far_results = _beside(q.device, of_near, of_far)
    return [*near_results, *far_results]


@_near_and_far_backward.register_fake
def _(gradient, q, k, v, out, lse, window_size, dilation, scale, near, far):
    late = q[:, first_with_far_keys(q.shape[1], window_size, dilation) :]
    keys = 0
    if late.shape[1]:
        keys = _keys_read(far_parts(late.shape[1], k.shape[1], dilation, KERNELS[far].multiple))
    rows = (*[q.shape[1]] * 3, late.shape[1], keys, keys)
    return [x.new_empty(_rows(x, n)) for x, n in zip((q, k, v) * 2, rows, strict=True)]


def _no_second_derivative(ctx, *gradients):
    raise RuntimeError("split attention has no second derivative: choose dense for double backward")


_near_and_far_backward.register_autograd(_no_second_derivative)


def _merge(near, far, first):
    """The softmax over the near and the far keys from those of each; returns out and lse.

    near: out (B, S, H, D) and log-sum-exp (B, H, S), which may be overwritten; far: the same of the
    queries from ``first`` on.  The weight of the far part is the sigmoid of the difference of the
    log-sum-exps.  Queries without far keys stay out of it: their difference would be infinite.
    """
    (out, lse), (far_out, far_lse) = near, far
    late, late_lse = out[:, first:], lse[:, :, first:]
    difference = (far_lse - late_lse).transpose(1, 2).unsqueeze(-1)  # (B, M, H, 1)
    merged_lse = torch.logaddexp(late_lse, far_lse)
    if torch.compiler.is_compiling():  # one kernel, which keeps float32 inside
        late = late.to(lse.dtype).lerp(far_out.to(lse.dtype), difference.sigmoid()).to(out.dtype)
        out = torch.cat([out[:, :first], late], dim=1)
        return out, torch.cat([lse[:, :, :first], merged_lse], dim=2)
    if out.dtype == lse.dtype:
        late.lerp_(far_out, difference.sigmoid())
    else:
        # A weight close to 1 would lose in 16 bits what is left for the other part.  So each row
        # starts from the part with the larger weight, and the smaller one is rounded.
        smaller = (-difference.abs()).sigmoid().to(out.dtype)
        from_near = difference <= 0
        late.lerp_(far_out, smaller * from_near)
        torch.lerp(far_out, late, smaller.masked_fill_(from_near, 1), out=late)
    late_lse.copy_(merged_lse)
    return out, lse


class SplitAttention(torch.autograd.Function):
    """Near, far and sink part, merged; what torch.compile can fuse stands outside the operators."""

    @staticmethod
    def forward(ctx, q, k, v, window_size, dilation, sinks, scale, near_kernel, far_kernel):
        # copies, where there are any, take the place of the inputs in the backward pass too
        q, k, v = _foldable(q, k, v)
        options = window_size, dilation, scale, near_kernel, far_kernel
        out, lse, *far = _near_and_far(q, k, v, *options)
        first = first_with_far_keys(q.shape[1], window_size, dilation)
        if first < q.shape[1]:
            out, lse = _merge((out, lse), far, first)
        ctx.sink_options = (window_size, dilation, sinks), scale
        if sinks:
            with torch.autocast(q.device.type, enabled=False):
                out, lse = _merge_sinks(out, lse, q, k, v, *ctx.sink_options)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx, gradient):
        q, *_ = saved = ctx.saved_tensors
        dq, dk, dv, far_dq, far_dk, far_dv = _near_and_far_backward(gradient, *saved, *ctx.options)
        first = first_with_far_keys(q.shape[1], *ctx.options[:2])
        if first < q.shape[1]:
            dq[:, first:].add_(far_dq)  # += would copy the sums onto themselves
            dk[:, : far_dk.shape[1]].add_(far_dk)
            dv[:, : far_dv.shape[1]].add_(far_dv)
        sinks = ctx.sink_options[0][-1]
        if sinks:
            with torch.autocast(q.device.type, enabled=False):
                shares = _sink_backward(gradient, *saved, *ctx.sink_options)
            for whole, share in zip((dq, dk[:, :sinks], dv[:, :sinks]), shares, strict=True):
                whole.add_(share)
        return dq, dk, dv, None, None, None, None, None, None


def split_attention(q, k, v, window_size, dilation, kernels, sink_tokens=0):
    """The pattern at a cost that follows its pairs; q, k, v and the result are (B, S, H, D).

    kernels: the names of the near and the far kernel in ``KERNELS``, see ``split_kernels``.
    """
    head_dim = q.shape[-1]
    missing = -head_dim % CUDA_HEAD_DIM if q.is_cuda else 0
    if missing:
        q, k, v = (F.pad(x, (0, missing)) for x in (q, k, v))
    window_size = min(window_size, q.shape[1])
    # later keys have no query beyond their window; with d = 1 every query has them as far keys
    sinks = 0 if dilation == 1 else max(min(sink_tokens, q.shape[1] - 1 - window_size), 0)
    out = SplitAttention.apply(q, k, v, window_size, dilation, sinks, head_dim**-0.5, *kernels)
    return out[..., :head_dim] if missing else out


@constant_of_a_graph
def split_kernels(device, dtype, head_dim):
    """The names of the fastest (near, far) kernels that work here, or None after one warning.

    Each choice is tried on a small example against dense attention, once in a process, for
    PyTorch's underscored operators may change with its version and depend on the device.
    """
    return _split_kernels(device, dtype, head_dim, torch.are_deterministic_algorithms_enabled())


@functools.cache
def _split_kernels(device, dtype, head_dim, deterministic):
    problem = f"no kernel is known for {dtype} on {device.type}"
    for kernels in CHOICES.get((device.type, dtype), []):
        if deterministic and "cudnn" in kernels:
            continue  # its backward pass has no deterministic form
        problem = _problem_with(kernels, device, dtype, head_dim)
        if problem is None:
            return kernels
    warnings.warn(
        f"split attention does not work here ({problem}): masked takes its place", stacklevel=2
    )
    return None


def _problem_with(kernels, device, dtype, head_dim):
    """What speaks against using a (near, far) pair of kernels here, in words, or None."""
    generator = torch.Generator().manual_seed(0)
    quiet = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), quiet:
        numbers = torch.randn((4, 1, 76, 2, head_dim), generator=generator, device="cpu")
        *qkv, upstream = numbers.to(device, dtype)
        mask = window_mask(76, 20, 7, device)
        results = []
        try:
            for attend in (
                lambda q, k, v: split_attention(q, k, v, 20, 7, kernels),
                lambda q, k, v: dense_attention(q, k, v, mask),
            ):
                exact = torch.float64 if results else dtype
                leaves = [x.to(exact).requires_grad_() for x in qkv]
                out = attend(*leaves)
                results.append((out, *torch.autograd.grad(out, leaves, upstream.to(exact))))
        except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
            return str(error).strip().splitlines()[0]
    largest = 10 * torch.finfo(dtype).eps
    for mine, reference in zip(*results, strict=True):
        if not (mine - reference).norm() <= largest * reference.norm():
            return f"{' and '.join(kernels)} give other results than dense attention"
    return None

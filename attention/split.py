"""Split attention: the pattern at a cost that follows the attended pairs, exact, forward and back.

How it works, for window w and dilation d:

1. **near**: query i sees the keys i - w .. i.  FlashAttention has such windows and takes the
   sequence whole.  For the other kernels it is cut into chunks of queries, each against its keys
   and those of the window before it; the keys of neighbouring chunks overlap.
2. **far**: query i sees the keys i - o, i - o - d, i - o - 2d ... with o = w + d.  Take the queries
   from o on and count them anew, t = i - o: query t sees the keys t, t - d, t - 2d ...  Those are
   the tokens of its own residue class modulo d (for d = 3 the classes are 0 3 6 .., 1 4 7 .. and
   2 5 8 ..), and within one class that is ordinary causal attention over S / d tokens.  So the d
   classes are handed to a kernel as d times as many heads: dilation is heads (known from NATTEN,
   Hassani et al. 2023).
3. **merge**: each kernel returns its output and the log-sum-exp of its scores, lse.  One softmax
   over both sets of keys is the mean of both outputs with the weights exp(lse_near) and
   exp(lse_far) (Milakov & Gimelshein 2018); its own lse is the logarithm of their sum.
4. **sink**: a third part, the scores of the first N keys in plain products, merged likewise.
5. **backward**: a kernel's backward pass computes every weight again as exp(score - lse).  Given
   the *merged* out and lse it finds the weights of the merged softmax, and so its exact share of
   dq, dk and dv; the shares are added (as in ring attention, Liu et al. 2023).

Which kernel serves near and which far: ``kernels.CHOICES``, tried by ``split_kernels`` before use.
When ``auto`` takes split: ``choose.attention_plan``.  The geometry is in pieces.py, the parts in
parts.py and sinks.py.  Names: ``first`` is o, or S where no query has far keys; ``late`` are the
M = S - first queries from there on.  Shapes: q, k, v, out (B, S, H, D); lse (B, H, S).
"""

import functools
import warnings
from functools import partial

import torch
import torch.nn.functional as F

from attention.full import dense_attention
from attention.kernels import CHOICES, CUDA_HEAD_DIM, KERNELS
from attention.masks import constant_of_a_graph
from attention.parts import backward, empty_results, forward, readable, with_tokens
from attention.pattern import window_mask
from attention.pieces import far_part, foldable, near_part
from attention.sinks import merge_sinks, sink_backward


def first_with_far_keys(seq_len, window_size, dilation):
    """The first query position that has far keys, or ``seq_len`` where none has."""
    first = window_size + dilation
    return first if dilation and first < seq_len else seq_len


def _parts(q, window_size, dilation, near_kernel, far_kernel):
    """The near Part, the far one (None without far keys) and the first query of that."""
    seq_len = q.shape[1]
    near = near_part(seq_len, window_size, KERNELS[near_kernel])
    first = first_with_far_keys(seq_len, window_size, dilation)
    if first == seq_len:
        return near, None, first
    return near, far_part(seq_len - first, seq_len, dilation, KERNELS[far_kernel]), first


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


# To torch.compile the two operators are closed boxes; what it can fuse stands outside of them.
@torch.library.custom_op("window_attention::near_and_far", mutates_args=())
def _near_and_far(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window_size: int,
    dilation: int,
    scale: float,
    near_kernel: str,
    far_kernel: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both parts, not merged: out (B, S, H, D) and lse (B, H, S) of each.

    The far part has only the M queries that have far keys: (B, M, H, D) and (B, H, M).
    """
    q, k, v = readable(q), readable(k), readable(v)
    near, far, first = _parts(q, window_size, dilation, near_kernel, far_kernel)
    late_q = q[:, first:]
    of_near = partial(forward, q, k, v, near, scale)
    if not late_q.shape[1]:
        return *of_near(), *empty_results(late_q)
    of_far = partial(forward, late_q, k, v, far, scale)
    near_results, far_results = _beside(q.device, of_near, of_far)
    return *near_results, *far_results


@_near_and_far.register_fake
def _(q, k, v, window_size, dilation, scale, near_kernel, far_kernel):
    late_q = q[:, first_with_far_keys(q.shape[1], window_size, dilation) :]
    return *empty_results(q), *empty_results(late_q)


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
    near_kernel: str,
    far_kernel: str,
) -> list[torch.Tensor]:
    """The shares of dq, dk and dv of the near part, (B, S, H, D) each, then of the far part.

    out and lse are the merged ones.  The far part's dq is that of the queries with far keys, its
    dk and dv those of the keys it reads, the first ones.
    """
    gradient, q, k, v, out = map(readable, (gradient, q, k, v, out))
    near, far, first = _parts(q, window_size, dilation, near_kernel, far_kernel)
    of_near = partial(backward, gradient, q, k, v, out, lse, near, scale)
    if first == q.shape[1]:
        return [*of_near(), *(x.new_empty(with_tokens(x, 0)) for x in (q, k, v))]
    late_gradient, late_q, late_out = (x[:, first:] for x in (gradient, q, out))
    late_lse = lse[:, :, first:]
    of_far = partial(backward, late_gradient, late_q, k, v, late_out, late_lse, far, scale)
    near_results, far_results = _beside(q.device, of_near, of_far)
    return [*near_results, *far_results]


@_near_and_far_backward.register_fake
def _(gradient, q, k, v, out, lse, window_size, dilation, scale, near_kernel, far_kernel):
    _, far, first = _parts(q, window_size, dilation, near_kernel, far_kernel)
    late, keys = (q.shape[1] - first, far.keys) if far else (0, 0)
    near_results = [x.new_empty(x.shape) for x in (q, k, v)]
    far_results = [x.new_empty(with_tokens(x, n)) for x, n in ((q, late), (k, keys), (v, keys))]
    return near_results + far_results


def _merge(out, lse, far_out, far_lse, first):
    """The softmax over the near and the far keys from those of each; returns out and lse.

    out (B, S, H, D) and lse (B, H, S): the near part's, which may be overwritten; far_out and
    far_lse: those of the queries from ``first`` on.  The weight of the far part is the sigmoid of
    the difference of the log-sum-exps.  Queries without far keys stay out of it: their difference
    would be infinite.
    """
    late_out, late_lse = out[:, first:], lse[:, :, first:]
    difference = (far_lse - late_lse).transpose(1, 2).unsqueeze(-1)  # (B, M, H, 1)
    merged_lse = torch.logaddexp(late_lse, far_lse)
    if torch.compiler.is_compiling():  # one kernel, which keeps float32 inside
        wide, far_wide = late_out.to(lse.dtype), far_out.to(lse.dtype)
        merged = wide.lerp(far_wide, difference.sigmoid()).to(out.dtype)
        out = torch.cat([out[:, :first], merged], dim=1)
        return out, torch.cat([lse[:, :, :first], merged_lse], dim=2)
    if out.dtype == lse.dtype:
        late_out.lerp_(far_out, difference.sigmoid())
    else:
        # A weight close to 1 would lose in 16 bits what is left for the other part.  So each row
        # starts from the part with the larger weight, and the smaller one is rounded.
        smaller = (-difference.abs()).sigmoid().to(out.dtype)
        from_near = difference <= 0
        late_out.lerp_(far_out, smaller * from_near)
        torch.lerp(far_out, late_out, smaller.masked_fill_(from_near, 1), out=late_out)
    late_lse.copy_(merged_lse)
    return out, lse


class SplitAttention(torch.autograd.Function):
    """Near, far and sink part, merged; see the top of this file."""

    @staticmethod
    def forward(ctx, q, k, v, window_size, dilation, sinks, scale, near_kernel, far_kernel):
        # copies, where there are any, take the place of the inputs in the backward pass too
        q, k, v = foldable(q, k, v)
        ctx.options = window_size, dilation, scale, near_kernel, far_kernel
        ctx.sink_options = (window_size, dilation, sinks), scale
        out, lse, far_out, far_lse = _near_and_far(q, k, v, *ctx.options)
        first = first_with_far_keys(q.shape[1], window_size, dilation)
        if first < q.shape[1]:
            out, lse = _merge(out, lse, far_out, far_lse, first)
        if sinks:
            with torch.autocast(q.device.type, enabled=False):
                out, lse = merge_sinks(out, lse, q, k, v, *ctx.sink_options)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("split attention has no second derivative: choose masked")
        saved = ctx.saved_tensors
        dq, dk, dv, far_dq, far_dk, far_dv = _near_and_far_backward(gradient, *saved, *ctx.options)
        (window_size, dilation, sinks), _ = ctx.sink_options
        first = first_with_far_keys(dq.shape[1], window_size, dilation)
        if first < dq.shape[1]:
            dq[:, first:].add_(far_dq)  # += would copy the sums onto themselves
            dk[:, : far_dk.shape[1]].add_(far_dk)
            dv[:, : far_dv.shape[1]].add_(far_dv)
        if sinks:
            with torch.autocast(gradient.device.type, enabled=False):
                sink_dq, sink_dk, sink_dv = sink_backward(gradient, *saved, *ctx.sink_options)
            dq.add_(sink_dq)
            dk[:, :sinks].add_(sink_dk)
            dv[:, :sinks].add_(sink_dv)
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
        numbers = numbers.to(device, dtype)
        mask = window_mask(76, 20, 7, device)
        try:
            found = _out_and_gradients(lambda *qkv: split_attention(*qkv, 20, 7, kernels), numbers)
        except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
            return str(error).strip().splitlines()[0]
        exact = _out_and_gradients(lambda *qkv: dense_attention(*qkv, mask), numbers.double())
    largest = 10 * torch.finfo(dtype).eps
    for value, reference in zip(found, exact, strict=True):
        if not (value - reference).norm() <= largest * reference.norm():
            return f"{' and '.join(kernels)} give other results than dense attention"
    return None


def _out_and_gradients(attend, numbers):
    *qkv, upstream = numbers
    leaves = [x.requires_grad_() for x in qkv]
    out = attend(*leaves)
    return out, *torch.autograd.grad(out, leaves, upstream)

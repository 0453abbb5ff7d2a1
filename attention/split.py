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

Heads that see the same are a group, and every group goes its own way: full heads are causal
attention by the far kernel and nothing to merge, heads without far keys are near alone.  With a
phase p a head's o is w + p.  On CUDA all parts of all groups may run at the same time.

Which kernel serves near and which far: ``kernels.CHOICES``, tried by ``split_kernels`` before use.
When ``auto`` takes split: ``choose.attention_plan``.  The geometry is in pieces.py, the parts in
parts.py and sinks.py.  Names: ``first`` is o, or S where no query has far keys; ``late`` are the
M = S - first queries from there on.  Shapes: q, k, v, out (B, S, H, D); lse (B, H, S).
"""

import warnings
from functools import partial

import torch

from attention.full import dense_attention
from attention.kept import constant_of_a_graph, kept, recording
from attention.kernels import CHOICES, with_padded_heads
from attention.masks import cached_mask
from attention.parts import backward, empty_results, forward, readable, side_by_side
from attention.pattern import HeadPattern, Pattern
from attention.pieces import foldable, parts_of_head
from attention.sinks import merge_sinks, sink_backward


# torch.compile cannot look into these two operators; what it can fuse stands outside of them.  For
# each group of like heads they take q, k and v, (B, S, H, D) with the group's own H, and the four
# numbers of its HeadPattern.  They return the results of all parts in one flat list, in the order
# of ``_all_parts``, each for the M queries from the part's first on.
@torch.library.custom_op("window_attention::parts", mutates_args=())
def _parts(
    qkv: list[torch.Tensor], patterns: list[int], scale: float, near_kernel: str, far_kernel: str
) -> list[torch.Tensor]:
    """All parts, not merged: out (B, M, H, D) and lse (B, H, M) of each."""
    qkv = [readable(x) for x in qkv]
    todo = []
    for group, part in _all_parts(qkv, patterns, near_kernel, far_kernel):
        todo.append(partial(forward, *part.of(*_of_group(qkv, group)), part, scale))
    return [x for results in side_by_side(qkv[0].device, todo) for x in results]


def _all_parts(qkv, patterns, near_kernel, far_kernel):
    """(number of the group, Part) of every part of every group."""
    found = []
    for group in range(len(patterns) // 4):
        head = HeadPattern(*patterns[4 * group : 4 * group + 4])
        parts = parts_of_head(qkv[0].shape[1], head, near_kernel, far_kernel)
        found += [(group, part) for part in parts]
    return found


def _of_group(qkv, group):
    return qkv[3 * group : 3 * group + 3]


@_parts.register_fake
def _(qkv, patterns, scale, near_kernel, far_kernel):
    results = []
    for group, part in _all_parts(qkv, patterns, near_kernel, far_kernel):
        results += empty_results(qkv[3 * group][:, part.first :])
    return results


@torch.library.custom_op("window_attention::parts_backward", mutates_args=())
def _parts_backward(
    gradients: list[torch.Tensor],
    qkv: list[torch.Tensor],
    outs: list[torch.Tensor],
    lses: list[torch.Tensor],
    patterns: list[int],
    scale: float,
    near_kernel: str,
    far_kernel: str,
) -> list[torch.Tensor]:
    """Each part's shares of dq (B, M, H, D), and of dk and dv for the keys that it reads.

    outs and lses are the merged ones of every group.
    """
    gradients, qkv, outs = ([readable(x) for x in tensors] for tensors in (gradients, qkv, outs))
    todo = []
    for group, part in _all_parts(qkv, patterns, near_kernel, far_kernel):
        gradient, out = (x[:, part.first :] for x in (gradients[group], outs[group]))
        lse = lses[group][:, :, part.first :]
        inputs = gradient, *part.of(*_of_group(qkv, group)), out, lse
        todo.append(partial(backward, *inputs, part, scale))
    return [x for results in side_by_side(qkv[0].device, todo) for x in results]


@_parts_backward.register_fake
def _(gradients, qkv, outs, lses, patterns, scale, near_kernel, far_kernel):
    results = []
    for group, part in _all_parts(qkv, patterns, near_kernel, far_kernel):
        results += [x.new_empty(x.shape) for x in part.of(*_of_group(qkv, group))]
    return results


def _no_gradient(ctx, *gradients):
    """``SplitAttention`` has the gradients, but of it torch.export keeps ``_parts`` alone."""
    raise RuntimeError("exported split attention has no gradients: export dense or masked")


_parts.register_autograd(_no_gradient)


def merge(out, lse, far_out, far_lse):
    """Merge the near and the far part into one softmax over the keys of both; returns out and lse.

    out (B, S, H, D) and lse (B, H, S): the near part's, which may be overwritten.  far_out and
    far_lse: the far part's, for the late queries alone.  Its weight is the sigmoid of the
    difference of the log-sum-exps.
    A late query may have no keys in one of the two, whose out is then 0 and whose lse is minus
    infinity, but never in both.
    """
    first = out.shape[1] - far_out.shape[1]
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


def _merged(head, q, k, v, parts, scale):
    """A group's out and lse, merged from those of its parts, the next ones of ``parts``."""
    out, lse = next(parts), next(parts)
    if head.dilation > 1:
        out, lse = merge(out, lse, next(parts), next(parts))
    if head.sink_tokens:
        with torch.autocast(q.device.type, enabled=False):
            out, lse = merge_sinks(out, lse, q, k, v, head, scale)
    return out, lse


def _added_up(head, gradient, q, k, v, out, lse, parts, scale):
    """A group's dq, dk and dv, the sums of its parts' shares, the next ones of ``parts``."""
    dq, dk, dv = next(parts), next(parts), next(parts)
    if head.dilation > 1:
        far_dq, far_dk, far_dv = next(parts), next(parts), next(parts)
        dq[:, -far_dq.shape[1] :].add_(far_dq)  # += would copy the sums onto themselves
        dk[:, : far_dk.shape[1]].add_(far_dk)
        dv[:, : far_dv.shape[1]].add_(far_dv)
    if head.sink_tokens:
        with torch.autocast(q.device.type, enabled=False):
            shares = sink_backward(gradient, q, k, v, out, lse, head, scale)
        dq.add_(shares[0])
        dk[:, : head.sink_tokens].add_(shares[1])
        dv[:, : head.sink_tokens].add_(shares[2])
    return dq, dk, dv


def all_heads(found, groups):
    """The groups' tensors (B, S, ., D) as one (B, S, H, D), each head at its place.

    groups: for each group a tuple that ends with the slice of its heads.
    """
    if len(found) == 1:
        return found[0]
    B, S, _, D = found[0].shape
    whole = found[0].new_empty((B, S, sum(x.shape[2] for x in found), D))
    for x, (*_, heads) in zip(found, groups, strict=True):
        whole[:, :, heads] = x
    return whole


class SplitAttention(torch.autograd.Function):
    """Full heads, and the merged near, far and sink parts of the others; see the file's top."""

    @staticmethod
    def forward(ctx, q, k, v, scale, near_kernel, far_kernel, *pattern):
        groups = Pattern(*pattern).like_heads(q.shape[1], q.shape[2])
        qkv = []
        for head, heads in groups:
            tensors = q[:, :, heads], k[:, :, heads], v[:, :, heads]
            # copies, where there are any, take the place of the inputs in the backward pass too
            qkv += foldable(*tensors) if head.dilation > 1 else tensors
        ctx.groups = groups
        ctx.options = [n for head, _ in groups for n in head], scale, near_kernel, far_kernel
        parts = iter(_parts(qkv, *ctx.options))
        outs, lses = [], []
        for number, (head, _) in enumerate(groups):
            out, lse = _merged(head, *_of_group(qkv, number), parts, scale)
            outs.append(out)
            lses.append(lse)
        out = all_heads(outs, groups)
        ctx.save_for_backward(out, *lses, *qkv)
        return out

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("split attention has no second derivative: choose dense")
        groups = ctx.groups
        out, *saved = ctx.saved_tensors
        lses, qkv = saved[: len(groups)], saved[len(groups) :]
        gradients = [gradient[:, :, heads] for _, heads in groups]
        outs = [out[:, :, heads] for _, heads in groups]
        for number, (head, _) in enumerate(groups):
            if head.dilation:  # cuDNN's plans want one layout for all, see kernels.py
                gradients[number] = gradients[number].contiguous()
                outs[number] = outs[number].contiguous()
        parts = iter(_parts_backward(gradients, qkv, outs, lses, *ctx.options))
        found = []
        for number, (head, _) in enumerate(groups):
            inputs = gradients[number], *_of_group(qkv, number), outs[number], lses[number]
            found.append(_added_up(head, *inputs, parts, ctx.options[1]))
        whole = [all_heads(shares, groups) for shares in zip(*found, strict=True)]
        return *whole, *[None] * (3 + len(Pattern._fields))


def split_attention(q, k, v, pattern, kernels):
    """The ``Pattern`` at a cost that follows its pairs; q, k, v and the result are (B, S, H, D).

    kernels: the names of the near and the far kernel in ``KERNELS``, see ``split_kernels``.
    """
    options = q.shape[-1] ** -0.5, *kernels, *pattern
    return with_padded_heads(lambda *qkv: SplitAttention.apply(*qkv, *options), q, k, v)


@constant_of_a_graph
def split_kernels(device, dtype, head_dim):
    """The names of the fastest (near, far) kernels that work here, or None after one warning.

    Each choice is tried on a small example against dense attention, once in a process, for
    PyTorch's underscored operators may change with its version and depend on the device.
    """
    return _split_kernels(device, dtype, head_dim, torch.are_deterministic_algorithms_enabled())


@kept(None)
def _split_kernels(device, dtype, head_dim, deterministic):
    problem = f"no kernel is known for {dtype} on {device.type}"
    for kernels in CHOICES.get((device.type, dtype), []):
        if deterministic and "cudnn" in kernels:
            continue  # its backward pass has no deterministic form
        problem = _problem_with(kernels, device, dtype, head_dim)
        if problem is None:
            return kernels
    warnings.warn(
        f"split attention does not work here ({problem}): auto takes masked", stacklevel=2
    )
    return None


def _problem_with(kernels, device, dtype, head_dim):
    """Why a (near, far) pair of kernels cannot be used here, in words, or None."""
    if recording():
        return None  # nothing can be compared while a CUDA graph is recorded
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn((4, 1, 76, 2, head_dim), generator=generator).to(device, dtype)
    pattern = Pattern(20, 7, full_heads=1)
    mask = cached_mask(76, 2, device, None, *pattern)
    try:
        split = partial(split_attention, pattern=pattern, kernels=kernels)
        found = _out_and_gradients(split, numbers)
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
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)

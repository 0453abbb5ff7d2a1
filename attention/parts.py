"""Computes a part of split attention (full, near or far) by its kernel, or several at once."""

import functools
import math

import torch

from attention.pieces import calls


def forward(q, k, v, part, scale):
    """The part's attention: out (B, M, H, D) and log-sum-exp (B, H, M) of its M queries.

    q, k and v are those that it reads (``Part.of``).  A query without keys has an out of 0 and a
    log-sum-exp of minus infinity.
    """
    todo = list(calls(part.pieces, q, k, v))
    if len(todo) == 1 and todo[0].in_turn and part.complete:
        return _forward_at_once(q, k, v, todo[0], part, scale)
    out, lse = empty_results(q)
    if not part.complete:
        out.zero_()
        lse.fill_(-math.inf)
    for pieces in todo:
        found, found_lse = part.kernel.forward(*_views(pieces, q, k, v), part.seen, scale)
        lse_pieces = pieces.of_lse(lse)
        pieces.of_queries(out).copy_(found)
        lse_pieces.copy_(found_lse.reshape(lse_pieces.shape))
    return out, lse


def _forward_at_once(q, k, v, pieces, part, scale):
    """``forward`` where one call does it all, so that its results need no copy."""
    out, lse = part.kernel.forward(*_views(pieces, q, k, v), part.seen, scale)
    B, S, H, _ = q.shape
    lse = lse.reshape(B, pieces.count, H, pieces.length).permute(0, 2, 3, 1)
    return _in_order(out, B, H), lse.reshape(B, H, S).contiguous()


def backward(gradient, q, k, v, out, lse, part, scale):
    """The part's share of dq (B, M, H, D), and of dk and dv for the keys it reads.

    gradient, out and lse are those of the merged softmax.
    """
    todo = list(calls(part.pieces, gradient, q, k, v, out))
    if len(todo) == 1 and todo[0].in_turn and part.complete:
        found = _gradients(gradient, q, k, v, out, lse, todo[0], part, scale)
        return [_in_order(x, q.shape[0], q.shape[2]) for x in found]
    dq = q.new_empty(q.shape) if part.complete else q.new_zeros(q.shape)
    dk, dv = (x.new_zeros(x.shape) for x in (k, v))
    for pieces in todo:
        found = _gradients(gradient, q, k, v, out, lse, pieces, part, scale)
        found_dq, found_dk, found_dv = found
        pieces.of_queries(dq).copy_(found_dq)
        pieces.add_to_keys(dk, found_dk)
        pieces.add_to_keys(dv, found_dv)
    return dq, dk, dv


def _views(pieces, q, k, v):
    return pieces.of_queries(q), pieces.of_keys(k), pieces.of_keys(v)


def _gradients(gradient, q, k, v, out, lse, pieces, part, scale):
    q_pieces, k_pieces, v_pieces = _views(pieces, q, k, v)
    gradient_pieces, out_pieces = pieces.of_queries(gradient), pieces.of_queries(out)
    lse_pieces = pieces.of_lse(lse).reshape(q_pieces.shape[:3])
    inputs = gradient_pieces, q_pieces, k_pieces, v_pieces, out_pieces, lse_pieces
    return part.kernel.backward(*inputs, part.seen, scale)


def _in_order(pieces, batches, heads):
    """The result of one call as (B, tokens, H, D), contiguous, in the order of the tokens."""
    folded = pieces.reshape(batches, -1, *pieces.shape[2:])  # (B, count * H, length, D)
    tokens = folded.transpose(1, 2).reshape(batches, -1, heads, pieces.shape[3])
    # a reshape alone may be a view, of other strides than torch.compile was told
    return tokens.contiguous()


def side_by_side(device, functions):
    """What each of the functions returns; on CUDA their kernels may run at the same time.

    A part alone leaves some of a GPU idle at its end, and the backward kernels begin and end with
    passes that only move memory.  Side by side, near and far took 0.95 of their time one after the
    other at 1,024 tokens (H200, B8 H16 D32, forward and backward, compiled), 0.96 at 4,096 and 0.99
    from 16,384 on (B1 H16 D64).
    """
    if device.type != "cuda":
        return [function() for function in functions]
    stream = torch.cuda.current_stream(device)
    sides = [_side_stream(stream, number) for number in range(len(functions) - 1)]
    results = []
    for side, function in zip(sides, functions, strict=False):
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            results.append(function())
    results.append(functions[-1]())
    for side in sides:
        stream.wait_stream(side)
    return results


@functools.cache
def _side_stream(stream, number):
    """A side stream, which first waits for ``stream``, and for which ``stream`` waits afterwards.

    So tensors made on it may be used and freed on ``stream`` as if they were made there.
    Why of high priority: PyTorch hands out the same few streams again and again, and few programs
    take one of these.  (Ordinary priority would gain another 1 to 2 % from 16,384 tokens on.)
    """
    return torch.cuda.Stream(stream.device, priority=-1)


def empty_results(q):
    """Contiguous room for an output like q (B, S, H, D) and its log-sum-exp (B, H, S)."""
    B, S, H, _ = q.shape
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((B, H, S), dtype=lse_dtype)


def readable(x):
    """x where the kernels can read it in place, else a copy.

    They want the last dimension contiguous; CUDA kernels load 16 bytes at a time and know no
    stride of 0.
    """
    if x.is_cuda:
        offsets = (x.data_ptr(), *(n * x.element_size() for n in x.stride()[:-1]))
        if any(n % 16 for n in offsets) or 0 in x.stride():
            return x.clone(memory_format=torch.contiguous_format)
    return x if x.stride(-1) == 1 else x.contiguous()

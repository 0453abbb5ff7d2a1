"""The near and the far part of split attention, forward and backward, by any of the kernels."""

import torch

from attention.kernels import CAUSAL
from attention.pieces import calls, far_pieces, keys_read, near_pieces, one_token, whole_sequence


def near(q, k, v, window_size, scale, kernel):
    """Sliding-window attention: out (B, S, H, D) and log-sum-exp (B, H, S)."""
    seq_len = q.shape[1]
    if kernel.least_chunk is None:
        return _at_once(q, k, v, whole_sequence(seq_len), kernel, window_size, scale)
    groups = near_pieces(seq_len, window_size, kernel.least_chunk)
    return _by_pieces(q, k, v, calls(groups, q, k, v), kernel, window_size, scale)


def near_backward(gradient, q, k, v, out, lse, window_size, scale, kernel):
    """The near part's share of dq, dk and dv, (B, S, H, D) each; out and lse are the merged."""
    seq_len, tensors = q.shape[1], (gradient, q, k, v, out)
    if kernel.least_chunk is None:
        whole = whole_sequence(seq_len)
        return _backward_at_once(*tensors, lse, whole, kernel, window_size, scale)
    groups = near_pieces(seq_len, window_size, kernel.least_chunk)
    todo = calls(groups, *tensors)
    return _backward_by_pieces(*tensors, lse, todo, kernel, window_size, scale, seq_len)


def far(q, k, v, dilation, scale, kernel):
    """Dilated causal attention: out (B, M, H, D) and log-sum-exp (B, H, M).

    Query t of q (B, M, H, D) attends to the keys t, t - d, t - 2d, ... of k and v (B, >= M, H, D).
    """
    q, k, v = foldable(q, k, v)
    groups = far_pieces(q.shape[1], k.shape[1], dilation, kernel.multiple)
    todo = list(calls(groups, q, k, v))
    if len(todo) == 1:
        return _at_once(q, k, v, todo[0], kernel, CAUSAL, scale)
    return _by_pieces(q, k, v, todo, kernel, CAUSAL, scale)


def far_backward(gradient, q, k, v, out, lse, dilation, scale, kernel):
    """The far part's share of dq (B, M, H, D) and, for the keys it reads, of dk and dv."""
    tensors = foldable(gradient, q, k, v, out)
    groups = far_pieces(q.shape[1], k.shape[1], dilation, kernel.multiple)
    todo = list(calls(groups, *tensors))
    if len(todo) == 1:
        return _backward_at_once(*tensors, lse, todo[0], kernel, CAUSAL, scale)
    return _backward_by_pieces(*tensors, lse, todo, kernel, CAUSAL, scale, keys_read(groups))


def _by_pieces(q, k, v, todo, kernel, seen, scale):
    """All pieces by the kernel: out (B, S, H, D) and log-sum-exp (B, H, S).

    todo: Pieces that together have every query once; seen: see ``kernels.Kernel``.
    """
    out, lse = empty_results(q)
    for pieces in todo:
        inputs = pieces.of_queries(q), pieces.of_keys(k), pieces.of_keys(v)
        found, found_lse = kernel.forward(*inputs, seen, scale)
        lse_pieces = pieces.of_lse(lse)
        pieces.of_queries(out).copy_(found)
        lse_pieces.copy_(found_lse.reshape(lse_pieces.shape))
    return out, lse


def _at_once(q, k, v, pieces, kernel, seen, scale):
    """The same by one call, whose results need no copy."""
    inputs = pieces.of_queries(q), pieces.of_keys(k), pieces.of_keys(v)
    out, lse = kernel.forward(*inputs, seen, scale)
    B, S, H, _ = q.shape
    lse = lse.reshape(B, pieces.count, H, pieces.length).permute(0, 2, 3, 1)
    return _in_order(out, B, H), lse.reshape(B, H, S).contiguous()


def _backward_by_pieces(gradient, q, k, v, out, lse, todo, kernel, seen, scale, keys):
    """The pieces' share of dq (B, S, H, D), and of dk and dv for the first ``keys`` tokens.

    gradient, out and lse are those of the merged softmax.
    """
    dq = q.new_empty(q.shape)
    dk, dv = (x.new_zeros(with_tokens(x, keys)) for x in (k, v))
    for pieces in todo:
        found = _gradients(gradient, q, k, v, out, lse, pieces, kernel, seen, scale)
        found_dq, found_dk, found_dv = found
        pieces.of_queries(dq).copy_(found_dq)
        pieces.add_to_keys(dk, found_dk)
        pieces.add_to_keys(dv, found_dv)
    return dq, dk, dv


def _backward_at_once(gradient, q, k, v, out, lse, pieces, kernel, seen, scale):
    """The same by one call, whose results need no copy."""
    found = _gradients(gradient, q, k, v, out, lse, pieces, kernel, seen, scale)
    return [_in_order(x, q.shape[0], q.shape[2]) for x in found]


def _gradients(gradient, q, k, v, out, lse, pieces, kernel, seen, scale):
    q_pieces, out_pieces = pieces.of_queries(q), pieces.of_queries(out)
    inputs = pieces.of_queries(gradient), q_pieces, pieces.of_keys(k), pieces.of_keys(v)
    lse_pieces = pieces.of_lse(lse).reshape(q_pieces.shape[:3])
    return kernel.backward(*inputs, out_pieces, lse_pieces, seen, scale)


def _in_order(pieces, batches, heads):
    """The result of one call as (B, tokens, H, D), contiguous, in the order of the tokens."""
    folded = pieces.reshape(batches, -1, *pieces.shape[2:])  # (B, count * H, length, D)
    tokens = folded.transpose(1, 2).reshape(batches, -1, heads, pieces.shape[3])
    # a reshape alone may be a view, of other strides than torch.compile was told
    return tokens.contiguous()


def empty_results(q):
    """Contiguous room for an output like q (B, S, H, D) and its log-sum-exp (B, H, S)."""
    B, S, H, _ = q.shape
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((B, H, S), dtype=lse_dtype)


def with_tokens(x, count):
    """The shape of x (B, S, H, D) with ``count`` tokens."""
    return x.shape[0], count, *x.shape[2:]


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


def foldable(*tensors):
    """Tensors whose residue classes one CUDA call can take, else copies.

    On a CPU, a call for each batch costs less than the copies.
    """
    if not tensors[0].is_cuda or tensors[0].shape[0] == 1:
        return tensors
    if all(map(one_token, tensors)):
        return tensors
    if len({x.shape for x in tensors}) == 1:
        return torch.stack(tensors).unbind()  # one kernel
    return [x.contiguous() for x in tensors]

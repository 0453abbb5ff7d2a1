"""The near and the far part of split attention: which pieces, forward and backward."""

from typing import NamedTuple

import torch


class Part(NamedTuple):
    """Some queries and their keys as ``count`` equal pieces, all views of the sequence.

    Piece n has the queries query + n * hop + t * stride, t = 0 .. length - 1, against the keys
    key + n * hop + t * stride, t = 0 .. keys - 1.
    """

    query: int
    key: int
    count: int
    hop: int
    length: int
    keys: int
    stride: int


def near_parts(seq_len, window_size, chunk):
    """The sliding window as parts: a head that has no full window before it, chunks, a rest."""
    back = -(-window_size // chunk) * chunk  # keys before a chunk, whole chunks of them
    count, rest = divmod(seq_len - back, chunk)
    if count < 1:
        return [Part(0, 0, 1, 0, seq_len, seq_len, 1)]
    parts = [Part(0, 0, 1, 0, back, back, 1)]
    parts.append(Part(back, 0, count, chunk, chunk, back + chunk, 1))
    if rest:
        parts.append(Part(seq_len - rest, seq_len - rest - back, 1, 0, rest, back + rest, 1))
    return parts


def far_parts(queries, keys, dilation, multiple=1):
    """Query t against the keys t, t - d, t - 2d ...: a piece for each residue class modulo d.

    ``queries`` and ``keys`` count the tokens there are.  Where d does not divide the queries, some
    classes are one longer: two parts, and nothing is padded.  Where it does, keys that the causal
    mask hides are added up to a ``multiple`` in each class, as far as there are any.
    """
    # no divmod: torch.compile knows none for lengths that vary
    length, longer = queries // dilation, queries % dilation
    if not longer:
        padded = min(-(-length // multiple) * multiple, keys // dilation)
        return [Part(0, 0, dilation, 1, length, padded, dilation)]
    parts = [Part(0, 0, longer, 1, length + 1, length + 1, dilation)]
    if length:
        parts.append(Part(longer, longer, dilation - longer, 1, length, length, dilation))
    return parts


def _keys_read(parts):
    """How many of the first keys the far parts read together."""
    return sum(part.count * part.keys for part in parts)


def _folds(part, *tensors):
    """Can the pieces of all batches be seen as heads of one (B, count * H, length, D)?

    The next piece must lie where the next head would: H head strides on, one token.
    """
    one_token = all(x.stride(1) == x.shape[2] * x.stride(2) for x in tensors)
    return part.count == 1 or (part.hop == 1 and one_token)


def _pieces(x, part, first, length, folded):
    """Views of x (B, S, H, D), the part's pieces from position ``first`` on.

    [(B, count * H, length, D)] where ``folded``, else a (count, H, length, D) for each batch.
    """
    B, _, H, D = x.shape
    batch, token, head, last = x.stride()
    start = x.storage_offset() + first * token
    if folded:
        shape, strides = (B, part.count * H, length, D), (batch, head, part.stride * token, last)
        return [x.as_strided(shape, strides, start)]
    shape, strides = (part.count, H, length, D), (part.hop * token, head, part.stride * token, last)
    return [x.as_strided(shape, strides, start + b * batch) for b in range(B)]


def _lse_pieces(lse, part, folded):
    """The same for lse (B, H, S): [(B, count, H, length)], or (count, H, length) for each batch."""
    B, H, _ = lse.shape
    batch, head, token = lse.stride()
    shape = (B, part.count, H, part.length)
    strides = (batch, part.hop * token, head, part.stride * token)
    pieces = lse.as_strided(shape, strides, lse.storage_offset() + part.query * token)
    return [pieces] if folded else list(pieces)


def _in_order(pieces, batches, heads):
    """Results of equally long residue classes as (B, tokens, H, D), in the order of the tokens."""
    folded = pieces.reshape(batches, -1, *pieces.shape[2:])  # (B, count * H, length, D)
    return folded.transpose(1, 2).reshape(batches, -1, heads, pieces.shape[3])


def _in_one_launch(parts, q, *others):
    """Is a single call of the kernel enough, whose results are then the whole results?"""
    return len(parts) == 1 and (q.shape[0] == 1 or _folds(parts[0], q, *others))


def _forward_parts(q, k, v, parts, kernel, window, scale, results):
    """Fill the results out (B, S, H, D) and lse (B, H, S) part by part."""
    out, lse = results
    for part in parts:
        folded = _folds(part, q, k, v, out)
        for *qkv, out_piece, lse_piece in zip(
            _pieces(q, part, part.query, part.length, folded),
            _pieces(k, part, part.key, part.keys, folded),
            _pieces(v, part, part.key, part.keys, folded),
            _pieces(out, part, part.query, part.length, folded),
            _lse_pieces(lse, part, folded),
            strict=True,
        ):
            part_out, part_lse = kernel.forward(*qkv, window, scale)
            out_piece.copy_(part_out)
            lse_piece.copy_(part_lse.reshape(lse_piece.shape))
    return out, lse


def _add_keys(x, part, batch, folded, gradient):
    """Add a piece's gradients of the keys to x (B, S, H, D); pieces that overlap hop by hop."""
    hop = part.hop if part.keys > part.length and part.count > 1 else part.keys
    for start in range(0, part.keys, hop):
        first = part.key + start * part.stride
        target = _pieces(x, part, first, hop, folded)[batch]
        target.add_(gradient[:, :, start : start + hop])


def _backward_parts(gradient, q, k, v, out, lse, parts, kernel, window, scale, results):
    """Fill the results dq (B, S, H, D) part by part, and add to dk and dv."""
    dq, dk, dv = results
    for part in parts:
        folded = _folds(part, gradient, q, k, v, out, *results)
        pieces = zip(
            *(_pieces(x, part, part.query, part.length, folded) for x in (gradient, q, out, dq)),
            *(_pieces(x, part, part.key, part.keys, folded) for x in (k, v)),
            _lse_pieces(lse, part, folded),
            strict=True,
        )
        for n, (g_piece, q_piece, out_piece, dq_piece, k_piece, v_piece, part_lse) in enumerate(
            pieces
        ):
            part_dq, part_dk, part_dv = kernel.backward(
                *(g_piece, q_piece, k_piece, v_piece, out_piece),
                *(part_lse.reshape(q_piece.shape[:3]), window, scale),
            )
            dq_piece.copy_(part_dq)
            _add_keys(dk, part, n, folded, part_dk)
            _add_keys(dv, part, n, folded, part_dv)
    return dq, dk, dv


def _empty_results(q):
    """Contiguous room for an output like q (B, S, H, D) and its log-sum-exp (B, H, S)."""
    B, S, H, _ = q.shape
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((B, H, S), dtype=lse_dtype)


def _readable(x):
    """x where the kernels can read it in place, else a copy.

    They want the last dimension contiguous; CUDA kernels load 16 bytes at a time and know no
    stride of 0.
    """
    if x.is_cuda:
        offsets = (x.data_ptr(), *(n * x.element_size() for n in x.stride()[:-1]))
        if any(n % 16 for n in offsets) or 0 in x.stride():
            return x.clone(memory_format=torch.contiguous_format)
    return x if x.stride(-1) == 1 else x.contiguous()


def _foldable(*tensors):
    """Tensors whose residue classes one CUDA launch can take, else copies.

    On a CPU, a call for each batch costs less than the copies.
    """
    if not tensors[0].is_cuda or tensors[0].shape[0] == 1:
        return tensors
    if all(x.stride(1) == x.shape[2] * x.stride(2) for x in tensors):
        return tensors
    if len({x.shape for x in tensors}) == 1:
        return torch.stack(tensors).unbind()  # one kernel
    return [x.contiguous() for x in tensors]


def _near(q, k, v, window_size, scale, run):
    """Sliding-window attention: out (B, S, H, D) and log-sum-exp (B, H, S)."""
    if run.chunk is None:
        out, lse = run.forward(*(x.transpose(1, 2) for x in (q, k, v)), window_size, scale)
        return out.transpose(1, 2).contiguous(), lse
    parts = near_parts(q.shape[1], window_size, run.chunk(window_size))
    return _forward_parts(q, k, v, parts, run, window_size, scale, _empty_results(q))


def _near_backward(gradient, q, k, v, out, lse, window_size, scale, run):
    """The near part's share of dq, dk and dv, (B, S, H, D) each; out and lse are the merged."""
    if run.chunk is None:
        pieces = (x.transpose(1, 2) for x in (gradient, q, k, v, out))
        return [
            x.transpose(1, 2).contiguous() for x in run.backward(*pieces, lse, window_size, scale)
        ]
    parts = near_parts(q.shape[1], window_size, run.chunk(window_size))
    results = q.new_empty(q.shape), q.new_zeros(q.shape), q.new_zeros(q.shape)
    return _backward_parts(gradient, q, k, v, out, lse, parts, run, window_size, scale, results)


def _far(q, k, v, dilation, scale, run):
    """Dilated causal attention: out (B, M, H, D) and log-sum-exp (B, H, M).

    Query t of q (B, M, H, D) attends to the keys t, t - d, t - 2d, ... of k and v (B, >= M, H, D).
    """
    q, k, v = _foldable(q, k, v)
    parts = far_parts(q.shape[1], k.shape[1], dilation, run.multiple)
    if not _in_one_launch(parts, q, k, v):
        return _forward_parts(q, k, v, parts, run, None, scale, _empty_results(q))
    (part,), (B, M, H, _) = parts, q.shape
    folded = _folds(part, q, k, v)
    out, lse = run.forward(
        _pieces(q, part, 0, part.length, folded)[0],
        *(_pieces(x, part, 0, part.keys, folded)[0] for x in (k, v)),
        *(None, scale),
    )
    lse = lse.reshape(B, part.count, H, part.length).permute(0, 2, 3, 1)
    # a reshape alone may be a view, of other strides than torch.compile was told
    return _in_order(out, B, H).contiguous(), lse.reshape(B, H, M).contiguous()


def _far_backward(gradient, q, k, v, out, lse, dilation, scale, run):
    """The far part's share of dq (B, M, H, D) and, for the keys it reads, of dk and dv."""
    gradient, q, k, v, out = _foldable(gradient, q, k, v, out)
    parts = far_parts(q.shape[1], k.shape[1], dilation, run.multiple)
    if not _in_one_launch(parts, gradient, q, k, v, out):
        dk, dv = (x.new_zeros(_rows(x, _keys_read(parts))) for x in (k, v))
        results = q.new_empty(q.shape), dk, dv
        return _backward_parts(gradient, q, k, v, out, lse, parts, run, None, scale, results)
    (part,), (B, _, H, _) = parts, q.shape
    folded = _folds(part, gradient, q, k, v, out)
    of_queries = [_pieces(x, part, 0, part.length, folded)[0] for x in (gradient, q, out)]
    of_keys = [_pieces(x, part, 0, part.keys, folded)[0] for x in (k, v)]
    lse = _lse_pieces(lse, part, folded)[0].reshape(of_queries[0].shape[:3])
    gradients = run.backward(*of_queries[:2], *of_keys, of_queries[2], lse, None, scale)
    return [_in_order(x, B, H).contiguous() for x in gradients]


def _rows(x, count):
    """The shape of x (B, S, H, D) with ``count`` tokens."""
    return x.shape[0], count, *x.shape[2:]


def first_with_far_keys(seq_len, window_size, dilation):
    """The first query position that has far keys, or ``seq_len`` where none has."""
    first = window_size + dilation
    return first if dilation and first < seq_len else seq_len

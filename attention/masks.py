"""The pattern as a mask, or as what is added to scores: built once, shared by layers and steps."""

import functools

import torch

from attention.pattern import window_mask


def constant_of_a_graph(function):
    """``torch.compiler.assume_constant_result``, which would load the compiler to set one mark.

    Seconds of every import, also for those who compile nothing.  A test compares the two.
    """
    function._dynamo_marked_constant = True
    return function


# The mask depends on a few values only, so layers and steps share one tensor.  Dynamo may not trace
# into a cache; it is told that the result is a constant of the compiled graph.
@constant_of_a_graph
def cached_window_mask(seq_len, window_size, dilation, device, sink_tokens=0):
    """``window_mask``, built once for each (S, w, d, device, N) and shared; do not write to it."""
    return _mask_cache(seq_len, window_size, dilation, device, sink_tokens)


@constant_of_a_graph
def cached_window_bias(seq_len, window_size, dilation, device, dtype, sink_tokens=0):
    """The mask as what is added to the scores, 0 or minus infinity, (S, S), cached likewise.

    scaled_dot_product_attention would make it from the mask again in every call.
    """
    return _bias_cache(seq_len, window_size, dilation, device, dtype, sink_tokens)


@functools.lru_cache(maxsize=8)
def _mask_cache(seq_len, window_size, dilation, device, sink_tokens):
    with torch.inference_mode(False):  # autograd takes no tensors that were made in it
        return window_mask(seq_len, window_size, dilation, device, sink_tokens)


@functools.lru_cache(maxsize=8)
def _bias_cache(seq_len, window_size, dilation, device, dtype, sink_tokens):
    with torch.inference_mode(False):
        return _as_bias(window_mask(seq_len, window_size, dilation, device, sink_tokens), dtype)


def _as_bias(mask, dtype):
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, float("-inf")
    )


def clear_mask_cache():
    """Forget the cached masks, so that one model's masks never count as another's memory."""
    _mask_cache.cache_clear()
    _bias_cache.cache_clear()

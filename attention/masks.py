"""The pattern as a mask, or as what is added to scores: built once, shared by layers and steps."""

import functools

import torch

from attention.pattern import window_mask


def constant_of_a_graph(function):
    """``torch.compiler.assume_constant_result``, which would load the compiler to set one mark.

    Dynamo may not trace into a cache: it takes the function's result as a constant of its graph.
    Loading the compiler costs seconds, also for those who compile nothing.
    """
    function._dynamo_marked_constant = True
    return function


@constant_of_a_graph
def cached_window_mask(seq_len, window_size, dilation, device, sink_tokens=0, bias_dtype=None):
    """``window_mask`` or its ``as_bias``, built once for its arguments; do not write to it.

    bias_dtype: None for the mask.  The bias is what scaled_dot_product_attention would make from
    the mask again in every call.
    """
    return _mask_cache(seq_len, window_size, dilation, device, sink_tokens, bias_dtype)


@functools.lru_cache(maxsize=16)
def _mask_cache(seq_len, window_size, dilation, device, sink_tokens, bias_dtype):
    with torch.inference_mode(False):  # autograd takes no tensors that were made in it
        mask = window_mask(seq_len, window_size, dilation, device, sink_tokens)
        return mask if bias_dtype is None else as_bias(mask, bias_dtype)


def as_bias(mask, dtype):
    """What is added to the scores for a bool mask: 0 where it is True, else minus infinity."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, float("-inf"))


def clear_mask_cache():
    """Forget the cached masks, so that one model's masks never count as another's memory."""
    _mask_cache.cache_clear()

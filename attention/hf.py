"""The pattern inside Hugging Face transformers (5.x); to import this file registers it.

    import attention.hf
    config = LlamaConfig(..., window_size=96, dilation=4)  # and full_heads, stagger, sink_tokens
    model = LlamaForCausalLM._from_config(config, attn_implementation="window_dilated")

Every layer of full attention gets the pattern.  Layers with a sliding window of their own (Gemma's,
Qwen's ``sliding_attention``) keep it and are computed as by ``sdpa``, for their cache forgets what
lies before the window.  There ``sliding_window=W`` is W keys, which is window_size W - 1 here.

A batch without padding goes to ``window_attention``, and so does a step of ``generate``.  Padding,
packed sequences, chunks, static caches and compiled training (where transformers cannot see that
nothing is packed) take scaled_dot_product_attention with a mask that holds the pattern.  A mask of
your own, (B, 1 or H, M, S), is taken as it is.  Distances are counted in places of a row, padding
included; the sinks are the first tokens of a sequence that are not padding.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from attention.choose import window_attention
from attention.masks import heads_mask
from attention.pattern import Pattern

NAME = "window_dilated"
UNKNOWN = "softcap", "s_aux", "position_bias"  # what some models ask of their attention


def pattern_of(config):
    """The ``Pattern`` of a model's configuration; ValueError where it has none."""
    given = {name: getattr(config, name, None) for name in Pattern._fields}
    given = {name: value for name, value in given.items() if value is not None}
    missing = [name for name in ("window_size", "dilation") if name not in given]
    if missing:
        raise ValueError(f"{NAME} needs {' and '.join(missing)} in the model's configuration")
    return Pattern(**given).checked(config.num_attention_heads)


def window_dilated_mask(
    q_length, kv_length, config, q_offset=0, kv_offset=0, local_size=None, **options
):
    """transformers' ``sdpa_mask`` without what the pattern leaves out, (B, 1 or H, M, S).

    None: the queries are the last of all keys, or the first, and none is padding.
    local_size: the sliding window of the layers that the mask is for; they keep theirs.
    """
    pattern, n_heads = pattern_of(config), config.num_attention_heads
    sizes = {"q_length": q_length, "kv_length": kv_length}
    options |= sizes | {"q_offset": q_offset, "kv_offset": kv_offset}
    if local_size is not None:
        if "full_attention" not in (getattr(config, "layer_types", None) or []):
            raise ValueError(f"{NAME} has no layer: every one has a sliding_window, set it to None")
        return sdpa_mask(**options | {"allow_is_causal_skip": False})
    mask = sdpa_mask(**options)
    if mask is None:
        return None
    query = torch.arange(q_length, device=mask.device)[:, None] + q_offset
    key = torch.arange(kv_length, device=mask.device) + kv_offset
    seen = heads_mask(query, key, kv_length + kv_offset, n_heads, pattern)
    seen = seen | (key > query)  # left to the model's mask, as for tokens within an image
    if pattern.sink_tokens:  # counted from a sequence's own first token
        seen = seen | (mask.cumsum(dim=-1) <= pattern.sink_tokens)
    return mask & seen


def window_dilated_attention(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, **options
):
    """query (B, H, M, D), key and value (B, heads, S, D) -> (B, M, H, D), and None for the weights.

    attention_mask: what ``window_dilated_mask`` gave.  Raises ValueError for what this attention
    cannot do.
    """
    beyond = [name for name in UNKNOWN if options.get(name) is not None]
    if dropout:
        beyond.append(f"dropout {dropout} (attention_dropout, attn_pdrop)")
    if not (getattr(module, "is_causal", True) and getattr(module.config, "is_causal", True)):
        beyond.append("attention that is not causal")
    if beyond:
        raise ValueError(f"{NAME} cannot do {', '.join(beyond)}: leave it out of the configuration")
    if attention_mask is not None:
        inputs = query, key, value, attention_mask
        return sdpa_attention_forward(module, *inputs, scaling=scaling, **options)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if q.shape[1] > 1:  # the other places of a static cache are still empty
        k, v = k[:, : q.shape[1]], v[:, : q.shape[1]]
    return window_attention(q, k, v, scale=scaling, **pattern_of(module.config)._asdict()), None


AttentionInterface.register(NAME, window_dilated_attention)
AttentionMaskInterface.register(NAME, window_dilated_mask)

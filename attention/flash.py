"""``flash_attn_func`` over the pattern: the call of the package flash-attn, on any device.

    from attention.flash import flash_attn_func  # for: from flash_attn import flash_attn_func

A window (w, 0) means the same in both: the token itself and the w before it.
"""

from attention.choose import window_attention


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    *,
    dilation=0,
    full_heads=0,
    stagger=False,
    sink_tokens=0,
):
    """Causal attention of q (B, M, H, D), the last M queries, to k and v (B, S, heads, D).

    window_size: (w, 0); with w = -1 all keys before.  The second number means nothing, for
    attention is causal.  The last four are the pattern's, see ``window_attention``.
    Returns (B, M, H, D).  Raises ValueError for what this attention cannot do, and for tensors that
    do not fit.
    """
    beyond = {
        "dropout_p > 0": dropout_p,
        "causal=False": not causal,
        "softcap > 0": softcap,
        "alibi_slopes": alibi_slopes is not None,
        "deterministic=True": deterministic,
        "return_attn_probs=True": return_attn_probs,
    }
    asked = [name for name, wanted in beyond.items() if wanted]
    if asked:
        raise ValueError(f"window attention cannot do {', '.join(asked)}")
    heads = {"full_heads": full_heads, "stagger": stagger}
    window = k.shape[1] if window_size[0] < 0 else window_size[0]
    return window_attention(
        q, k, v, window, dilation, sink_tokens=sink_tokens, scale=softmax_scale, **heads
    )

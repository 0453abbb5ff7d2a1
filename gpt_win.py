"""The same GPT with sliding-window + dilated attention: inheritance, only the attention replaced.

The parameters keep their names and shapes, so a state_dict of GPTModel loads into GPTWindowModel
and the other way round, and equal seeds give equal weights.  Letters: as in gpt.py.
"""

import torch

from attention.choose import EVALUATIONS, window_attention
from attention.pattern import Pattern
from attention.shards import shard_attention
from gpt import CustomMHA, GPTModel, TransformerDecoderBlock


def per_layer(name, value, layers):
    """A value for every layer, a tuple: a sequence as it is, a single value repeated.

    Raises ValueError, with ``name``, for a sequence that does not have one for each layer.
    """
    if not isinstance(value, list | tuple):
        return (value,) * layers
    if len(value) != layers:
        values = "value" if len(value) == 1 else "values"
        found = f"{name} has {len(value)} {values} for {layers} layers"
        raise ValueError(f"{found}: give one, or one for each layer")
    return tuple(value)


def layer_patterns(
    layers, n_heads, window_size, dilation, sink_tokens=0, full_heads=0, stagger=False
):
    """The ``Pattern`` of every layer.

    Staggered heads go on in the next layer: the first window head of layer l, counted from 0, has
    the phase l (n_heads - full_heads) modulo the dilation.

    Raises ValueError for a sequence of another length, for what is no pattern of ``n_heads`` heads,
    and for ``stagger`` where no layer has far keys.
    """
    window_sizes = per_layer("window_size", window_size, layers)
    dilations = per_layer("dilation", dilation, layers)
    of_full_heads = per_layer("full_heads", full_heads, layers)
    patterns = []
    for layer, (w, d, F) in enumerate(zip(window_sizes, dilations, of_full_heads, strict=True)):
        pattern = Pattern(w, d, sink_tokens, F).checked(n_heads)
        if stagger and d > 1:
            phase = layer * (n_heads - pattern.full_heads) % pattern.dilation
            pattern = pattern._replace(stagger=True, first_phase=phase)
        patterns.append(pattern)
    if stagger and not any(pattern.stagger for pattern in patterns):
        raise ValueError(f"stagger needs a dilation of at least 2, got {dilation}")
    return patterns


class CustomWindowMHA(CustomMHA):
    """CustomMHA over the pattern of ``attention.may_attend``.

    attention: how to evaluate it, one of ``attention.choose.EVALUATIONS``.
    nope: full heads get no rotary positions (NoPE, Kazemnejad et al. 2023).
    heads: sink_tokens, full_heads, stagger, first_phase of an ``attention.pattern.Pattern``.
    """

    attentions = EVALUATIONS

    def __init__(
        self,
        d_model,
        n_heads,
        window_size,
        dilation,
        attention="auto",
        positions="learned",
        nope=False,
        **heads,
    ):
        super().__init__(d_model, n_heads, attention, positions)
        pattern = Pattern(window_size, dilation, **heads).checked(n_heads)
        self.heads = pattern._asdict()
        full_heads = self.n_heads if dilation == 1 else pattern.full_heads
        self.without_positions = full_heads if nope else 0

    def turn(self, x, first):
        """Queries or keys (B, S, H, D) turned by their rotary positions, from ``first`` on."""
        F = self.without_positions
        if F == 0:
            return super().turn(x, first)
        return torch.cat([x[:, :, :F], super().turn(x[:, :, F:], first)], dim=2)

    def attend(self, q, k, v):
        """q, k, v (B, S, H, D) -> (B, S, H, D)."""
        return window_attention(q, k, v, evaluation=self.attention, **self.heads)

    def attend_over_shards(self, q, k, v):
        """``attend`` of this rank's shard, (B, L, H, D); there is one evaluation for it."""
        return shard_attention(q, k, v, self.shards, **self.heads)


class TransformerDecoderBlockWindow(TransformerDecoderBlock):
    """TransformerDecoderBlock with CustomWindowMHA, which takes the other ``options``."""

    def __init__(self, d_model, n_heads, window_size, dilation, dropout=0.1, **options):
        mha = CustomWindowMHA(d_model, n_heads, window_size, dilation, **options)
        super().__init__(d_model, n_heads, dropout=dropout, mha=mha)


class GPTWindowModel(GPTModel):
    """GPTModel whose every head attends to a window of ``window_size`` tokens and every
    ``dilation``-th token before it, and to the first ``sink_tokens`` of the sequence;
    ``dilation=0`` is the pure sliding window.

    full_heads: how many heads of a layer, the first ones, attend to everything instead.
    stagger: the others take turns in their far keys, ``dilation`` heads together see every key.
    nope: full heads get no positions where the others get rotary ones.
    window_size, dilation and full_heads are one value, or a sequence with one for each layer.
    ``dilation=1`` or ``full_heads=n_heads`` makes a layer of full causal attention.
    Token ids (B, S) -> logits (B, S, V).
    """

    def __init__(
        self,
        d_model,
        n_heads,
        layers,
        vocab_size,
        max_seq_len,
        window_size=96,
        dilation=4,
        attention="auto",
        dropout=0.1,
        positions="learned",
        sink_tokens=0,
        full_heads=0,
        stagger=False,
        nope=False,
    ):
        patterns = layer_patterns(
            layers, n_heads, window_size, dilation, sink_tokens, full_heads, stagger
        )
        options = {"attention": attention, "positions": positions, "nope": nope}

        def make_block(layer):
            heads = patterns[layer]._asdict()
            return TransformerDecoderBlockWindow(
                d_model, n_heads, dropout=dropout, **heads, **options
            )

        sizes = d_model, n_heads, layers, vocab_size, max_seq_len
        super().__init__(*sizes, positions=positions, make_block=make_block)
        self.window_size = window_size
        self.dilation = dilation
        self.sink_tokens = sink_tokens

"""The same GPT with sliding-window + dilated attention: inheritance, only the attention replaced.

The parameters keep their names and shapes, so a state_dict of GPTModel loads into GPTWindowModel
and the other way round, and equal seeds give equal weights.  Letters: as in gpt.py.
"""

from attention.choose import EVALUATIONS, window_attention
from attention.pattern import check_pattern
from gpt import CustomMHA, GPTModel, TransformerDecoderBlock


def per_layer(name, value, layers):
    """The value of every layer: one for all of them is repeated, a sequence must have ``layers``.

    Raises ValueError, with ``name``, for a sequence of another length.
    """
    if not isinstance(value, list | tuple):
        return (value,) * layers
    if len(value) != layers:
        values = "value" if len(value) == 1 else "values"
        found = f"{name} has {len(value)} {values} for {layers} layers"
        raise ValueError(f"{found}: give one, or one for each layer")
    return tuple(value)


class CustomWindowMHA(CustomMHA):
    """CustomMHA over the pattern of ``attention.may_attend``.

    attention: how to evaluate it, one of ``attention.choose.EVALUATIONS``.
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
        sink_tokens=0,
    ):
        check_pattern(window_size, dilation, sink_tokens)
        super().__init__(d_model, n_heads, attention, positions)
        self.window_size = window_size
        self.dilation = dilation
        self.sink_tokens = sink_tokens

    def pattern(self):
        """(window_size, dilation, sink_tokens)."""
        return self.window_size, self.dilation, self.sink_tokens

    def attend(self, q, k, v):
        """q, k, v (B, S, H, D) -> (B, S, H, D)."""
        window_size, dilation, sinks = self.pattern()
        return window_attention(q, k, v, window_size, dilation, self.attention, sinks)


class TransformerDecoderBlockWindow(TransformerDecoderBlock):
    """TransformerDecoderBlock with CustomWindowMHA, which takes the other ``options``."""

    def __init__(self, d_model, n_heads, window_size, dilation, dropout=0.1, **options):
        mha = CustomWindowMHA(d_model, n_heads, window_size, dilation, **options)
        super().__init__(d_model, n_heads, dropout=dropout, mha=mha)


class GPTWindowModel(GPTModel):
    """GPTModel whose every block attends to a window of ``window_size`` tokens and every
    ``dilation``-th token before it, and to the first ``sink_tokens`` of the sequence;
    ``dilation=0`` is the pure sliding window.

    window_size and dilation are one value, or a sequence with one for each layer, of which
    ``dilation=1`` makes a layer of full causal attention.  Token ids (B, S) -> logits (B, S, V).
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
    ):
        window_sizes = per_layer("window_size", window_size, layers)
        dilations = per_layer("dilation", dilation, layers)
        options = {"attention": attention, "positions": positions, "sink_tokens": sink_tokens}

        def make_block(layer):
            pattern = window_sizes[layer], dilations[layer]
            return TransformerDecoderBlockWindow(d_model, n_heads, *pattern, dropout, **options)

        sizes = d_model, n_heads, layers, vocab_size, max_seq_len
        super().__init__(*sizes, positions=positions, make_block=make_block)
        self.window_size = window_size
        self.dilation = dilation
        self.sink_tokens = sink_tokens

"""The GPT of the experiment with full causal attention; gpt_win.py replaces the attention alone.

Letters: B batch, S sequence length, H heads, D head_dim, C d_model (= H * D), V vocabulary.
"""

import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from attention.cache import KeyValueCache
from attention.full import FULL_ATTENTION, TEXTBOOK
from attention.pattern import FULL, Pattern, whole
from attention.rotary import check_positions, rotate
from attention.shards import shard_attention, textbook_over_shards
from embedding import CustomEmbedding
from generation.tokens import generate, stream
from linear import CustomLinear


class CustomMHA(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017), (B, S, C) -> (B, S, C).

    attention: ``fused`` (PyTorch's best kernel), ``dense`` (textbook) or ``published``.
    positions: ``rotary`` turns queries and keys by their positions before any attention;
    ``learned`` leaves them alone, for the model adds its position embeddings to its input.
    Parameters: ``qkv`` (3C, C) and ``wo`` (C, C), no biases.
    """

    attentions = tuple(FULL_ATTENTION)
    heads = FULL._asdict()  # the fields of its ``Pattern``
    shards = None  # see GPTModel.cut

    def __init__(self, d_model, n_heads, attention="fused", positions="learned"):
        super().__init__()
        self.n_heads = whole("n_heads", n_heads, 1)
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        if attention not in self.attentions:
            known = ", ".join(self.attentions)
            raise ValueError(f"unknown attention {attention!r}: choose one of {known}")
        check_positions(positions, d_model // n_heads)
        self.attention = attention
        self.positions = positions
        self.qkv = nn.Parameter(0.01 * torch.randn(3 * d_model, d_model))
        self.wo = nn.Parameter(0.01 * torch.randn(d_model, d_model))

    def attend(self, q, k, v):
        """q, k, v (B, S, H, D) -> (B, S, H, D): the one step that a subclass replaces."""
        return FULL_ATTENTION[self.attention](q, k, v)

    def attend_over_shards(self, q, k, v):
        """``attend`` of this rank's shard, (B, L, H, D)."""
        if self.attention in TEXTBOOK:
            attend = FULL_ATTENTION[self.attention]
            return textbook_over_shards(attend, q, k, v, self.shards)
        return shard_attention(q, k, v, self.shards, **self.heads)

    def turn(self, x, first):
        """Queries or keys (B, S, H, D) turned by their rotary positions, from ``first`` on."""
        return rotate(x, first)

    def pattern(self):
        """The ``Pattern`` of the keys that ``attend`` takes."""
        return Pattern(**self.heads)

    def new_cache(self, batch, length):
        """An empty KeyValueCache for ``batch`` rows of ``length`` tokens."""
        if self.shards is not None:
            raise ValueError("a model that is cut generates nothing: call model.cut(None) before")
        device, dtype = self.qkv.device, self.qkv.dtype
        if torch.is_autocast_enabled(device.type) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device.type)
        shape = batch, self.n_heads, self.qkv.shape[1] // self.n_heads  # (B, H, D)
        return KeyValueCache(shape, length, self.pattern(), dtype, device)

    def forward(self, x, cache=None):
        """cache: takes the keys and values; x is then a whole prompt, or the one next token."""
        B, S, C = x.shape
        heads = linear(x, self.qkv).view(B, S, 3, self.n_heads, C // self.n_heads)
        q, k, v = heads.unbind(dim=2)  # (B, S, H, D) each, views of one projection
        first = 0 if cache is None else cache.filled
        if self.shards is not None:
            first = self.shards.rank * S
        if self.positions == "rotary":
            q, k = self.turn(q, first), self.turn(k, first)
        if cache is not None:
            cache.write(k, v)
        if self.shards is not None:
            out = self.attend_over_shards(q, k, v)
        else:
            out = self.attend(q, k, v) if first == 0 else cache.attend(q)
        return linear(out.reshape(B, S, C), self.wo)


class TransformerDecoderBlock(nn.Module):
    """Pre-LayerNorm decoder block, (B, S, C) -> (B, S, C).

    x + mha(norm1(x)), then x + dropout(fc2(relu(fc1(norm2(x))))) with a hidden layer of 4C.
    mha: the attention of a subclass, in place of full attention.
    """

    def __init__(
        self, d_model, n_heads, attention="fused", dropout=0.1, positions="learned", mha=None
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.mha = CustomMHA(d_model, n_heads, attention, positions) if mha is None else mha
        self.norm2 = nn.LayerNorm(d_model)
        self.fc1 = CustomLinear(d_model, 4 * d_model)
        self.fc2 = CustomLinear(4 * d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, cache=None):
        x = x + self.mha(self.norm1(x), cache)
        return x + self.dropout(self.fc2(torch.relu(self.fc1(self.norm2(x)))))


class GPTModel(nn.Module):
    """Decoder-only transformer with full causal attention: token ids (B, S) -> logits (B, S, V).

    Learned word and position embeddings, ``layers`` blocks, no final norm, an untied output layer.
    ``positions="rotary"`` has rotary positions (see attention/rotary.py) in place of the position
    embeddings.
    checkpoint_blocks: an attribute; with True a block's activations are not kept for the backward
    pass but computed again there (Chen et al. 2016).
    make_block: a function of the layer's number, by which a subclass makes its own blocks.
    Raises ValueError for sizes that are not whole or below 1, where d_model is not divisible by
    n_heads, for an unknown attention or positions, and in ``forward`` for tokens of another rank
    or a sequence longer than max_seq_len.
    """

    shards = None
    checkpoint_blocks = False

    def __init__(
        self,
        d_model,
        n_heads,
        layers,
        vocab_size,
        max_seq_len,
        attention="fused",
        dropout=0.1,
        positions="learned",
        make_block=None,
    ):
        super().__init__()
        self.max_seq_len = whole("max_seq_len", max_seq_len, 1)
        sizes = {"d_model": d_model, "layers": layers, "vocab_size": vocab_size}
        for name, value in sizes.items():
            whole(name, value, 1)
        if make_block is None:

            def make_block(layer):
                return TransformerDecoderBlock(d_model, n_heads, attention, dropout, positions)

        self.word_embeddings = CustomEmbedding(vocab_size, d_model)
        learned = positions == "learned"
        self.position_embeddings = CustomEmbedding(max_seq_len, d_model) if learned else None
        self.layers = nn.ModuleList(map(make_block, range(layers)))
        self.fc_out = CustomLinear(d_model, vocab_size)

    def cut(self, shards):
        """From now on tokens (B, L) are this rank's shard of L tokens of every sequence.

        shards: an ``attention.shards.Shards``; each of its ranks calls the model with a shard of
        the same length.  Attention is ``shard_attention`` then, and ``textbook_over_shards`` where
        it is textbook.  None: sequences are whole again, as a model's must be to generate, to be
        copied and to be pickled; its state_dict can be saved at any time.  Returns the model.
        """
        self.shards = shards
        for block in self.layers:
            mha = block.mha
            mha.shards = shards
            vars(mha).pop("attend_over_shards", None)
            if shards is not None:
                # a graph cannot hold an exchange; here and not on the class, where it would load
                # the compiler for everybody
                mha.attend_over_shards = torch.compiler.disable(mha.attend_over_shards)
        return self

    def forward(self, tokens):
        return self.fc_out(self.last_features(tokens))

    def last_features(self, tokens):
        """What the output layer takes: token ids (B, S) -> (B, S, C)."""
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be (B, S), got {tuple(tokens.shape)}")
        length = tokens.shape[1]
        first, seq_len = 0, length
        if self.shards is not None:
            first, seq_len = self.shards.rank * length, self.shards.size * length
        if seq_len > self.max_seq_len:
            raise ValueError(
                f"sequence of {seq_len} tokens is longer than max_seq_len {self.max_seq_len}"
            )
        positions = torch.arange(first, first + length, device=tokens.device)
        return self.features(tokens, positions)

    def features(self, tokens, positions, caches=None):
        """Token ids (B, S) at positions (S,) or (B, S) -> the last block's output (B, S, C)."""
        x = self.word_embeddings(tokens)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(positions)
        again = self.checkpoint_blocks and torch.is_grad_enabled()
        for layer, block in enumerate(self.layers):
            cache = None if caches is None else caches[layer]
            x = checkpoint(block, x, cache, use_reentrant=False) if again else block(x, cache)
        return x

    # model.generate(prompt, max_new_tokens, ...) and model.stream(...), see generation/tokens.py
    generate = generate
    stream = stream


def model_flops(seq_len, d_model, layers, vocab_size):
    """Forward FLOPs of everything but attention, and of attention for one pair, all layers.

    A token costs in each layer 6 C^2 (qkv) + 2 C^2 (output projection) + 16 C^2 (feed-forward),
    and 2 C V in the output layer; a pair costs 4 C in each layer (score and weighted sum).
    """
    per_token = layers * 24 * d_model**2 + 2 * d_model * vocab_size
    return seq_len * per_token, 4 * d_model * layers

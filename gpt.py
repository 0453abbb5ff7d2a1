"""The GPT of the experiment with full causal attention; gpt_win.py replaces the attention alone.

Letters: B batch, S sequence length, H heads, D head_dim, C d_model (= H * D), V vocabulary.
"""

import torch
from torch import nn
from torch.nn.functional import linear

from embedding import CustomEmbedding
from linear import CustomLinear
from rotary import check_positions, rotate
from window_attention import cached_window_mask, dense_attention, fused_attention


def causal_dense_attention(q, k, v):
    """Textbook full attention: every score is computed, a cached causal mask hides the future."""
    return dense_attention(q, k, v, cached_window_mask(q.shape[1], 1, 1, q.device))


def published_attention(q, k, v):
    """Full attention with the mask bookkeeping of the published course experiment.

    The same function as ``causal_dense_attention``; only the work around the mask differs: every
    layer builds it again on the host, copies it to the device, multiplies the scores by it and
    then writes minus infinity wherever a score is 0 (a causal score of exactly 0 would go too).
    """
    seq_len, head_dim = q.shape[1], q.shape[3]
    mask = torch.tril(torch.ones(seq_len, seq_len)).to(q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    scores = (q @ k.transpose(-2, -1)) / head_dim**0.5  # (B, H, S, S)
    scores = scores * mask
    scores[scores == 0] = float("-inf")
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)  # (B, S, H, D)


FULL_ATTENTION = {
    "fused": fused_attention,
    "dense": causal_dense_attention,
    "published": published_attention,
}


class CustomMHA(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017), (B, S, C) -> (B, S, C).

    attention: ``fused`` (PyTorch's best kernel), ``dense`` (textbook) or ``published``.
    positions: ``rotary`` turns queries and keys by their positions before any attention;
    ``learned`` leaves them alone, for the model adds its position embeddings to its input.
    Parameters: ``qkv`` (3C, C) and ``wo`` (C, C), no biases.
    """

    def __init__(self, d_model, n_heads, attention="fused", positions="learned"):
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.check_attention(attention)
        check_positions(positions, d_model // n_heads)
        self.n_heads = n_heads
        self.attention = attention
        self.positions = positions
        self.qkv = nn.Parameter(0.01 * torch.randn(3 * d_model, d_model))
        self.wo = nn.Parameter(0.01 * torch.randn(d_model, d_model))

    @staticmethod
    def check_attention(attention):
        """Raise ValueError for a name that is not in ``FULL_ATTENTION``."""
        if attention not in FULL_ATTENTION:
            raise ValueError(
                f"unknown attention {attention!r}: choose one of {', '.join(FULL_ATTENTION)}"
            )

    def attend(self, q, k, v):
        """q, k, v (B, S, H, D) -> (B, S, H, D): the one step that a subclass replaces."""
        return FULL_ATTENTION[self.attention](q, k, v)

    def forward(self, x):
        B, S, C = x.shape
        heads = linear(x, self.qkv).view(B, S, 3, self.n_heads, C // self.n_heads)
        q, k, v = heads.unbind(dim=2)  # (B, S, H, D) each, views of one projection
        if self.positions == "rotary":
            q, k = rotate(q), rotate(k)
        out = self.attend(q, k, v)
        return linear(out.reshape(B, S, C), self.wo)


class TransformerDecoderBlock(nn.Module):
    """Pre-LayerNorm decoder block, (B, S, C) -> (B, S, C).

    x + mha(norm1(x)), then x + dropout(fc2(relu(fc1(norm2(x))))) with a hidden layer of 4C.
    ``mha`` takes the place of the full attention where a subclass hands one in.
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

    def forward(self, x):
        x = x + self.mha(self.norm1(x))
        return x + self.dropout(self.fc2(torch.relu(self.fc1(self.norm2(x)))))


class GPTModel(nn.Module):
    """Decoder-only transformer with full causal attention: token ids (B, S) -> logits (B, S, V).

    Learned word and position embeddings, ``layers`` blocks, no final norm, an untied output layer.
    ``positions="rotary"`` has rotary positions (see rotary.py) in place of the position embeddings.
    ``make_block(layer)`` takes the place of the full-attention block where a subclass hands one in.
    Raises ValueError where d_model is not divisible by n_heads, for an unknown attention or
    positions, and in ``forward`` for a sequence longer than max_seq_len.
    """

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
        if make_block is None:
            options = d_model, n_heads, attention, dropout, positions

            def make_block(layer):
                return TransformerDecoderBlock(*options)

        self.max_seq_len = max_seq_len
        self.word_embeddings = CustomEmbedding(vocab_size, d_model)
        learned = positions == "learned"
        self.position_embeddings = CustomEmbedding(max_seq_len, d_model) if learned else None
        self.layers = nn.ModuleList(map(make_block, range(layers)))
        self.fc_out = CustomLinear(d_model, vocab_size)

    def forward(self, tokens):
        seq_len = tokens.shape[1]
        if seq_len > self.max_seq_len:
            raise ValueError(
                f"sequence of {seq_len} tokens is longer than max_seq_len {self.max_seq_len}"
            )
        x = self.word_embeddings(tokens)  # (B, S, C)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(torch.arange(seq_len, device=tokens.device))
        for block in self.layers:
            x = block(x)
        return self.fc_out(x)


def model_flops(seq_len, d_model, layers, vocab_size):
    """Forward FLOPs of everything but attention, and of attention for one pair, all layers.

    A token costs in each layer 6 C^2 (qkv) + 2 C^2 (output projection) + 16 C^2 (feed-forward),
    and 2 C V in the output layer; a pair costs 4 C in each layer (score and weighted sum).
    """
    per_token = layers * 24 * d_model**2 + 2 * d_model * vocab_size
    return seq_len * per_token, 4 * d_model * layers

"""The GPT of the experiment with full causal attention; gpt_win.py replaces the attention alone.

``generate`` and ``stream`` go on from a prompt with any of the models.
Letters: B batch, S sequence length, H heads, D head_dim, C d_model (= H * D), V vocabulary.
"""

from contextlib import contextmanager
from itertools import groupby

import torch
from torch import nn
from torch.nn.functional import linear

from attention.cache import KeyValueCache
from attention.full import FULL_ATTENTION
from attention.rotary import check_positions, rotate
from embedding import CustomEmbedding
from generation.sampling import check_count, check_sampling, draw
from linear import CustomLinear


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

    def pattern(self):
        """(window_size, dilation, sink_tokens) of the keys that ``attend`` takes."""
        return 1, 1, 0

    def new_cache(self, batch, length, starts=None):
        """An empty KeyValueCache for ``batch`` rows of ``length`` tokens."""
        kind, dtype = self.qkv.device.type, self.qkv.dtype
        if torch.is_autocast_enabled(kind) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
        shape = batch, self.n_heads, self.qkv.shape[1] // self.n_heads
        return KeyValueCache(shape, length, self.pattern(), starts, dtype, self.qkv.device)

    def forward(self, x, cache=None):
        """cache: takes the keys and values; x is then a whole prompt, or the one next token."""
        B, S, C = x.shape
        heads = linear(x, self.qkv).view(B, S, 3, self.n_heads, C // self.n_heads)
        q, k, v = heads.unbind(dim=2)  # (B, S, H, D) each, views of one projection
        if self.positions == "rotary":
            # only distances count: where rows start at different slots, slots are as good
            first = 0 if cache is None else cache.filled
            q, k = rotate(q, first), rotate(k, first)
        together = cache is None or cache.write(k, v)
        out = self.attend(q, k, v) if together else cache.attend(q)
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

    def forward(self, x, cache=None):
        x = x + self.mha(self.norm1(x), cache)
        return x + self.dropout(self.fc2(torch.relu(self.fc1(self.norm2(x)))))


class GPTModel(nn.Module):
    """Decoder-only transformer with full causal attention: token ids (B, S) -> logits (B, S, V).

    Learned word and position embeddings, ``layers`` blocks, no final norm, an untied output layer.
    ``positions="rotary"`` has rotary positions (see attention/rotary.py) in place of the position
    embeddings.
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
        return self.fc_out(self.features(tokens, torch.arange(seq_len, device=tokens.device)))

    def features(self, tokens, positions, caches=None):
        """Token ids (B, S) at positions (S,) or (B, S) -> the last block's output (B, S, C)."""
        x = self.word_embeddings(tokens)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(positions)
        for layer, block in enumerate(self.layers):
            x = block(x, None if caches is None else caches[layer])
        return x

    # --- generation ---

    def generate(
        self, prompt, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None
    ):
        """Prompts and what follows: token ids (B, T) -> (B, T + max_new_tokens).

        A list of prompts of any lengths, 1-D each, gives a list of 1-D tensors; each row's
        probabilities are what they would be alone (its draws are not: the rows share a generator).
        Neighbouring rows of one length are evaluated in one pass, and then all token by token with
        keys and values kept (see attention/cache.py), without gradients and without dropout.
        temperature, top_k, top_p, generator: see ``sampling.draw``; temperature 0 is greedy.
        Raises ValueError for arguments out of range, and with learned positions where the longest
        row would become longer than max_seq_len; rotary positions have no end.
        """
        options = temperature, top_k, top_p, generator
        rows = self._checked_rows(prompt)
        new = list(self.stream(rows, max_new_tokens, *options))
        new = torch.stack(new, dim=1) if new else rows[0].new_empty((len(rows), 0))
        rows = [torch.cat(pair) for pair in zip(rows, new, strict=True)]
        return torch.stack(rows) if isinstance(prompt, torch.Tensor) else rows

    def stream(
        self, prompt, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None
    ):
        """``generate`` token by token: an iterator of the rows' next ids, (B,) each."""
        rows = self._checked_rows(prompt)
        check_count("max_new_tokens", max_new_tokens, 0)
        check_sampling(temperature, top_k, top_p)
        longest = max(map(len, rows))
        if self.position_embeddings is not None and longest + max_new_tokens > self.max_seq_len:
            raise ValueError(
                f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens} are more than "
                f"max_seq_len {self.max_seq_len}"
            )
        return self._stream(rows, max_new_tokens, (temperature, top_k, top_p, generator))

    def _checked_rows(self, prompt):
        """The prompts as 1-D tensors of ids on the model's device; ValueError."""
        weight = self.word_embeddings.weight
        try:
            rows = [torch.as_tensor(row, device=weight.device) for row in prompt]
        except TypeError:
            rows = []
        if not rows or any(row.ndim != 1 for row in rows):
            raise ValueError("the prompt must be token ids (B, T), or a list of 1-D token ids")
        if not all(map(len, rows)):
            raise ValueError("the prompt is empty: it must have at least one token in every row")
        if any(row.is_floating_point() for row in rows):
            raise ValueError("the prompt must be token ids, whole numbers")
        rows = [row.long() for row in rows]
        low, high = (x.item() for x in torch.cat(rows).aminmax())
        if low < 0 or high >= len(weight):
            wrong = low if low < 0 else high
            raise ValueError(f"token {wrong} is not in the vocabulary of {len(weight)}")
        return rows

    @torch.no_grad()
    def _stream(self, rows, max_new_tokens, sampling):
        longest = max(map(len, rows))
        starts = [longest - len(row) for row in rows]
        first = torch.tensor(starts, device=rows[0].device)[:, None] if any(starts) else 0
        ids = None
        for position in range(longest, longest + max_new_tokens):
            with _evaluating(self):
                if ids is None:
                    caches = [
                        block.mha.new_cache(len(rows), longest + max_new_tokens, starts)
                        for block in self.layers
                    ]
                    last = self._prompt(rows, starts, caches)
                else:
                    positions = rows[0].new_full((1, 1), position - 1) - first
                    last = self.features(ids[:, None], positions, caches)
                ids = draw(self.fc_out(last[:, -1]), *sampling)
            yield ids

    def _prompt(self, rows, starts, caches):
        """Fill the caches; returns the last block's output for the last tokens, (B, 1, C).

        Neighbouring rows of one length go through the model together, and no row is ever padded.
        """
        last = []
        for _, group in groupby(range(len(rows)), key=starts.__getitem__):
            group = list(group)
            tokens = torch.stack([rows[row] for row in group])
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            parts = [cache.rows(group[0], group[-1] + 1) for cache in caches]
            last.append(self.features(tokens, positions, parts)[:, -1:])
        for cache in caches:
            cache.filled = max(map(len, rows))
        return torch.cat(last)


@contextmanager
def _evaluating(model):
    """Evaluation mode inside, for every module that is not in it already."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def model_flops(seq_len, d_model, layers, vocab_size):
    """Forward FLOPs of everything but attention, and of attention for one pair, all layers.

    A token costs in each layer 6 C^2 (qkv) + 2 C^2 (output projection) + 16 C^2 (feed-forward),
    and 2 C V in the output layer; a pair costs 4 C in each layer (score and weighted sum).
    """
    per_token = layers * 24 * d_model**2 + 2 * d_model * vocab_size
    return seq_len * per_token, 4 * d_model * layers

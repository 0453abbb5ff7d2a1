"""Token by token from a prompt: the ``generate`` and ``stream`` of the models (gpt.py).

Shapes: B rows of token ids, T tokens of a prompt, V vocabulary.
"""

from itertools import groupby

import torch

from attention.pattern import whole
from generation.sampling import check_sampling, draw


def generate(
    model,
    prompt,
    max_new_tokens,
    temperature=1.0,
    top_k=None,
    top_p=None,
    generator=None,
    stop=None,
):
    """Prompts and what follows: token ids (B, T) -> (B, T + max_new_tokens).

    A list of prompts of any lengths, 1-D each, gives a list of 1-D tensors; each row's
    probabilities are what they would be alone (its draws are not: the rows share a generator).
    Neighbouring rows of one length are evaluated together, other rows one after the other, with
    keys and values kept (see attention/cache.py), without gradients and without dropout.
    temperature, top_k, top_p, generator: see ``sampling.draw``; temperature 0 is greedy.
    stop: the token id that ends a row, which from then on gets ``stop`` alone; when all rows have
    ended, generation ends.
    Raises ValueError for arguments out of range, and with learned positions where the longest
    row would become longer than max_seq_len; rotary positions have no end.
    """
    rows = checked_rows(model, prompt)
    new = list(stream(model, rows, max_new_tokens, temperature, top_k, top_p, generator, stop))
    new = torch.stack(new, dim=1) if new else rows[0].new_empty((len(rows), 0))
    rows = [torch.cat(pair) for pair in zip(rows, new, strict=True)]
    return torch.stack(rows) if isinstance(prompt, torch.Tensor) else rows


def stream(
    model,
    prompt,
    max_new_tokens,
    temperature=1.0,
    top_k=None,
    top_p=None,
    generator=None,
    stop=None,
):
    """``generate`` token by token: an iterator of the rows' next ids, (B,) each."""
    rows = checked_rows(model, prompt)
    max_new_tokens = whole("max_new_tokens", max_new_tokens)
    check_sampling(temperature, top_k, top_p)
    vocabulary = len(model.word_embeddings.weight)
    if stop is not None and whole("stop", stop) >= vocabulary:
        raise ValueError(f"stop {stop} is not in the vocabulary of {vocabulary}")
    longest = max(map(len, rows))
    if model.position_embeddings is not None and longest + max_new_tokens > model.max_seq_len:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens} are more than "
            f"max_seq_len {model.max_seq_len}"
        )
    return _draws(model, rows, max_new_tokens, (temperature, top_k, top_p, generator), stop)


def checked_rows(model, prompt):
    """The prompts as 1-D tensors of ids on the model's device; ValueError for anything else."""
    embeddings = model.word_embeddings.weight
    try:
        rows = [torch.as_tensor(row, device=embeddings.device) for row in prompt]
    except TypeError:
        rows = []
    if any(row.numel() == 0 for row in rows):
        raise ValueError("the prompt is empty: it must have at least one token in every row")
    if not rows or any(row.ndim != 1 or row.is_floating_point() for row in rows):
        raise ValueError("the prompt must be whole token ids (B, T), or a list of 1-D token ids")
    rows = [row.long() for row in rows]
    for token in torch.cat(rows).aminmax():
        if not 0 <= token < len(embeddings):
            raise ValueError(f"token {token} is not in the vocabulary of {len(embeddings)}")
    return rows


@torch.no_grad()
def _draws(model, rows, max_new_tokens, sampling, stop):
    """Yield ids (B,); neighbouring rows of one length go through the model together, unpadded."""
    ended = torch.zeros(len(rows), dtype=torch.bool, device=rows[0].device)
    waiting = []  # of every group: tokens that the model has not seen
    caches = []  # of every group: what each layer keeps of those that it has seen
    for length, equally_long in groupby(rows, key=len):
        tokens = torch.stack(list(equally_long))
        room = length + max_new_tokens
        waiting.append(tokens)
        caches.append([block.mha.new_cache(len(tokens), room) for block in model.layers])
    for _ in range(max_new_tokens):
        training = [module for module in model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            groups = zip(waiting, caches, strict=True)
            logits = [next_logits(model, tokens, kept) for tokens, kept in groups]
            ids = draw(torch.cat(logits), *sampling)
        finally:
            for module in training:
                module.training = True
        if stop is not None:
            ids = ids.masked_fill(ended, stop)
            ended = ids == stop
        waiting = ids[:, None].split([len(tokens) for tokens in waiting])
        yield ids
        if stop is not None and ended.all():
            return


def next_logits(model, tokens, caches):
    """The logits (B, V) of what follows ``tokens`` (B, T), which are added to the caches."""
    first = caches[0].filled
    positions = torch.arange(first, first + tokens.shape[1], device=tokens.device)
    features = model.features(tokens, positions, caches)
    return model.fc_out(features[:, -1])

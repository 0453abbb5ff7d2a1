"""Batches of tokens, the learning rate over the steps, and how many steps there are."""

import math

import numpy as np
import torch

FINAL_LR_SHARE = 0.1
COUNTED_AT_ONCE = 2**24  # tokens, for memory
CURVE_TOKENS = 2**18  # of the held-out rows that are evaluated in the course of a training
# How many tokens' worth the frequencies weigh beside the pairs.  On the default corpus the loss is
# within 0.02 nats of the best weight's, which was 200 for its last rows and 50 for random rows.
UNIGRAM_WEIGHT = 100


def learning_rate(step, total_steps, peak, warmup_steps, schedule="cosine"):
    """Linear warm-up to ``peak``, then a cosine that ends at a tenth of it, or ``constant``."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * cosine)


def planned_steps(config, train_rows):
    """Optimizer steps of a training: ``max_steps``, or one pass over the rows."""
    return config.max_steps or train_rows // config.batch_size


def validation_rows(config, held_out):
    """Indices of the held-out rows that the validation uses: all, or some evenly spread."""
    return _spread(held_out, config.val_batches * config.batch_size or held_out)


def curve_rows(config, held_out):
    """Indices of the held-out rows that are evaluated in the course of every training.

    They are no more than the validation at its end uses.
    """
    validated = len(validation_rows(config, held_out))
    return _spread(held_out, min(validated, max(1, CURVE_TOKENS // config.seq_len)))


def _spread(rows, used):
    """Indices of ``used`` of the rows, evenly spread; of all where there are fewer."""
    return np.linspace(0, rows - 1, min(rows, used)).round().astype(int)


def _counts(tokens, vocab_size):
    """How often each token comes, (V,)."""
    # bincount takes no unsigned integers of 64 bits
    return np.bincount(tokens.astype(np.int64).ravel(), minlength=vocab_size)


def _pair_codes(rows, vocab_size):
    """A number for each token and the one before it, inside rows (R, S + 1) alone: (R * S,)."""
    codes = rows[:, :-1].astype(np.int64)
    codes *= vocab_size
    codes += rows[:, 1:].astype(np.int64)
    return codes.ravel()


def losses_of_counts(dataset, used):
    """The losses on held-out rows of predictions from counts in the training rows, in nats a token.

    used: the rows' indices.  Returns a dict of two:

    unigram_loss: of always predicting the frequencies of tokens, each counted once more (Laplace).
    A model with a higher loss has not learned that context says anything.

    bigram_loss: of predicting each token from the one before it, P(b | a) = (c(a, b) + m P(b)) /
    (c(a) + m), with the counts c, the frequencies P and m = UNIGRAM_WEIGHT.  A model with a higher
    loss has not learned more than pairs of tokens say.  Only the pairs of the held-out rows are
    counted, for a table of all would not fit.
    """
    vocab_size = dataset.vocab_size
    held_out = dataset.held_out[used]
    pairs, where = np.unique(_pair_codes(held_out, vocab_size), return_inverse=True)
    found = np.zeros(pairs.size)
    contexts, last = np.zeros((2, vocab_size))  # tokens with one after them, and without
    for rows in np.array_split(dataset.train, 1 + dataset.train.size // COUNTED_AT_ONCE):
        contexts += _counts(rows[:, :-1], vocab_size)
        last += _counts(rows[:, -1], vocab_size)
        seen = np.sort(_pair_codes(rows, vocab_size))
        found += np.searchsorted(seen, pairs, "right") - np.searchsorted(seen, pairs, "left")
    counts = 1 + contexts + last
    shares = counts / counts.sum()
    before, token = np.divmod(pairs, vocab_size)
    prior = UNIGRAM_WEIGHT * shares[token]
    of_pairs = -np.log((found + prior) / (contexts[before] + UNIGRAM_WEIGHT))
    return {
        "unigram_loss": float(-np.log(shares)[held_out[:, 1:]].mean()),
        "bigram_loss": float(of_pairs[where.ravel()].mean()),
    }


def batches(rows, batch_size, steps, seed, share=slice(None)):
    """Yield ``steps`` batches of row arrays (batch_size, S + 1), shuffled anew in every pass.

    share: the part of every batch that is wanted.
    """
    per_pass = len(rows) // batch_size
    for step in range(steps):
        epoch, place = divmod(step, per_pass)
        if place == 0:
            order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        # sorted, so that a memory-mapped file is read forwards
        yield rows[np.sort(order[place * batch_size : (place + 1) * batch_size])[share]]


def shards_of(model):
    """The ``Shards`` over which a GPTModel is cut, else None, as for any other model."""
    return getattr(model, "shards", None)


def own_tokens(model, rows, device):
    """Row array (B, S + 1) -> inputs and targets, int64 (B, S) each, on ``device``.

    Where the model is cut over shards: those of its own shard alone, (B, L).
    """
    shards = shards_of(model)
    if shards is not None:
        length = (rows.shape[1] - 1) // shards.size
        first = shards.rank * length
        rows = rows[:, first : first + length + 1]
    tokens = torch.from_numpy(rows.astype(np.int64))
    if device.type == "cuda":
        tokens = tokens.pin_memory().to(device, non_blocking=True)
    return tokens[:, :-1], tokens[:, 1:]

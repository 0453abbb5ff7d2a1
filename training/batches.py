"""Batches of tokens, the learning rate over the steps, and how many steps there are."""

import math

import numpy as np
import torch

FINAL_LR_SHARE = 0.1
COUNTED_AT_ONCE = 2**24  # tokens, for memory
CURVE_TOKENS = 2**16  # of the held-out rows that are evaluated in the course of a training


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
    """Indices of the held-out rows that are evaluated in the course of every training."""
    return _spread(held_out, max(1, CURVE_TOKENS // config.seq_len))


def _spread(rows, used):
    """Indices of ``used`` rows of that many, evenly spread, or of all where there are fewer."""
    return np.linspace(0, rows - 1, min(rows, used)).round().astype(int)


def unigram_loss(dataset, used):
    """The loss on held-out rows of always predicting the frequencies of tokens, in nats a token.

    used: the rows' indices.  The frequencies are those of the training rows, every token counted
    once more (Laplace).  A model above this line has not learned that context says anything.
    """
    counts = np.ones(dataset.vocab_size)
    for rows in np.array_split(dataset.train, 1 + dataset.train.size // COUNTED_AT_ONCE):
        counts += np.bincount(rows.ravel(), minlength=dataset.vocab_size)
    return float(-np.log(counts / counts.sum())[dataset.held_out[used, 1:]].mean())


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


def to_device(batch, device):
    """Row array (B, S + 1) -> inputs and targets, int64 (B, S) each, on ``device``."""
    tokens = torch.from_numpy(batch.astype(np.int64))
    if device.type == "cuda":
        tokens = tokens.pin_memory().to(device, non_blocking=True)
    return tokens[:, :-1], tokens[:, 1:]

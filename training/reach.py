"""The reach probe: how far back a trained model copies from, and where in a sequence it predicts.

The control is a held-out row that ends with a passage of another row.  For each distance the probe
shows the same passage once before in that row.  A model that looks so far back has seen what comes,
and its loss on the last passage falls: that is the gain.  Nothing but the first showing differs.
"""

import numpy as np
import torch

from analysis.reach import PASSAGE
from attention.shards import whole_rows
from machine import ranks
from training.batches import own_tokens, shards_of
from training.loss import token_losses

NEAREST = 128  # tokens from the begin of the first showing to that of the second
# A dilated pattern attends to some distances and not to others, and treats 128, 256, ... all alike.
# So the passages take turns in being 0 to 15 tokens nearer, and meet both kinds evenly.
TURNS = 16
POSITION_BINS = 32
SEED = 0  # the probe's own, so that every arm in every block reads the same sequences


def probed_distances(seq_len):
    """The distances that fit into ``seq_len`` tokens: 128, 256, ... and the farthest, a list."""
    farthest = seq_len - PASSAGE
    distances, distance = [], NEAREST
    while distance < farthest:
        distances.append(distance)
        distance *= 2
    if farthest >= NEAREST:
        distances.append(farthest)
    return distances


def probed_sequences(seq_len, passages):
    """How many sequences the probe computes; 0 where they are too short or too few for it."""
    distances = probed_distances(seq_len)
    return passages * (1 + len(distances)) if distances and passages > 1 else 0


@torch.no_grad()
def reach(model, held_out, seq_len, passages, at_once=1, chunk=0):
    """What a model gains from a passage shown before, by distance, and its loss by position.

    held_out: rows of tokens (N, seq_len + 1 or more) that the model was not trained on; the probe
    draws rows and passages from them, the same at every call.  at_once: sequences in a batch;
    chunk: tokens whose logits exist at a time, 0: all.
    Dropout is off; for another precision call it inside torch.autocast.  Several ranks share the
    passages, and each gets the whole result: a dict of

    passages: their number n; distances: in tokens, (D,); gains: how much lower the loss of the
    passage's last 63 tokens is than in the control, in nats a token, means over passages (D,);
    gain_errors: their standard errors (D,); positions: tokens that precede, the middles of
    POSITION_BINS equal parts of the sequence up to the passage; position_losses: the mean losses
    there, of the controls, in nats a token.

    None for fewer than 2 passages or rows, and for sequences below 192 tokens.
    """
    distances = probed_distances(seq_len)
    if min(passages, len(held_out)) < 2 or not distances:
        return None
    controls, turns = _controls(held_out[:, : seq_len + 1], passages)
    shards = shards_of(model)
    sharing = 1 if shards is None else shards.size
    share = ranks.share_of_rows(sharing)
    controls, turns = controls[share], turns[share]
    training = model.training
    model.eval()
    losses = _token_losses(model, controls, at_once, chunk)  # (passages, S)
    shown = _shown_losses(model, controls, turns, distances, at_once, chunk)
    gains = [(losses[:, 1 - PASSAGE :] - again).mean(axis=1) for again in shown]
    model.train(training)
    mine = np.stack(gains, axis=1), losses[:, :-PASSAGE]  # (passages, D), (passages, S - PASSAGE)
    found = ranks.gather(mine)[::sharing]  # the ranks of a sequence have found the same
    gains, losses = map(np.concatenate, zip(*found, strict=True))
    bins = np.array_split(np.arange(seq_len - PASSAGE), POSITION_BINS)
    return {
        "passages": passages,
        "distances": distances,
        "gains": gains.mean(axis=0).tolist(),
        "gain_errors": (gains.std(axis=0, ddof=1) / np.sqrt(passages)).tolist(),
        "positions": [float(part.mean() + 1) for part in bins],
        "position_losses": [float(losses[:, part].mean()) for part in bins],
    }


@torch.no_grad()
def second_showing_loss(model, rows, seq_len, passages, at_once=1):
    """The mean loss, in nats a token, of passages that a sequence has shown before.

    The sequences are those of ``reach`` with all its distances.  Not the gain, which also grows
    with the control's loss.  None where ``reach`` gives None.
    """
    distances = probed_distances(seq_len)
    if min(passages, len(rows)) < 2 or not distances:
        return None
    controls, turns = _controls(rows[:, : seq_len + 1], passages)
    return float(np.mean(list(_shown_losses(model, controls, turns, distances, at_once))))


def _controls(rows, passages):
    """Rows that end with a passage of another row, (passages, S + 1), and the turn of each."""
    generator = np.random.default_rng(SEED)
    count, width = rows.shape
    fillers = np.resize(generator.permutation(count), passages)
    others = (fillers + generator.integers(1, count, passages)) % count
    first = generator.integers(width - PASSAGE + 1, size=passages)
    controls = rows[fillers]
    controls[:, -PASSAGE:] = rows[others[:, None], first[:, None] + np.arange(PASSAGE)]
    return controls, np.arange(passages) % TURNS


def _shown_losses(model, controls, turns, distances, at_once, chunk=0):
    """For each distance, yield the losses (passages, PASSAGE - 1) of passages shown before.

    Without the loss of a passage's first token, of which what stands before it says nothing.
    """
    for distance in distances:
        first = controls.shape[1] - PASSAGE - (distance - turns)
        places = first[:, None] + np.arange(PASSAGE)
        shown = controls.copy()
        np.put_along_axis(shown, places, controls[:, -PASSAGE:], axis=1)
        yield _token_losses(model, shown, at_once, chunk)[:, 1 - PASSAGE :]


def _token_losses(model, rows, at_once, chunk=0):
    """The loss of every token of rows (N, S + 1) but the first, in nats (N, S)."""
    device = next(model.parameters()).device
    losses = np.empty((len(rows), rows.shape[1] - 1))
    for start in range(0, len(rows), at_once):
        inputs, targets = own_tokens(model, rows[start : start + at_once], device)
        found = token_losses(model, inputs, targets, chunk)
        losses[start : start + at_once] = whole_rows(found, shards_of(model)).cpu()
    return losses

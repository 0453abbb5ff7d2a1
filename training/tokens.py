"""Rows of tokens as training reads them: checked, cut to a length, split.  Needs no torch."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from machine.command import UserError
from machine.files import DAMAGE

HELD_OUT_SHARE = 0.05
DEFAULT_PATH, DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE = "training_data.npy", 256, 10_000
TOKENIZER_NAME = "tokenizer.json"  # beside the data
LARGEST_TOKEN = 2**24 - 1  # of a user's array; more is padding or an id gone wrong


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows of tokens, memory-mapped: ``train`` and ``held_out`` (rows, seq_len + 1), read-only.

    The integers keep the file's dtype; every one is in ``range(vocab_size)``.
    """

    path: str
    train: np.ndarray
    held_out: np.ndarray
    vocab_size: int

    @property
    def seq_len(self):
        """Tokens that a row predicts: one less than it has."""
        return self.train.shape[1] - 1

    @property
    def tokens(self):
        """Number of tokens in all rows, held-out ones included."""
        return self.train.size + self.held_out.size


def _open_array(path):
    """The memory-mapped array of a .npy file; nothing in the file is ever executed."""
    if not path.exists():
        raise UserError(f"{path}: no such file: write it with python prepare_data.py")
    try:
        # unlike np.load, which also takes archives, and pickles when told to
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, *DAMAGE) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path}: unreadable, truncated or no .npy file ({reason}): write it again with "
            "python prepare_data.py"
        ) from None


def _check_rows(path, rows):
    """Refuse an array that is not rows of tokens."""
    remedy = "save rows of tokens, a 2-D array of integers (rows, seq_len + 1)"
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise UserError(f"{path}: has the shape {rows.shape}: {remedy}")
    if rows.dtype.kind not in "iu":
        raise UserError(f"{path}: holds {rows.dtype}, not integers: {remedy}")


def _vocab_size(path, rows):
    """Largest token + 1; UserError for tokens that no vocabulary has."""
    least, largest = int(rows.min()), int(rows.max())
    for token in (least, largest):
        if not 0 <= token <= LARGEST_TOKEN:
            limits = f"from 0 to {LARGEST_TOKEN:,} at most"
            raise UserError(f"{path}: has the token {token:,}: number the tokens {limits}")
    return largest + 1


def _cut_anew(rows, seq_len):
    """The same tokens in rows of ``seq_len + 1``, the rest dropped, without a copy."""
    width = seq_len + 1
    count = rows.size // width
    return rows.reshape(-1)[: count * width].reshape(count, width)


def load_dataset(path=DEFAULT_PATH, seq_len=None, batch_size=1):
    """Check a file of tokens (N, S + 1) and split it; the last 5 % of the rows are held out.

    seq_len: tokens a row predicts; where it is not the file's S (None: S) the tokens are cut anew.
    batch_size: rows that training takes at once, so the least it must have.
    Returns a ``Dataset``; raises UserError.
    """
    path = Path(path)
    stored = _open_array(path)
    _check_rows(path, stored)
    rows = stored if seq_len is None else _cut_anew(stored, seq_len)
    held_out = math.ceil(len(rows) * HELD_OUT_SHARE)
    split = len(rows) - held_out
    if split < batch_size:
        raise UserError(
            f"{path}: {len(rows):,} rows of {rows.shape[1]:,} tokens, of which {held_out:,} are "
            f"held out, are too few for a batch of {batch_size:,}: prepare more text, or take a "
            "smaller --seq-len or --batch-size"
        )
    return Dataset(str(path), rows[:split], rows[split:], _vocab_size(path, stored))

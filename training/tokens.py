"""Rows of tokens as training reads them: checked, cut to a length, split.  Needs no torch."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.corpus import DataError, _check_range, _explained

HELD_OUT_SHARE = 0.05
DEFAULT_PATH, DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE = "training_data.npy", 256, 10_000
TOKENIZER_NAME = "tokenizer.json"  # beside the data
TOKENS_AT_ONCE = 2**22
LARGEST_VOCABULARY = 2**24  # of a user's own array; more is padding or an id gone wrong


# --- rows of tokens into a dataset -------------------------------------------------------------
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
    with _explained(path, "read", "make it readable"):
        if not path.exists():
            raise DataError(f"{path}: no such file: write it with python prepare_data.py")
        if not path.is_file():
            raise DataError(f"{path}: is no file: name a .npy file")
        try:
            # unlike np.load, which also takes archives, and pickles when told to
            return np.lib.format.open_memmap(path, mode="r")
        except OSError:
            raise
        except Exception as error:  # a damaged header makes numpy raise almost anything
            reason = str(error).split("\n")[0] or type(error).__name__
            raise DataError(
                f"{path}: truncated, pickled or no .npy file ({reason}): "
                "write it again with python prepare_data.py"
            ) from None


def _check_rows(path, rows):
    """Refuse an array that is not rows of tokens."""
    remedy = "save rows of tokens, a 2-D array of integers (rows, seq_len + 1)"
    if rows.ndim != 2:
        raise DataError(f"{path}: has {rows.ndim} dimensions, not 2: {remedy}")
    if rows.dtype.kind not in "iu":
        raise DataError(f"{path}: holds {rows.dtype}, not integers: {remedy}")
    if rows.shape[1] < 2:
        raise DataError(f"{path}: rows of {rows.shape[1]}, shorter than 2 tokens: {remedy}")


def _vocab_size(path, rows):
    """Largest token + 1, read in pieces so that a big file needs no memory."""
    step = max(1, TOKENS_AT_ONCE // rows.shape[1])
    largest = 0
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        if piece.min() < 0:
            raise DataError(f"{path}: has a negative token, {piece.min()}: count tokens from 0")
        largest = max(largest, int(piece.max()))
    return largest + 1


def _held_out_rows(rows):
    """Rows held out of ``rows``: 5 % rounded up."""
    return math.ceil(rows * HELD_OUT_SHARE)


def _check_enough(path, rows, seq_len, batch_size):
    if rows - _held_out_rows(rows) < batch_size:
        needed = math.ceil(batch_size / (1 - HELD_OUT_SHARE))
        needed += needed - _held_out_rows(needed) < batch_size  # the held-out share rounds up
        raise DataError(
            f"{path}: {rows:,} rows at --seq-len {seq_len:,}, {needed:,} needed for a batch of "
            f"{batch_size:,} and the held-out rows: prepare more text, or take a smaller --seq-len "
            "or --batch-size"
        )


def load_dataset(path=DEFAULT_PATH, seq_len=None, batch_size=1):
    """Check a file of tokens (N, S + 1) and split it; the last 5 % of the rows are held out.

    seq_len: tokens a row predicts; where it is not the file's S (None: S) the same tokens are
    cut anew, the rest dropped, without a copy (an array in Fortran order is copied).
    batch_size: rows that training takes at once, so the least it must have.
    Returns a ``Dataset``; raises DataError.
    """
    path = Path(path)
    _check_range("--batch-size", batch_size, 1)
    rows = _open_array(path)
    _check_rows(path, rows)
    width = rows.shape[1] if seq_len is None else seq_len + 1
    _check_range("--seq-len", width - 1, 1)
    count = rows.size // width
    _check_enough(path, count, width - 1, batch_size)
    vocab_size = _vocab_size(path, rows)
    if vocab_size > LARGEST_VOCABULARY:
        raise DataError(
            f"{path}: has token {vocab_size - 1:,}, which would make a vocabulary of as many: "
            f"number the tokens from 0, at most {LARGEST_VOCABULARY:,} of them"
        )
    if width != rows.shape[1]:
        rows = rows.reshape(-1)[: count * width].reshape(count, width)
    split = count - _held_out_rows(count)
    return Dataset(str(path), rows[:split], rows[split:], vocab_size)

"""Rows of tokens as training reads them: checked, cut to a length, split.  Needs no torch."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from machine.command import UserError, counted

HELD_OUT_SHARE = 0.05
DEFAULT_PATH, DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE = "training_data.npy", 256, 10_000
LAPTOP_PATH, SMOKE_PATH = "training_data_1024.npy", "training_data_smoke.npy"  # of presets
TOKENIZER_NAME = "tokenizer.json"  # beside weights, and beside data of earlier versions
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


def tokenizer_path(data):
    """Where the tokenizer of a file of tokens is written: X.npy has X.tokenizer.json beside it.

    Where X.npy is a link, it lies beside the file that the link leads to.
    """
    return Path(os.path.realpath(data)).with_suffix(f".{TOKENIZER_NAME}")


def find_tokenizer(data):
    """Where the tokenizer of a file of tokens lies, if there is one: X.tokenizer.json beside it.

    Without that file it is tokenizer.json in the folder, as data of earlier versions has it.
    """
    own = tokenizer_path(data)
    return own if own.exists() else own.with_name(TOKENIZER_NAME)


def is_tokenizer(name):
    """Whether a file of this name is the tokenizer of data or of weights."""
    return name == TOKENIZER_NAME or name.endswith(f".{TOKENIZER_NAME}")


def _open_rows(path):
    """The memory-mapped rows of a .npy file; nothing in the file is ever executed."""
    try:
        # not np.load, which also takes archives, and pickles when told to
        rows = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: write it with python prepare_data.py") from None
    except Exception as error:  # numpy raises a dozen kinds over damage
        reason = str(error).split("\n")[0]
        words = f"unreadable, truncated, pickled or no .npy file ({reason})"
        remedy = "write it again with python prepare_data.py, or remove it where main.py made it"
        raise UserError(f"{path}: {words}: {remedy}") from None
    if rows.ndim != 2 or rows.shape[1] < 2 or rows.dtype.kind not in "iu":
        remedy = "save rows of at least 2 tokens as an array of integers (rows, seq_len + 1)"
        raise UserError(f"{path}: holds {rows.dtype} in the shape {rows.shape}: {remedy}")
    return rows


def load_dataset(path=DEFAULT_PATH, seq_len=None, batch_size=1):
    """Check a file of tokens (N, S + 1) and split it; the last 5 % of the rows are held out.

    seq_len: how many tokens a row predicts, None: the file's S.  For another length the same tokens
    are cut anew, without a copy, and what is left over is dropped.
    batch_size: rows that training takes at once, so it must have no fewer.
    Returns a ``Dataset``; raises UserError.
    """
    path = Path(path)
    stored = _open_rows(path)
    width = stored.shape[1] if seq_len is None else seq_len + 1
    count = stored.size // width
    held_out = math.ceil(count * HELD_OUT_SHARE)
    split = count - held_out
    if split < batch_size:
        raise UserError(
            f"{path}: {counted(count, 'row')} of {width:,} tokens, less {held_out:,} held out, are "
            f"too few for a batch of {batch_size:,}: prepare more text, or take a smaller "
            "--seq-len or --batch-size"
        )
    least, largest = int(stored.min()), int(stored.max())
    if least < 0 or largest > LARGEST_TOKEN:
        limits = f"none may be negative or above {LARGEST_TOKEN:,}"
        raise UserError(f"{path}: has tokens from {least:,} to {largest:,}: {limits}")
    rows = stored.reshape(-1)[: count * width].reshape(count, width)
    return Dataset(str(path), rows[:split], rows[split:], largest + 1)

"""Training data: text into rows of tokens (``training_data.npy``), and such files back into memory.

The data is one stream of tokens, every document followed by an end-of-text token, cut into rows of
``seq_len + 1``: inputs are ``row[:-1]``, targets ``row[1:]``.  The last 5 % of the rows are held
out.  Knows nothing of models or devices and needs no torch; ``python prepare_data.py --help``.
"""

import argparse
import math
import os
import sys
import sysconfig
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from metrics_utils import atomic_write

HELD_OUT_SHARE = 0.05
DEFAULT_PATH, DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE = "training_data.npy", 256, 10_000
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_NAME = "tokenizer.json"  # beside the data
LEAST_VOCAB, MOST_VOCAB = 257, 1_000_000  # 256 bytes + END_OF_TEXT; the trainer allocates for all
# fmt: off
TEXT_SUFFIXES = {
    ".c", ".cc", ".cfg", ".cpp", ".cs", ".css", ".csv", ".cu", ".go", ".h", ".hpp", ".htm", ".html",
    ".ini", ".java", ".jl", ".js", ".json", ".jsonl", ".kt", ".lua", ".markdown", ".md", ".php",
    ".pl", ".py", ".pyi", ".r", ".rb", ".rs", ".rst", ".scala", ".sh", ".sql", ".swift", ".tex",
    ".toml", ".ts", ".tsv", ".txt", ".xml", ".yaml", ".yml",
}
# fmt: on
# Beside the library itself these hold installed packages, compiled files and its test suite.
NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
DOCUMENTS_AT_ONCE, TOKENS_AT_ONCE = 64, 2**22
LARGEST_VOCABULARY = 2**24  # of a user's own array; more is padding or an id gone wrong


class DataError(ValueError):
    """Data that cannot be used; the message names the path or value and the remedy."""


@contextmanager
def _explained(path, action, remedy):
    """Turn an OSError into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be {action} ({error}): {remedy}") from None


def _check_range(option, value, least, most=math.inf):
    if not least <= value <= most:
        limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise DataError(f"{option} must be {limits}, got {value}")


# --- the corpus --------------------------------------------------------------------------------


def _reraise(error):
    raise error


def _walk(folder, suffixes, left_out=()):
    """Text files below ``folder``, sorted by POSIX relative path, without hidden folders."""
    found = []
    for root, folders, names in os.walk(folder, onerror=_reraise):
        folders[:] = [name for name in folders if name[0] != "." and name not in left_out]
        found += [Path(root, name) for name in names if Path(name).suffix.lower() in suffixes]
    files = [path for path in found if path.is_file()]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _corpus_files(paths):
    """The corpus as a list of (path, whether the user named it), in the order it is read."""
    if not paths:
        library = Path(sysconfig.get_paths()["stdlib"])
        return [(path, False) for path in _walk(library, {".py"}, NOT_LIBRARY)]
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            files += [(file, False) for file in _walk(path, TEXT_SUFFIXES)]
        elif path.is_file():
            files.append((path, True))
        else:
            raise DataError(f"{path}: no such file or folder: check the PATH")
    return files


def _read_documents(files):
    """Yield the text of each file; blank files are skipped, and binary ones unless named."""
    for path, named in files:
        with _explained(path, "read", "make it readable or leave it out"):
            data = path.read_bytes()
        if b"\0" in data:
            if named:
                raise DataError(f"{path}: binary (it has NUL bytes): give a text file in UTF-8")
        elif data and not data.isspace():
            yield data.decode("utf-8", errors="replace")


# --- text into rows of tokens ------------------------------------------------------------------


def _progress(files, description):
    return tqdm(files, desc=description, unit="file", disable=None, leave=False)


def _train_tokenizer(documents, vocab_size):
    """A byte-level BPE of at most ``vocab_size`` tokens; equal documents give equal tokenizers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    # a document that spells out END_OF_TEXT (this file does) must not end there
    tokenizer.encode_special_tokens = True
    return tokenizer


def _encode(tokenizer, documents):
    """Yield the tokens of each document as an array (tokens,), END_OF_TEXT last."""
    dtype = np.min_scalar_type(tokenizer.get_vocab_size() - 1)
    end = tokenizer.token_to_id(END_OF_TEXT)
    while batch := list(islice(documents, DOCUMENTS_AT_ONCE)):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield np.array([*encoding.ids, end], dtype=dtype)


def _cut(chunks, seq_len):
    """Arrays of tokens as rows (N, seq_len + 1), the rest dropped; DataError without a row."""
    tokens = sum(map(len, chunks))
    rows = tokens // (seq_len + 1)
    if not rows:
        raise DataError(
            f"--seq-len {seq_len}: {tokens:,} tokens of text are too few for one row of "
            f"{seq_len + 1:,}: give more text or a smaller --seq-len"
        )
    return np.concatenate(chunks)[: rows * (seq_len + 1)].reshape(rows, seq_len + 1)


def _check_output(output):
    """Refuse, before any work is done, an output that could not be written after it."""
    if output.suffix != ".npy":
        raise DataError(f"--output {output}: must end in .npy: choose such a name")
    for path in (output, output.parent / TOKENIZER_NAME):
        if path.is_dir():
            raise DataError(f"{path}: a folder is in the way: choose another --output")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(f"{output}: {folder} is no writable folder: choose another --output")


def _write(output, rows, tokenizer):
    """Write the tokenizer and the rows, both or neither."""
    text = tokenizer.to_str(pretty=True).encode()

    def write_rows(file):
        np.save(file, rows, allow_pickle=False)
        file.flush()
        # only once the rows have found room on the disk is an older tokenizer replaced
        atomic_write(output.parent / TOKENIZER_NAME, lambda file: file.write(text))

    with _explained(output, "written", "free some space or choose another --output"):
        atomic_write(output, write_rows)


@dataclass(frozen=True)
class Prepared:
    """What ``prepare_data`` wrote: ``rows`` rows of ``seq_len + 1`` tokens, ``tokens`` in all."""

    path: Path
    documents: int
    tokens: int
    rows: int
    seq_len: int
    vocab_size: int


def describe(prepared):
    """One line on what ``prepare_data`` wrote."""
    return (
        f"{prepared.path}: {prepared.documents:,} documents, {prepared.tokens:,} tokens, "
        f"{prepared.rows:,} rows of {prepared.seq_len + 1:,}, vocabulary {prepared.vocab_size:,} "
        f"({TOKENIZER_NAME} beside it)"
    )


def prepare_data(
    paths=(), seq_len=DEFAULT_SEQ_LEN, vocab_size=DEFAULT_VOCAB_SIZE, output=DEFAULT_PATH
):
    """Write text as rows of tokens, and the tokenizer as ``tokenizer.json`` beside them.

    paths: text files, and folders walked for text; without any, the Python standard library's own
    source.  ``output`` becomes an array (rows, seq_len + 1) of the smallest unsigned dtype that
    holds the vocabulary, which is of ``vocab_size`` tokens or of fewer where the text is short.
    Returns a ``Prepared``; raises DataError, and then leaves all files as they were.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if "" in paths:
        raise DataError("an empty PATH: give a text file or a folder")
    output = Path(output)
    tokenizer_path = (output.parent / TOKENIZER_NAME).resolve()
    _check_range("--seq-len", seq_len, 1)
    _check_range("--vocab-size", vocab_size, LEAST_VOCAB, MOST_VOCAB)
    with _explained(output, "written", "choose another --output"):
        _check_output(output)
    with _explained("the corpus", "read", "make it readable or give another PATH"):
        files = _corpus_files(paths)
    # an earlier run's tokenizer is no text of the corpus, also where it lies in its folder
    files = [(path, named) for path, named in files if path.resolve() != tokenizer_path]
    documents = _read_documents(_progress(files, "training the tokenizer"))
    tokenizer = _train_tokenizer(documents, vocab_size)
    chunks = list(_encode(tokenizer, _read_documents(_progress(files, "encoding"))))
    if not chunks:
        places = ", ".join(map(str, paths)) or sysconfig.get_paths()["stdlib"]
        raise DataError(f"{places}: no text in there: give a PATH to text files")
    rows = _cut(chunks, seq_len)
    _write(output, rows, tokenizer)
    vocab_size = tokenizer.get_vocab_size()
    return Prepared(output, len(chunks), rows.size, len(rows), seq_len, vocab_size)


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


# --- command line ------------------------------------------------------------------------------


def _parser():
    parser = argparse.ArgumentParser(
        description="Turn text into rows of tokens for training, and save their tokenizer.",
        epilog="example: python prepare_data.py notes.txt books/ --seq-len 1024 --output books.npy",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        default=argparse.SUPPRESS,
        help="text file, or folder walked for text (default: Python's standard library)",
    )
    for option, default, text in (
        ("--seq-len", DEFAULT_SEQ_LEN, "tokens that a row predicts"),
        ("--vocab-size", DEFAULT_VOCAB_SIZE, "tokens to learn, at most"),
        ("--output", DEFAULT_PATH, f"file to write, with {TOKENIZER_NAME} beside it"),
    ):
        parser.add_argument(option, type=type(default), default=default, help=text)
    return parser


def main(argv=None):
    """The command line; returns the exit code, 2 for data or values that cannot be used."""
    arguments = {"paths": ()} | vars(_parser().parse_args(argv))
    try:
        print(describe(prepare_data(**arguments)))
    except DataError as error:
        print(f"prepare_data.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Training data: text into rows of tokens (``training_data.npy``), and such files back into memory.

The data is one stream of tokens, every document followed by an end-of-text token, cut into rows of
``seq_len + 1``: inputs are ``row[:-1]``, targets ``row[1:]``.  The last 5 % of the rows are held
out.  Knows nothing of models or devices and needs no torch; ``python prepare_data.py --help``.

A file is a document.  The corpus is read three times (to look at each file, to train the tokenizer,
to encode), always in blocks, so that the memory needed does not grow with it.
"""

import argparse
import codecs
import glob
import gzip
import hashlib
import math
import os
import re
import stat
import sys
import sysconfig
import time
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from metrics_utils import TEMPORARY_SUFFIX, atomic_write

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None

HELD_OUT_SHARE = 0.05
DEFAULT_PATH, DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE = "training_data.npy", 256, 10_000
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_NAME = "tokenizer.json"  # beside the data
LEAST_VOCAB, MOST_VOCAB = 257, 1_000_000  # 256 bytes + END_OF_TEXT; the trainer allocates for all
CORPORA = ("stdlib", "site-packages")
# fmt: off
TEXT_SUFFIXES = {
    ".adoc", ".bash", ".bat", ".bib", ".c", ".cc", ".cfg", ".cjs", ".clj", ".cmake", ".conf",
    ".cpp", ".cs", ".css", ".csv", ".cu", ".cuh", ".cxx", ".dart", ".erl", ".ex", ".exs", ".f",
    ".f90", ".go", ".h", ".hh", ".hpp", ".hs", ".htm", ".html", ".ini", ".java", ".jl", ".js",
    ".json", ".jsonl", ".jsx", ".kt", ".log", ".lua", ".m", ".markdown", ".md", ".mjs", ".ml",
    ".org", ".php", ".pl", ".proto", ".ps1", ".pxd", ".py", ".pyi", ".pyx", ".r", ".rb", ".rs",
    ".rst", ".scala", ".sh", ".sql", ".srt", ".swift", ".tex", ".text", ".toml", ".ts", ".tsv",
    ".tsx", ".txt", ".vue", ".xml", ".yaml", ".yml", ".zig",
}
# fmt: on
# Beside the library itself these hold installed packages, compiled files and its test suite.
NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
BLOCK_BYTES = 2**20  # read at once
PIECE_CHARACTERS = 2**16  # of a document, encoded on one core: _pieces says where it is cut
CHARACTERS_AT_ONCE = 2**22  # shared out to the cores: 64 pieces; needs about 100 bytes each
SAMPLE_CHARACTERS = 2**24  # the tokenizer learns from as many: more than the default corpus has
TOKENS_AT_ONCE = 2**22
LARGEST_VOCABULARY = 2**24  # of a user's own array; more is padding or an id gone wrong
NAMED_AT_MOST = 10  # files of one kind left out that are named


class DataError(ValueError):
    """Data that cannot be used; the message names the path or value and the remedy."""


@contextmanager
def _explained(path, action, remedy):
    """Turn an error of reading or writing a file into a DataError that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:  # the last two: a damaged .gz
        raise DataError(f"{path}: cannot be {action} ({error}): {remedy}") from None


def _check_range(option, value, least, most=math.inf):
    if not least <= value <= most:
        limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise DataError(f"{option} must be {limits}, got {value}")


# --- the corpus --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A file of the corpus and its size in bytes on the disk."""

    path: Path
    size: int
    named: bool = False  # by the user: then what is wrong with it is an error
    library: bool = False  # of the default corpus, whose few duplicates have always been in it


class _Unusable(Exception):
    """What kind of file this is instead of text, and the reason."""


def _walk(folder, suffixes, skipped, unreadable):
    """Text files below ``folder``, also packed as .gz, as (path, bytes) sorted by relative path.

    Hidden folders, those called as in ``skipped`` and links to folders are not entered.  What
    cannot be read is added to ``unreadable`` in words, but raises OSError for ``folder`` itself.
    """

    def note(error):
        if error.filename == str(folder):
            raise error
        unreadable.append(f"{error.filename} ({error.strerror})")

    found = []
    for root, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if name[0] != "." and name not in skipped]
        for name in names:
            if Path(name.lower().removesuffix(".gz")).suffix in suffixes:
                path = Path(root, name)
                try:
                    status = path.stat()
                    if stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                        found.append((path, status.st_size))
                except FileNotFoundError:  # a link to nowhere
                    pass
                except OSError as error:
                    unreadable.append(f"{path} ({error.strerror})")
    return sorted(found, key=lambda file: file[0].relative_to(folder).as_posix())


def _corpus_folders(corpus):
    """The folders of --corpus, the standard library first."""
    places = sysconfig.get_paths()
    names = ("stdlib", "purelib", "platlib") if corpus == "site-packages" else ("stdlib",)
    return list(dict.fromkeys(Path(places[name]).resolve() for name in names))


def _corpus_sources(paths, corpus, unreadable):
    """The corpus as a list of Source, in the order it is read; DataError where there is none."""
    sources = []
    if not paths:
        library, *packages = _corpus_folders(corpus)
        files = _walk(library, {".py"}, NOT_LIBRARY, unreadable)
        sources += [Source(*file, library=True) for file in files]
        for folder in filter(Path.is_dir, packages):
            files = _walk(folder, {".py"}, {"__pycache__"}, unreadable)
            sources += [Source(*file) for file in files]
        if packages and all(source.library for source in sources):
            places = ", ".join(map(str, packages))
            raise DataError(f"{places}: no package's source in there: choose --corpus stdlib")
    for path in map(Path, paths):
        if path.is_dir():
            sources += [Source(*file) for file in _walk(path, TEXT_SUFFIXES, (), unreadable)]
        elif path.is_file():
            sources.append(Source(path, path.stat().st_size, named=True))
        else:
            raise DataError(f"{path}: no such file or folder: check the PATH")
    return sources


def _blocks(source, bar):
    """Yield the bytes of a file, unpacked where it is a .gz, BLOCK_BYTES or fewer at a time."""
    with source.path.open("rb") as file:
        packed = source.path.suffix.lower() == ".gz"
        stream = gzip.GzipFile(fileobj=file) if packed else file
        place = 0
        while block := stream.read(BLOCK_BYTES):
            bar.update(file.tell() - place)
            place = file.tell()
            yield block


def _look_at(source, bar):
    """Characters of a file, 0 for a blank one, and the SHA-256 of its bytes; raises _Unusable."""
    errors = "replace" if source.named else "strict"
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    characters, blank, digest = 0, True, hashlib.sha256()
    try:
        for block in _blocks(source, bar):
            if b"\0" in block:
                raise _Unusable("binary", "it has NUL bytes")
            characters += len(decoder.decode(block))
            blank = blank and block.isspace()
            digest.update(block)
        characters += len(decoder.decode(b"", final=True))
    except UnicodeDecodeError as error:
        raise _Unusable("not UTF-8", error.reason) from None
    except (OSError, EOFError, zlib.error) as error:
        raise _Unusable("unreadable", getattr(error, "strerror", None) or error) from None
    return 0 if blank else characters, digest.digest()


def _look_through(sources, left_out):
    """The sources that are documents, and their characters in all; the others into ``left_out``.

    A blank file is no document and nothing that is left out.  Raises DataError for a file that the
    user named and that is no text.
    """
    documents, total, seen = [], 0, set()
    with _progress(sources, "reading") as bar:
        for source in sources:
            try:
                characters, digest = _look_at(source, bar)
            except _Unusable as error:
                kind, reason = error.args
                if source.named:
                    words = {"unreadable": "cannot be read"}.get(kind, kind)
                    raise DataError(
                        f"{source.path}: {words} ({reason}): give a readable text file in UTF-8"
                    ) from None
                left_out[kind].append(f"{source.path} ({reason})")
                continue
            if characters and digest in seen and not source.library:
                left_out["duplicate"].append(str(source.path))
            elif characters:
                documents.append(source)
                total += characters
                seen.add(digest)
    return documents, total


# --- text into rows of tokens ------------------------------------------------------------------


def _progress(sources, description):
    """A bar over the bytes of the sources on the disk."""
    total = sum(source.size for source in sources)
    options = {"unit": "B", "unit_scale": True, "disable": None, "leave": False}
    return tqdm(desc=description, total=total, **options)


def _cut(text):
    """Where to cut off a piece of ``text``, which is longer than one.

    Before a blank that follows something else: there every word of the tokenizer ends, so that the
    tokens are those of the text uncut.  PIECE_CHARACTERS without such a place are cut off hard.
    """
    piece = re.match(rf"(?s:.{{1,{PIECE_CHARACTERS}}})(?<=\S)(?=[ \t\r\n])", text)
    return piece.end() if piece else PIECE_CHARACTERS


def _pieces(source, bar):
    """Yield a document as (text, whether the document ends there), see ``_cut``."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    with _explained(source.path, "read", "make it readable or leave it out"):
        for block in _blocks(source, bar):
            text += decoder.decode(block)
            while len(text) > PIECE_CHARACTERS:
                end = _cut(text)
                yield text[:end], False
                text = text[end:]
    yield text + decoder.decode(b"", final=True), True


def _sample(documents, characters):
    """Yield all text, or evenly spread pieces, SAMPLE_CHARACTERS of ``characters`` in all."""
    seen = taken = 0
    with _progress(documents, "training the tokenizer") as bar:
        for source in documents:
            for text, _ in _pieces(source, bar):
                if taken * characters <= seen * SAMPLE_CHARACTERS:
                    taken += len(text)
                    yield text
                seen += len(text)


def _train_tokenizer(texts, vocab_size):
    """A byte-level BPE of at most ``vocab_size`` tokens; equal texts give equal tokenizers."""
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
    tokenizer.train_from_iterator(texts, trainer)
    # a document that spells out END_OF_TEXT (this file does) must not end there
    tokenizer.encode_special_tokens = True
    return tokenizer


def _batches(documents):
    """Yield lists of pieces of about CHARACTERS_AT_ONCE characters in all."""
    batch, characters = [], 0
    with _progress(documents, "encoding") as bar:
        for source in documents:
            for piece in _pieces(source, bar):
                batch.append(piece)
                characters += len(piece[0])
                if characters >= CHARACTERS_AT_ONCE:
                    yield batch
                    batch, characters = [], 0
    yield batch


def _encode(tokenizer, documents, dtype):
    """Yield the stream of tokens as arrays (tokens,), END_OF_TEXT after every document."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    for batch in _batches(documents):
        tokens = []
        texts = [text for text, _ in batch]
        # on all cores; each text by itself, so that their number changes nothing
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for (_, ends), encoding in zip(batch, encodings, strict=True):
            tokens += encoding.ids
            tokens += [end] * ends
        yield np.array(tokens, dtype=dtype)


def _write_rows(file, chunks, dtype, seq_len):
    """Write arrays of tokens as np.save would their rows (N, seq_len + 1); returns N.

    The rest that fills no row is dropped; DataError where there is no row.
    """
    width = seq_len + 1

    def write_header(rows):
        header = {"descr": dtype.str, "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(file, header)
        return file.tell()

    start = write_header(0)  # numpy leaves room in it for any number of rows
    tokens = 0
    for chunk in chunks:
        file.write(chunk.data)
        tokens += len(chunk)
    rows = tokens // width
    if not rows:
        raise DataError(
            f"--seq-len {seq_len}: {tokens:,} tokens of text are too few for one row of "
            f"{width:,}: give more text or a smaller --seq-len"
        )
    file.truncate(start + rows * width * dtype.itemsize)
    file.seek(0)
    assert write_header(rows) == start
    return rows


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


def _hold(file):
    """Lock an open file, which ends with the process; OSError where another process does."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_leftovers(output):
    """Remove the temporary files of killed processes; those of living ones are locked."""
    for name in (output.name, TOKENIZER_NAME):
        for path in output.parent.glob(f".{glob.escape(name)}.*{TEMPORARY_SUFFIX}"):
            with suppress(OSError), path.open("rb") as file:
                _hold(file)
                path.unlink()


def _write(output, documents, tokenizer, seq_len):
    """Encode and write the rows and then the tokenizer, both or neither; returns their number."""
    dtype = np.min_scalar_type(tokenizer.get_vocab_size() - 1)
    text = tokenizer.to_str(pretty=True).encode()
    rows = 0

    def write_tokenizer(file):
        with suppress(OSError):  # a disk without locks
            _hold(file)
        file.write(text)

    def write_rows(file):
        nonlocal rows
        with suppress(OSError):
            _hold(file)
        rows = _write_rows(file, _encode(tokenizer, documents, dtype), dtype, seq_len)
        file.flush()
        # only once the rows have found room on the disk is an older tokenizer replaced
        atomic_write(output.parent / TOKENIZER_NAME, write_tokenizer)

    _remove_leftovers(output)
    atomic_write(output, write_rows)
    return rows


@dataclass(frozen=True)
class Prepared:
    """What ``prepare_data`` wrote: ``rows`` rows of ``seq_len + 1`` tokens, ``tokens`` in all.

    seconds: encoding and writing took, without the tokenizer's training.  left_out: for each kind
    (duplicate, binary, not UTF-8, unreadable) the files, in words.
    """

    path: Path
    documents: int
    tokens: int
    rows: int
    seq_len: int
    vocab_size: int
    seconds: float
    left_out: dict


def _count_words(left_out):
    return ", ".join(f"{len(names):,} {kind}" for kind, names in left_out.items() if names)


def describe(prepared):
    """One line on what ``prepare_data`` wrote."""
    left_out = _count_words(prepared.left_out)
    return (
        f"{prepared.path}: {prepared.documents:,} documents, {prepared.tokens:,} tokens, "
        f"{prepared.rows:,} rows of {prepared.seq_len + 1:,}, vocabulary {prepared.vocab_size:,} "
        f"({TOKENIZER_NAME} beside it); {prepared.tokens / prepared.seconds:,.0f} tokens/s"
        + (f"; files left out: {left_out}" if left_out else "")
    )


def prepare_data(
    paths=(),
    seq_len=DEFAULT_SEQ_LEN,
    vocab_size=DEFAULT_VOCAB_SIZE,
    output=DEFAULT_PATH,
    corpus=None,
):
    """Write text as rows of tokens, and the tokenizer as ``tokenizer.json`` beside them.

    paths: text files, and folders walked for text; without any, ``corpus`` (None: "stdlib", the
    Python standard library's own source; "site-packages": that and the installed packages').
    ``output`` becomes an array (rows, seq_len + 1) of the smallest unsigned dtype that holds the
    vocabulary, which is of ``vocab_size`` tokens or of fewer where the text is short.  Equal text
    gives equal files, however many cores there are.
    Returns a ``Prepared``; raises DataError, or OSError where a file cannot be written, and then
    leaves all files as they were.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if "" in paths:
        raise DataError("an empty PATH: give a text file or a folder")
    if corpus not in (None, *CORPORA):
        raise DataError(f"--corpus must be one of {', '.join(CORPORA)}, got {corpus}")
    if paths and corpus:
        raise DataError(f"--corpus {corpus} beside PATH {paths[0]}: give one or the other")
    output = Path(output)
    tokenizer_path = (output.parent / TOKENIZER_NAME).resolve()
    _check_range("--seq-len", seq_len, 1)
    _check_range("--vocab-size", vocab_size, LEAST_VOCAB, MOST_VOCAB)
    with _explained(output, "written", "choose another --output"):
        _check_output(output)
    left_out = {kind: [] for kind in ("duplicate", "binary", "not UTF-8", "unreadable")}
    with _explained("the corpus", "read", "make it readable or give another PATH"):
        sources = _corpus_sources(paths, corpus, left_out["unreadable"])
    # an earlier run's tokenizer is no text of the corpus, also where it lies in its folder
    sources = [source for source in sources if source.path.resolve() != tokenizer_path]
    documents, characters = _look_through(sources, left_out)
    if not documents:
        places = ", ".join(map(str, paths or _corpus_folders(corpus)))
        words = _count_words(left_out)
        words = f" (files left out: {words})" if words else ""
        raise DataError(f"{places}: no text in there{words}: give a PATH to text files")
    tokenizer = _train_tokenizer(_sample(documents, characters), vocab_size)
    start = time.perf_counter()
    rows = _write(output, documents, tokenizer, seq_len)
    seconds = time.perf_counter() - start
    return Prepared(
        path=output,
        documents=len(documents),
        tokens=rows * (seq_len + 1),
        rows=rows,
        seq_len=seq_len,
        vocab_size=tokenizer.get_vocab_size(),
        seconds=seconds,
        left_out=left_out,
    )


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
    suffixes = " ".join(sorted(TEXT_SUFFIXES))
    parser = argparse.ArgumentParser(
        description="Turn text into rows of tokens for training, and save their tokenizer. Folders "
        "are read in sorted order; text in them is every file in UTF-8 whose name ends in "
        f"{suffixes}, or in one of these and .gz. Duplicates, binary files and other encodings are "
        "left out and counted.",
        epilog="example: python prepare_data.py notes.txt books/ --seq-len 1024 --output books.npy "
        "(exit codes: 0 done, 1 a file could not be written, 2 wrong options or no text, 130 "
        "interrupted)",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        default=argparse.SUPPRESS,
        help="text file, also as .gz, or folder walked for text (default: Python's standard "
        "library)",
    )
    parser.add_argument(
        "--corpus",
        choices=CORPORA,
        default=argparse.SUPPRESS,
        help="without PATH: Python's standard library, or that and the source (.py, tests too) of "
        "every package installed beside it (default: stdlib)",
    )
    for option, default, text in (
        ("--seq-len", DEFAULT_SEQ_LEN, "tokens that a row predicts"),
        ("--vocab-size", DEFAULT_VOCAB_SIZE, "tokens to learn, at most"),
        ("--output", DEFAULT_PATH, f"file to write, with {TOKENIZER_NAME} beside it"),
    ):
        parser.add_argument(option, type=type(default), default=default, help=text)
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help=f"name files left out, {NAMED_AT_MOST} of a kind, and show the traceback of an error",
    )
    return parser


def _name_left_out(left_out, debug):
    """Name on stderr files that cannot be read, and with ``debug`` all kinds that are left out."""
    for kind, names in left_out.items():
        if debug or kind == "unreadable":
            more = len(names) - NAMED_AT_MOST
            names = names[:NAMED_AT_MOST] + [f"and {more:,} more"] * (more > 0)
            for name in names:
                print(f"prepare_data.py: left out, {kind}: {name}", file=sys.stderr)


def main(argv=None):
    """The command line; returns the exit code (see --help)."""
    arguments = {"paths": ()} | vars(_parser().parse_args(argv))
    debug = arguments.pop("debug", False)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that is no UTF-8 gets a ? and not a traceback
            stream.reconfigure(errors="replace")
    try:
        prepared = prepare_data(**arguments)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except (DataError, OSError) as error:
        if debug:
            raise
        usage = isinstance(error, DataError)
        words = error if usage else f"{error.filename}: {error.strerror}"
        print(f"prepare_data.py: {words}", file=sys.stderr)
        return 2 if usage else 1
    _name_left_out(prepared.left_out, debug)
    print(describe(prepared))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Text into rows of tokens on the disk, with the tokenizer that was trained on it."""

import codecs
import glob
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from machine.files import TEMPORARY_SUFFIX, atomic_write
from training.corpus import (
    CORPORA,
    DataError,
    _blocks,
    _check_range,
    _corpus_folders,
    _corpus_sources,
    _explained,
    _look_through,
    _progress,
)
from training.tokens import DEFAULT_PATH, DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE, TOKENIZER_NAME

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None


END_OF_TEXT = "<|endoftext|>"
LEAST_VOCAB, MOST_VOCAB = 257, 1_000_000  # 256 bytes + END_OF_TEXT; the trainer allocates for all
PIECE_CHARACTERS = 2**16  # of a document, encoded on one core: _pieces says where it is cut
CHARACTERS_AT_ONCE = 2**22  # shared out to the cores: 64 pieces; needs about 100 bytes each
SAMPLE_CHARACTERS = 2**24  # the tokenizer learns from as many: more than the default corpus has


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

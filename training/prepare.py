"""Text into rows of tokens on the disk, with the tokenizer that was trained on it."""

import glob
import re
import sysconfig
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from machine.command import UserError, bar, counted
from machine.files import atomic_write, remove_leftovers, write_text
from training.corpus import UTF_8, read_corpus
from training.tokens import (
    DEFAULT_PATH,
    DEFAULT_SEQ_LEN,
    DEFAULT_VOCAB_SIZE,
    LAPTOP_PATH,
    SMOKE_PATH,
    tokenizer_path,
)

END_OF_TEXT = "<|endoftext|>"
PIECE_CHARACTERS = 2**16  # of a document, encoded on one core
PIECES_AT_ONCE = 64  # shared out to the cores; they take about 100 bytes of memory a character
SAMPLE_CHARACTERS = 2**24  # the tokenizer learns from as many: more than the default corpus has
# The data files of presets, which main.py makes where they are missing: options of prepare_data.
# Of 10,000 words the output layer would take most of a small model's time.
PRESET_DATA = {
    DEFAULT_PATH: {},
    LAPTOP_PATH: {"vocab_size": 1024},
    SMOKE_PATH: {"vocab_size": 512, "paths": [Path(sysconfig.get_path("stdlib"), "asyncio")]},
}


def pieces_of(documents, description):
    """Yield all texts as (piece of at most PIECE_CHARACTERS, whether its text ends there).

    Texts are cut before a blank that follows something else.  Every word of the tokenizer ends
    there, so the tokens are those of the uncut text.  A piece without such a place is cut anywhere.
    description: what the progress bar says.
    """
    up_to_a_blank = re.compile(rf"(?s:.{{1,{PIECE_CHARACTERS}}})(?<=\S)(?=[ \t\r\n])")
    characters = sum(map(len, documents))
    about = {"desc": description, "total": characters, "unit": "", "unit_scale": True}
    with bar(**about) as progress:
        for document in documents:
            end = 0
            while end < len(document):
                start, end = end, len(document)
                if end - start > PIECE_CHARACTERS:
                    found = up_to_a_blank.match(document, start)
                    end = found.end() if found else start + PIECE_CHARACTERS
                yield document[start:end], end == len(document)
                progress.update(end - start)


def sample(documents):
    """Yield all text, or evenly spread pieces of it, SAMPLE_CHARACTERS in all."""
    characters = sum(map(len, documents))
    seen = taken = 0
    for piece, _ in pieces_of(documents, "training the tokenizer"):
        if taken * characters <= seen * SAMPLE_CHARACTERS:
            taken += len(piece)
            yield piece
        seen += len(piece)


def train_tokenizer(texts, vocab_size):
    """A byte-level BPE of at most ``vocab_size`` tokens; equal texts give equal tokenizers."""
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


def encode(tokenizer, documents):
    """The stream of tokens (N,), of the smallest dtype, with END_OF_TEXT after every document."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    dtype = np.min_scalar_type(tokenizer.get_vocab_size() - 1)
    all_pieces, stream = pieces_of(documents, "encoding"), []
    while batch := list(islice(all_pieces, PIECES_AT_ONCE)):
        pieces = [piece for piece, _ in batch]
        # on all cores; each piece by itself, so that the number of cores changes nothing
        encodings = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        tokens = []
        for (_, ends), encoding in zip(batch, encodings, strict=True):
            tokens += encoding.ids
            if ends:
                tokens.append(end)
        stream.append(np.array(tokens, dtype))
    return np.concatenate(stream)


def cut_into_rows(tokens, seq_len):
    """Rows (N, seq_len + 1) of a stream; the rest is dropped.  UserError where there is no row."""
    width = seq_len + 1
    rows = len(tokens) // width
    if not rows:
        words = f"{len(tokens):,} tokens of text are too few for one row of {width:,}"
        raise UserError(f"--seq-len {seq_len}: {words}: give more text or a smaller --seq-len")
    return tokens[: rows * width].reshape(rows, width)


def _counted(left_out):
    """How many files of each kind, in words; nothing where there are none."""
    counts = [f"{len(files):,} {kind}" for kind, files in left_out.items() if files]
    return f"; files left out: {', '.join(counts)}" if counts else ""


def _check_options(paths, seq_len, vocab_size, output, corpus, encoding):
    if paths and corpus:
        raise UserError(f"--corpus {corpus} beside PATH {paths[0]}: give one or the other")
    if encoding != UTF_8 and not paths:
        raise UserError(f"--encoding {encoding} without PATH: the default corpus is {UTF_8}")
    try:
        "a".encode(encoding)
    except (LookupError, UnicodeError):
        reason = "unknown: choose one of Python's, as UTF-8, UTF-16, cp1252, latin-1, shift-jis"
        raise UserError(f"--encoding {encoding}: {reason}") from None
    if seq_len < 1:
        raise UserError(f"--seq-len must be at least 1, got {seq_len}")
    if not 257 <= vocab_size <= 1_000_000:  # 256 bytes + END_OF_TEXT; the trainer allocates for all
        raise UserError(f"--vocab-size must be from 257 to 1000000, got {vocab_size}")
    if output.suffix != ".npy":  # a slip must not replace a text by its tokens
        raise UserError(f"--output {output}: must end in .npy: choose such a name")


def prepare_data(
    paths=(),
    seq_len=DEFAULT_SEQ_LEN,
    vocab_size=DEFAULT_VOCAB_SIZE,
    output=DEFAULT_PATH,
    corpus=None,
    encoding=UTF_8,
):
    """Write text as rows of tokens, X.npy, and their tokenizer beside them, X.tokenizer.json.

    paths: text files, and folders that are searched for text; without any, ``corpus`` (None:
    "stdlib", the Python standard library's source; "site-packages": that and the installed
    packages').  encoding: of the files at ``paths``.
    ``output`` becomes an array (rows, seq_len + 1) of the smallest unsigned dtype that holds the
    vocabulary, at most ``vocab_size`` tokens.  Equal text gives equal files on any number of cores.
    Returns (one line on what was written, what was left out, as ``read_corpus`` gives it).  Raises
    UserError, or OSError where a file cannot be written, and then leaves all files as they were.
    """
    output = Path(output)
    _check_options(paths, seq_len, vocab_size, output, corpus, encoding)
    beside = tokenizer_path(output)
    remove_leftovers(output.parent, [glob.escape(path.name) for path in (output, beside)])
    documents, left_out = read_corpus(paths, corpus, encoding)
    if not documents:
        places = ", ".join(map(str, paths)) or "the default corpus"
        raise UserError(f"{places}: no text in there{_counted(left_out)}; give a PATH to text")
    tokenizer = train_tokenizer(sample(documents), vocab_size)
    rows = cut_into_rows(encode(tokenizer, documents), seq_len)

    def write_both(file):
        np.save(file, rows)
        file.flush()
        # an older tokenizer is replaced only once the rows have found room on the disk
        write_text(beside, tokenizer.to_str(pretty=True))

    atomic_write(output, write_both)
    summary = (
        f"{output}: {counted(len(documents), 'document')}, {rows.size:,} tokens, "
        f"{counted(len(rows), 'row')} of {seq_len + 1:,}, vocabulary "
        f"{tokenizer.get_vocab_size():,} ({beside.name} beside it){_counted(left_out)}"
    )
    return summary, left_out

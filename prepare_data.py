"""Training data: text into rows of tokens (``training_data.npy``), and such files back into memory.

The data is one stream of tokens, every document followed by an end-of-text token, cut into rows of
``seq_len + 1``: inputs are ``row[:-1]``, targets ``row[1:]``.  The last 5 % of the rows are held
out.  Knows nothing of models or devices and needs no torch; ``python prepare_data.py --help``.

A file is a document.  The corpus is read three times (to look at each file, to train the tokenizer,
to encode), always in blocks, so that the memory needed does not grow with it.
"""

import argparse
import sys

from machine.command import run_command, say
from training.corpus import CORPORA, TEXT_SUFFIXES
from training.prepare import describe, prepare_data
from training.tokens import DEFAULT_PATH, DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE, TOKENIZER_NAME

NAMED_AT_MOST = 10  # files of one kind left out that are named


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
                say(f"prepare_data.py: left out, {kind}: {name}")


def _prepare(arguments):
    chosen = {"paths": ()} | vars(arguments)
    debug = chosen.pop("debug", False)
    prepared = prepare_data(**chosen)
    _name_left_out(prepared.left_out, debug)
    print(describe(prepared))


def main(argv=None):
    """The command line; returns the exit code (see --help)."""
    return run_command(_parser(), _prepare, argv, lambda arguments: ": nothing was written")


if __name__ == "__main__":
    sys.exit(main())

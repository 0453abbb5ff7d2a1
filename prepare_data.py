"""Training data: text into rows of tokens (``X.npy``), and their tokenizer (``X.tokenizer.json``).

The data is one stream of tokens, every document followed by an end-of-text token, cut into rows of
``seq_len + 1``: inputs are ``row[:-1]``, targets ``row[1:]``.  The last 5 % of the rows are held
out.  A file is a document.  Knows nothing of models or devices and needs no torch;
``python prepare_data.py --help``.
"""

import argparse
import sys

from machine.command import DefaultsInHelp, run_command, say
from training.corpus import CORPORA, TEXT_SUFFIXES, UTF_8
from training.prepare import prepare_data
from training.tokens import DEFAULT_PATH, DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE

NAMED_AT_MOST = 10  # so many of the files left out for one reason are named


def build_parser():
    """The command line, with every default in its help."""
    suffixes = " ".join(sorted(TEXT_SUFFIXES))
    parser = argparse.ArgumentParser(
        description="Turn text into rows of tokens for training, and save their tokenizer. Folders "
        "are read in sorted order; text in them is every file whose name ends in "
        f"{suffixes}, or in one of these and .gz. Duplicates, binary files and other encodings are "
        f"left out and counted; --debug names up to {NAMED_AT_MOST} of each kind.",
        epilog="example: python prepare_data.py notes.txt books/ --seq-len 1024 --output books.npy",
        formatter_class=DefaultsInHelp,
    )
    add = parser.add_argument
    text = "text file, also as .gz, or folder walked for text (default: Python's standard library)"
    add("paths", metavar="PATH", nargs="*", help=text)
    text = "without PATH: Python's standard library, or that and the source (.py, tests too) of "
    text += "every package installed beside it (default: stdlib)"
    add("--corpus", choices=CORPORA, help=text)
    add("--seq-len", type=int, default=DEFAULT_SEQ_LEN, help="tokens that a row predicts")
    add("--vocab-size", type=int, default=DEFAULT_VOCAB_SIZE, help="tokens to learn, at most")
    text = "file to write, X.npy, with X.tokenizer.json beside it"
    add("--output", default=DEFAULT_PATH, help=text)
    text = "how the files at PATH are encoded, such as UTF-16 or cp1252"
    add("--encoding", default=UTF_8, help=text)
    return parser


def prepare(options):
    """Prepare the data as the options say, and tell what was written and what was left out."""
    given = {key: value for key, value in vars(options).items() if key != "debug"}
    summary, left_out = prepare_data(**given)
    named = left_out if "debug" in options else {"unreadable": left_out["unreadable"]}
    for kind, files in named.items():
        for file in files[:NAMED_AT_MOST]:
            say(f"prepare_data.py: left out, {kind}: {file}")
        if len(files) > NAMED_AT_MOST:
            say(f"prepare_data.py: left out, {kind}: and {len(files) - NAMED_AT_MOST:,} more")
    print(summary)
    print(f"to train on it: python main.py --data {options.output}")


def main(argv=None):
    """The command line; returns the exit code."""
    return run_command(build_parser(), prepare, argv, kept=": nothing was written")


if __name__ == "__main__":
    sys.exit(main())

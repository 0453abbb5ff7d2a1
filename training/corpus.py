"""Which files are text for training: found, read, duplicates and binaries left out."""

import gzip
import os
import sysconfig
import zlib
from pathlib import Path

from machine.command import UserError, bar
from training.tokens import is_tokenizer

CORPORA = ("stdlib", "site-packages")
UTF_8 = "UTF-8"
SUFFIXES = """
adoc bash bat bib c cc cfg cjs clj cmake conf cpp cs css csv cu cuh cxx dart erl ex exs f f90
go h hh hpp hs htm html ini java jl js json jsonl jsx kt log lua m markdown md mjs ml org php
pl proto ps1 pxd py pyi pyx r rb rs rst scala sh sql srt swift tex text toml ts tsv tsx txt
vue xml yaml yml zig
"""
TEXT_SUFFIXES = {f".{suffix}" for suffix in SUFFIXES.split()}
# Beside the library itself these hold installed packages, compiled files and its test suite.
NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


class _NoText(Exception):
    """A file is no text.  Arguments: the kind of ``left_out`` that it is, and the reason."""


def _walk(folder, suffixes, skipped, unreadable):
    """Text files below ``folder``, also packed as .gz, sorted by their relative paths.

    Hidden folders, folders named in ``skipped`` and links to folders are not entered; tokenizers of
    data and weights are no text.  A folder below that cannot be read is added to ``unreadable``, in
    words; for ``folder`` itself UserError is raised.
    """

    def note(error):
        if error.filename == str(folder):
            raise UserError(f"{folder}: unreadable ({error.strerror}): give a readable folder")
        unreadable.append(f"{error.filename} ({error.strerror})")

    found = []
    for root, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if name[0] != "." and name not in skipped]
        for name in names:
            path = Path(root, name)
            is_text = Path(name.lower().removesuffix(".gz")).suffix in suffixes
            # reading a pipe would wait for ever
            if is_text and not is_tokenizer(name) and os.path.isfile(path):
                found.append(path)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _find_files(paths, corpus, unreadable):
    """(source of the standard library, the other files) of what ``read_corpus`` is told to read."""
    files = []
    for path in paths:
        if os.path.isdir(path):
            files += _walk(Path(path), TEXT_SUFFIXES, (), unreadable)
        elif os.path.isfile(path):
            files.append(Path(path))
        elif os.path.exists(path):  # its text may have no end
            reason = "a device, a pipe or a socket: save its text as a file first"
            raise UserError(f"PATH {path}: {reason}")
        else:
            raise UserError(f"PATH {path}: no such file or folder: check the name")
    if paths:
        return [], files
    places = sysconfig.get_paths()
    library = _walk(Path(places["stdlib"]), {".py"}, NOT_LIBRARY, unreadable)
    if corpus == "site-packages":
        for folder in {Path(places[name]).resolve(): None for name in ("purelib", "platlib")}:
            if folder.is_dir():
                files += _walk(folder, {".py"}, {"__pycache__"}, unreadable)
        if not files:
            raise UserError(f"{folder}: no package's source in there: choose --corpus stdlib")
    return library, files


def _read_text(path, encoding):
    """The text of a file, unpacked where it is a .gz, without a byte order mark; raises _NoText."""
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:  # the last two: a damaged .gz
        raise _NoText("unreadable", getattr(error, "strerror", None) or error) from None
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        kind = "binary" if encoding == UTF_8 and b"\0" in content else f"not {encoding}"
        raise _NoText(kind, error.reason) from None
    if "\0" in text:
        raise _NoText("binary", "it has NUL bytes")
    return text.removeprefix("\ufeff")


def read_corpus(paths, corpus, encoding):
    """The documents of a corpus as a list of texts, and what was left out of it.

    paths: files and folders; without any, ``corpus`` (one of CORPORA; None: the first).
    encoding: of all files, a name that Python knows.
    left_out: {kind: files, in words}; blank files are left out unnamed.  Raises UserError, also for
    a named file that is no text in this encoding.
    """
    left_out = {kind: [] for kind in ("duplicate", "binary", f"not {encoding}", "unreadable")}
    library, files = _find_files(paths, corpus, left_out["unreadable"])
    named, may_repeat = set(map(Path, paths)), set(library)
    documents, seen = [], set()
    for path in bar(library + files, "reading"):
        try:
            text = _read_text(path, encoding)
        except _NoText as error:
            kind, reason = error.args
            if path in named:
                remedy = "give a readable text file, and --encoding NAME where it is not UTF-8"
                raise UserError(f"{path}: {kind} ({reason}): {remedy}") from None
            left_out[kind].append(f"{path} ({reason})")
            continue
        # the few duplicates of the library have always been in the default corpus
        if text in seen and path not in may_repeat:
            left_out["duplicate"].append(str(path))
        elif text and not text.isspace():
            documents.append(text)
            seen.add(text)
    return documents, left_out

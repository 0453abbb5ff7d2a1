"""Which files are text for training: found, looked through, duplicates and binaries left out."""

import codecs
import gzip
import hashlib
import math
import os
import stat
import sysconfig
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from machine.command import UserError

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


class DataError(UserError):
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

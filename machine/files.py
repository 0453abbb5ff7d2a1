"""Files that are there whole or not at all, their checksums, and errors that name the remedy."""

import errno
import hashlib
import json
import math
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from datetime import datetime, timezone
from pathlib import Path

import numpy as np


def check_writable(*folders):
    """Raise OSError before hours of training for a folder that could not take the results."""
    for folder in map(Path, folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise explained(error, folder) from None


TEMPORARY_SUFFIX = ".tmp"  # of a file that is being written
# What numpy, json and zipfile raise over a truncated, mutated or foreign file; the SyntaxError is
# numpy's, which evaluates an array's header as a literal.
DAMAGE = (ValueError, TypeError, AttributeError, IndexError, EOFError, SyntaxError, RuntimeError)
DAMAGE += (MemoryError, struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile)


def atomic_write(path, write):
    """Write a file so that it is there whole or not at all.

    ``write`` gets a binary file object on a temporary file beside ``path``, which is flushed to
    disk and renamed over ``path``, and the folder flushed too, so that not even a power cut takes
    it back; on any error the temporary file is removed and an older ``path`` stays as it was.
    Raises OSError, with ``path`` as its file name and the remedy in its words.
    """
    path = Path(path)
    temporary = None
    try:
        make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(TEMPORARY_SUFFIX, f".{path.name}.", path.parent)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private; results are not
        os.replace(temporary, path)
        flush_folder(path.parent)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise explained(error, path) from None
        raise


def make_folder(folder):
    """Make a folder and its parents, so that they survive a power cut too."""
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        flush_folder(path.parent)


def flush_folder(folder):
    """Make renames and removals in a folder survive a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


REMEDIES = {
    errno.ENOSPC: "free some space on the disk and start again",
    errno.EDQUOT: "free some of your quota and start again",
    errno.EACCES: "make its folder writable or choose another one",
    errno.EISDIR: "a folder is in its place: move that away",
    errno.ENOTDIR: "a file is where its folder should be: move that away or choose another folder",
    errno.EEXIST: "a file is where its folder should be: move that away or choose another folder",
}


def explained(error, path):
    """An OSError of writing ``path`` with the reason and the remedy in one line."""
    if "cannot be" in str(error.strerror):
        return error
    remedy = REMEDIES.get(error.errno, "choose another folder")
    words = f"cannot be written ({error.strerror or error}): {remedy}"
    return OSError(error.errno or errno.EIO, words, str(path))


def utc_now():
    """The present time, UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def missing_to_none(value):
    """``value`` for strict JSON: NaN and infinities become null, arrays become lists."""
    if isinstance(value, dict):
        return {str(k): missing_to_none(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [missing_to_none(v) for v in value]
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32:  # shortest decimal that reads back as the same float32
            value = value.astype(str).astype(float)
        return missing_to_none(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value, indent=None):
    """Strict JSON text (see ``missing_to_none``) of dicts, lists, numbers, texts and arrays."""
    return json.dumps(missing_to_none(value), indent=indent, allow_nan=False)


def write_json(path, content):
    """Write strict JSON (see ``to_json``), whole or not at all."""
    text = to_json(content, indent=1)
    atomic_write(path, lambda file: file.write(text.encode()))


def file_sha256(path):
    """SHA-256 of a file's bytes as hexadecimal digits, or None where there is no such file."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def json_sha256(value):
    """SHA-256 of a JSON-like value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_file(path, failure, remedy):
    """A file's bytes; otherwise raises ``failure``, an exception's class, with what is wrong.

    remedy: what to do where there is no such file, in words.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise failure(f"{path}: no such file: {remedy}") from None
    except OSError as error:
        raise failure(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # of a name that none can have
        raise failure(f"{str(path)!r}: cannot be read ({error})") from None


def remove_leftovers(folder, names):
    """Remove the temporary files that a killed process left of writing these names (or globs)."""
    for name in names:
        for path in Path(folder).glob(f".{name}.*{TEMPORARY_SUFFIX}"):
            if path.is_file():
                path.unlink(missing_ok=True)

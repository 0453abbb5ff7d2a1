"""Files that are there whole or not at all, and their checksums."""

import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import numpy as np


def check_writable(*folders):
    """Raise OSError before hours of training for a folder that could not take the results."""
    for folder in map(Path, folders):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            error.filename = str(folder)
            raise


def atomic_write(path, write):
    """Write a file so that it is there whole or not at all.

    ``write`` gets a temporary file beside ``path``, opened for bytes.  This is flushed to the disk
    and renamed to ``path``, and the folder is flushed too, so that not even a power cut takes it
    back.  On any error the temporary file is removed and an older ``path`` stays as it was.  Where
    ``path`` is a link, the file that it leads to is written, and the link stays.
    Raises OSError with ``path`` as its file name.
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        if os.name != "nt":  # Windows opens no folders
            handle = os.open(target.parent, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    except OSError as error:
        if error.errno is None:  # numpy's error for a write cut short
            error.errno, error.strerror = errno.ENOSPC, os.strerror(errno.ENOSPC)
        error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            temporary.unlink()


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


def write_text(path, text):
    """Write a text, whole or not at all; what UTF-8 cannot say, as a path may hold, is escaped."""
    content = text.encode(errors="backslashreplace")
    atomic_write(path, lambda file: file.write(content))


def write_json(path, content):
    """Write strict JSON (see ``to_json``), whole or not at all."""
    write_text(path, to_json(content, indent=1))


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


def check_like(value, like, name):
    """Raise ValueError where JSON-like ``value`` is not built like ``like``; KeyError for no key.

    A list in ``like`` has one item, which shows what all items are like.  None in ``like``: any
    value will do.  None in ``value``: not known, which whole numbers and lists may not be.
    """
    kind = int | float if isinstance(like, float) else type(like)
    if like is None or (value is None and kind not in (int, list)):
        return
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {str(value)[:60]!r}")
    if kind is dict:
        for key, inner in like.items():
            check_like(value[key], inner, f"{name}.{key}")
    elif kind is list and like:
        for item in value:
            check_like(item, like[0], name)


def read_file(path, failure, remedy):
    """A file's bytes.  Where it cannot be read, raises the exception ``failure``, which says why.

    remedy: what to do then, in words.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise failure(f"{path}: no such file: {remedy}") from None
    except OSError as error:
        raise failure(f"{path}: cannot be read ({error.strerror}): {remedy}") from None


def remove_leftovers(folder, names):
    """Remove temporary files of these names (or globs), which a killed process left unfinished."""
    for name in names:
        for path in Path(folder).glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)

"""A file is there whole or not at all, and a failed write names it."""

import errno
import os
import stat

import pytest

from machine.files import atomic_write


def test_atomic_write_leaves_the_old_file_and_nothing_else_when_it_fails(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    atomic_write(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failed_write_names_the_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left")

    path = tmp_path / "file.txt"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        atomic_write(path, lambda file: file.write(b"new"))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.txt"]


def test_a_write_cut_short_is_a_full_disk(tmp_path):
    def fail(file):
        raise OSError("5000 requested and 96 written")  # as numpy says it

    with pytest.raises(OSError, match="No space left on device") as caught:
        atomic_write(tmp_path / "a", fail)
    assert caught.value.errno == errno.ENOSPC and os.listdir(tmp_path) == []


def test_a_link_stays_and_leads_to_what_was_written(tmp_path):
    link, target = tmp_path / "link", tmp_path / "large disk" / "file"
    link.symlink_to(target)
    for content in (b"new", b"newer"):  # the link leads nowhere first
        atomic_write(link, lambda file, content=content: file.write(content))
        assert link.is_symlink() and target.read_bytes() == content
    assert os.listdir(target.parent) == ["file"]


def test_the_folder_is_flushed_after_the_rename(tmp_path, monkeypatch):
    done, replace, fsync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("rename"), replace(*a)))

    def flush(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flush)
    atomic_write(tmp_path / "a", lambda file: file.write(b"x"))
    assert done == ["file", "rename", "folder"]

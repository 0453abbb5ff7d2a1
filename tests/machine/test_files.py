"""Texts, strict JSON, checksums, folders that take no file, and what killed writes leave.

Writes themselves: test_atomic_write.py.
"""

import errno
import json
import math
import os
import tempfile

import numpy as np
import pytest

from machine.command import UserError
from machine.files import (
    check_like,
    check_writable,
    file_sha256,
    json_sha256,
    read_file,
    remove_leftovers,
    to_json,
    write_json,
    write_text,
)


def test_json_is_strict_and_reads_back(tmp_path):
    path = tmp_path / "new" / "file.json"
    values = np.array([0.1, np.nan], dtype=np.float32)
    content = {"a": math.nan, 1: (math.inf, 2), "series": values, "n": np.int64(3), "text": "±"}
    write_json(path, content)
    read = json.loads(path.read_bytes(), parse_constant=pytest.fail)
    assert read == {"a": None, "1": [None, 2], "series": [0.1, None], "n": 3, "text": "±"}
    assert np.float32(read["series"][0]) == values[0]


LIKE = {"text": "", "loss": 0.0, "steps": 1, "dirty": True, "orders": [[""]], "any": None}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"loss": 2, "orders": [[], ["a", "b"]], "any": [1], "more": 3},
        {"text": None, "loss": None, "dirty": None},
    ],
    ids=str,
)
def test_values_of_the_same_kinds_are_alike(change):
    check_like(LIKE | change, LIKE, "plan")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"text": 3}, "plan.text"),
        ({"loss": "0.1"}, "plan.loss"),
        ({"loss": True}, "plan.loss"),
        ({"steps": 0.5}, "plan.steps"),
        ({"steps": None}, "plan.steps"),
        ({"dirty": 1}, "plan.dirty"),
        ({"orders": None}, "plan.orders"),
        ({"orders": [["a"], [1]]}, "plan.orders"),
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_named(change, place):
    with pytest.raises(ValueError, match=place):
        check_like(LIKE | change, LIKE, "plan")


def test_what_json_cannot_hold_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert os.listdir(tmp_path) == []
    assert to_json(np.arange(2)) == "[0, 1]"


def test_what_utf_8_cannot_say_is_escaped_in_a_text(tmp_path):
    """As a file's name may hold, of which Python makes lone surrogates."""
    write_text(tmp_path / "new.txt", "± \udcff")
    assert (tmp_path / "new.txt").read_text(encoding="utf-8") == "± \\udcff"


def test_checksums(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "a") == known
    assert file_sha256(tmp_path / "b") is None
    assert json_sha256({"a": 1, "b": 2}) == json_sha256({"b": 2, "a": 1}) != json_sha256({"a": 1})


def test_a_folder_that_takes_no_file_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    check_writable(tmp_path / "new", tmp_path)
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(OSError) as caught:
            check_writable(folder)
        assert caught.value.filename == str(folder)
    assert sorted(os.listdir(tmp_path)) == ["new", "taken"]


def test_a_folder_that_is_read_only_is_named(tmp_path, monkeypatch):
    def refuse(*_, dir):
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/tmp1234")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError) as caught:
        check_writable(tmp_path)
    assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "no such file: make one"),
        ("", r"cannot be read \(Is a directory\): make one"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, words):
    with pytest.raises(UserError, match=words):
        read_file(f"{tmp_path}/{name}", UserError, "make one")


def test_leftovers_of_the_named_files_alone_are_removed(tmp_path):
    for name in (".a.npz.x1.tmp", ".b.npz.x2.tmp", ".c.json.x3.tmp", "a.npz", ".a.npz"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path, ["a.npz", "c*"])
    assert sorted(os.listdir(tmp_path)) == [".a.npz", ".b.npz.x2.tmp", "a.npz"]
    remove_leftovers(tmp_path / "none", ["a.npz"])

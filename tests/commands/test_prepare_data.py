"""The command prepare_data.py: what it says, its exit codes, one clear line for bad input."""

import gzip
import os
from pathlib import Path

import pytest
from conftest import flat, one_line

import prepare_data
from prepare_data import main
from training import prepare

CONTENTS = {
    "good.txt": b"good text " * 99,
    "blank.txt": b"\n \n",
    "binary.txt": b"\0",
    "latin.txt": b"caf\xe9",
    "torn.gz": gzip.compress(b"text")[:-9],
    "training_data.npy": b"an earlier file",
    "training_data.tokenizer.json": b"an earlier file",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with files to prepare and those of an earlier process."""
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nothing_was_written():
    assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == CONTENTS
    assert len(os.listdir()) == len(CONTENTS) + 1


def refused(capsys, *arguments):
    """The one line on stderr, after which everything is as it was."""
    assert main(arguments) == 2
    nothing_was_written()
    return one_line(capsys)


def test_it_tells_what_was_written_and_names_what_could_not_be_read(here, capsys):
    Path("folder/good.txt").write_bytes(CONTENTS["good.txt"])
    Path("folder/nul.txt").write_bytes(b"nul\0nul")
    Path("folder/torn.txt.gz").write_bytes(CONTENTS["torn.gz"])
    command = ["folder", "--seq-len", "9", "--vocab-size", "300", "--output", "new/data.npy"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert ": 1 document, " in printed.out and "rows of 10" in printed.out
    assert "; files left out: 1 binary, 1 unreadable" in printed.out
    assert printed.out.endswith("to train on it: python main.py --data new/data.npy\n")
    assert printed.err.startswith("prepare_data.py: left out, unreadable: folder/torn.txt.gz (")
    assert printed.err.count("\n") == 1
    assert sorted(os.listdir("new")) == ["data.npy", "data.tokenizer.json"]
    assert main([*command, "--debug"]) == 0
    named = capsys.readouterr().err
    assert "left out, binary: folder/nul.txt (it has NUL bytes)\n" in named
    assert named.count("\n") == 2


def test_of_many_files_left_out_only_some_are_named(capsys, monkeypatch):
    left_out = {"binary": ["b"], "unreadable": [f"name{i}" for i in range(1234)]}
    monkeypatch.setattr(prepare_data, "prepare_data", lambda **_: ("done", left_out))
    assert main([]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and lines[9].endswith("name9") and lines[10].endswith("and 1,224 more")


BAD_CALLS = {
    "missing path": (["no-such-file"], "no-such-file: no such file or folder"),
    "empty path": (["good.txt", ""], "PATH : no such file or folder"),
    "long path": (["x" * 5000], "xxx"),
    "blank file": (["blank.txt"], "blank.txt: no text"),
    "folder without text": (["folder"], "folder: no text"),
    "binary file": (["good.txt", "binary.txt"], "binary.txt: binary"),
    "no UTF-8": (["good.txt", "latin.txt"], "latin.txt: not UTF-8 (unexpected end of data): give"),
    "no such encoding": (["good.txt", "--encoding", "utf8x"], "--encoding utf8x: unknown"),
    "no text's encoding": (["good.txt", "--encoding", "hex"], "--encoding hex: unknown"),
    "encoding of a corpus": (["--encoding", "cp1252"], "--encoding cp1252 without PATH"),
    "device": (["good.txt", "/dev/zero"], "/dev/zero: a device, a pipe or a socket"),
    "damaged .gz": (["torn.gz"], "torn.gz: unreadable (Compressed file ended"),
    "corpus beside it": (["good.txt", "--corpus", "stdlib"], "--corpus stdlib beside PATH good"),
    "vocabulary too small": (["good.txt", "--vocab-size", "256"], "--vocab-size must be from 257"),
    "seq_len": (["good.txt", "--seq-len", "0"], "--seq-len must be at least 1, got 0"),
    "too little text": (["good.txt", "--seq-len", "99999"], "--seq-len 99999"),
    "not .npy": (["good.txt", "--output", "good.txt"], "good.txt: must end in .npy"),
    "no folder for nothing": (["nope", "--output", "new/data.npy"], "nope: no such file"),
}


@pytest.mark.parametrize("arguments, reason", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_input_gets_one_line_and_leaves_files_alone(here, capsys, arguments, reason):
    assert reason in refused(capsys, *arguments)


def test_an_interruption_says_that_nothing_was_written(here, monkeypatch, capsys):
    def interrupt(tokenizer, documents):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "encode", interrupt)
    assert main(["good.txt"]) == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    nothing_was_written()


def test_help_gives_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = flat(capsys.readouterr().out)
    assert stop.value.code == 0 and "example: python prepare_data.py" in text
    for default in ("256", "10000", "training_data.npy", "Python's standard library", "stdlib"):
        assert f"default: {default})" in text
    for suffix in prepare_data.TEXT_SUFFIXES:
        assert f" {suffix}" in text

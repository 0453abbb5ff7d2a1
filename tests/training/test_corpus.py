"""Which files are text: what is in a corpus, in which order, and what is left out and why."""

import gzip
import os
import sysconfig
from pathlib import Path

import pytest

from machine.command import UserError
from training.corpus import read_corpus
from training.prepare import SAMPLE_CHARACTERS

TEXTS = {
    "B.md": "capital letters sort first\r\n",
    "a-b.txt": "été 日本",
    "a/z.py": "import this",
    "a/z/deep.TXT": "tabs\t and trailing space \n",
    "b.rst": "it spells out <|endoftext|> itself\n",
}


def write(folder, contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, TEXTS)
    return tmp_path


def read(*paths, corpus=None, encoding="UTF-8"):
    """The documents, and the files left out by kind, kinds without any left away."""
    documents, left_out = read_corpus(paths, corpus, encoding)
    return documents, {kind: files for kind, files in left_out.items() if files}


def test_documents_are_the_files_below_a_folder_sorted_by_their_paths(folder):
    assert read(folder) == (list(TEXTS.values()), {})


def test_what_is_hidden_blank_linked_or_not_named_as_text_is_no_document(folder):
    write(folder, {".hidden/x.txt": "hidden", "a/.git/y.py": "hidden", "z.exe": "MZ"})
    write(folder, {"empty.txt": "", "blank.txt": " \n\n", "other.bin.gz": gzip.compress(b"text")})
    write(folder, {"a/tokenizer.json": "of earlier data", "b.tokenizer.json": "of data"})
    for name, target in (("a/up", folder), ("itself.txt", "itself.txt"), ("no.txt", "nowhere")):
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.txt")
    assert read(folder) == (list(TEXTS.values()), {})


def test_files_that_turn_out_to_be_no_text_are_left_out_with_the_reason(folder):
    write(folder, {"nul.txt": b"nul\0nul", "latin.txt": b"caf\xe9", "cut.txt": "é".encode()[:1]})
    write(folder, {"torn.txt.gz": gzip.compress(b"text " * 99)[:-9], "no.txt.gz": "not packed"})
    documents, left_out = read(folder)
    assert documents == list(TEXTS.values())
    assert left_out.keys() == {"binary", "not UTF-8", "unreadable"}
    assert left_out["binary"] == [f"{folder / 'nul.txt'} (it has NUL bytes)"]
    for kind, names in (("not UTF-8", ("cut.txt", "latin.txt")), ("unreadable", ("no", "torn"))):
        assert len(left_out[kind]) == 2
        for file, name in zip(left_out[kind], names, strict=True):
            assert file.startswith(f"{folder / name}")


def test_packed_files_are_unpacked(folder):
    for name, packed in (("B.md", "B.md.gz"), ("a/z/deep.TXT", "a/z/deep.TXT.GZ")):
        (folder / packed).write_bytes(gzip.compress(TEXTS[name].encode()))
        (folder / name).unlink()
    assert read(folder) == (list(TEXTS.values()), {})


def test_of_equal_files_the_first_one_stays(folder):
    write(folder, {"c.txt": TEXTS["b.rst"], "d.txt.gz": gzip.compress(TEXTS["b.rst"].encode())})
    names = [folder / "c.txt", folder / "d.txt.gz", folder / "B.md"]
    expected = {"duplicate": list(map(str, names))}
    assert read(folder, folder / "B.md") == (list(TEXTS.values()), expected)


def test_paths_are_read_in_the_order_given(folder):
    documents, _ = read(folder / "b.rst", folder / "a", folder / "B.md")
    assert documents == [TEXTS[name] for name in ("b.rst", "a/z.py", "a/z/deep.TXT", "B.md")]


def test_a_named_file_is_taken_whatever_its_name(tmp_path):
    (tmp_path / ".log").write_text("text")
    assert read(str(tmp_path / ".log")) == (["text"], {})


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "UTF-16", "utf-32", "shift-jis"])
def test_a_named_file_in_another_encoding_is_refused_until_that_is_named(tmp_path, encoding):
    text = "日本語" if encoding == "shift-jis" else "été"
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=rf"^{path}: .* --encoding"):
        read(path)
    assert read(path, encoding=encoding) == ([text], {})
    path.write_bytes(b"\x81\x8d\xff")  # stands for nothing in all of them but one
    if encoding != "latin-1":
        assert read(tmp_path, encoding=encoding)[1].keys() == {f"not {encoding}"}


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16", "utf-16-le"])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding):
    marked = "a\r\n" if encoding == "UTF-16" else "\ufeffa\r\n"  # whose encoder writes one itself
    (tmp_path / "marked.txt").write_bytes(marked.encode(encoding))
    assert read(tmp_path, encoding=encoding) == (["a\r\n"], {})


def test_what_may_not_be_read_is_an_error_where_named_and_left_out_elsewhere(folder, monkeypatch):
    write(folder, {"secret/a.txt": "unseen", "secret.txt": "unseen"})
    scan, read_bytes = os.scandir, Path.read_bytes

    def refuse(original):  # root may read everything
        def refusing(path):
            if Path(path).stem == "secret":
                raise PermissionError(13, "Permission denied", str(path))
            return original(path)

        return refusing

    monkeypatch.setattr(os, "scandir", refuse(scan))
    monkeypatch.setattr(Path, "read_bytes", refuse(read_bytes))
    for path in (folder / "secret", folder / "secret.txt"):
        with pytest.raises(UserError, match=rf"{path}: unreadable \(Permission denied\)"):
            read(path)
    documents, left_out = read(folder)
    assert documents == list(TEXTS.values())
    names = [f"{folder / name} (Permission denied)" for name in ("secret", "secret.txt")]
    assert left_out == {"unreadable": names}


def fake_python(folder, monkeypatch, packages):
    """A Python with a library of two equal files and these packages: {path: text}."""
    library, site = folder / "lib", folder / "lib" / "site-packages"
    write(library, {"x.py": "same", "z.py": "same", "test/t.py": "test", "__pycache__/c.py": "c"})
    write(library, {"x.txt": "no source"})
    write(site, packages)
    places = {"stdlib": str(library), "purelib": str(site), "platlib": str(site)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: places)
    return site


def test_the_corpus_of_packages_is_the_library_and_then_their_source(tmp_path, monkeypatch):
    packages = {"b/one.py": "one", "a/tests/two.py": "two", "a/again.py": "same"}
    packages |= {"a/stub.pyi": "stub", "a/readme.txt": "readme", "a/__pycache__/c.py": "cache"}
    site = fake_python(tmp_path, monkeypatch, packages)
    for corpus in (None, "stdlib"):
        assert read(corpus=corpus) == (["same", "same"], {})
    expected = ["same", "same", "two", "one"], {"duplicate": [str(site / "a/again.py")]}
    assert read(corpus="site-packages") == expected


def test_the_corpus_of_packages_without_any_is_refused(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, {"readme.txt": "nothing else"})
    with pytest.raises(UserError, match="site-packages: no package's source"):
        read(corpus="site-packages")


def test_the_tokenizer_learns_from_all_of_the_default_corpus():
    documents, _ = read()
    assert any("class ArgumentParser" in document for document in documents)
    assert 5e6 < sum(map(len, documents)) < SAMPLE_CHARACTERS

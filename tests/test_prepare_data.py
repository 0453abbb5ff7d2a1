"""The data format: what is written can be read back, and bad data is refused in one line."""

import gzip
import io
import math
import os
import pickle
import random
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prepare_data as command
from prepare_data import main
from training import corpus as training_corpus
from training import prepare as training_prepare
from training import tokens as training_tokens
from training.corpus import DataError
from training.prepare import describe, prepare_data
from training.tokens import load_dataset

quick = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EARLIER = b"an earlier file"


def words(seed, count):
    rng = random.Random(seed)
    return " ".join(
        rng.choice(("token", "row", "été", "日本", "x+y", "\n\t")) for _ in range(count)
    )


@pytest.fixture
def corpus(tmp_path):
    """A folder of text with everything that must be left out; its documents in order."""
    folder = tmp_path / "corpus"
    texts = {
        "B.md": "capital letters sort first\r\n" + words(0, 300),
        "a-b.txt": words(1, 300),
        "a/z.py": words(2, 300),
        "a/z/deep.TXT": "\ufefftabs\t and trailing space \n" + words(3, 300),
        "b.rst": "it spells out <|endoftext|> itself\n" + words(4, 300),
    }
    others = {".hidden/x.txt": b"hidden", "empty.txt": b"", "blank.txt": b" \n\n", "z.exe": b"MZ"}
    others |= {"nul.txt": b"nul\0nul", "a/.git/y.py": b"hidden"}
    for name, data in (others | {name: text.encode() for name, text in texts.items()}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "dangling.txt").symlink_to("nowhere")
    return folder, [texts[name] for name in sorted(texts)]


def decoded(folder):
    """The documents in a prepared file, by its tokenizer.json."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = np.load(folder / "data.npy", allow_pickle=False).reshape(-1)
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.token_to_id("<|endoftext|>")))
    heads = [documents[0], *(document[1:] for document in documents[1:])]
    return [tokenizer.decode(head.tolist(), skip_special_tokens=False) for head in heads]


def save(tmp_path, array, name="own.npy"):
    path = tmp_path / name
    np.save(path, array)
    return path


def tokens_of(dataset):
    return np.concatenate([dataset.train, dataset.held_out]).reshape(-1)


# --- writing -----------------------------------------------------------------------------------


def test_documents_come_back_whole_in_order_and_separated(corpus, tmp_path):
    folder, texts = corpus
    prepared = prepare_data([folder], seq_len=1, vocab_size=400, output=tmp_path / "data.npy")
    *documents, rest = decoded(tmp_path)
    # rows of two tokens drop one token at most: the separator after the last document
    assert (documents if rest == "" else [*documents, rest]) == texts
    assert prepared.documents == len(texts)


def test_what_prepare_data_returns_is_what_the_file_holds(corpus, tmp_path):
    output = tmp_path / "new" / "folder" / "data.npy"
    prepared = prepare_data(corpus[0], seq_len=9, vocab_size=280, output=output)
    rows = np.load(output, allow_pickle=False)
    assert prepared.tokens < sum(len(text.encode()) for text in corpus[1])  # words were merged
    assert rows.shape == (prepared.rows, 10) and rows.size == prepared.tokens
    assert rows.dtype == np.uint16 and rows.max() < prepared.vocab_size == 280
    dataset = load_dataset(output)
    assert (dataset.seq_len, dataset.tokens) == (9, prepared.tokens)
    assert dataset.vocab_size == 280 and dataset.path == str(output)
    for number in ("5 documents", f"{prepared.tokens:,} tokens", f"{prepared.rows:,} rows", "280"):
        assert number in describe(prepared)
    assert sorted(os.listdir(output.parent)) == ["data.npy", "tokenizer.json"]


def test_only_the_last_tokens_that_fill_no_row_are_dropped(corpus, tmp_path):
    for seq_len, name in ((1, "a.npy"), (36, "b.npy")):
        prepare_data([corpus[0]], seq_len, 300, tmp_path / name)
    finest, rows = (np.load(tmp_path / name).reshape(-1) for name in ("a.npy", "b.npy"))
    assert 0 <= finest.size - rows.size < 37
    np.testing.assert_array_equal(rows, finest[: rows.size])


def test_same_corpus_gives_same_bytes_in_another_process(corpus, tmp_path):
    contents = set()
    for name, threads in (("one", "1"), ("two", "4")):
        output = tmp_path / name / "data.npy"
        command = [sys.executable, ROOT / "prepare_data.py", corpus[0], "--output", output]
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert "5 documents" in done.stdout and done.stderr == ""
        contents.add((output.read_bytes(), (output.parent / "tokenizer.json").read_bytes()))
    assert len(contents) == 1


def test_preparing_again_inside_the_corpus_gives_the_same_bytes(corpus):
    folder, _ = corpus
    output = folder / "data.npy"
    prepare_data([folder], 8, 300, output)
    first = output.read_bytes()
    prepare_data([folder], 8, 300, folder / "a" / ".." / "data.npy")
    assert output.read_bytes() == first


def test_named_file_is_taken_whatever_its_suffix_and_bad_utf8_is_replaced(tmp_path):
    (tmp_path / ".log").write_bytes(b"caf\xe9 " * 50)
    prepare_data(str(tmp_path / ".log"), 1, 300, tmp_path / "data.npy")
    assert decoded(tmp_path)[0].startswith("caf\ufffd caf\ufffd ")


def test_paths_are_read_in_the_order_given(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name * 9)
    prepare_data([tmp_path / "b", tmp_path / "a"], 1, 300, tmp_path / "data.npy")
    assert [text for text in decoded(tmp_path) if text] == ["b" * 9, "a" * 9]


def test_vocabulary_of_bytes_alone_is_written_as_uint16(tmp_path):
    (tmp_path / "a").write_bytes(b"ab" * 20)
    prepared = prepare_data([tmp_path / "a"], 4, 257, tmp_path / "data.npy")
    assert prepared.vocab_size == 257
    assert prepared.tokens == 40  # 40 bytes and the end of text: 41 tokens, rows of 5
    assert np.load(tmp_path / "data.npy").dtype == np.uint16


@quick
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=3), min_size=1))
def test_any_text_survives_the_round_trip(tmp_path, texts):
    texts = [f"document {i}{text}".replace("\0", "") for i, text in enumerate(texts)]
    paths = [tmp_path / str(i) for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    prepare_data(paths, 1, 270, tmp_path / "data.npy")
    *documents, rest = decoded(tmp_path)
    assert (documents if rest == "" else [*documents, rest]) == texts


def test_default_corpus_is_the_library_without_tests_and_packages():
    library = Path(training_corpus.sysconfig.get_paths()["stdlib"])
    files = [source.path for source in training_corpus._corpus_sources([], None, [])]
    names = [path.relative_to(library).as_posix() for path in files]
    assert names == sorted(names) and {"argparse.py", "json/decoder.py"} <= set(names)
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert all(name.endswith(".py") and not left_out & set(name.split("/")) for name in names)
    assert 5e6 < sum(path.stat().st_size for path in files) < training_prepare.SAMPLE_CHARACTERS


def test_loading_needs_neither_tokenizers_nor_torch(tmp_path):
    path = save(tmp_path, np.ones((40, 5), np.int64))
    code = (
        f"import sys, training.tokens; training.tokens.load_dataset({str(path)!r}); "
        "sys.exit(any(name in sys.modules for name in ('tokenizers', 'torch')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- a corpus of any size ----------------------------------------------------------------------


def sources_in(folder):
    return training_corpus._corpus_sources([folder], None, [])


def test_file_is_the_same_in_tiny_blocks_pieces_and_batches(corpus, tmp_path, monkeypatch):
    prepare_data(corpus[0], 1, 400, tmp_path / "large" / "data.npy")
    for name, value in (("BLOCK_BYTES", 7), ("PIECE_CHARACTERS", 40), ("CHARACTERS_AT_ONCE", 90)):
        monkeypatch.setattr(
            training_corpus if name == "BLOCK_BYTES" else training_prepare, name, value
        )
    prepare_data(corpus[0], 1, 400, tmp_path / "tiny" / "data.npy")
    for name in ("data.npy", "tokenizer.json"):
        large, tiny = (tmp_path / size / name for size in ("large", "tiny"))
        assert large.read_bytes() == tiny.read_bytes()


def test_file_is_byte_for_byte_what_numpy_saves(corpus, tmp_path):
    for seq_len in (1, 9, 256, 2000):
        prepare_data(corpus[0], seq_len, 300, tmp_path / "data.npy")
        saved = io.BytesIO()
        np.save(saved, np.load(tmp_path / "data.npy"))
        assert saved.getvalue() == (tmp_path / "data.npy").read_bytes()


@quick
@given(st.text("ab'ts1!é日 \n\r\t\u00a0\u2028\x1c\x85", min_size=6))
def test_where_a_document_is_cut_no_word_goes_on(text):
    """Words as the tokenizer sees them: it merges only inside of them."""
    from tokenizers import pre_tokenizers

    words_of = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_prepare, "PIECE_CHARACTERS", 5)
        end = training_prepare._cut(text)
    assert 1 <= end <= 5
    places = [i for i in range(1, 6) if text[i] in " \t\r\n" and not text[i - 1].isspace()]
    assert end == max(places, default=5)
    if places:
        pieces = [word for part in (text[:end], text[end:]) for word, _ in words_of(part)]
        assert pieces == [word for word, _ in words_of(text)]


def test_text_without_a_blank_is_cut_but_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(training_prepare, "PIECE_CHARACTERS", 30)
    (tmp_path / "a.json").write_text("日本" * 100)
    assert prepare_data(tmp_path, 1, 300, tmp_path / "data.npy").documents == 1
    assert decoded(tmp_path)[0] == "日本" * 100


def test_no_more_than_a_batch_is_held_even_of_a_tightly_packed_file(tmp_path, monkeypatch):
    for name, value in (("BLOCK_BYTES", 99), ("PIECE_CHARACTERS", 50), ("CHARACTERS_AT_ONCE", 200)):
        monkeypatch.setattr(
            training_corpus if name == "BLOCK_BYTES" else training_prepare, name, value
        )
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"word " * 4000))
    (source,) = sources_in(tmp_path)
    with training_corpus._progress([source], "") as bar:
        assert max(map(len, training_corpus._blocks(source, bar))) == 99
    batches = [[len(text) for text, _ in batch] for batch in training_prepare._batches([source])]
    assert sum(map(sum, batches)) == 20_000 and max(map(max, batches)) <= 50
    assert max(map(sum, batches)) < 250


def test_tokenizer_learns_from_a_bounded_and_evenly_spread_sample(tmp_path, monkeypatch):
    counts = [1000 if i == 50 else 1 + i * 7 % 60 for i in range(100)]  # one file is a quarter
    for i, count in enumerate(counts):
        (tmp_path / f"{i:02}.txt").write_text(f" <{i:02}>" * count)
    sources, total = sources_in(tmp_path), 5 * sum(counts)

    def sampled():
        texts = list(training_prepare._sample(sources, total))
        return sum(map(len, texts)), [int(n) for n in re.findall("<([0-9]+)>", "".join(texts))]

    everything = [i for i, count in enumerate(counts) for _ in range(count)]
    assert sampled() == (total, everything)
    monkeypatch.setattr(training_prepare, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(training_prepare, "SAMPLE_CHARACTERS", total // 10)
    characters, numbers = sampled()
    assert 0 <= characters - total // 10 <= 50 and numbers == sorted(numbers)
    for first in range(0, 100, 10):
        part = range(first, first + 10)
        expected = sum(counts[first : first + 10]) / 10
        assert abs(sum(number in part for number in numbers) - expected) <= 20


def test_packed_files_are_unpacked(corpus, tmp_path):
    folder, texts = corpus
    prepare_data(folder, 1, 400, tmp_path / "data.npy")
    plain = (tmp_path / "data.npy").read_bytes()
    for path in (folder / "B.md", folder / "a" / "z" / "deep.TXT"):
        packed = path.with_name(f"{path.name}.{'GZ' if path.suffix == '.TXT' else 'gz'}")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (folder / "other.bin.gz").write_bytes(gzip.compress(b"no text by its name"))
    assert prepare_data(folder, 1, 400, tmp_path / "data.npy").documents == len(texts)
    assert (tmp_path / "data.npy").read_bytes() == plain


def test_duplicates_are_dropped_and_counted_the_first_one_stays(corpus, tmp_path):
    folder, texts = corpus
    data = (folder / "b.rst").read_bytes()
    (folder / "c.txt").write_bytes(data)
    (folder / "d.txt.gz").write_bytes(gzip.compress(data))
    prepared = prepare_data([folder, folder / "B.md"], 1, 400, tmp_path / "data.npy")
    names = [folder / "c.txt", folder / "d.txt.gz", folder / "B.md"]
    assert prepared.left_out["duplicate"] == list(map(str, names))
    assert prepared.documents == len(texts)
    assert decoded(tmp_path)[: len(texts)] == texts
    assert "left out: 3 duplicate, 1 binary" in describe(prepared)


def test_what_is_no_text_is_left_out_and_counted_and_named_with_debug(corpus, tmp_path, capsys):
    folder, _ = corpus
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "cut.txt").write_bytes("été".encode()[:-1])
    (folder / "torn.txt.gz").write_bytes(gzip.compress(b"text " * 99)[:-9])
    (folder / "no.txt.gz").write_bytes(b"not packed at all")
    command = [str(folder), "--output", str(tmp_path / "data.npy"), "--seq-len", "9"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "5 documents" in printed.out
    assert "left out: 1 binary, 2 not UTF-8, 2 unreadable" in printed.out
    assert [line.split(": ")[1] for line in printed.err.splitlines()] == [
        "left out, unreadable"
    ] * 2
    assert main([*command, "--debug"]) == 0
    named = capsys.readouterr().err
    for name in ("latin.txt", "cut.txt", "torn.txt.gz", "no.txt.gz", "nul.txt"):
        assert f"{folder / name} (" in named
    assert named.count("\n") == 5


def test_of_many_files_left_out_only_some_are_named(capsys):
    command._name_left_out(
        {"binary": ["b"], "unreadable": [f"name{i}" for i in range(1234)]}, False
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and lines[9].endswith("name9") and lines[10].endswith("and 1,224 more")


def test_links_that_lead_back_or_nowhere_do_not_hang(corpus, tmp_path):
    folder, texts = corpus
    (folder / "a" / "up").symlink_to(folder)
    (folder / "itself.txt").symlink_to("itself.txt")
    os.mkfifo(folder / "pipe.txt")
    prepared = prepare_data(folder, 1, 400, tmp_path / "data.npy")
    assert prepared.documents == len(texts)
    (unreadable,) = prepared.left_out["unreadable"]
    assert unreadable.startswith(str(folder / "itself.txt"))


def fake_python(tmp_path, monkeypatch, packages):
    """A Python with a library of two equal files and these packages: {path: text}."""
    library, site = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    files = {library / "z.py": "same = 1\n" * 40, library / "x.py": "same = 1\n" * 40}
    files |= {site / name: text for name, text in packages.items()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    places = {"stdlib": str(library), "purelib": str(site), "platlib": str(site)}
    monkeypatch.setattr(training_corpus.sysconfig, "get_paths", lambda: places)


def test_corpus_of_packages_is_the_library_and_then_their_source(tmp_path, monkeypatch, capsys):
    packages = {
        "b/one.py": "one = 1\n" * 40,
        "a/tests/two.py": "two = 2\n" * 40,
        "a/again.py": "same = 1\n" * 40,
        "a/stub.pyi": "stub",
        "a/readme.txt": "readme",
        "a/native.so": "native",
        "a/__pycache__/c.py": "cache",
    }
    fake_python(tmp_path, monkeypatch, packages)
    output = tmp_path / "data.npy"
    for options in ([], ["--corpus", "stdlib"]):  # as ever: its two equal files both stay
        assert main([*options, "--seq-len", "1", "--output", str(output)]) == 0
        assert decoded(tmp_path)[:2] == ["same = 1\n" * 40] * 2
        assert "2 documents" in capsys.readouterr().out
    assert main(["--corpus", "site-packages", "--seq-len", "1", "--output", str(output)]) == 0
    heads = [text[:3] for text in decoded(tmp_path) if text]
    assert heads == ["sam", "sam", "two", "one"]
    assert "4 documents" in (line := capsys.readouterr().out) and "1 duplicate" in line


def test_corpus_of_packages_without_any_is_refused(tmp_path, monkeypatch, capsys):
    fake_python(tmp_path, monkeypatch, {"readme.txt": "nothing else"})
    output = tmp_path / "data.npy"
    code, message = run_main(capsys, "--corpus", "site-packages", "--output", output)
    assert code == 2 and message.count("\n") == 1
    assert "site-packages: no package's source" in message and not output.exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("document", [3, 8])  # of five to train the tokenizer and five to encode
def test_stop_midway_leaves_the_earlier_files_and_no_half_ones(
    corpus, tmp_path, monkeypatch, capsys, document, stop
):
    original, opened, half = training_prepare._pieces, [], []

    def pieces(source, bar):
        opened.append(source)
        if len(opened) == document:
            half.extend(tmp_path.glob(".data.npy.*.tmp"))
            raise stop
        return original(source, bar)

    monkeypatch.setattr(training_prepare, "_pieces", pieces)
    monkeypatch.setattr(training_prepare, "CHARACTERS_AT_ONCE", 1)
    for name in ("data.npy", "tokenizer.json"):
        (tmp_path / name).write_bytes(EARLIER)
    command = [str(corpus[0]), "--seq-len", "9", "--output", str(tmp_path / "data.npy")]
    if stop is KeyboardInterrupt:
        assert main(command) == 130
        assert capsys.readouterr().err == "interrupted: nothing was written\n"
    else:
        with pytest.raises(RuntimeError):
            main(command)
    assert len(half) == (document == 8)  # a half file was there
    assert sorted(os.listdir(tmp_path)) == ["corpus", "data.npy", "tokenizer.json"]
    for name in ("data.npy", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == EARLIER


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(corpus, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    output = tmp_path / "[data].npy"
    names = (".[data].npy.killed.tmp", ".tokenizer.json.killed.tmp", ".[data].npy.living.tmp")
    for name in (*names, ".d.npy.other.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with (tmp_path / names[2]).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        prepare_data(corpus[0], 9, 300, output)
    left = {"corpus", output.name, "tokenizer.json", names[2], ".d.npy.other.tmp"}
    assert set(os.listdir(tmp_path)) == left


def test_a_file_that_is_being_written_is_locked(corpus, tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    original = training_prepare._encode

    def encode(*arguments):
        training_prepare._remove_leftovers(tmp_path / "data.npy")  # another process starts
        return original(*arguments)

    monkeypatch.setattr(training_prepare, "_encode", encode)
    prepare_data(corpus[0], 9, 300, tmp_path / "data.npy")
    assert sorted(os.listdir(tmp_path)) == ["corpus", "data.npy", "tokenizer.json"]


def test_rows_of_65536_are_cut_from_the_file_without_a_copy(tmp_path):
    tokens = np.arange(6000 * 257, dtype=np.uint32).reshape(6000, 257)
    dataset = load_dataset(save(tmp_path, tokens), 65_536, batch_size=8)
    assert dataset.train.shape == (21, 65_537) and dataset.held_out.shape == (2, 65_537)
    np.testing.assert_array_equal(dataset.held_out[1], np.arange(22 * 65_537, 23 * 65_537))
    for rows in (dataset.train, dataset.held_out):
        assert isinstance(rows, np.memmap) and not rows.flags.owndata


# --- reading -----------------------------------------------------------------------------------


@quick
@given(
    st.integers(1, 60),
    st.integers(2, 9),
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from("CF"),
)
def test_rows_cut_anew_are_the_same_stream_of_tokens(tmp_path, rows, width, seq_len, batch, order):
    array = np.arange(rows * width, dtype=np.uint32).reshape(rows, width)
    path = save(tmp_path, np.asarray(array, order=order))
    count = rows * width // (seq_len + 1)
    held_out = math.ceil(count * Fraction(5, 100))
    if count - held_out < batch:
        with pytest.raises(DataError, match=f"{count} rows"):
            load_dataset(path, seq_len, batch)
        return
    dataset = load_dataset(path, seq_len, batch)
    assert dataset.train.shape == (count - held_out, seq_len + 1)
    assert dataset.held_out.shape == (held_out, seq_len + 1)
    # each token once and in order: held-out rows are the last and no token of them is trained on
    np.testing.assert_array_equal(tokens_of(dataset), np.arange(count * (seq_len + 1)))
    assert dataset.vocab_size == rows * width


@pytest.mark.parametrize("rows", [2, 20, 21, 60, 100, 140, 12_184, 1_000_000])
def test_held_out_rows_are_five_percent_rounded_up(rows):
    assert training_tokens._held_out_rows(rows) == -(-rows * 5 // 100)


@pytest.mark.parametrize("batch_size", [1, 2, 19, 20, 38, 400])
def test_message_on_too_few_rows_gives_the_number_that_suffices(tmp_path, batch_size):
    with pytest.raises(DataError, match=r"more text.*--seq-len.*--batch-size") as error:
        load_dataset(save(tmp_path, np.ones((1, 5), np.uint16)), batch_size=batch_size)
    needed = int(str(error.value).split(" needed")[0].split()[-1])
    dataset = load_dataset(save(tmp_path, np.ones((needed, 5), np.uint16)), None, batch_size)
    assert len(dataset.train) >= batch_size
    with pytest.raises(DataError):
        load_dataset(save(tmp_path, np.ones((needed - 1, 5), np.uint16)), None, batch_size)


@pytest.mark.parametrize("seq_len", [None, 4, 7])
def test_rows_are_mapped_not_loaded_and_cannot_be_changed(tmp_path, seq_len):
    dataset = load_dataset(save(tmp_path, np.ones((50, 5), np.uint16)), seq_len)
    for rows in (dataset.train, dataset.held_out):
        assert isinstance(rows, np.memmap) and not rows.flags.owndata
        base = rows
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert not isinstance(base.base, bytes) and not rows.flags.writeable


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "<u4", ">i4", "<i8", ">i8", "u8"])
def test_own_arrays_of_any_integer_dtype_keep_their_values(tmp_path, dtype):
    expected = np.arange(125).reshape(25, 5)
    dataset = load_dataset(save(tmp_path, expected.astype(dtype)), 3)
    np.testing.assert_array_equal(tokens_of(dataset).astype(np.int64), expected.reshape(-1)[:124])
    assert dataset.vocab_size == 125 and dataset.train.dtype == np.dtype(dtype)


def test_extremes_are_found_in_every_piece_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(training_tokens, "TOKENS_AT_ONCE", 20)
    for place in ((0, 0), (13, 2), (29, 4)):
        rows = np.ones((30, 5), np.int64)
        rows[place] = 70_000
        assert load_dataset(save(tmp_path, rows)).vocab_size == 70_001
        rows[place] = -100
        with pytest.raises(DataError, match="negative token, -100"):
            load_dataset(save(tmp_path, rows))


# --- bad data ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array, reason",
    [
        (np.ones(60, np.uint16), "1 dimensions"),
        (np.ones((5, 4, 3), np.uint16), "3 dimensions"),
        (np.uint16(3), "0 dimensions"),
        (np.ones((50, 5), bool), "bool, not integers"),
        (np.ones((50, 5), np.float32), "float32, not integers"),
        (np.ones((50, 5), "m8[s]"), "timedelta64"),
        (np.ones((50, 5), [("token", "u2")]), "not integers"),
        (np.ones((50, 1), np.uint16), "shorter than 2"),
        (np.ones((50, 0), np.uint16), "shorter than 2"),
        (np.ones((0, 5), np.uint16), "0 rows"),
        (np.full((50, 5), -1, np.int64), "negative token, -1"),
    ],
)
def test_arrays_that_are_no_rows_of_tokens_are_refused(tmp_path, array, reason):
    path = save(tmp_path, array)
    with pytest.raises(DataError, match=reason) as error:
        load_dataset(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_values_and_places_that_cannot_be_are_refused(tmp_path):
    path = save(tmp_path, np.ones((50, 5), np.uint16))
    for seq_len, batch_size, option in (
        (0, 1, "--seq-len"),
        (-1, 1, "--seq-len"),
        (4, 0, "--batch"),
    ):
        with pytest.raises(DataError, match=option):
            load_dataset(path, seq_len, batch_size)
    with pytest.raises(DataError, match=r"no\.npy: no such file: .*prepare_data"):
        load_dataset(tmp_path / "no.npy")
    with pytest.raises(DataError, match="is no file"):
        load_dataset(tmp_path)


def test_file_truncated_anywhere_is_refused(tmp_path):
    path = save(tmp_path, np.ones((50, 5), np.uint16))
    data = path.read_bytes()
    for length in (0, 3, 6, 8, 9, 40, 127, 128, 129, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"own\.npy: truncated.*write it again"):
            load_dataset(path)


@quick
@given(st.integers(0, 127), st.binary(min_size=1, max_size=6))
def test_damaged_header_is_refused_or_read_but_never_crashes(tmp_path, place, damage):
    path = save(tmp_path, np.ones((50, 5), np.uint16))
    data = bytearray(path.read_bytes())
    data[place : place + len(damage)] = damage
    path.write_bytes(data)
    try:
        load_dataset(path)
    except DataError as error:
        assert "\n" not in str(error)


def test_mutated_data_is_refused_or_read_but_never_crashes(tmp_path):
    """100 of them; a token that was changed into another valid one cannot be told."""
    path = save(tmp_path, np.random.default_rng(0).integers(300, size=(50, 5)).astype(np.uint16))
    data, rng = path.read_bytes(), np.random.default_rng(1)
    for _ in range(100):
        mutated = bytearray(data)
        for place in rng.integers(min(len(data), 400), size=rng.integers(1, 5)):
            mutated[place] = rng.integers(256)
        path.write_bytes(mutated)
        try:
            dataset = load_dataset(path)
            assert max(dataset.train.max(), dataset.held_out.max()) < dataset.vocab_size
        except DataError as error:
            assert "\n" not in str(error)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["object array", "bare pickle", "archive"])
def test_pickled_file_is_refused_and_not_executed(tmp_path, kind):
    sign, path = tmp_path / "executed", tmp_path / "own.npy"
    array = np.array([[Bomb(sign)] * 5] * 50, dtype=object)
    with path.open("wb") as file:
        if kind == "object array":
            np.save(file, array, allow_pickle=True)
        elif kind == "archive":
            np.savez(file, array=array)
        else:
            pickle.dump(Bomb(sign), file)
    with pytest.raises(DataError, match="pickled"):
        load_dataset(path)
    assert not sign.exists()
    if kind == "object array":  # the bomb is live
        np.load(path, allow_pickle=True)
        assert sign.exists()


def run_main(capsys, *arguments):
    """Exit code and stderr of the command line; stdout must be empty."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


BAD_CALLS = {
    "missing path": (["no-such-file"], "no-such-file: no such file or folder"),
    "missing beside good": (["good.txt", "nope"], "nope: no such file"),
    "empty file": (["empty.txt"], "empty.txt: no text"),
    "blank file": (["blank.txt"], "blank.txt: no text"),
    "folder without text": (["folder"], "folder: no text"),
    "binary file": (["good.txt", "binary.txt"], "binary.txt: binary"),
    "special file": ([os.devnull], os.devnull),
    "damaged .gz": (["torn.gz"], "torn.gz: cannot be read (Compressed file ended"),
    "corpus beside a path": (
        ["good.txt", "--corpus", "stdlib"],
        "--corpus stdlib beside PATH good",
    ),
    "vocabulary too small": (["good.txt", "--vocab-size", "256"], "--vocab-size must be from 257"),
    "vocabulary too large": (["good.txt", "--vocab-size", str(10**30)], "--vocab-size must be"),
    "seq_len": (["good.txt", "--seq-len", "0"], "--seq-len must be at least 1, got 0"),
    "too little text": (["good.txt", "--seq-len", "99999"], "--seq-len 99999"),
    "long path": (["x" * 5000], "xxx"),
    "not .npy": (["good.txt", "--output", "good.txt"], "good.txt: must end in .npy"),
    "output is a folder": (["good.txt", "--output", "folder.npy"], "folder.npy: a folder"),
    "below a file": (["good.txt", "--output", "good.txt/data.npy"], "good.txt is no writable"),
}


@pytest.mark.parametrize("arguments, reason", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_call_gives_one_line_and_leaves_files_alone(
    tmp_path, monkeypatch, capsys, arguments, reason
):
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "folder.npy"):
        Path(name).mkdir()
    contents = {"good.txt": b"good text " * 99, "empty.txt": b"", "blank.txt": b"\n \n"}
    contents |= {"binary.txt": b"\0", "training_data.npy": EARLIER, "tokenizer.json": EARLIER}
    contents["torn.gz"] = gzip.compress(b"text")[:-9]
    for name, data in contents.items():
        Path(name).write_bytes(data)
    code, message = run_main(capsys, *arguments)
    assert code == 2 and message.count("\n") == 1 and reason in message
    assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == contents
    assert sum(1 for _ in tmp_path.rglob("*")) == len(contents) + 2


def test_missing_output_folder_is_not_created_for_nothing(tmp_path, capsys):
    code, _ = run_main(capsys, tmp_path / "nope", "--output", tmp_path / "new" / "data.npy")
    assert code == 2 and not (tmp_path / "new").exists()


def test_unreadable_file_is_refused_where_named_and_warned_of_in_a_folder(
    tmp_path, monkeypatch, capsys
):
    original = Path.open

    def refuse(path, *arguments):  # root may read everything
        if path.name == "secret.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments)

    secret, output = tmp_path / "secret.txt", tmp_path / "data.npy"
    secret.write_text("text")
    (tmp_path / "open.txt").write_text("text " * 99)
    monkeypatch.setattr(Path, "open", refuse)
    code, message = run_main(capsys, secret, "--output", output)
    assert code == 2 and message.count("\n") == 1
    assert f"{secret}: cannot be read (Permission denied)" in message
    assert main([str(tmp_path), "--seq-len", "1", "--output", str(output)]) == 0
    printed = capsys.readouterr()
    assert printed.err == f"prepare_data.py: left out, unreadable: {secret} (Permission denied)\n"
    assert "1 documents" in printed.out and "left out: 1 unreadable" in printed.out


def test_file_that_goes_while_the_corpus_is_read_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_text("text " * 99)
    train = training_prepare._train_tokenizer

    def remove_it(*arguments):
        tokenizer = train(*arguments)
        (tmp_path / "a.txt").unlink()
        return tokenizer

    monkeypatch.setattr(training_prepare, "_train_tokenizer", remove_it)
    code, message = run_main(capsys, tmp_path, "--output", tmp_path / "data.npy")
    assert code == 2 and message.count("\n") == 1 and os.listdir(tmp_path) == []
    assert f"{tmp_path / 'a.txt'}: cannot be read" in message


def test_unreadable_folder_is_refused_where_named_and_warned_of_below(
    tmp_path, monkeypatch, capsys
):
    original = os.scandir

    def refuse(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    secret, output = tmp_path / "secret", tmp_path / "data.npy"
    secret.mkdir()
    (tmp_path / "a.txt").write_text("text " * 99)
    monkeypatch.setattr(os, "scandir", refuse)
    code, message = run_main(capsys, secret, "--output", output)
    assert code == 2 and message.count("\n") == 1
    assert str(secret) in message and "cannot be read" in message and "Permission" in message
    assert main([str(tmp_path), "--seq-len", "1", "--output", str(output)]) == 0
    expected = f"prepare_data.py: left out, unreadable: {secret} (Permission denied)\n"
    assert capsys.readouterr().err == expected


def test_unreadable_data_is_named(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    path = save(tmp_path, np.ones((50, 5), np.uint16))
    monkeypatch.setattr(np.lib.format, "open_memmap", refuse)
    with pytest.raises(DataError, match=r"own\.npy: cannot be read .*Permission denied"):
        load_dataset(path)


def test_unwritable_folder_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(training_prepare, "_train_tokenizer", None)
    (tmp_path / "a.txt").write_text("text")
    code, message = run_main(capsys, tmp_path / "a.txt", "--output", tmp_path / "data.npy")
    assert code == 2 and message.count("\n") == 1 and "no writable folder" in message


def test_full_disk_leaves_both_earlier_files(corpus, tmp_path, monkeypatch, capsys):
    def fill(file, header):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "data.npy").write_bytes(EARLIER)
    (tmp_path / "tokenizer.json").write_bytes(EARLIER)
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", fill)
    arguments = (corpus[0], "--seq-len", 8, "--output", tmp_path / "data.npy")
    code, message = run_main(capsys, *arguments)
    assert code == 1 and message.count("\n") == 1 and "No space left" in message
    assert (tmp_path / "data.npy").read_bytes() == EARLIER
    assert (tmp_path / "tokenizer.json").read_bytes() == EARLIER
    assert sorted(os.listdir(tmp_path)) == ["corpus", "data.npy", "tokenizer.json"]


def test_help_gives_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "example: python prepare_data.py" in text
    for default in ("256", "10000", "training_data.npy", "Python's standard library"):
        assert f"default: {default})" in text


@pytest.mark.parametrize("batch_size", [1, 2, 18, 19, 20, 21, 57, 1000])
def test_the_least_number_of_rows_is_exact(tmp_path, batch_size):
    """One row fewer than the message asks for is refused, and as many as it asks for are taken."""
    path = tmp_path / "rows.npy"
    np.save(path, np.ones((1, 4), np.uint16))
    with pytest.raises(DataError) as refusal:
        load_dataset(path, batch_size=batch_size)
    needed = int(re.search(r"([\d,]+) needed", str(refusal.value))[1].replace(",", ""))
    np.save(path, np.ones((needed - 1, 4), np.uint16))
    with pytest.raises(DataError):
        load_dataset(path, batch_size=batch_size)
    np.save(path, np.ones((needed, 4), np.uint16))
    assert len(load_dataset(path, batch_size=batch_size).train) >= batch_size


def test_a_vocabulary_beyond_reason_and_an_empty_path_are_refused(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.full((50, 4), 2**32 - 1, np.uint32))
    with pytest.raises(DataError, match="4,294,967,295"):
        load_dataset(path)
    with pytest.raises(DataError, match="an empty PATH"):
        prepare_data([""], output=tmp_path / "out.npy")

"""Text into rows of tokens: the text comes back, always the same, whole or not at all."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from machine.command import UserError
from training import prepare
from training.prepare import END_OF_TEXT, encode, prepare_data, sample, train_tokenizer
from training.tokens import find_tokenizer, load_dataset

EARLIER = b"an earlier file"
TEXTS = [
    "it spells out <|endoftext|> itself\n" + "token row été 日本\n\t" * 60,
    "tabs\t and trailing space \r\n" + "x + y, row; " * 90 + "\n",
    "another token, another row " * 70,
]


def write_texts(folder):
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_bytes(text.encode())
    return folder


def documents_in(tokens, tokenizer):
    """The texts of a stream of tokens, the rest after the last end of text too."""
    ends = np.flatnonzero(tokens == tokenizer.token_to_id(END_OF_TEXT))
    documents = np.split(tokens, ends + 1)
    decoded = [tokenizer.decode(ids.tolist(), skip_special_tokens=False) for ids in documents]
    return [text.removesuffix(END_OF_TEXT) for text in decoded]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with data.npy and data.tokenizer.json of the TEXTS in ``texts``, and the summary."""
    folder = tmp_path_factory.mktemp("prepared")
    texts = write_texts(folder / "texts")
    summary, _ = prepare_data([texts], seq_len=1, vocab_size=280, output=folder / "data.npy")
    return folder, summary


def contents(folder):
    return [(folder / name).read_bytes() for name in ("data.npy", "data.tokenizer.json")]


def test_the_file_holds_the_documents_whole_in_order_and_separated(prepared):
    folder, _ = prepared
    tokens = np.load(folder / "data.npy", allow_pickle=False).reshape(-1)
    tokenizer = Tokenizer.from_file(str(folder / "data.tokenizer.json"))
    *documents, rest = documents_in(tokens, tokenizer)
    # rows of two tokens drop one token at most: the separator after the last document
    assert (documents if rest == "" else [*documents, rest]) == TEXTS


def test_the_summary_tells_what_the_file_holds(prepared):
    folder, summary = prepared
    rows = np.load(folder / "data.npy", allow_pickle=False)
    assert rows.dtype == np.uint16 and rows.max() == 279 and rows.shape[1] == 2
    assert rows.size < sum(len(text.encode()) for text in TEXTS)  # words were merged
    assert load_dataset(folder / "data.npy").vocab_size == 280
    assert summary == (
        f"{folder / 'data.npy'}: 3 documents, {rows.size:,} tokens, {len(rows):,} rows of 2, "
        "vocabulary 280 (data.tokenizer.json beside it)"
    )


def test_the_same_text_gives_the_same_bytes_on_other_cores_and_without_torch(prepared, tmp_path):
    folder, _ = prepared
    code = (
        "import sys; from training.prepare import prepare_data; "
        f"prepare_data([{str(folder / 'texts')!r}], 1, 280, 'data.npy'); "
        "sys.exit('torch' in sys.modules)"
    )
    environment = {"RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "3", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, env=os.environ | environment, check=True)
    assert contents(tmp_path) == contents(folder)


def test_preparing_again_inside_the_corpus_gives_the_same_bytes(tmp_path):
    folder = write_texts(tmp_path / "texts")
    (folder / "a").mkdir()
    prepare_data([folder], 8, 300, folder / "data.npy")
    first = contents(folder)
    prepare_data([folder], 8, 300, folder / "a" / ".." / "data.npy")
    assert contents(folder) == first


def test_a_link_is_written_through_and_its_tokenizer_found(tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 9)
    link, disk = tmp_path / "data.npy", tmp_path / "large disk"
    link.symlink_to(disk / "rows.npy")
    prepare_data([tmp_path], 2, 300, link)
    assert link.is_symlink() and load_dataset(link).vocab_size
    assert find_tokenizer(link) == disk / "rows.tokenizer.json" and find_tokenizer(link).is_file()


def test_only_the_last_tokens_that_fill_no_row_are_dropped():
    rows = prepare.cut_into_rows(np.arange(11), 4)
    np.testing.assert_array_equal(rows, np.arange(10).reshape(2, 5))
    with pytest.raises(UserError, match=r"--seq-len 11: 11 tokens .*one row of 12"):
        prepare.cut_into_rows(np.arange(11), 11)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_text_survives_the_round_trip(texts):
    tokenizer = train_tokenizer(texts, 270)
    assert documents_in(encode(tokenizer, texts), tokenizer) == [*texts, ""]


def test_the_tokens_are_the_same_in_tiny_pieces_and_batches(monkeypatch):
    tokenizer = train_tokenizer(TEXTS, 400)
    expected = encode(tokenizer, TEXTS)
    monkeypatch.setattr(prepare, "PIECE_CHARACTERS", 40)
    monkeypatch.setattr(prepare, "PIECES_AT_ONCE", 2)
    np.testing.assert_array_equal(encode(tokenizer, TEXTS), expected)
    assert train_tokenizer(sample(TEXTS), 400).to_str() == tokenizer.to_str()


@settings(deadline=None)
@given(st.text("ab'ts1!é日 \n\r\t\u00a0\u2028\x1c\x85", min_size=6))
def test_where_a_document_is_cut_no_word_goes_on(text):
    """Words as the tokenizer sees them: it merges only inside of them."""
    words_of = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "PIECE_CHARACTERS", 5)
        pieces, ends = zip(*prepare.pieces_of([text], "cut"), strict=True)
    assert "".join(pieces) == text and all(1 <= len(piece) <= 5 for piece in pieces)
    assert ends == (False,) * (len(pieces) - 1) + (True,)
    places = [i for i in range(1, 6) if text[i] in " \t\r\n" and not text[i - 1].isspace()]
    assert len(pieces[0]) == max(places, default=5)
    if places:
        parts = text[: len(pieces[0])], text[len(pieces[0]) :]
        found = [word for part in parts for word, _ in words_of(part)]
        assert found == [word for word, _ in words_of(text)]


def test_the_tokenizer_learns_from_a_bounded_and_evenly_spread_sample(monkeypatch):
    counts = [1000 if i == 50 else 1 + i * 7 % 60 for i in range(100)]  # one text is a quarter
    documents = [f" <{i:02}>" * count for i, count in enumerate(counts)]
    total = sum(map(len, documents))
    assert "".join(sample(documents)) == "".join(documents)
    monkeypatch.setattr(prepare, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(prepare, "SAMPLE_CHARACTERS", total // 10)
    text = "".join(sample(documents))
    numbers = [int(number) for number in re.findall("<([0-9]+)>", text)]
    assert 0 <= len(text) - total // 10 <= 50 and numbers == sorted(numbers)
    for first in range(0, 100, 10):
        expected = sum(counts[first : first + 10]) / 10
        assert abs(sum(first <= number < first + 10 for number in numbers) - expected) <= 20


def fail(file, *arguments):
    if hasattr(file, "write"):
        file.write(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("place, name", [(prepare, "encode"), (np, "save"), (os, "replace")])
def test_a_failure_leaves_the_earlier_files_and_no_half_ones(tmp_path, monkeypatch, place, name):
    texts = write_texts(tmp_path / "texts")
    for earlier in ("data.npy", "data.tokenizer.json"):
        (tmp_path / earlier).write_bytes(EARLIER)
    monkeypatch.setattr(place, name, fail)
    with pytest.raises(OSError, match="No space left"):
        prepare_data([texts], 9, 300, tmp_path / "data.npy")
    assert sorted(os.listdir(tmp_path)) == ["data.npy", "data.tokenizer.json", "texts"]
    assert contents(tmp_path) == [EARLIER, EARLIER]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    texts = write_texts(tmp_path / "texts")
    output, other = tmp_path / "[data].npy", tmp_path / ".d.npy.other.tmp"
    for name in (".[data].npy.killed.tmp", ".[data].tokenizer.json.killed.tmp", other.name):
        (tmp_path / name).write_bytes(b"half")
    prepare_data([texts], 9, 300, output)
    beside = "[data].tokenizer.json"
    assert set(os.listdir(tmp_path)) == {"texts", output.name, beside, other.name}


def test_two_corpora_in_one_folder_keep_their_own_tokenizers(prepared, tmp_path):
    folder, _ = prepared
    earlier = contents(folder)
    words = np.random.default_rng().permutation(list("abcdefgh") * 99)
    (tmp_path / "other.txt").write_text("".join(words))
    prepare_data([tmp_path / "other.txt"], 1, 270, folder / "other.npy")
    assert contents(folder) == earlier
    for name in ("data", "other"):
        tokenizer = Tokenizer.from_file(str(find_tokenizer(folder / f"{name}.npy")))
        size = load_dataset(folder / f"{name}.npy").vocab_size
        assert tokenizer.get_vocab_size() == size
    assert find_tokenizer(folder / "data.npy") != find_tokenizer(folder / "other.npy")

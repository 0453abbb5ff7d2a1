"""The file of rows: split, cut anew, mapped and not loaded; bad data is refused in one line."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from machine.command import UserError
from training.tokens import load_dataset

quick = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def save(folder, array):
    path = folder / "own.npy"
    np.save(path, array)
    return path


@quick
@given(st.integers(1, 60), st.integers(2, 9), st.integers(1, 40), st.integers(1, 9))
def test_rows_cut_anew_are_the_same_stream_of_tokens(tmp_path, rows, width, seq_len, batch):
    path = save(tmp_path, np.arange(rows * width, dtype=np.uint32).reshape(rows, width))
    count = rows * width // (seq_len + 1)
    held_out = math.ceil(count * Fraction(5, 100))
    if count - held_out < batch:
        with pytest.raises(
            UserError, match=rf"{count} rows?\b.*more text.*--seq-len.*--batch-size"
        ):
            load_dataset(path, seq_len, batch)
        return
    dataset = load_dataset(path, seq_len, batch)
    assert dataset.train.shape == (count - held_out, seq_len + 1)
    assert dataset.held_out.shape == (held_out, seq_len + 1)
    # each token once and in order: held-out rows are the last and no token of them is trained on
    stream = np.concatenate([dataset.train, dataset.held_out]).reshape(-1)
    np.testing.assert_array_equal(stream, np.arange(count * (seq_len + 1)))
    assert dataset.vocab_size == rows * width  # the dropped tokens count


@pytest.mark.parametrize("seq_len", [None, 4, 7, 999])
def test_rows_are_mapped_not_loaded_and_cannot_be_changed(tmp_path, seq_len):
    dataset = load_dataset(save(tmp_path, np.ones((500, 5), np.uint16)), seq_len)
    for rows in (dataset.train, dataset.held_out):
        assert rows.filename is not None  # numpy's sign that it still is the file's memory
        assert not rows.flags.writeable


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "<u4", ">i4", "<i8", ">i8", "u8"])
def test_arrays_of_any_integer_dtype_keep_their_values(tmp_path, dtype):
    expected = np.arange(125).reshape(25, 5)
    dataset = load_dataset(save(tmp_path, expected.astype(dtype)))
    np.testing.assert_array_equal(dataset.train.astype(np.int64), expected[:23])
    assert dataset.vocab_size == 125 and dataset.train.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    "array, reason",
    [
        (np.ones(60, np.uint16), r"the shape \(60,\)"),
        (np.ones((50, 1), np.uint16), r"the shape \(50, 1\)"),
        (np.ones((0, 5), np.uint16), "0 rows"),
        (np.ones((50, 5), np.float32), "holds float32"),
        (np.array([["text"] * 5] * 50, object), "no .npy file .*Python objects"),
        (np.full((50, 5), -1, np.int64), "tokens from -1 to -1"),
        (np.full((50, 5), 2**32 - 1, np.uint32), "to 4,294,967,295"),
    ],
)
def test_arrays_that_are_no_rows_of_tokens_are_refused(tmp_path, array, reason):
    path = save(tmp_path, array)
    with pytest.raises(UserError, match=reason) as error:
        load_dataset(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_what_is_not_there_or_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no\.npy: no such file: .*prepare_data"):
        load_dataset(tmp_path / "no.npy")
    with pytest.raises(UserError, match=r"unreadable.*File name too long"):
        load_dataset("x" * 300)
    with pytest.raises(UserError, match=r"unreadable.*Is a directory"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("length", [0, 9, 127, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    path = save(tmp_path, np.ones((50, 5), np.uint16))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"own\.npy: unreadable, truncated.*write it again"):
        load_dataset(path)


@quick
@given(st.integers(0, 127), st.binary(min_size=1, max_size=6))
def test_a_damaged_header_is_refused_or_read_but_never_crashes(tmp_path, place, damage):
    path = save(tmp_path, np.ones((50, 5), np.uint16))
    content = bytearray(path.read_bytes())
    content[place : place + len(damage)] = damage
    path.write_bytes(content)
    try:
        load_dataset(path)
    except UserError as error:
        assert "\n" not in str(error)

"""Saved metrics: exact round trips, clear refusals, a summary that can be recomputed."""

import errno
import json
import math
import os
import re
import stat

import numpy as np
import pytest
from conftest import ROOT, make_experiment
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.metrics import (
    NUMBERS,
    RECORDS,
    SCHEMA_VERSION,
    SERIES,
    TEXTS,
    MetricsError,
    load_experiment,
    load_metrics,
    save_metrics,
)
from analysis.values import format_summary, print_metrics_summary, throttled
from machine.files import atomic_write, sealed


def assert_same_metrics(left, right):
    assert list(left) == list(right)
    for arm in left:
        assert len(left[arm]) == len(right[arm])
        for mine, other in zip(left[arm], right[arm], strict=True):
            assert set(mine) == set(other) == {*NUMBERS, *TEXTS, *RECORDS, *SERIES}
            for key, value in mine.items():
                if isinstance(value, np.ndarray):
                    assert value.dtype == other[key].dtype
                    assert value.tobytes() == other[key].tobytes(), key
                else:
                    assert type(value) is type(other[key]), key
                    assert value == other[key] or (value != value and other[key] != other[key]), key


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_round_trip_is_exact(tmp_path, experiment, suffix):
    metrics, metadata = experiment
    diverged = metrics["window"][1]
    diverged |= {"status": "diverged", "message": "the loss became nan at step 3"}
    diverged |= {"total_steps": 3, "total_tokens": 6144, "final_loss": math.nan}
    for key in SERIES:
        diverged[key] = diverged[key][:3]
    diverged["losses"] = np.array([9.1, np.float32(0.1), np.nan], dtype=np.float32)
    metrics["fused"].pop()  # an experiment under way has arms of different length
    save_metrics(metrics, metadata, tmp_path)
    loaded, loaded_metadata = load_experiment(tmp_path / f"experiment_results{suffix}")
    assert_same_metrics(metrics, loaded)
    assert loaded_metadata == {**metadata, "schema_version": SCHEMA_VERSION}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=5),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
def test_round_trip_of_any_figure(tmp_path_factory, losses, time, message):
    metrics, metadata = make_experiment(runs=1, arms=("window",), steps=len(losses))
    metrics["window"][0] |= {"losses": np.array(losses, np.float32), "training_time": time}
    metrics["window"][0]["message"] = message
    folder = tmp_path_factory.mktemp("any")
    save_metrics(metrics, metadata, folder)
    assert_same_metrics(metrics, load_metrics(folder / "experiment_results.npz"))
    if math.isfinite(time) and np.isfinite(losses).all():
        assert_same_metrics(metrics, load_metrics(folder / "experiment_results.json"))


def test_npz_holds_plain_numeric_arrays_by_arm_and_name(tmp_path, experiment):
    metrics, metadata = experiment
    path, _ = save_metrics(metrics, metadata, tmp_path)
    with np.load(path, allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} <= set("iuf")
        expected = [run["training_time"] for run in metrics["window"]]
        assert file["window_training_time"].tolist() == expected
        assert file["window_losses"].shape == (4, 40)


def test_json_is_strict_and_readable(tmp_path, experiment):
    metrics, metadata = experiment
    _, path = save_metrics(metrics, metadata, tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["metrics"]["window"][0]["peak_reserved_mb"] is None
    assert content["metadata"]["config"]["window_size"] == 96


def test_a_run_that_lacks_a_key_is_refused_before_anything_is_written(tmp_path, experiment):
    metrics, metadata = experiment
    del metrics["window"][2]["val_loss"]
    with pytest.raises(MetricsError, match="window run 2: missing val_loss"):
        save_metrics(metrics, metadata, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_first_version_still_load():
    """Results that an older suite wrote, as they are in results/."""
    for path in sorted((ROOT / "results").glob("*.npz")):
        metrics, metadata = load_experiment(path)
        for run in (run for runs in metrics.values() for run in runs):
            assert set(run) == {*NUMBERS, *TEXTS, *RECORDS, *SERIES}
            if metadata["schema_version"] == 1:
                assert run["process"] == "" and run["device_before"] is None


def test_a_throttled_run_is_told_from_an_idle_one():
    states = [None, {"throttle_reasons": ["gpu_idle"]}, {"throttle_reasons": None}]
    assert all(throttled({"device_before": s, "device_after": None}) == [] for s in states)
    hot = {"throttle_reasons": ["gpu_idle", "hw_thermal_slowdown", "sw_power_cap"]}
    run = {"device_before": None, "device_after": hot}
    assert throttled(run) == ["sw_power_cap", "hw_thermal_slowdown"]


def seal(content):
    return sealed(content).encode()


def saved(tmp_path):
    return save_metrics(*make_experiment(runs=2), tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("which", [0, 1])
def test_a_truncated_file_is_refused_by_name(tmp_path, which, share):
    path = saved(tmp_path)[which]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(MetricsError, match=re.escape(str(path))):
        load_experiment(path)


@pytest.mark.parametrize("which", [0, 1])
def test_a_mutated_file_is_refused_or_right(tmp_path, which):
    """75 of each kind: never a traceback, and never another figure."""
    path = saved(tmp_path)[which]
    content, (metrics, metadata) = path.read_bytes(), load_experiment(path)
    rng = np.random.default_rng(which)
    for _ in range(75):
        mutated = bytearray(content)
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            mutated[place] = rng.integers(256)
        path.write_bytes(mutated)
        try:
            found, about = load_experiment(path)
        except MetricsError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        else:
            assert_same_metrics(metrics, found)
            assert about == metadata


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npz", b"", "damaged"),
        ("a.npz", b"not a zip file", "damaged"),
        ("a.json", b"[1, 2]", "damaged"),
        ("a.json", b"{}", "not a metrics file"),
        ("a.json", b"\xff\xfe\x00", "damaged"),
        ("a.json", seal({"metrics": {}, "metadata": {"schema_version": 99}}), "schema_version 99"),
        ("a.json", seal({"metrics": {}, "metadata": {}}), "schema_version None"),
        ("a.json", seal({"metrics": {}, "metadata": {"config": "x"}}), "is not a table"),
        ("a.json", b'{"metrics": {}, "metadata": {}}', "checksum is missing"),
        ("a.json", b'{"metrics": {}, "metadata": {}, "sha256": "0"}', "changed after it was"),
        ("a.json", b'{"metrics": {"x": [{}]}, "metadata": {"schema_version": 1}}', "missing block"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MetricsError, match=words):
        load_experiment(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("block", 0, "twice"),
        ("block", -1, "none of this suite's"),
        ("index", -5, "none of this suite's"),
        ("status", "weird", "none of this suite's"),
        ("training_time", "1e3", "training_time is '1e3', not a number"),
        ("seed", True, "seed is True, not a number"),
        ("device_before", [1], "device_before is not a table"),
    ],
)
def test_a_training_that_cannot_be_is_refused(tmp_path, experiment, key, value, words):
    metrics, metadata = experiment
    path = save_metrics(metrics, metadata, tmp_path)[1]
    content = json.loads(path.read_text())
    del content["sha256"]
    content["metrics"]["window"][1][key] = value
    path.write_text(sealed(content))
    with pytest.raises(MetricsError, match=words):
        load_experiment(path)


def test_a_name_too_long_is_refused(tmp_path):
    with pytest.raises(MetricsError, match=r"cannot be read|no such file"):
        load_experiment(tmp_path / ("a" * 300))


def test_a_foreign_npz_a_pickled_one_and_a_folder_are_refused(tmp_path):
    np.savez(tmp_path / "foreign.npz", a=np.arange(3))
    with pytest.raises(MetricsError, match="not a metrics file of this suite"):
        load_experiment(tmp_path / "foreign.npz")
    np.savez(tmp_path / "pickled.npz", metadata=np.array([{"a": 1}], dtype=object))
    with pytest.raises(MetricsError, match="damaged"):
        load_experiment(tmp_path / "pickled.npz")
    for path in (tmp_path, tmp_path / "nothing.npz"):
        with pytest.raises(MetricsError, match="no such file"):
            load_experiment(path)


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
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "writable"), (errno.EROFS, "read-only")],
)
def test_a_failed_write_names_file_reason_and_remedy(tmp_path, monkeypatch, call, code, words):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    path = tmp_path / "file.txt"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=words) as caught:
        atomic_write(path, lambda file: file.write(b"new"))
    assert caught.value.filename == str(path) and caught.value.errno == code
    assert os.strerror(code) in caught.value.strerror
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.txt"]


def test_the_folder_is_flushed_after_the_rename(tmp_path, monkeypatch):
    done, replace, fsync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("rename"), replace(*a)))

    def flush(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flush)
    atomic_write(tmp_path / "a", lambda file: file.write(b"x"))
    assert done == ["file", "rename", "folder"]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- the summary -------------------------------------------------------------------------------


def test_summary_is_mean_and_sample_deviation(experiment, capsys):
    metrics, _ = experiment
    times = np.array([run["training_time"] for run in metrics["window"]])
    expected = f"{times.mean():.2f} ± {times.std(ddof=1):.2f}"
    assert expected in format_summary(metrics)
    print_metrics_summary(metrics)
    assert capsys.readouterr().out == format_summary(metrics) + "\n"

"""Saved metrics: exact round trips, clear refusals, old files."""

import json
import math
import re

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

KEYS = {*NUMBERS, *TEXTS, *RECORDS, *SERIES}


def assert_same_metrics(left, right):
    assert list(left) == list(right)
    for arm in left:
        for one, other in zip(left[arm], right[arm], strict=True):
            assert set(one) == set(other) == KEYS
            for key, value in one.items():
                assert type(value) is type(other[key]), key
                if isinstance(value, np.ndarray):
                    assert value.dtype == other[key].dtype
                    assert value.tobytes() == other[key].tobytes(), key
                else:
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


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=5),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
def test_round_trip_of_any_figure(tmp_path_factory, losses, time, message):
    metrics, metadata = make_experiment(blocks=1, arms=("window",), steps=len(losses))
    metrics["window"][0] |= {"losses": np.array(losses, np.float32), "training_time": time}
    metrics["window"][0]["message"] = message
    folder = tmp_path_factory.mktemp("any")
    save_metrics(metrics, metadata, folder)
    assert_same_metrics(metrics, load_metrics(folder / "experiment_results.npz"))
    if math.isfinite(time) and np.isfinite(losses).all():
        assert_same_metrics(metrics, load_metrics(folder / "experiment_results.json"))


def test_the_npz_holds_numeric_arrays_by_arm_and_name_and_the_json_is_strict(tmp_path, experiment):
    metrics, metadata = experiment
    npz, path = save_metrics(metrics, metadata, tmp_path)
    with np.load(npz, allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} <= set("iuf")
        expected = [training["training_time"] for training in metrics["window"]]
        assert file["window_training_time"].tolist() == expected
        assert file["window_losses"].shape == (4, 40)
    content = json.loads(path.read_text())
    json.dumps(content, allow_nan=False)
    assert content["metrics"]["window"][0]["peak_reserved_mb"] is None
    assert content["metadata"]["config"]["window_size"] == 96


def test_a_training_that_lacks_a_key_is_refused_before_anything_is_written(tmp_path, experiment):
    metrics, metadata = experiment
    del metrics["window"][2]["val_loss"]
    with pytest.raises(KeyError, match="val_loss"):
        save_metrics(metrics, metadata, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.npz")), ids=lambda p: p.stem)
def test_files_of_earlier_versions_still_load(path):
    metrics, metadata = load_experiment(path)
    trainings = [training for of_arm in metrics.values() for training in of_arm]
    planned = len(metadata["config"]["arms"]) * metadata["config"]["runs"]
    assert 0 < len(trainings) <= planned
    assert (len(trainings) < planned) == (metadata["status"] == "partial")
    for training in trainings:
        assert set(training) == KEYS
        assert all(len(training[key]) == training["total_steps"] for key in SERIES)
        first = metadata["schema_version"] == 1
        assert (training["process"] == "") == (training["device_before"] is None) == first
        assert training["curve"] is None or training["curve"]["steps"]


def test_a_json_file_of_an_earlier_version_still_loads(tmp_path, experiment):
    metrics, metadata = experiment
    _, path = save_metrics(metrics, metadata, tmp_path)
    content = json.loads(path.read_text())
    content["metadata"]["schema_version"] = 2
    for training in content["metrics"]["fused"]:
        training |= {"run": training.pop("block"), "launch_id": training.pop("process")}
    path.write_text(json.dumps(content | {"sha256": "of an earlier suite"}))
    assert_same_metrics(metrics, load_metrics(path))


@pytest.mark.parametrize("which", [0, 1])
def test_a_cut_file_is_refused_and_a_mutated_npz_gives_no_other_figure(tmp_path, which):
    path = save_metrics(*make_experiment(blocks=2), tmp_path)[which]
    content, (metrics, metadata) = path.read_bytes(), load_experiment(path)
    for share in (0.0, 0.3, 0.6, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(MetricsError, match=re.escape(str(path))):
            load_experiment(path)
    rng = np.random.default_rng(which)
    for _ in range(40):
        mutated = bytearray(content)
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            mutated[place] = rng.integers(256)
        path.write_bytes(mutated)
        try:
            found, about = load_experiment(path)
        except MetricsError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        else:
            if path.suffix == ".npz":
                assert_same_metrics(metrics, found)
                assert about == metadata


def json_with(trainings, version):
    content = {"metrics": {"x": trainings}, "metadata": {"schema_version": version}}
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"[1, 2]", "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (json_with([], 99), "schema_version 99, this suite reads up to"),
        (json_with([], None), "schema_version None"),
        (json_with([{}], 1), "KeyError: 'block'"),
        (json_with([{"block": "x"}], 3), "ValueError: invalid literal"),
        (json_with(3, 1), "not of this suite"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(MetricsError, match=words) as caught:
        load_experiment(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_foreign_npz_a_pickled_one_and_a_folder_are_refused(tmp_path):
    np.savez(tmp_path / "foreign.npz", a=np.arange(3))
    np.savez(tmp_path / "pickled.npz", metadata=np.array([{"a": 1}], dtype=object))
    for name in ("foreign.npz", "pickled.npz"):
        with pytest.raises(MetricsError, match="not of this suite"):
            load_experiment(tmp_path / name)
    (tmp_path / "text.npz").write_text("# README")
    with pytest.raises(MetricsError, match=r"every \.npz is a zip file") as caught:
        load_experiment(tmp_path / "text.npz")
    assert "allow_pickle" not in str(caught.value)
    with pytest.raises(MetricsError, match=r"cannot be read \(Is a directory\)"):
        load_experiment(tmp_path)
    with pytest.raises(MetricsError, match=r"no such file: python main\.py writes one"):
        load_experiment(tmp_path / "nothing.npz")

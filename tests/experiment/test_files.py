"""The folder of an experiment: one writer, files that count only whole, stops that wait."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_experiment

from analysis.metrics import SERIES
from experiment import files as experiment_files
from experiment.files import (
    StoreError,
    locked,
    move_aside,
    read_plan,
    read_runs,
    run_paths,
    set_aside,
    write_plan,
    write_run,
)
from experiment.identity import differences
from machine.files import file_sha256, json_sha256, sealed, unsealed
from machine.signals import Terminated, finishing, terminable


@pytest.fixture
def stored(tmp_path):
    """A folder with a plan and all its trainings; gives folder, metrics and metadata."""
    metrics, metadata = make_experiment(2, ("window", "fused"))
    metadata |= {"experiment_id": "abc", "identity": {"code": "1"}, "processes": [], "mixed": []}
    metadata |= {"parameters": {"window": 7, "fused": 7}, "steps": 40}
    for arm, runs in metrics.items():
        for run in runs:
            run["order"] = ",".join(metadata["plan"]["orders"][run["block"]])
            write_run(tmp_path, "abc", arm, run)
    write_plan(tmp_path, metadata)
    return tmp_path, metrics, metadata


def assert_equal_runs(left, right):
    for key, value in left.items():
        if key in SERIES:
            assert value.tobytes() == right[key].tobytes(), key
        else:
            assert value == right[key] or (value != value and right[key] != right[key]), key


def test_trainings_and_plan_come_back_as_they_were(stored):
    folder, metrics, metadata = stored
    plan = read_plan(folder)
    assert plan == metadata | {"schema_version": plan["schema_version"]}
    found, damaged = read_runs(folder, plan)
    assert damaged == []
    for arm, runs in metrics.items():
        for mine, other in zip(runs, found[arm], strict=True):
            assert_equal_runs(mine, other)


def test_a_folder_without_a_plan_has_none(tmp_path):
    assert read_plan(tmp_path) is None
    assert move_aside(tmp_path, ["experiment_results.npz"]) is None


@pytest.mark.parametrize("third", range(3))
@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_truncated_training_is_damaged_and_can_be_set_aside(stored, suffix, third):
    folder, _, metadata = stored
    path = run_paths(folder, "fused", 1)[0].with_suffix(f".{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: third * len(content) // 3])
    metrics, damaged = read_runs(folder, metadata)
    assert [len(metrics[arm]) for arm in ("window", "fused")] == [2, 1]
    ((broken, reason),) = damaged
    assert broken.name == "001_fused.json" and "001_fused" in reason
    moved = set_aside(folder, broken)
    assert moved.with_suffix(f".{suffix}").read_bytes() == content[: third * len(content) // 3]
    assert read_runs(folder, metadata)[1] == []


def test_an_array_file_without_its_json_does_not_count(stored):
    folder, _, metadata = stored
    run_paths(folder, "window", 0)[1].unlink()
    metrics, damaged = read_runs(folder, metadata)
    assert [run["block"] for run in metrics["window"]] == [1] and damaged == []


def change(content, name):
    if name == "another experiment":
        content["experiment_id"] = "xyz"
    elif name == "another seed":
        content["training"]["seed"] += 1
    elif name == "another place":
        content["training"]["position"] = 1 - content["training"]["position"]
    elif name == "another order":
        content["training"]["order"] = "fused,window"
    elif name == "another arm":
        content["arm"] = "fused"
    elif name == "another run":
        content["training"]["block"] = 1
    elif name == "no such run":
        content["training"]["block"] = 7
    elif name == "other arrays":
        content["arrays_sha256"] = "0" * 64
    elif name == "a missing number":
        del content["training"]["val_loss"]
    elif name == "no table":
        content["training"] = [1, 2]


@pytest.mark.parametrize(
    "name",
    [
        "another experiment",
        "another seed",
        "another place",
        "another order",
        "another arm",
        "another run",
        "no such run",
        "other arrays",
        "a missing number",
        "no table",
    ],
)
def test_a_training_that_does_not_belong_is_not_taken(stored, name):
    folder, _, metadata = stored
    path = run_paths(folder, "window", 0)[1]
    content = unsealed(path.read_text())
    change(content, name)
    path.write_text(sealed(content))
    metrics, damaged = read_runs(folder, metadata)
    assert [path for path, _ in damaged] == [path] and len(metrics["window"]) == 1


def test_mutated_trainings_are_refused_or_right(stored):
    folder, metrics, metadata = stored
    rng = np.random.default_rng(0)
    for suffix in ("json", "npz"):
        path = run_paths(folder, "window", 0)[0].with_suffix(f".{suffix}")
        content = path.read_bytes()
        for _ in range(50):
            mutated = bytearray(content)
            for place in rng.integers(len(content), size=3):
                mutated[place] = rng.integers(256)
            path.write_bytes(mutated)
            found, damaged = read_runs(folder, metadata)
            assert len(found["window"]) + len(damaged) == 2
            if not damaged:
                assert_equal_runs(metrics["window"][0], found["window"][0])
        path.write_bytes(content)
    assert read_runs(folder, metadata)[1] == []


WHOLE = {"plan": {"orders": [], "seeds": []}, "identity": {}, "experiment_id": "a"}
WHOLE |= {"config": {}, "processes": [], "mixed": [], "parameters": {}, "steps": 3}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"[]", "damaged"),
        (b'{"plan": {}}', "damaged"),
        (b'{"plan": {}, "sha256": "0"}', "changed after it was written"),
        (sealed(WHOLE | {"plan": {"orders": [], "seeds": [1]}}).encode(), "incomplete"),
        (sealed(WHOLE | {"mixed": None}).encode(), "incomplete"),
        (sealed(WHOLE | {"schema_version": 9}).encode(), "schema_version 9"),
    ],
)
def test_a_damaged_plan_is_named_with_the_remedy(tmp_path, content, words):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(StoreError, match=words) as caught:
        read_plan(tmp_path)
    assert str(tmp_path / "plan.json") in str(caught.value) and "--restart" in str(caught.value)


def test_set_aside_and_move_aside_never_overwrite(stored):
    folder, metrics, metadata = stored
    kept = []
    for _ in range(3):
        write_run(folder, "abc", "fused", metrics["fused"][0])
        kept.append(set_aside(folder, run_paths(folder, "fused", 0)[1]))
    assert len(set(kept)) == 3 and all(path.exists() for path in kept)
    places = []
    for content in "ab":
        (folder / "report.txt").write_text(content)
        write_plan(folder, metadata)
        os.utime(folder / "plan.json", (0, 0))
        places.append(move_aside(folder, ["report.txt", "nothing.txt"]))
    assert [(place / "report.txt").read_text() for place in places] == ["a", "b"]
    assert sorted(os.listdir(places[0])) == ["plan.json", "report.txt", "runs", "set_aside"]
    assert sorted(os.listdir(folder)) == sorted(place.name for place in places)


def test_differences_name_the_place_and_both_values():
    before = {"config": {"lr": 0.1, "arms": ["a"]}, "code": "a" * 64, "data": None, "gone": 1}
    now = {"config": {"lr": 0.2, "arms": ["a"]}, "code": "b" * 64, "data": "x"}
    assert differences(before, now) == [
        "config.lr: 0.1 before, 0.2 now",
        f"code: {'a' * 12}... before, {'b' * 12}... now",
        'data: null before, "x" now',
        "gone: 1 before, null now",
    ]
    assert differences(now, now) == []


def test_checksums(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "a") == known
    assert file_sha256(tmp_path / "b") is None
    assert json_sha256({"a": 1, "b": 2}) == json_sha256({"b": 2, "a": 1}) != json_sha256({"a": 1})


def test_a_move_that_fails_is_undone(stored, monkeypatch):
    folder, _, _ = stored
    (folder / "report.txt").write_text("old")
    rename = Path.rename

    def fail(path, target):
        if path.name == "report.txt":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        return rename(path, target)

    before = sorted(os.listdir(folder))
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError):
        move_aside(folder, ["report.txt"])
    assert sorted(os.listdir(folder)) == before


def test_a_file_date_beyond_reason_does_not_keep_results_from_being_moved(stored):
    folder, _, _ = stored
    try:
        os.utime(folder / "plan.json", (2**40, 2**40))
    except OSError:
        pytest.skip("this file system has no such dates")
    assert move_aside(folder, []).is_dir()


def test_a_lock_is_never_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="cannot be locked"), locked(tmp_path / "folder"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


# --- one writer --------------------------------------------------------------------------------


def test_a_second_experiment_is_kept_out_and_told_by_whom(tmp_path):
    with locked(tmp_path):
        told = pytest.raises(StoreError, match=f"process {os.getpid()} on .* since")
        with told as caught, locked(tmp_path):
            pass
        assert str(tmp_path) in str(caught.value) and "--output-dir" in str(caught.value)
    with locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_another_process_is_kept_out(tmp_path):
    code = "import sys; from experiment.files import locked\nwith locked(sys.argv[1]): pass"
    command = [sys.executable, "-c", code, tmp_path]
    with locked(tmp_path):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "another experiment is writing there" in done.stderr
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def test_a_lock_that_a_killed_process_left_is_no_lock(tmp_path):
    code = (
        "import os, signal, sys; from experiment.files import locked\n"
        "with locked(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL and os.listdir(tmp_path) == [".lock"]
    (tmp_path / ".plan.json.abc.tmp").write_text("half")
    (tmp_path / ".results.npz.abc.tmp").write_text("half")
    (tmp_path / ".other.json.abc.tmp").write_text("of a program that is writing now")
    with locked(tmp_path, ["results.npz"]):
        assert sorted(os.listdir(tmp_path)) == [".lock", ".other.json.abc.tmp"]
    assert os.listdir(tmp_path) == [".other.json.abc.tmp"]


@pytest.mark.parametrize("call", ["flock", "open"])
def test_a_lock_that_cannot_be_had_is_named(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(experiment_files.fcntl if call == "flock" else os, call, fail)
    with pytest.raises(OSError, match="cannot be locked") as caught, locked(tmp_path):
        pass
    assert caught.value.filename == str(tmp_path / ".lock")


def test_what_is_moved_is_flushed_where_it_is_now(stored, monkeypatch):
    folder, _, _ = stored
    flushed = []
    monkeypatch.setattr(
        experiment_files, "flush_folder", lambda path: flushed.append(Path(path).name)
    )
    set_aside(folder, run_paths(folder, "fused", 0)[1])
    assert flushed == ["set_aside", "runs"]
    flushed.clear()
    place = move_aside(folder, [])
    assert flushed == [place.name, folder.name]


# --- stops -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signum", "exception"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_stop_waits_for_the_end_of_the_write(signum, exception):
    steps = []
    with terminable():
        with pytest.raises(exception):
            with finishing():
                signal.raise_signal(signum)
                steps.append("written")
            steps.append("never")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert steps == ["written"]


def test_a_second_stop_does_not_wait():
    steps = []
    with pytest.raises(KeyboardInterrupt), finishing():
        signal.raise_signal(signal.SIGINT)
        steps.append("first")
        signal.raise_signal(signal.SIGINT)
        steps.append("never")
    assert steps == ["first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_write_is_not_hidden_by_a_stop():
    with pytest.raises(OSError, match="full"), finishing():
        signal.raise_signal(signal.SIGINT)
        raise OSError("full")


def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with terminable(), finishing():
        pass
    assert signal.getsignal(signal.SIGTERM) is before

"""The folder of an experiment: one writer, and files that count only whole."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
from conftest import make_experiment
from small_experiment import contents

from analysis.metrics import SCHEMA_VERSION, SERIES
from experiment.files import (
    is_empty,
    locked,
    move_aside,
    read_plan,
    read_trainings,
    set_aside,
    training_path,
    write_training,
)
from machine.command import UserError


@pytest.fixture
def stored(tmp_path):
    """A folder with a plan and all its trainings; gives folder, metrics and metadata."""
    folder = tmp_path / "output"
    metrics, metadata = make_experiment(2, ("window", "fused"))
    metadata |= {"experiment_id": "abc", "schema_version": SCHEMA_VERSION, "steps": 4}
    metadata |= {"identity": {"code": "1"}, "processes": [], "mixed": []}
    metadata["environment"]["variables"] = {}
    for arm, trainings in metrics.items():
        for training in trainings:
            training["order"] = ",".join(metadata["plan"]["orders"][training["block"]])
            write_training(folder, "abc", arm, training)
    (folder / "plan.json").write_text(json.dumps(metadata))
    return folder, metrics, metadata


def assert_equal_trainings(left, right):
    for key, value in left.items():
        if key in SERIES:
            assert value.tobytes() == right[key].tobytes(), key
        else:
            assert value == right[key] or (value != value and right[key] != right[key]), key


def refuse(*_):
    raise PermissionError(errno.EACCES, "Permission denied")


# trainings and the plan
def test_trainings_and_plan_come_back_as_they_were(stored):
    folder, metrics, metadata = stored
    plan = read_plan(folder, metadata)
    assert plan == metadata
    assert contents(folder / "runs") == [
        *("000_fused.npz", "000_window.npz", "001_fused.npz", "001_window.npz")
    ]
    found, damaged = read_trainings(folder, plan)
    assert damaged == []
    for arm, trainings in metrics.items():
        for mine, other in zip(trainings, found[arm], strict=True):
            assert_equal_trainings(mine, other)


@pytest.mark.parametrize("third", range(3))
def test_a_truncated_training_is_damaged_and_can_be_set_aside(stored, third):
    folder, _, metadata = stored
    path = training_path(folder, "fused", 1)
    content = path.read_bytes()
    path.write_bytes(content[: third * len(content) // 3])
    metrics, damaged = read_trainings(folder, metadata)
    assert [len(metrics[arm]) for arm in ("window", "fused")] == [2, 1]
    ((broken, reason),) = damaged
    assert broken == path and str(path) in reason
    moved = set_aside(folder, broken)
    assert moved.read_bytes() == content[: third * len(content) // 3]
    assert read_trainings(folder, metadata)[1] == []


def test_mutated_trainings_are_refused_or_right(stored):
    folder, metrics, metadata = stored
    rng = np.random.default_rng(0)
    path = training_path(folder, "window", 0)
    content = path.read_bytes()
    for number in range(150):
        mutated = bytearray(content)
        # every other time in the zip file's table at its end
        first = len(content) - 400 if number % 2 else 0
        for place in rng.integers(first, len(content), size=3):
            mutated[place] = rng.integers(256)
        path.write_bytes(mutated)
        found, damaged = read_trainings(folder, metadata)
        assert len(found["window"]) + len(damaged) == 2
        if not damaged:
            assert_equal_trainings(metrics["window"][0], found["window"][0])
    path.write_bytes(content)
    assert read_trainings(folder, metadata)[1] == []


@pytest.mark.parametrize(
    "change",
    [
        {"experiment_id": "xyz"},
        {"arm": "fused"},
        {"training": [1, 2]},
        {"seed": 7},
        {"position": 1},
        {"order": "fused,window"},
        {"block": 1},
        {"block": 7},
        {"val_loss": "low"},
    ],
    ids=str,
)
def test_a_training_that_does_not_belong_is_not_taken(stored, change):
    folder, _, metadata = stored
    path = training_path(folder, "window", 0)
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(arrays["about"].item())
    table = about if set(change) <= set(about) else about["training"]
    table |= change
    np.savez(path, **arrays | {"about": np.array(json.dumps(about))})
    metrics, damaged = read_trainings(folder, metadata)
    assert [path for path, _ in damaged] == [path] and len(metrics["window"]) == 1


def test_a_file_that_cannot_be_read_just_now_is_not_called_damaged(stored, monkeypatch):
    folder, _, metadata = stored
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"npz: cannot be read \(Permission denied\)"):
        read_trainings(folder, metadata)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", 9),
        *[(key, None) for key in ("experiment_id", "config", "steps", "plan", "identity", "mixed")],
        ("plan", {"orders": [["window", "fused"]]}),
        ("plan", {"orders": [["window", "fused"]], "seeds": [1, 2]}),
        ("plan", {"orders": [["window", "other"]], "seeds": [1]}),
        ("plan", {"seeds": [1, 2]}),
        ("plan", {"primary": [[None, 1]]}),
        ("config", {"world_size": "1"}),
        ("data", {"val_rows": None}),
        ("processes", [{}]),
    ],
)
def test_a_damaged_plan_is_named_with_the_remedy(stored, key, value):
    folder, _, metadata = stored
    if value and isinstance(value, dict):
        value = metadata[key] | value
    (folder / "plan.json").write_text(json.dumps(metadata | {key: value}))
    with pytest.raises(UserError, match="--restart") as caught:
        read_plan(folder, metadata)
    assert str(folder / "plan.json") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff{", b"[]", b"{}"])
def test_what_is_no_plan_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged .* --restart"):
        read_plan(tmp_path, {})


# moving aside
def test_set_aside_never_overwrites(stored):
    folder, metrics, _ = stored
    kept = []
    for _ in range(3):
        write_training(folder, "abc", "fused", metrics["fused"][0])
        kept.append(set_aside(folder, training_path(folder, "fused", 0)).name)
    assert contents(folder / "set_aside") == kept == [f"000_fused_{n}.npz" for n in (1, 2, 3)]


def test_a_folder_that_is_moved_aside_goes_whole(stored, capsys):
    folder, _, _ = stored
    (folder / "notes.txt").write_text("a")
    move_aside(folder, "data.npy")
    (place,) = folder.parent.glob("output_earlier_20*")
    assert is_empty(folder) and f"the old results are now in {place}" in capsys.readouterr().err
    assert contents(place) == ["notes.txt", "plan.json", "runs"]
    assert (place / "notes.txt").read_text() == "a"


def test_nothing_is_moved_where_there_is_nothing(tmp_path):
    folder = tmp_path / "output"
    move_aside(folder, "data.npy")
    assert contents(tmp_path) == []
    with locked(folder):
        pass
    move_aside(folder, "data.npy")
    assert is_empty(folder) and contents(tmp_path) == ["output"]
    assert read_plan(folder, {}) is None


def test_a_link_stays_and_what_it_leads_to_is_renamed(stored, tmp_path, capsys):
    folder, _, _ = stored
    link = tmp_path / "link"
    link.symlink_to(folder)
    move_aside(link, "data.npy")
    (place,) = tmp_path.glob("output_earlier_*")
    assert link.is_symlink() and is_empty(link) and contents(place) == ["plan.json", "runs"]
    assert f"now in {place}\n" in capsys.readouterr().err


@pytest.mark.parametrize("inside", ["data", "working directory"])
def test_what_is_still_needed_is_not_moved_along(stored, monkeypatch, inside):
    folder, _, _ = stored
    data = folder / "data.npy" if inside == "data" else folder.parent / "data.npy"
    if inside == "working directory":
        monkeypatch.chdir(folder / "runs")
    with pytest.raises(UserError, match="choose another --output-dir"):
        move_aside(folder, data)
    assert contents(folder) == ["plan.json", "runs"]


def test_a_move_that_fails_leaves_all_as_it_was(stored, monkeypatch):
    folder, _, _ = stored
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        move_aside(folder, "data.npy")
    assert contents(folder) == ["plan.json", "runs"]


# one writer
def test_the_lock_keeps_other_processes_out_and_ends_with_its_own(tmp_path):
    """Held by a process that is killed; what it had half written is removed."""
    hold = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]):"
    hold += " print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, tmp_path / ".lock"]  # as locked does, without torch
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        told = pytest.raises(UserError, match="another experiment is writing there")
        with told as caught, locked(tmp_path):
            pass
        assert str(tmp_path) in str(caught.value)
        holder.kill()
        assert holder.wait() == -signal.SIGKILL
    (tmp_path / "runs").mkdir()
    for name in (".plan.json.abc.tmp", "runs/.000_window.npz.abc.tmp", ".other.json.abc.tmp"):
        (tmp_path / name).write_text("half")
    assert ".lock" in os.listdir(tmp_path)
    with locked(tmp_path):
        assert contents(tmp_path) == [".other.json.abc.tmp", "runs"]  # of another program
        assert contents(tmp_path / "runs") == []


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def unlockable(*_, timeout):  # NFS without its lock daemon: the error names no file
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", unlockable)
    with pytest.raises(OSError, match="No locks available") as caught, locked(tmp_path):
        pass
    assert caught.value.filename == str(tmp_path / ".lock")

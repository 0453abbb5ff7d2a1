"""What is recorded of code and machine: complete, honest about gaps, and nothing personal."""

import json
import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from machine import describe as machine_describe
from machine.describe import SOURCE_PATTERNS, describe_code, describe_environment

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
KEYS = {"device_name", "torch", "cuda", "cudnn", "float32_matmul_precision", "threads", "cpu"}
KEYS |= {"logical_cpus", "numpy", "python", "platform", "gpu", "variables"}


def test_a_cpus_environment_is_complete_and_strict_json():
    environment = describe_environment(CPU)
    assert set(environment) == KEYS
    assert environment["gpu"] is environment["cuda"] is environment["cudnn"] is None
    json.dumps(environment, allow_nan=False)


def test_a_gpus_environment_identifies_it(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    properties.uuid = "0a1b2c3d-0000-1111-2222-333344445555"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: properties.name)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(machine_describe, "driver_version", lambda: "570.86.15")
    environment = describe_environment(GPU)
    assert set(environment) == KEYS
    assert environment["gpu"] == {
        "uuid": f"GPU-{properties.uuid}",
        "memory_mb": 80 * 1024,
        "driver": "570.86.15",
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
    }
    json.dumps(environment, allow_nan=False)


def test_only_allowed_variables_are_recorded(monkeypatch):
    for name in machine_describe.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("TORCH_API_TOKEN", "planted")
    environment = describe_environment(CPU)
    assert environment["variables"] == {"OMP_NUM_THREADS": "3"}
    written = json.dumps(environment)
    assert "planted" not in written and str(machine_describe.FOLDER) not in written


SOURCES = ("gpt.py", "gpt_win.py", "attention/masks.py", "attention/split.py", "training/train.py")
SOURCES += ("machine/ranks.py", "experiment/plan.py")


def git(folder, *words):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", folder, *identity, *words]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the suite's source files, made up, in no checkout."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    return write_sources(tmp_path / "suite")


def write_sources(folder):
    folder.mkdir(parents=True)
    for name in SOURCES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    return folder


@pytest.fixture
def checkout(folder):
    """The same as a clean checkout."""
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "all")
    return folder


def test_a_clean_checkout_is_its_revision(checkout):
    code = describe_code(checkout)
    assert code["revision"] == git(checkout, "rev-parse", "HEAD").decode().strip()
    assert code["dirty"] is False


def test_a_changed_checkout_is_dirty(checkout):
    (checkout / "experiment_results.npz").write_bytes(b"numbers")
    assert describe_code(checkout)["dirty"] is False  # results do not count
    (checkout / "gpt.py").write_bytes(b"caf\xe9\n")  # not UTF-8
    assert describe_code(checkout)["dirty"] is True


def test_outside_a_checkout_only_the_sources_are_known(folder):
    code = describe_code(folder)
    assert code == {"revision": None, "dirty": None, "sources_sha256": code["sources_sha256"]}


def test_a_copy_in_a_foreign_checkout_has_no_revision(checkout, tmp_path, monkeypatch):
    copy = checkout / "vendor" / "suite"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "vendor"))
    assert describe_code(copy)["revision"] is describe_code(copy)["dirty"] is None
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    code = describe_code(checkout)
    monkeypatch.delenv("GIT_DIR")
    assert code == describe_code(checkout) and code["revision"]


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("git", 10)])
def test_without_git_or_where_it_hangs_there_is_no_revision(checkout, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert describe_code(checkout)["revision"] is None


@pytest.mark.parametrize("name", SOURCES)
def test_the_hash_of_the_sources_sees_a_byte_of_each(folder, name):
    before = describe_code(folder)["sources_sha256"]
    path = folder / name
    path.write_text(path.read_text().replace("#", "%"))
    assert describe_code(folder)["sources_sha256"] != before


def test_the_hash_of_the_sources_sees_a_line_that_moves_to_the_next_file(folder):
    before = describe_code(folder)["sources_sha256"]
    (folder / SOURCES[0]).write_text("")
    (folder / SOURCES[1]).write_text(f"# {SOURCES[0]}\n# {SOURCES[1]}\n")
    assert describe_code(folder)["sources_sha256"] != before


def test_the_hash_of_the_sources_knows_no_folder_and_no_other_file(folder, tmp_path):
    before = describe_code(folder)["sources_sha256"]
    (folder / "README.md").write_text("words")
    other = write_sources(tmp_path / "else" / "where")
    assert describe_code(folder)["sources_sha256"] == before
    assert describe_code(other)["sources_sha256"] == before


def test_the_sources_are_files_of_this_suite():
    assert all(any(machine_describe.FOLDER.glob(pattern)) for pattern in SOURCE_PATTERNS)

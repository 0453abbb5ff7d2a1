"""What is recorded of machine, code and GPU: complete, honest about gaps, and nothing personal."""

import hashlib
import json
import os
import subprocess
from types import SimpleNamespace

import pytest
import torch

from analysis.values import throttled
from machine import describe as machine_describe
from machine import device as machine_device
from machine import state as machine_state
from machine.describe import SOURCES, describe_code, describe_environment
from machine.device import fragmentation_remedy, gpu_uuid
from machine.state import REASON_FIELDS, REASONS, device_state

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
UUID = "GPU-0a1b2c3d-0000-1111-2222-333344445555"
NEW, OLD = REASON_FIELDS
BUSY = "1830, 1980, 2619, 54, 402.17, 98, 0x0000000000000000"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "used", "name", "setting", "words"),
    [
        ("cuda", 15, "PYTORCH_CUDA_ALLOC_CONF", "", "55.0 of the 70.0 GiB that PyTorch"),
        ("cuda", 15, "PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64", "55.0 of the 70.0 GiB"),
        ("cuda", 15, "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", None),
        ("cuda", 15, "PYTORCH_ALLOC_CONF", "max_split_size_mb:64,expandable_segments:True", None),
        ("cuda", 66, "PYTORCH_CUDA_ALLOC_CONF", "", None),
        ("cpu", 15, "PYTORCH_CUDA_ALLOC_CONF", "", None),
    ],
)
def test_the_remedy_of_memory_in_pieces(monkeypatch, device, used, name, setting, words):
    for variable in machine_device.ALLOCATOR_SETTINGS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, setting)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used * 2**30)
    said = fragmentation_remedy(torch.device(device))
    assert (
        said.startswith(words) and "expandable_segments:True helps" in said if words else not said
    )


def strict_json(value):
    return json.dumps(value, allow_nan=False)


# --- the state of a GPU ------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def forget_the_driver():
    machine_state._driver_version.cache_clear()
    yield
    machine_state._driver_version.cache_clear()


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A stand-in for nvidia-smi on PATH; returns what sets its answers and reads its calls.

    known: the clock reason fields that this driver has; for any other it fails as the real one.
    """
    calls = tmp_path / "calls"
    monkeypatch.setattr(machine_state, "gpu_uuid", lambda device: UUID)
    monkeypatch.setattr("machine.describe.gpu_uuid", lambda device: UUID)

    def install(state=BUSY, processes=(), known=REASON_FIELDS, driver="570.86.15", exit_code=0):
        (tmp_path / "state").write_text(state + "\n")
        (tmp_path / "processes").write_text("".join(f"{pid}\n" for pid in processes))
        refused = "".join(
            f"*{name}*) echo 'Field {name} is not a valid field to query.'; exit 2;; "
            for name in REASON_FIELDS
            if name not in known
        )
        script = tmp_path / "nvidia-smi"
        script.write_text(
            f'#!/bin/sh\necho "$*" >> {calls}\n[ {exit_code} = 0 ] || exit {exit_code}\n'
            f'case "$*" in {refused}*compute-apps*) cat {tmp_path}/processes;; '
            f"*driver_version*) echo {driver};; *) cat {tmp_path}/state;; esac\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return SimpleNamespace(
        install=install, calls=lambda: calls.read_text().splitlines() if calls.exists() else []
    )


def test_every_number_lands_under_its_own_name(nvidia_smi):
    nvidia_smi.install(processes=[os.getpid(), 4242, 4243])
    assert device_state(GPU) == {
        "sm_clock_mhz": 1830,
        "max_sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "temperature_c": 54,
        "power_w": 402.17,
        "utilization_percent": 98,
        "throttle_reasons": [],
        "other_processes": 2,
    }
    fields = "clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu"
    assert f"--query-gpu={fields},{NEW} " in nvidia_smi.calls()[0]


def test_the_very_gpu_is_asked_and_nothing_is_set(nvidia_smi):
    nvidia_smi.install()
    device_state(GPU)
    calls = [call.split() for call in nvidia_smi.calls()]
    assert len(calls) == 2
    for query, form, identity in calls:
        assert identity == f"--id={UUID}"
        assert query.startswith("--query-") and form == "--format=csv,noheader,nounits"


@pytest.mark.parametrize("absent", ["[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", "nan"])
def test_what_the_gpu_does_not_tell_is_none(nvidia_smi, absent):
    nvidia_smi.install(f"1830, {absent}, 2619, {absent}, {absent}, {absent}, {absent}")
    state = device_state(GPU)
    assert state["sm_clock_mhz"] == 1830 and state["memory_clock_mhz"] == 2619
    unknown = {key for key, value in state.items() if value is None}
    assert unknown == {
        "max_sm_clock_mhz",
        "temperature_c",
        "power_w",
        "utilization_percent",
        "throttle_reasons",
        "other_processes",
    }
    assert throttled({"device_before": state}) == []
    strict_json(state)


@pytest.mark.parametrize(
    ("known", "queries"), [([NEW], [NEW]), ([OLD], [NEW, OLD]), ([NEW, OLD], [NEW])]
)
def test_drivers_old_and_new_are_understood(nvidia_smi, known, queries):
    nvidia_smi.install(BUSY[:-18] + "0x0000000000000004", known=known)
    assert device_state(GPU)["throttle_reasons"] == ["sw_power_cap"]
    asked = [call for call in nvidia_smi.calls() if "--query-gpu" in call]
    assert len(asked) == len(queries)
    assert all(name in call for name, call in zip(queries, asked, strict=True))


@pytest.mark.parametrize(
    ("mask", "words", "slowing"),
    [
        ("0x0000000000000000", [], []),
        ("0x0000000000000001", ["gpu_idle"], []),
        ("0x0000000000000002", ["applications_clocks_setting"], []),
        ("0x0000000000000004", ["sw_power_cap"], ["sw_power_cap"]),
        ("0x0000000000000008", ["hw_slowdown"], ["hw_slowdown"]),
        ("0x0000000000000010", ["sync_boost"], []),
        ("0x0000000000000020", ["sw_thermal_slowdown"], ["sw_thermal_slowdown"]),
        ("0x0000000000000040", ["hw_thermal_slowdown"], ["hw_thermal_slowdown"]),
        ("0x0000000000000080", ["hw_power_brake_slowdown"], ["hw_power_brake_slowdown"]),
        ("0x0000000000000100", ["display_clocks_setting"], []),
        ("0x0000000000000600", ["0x600"], []),
        ("0x0000000000000105", ["gpu_idle", "sw_power_cap", REASONS[8]], ["sw_power_cap"]),
    ],
)
def test_reasons_are_words_and_only_power_and_heat_count_as_slowing(
    nvidia_smi, mask, words, slowing
):
    nvidia_smi.install(f"1830, 1980, 2619, 54, 402.17, 98, {mask}")
    state = device_state(GPU)
    assert state["throttle_reasons"] == words
    assert throttled({"device_after": state}) == slowing


@pytest.mark.parametrize(
    ("others", "count"), [([], 0), ([71], 1), ([71, 71], 1), (None, None), ([None, 71], None)]
)
def test_other_processes_are_counted_where_this_one_is_listed(nvidia_smi, others, count):
    """A list without this process is one from which it cannot be told apart."""
    mine = [] if others is None or None in others else [os.getpid()]
    nvidia_smi.install(processes=mine + [pid for pid in others or [] if pid])
    assert device_state(GPU)["other_processes"] == count


def test_no_state_without_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_state, "gpu_uuid", lambda device: UUID)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_state(GPU) is None
    assert machine_state._driver_version() is None


def test_no_state_from_an_nvidia_smi_that_fails(nvidia_smi):
    nvidia_smi.install(exit_code=9)
    assert device_state(GPU) is None
    assert machine_state._driver_version() is None
    assert nvidia_smi.calls()


@pytest.mark.parametrize("answer", ["", "1830, 1980", f"{BUSY}\n{BUSY}", "No devices were found"])
def test_no_state_from_an_answer_of_another_shape(nvidia_smi, answer):
    nvidia_smi.install(answer)
    assert device_state(GPU) is None


def test_no_state_from_a_driver_that_knows_neither_name(nvidia_smi):
    nvidia_smi.install(known=[])
    assert device_state(GPU) is None
    assert len(nvidia_smi.calls()) == 2


@pytest.fixture
def hanging(monkeypatch):
    """Every command takes longer than it may; the list is of the seconds that each was given."""
    limits = []

    def hang(command, timeout, **_):
        limits.append(timeout)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    return limits


def test_a_hanging_nvidia_smi_is_given_up_once(hanging, monkeypatch):
    monkeypatch.setattr(machine_state, "gpu_uuid", lambda device: UUID)
    assert device_state(GPU) is None
    assert hanging == [10]
    assert machine_state._driver_version() is machine_state._driver_version() is None
    assert hanging == [10, 10]


def test_no_state_of_a_gpu_without_a_uuid(nvidia_smi, monkeypatch):
    nvidia_smi.install()
    monkeypatch.setattr(machine_state, "gpu_uuid", lambda device: None)
    assert device_state(GPU) is None
    assert not nvidia_smi.calls()


@pytest.mark.parametrize(
    ("properties", "uuid"),
    [({"uuid": UUID[4:]}, UUID), ({"uuid": UUID}, UUID), ({"uuid": "MIG-7"}, "MIG-7"), ({}, None)],
)
def test_uuids_are_written_as_nvidia_smi_does(monkeypatch, properties, uuid):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**properties)
    )
    assert gpu_uuid(GPU) == uuid


def test_a_cpu_has_its_load_average_where_the_system_tells(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 2.5, 3.5))
    assert device_state(CPU) == {"load_average_1min": 1.5}
    monkeypatch.delattr(os, "getloadavg")
    assert device_state(CPU) is None


@needs_cuda
def test_the_state_of_a_real_gpu():
    torch.zeros(1, device="cuda")
    state = device_state(machine_device.resolve_device("cuda"))
    if state is None:
        pytest.skip("no working nvidia-smi")
    assert state["sm_clock_mhz"] is None or 0 < state["sm_clock_mhz"] < 10_000
    assert state["throttle_reasons"] is None or {*state["throttle_reasons"]} <= {*REASONS}
    strict_json(state)


# --- the environment ---------------------------------------------------------------------------

BEFORE = {"device_name", "torch", "cuda", "cudnn", "float32_matmul_precision", "threads"}
BEFORE |= {"logical_cpus", "numpy", "python", "platform", "git_revision"}
SINCE = {"deterministic", "cpu", "affinity_cpus", "ram_mb", "load_average_1min", "container"}
SINCE |= {"scipy", "gpu", "variables"}


def test_a_cpus_environment_is_complete_and_strict_json():
    environment = describe_environment(CPU)
    assert set(environment) == BEFORE | SINCE
    assert environment["gpu"] is environment["cuda"] is environment["cudnn"] is None
    assert environment["scipy"].count(".") >= 1
    assert 1 <= environment["affinity_cpus"] <= environment["logical_cpus"]
    assert 100 < environment["ram_mb"] < 2**30
    assert environment["container"] in (True, False, None)
    strict_json(environment)


def test_a_gpus_environment_identifies_it(nvidia_smi, monkeypatch):
    nvidia_smi.install()
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: properties.name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    environment = describe_environment(GPU)
    assert set(environment) == BEFORE | SINCE
    assert environment["gpu"] == {
        "name": "NVIDIA H100",
        "uuid": UUID,
        "index": 0,
        "count": 2,
        "capability": "9.0",
        "memory_mb": 80 * 1024,
        "driver": "570.86.15",
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }
    strict_json(environment)


def test_settings_that_pytorch_refuses_to_tell_are_none(monkeypatch):
    def refuse():
        raise RuntimeError("you have used mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    assert describe_environment(CPU)["float32_matmul_precision"] is None


def test_only_allowed_variables_are_recorded_and_no_secret_or_folder(monkeypatch):
    for name in list(os.environ):
        if (
            name.startswith(machine_describe.RECORDED_PREFIXES)
            or name in machine_describe.RECORDED_VARIABLES
        ):
            monkeypatch.delenv(name)
    allowed = {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "CUDA_VISIBLE_DEVICES": "MIG-GPU-5/1/0",
        "MKL_NUM_THREADS": "3",
        "NVIDIA_TF32_OVERRIDE": "0",
        "OMP_NUM_THREADS": "2",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_LOGS": "+dynamo",
    }
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "planted-1",
        "MY_PYTORCH_NOTE": "planted-2",
        "CUDA_VISIBLE_DEVICES_NOTE": "planted-3",
        "TORCH_API_TOKEN": "planted-4",
        "PYTORCH_SECRET": "planted-5",
        "USER": "planted-6",
        "HOSTNAME": "planted-7",
        "TORCH_HOME": "/home/planted-8/.cache",
        "TORCHINDUCTOR_CACHE_DIR": "C:\\Users\\planted-9",
    }
    for name, value in (allowed | secrets).items():
        monkeypatch.setenv(name, value)
    environment = describe_environment(CPU)
    hidden = {"TORCH_HOME": "(a path)", "TORCHINDUCTOR_CACHE_DIR": "(a path)"}
    assert environment["variables"] == allowed | hidden
    assert "planted" not in strict_json(environment)
    assert str(machine_describe.FOLDER) not in strict_json(environment)


@pytest.mark.parametrize(
    ("file", "content", "answer"),
    [
        (".dockerenv", "", True),
        ("run/.containerenv", "", True),
        ("proc/1/cgroup", "12:cpu:/kubepods/besteffort/pod1\n", True),
        ("proc/1/cgroup", "0::/init.scope\n", False),
        ("etc/passwd", "", None),
    ],
)
def test_containers_are_recognised_by_their_files(tmp_path, file, content, answer):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert machine_describe._in_container(tmp_path) is answer


# --- the code ----------------------------------------------------------------------------------


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
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    return folder


@pytest.fixture
def checkout(folder):
    """The same as a clean checkout of the branch ``work``."""
    git(folder, "init", "--quiet")
    git(folder, "symbolic-ref", "HEAD", "refs/heads/work")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "all")
    return folder


def test_a_clean_checkout_is_its_revision(checkout):
    code = describe_code(checkout)
    assert code["revision"] == git(checkout, "rev-parse", "HEAD").decode().strip()
    assert len(code["revision"]) == 40
    assert code["branch"] == "work"
    assert code["dirty"] is False and code["diff_sha256"] is None
    assert machine_describe._git_revision(checkout) == code["revision"][:12]
    strict_json(code)


def test_a_changed_checkout_is_dirty_with_the_hash_of_its_difference(checkout):
    (checkout / "gpt.py").write_bytes(b"caf\xe9\n")  # not UTF-8
    code = describe_code(checkout)
    difference = git(checkout, "diff", "HEAD")
    assert b"caf\xe9" in difference
    assert code["dirty"] is True
    assert code["diff_sha256"] == hashlib.sha256(difference).hexdigest()
    assert machine_describe._git_revision(checkout) == code["revision"][:12] + "+"
    strict_json(code)


def test_a_checkout_without_a_branch(checkout):
    git(checkout, "checkout", "--quiet", "--detach")
    code = describe_code(checkout)
    assert code["branch"] is None and len(code["revision"]) == 40 and code["dirty"] is False


def test_outside_a_checkout_only_the_sources_are_known(folder):
    code = describe_code(folder)
    assert len(code.pop("sources_sha256")) == 64
    assert code == {"revision": None, "branch": None, "dirty": None, "diff_sha256": None}


def test_without_git_there_is_no_revision(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_code(checkout)["revision"] is machine_describe._git_revision(checkout) is None


def test_git_that_hangs_gives_no_revision(checkout, hanging):
    assert describe_code(checkout)["revision"] is machine_describe._git_revision(checkout) is None
    assert hanging


@pytest.mark.parametrize("name", SOURCES)
def test_the_hash_of_the_sources_sees_a_byte_of_each(folder, name):
    before = describe_code(folder)["sources_sha256"]
    path = folder / name
    path.write_text(path.read_text().replace("#", "%"))
    assert describe_code(folder)["sources_sha256"] != before


def test_the_hash_of_the_sources_sees_a_line_that_moves_to_the_next_file(folder):
    before = describe_code(folder)["sources_sha256"]
    (folder / SOURCES[0]).write_text("")
    moved = f"# {SOURCES[0]}\n# {SOURCES[1]}\n"
    (folder / SOURCES[1]).write_text(moved)
    assert describe_code(folder)["sources_sha256"] != before


def test_the_hash_of_the_sources_knows_no_folder_and_no_other_file(folder, tmp_path):
    before = describe_code(folder)["sources_sha256"]
    (folder / "README.md").write_text("words")
    other = write_sources(tmp_path / "else" / "where")
    assert describe_code(folder)["sources_sha256"] == before
    assert describe_code(other)["sources_sha256"] == before


def test_sources_that_are_missing_have_no_hash(folder):
    (folder / SOURCES[-1]).unlink()
    assert describe_code(folder)["sources_sha256"] is None


def test_the_suites_own_sources_are_all_there():
    assert len(describe_code()["sources_sha256"]) == 64

"""The state of a device: every number under its name, None for what is not told."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import needs_cuda

from analysis.values import throttled
from machine import state as machine_state
from machine.device import resolve_device
from machine.state import REASONS, device_state, driver_version

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
UUID = "GPU-0a1b2c3d-0000-1111-2222-333344445555"
REASONS_NOW = "nvmlDeviceGetCurrentClocksEventReasons"


class NVMLError(Exception):
    pass


def answering(*arguments, answer):
    """An NVML function that is called with ``arguments`` alone."""

    def function(*given):
        assert given == arguments
        return answer

    return function


def failing(*_):
    raise NVMLError("Not Supported")


def refuse():
    raise OSError("Load averages are unobtainable")


def fake_pynvml(**changes):
    """A module with the functions of NVIDIA's binding that are used, for one GPU, "handle"."""
    pids = (os.getpid(), 4242, 4243, 4243)
    processes = [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in pids]
    module = {
        "NVMLError": NVMLError,
        "NVML_CLOCK_SM": 1,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": answering(answer=None),
        "nvmlSystemGetDriverVersion": answering(answer="570.86.15"),
        "nvmlDeviceGetHandleByUUID": answering(UUID, answer="handle"),
        "nvmlDeviceGetClockInfo": answering("handle", 1, answer=1830),
        "nvmlDeviceGetMaxClockInfo": answering("handle", 1, answer=1980),
        "nvmlDeviceGetTemperature": answering("handle", 0, answer=54),
        REASONS_NOW: answering("handle", answer=0),
        "nvmlDeviceGetComputeRunningProcesses": answering("handle", answer=processes),
    }
    return SimpleNamespace(**(module | changes))


LOAD = {"load_average_1min": 1.5, "cores": 2}


@pytest.fixture(autouse=True)
def threads(monkeypatch, tmp_path):
    """The host's load averages, the first of 1.5, 2 cores, and the folder of the threads."""
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 2.5, 3.5), raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5}, raising=False)
    monkeypatch.setattr(machine_state, "THREADS", tmp_path)
    return tmp_path


@pytest.fixture
def nvml(monkeypatch):
    """Puts a fake binding into the place of NVIDIA's; None: it is not installed."""
    monkeypatch.setattr(machine_state, "gpu_uuid", lambda device: UUID)

    def install(module):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        machine_state._nvml.cache_clear()

    yield install
    machine_state._nvml.cache_clear()


def test_every_number_lands_under_its_name(nvml):
    nvml(fake_pynvml())
    assert device_state(GPU) == LOAD | {
        "sm_clock_mhz": 1830,
        "max_sm_clock_mhz": 1980,
        "temperature_c": 54,
        "throttle_reasons": [],
        "other_processes": 2,
    }
    assert driver_version() == "570.86.15"


def test_what_the_gpu_does_not_tell_is_none(nvml):
    answers = [name for name in vars(fake_pynvml()) if name.startswith("nvmlDeviceGet")]
    answers.remove("nvmlDeviceGetHandleByUUID")
    nvml(fake_pynvml(**dict.fromkeys(answers, failing)))
    state = device_state(GPU)
    assert (state.pop("load_average_1min"), state.pop("cores")) == (1.5, 2)
    assert len(state) == 5 and set(state.values()) == {None}
    assert throttled({"device_before": state, "device_after": None}) == []


@pytest.mark.parametrize(
    ("bits", "words", "slowing"),
    [
        (0x4, ["sw_power_cap"], ["sw_power_cap"]),
        (0x8, ["hw_slowdown"], ["hw_slowdown"]),
        (0x20, ["sw_thermal_slowdown"], ["sw_thermal_slowdown"]),
        (0x40, ["hw_thermal_slowdown"], ["hw_thermal_slowdown"]),
        (0x80, ["hw_power_brake_slowdown"], ["hw_power_brake_slowdown"]),
        (0x105, ["gpu_idle", "sw_power_cap", REASONS[8]], ["sw_power_cap"]),
    ],
)
def test_reasons_are_words_and_only_power_and_heat_count_as_slowing(nvml, bits, words, slowing):
    nvml(fake_pynvml(**{REASONS_NOW: answering("handle", answer=bits)}))
    state = device_state(GPU)
    assert state["throttle_reasons"] == words
    assert throttled({"device_before": None, "device_after": state}) == slowing


def test_others_are_not_counted_where_this_process_is_not_listed(nvml):
    processes = [SimpleNamespace(pid=71)]
    nvml(fake_pynvml(nvmlDeviceGetComputeRunningProcesses=answering("handle", answer=processes)))
    assert device_state(GPU)["other_processes"] is None


@pytest.mark.parametrize("module", [None, fake_pynvml(nvmlInit=failing)])
def test_nothing_is_known_without_the_binding_or_a_driver(nvml, module):
    nvml(module)
    assert device_state(GPU) == LOAD
    assert driver_version() is None


def test_the_times_of_all_threads_are_summed(threads):
    for thread, text in (("7", "3000000000 500000000 9\n"), ("71", "1000000000 250000000 2\n")):
        (threads / thread).mkdir()
        (threads / thread / "schedstat").write_text(text)
    (threads / "72").mkdir()
    (threads / "72" / "schedstat").symlink_to("ended")
    assert device_state(CPU) == LOAD | {"ran_s": 4, "waited_s": 0.75}


def test_a_cpu_has_the_load_average_alone(monkeypatch):
    assert device_state(CPU) == LOAD
    monkeypatch.setattr(os, "getloadavg", refuse)  # as Android and some containers do
    assert device_state(CPU) is None
    monkeypatch.delattr(os, "getloadavg")  # Windows has none
    assert device_state(CPU) is None


@needs_cuda
def test_the_state_of_a_real_gpu():
    torch.zeros(1, device="cuda")
    state = device_state(resolve_device("cuda"))
    if "sm_clock_mhz" not in state:
        pytest.skip("no working nvidia-ml-py")
    assert state["sm_clock_mhz"] is None or 0 < state["sm_clock_mhz"] < 10_000
    assert state["throttle_reasons"] is None or {*state["throttle_reasons"]} <= {*REASONS}
    json.dumps(state, allow_nan=False)

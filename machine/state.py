"""The device's state before and after a training: clocks, temperature, load, other processes.

A GPU is asked through NVML, by NVIDIA's binding ``pynvml`` (package nvidia-ml-py).  Where that is
not installed, or there is no driver, nothing is known of it.
"""

import functools
import os
from contextlib import suppress
from pathlib import Path

from machine.device import gpu_uuid

# The bits of the reasons for a lower clock, from the lowest on (nvmlClocksEventReasons in nvml.h).
REASONS = ("gpu_idle", "applications_clocks_setting", "sw_power_cap", "hw_slowdown", "sync_boost")
REASONS += ("sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
REASONS += ("display_clocks_setting",)
THREADS = Path("/proc/self/task")  # Linux: of this process


@functools.cache  # NVML stays initialized as long as the process lives
def _nvml():
    """NVIDIA's binding, initialized; None where it is missing or there is no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _ask(function, *arguments):
    """What an NVML function answers; None where this binding, driver or GPU lacks it."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        return getattr(nvml, function)(*arguments)
    except (AttributeError, nvml.NVMLError):
        return None


def driver_version():
    """The NVIDIA driver's version, or None."""
    return _ask("nvmlSystemGetDriverVersion")


def device_state(device):
    """Clocks, temperature and company of a device now; None where nothing is known.

    ``load_average_1min`` is that of the host, ``cores`` what this process may use of it; on Linux
    ``ran_s`` and ``waited_s`` are for how long its threads ran until now, and were ready to but had
    no core.  For a GPU there are MHz and degrees Celsius too, each None where it does not tell.
    Not for inside a timed region.
    """
    load = {}
    with suppress(AttributeError, OSError):  # Windows has none, a container may hide it
        load = {"load_average_1min": os.getloadavg()[0], "cores": _cores()}
    of_gpu = _gpu_state(device) if device.type == "cuda" else {}
    return load | _core_seconds() | of_gpu or None


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _core_seconds():
    """How long this process's threads ran and waited for a core; empty where that is not told."""
    nanoseconds = []
    for path in THREADS.glob("*/schedstat"):
        with suppress(OSError):  # a thread that has just ended
            nanoseconds.append([int(number) for number in path.read_text().split()[:2]])
    if not nanoseconds:
        return {}
    ran, waited = map(sum, zip(*nanoseconds, strict=True))
    return {"ran_s": ran / 1e9, "waited_s": waited / 1e9}


def _gpu_state(device):
    """What NVML tells of a GPU; empty where it tells nothing."""
    nvml = _nvml()
    gpu = _ask("nvmlDeviceGetHandleByUUID", gpu_uuid(device))
    if gpu is None:
        return {}
    bits = _ask("nvmlDeviceGetCurrentClocksEventReasons", gpu)
    reasons = None
    if bits is not None:
        reasons = [word for bit, word in enumerate(REASONS) if bits >> bit & 1]
    return {
        "sm_clock_mhz": _ask("nvmlDeviceGetClockInfo", gpu, nvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": _ask("nvmlDeviceGetMaxClockInfo", gpu, nvml.NVML_CLOCK_SM),
        "temperature_c": _ask("nvmlDeviceGetTemperature", gpu, nvml.NVML_TEMPERATURE_GPU),
        "throttle_reasons": reasons,
        "other_processes": _other_processes(gpu),
    }


def _other_processes(gpu):
    """How many compute processes besides this one are on a GPU."""
    processes = _ask("nvmlDeviceGetComputeRunningProcesses", gpu)
    listed = {process.pid for process in processes or ()}
    # where this process is not listed (it has not used the GPU yet, or a container hides the
    # numbers that the driver goes by), the others cannot be told from it
    return len(listed) - 1 if os.getpid() in listed else None

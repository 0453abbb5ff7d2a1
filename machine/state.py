"""The device's state before and after a training: clocks, temperature, load, other processes."""

import functools
import math
import os
import subprocess

from machine.device import gpu_uuid

COMMAND_SECONDS = 10  # that git or nvidia-smi may take before their answer counts as unknown


def _load_average():
    """Processes that wanted to run in the last minute, or None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


# --- the device's state ------------------------------------------------------------------------
# What nvidia-smi calls the numbers of a GPU's state.
GPU_NUMBERS = {
    "sm_clock_mhz": "clocks.sm",
    "max_sm_clock_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "utilization_percent": "utilization.gpu",
}
REASON_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # older drivers
# The bits of that field from the lowest on (nvmlClocksEventReasons in NVIDIA's nvml.h).
REASONS = (
    "gpu_idle",
    "applications_clocks_setting",
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "display_clocks_setting",
)


def _nvidia_smi(query, uuid=None):
    """What nvidia-smi answers about one GPU, or all: a list of texts for each line.

    Raises OSError or subprocess.SubprocessError where it is missing, fails or takes too long.
    """
    done = subprocess.run(
        [
            *("nvidia-smi", query, "--format=csv,noheader,nounits"),
            *([] if uuid is None else [f"--id={uuid}"]),
        ],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=COMMAND_SECONDS,
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return [[text.strip() for text in line.split(",")] for line in lines]


@functools.cache  # a driver stays while a process lives, and a hanging nvidia-smi costs time once
def _driver_version():
    try:
        return _nvidia_smi("--query-gpu=driver_version")[0][0]  # the same for every GPU
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _number(text):
    """nvidia-smi's text as a number; None for [N/A], [Not Supported] and the like."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _reason_words(text):
    """The words of a bit mask such as 0x0000000000000024; None where it is no number."""
    try:
        mask = int(text, 16)
    except ValueError:
        return None
    known = [word for bit, word in enumerate(REASONS) if mask >> bit & 1]
    unknown = mask >> len(REASONS) << len(REASONS)  # of a driver newer than this list
    return known + ([hex(unknown)] if unknown else [])


def _gpu_state(uuid):
    """The part of ``device_state`` that one query gives, or None."""
    for reasons in REASON_FIELDS:
        fields = (*GPU_NUMBERS.values(), reasons)
        try:
            rows = _nvidia_smi(f"--query-gpu={','.join(fields)}", uuid)
        except subprocess.CalledProcessError:  # as for a field that this driver does not know
            continue
        if [len(row) for row in rows] == [len(fields)]:
            *numbers, mask = rows[0]
            state = dict(zip(GPU_NUMBERS, map(_number, numbers), strict=True))
            return state | {"throttle_reasons": _reason_words(mask)}
    return None


def _other_processes(uuid):
    """How many compute processes besides this one are on a GPU, or None where that is unknown."""
    try:
        listed = {row[0] for row in _nvidia_smi("--query-compute-apps=pid", uuid)}
    except (OSError, subprocess.SubprocessError):
        return None
    # where this process is not listed (it has not used the GPU yet, or a container hides the
    # numbers that nvidia-smi goes by), the others cannot be told from it
    return len(listed) - 1 if str(os.getpid()) in listed else None


def device_state(device):
    """Clocks, temperature, power and company of a device now; None where nothing is known.

    For a GPU the keys of ``GPU_NUMBERS``, ``throttle_reasons`` (a list of words)
    and ``other_processes``, each None where nvidia-smi does not tell; for a CPU
    ``load_average_1min``.  Takes a fraction of a second on a GPU: not for inside a timed region.
    """
    if device.type != "cuda":
        load = _load_average()
        return None if load is None else {"load_average_1min": load}
    uuid = gpu_uuid(device)
    try:
        state = None if uuid is None else _gpu_state(uuid)
    except (OSError, subprocess.SubprocessError):
        return None
    return None if state is None else state | {"other_processes": _other_processes(uuid)}

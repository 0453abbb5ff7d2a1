"""The device that computes: its name, its memory running out, waiting for it."""

import platform
import re
from pathlib import Path

import torch

from machine.command import counted

# Every form in which CUDA, its libraries or the system say that memory ran out, the second on
# Windows; the last is how the system ends a process for want of memory.
MEMORY_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
MEMORY_SIGNS += ("exit code -9",)


def resolve_device(name):
    """The torch.device that ``name`` means; ValueError where this machine has no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(:(\d+))?", str(name))
    if match is None:
        raise ValueError(f"--device {name!r}: choose auto, cpu, cuda or cuda:N")
    index, count = int(match[2] or 0), torch.cuda.device_count()
    if index >= count:
        raise ValueError(f"--device {name}: this machine has {counted(count, 'such GPU')}")
    return torch.device("cuda", index)


def synchronize(device):
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error):
    """Does an exception say that memory ran out?"""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in MEMORY_SIGNS)


def cpu_name():
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_name(device):
    """The GPU's name, or the CPU's with the threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()} ({counted(torch.get_num_threads(), 'thread')})"


def gpu_uuid(device):
    """A CUDA device's uuid as NVML writes it.

    An index would mislead: NVML does not know of CUDA_VISIBLE_DEVICES.
    """
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"

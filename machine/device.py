"""The device that computes: its name, its memory running out, waiting for it."""

import os
import platform
from pathlib import Path

import torch

KILLED = "exit code -9"  # of a process that the system ended, as it does for want of memory
# Where PyTorch's allocator is told how to work; every version reads the first.
ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"
FRAGMENTED = 0.1  # the unused share of the memory that PyTorch holds, from which on it is mentioned


# --- the device --------------------------------------------------------------------------------
def resolve_device(name):
    """The torch.device that ``name`` means; ValueError where this machine has no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r}: choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: only cpu and cuda are measured here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} such GPUs")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error):
    """True for every form in which CUDA, its libraries or the system say that memory ran out."""
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED", KILLED)
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def fragmentation_remedy(device):
    """What may help, in words, where a GPU's memory ran out and much of it was not in use; or "".

    Ask right after the error: by then the allocator has given back whatever it could, and what it
    still holds unused are blocks that are too small, or kept for recorded CUDA graphs.  Expandable
    segments let neighbouring blocks join ("Memory management" in PyTorch's notes on CUDA
    semantics); the setting is read when a process starts.
    """
    settings = [os.environ.get(name, "") for name in ALLOCATOR_SETTINGS]
    if device.type != "cuda" or EXPANDABLE in ",".join(settings):
        return ""
    held = torch.cuda.memory_reserved(device)
    unused = held - torch.cuda.memory_allocated(device)
    if unused < FRAGMENTED * held:
        return ""
    return (
        f"{unused / 2**30:.1f} of the {held / 2**30:.1f} GiB that PyTorch held were not in use, or "
        f"kept for CUDA graphs: {ALLOCATOR_SETTINGS[0]}={EXPANDABLE} helps against fragmentation"
    )


def _cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_name(device):
    """The GPU's name, or the CPU's with the threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()} ({torch.get_num_threads()} threads)"


def gpu_uuid(device):
    """A CUDA device's uuid as nvidia-smi writes it, or None where PyTorch does not tell.

    An index would mislead: nvidia-smi does not know of CUDA_VISIBLE_DEVICES.
    """
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is None:
        return None
    return str(uuid) if str(uuid).startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"

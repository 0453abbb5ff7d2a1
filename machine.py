"""The machine that a measurement runs on: its device, what describes it, and memory on a CPU."""

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

KILLED = "exit code -9"  # of a process that the system ended, as it does for want of memory


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


def check_writable(*folders):
    """Raise OSError before hours of training for a folder that could not take the results."""
    for folder in map(Path, folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(
                f"{folder} cannot be written ({error.strerror}): choose another --output-dir or "
                "--plots-dir"
            ) from None


# --- what describes it -------------------------------------------------------------------------


def _git_revision():
    """The commit of this checkout, with + where files differ from it; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        revision, changes = (
            subprocess.run(
                ["git", "-C", folder, *words],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if changes else "")


def _cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe_environment(device):
    """The versions and the device that a result belongs to, as a JSON-like dict."""
    cuda = device.type == "cuda"
    threads = torch.get_num_threads()
    return {
        "device_name": torch.cuda.get_device_name(device)
        if cuda
        else f"{_cpu_name()} ({threads} threads)",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "threads": threads,
        "logical_cpus": os.cpu_count(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_revision": _git_revision(),
    }


# --- memory on a CPU ---------------------------------------------------------------------------
# A process's high-water mark never falls, so one measurement's would leak into the next one's
# figure: each is made in a process of its own.


def _resident_mb(peak):
    """Resident memory of this process, now or at its peak, in MB; None where it cannot be read."""
    try:
        status = Path("/proc/self/status").read_text()
        line = next(s for s in status.splitlines() if s.startswith("VmHWM" if peak else "VmRSS"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        pass
    try:
        import resource  # not on Windows

        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except ImportError:
        return None
    return usage / 2**20 if sys.platform == "darwin" else usage / 1024


def growth_in_child(module, function, job):
    """Growth of resident memory in MB while a fresh process does some work.

    ``module.function(**job)`` prepares the work and returns it as a function without arguments,
    which alone is measured; ``job`` must survive JSON.  NaN where the system does not tell;
    RuntimeError where the child failed (see ``is_out_of_memory``).
    """
    folder = str(Path(__file__).resolve().parent)
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); import machine, {module}; "
        f"machine.measure_growth({module}.{function})"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps({"threads": torch.get_num_threads(), "job": job}),
        capture_output=True,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the child
    )
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise RuntimeError(f"the process that measures memory failed: {last}")
    growth = json.loads(child.stdout.splitlines()[-1])
    return math.nan if growth is None else growth


def measure_growth(function):
    """The child's side of ``growth_in_child``: the job on stdin, the growth on stdout."""
    order = json.load(sys.stdin)
    torch.set_num_threads(order["threads"])
    work = function(**order["job"])
    before = _resident_mb(peak=False)
    work()
    after = _resident_mb(peak=True)
    print(json.dumps(None if before is None else after - before))

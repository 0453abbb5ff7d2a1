"""The machine that a measurement runs on: its device, what describes it and the code, its state
before and after a training, and memory on a CPU.

Everything here is read and recorded; no setting of the machine is ever changed.
"""

import functools
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

KILLED = "exit code -9"  # of a process that the system ended, as it does for want of memory
CHANGES = ("status", "--porcelain", "--untracked-files=no")  # results and figures are untracked
# Where PyTorch's allocator is told how to work; every version reads the first.
ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"
FRAGMENTED = 0.1  # the unused share of the memory that PyTorch holds, from which on it is mentioned
COMMAND_SECONDS = 10  # that git or nvidia-smi may take before their answer counts as unknown
FOLDER = Path(__file__).resolve().parent
# The files that can change what a training gives, in the order in which they are hashed.
SOURCES = (
    "gpt.py",
    "gpt_win.py",
    "window_attention.py",
    "rotary.py",
    "embedding.py",
    "linear.py",
    "train_model.py",
    "distributed.py",
    "prepare_data.py",
    "machine.py",
    "compare_models.py",
)


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


# --- the code ----------------------------------------------------------------------------------


def _git(folder, *words):
    """What a git command in ``folder`` prints, as bytes; None where it fails or git is missing."""
    command = ["git", "-C", folder, *words]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=COMMAND_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _git_revision(folder=FOLDER):
    """The commit of this checkout, with + where files differ from it; None outside a checkout."""
    revision, dirty = _revision(folder)
    return None if dirty is None else revision[:12] + "+" * dirty


def _revision(folder):
    """The commit of this checkout and whether files differ from it, None for what is not known."""
    revision, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, *CHANGES)
    return (
        None if revision is None else revision.decode().strip(),
        None if revision is None or changes is None else bool(changes),
    )


def describe_code(folder=FOLDER):
    """Which code a result belongs to, as a JSON-like dict; None for what is not known.

    ``revision``, ``branch`` (None where no branch is checked out), ``dirty`` (files that git
    knows differ from the revision) and ``diff_sha256`` (of ``git diff HEAD``, where dirty) are
    None outside a checkout; ``sources_sha256`` is known everywhere.
    """
    code = dict.fromkeys(("revision", "branch", "dirty", "diff_sha256"))
    code["revision"], code["dirty"] = _revision(folder)
    if code["revision"] is not None:
        branch = _git(folder, "symbolic-ref", "--quiet", "--short", "HEAD")
        code["branch"] = branch.decode(errors="replace").strip() if branch else None
        code["diff_sha256"] = _diff_sha256(folder) if code["dirty"] else None
    return code | {"sources_sha256": _sources_sha256(folder)}


def _diff_sha256(folder):
    diff = _git(folder, "diff", "--no-ext-diff", "--no-textconv", "--binary", "HEAD")
    return None if diff is None else hashlib.sha256(diff).hexdigest()


def _sources_sha256(folder):
    """One hash of the names and bytes of ``SOURCES``, wherever they lie; None if one is missing."""
    digest = hashlib.sha256()
    try:
        for name in SOURCES:
            content = Path(folder, name).read_bytes()
            # the length keeps a byte that moves from one file into the next from going unseen
            digest.update(f"{name} {len(content)}\n".encode() + content)
    except OSError:
        return None
    return digest.hexdigest()


# --- the environment ---------------------------------------------------------------------------
# The only environment variables that are recorded: a whole environment holds secrets.
RECORDED_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
)
RECORDED_PREFIXES = ("PYTORCH_", "CUBLAS_", "TORCH")
OF_A_LAUNCH = "TORCHELASTIC_"  # torchrun's own, with a number that is new in every launch
A_PATH = "(a path)"
SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL")


def _recorded_variables():
    """The allowed variables that are set; of one that holds a path only that it is set."""
    recorded = {name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ}
    for name, value in os.environ.items():
        if name.startswith(OF_A_LAUNCH) or any(word in name for word in SECRET_WORDS):
            continue
        if name.startswith(RECORDED_PREFIXES):
            # folders for caches and logs would name the user
            recorded[name] = A_PATH if "/" in value or "\\" in value else value
    return dict(sorted(recorded.items()))


def _cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _affinity_cpus():
    """How many CPUs this process may use, or None where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _ram_mb():
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def _load_average():
    """Processes that wanted to run in the last minute, or None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _in_container(root="/"):
    """Do this system's files look like a container's?  None where there is no /proc to look at."""
    marks = (".dockerenv", "run/.containerenv", "run/systemd/container")
    if any(os.path.exists(os.path.join(root, mark)) for mark in marks):
        return True
    try:
        groups = Path(root, "proc/1/cgroup").read_text()
    except OSError:
        return None
    return any(word in groups for word in ("docker", "kubepods", "containerd", "lxc", "podman"))


def _version(package):
    """An installed package's version without importing it, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _setting(read):
    """``read()``, or None: PyTorch refuses where its old and new TF32 settings were both used."""
    try:
        return read()
    except RuntimeError:
        return None


def _describe_gpu(device):
    """What identifies a CUDA device, and the settings that its arithmetic depends on."""
    properties = torch.cuda.get_device_properties(device)
    uuid = gpu_uuid(device)
    return {
        "name": properties.name,
        "uuid": uuid,
        "index": device.index,
        "count": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "memory_mb": properties.total_memory / 2**20,
        "driver": _driver_version(),
        "tf32_matmul": _setting(lambda: torch.backends.cuda.matmul.allow_tf32),
        "tf32_cudnn": _setting(lambda: torch.backends.cudnn.allow_tf32),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def device_name(device):
    """The GPU's name, or the CPU's with the threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()} ({torch.get_num_threads()} threads)"


def describe_environment(device):
    """The versions and the device that a result belongs to, as a JSON-like dict.

    None stands for what is not known.  Nothing personal is in it: no host, no user, no folder.
    """
    cuda = device.type == "cuda"
    return {
        "device_name": device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "float32_matmul_precision": _setting(torch.get_float32_matmul_precision),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
        "logical_cpus": os.cpu_count(),
        "affinity_cpus": _affinity_cpus(),
        "ram_mb": _ram_mb(),
        "load_average_1min": _load_average(),
        "container": _in_container(),
        "numpy": np.__version__,
        "scipy": _version("scipy"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gpu": _describe_gpu(device) if cuda else None,
        "variables": _recorded_variables(),
        "git_revision": _git_revision(),
    }


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


def gpu_uuid(device):
    """A CUDA device's uuid as nvidia-smi writes it, or None where PyTorch does not tell.

    An index would mislead: nvidia-smi does not know of CUDA_VISIBLE_DEVICES.
    """
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is None:
        return None
    return str(uuid) if str(uuid).startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


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
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import machine, {module}; "
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

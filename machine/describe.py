"""What a result belongs to: the code, its versions, the machine and the device.

Everything here is read and recorded; no setting of the machine is ever changed.
"""

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from machine.device import _cpu_name, device_name, gpu_uuid
from machine.state import COMMAND_SECONDS, _driver_version, _load_average

CHANGES = ("status", "--porcelain", "--untracked-files=no")  # results and figures are untracked
FOLDER = Path(__file__).resolve().parents[1]
# The files that can change what a training gives, in the order in which they are hashed.
SOURCE_PATTERNS = (
    "gpt.py",
    "gpt_win.py",
    "embedding.py",
    "linear.py",
    "attention/*.py",
    "training/*.py",
    "machine/ranks.py",
    "experiment/plan.py",
)
SOURCES = tuple(
    path.relative_to(FOLDER).as_posix()
    for pattern in SOURCE_PATTERNS
    for path in sorted(FOLDER.glob(pattern))
)


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


def _affinity_cpus():
    """How many CPUs this process may use, or None where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _ram_mb():
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    except (AttributeError, ValueError, OSError):  # not on Windows
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

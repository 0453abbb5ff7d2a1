"""What a result belongs to: the code, its versions, the machine and the device.

Everything here is read and recorded; no setting of the machine is ever changed.
"""

import hashlib
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

from machine.device import cpu_name, device_name, gpu_uuid
from machine.state import driver_version

FOLDER = Path(__file__).resolve().parents[1]
# The files that can change what a training gives.
SOURCE_PATTERNS = ("gpt.py", "gpt_win.py", "embedding.py", "linear.py", "attention/*.py")
SOURCE_PATTERNS += ("training/*.py", "machine/ranks.py", "experiment/plan.py")

# The only environment variables that are recorded: a whole environment holds secrets and folders.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NVIDIA_TF32_OVERRIDE")
VARIABLES += ("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
VARIABLES += ("TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_FREEZING", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


def describe_code(folder=FOLDER):
    """Which code a result belongs to, as a JSON-like dict.

    ``revision`` and ``dirty`` (files below the folder that git knows differ from the revision) are
    None where git does not know the folder's own files: outside a checkout, or in a copy that lies
    in somebody else's.  ``sources_sha256`` is known everywhere.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", "gpt.py")
        revision = _git(folder, "rev-parse", "HEAD")
        # results and figures are untracked
        dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no", "."))
    except (OSError, subprocess.SubprocessError):
        revision = dirty = None
    return {"revision": revision, "dirty": dirty, "sources_sha256": _sources_sha256(folder)}


def _git(folder, *words):
    """What git says of the checkout around a folder, whatever repository the environment names."""
    command = ["git", "-C", folder, *words]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    how = {"capture_output": True, "check": True, "timeout": 10, "env": environment}
    return subprocess.run(command, **how).stdout.decode(errors="replace").strip()


def _sources_sha256(folder):
    """One hash of the names and bytes of the files that ``SOURCE_PATTERNS`` mean."""
    digest = hashlib.sha256()
    for pattern in SOURCE_PATTERNS:
        for path in sorted(Path(folder).glob(pattern)):
            content = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            # the length keeps a byte that moves from one file into the next from going unseen
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


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
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "logical_cpus": os.cpu_count(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gpu": _describe_gpu(device) if cuda else None,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _describe_gpu(device):
    """What identifies a CUDA device, and the settings that its arithmetic depends on."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "uuid": gpu_uuid(device),
        "memory_mb": properties.total_memory / 2**20,
        "driver": driver_version(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
    }

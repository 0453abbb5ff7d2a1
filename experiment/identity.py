"""What must not change inside an experiment, and where two experiments differ."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from machine.describe import A_PATH, describe_code, describe_environment
from machine.files import file_sha256
from training.tokens import TOKENIZER_NAME
from training.trainer import deterministic_algorithms

NOT_IDENTITY = ("preset", "data", "output_dir", "plots_dir")  # names and places, no influence
# options that experiments before them lack: no part of the identity while they change nothing
ADDED_LATER = {"positions": "learned", "sink_tokens": 0, "schedule": "cosine"}
ADDED_LATER |= {"gradient_accumulation": 1, "world_size": 1, "backend": "none"}
# what the plan rests on, and what makes curves of other steps: never to be mixed
PLANNED = tuple(
    f"config.{name}:"
    for name in ("runs", "seed", "arms", "equivalence_margin", "seq_len", "batch_size", "max_steps")
) + ("config.world_size:",)


def tokenizer_of(dataset):
    """Where the tokenizer of a dataset lies, if there is one: beside its file."""
    return Path(dataset.path).resolve().parent / TOKENIZER_NAME


# --- the experiment ----------------------------------------------------------------------------
def identity_of_config(config):
    """The part of a configuration that decides what is trained."""
    chosen = _plain(asdict(config)).items()
    return {k: v for k, v in chosen if k not in NOT_IDENTITY and (k, v) not in ADDED_LATER.items()}


def identity_of(config, dataset, environment, code):
    """What must not change inside an experiment, for its trainings to be compared."""
    gpu = environment.get("gpu") or {}
    keys = ("device_name", "torch", "cuda", "cudnn", "float32_matmul_precision")
    # PyTorch itself sets some that name a folder, in the middle of a process
    variables = environment.get("variables", {}).items()
    variables = {name: value for name, value in variables if value != A_PATH}
    return {
        "config": identity_of_config(config),
        "code": code["sources_sha256"],
        "data": file_sha256(dataset.path),
        "tokenizer": file_sha256(tokenizer_of(dataset)),
        "device": {key: environment.get(key) for key in keys}
        | {"variables": variables}
        | {key: gpu.get(key) for key in ("uuid", "driver", "tf32_matmul", "tf32_cudnn")},
    }


def _plain(config):
    """A configuration as JSON gives it back."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()}


def can_be_mixed(changed):
    """May --allow-mixed go on although this differs (lines of ``identities_differ``)?"""
    return not any(line.startswith(PLANNED) for line in changed)


def identity_here(config, dataset):
    """``identity_of`` an experiment that would be begun here and now."""
    with deterministic_algorithms(config.deterministic):
        environment = describe_environment(torch.device(config.device))
        return identity_of(config, dataset, environment, describe_code())


def differences(one, other, words=("before", "now"), path=""):
    """Where two JSON-like dicts differ, a line for each place: "config.lr: 0.1 before, 0.2 now"."""
    lines = []
    for key in dict.fromkeys([*one, *other]):
        old, new = one.get(key), other.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, words, f"{path}{key}.")
        elif old != new:
            lines.append(f"{path}{key}: {_short(old)} {words[0]}, {_short(new)} {words[1]}")
    return lines


def identities_differ(one, other, words=("before", "now")):
    """``differences`` of two experiments' identities, in what is known of both."""
    if any(identity["device"].get("driver") is None for identity in (one, other)):
        # nvidia-smi may once take too long to answer
        one, other = (i | {"device": i["device"] | {"driver": None}} for i in (one, other))
    return differences(one, other, words)


def _short(value):
    """A checksum by its first digits, anything else as it is."""
    text = json.dumps(value)
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else text

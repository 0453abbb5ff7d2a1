"""What must not change inside an experiment, and where two experiments differ."""

import json
from dataclasses import asdict

import torch

from machine.files import file_sha256
from training.tokens import find_tokenizer

NOT_IDENTITY = ("preset", "data", "output_dir", "plots_dir")  # names and places, no influence
# What the plan rests on, and what gives the curves other steps: not even --allow-mixed mixes these.
PLANNED = ("runs", "seed", "arms", "equivalence_margin", "seq_len", "batch_size", "max_steps")
PLANNED += ("world_size", "shard_sequence", "eval_every")


def plain_config(config):
    """A configuration as JSON gives it back."""
    return json.loads(json.dumps(asdict(config)))


def identity_of_config(config):
    """The part of a configuration that decides what is trained."""
    chosen = {k: v for k, v in plain_config(config).items() if k not in NOT_IDENTITY}
    # an experiment may go on on another GPU of the same model
    return chosen | {"device": torch.device(config.device).type}


def identity_of(config, dataset, environment, code):
    """What must not change inside an experiment, for its trainings to be compared."""
    gpu = environment.get("gpu") or {}
    of_torch = ("device_name", "torch", "cuda", "cudnn", "float32_matmul_precision")
    device = {key: environment.get(key) for key in of_torch}
    device |= {key: gpu.get(key) for key in ("driver", "tf32_matmul", "tf32_cudnn")}
    device["variables"] = dict(environment.get("variables", {}))
    device["variables"].pop("CUDA_VISIBLE_DEVICES", None)  # another GPU of the same model may go on
    return {
        "config": identity_of_config(config),
        "code": code["sources_sha256"],
        "data": file_sha256(dataset.path),
        "tokenizer": file_sha256(find_tokenizer(dataset.path)),
        "device": device,
    }


def differences(before, now, path=""):
    """Where two identities differ, as lines such as "config.lr: 0.1 before, 0.2 now"."""
    lines = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{path}{key}.")
        elif old != new:
            lines.append(f"{path}{key}: {_short(old)} before, {_short(new)} now")
    return lines


def _short(value):
    """A checksum by its first digits, anything else as it is."""
    text = json.dumps(value)
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else text

"""Training ONE model, from a notebook: configuration, training and its measurement.

from train_model import load_dataset, make_config, resolve_device, train
"""

from machine.device import resolve_device
from training.config import PRESETS, ExperimentConfig, make_config
from training.tokens import load_dataset
from training.train import train
from training.trainer import Trainer

__all__ = [
    "PRESETS",
    "ExperimentConfig",
    "Trainer",
    "load_dataset",
    "make_config",
    "resolve_device",
    "train",
]

"""Configurations and rows of tokens that train in a moment."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from training.config import make_config

CPU = torch.device("cpu")
VOCABULARY = 30
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


def tiny_config(**changes):
    """Two layers of width 16, six steps of two rows of 24 tokens."""
    sizes = {"d_model": 16, "n_heads": 2, "layers": 2, "seq_len": 24, "batch_size": 2}
    steps = {"max_steps": 6, "warmup_steps": 2, "lr": 1e-2, "window_size": 5, "dilation": 3}
    return make_config("paper", **{**sizes, **steps, **changes})


def tiny_dataset(rows=20, seq_len=24):
    """Random tokens; the last four rows are held out."""
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(rows, seq_len + 1))
    tokens = tokens.astype(np.uint16)
    return SimpleNamespace(train=tokens[:-4], held_out=tokens[-4:], vocab_size=VOCABULARY)

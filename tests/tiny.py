"""Models, configurations and rows of tokens that are computed and trained in a moment."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt import GPTModel
from training.config import make_config

CPU = torch.device("cpu")
VOCABULARY = 30
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
SIZES = {"d_model": 24, "n_heads": 3, "layers": 2, "vocab_size": 50, "max_seq_len": 40}


def tiny_model(build=GPTModel, seed=0, **changes):
    """A model of two layers of width 24, for 40 tokens of 50 kinds."""
    torch.manual_seed(seed)
    return build(**{**SIZES, **changes})


def big_logits(model):
    """The same model with logits that differ: weights of 0.01 would leave every key alike."""
    for parameter in model.parameters():
        parameter.data.mul_(20 if parameter.ndim > 1 else 1)
    return model


def tiny_tokens(batch=2, seq_len=33, seed=1):
    """Token ids (B, S) for such a model."""
    return torch.randint(50, (batch, seq_len), generator=torch.Generator().manual_seed(seed))


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

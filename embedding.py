"""CustomEmbedding: a table of vectors, looked up by index."""

import torch
from torch import nn


class CustomEmbedding(nn.Module):
    """Embedding (...) of ints -> (..., d_model); the table (entries, d_model) is 0.01 * randn."""

    def __init__(self, entries, d_model):
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(entries, d_model))

    def forward(self, index):
        return nn.functional.embedding(index, self.weight)

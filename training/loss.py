"""The loss of a model, cross-entropy in nats a token: of all logits at once, or in chunks."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def _cross_entropy(logits, targets, reduction):
    return F.cross_entropy(logits.flatten(0, -2).float(), targets, reduction=reduction)


class NextTokenLoss(nn.Module):
    """A model's mean cross-entropy in nats per token, as the module that is compiled and shared.

    chunk: so many tokens have logits at a time, which are computed again in the backward pass
    instead of kept; 0: all at once.  The loss is the same within rounding.
    """

    def __init__(self, model, chunk=0):
        super().__init__()
        self.model = model
        self.chunk = chunk

    def forward(self, inputs, targets):
        targets = targets.flatten()
        if not self.chunk:
            return _cross_entropy(self.model(inputs), targets, "mean")
        features = self.model.last_features(inputs).flatten(0, 1)  # (B * S, C)
        parts = zip(features.split(self.chunk), targets.split(self.chunk), strict=True)
        sums = [checkpoint(self._sum_of, *part, use_reentrant=False) for part in parts]
        return torch.stack(sums).sum() / len(targets)

    def _sum_of(self, features, targets):
        return _cross_entropy(self.model.fc_out(features), targets, "sum")

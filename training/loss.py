"""The loss of a model, cross-entropy in nats a token: of all logits at once, or in chunks."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def token_losses(model, inputs, targets, chunk=0):
    """The loss of every token, (B, S), from token ids and the next ones, (B, S) each.

    model: gives logits (B, S, V).  chunk: see ``NextTokenLoss``; it takes a GPTModel.
    """
    if not chunk:
        return _cross_entropy(model(inputs), targets.flatten(), "none").view_as(inputs)
    features = model.last_features(inputs).flatten(0, 1)
    parts = zip(features.split(chunk), targets.flatten().split(chunk), strict=True)
    losses = [_cross_entropy(model.fc_out(x), next_ones, "none") for x, next_ones in parts]
    return torch.cat(losses).view_as(inputs)


def _cross_entropy(logits, targets, reduction):
    return F.cross_entropy(logits.flatten(0, -2).float(), targets, reduction=reduction)


class NextTokenLoss(nn.Module):
    """A model's mean cross-entropy in nats per token, as the module that is compiled and shared.

    chunk: how many tokens have logits at a time; 0: all.  The logits of a chunk are not kept but
    computed again in the backward pass.  The loss is the same within rounding, and so are gradients
    of weights in float32 or more; for weights in 16 bits the sum over the output layer's chunks is
    rounded.
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
        # Autocast's cache would give all chunks one 16-bit copy of the output layer's weights, and
        # add up the chunks' gradients in its 16 bits.
        kind = features.device.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        with torch.autocast(kind, dtype, enabled, cache_enabled=False):
            return _cross_entropy(self.model.fc_out(features), targets, "sum")

"""Drawing the next token from a model's logits; knows no models.

Letters: B batch, V vocabulary.
"""

import math
from numbers import Real

import torch

from attention.pattern import whole


def check_sampling(temperature, top_k, top_p):
    """Raise ValueError, with the value, for what ``draw`` cannot take."""
    if not isinstance(temperature, Real) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a finite number, at least 0, got {temperature!r}")
    if top_k is not None:
        whole("top_k", top_k, 1)
    if top_p is not None and not (isinstance(top_p, Real) and 0 < top_p <= 1):
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p!r}")


def draw(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Token ids (B,) from logits (B, V), with the probabilities softmax(logits / temperature).

    temperature 0 is greedy: the token with the largest logit, the first of equal ones.
    top_k: only the k most probable tokens; top_p: of what is left the smallest set of most probable
    tokens that together reach the probability top_p (Holtzman et al. 2020), never none.
    generator: a torch.Generator on the logits' device; None: PyTorch's own random state.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float()
    # the largest becomes 0, so that the smallest temperature leaves no infinity
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, 1e-30)
    ids = None
    if top_k is not None or top_p is not None:
        scaled, ids = scaled.topk(min(top_k or scaled.shape[-1], scaled.shape[-1]))
    probabilities = scaled.softmax(dim=-1)
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities
        beyond = before >= top_p
        beyond[:, 0] = False
        probabilities = probabilities.masked_fill(beyond, 0.0)
    chosen = torch.multinomial(probabilities, 1, generator=generator)
    return (chosen if ids is None else ids.gather(-1, chosen)).squeeze(-1)

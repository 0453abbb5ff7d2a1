"""What attention is timed against: the peers, the problem they solve, and the check of each.

A peer claims to which keys it attends; one that computes something else is not timed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention import dense_attention, may_attend, window_attention, window_mask
from benchmarks.timing import Unavailable
from training.config import DTYPES

# what is timed: whole sequences, or the last query of one, whose keys and values are stored
FORWARD, TRAINING, ONE_TOKEN = "forward", "forward + backward", "one token"
ALL_KEYS, PATTERN, NEAR_ONLY = "all keys", "near + far", "near only"
ALL_DTYPES = {**DTYPES, "float16": torch.float16}
CHECKED_TOKENS = 384
LARGEST_ERROR = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 1e-2}


@dataclass(frozen=True)
class Case:
    """One attention problem; q, k, v are (B, S, H, D)."""

    batch_size: int
    seq_len: int
    heads: int
    head_dim: int
    window_size: int
    dilation: int
    dtype: str
    device: str

    def pattern(self, attends=PATTERN):
        """(window_size, dilation) of what a peer claims to attend to."""
        if attends == ALL_KEYS:
            return 1, 1
        if attends == NEAR_ONLY:
            return self.window_size, 0
        return self.window_size, self.dilation

    def inputs(self, seed=0):
        """q, k, v as views of one fused projection, as the models have them, and a gradient."""
        generator = torch.Generator(self.device).manual_seed(seed)
        options = {"device": self.device, "dtype": ALL_DTYPES[self.dtype], "generator": generator}
        shape = self.batch_size, self.seq_len, 3, self.heads, self.head_dim
        qkv = [x.detach().requires_grad_() for x in torch.randn(shape, **options).unbind(2)]
        return qkv, torch.randn(qkv[0].shape, **options)


class Peer(NamedTuple):
    """A way to compute attention, which ``make(case)`` gives as a function of q, k and v.

    That function returns (B, S, H, D); for one token it stores k and v and returns a work.
    attends: to which keys; only peers with the same compute the same thing.
    """

    attends: str
    description: str
    make: Callable
    compiled: bool = False


def full_peers(make):
    """The kernels for all keys that PyTorch has, each by ``make(backend, case)``."""
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    efficient = SDPBackend.EFFICIENT_ATTENTION
    return {
        "flash": Peer(ALL_KEYS, "FlashAttention", partial(make, flash)),
        "cudnn": Peer(ALL_KEYS, "cuDNN's kernel", partial(make, cudnn)),
        "efficient": Peer(ALL_KEYS, "memory-efficient kernel", partial(make, efficient)),
    }


def _evaluation(evaluation, case):
    w, d = case.pattern()
    return lambda q, k, v: window_attention(q, k, v, w, d, evaluation)


def _compiled(function):
    return torch.compile(function, fullgraph=True, dynamic=False)


def _heads_first(run):
    """A function of q, k, v (B, S, H, D) from one of (B, H, S, D)."""

    def attend(*qkv):
        return run(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2)

    return attend


def _sdpa(backend, case):
    """PyTorch's full causal attention by one of its kernels, which must be the one that runs."""

    def attend(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return _heads_first(attend)


def _flex(case):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    w, d = case.pattern()

    def kept(batch, head, query, key):
        return may_attend(query, key, w, d)

    mask = create_block_mask(kept, None, None, case.seq_len, case.seq_len, case.device)
    return _heads_first(partial(_compiled(flex_attention), block_mask=mask))


def _local_attention(case):
    from local_attention import LocalAttention  # optional

    options = {"causal": True, "look_backward": 1, "exact_windowsize": True, "autopad": True}
    options["use_rotary_pos_emb"] = False
    return _heads_first(LocalAttention(case.window_size, **options))


PEERS = {
    "split": Peer(PATTERN, "this project's split evaluation", partial(_evaluation, "split")),
    "split-compiled": Peer(
        PATTERN, "the same compiled", lambda case: _compiled(_evaluation("split", case)), True
    ),
    "masked": Peer(PATTERN, "PyTorch's kernels with a mask", partial(_evaluation, "masked")),
    "dense": Peer(PATTERN, "textbook attention with a mask", partial(_evaluation, "dense")),
    "flex": Peer(PATTERN, "FlexAttention with a block mask, compiled", _flex, True),
    **full_peers(_sdpa),
    "local-attention": Peer(NEAR_ONLY, "the package of that name", _local_attention),
}


def work_of(attend, qkv, upstream, timed):
    """The work that ``timed`` names, of a function that a peer made."""
    if timed == TRAINING:
        return lambda: torch.autograd.grad(attend(*qkv), qkv, upstream)
    q, k, v = (x.detach() for x in qkv)
    if timed == ONE_TOKEN:
        return attend(q[:, -1:].clone(), k, v)
    return lambda: attend(q, k, v)


def error_of(peer, case, timed):
    """The largest relative error of a peer's results in a small problem like ``case``.

    Results are the output, or the gradients of q, k and v; the truth is textbook attention in
    float64 over the keys that the peer claims.  Raises Unavailable where the error is larger than
    rounding explains.
    """
    window = min(case.window_size, CHECKED_TOKENS // 4)
    batch_size = min(case.batch_size, 2)
    small = replace(case, batch_size=batch_size, seq_len=CHECKED_TOKENS, window_size=window)
    qkv, upstream = small.inputs(seed=1)
    results = work_of(peer.make(small), qkv, upstream, timed)()
    exact = [x.detach().double().requires_grad_() for x in qkv]
    mask = window_mask(small.seq_len, *small.pattern(peer.attends), small.device)
    out = dense_attention(*exact, mask)
    truths = torch.autograd.grad(out, exact, upstream.double())
    if timed != TRAINING:
        results, truths = [results], [out[:, -results.shape[1] :]]
    errors = []
    for result, truth in zip(results, truths, strict=True):
        errors.append(((result - truth).norm() / truth.norm()).item())
        if not errors[-1] <= LARGEST_ERROR[case.dtype]:  # NaN is not
            raise Unavailable(
                f"gives other results than textbook attention, relative error {errors[-1]:.2g}"
            )
    return max(errors)

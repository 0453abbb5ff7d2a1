"""What attention is timed against: the peers, the problem they solve, and the check of each.

A peer claims to which keys it attends; one that computes something else is ``Unavailable``.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention.choose import window_attention
from attention.full import dense_attention
from attention.pattern import may_attend, window_mask
from training.config import DTYPES

FORWARD, TRAINING = "forward", "forward + backward"
DIRECTIONS = (FORWARD, TRAINING)
ALL_DTYPES = {**DTYPES, "float16": torch.float16}
CHECKED_TOKENS = 384
LARGEST_ERROR = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 1e-2}


class Unavailable(Exception):
    """Why a peer cannot run here, in words."""


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

    @property
    def pattern(self):
        return self.window_size, self.dilation

    def inputs(self, seed=0):
        """q, k, v as views of one fused projection, as the models have them, and a gradient."""
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (self.batch_size, self.seq_len, 3, self.heads, self.head_dim)
        options = {"device": self.device, "dtype": ALL_DTYPES[self.dtype], "generator": generator}
        qkv = [x.detach().requires_grad_() for x in torch.randn(shape, **options).unbind(2)]
        return qkv, torch.randn(qkv[0].shape, **options)


# --- the peers ---------------------------------------------------------------------------------
class Peer(NamedTuple):
    """``make(case)`` gives a function of q, k, v (B, S, H, D), or raises Unavailable.

    attends: to which keys; only those with the same compute the same thing.
    """

    attends: str
    make: Callable
    compiled: bool = False


ALL_KEYS, PATTERN, NEAR_ONLY = "all keys", "near + far", "near only"


def _compiled(function):
    return torch.compile(function, fullgraph=True, dynamic=False)


def _evaluation(evaluation, case):
    w, d = case.pattern
    return lambda q, k, v: window_attention(q, k, v, w, d, evaluation)


def _heads_first(run):
    """A function of q, k, v (B, S, H, D) from one of (B, H, S, D)."""

    def attend(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return run(q, k, v).transpose(1, 2)

    return attend


def _sdpa(backend, case):
    """PyTorch's full causal attention by one of its kernels, which must be the one that runs."""

    def attend(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return _heads_first(attend)


def _flex(case):
    """FlexAttention over the same pattern, compiled, as its documentation advises."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    w, d, S = *case.pattern, case.seq_len
    mask = create_block_mask(
        lambda b, h, query, key: may_attend(query, key, w, d), None, None, S, S, case.device
    )
    return _heads_first(partial(_compiled(flex_attention), block_mask=mask))


def _package(name):
    """An optional package; whatever its import raises is the reason why the peer cannot run."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"cannot import {name} ({error})") from None


def _local_attention(case):
    package = _package("local_attention")
    run = package.LocalAttention(
        window_size=case.window_size,
        causal=True,
        look_backward=1,
        exact_windowsize=True,
        autopad=True,
        use_rotary_pos_emb=False,
    )
    return _heads_first(run)


PEERS = {
    "split": Peer(PATTERN, partial(_evaluation, "split")),
    "split-compiled": Peer(PATTERN, lambda case: _compiled(_evaluation("split", case)), True),
    "masked": Peer(PATTERN, partial(_evaluation, "masked")),
    "dense": Peer(PATTERN, partial(_evaluation, "dense")),
    "flex": Peer(PATTERN, _flex, True),
    "flash": Peer(ALL_KEYS, partial(_sdpa, SDPBackend.FLASH_ATTENTION)),
    "cudnn": Peer(ALL_KEYS, partial(_sdpa, SDPBackend.CUDNN_ATTENTION)),
    "efficient": Peer(ALL_KEYS, partial(_sdpa, SDPBackend.EFFICIENT_ATTENTION)),
    "local-attention": Peer(NEAR_ONLY, _local_attention),
}
DESCRIPTIONS = {
    "split": "window_attention's split evaluation",
    "split-compiled": "the same under torch.compile",
    "masked": "scaled_dot_product_attention with the pattern as a mask",
    "dense": "textbook attention with the pattern as a mask",
    "flex": "PyTorch's FlexAttention, compiled, with the pattern as a block mask",
    "flash": "scaled_dot_product_attention, FlashAttention kernel",
    "cudnn": "scaled_dot_product_attention, cuDNN kernel",
    "efficient": "scaled_dot_product_attention, memory-efficient kernel",
    "local-attention": "LocalAttention of the local-attention package",
}


def allowed_mask(case, attends):
    """The mask (S, S) of the keys that a peer claims to attend to."""
    w, d = {ALL_KEYS: (1, 1), PATTERN: case.pattern, NEAR_ONLY: (case.window_size, 0)}[attends]
    return window_mask(case.seq_len, w, d, case.device)


def _values(attend, qkv, upstream):
    """The output and, as far as the peer can give them, the gradients of q, k and v."""
    q, k, v = (x.detach() for x in qkv)
    out = attend(q, k, v)
    try:
        return [out, *torch.autograd.grad(attend(*qkv), qkv, upstream)]
    except (RuntimeError, NotImplementedError):  # the timing will say why
        return [out]


def error_of(name, case):
    """The peer's largest relative error, output and gradients, in a small problem like ``case``.

    Against textbook attention in float64 over the keys that it claims.  Raises Unavailable where
    the error is larger than its dtype's rounding explains.
    """
    peer, small = PEERS[name], small_case(case)
    qkv, upstream = small.inputs(seed=1)
    values = _values(peer.make(small), qkv, upstream)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    mask = allowed_mask(small, peer.attends)
    attend = partial(dense_attention, mask=mask)
    reference = _values(attend, exact, upstream.double())[: len(values)]
    error = max(
        ((value.double() - expected).norm() / expected.norm()).item()
        for value, expected in zip(values, reference, strict=True)
    )
    return checked_error(error, case)


def small_case(case):
    """A problem like ``case`` that textbook attention in float64 can do."""
    window_size = min(case.window_size, CHECKED_TOKENS // 4)
    batch_size = min(case.batch_size, 2)
    return replace(case, batch_size=batch_size, seq_len=CHECKED_TOKENS, window_size=window_size)


def checked_error(error, case):
    """The relative error; Unavailable where its dtype's rounding does not explain it."""
    if not error <= LARGEST_ERROR[case.dtype]:
        raise Unavailable(
            f"gives other results than textbook attention, relative error {error:.2g}"
        )
    return error

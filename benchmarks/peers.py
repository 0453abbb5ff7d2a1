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

from attention import attended_pairs, window_attention
from attention.cache import KeyValueCache
from attention.choose import attention_plan
from attention.pattern import FULL
from benchmarks.tables import ALL_KEYS, ONE_TOKEN, TRAINING
from benchmarks.timing import Unavailable
from training.arms import patterns_of_arm
from training.trainer import compiled

CHECKED_TOKENS = 384
LARGEST_ERROR = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 1e-2}
KERNELS = {  # of PyTorch, for attention to all keys
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Case:
    """One attention problem; q, k, v are (B, S, H, D)."""

    batch_size: int
    seq_len: int
    heads: int
    head_dim: int
    dtype: str
    device: str
    planned_for: int = 0  # a length whose evaluation is taken instead; 0: that of seq_len

    @property
    def torch_dtype(self):
        """What torch calls ``dtype``."""
        return getattr(torch, self.dtype)

    def pattern(self, attends):
        """The ``Pattern`` of one layer that a peer claims: an arm's name, or ALL_KEYS."""
        if attends == ALL_KEYS:
            return FULL
        of_one_layer = {"layers": 1, "n_heads": self.heads, "sink_tokens": 0}
        pattern = patterns_of_arm(of_one_layer, attends)[0]
        if self.planned_for:  # a window over everything would hide what lies beyond
            narrow = min(pattern.window_size, self.seq_len // 4)
            pattern = pattern._replace(window_size=narrow)
        return pattern

    def evaluation(self, attends):
        """The evaluation that ``auto`` picks in a compiled model."""
        planned = replace(self, seq_len=self.planned_for or self.seq_len, planned_for=0)
        plan = attention_plan(
            planned.seq_len,
            planned.pattern(attends),
            self.heads,
            self.torch_dtype,
            self.device,
            compiled=True,
            head_dim=self.head_dim,
        )
        return plan.evaluation

    def bytes_read(self, attends):
        """The keys and values to which the last query attends, in bytes."""
        a_key = 2 * self.batch_size * self.head_dim * self.torch_dtype.itemsize
        keys = 0
        for head in self.pattern(attends).of_heads(self.heads):
            keys += attended_pairs(self.seq_len, *head) - attended_pairs(self.seq_len - 1, *head)
        return keys * a_key

    def inputs(self, seed=0):
        """q, k, v as views of one fused projection, as the models have them, and a gradient."""
        generator = torch.Generator(self.device).manual_seed(seed)
        options = {"device": self.device, "dtype": self.torch_dtype, "generator": generator}
        shape = self.batch_size, self.seq_len, 3, self.heads, self.head_dim
        qkv = [x.detach().requires_grad_() for x in torch.randn(shape, **options).unbind(2)]
        return qkv, torch.randn(qkv[0].shape, **options)


class Peer(NamedTuple):
    """A way to compute attention, which ``make(attends, case)`` gives as a function of q, k and v.

    That function returns (B, S, H, D); for one token it stores k and v and returns a work.
    attends: to which keys, an arm's name or ALL_KEYS; peers that share it compute the same.
    """

    attends: str
    make: Callable


def known_peers(pattern, arms=(), decode=False):
    """{name: Peer} for whole sequences, or for one new token.

    pattern: the arm whose evaluations are timed beside full attention; arms: these instead, each
    as its compiled model evaluates it.
    """
    if decode:
        windows = {arm: Peer(arm, _cached) for arm in arms} or {"window": Peer(pattern, _cached)}
        full = {"full": Peer(ALL_KEYS, _cached)}
        make_full, kernels = _one_token_sdpa, KERNELS | {"math": SDPBackend.MATH}
    else:
        windows = {arm: Peer(arm, _as_planned) for arm in arms} or {
            "split": Peer(pattern, partial(_evaluation, "split")),
            "split-compiled": Peer(pattern, partial(_compiled, "split")),
            "masked": Peer(pattern, partial(_evaluation, "masked")),
            "dense": Peer(pattern, partial(_evaluation, "dense")),
            "flex": Peer(pattern, partial(_compiled, "flex")),
        }
        full, make_full, kernels = {}, _sdpa, KERNELS
    for name, backend in kernels.items():
        full[name] = Peer(ALL_KEYS, partial(make_full, backend))
    return windows | full


def _evaluation(evaluation, attends, case):
    return partial(window_attention, evaluation=evaluation, **case.pattern(attends)._asdict())


def _compiled(evaluation, attends, case):
    return compiled(_evaluation(evaluation, attends, case), fullgraph=True)


def _as_planned(arm, case):
    return _compiled(case.evaluation(arm), arm, case)


def _sdpa(backend, attends, case):
    """PyTorch's full causal attention by one of its kernels, which must be the one that runs."""

    def attend(*qkv):
        q, k, v = (x.transpose(1, 2) for x in qkv)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return attend


def _cached(attends, case):
    """The models' step for one token, over a cache that has taken the context."""

    def store(q, k, v):
        shape = case.batch_size, case.heads, case.head_dim
        pattern = case.pattern(attends)
        cache = KeyValueCache(shape, case.seq_len, pattern, dtype=k.dtype, device=k.device)
        cache.write(k, v)
        return partial(cache.attend, q)

    return store


def _one_token_sdpa(backend, attends, case):
    """PyTorch's kernel for one token, over keys and values that lie head by head."""

    def store(q, k, v):
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))

        def attend():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

        return attend

    return store


def work_of(attend, qkv, upstream, direction):
    """What a direction times of ``attend``, a function that a peer made, as a work."""
    if direction == TRAINING:
        return lambda: torch.autograd.grad(attend(*qkv), qkv, upstream)
    q, k, v = (x.detach() for x in qkv)
    if direction == ONE_TOKEN:
        return attend(q[:, -1:].clone(), k, v)
    return lambda: attend(q, k, v)


def error_of(peer, case, direction):
    """The largest relative error of a peer's results at a case cut down to CHECKED_TOKENS.

    Results are the output, or the gradients of q, k and v; the truth is textbook attention in
    float64 over the keys that the peer claims.  Raises Unavailable where the error is larger than
    rounding explains.
    """
    sizes = {"batch_size": min(case.batch_size, 2), "seq_len": CHECKED_TOKENS}
    case = replace(case, planned_for=case.seq_len, **sizes)
    qkv, upstream = case.inputs(seed=1)
    results = work_of(peer.make(peer.attends, case), qkv, upstream, direction)()
    exact = [x.detach().double().requires_grad_() for x in qkv]
    pattern = case.pattern(peer.attends)
    out = window_attention(*exact, evaluation="dense", **pattern._asdict())
    truths = torch.autograd.grad(out, exact, upstream.double())
    if direction != TRAINING:
        results, truths = [results], [out[:, -results.shape[1] :]]
    errors, largest = [], max(truth.norm() for truth in truths)
    for result, truth in zip(results, truths, strict=True):
        size = truth.norm() or largest  # dq and dk are 0 where a query sees one key, as in w0-d0
        errors.append(((result - truth).norm() / size).item())
        if not errors[-1] <= LARGEST_ERROR[case.dtype]:  # NaN is not
            raise Unavailable(
                f"gives other results than textbook attention, relative error {errors[-1]:.2g}"
            )
    return max(errors)

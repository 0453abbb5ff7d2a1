"""What attention is timed against: the peers, the problem they solve, and the check of each.

A peer claims to which keys it attends; one that computes something else is not timed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention import attended_pairs, may_attend, window_attention
from attention.cache import KeyValueCache
from attention.choose import attention_plan
from attention.pattern import FULL, Pattern, layer_density
from benchmarks.timing import Unavailable
from training.config import DTYPES, patterns_of_arm

# what is timed: whole sequences, or the last query of one, whose keys and values are stored
FORWARD, TRAINING, ONE_TOKEN = "forward", "forward + backward", "one token"
ALL_KEYS, PATTERN = "all keys", "near + far"
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
    planned_for: int = 0  # the length whose evaluation is taken, where it is another

    def pattern(self, attends=PATTERN):
        """The ``Pattern`` that a peer claims to attend to; attends may be the name of an arm."""
        if attends == ALL_KEYS:
            return FULL
        if attends == PATTERN:
            return Pattern(self.window_size, self.dilation)
        of_one_layer = {"layers": 1, "n_heads": self.heads, "sink_tokens": 0}
        return patterns_of_arm(of_one_layer, attends)[0]

    def density(self, attends):
        """The share of the causal pairs to which a peer attends."""
        return layer_density(self.seq_len, self.pattern(attends), self.heads)

    def evaluation(self, attends):
        """What ``auto`` comes to where it is compiled."""
        seq_len = self.planned_for or self.seq_len
        about = self.pattern(attends), self.heads, ALL_DTYPES[self.dtype], self.device
        return attention_plan(seq_len, *about, compiled=True, head_dim=self.head_dim).evaluation

    def bytes_read(self, attends):
        """The keys and values to which the last query attends, in bytes."""
        a_key = 2 * self.batch_size * self.head_dim * ALL_DTYPES[self.dtype].itemsize
        keys = 0
        for head in self.pattern(attends).of_heads(self.heads):
            keys += attended_pairs(self.seq_len, *head) - attended_pairs(self.seq_len - 1, *head)
        return keys * a_key

    def checked(self):
        """The small problem at which peers are checked, the same for every length."""
        window = min(self.window_size, CHECKED_TOKENS // 4)
        sizes = {"batch_size": min(self.batch_size, 2), "seq_len": CHECKED_TOKENS}
        return replace(self, window_size=window, planned_for=self.seq_len, **sizes)

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


def full_peers(make):
    """The kernels for all keys that PyTorch has, each by ``make(backend, case)``."""
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    efficient = SDPBackend.EFFICIENT_ATTENTION
    return {
        "flash": Peer(ALL_KEYS, "FlashAttention", partial(make, flash)),
        "cudnn": Peer(ALL_KEYS, "cuDNN's kernel", partial(make, cudnn)),
        "efficient": Peer(ALL_KEYS, "memory-efficient kernel", partial(make, efficient)),
    }


def _evaluation(evaluation, case, attends=PATTERN):
    return partial(window_attention, evaluation=evaluation, **case.pattern(attends)._asdict())


def _compiled(function):
    torch._dynamo.config.recompile_limit = 100  # peers are one function with other constants
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

    w, d = case.window_size, case.dilation

    def kept(batch, head, query, key):
        return may_attend(query, key, w, d)

    mask = create_block_mask(kept, None, None, case.seq_len, case.seq_len, case.device)
    return _heads_first(partial(_compiled(flex_attention), block_mask=mask))


def _cached(attends, case):
    """The models' step for one token, over a cache that has taken the context."""

    def store(q, k, v):
        shape = case.batch_size, case.heads, case.head_dim
        pattern = case.pattern(attends)
        cache = KeyValueCache(shape, case.seq_len, pattern, dtype=k.dtype, device=k.device)
        cache.write(k, v)
        return partial(cache.attend, q)

    return store


def _one_token_sdpa(backend, case):
    """PyTorch's kernel for one token, over keys and values that lie head by head."""

    def store(q, k, v):
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))

        def attend():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

        return attend

    return store


PEERS = {
    "split": Peer(PATTERN, "this project's split evaluation", partial(_evaluation, "split")),
    "split-compiled": Peer(
        PATTERN, "the same compiled", lambda case: _compiled(_evaluation("split", case))
    ),
    "masked": Peer(PATTERN, "PyTorch's kernels with a mask", partial(_evaluation, "masked")),
    "dense": Peer(PATTERN, "textbook attention with a mask", partial(_evaluation, "dense")),
    "flex": Peer(PATTERN, "FlexAttention with a block mask, compiled", _flex),
    **full_peers(_sdpa),
}
DECODE_PEERS = {
    "window": Peer(PATTERN, "as the window model generates", partial(_cached, PATTERN)),
    "full": Peer(ALL_KEYS, "as the other models generate", partial(_cached, ALL_KEYS)),
    **full_peers(_one_token_sdpa),
    "math": Peer(ALL_KEYS, "matrix products", partial(_one_token_sdpa, SDPBackend.MATH)),
}


def peers_of_arms(arms, decode):
    """Peers that are the patterns of arms, each as its model evaluates it where it is compiled."""

    def make(arm, case):
        return _compiled(_evaluation(case.evaluation(arm), case, arm))

    full = {name: peer for name, peer in PEERS.items() if peer.attends == ALL_KEYS}
    if decode:
        full = {"full": DECODE_PEERS["full"]}
    described = "as its model generates" if decode else "as its compiled model evaluates it"
    maker = _cached if decode else make
    return {arm: Peer(arm, described, partial(maker, arm)) for arm in arms} | full


def work_of(attend, qkv, upstream, timed):
    """The work that ``timed`` names, of a function that a peer made."""
    if timed == TRAINING:
        return lambda: torch.autograd.grad(attend(*qkv), qkv, upstream)
    q, k, v = (x.detach() for x in qkv)
    if timed == ONE_TOKEN:
        return attend(q[:, -1:].clone(), k, v)
    return lambda: attend(q, k, v)


@cache
def error_of(peer, case, timed):
    """The largest relative error of a peer's results at a case.

    Results are the output, or the gradients of q, k and v; the truth is textbook attention in
    float64 over the keys that the peer claims.  Raises Unavailable where the error is larger than
    rounding explains.
    """
    qkv, upstream = case.inputs(seed=1)
    results = work_of(peer.make(case), qkv, upstream, timed)()
    exact = [x.detach().double().requires_grad_() for x in qkv]
    pattern = case.pattern(peer.attends)
    out = window_attention(*exact, evaluation="dense", **pattern._asdict())
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

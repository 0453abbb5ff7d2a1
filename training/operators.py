"""What an arm's attention really runs: its evaluation, kernels and dispatched operators."""

from dataclasses import asdict
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attention.choose import attention_plan, window_attention
from attention.full import FULL_ATTENTION, TEXTBOOK
from attention.split import split_kernels
from machine.command import UserError
from machine.device import is_out_of_memory
from training.arms import ARMS, patterns_of_arm
from training.trainer import release_memory


def attention_used(config, arm, device):
    """What an arm's attention really runs at the configuration's shapes, as a JSON-like dict.

    ``evaluation``: the one that is taken, several with "and" where layers differ.  ``kernels``: the
    names of split's near and far kernel, else None.  ``operators``: PyTorch's attention operators
    in one eager forward call; none for textbook attention, and none where memory ran out or
    scaled_dot_product_attention has no fused kernel.

    Call it between trainings, for it forgets cached masks and compiled code (``release_memory``),
    and inside ``deterministic_algorithms``, for those rule out some kernels.
    Raises ValueError where the window arm is told to use split or flex and there is none here.
    """
    if config.shard_sequence > 1:
        return _used_over_shards(config, arm, device)
    evaluations, kernels, operators = [], None, []
    for evaluation, attend in _attention_of_layers(config, arm, device):
        if evaluation == "split":
            kernels = split_kernels(device, getattr(torch, config.dtype), config.head_dim)
            if kernels is None and config.window_attention == "auto":
                evaluation = "masked"
        evaluations.append(evaluation)
        if evaluation == "flex":
            operators.append("flex_attention")
        elif evaluation not in TEXTBOOK:  # whose scores S x S are plain products
            operators += _dispatched_operators(attend, config, device)
    release_memory(device)
    return {
        "evaluation": " and ".join(dict.fromkeys(evaluations)),
        "kernels": None if kernels is None else list(kernels),
        "operators": list(dict.fromkeys(operators)),
    }


def _used_over_shards(config, arm, device):
    """The same where every sequence is cut: attention/shards.py evaluates all arms."""
    if ARMS.get(arm) in TEXTBOOK:
        return {"evaluation": f"{ARMS[arm]} over shards", "kernels": None, "operators": []}
    kernels = split_kernels(device, getattr(torch, config.dtype), config.head_dim)
    if kernels is None:
        asked = f"{config.dtype} with head_dim {config.head_dim} on {device}"
        raise UserError(f"--shard-sequence: no kernel for {asked}: leave it out, or choose another")
    return {"evaluation": "split over shards", "kernels": list(kernels), "operators": []}


def _attention_of_layers(config, arm, device):
    """Yield (evaluation, function of q, k, v) of every kind of layer that an arm's model has."""
    if config.pattern_of(arm) is None:
        yield ARMS[arm], FULL_ATTENTION[ARMS[arm]]
        return
    wanted = config.window_attention
    if wanted == "flex" and device.type != "cuda":
        raise UserError(f"--window-attention flex needs CUDA, not {device}: choose split or masked")
    for pattern in dict.fromkeys(patterns_of_arm(asdict(config), arm)):
        evaluation = wanted
        if wanted == "auto":
            plan = attention_plan(
                config.seq_len,
                pattern,
                config.n_heads,
                getattr(torch, config.dtype),
                device,
                compiled=config.compile != "none",
                head_dim=config.head_dim,
            )
            evaluation = plan.evaluation
        yield evaluation, partial(window_attention, evaluation=wanted, **pattern._asdict())


class _AttentionOperators(TorchDispatchMode):
    """Notes the name of every attention operator that is dispatched inside it."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "attention" in func.name():
            self.names.append(func.name().split(".")[0])  # without the overload
        return func(*args, **(kwargs or {}))


def _dispatched_operators(attend, config, device):
    """The attention operators of ``attend(q, k, v)`` on zeros, in the layout of the model's."""
    shape = (config.sequences_at_once, config.seq_len, 3, config.n_heads, config.head_dim)
    try:
        # gradients are wanted because PyTorch's choice of a kernel depends on them
        qkv = torch.zeros(
            shape, dtype=getattr(torch, config.dtype), device=device, requires_grad=True
        )
        with _AttentionOperators() as noted:
            attend(*qkv.unbind(dim=2))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return []
    return noted.names

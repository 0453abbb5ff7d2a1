"""What an arm's attention really runs: its evaluation, kernels and dispatched operators."""

from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attention.choose import attention_plan, window_attention
from attention.full import FULL_ATTENTION
from attention.split import split_kernels
from gpt_win import GPTWindowModel
from machine.device import is_out_of_memory
from training.config import ARMS, DTYPES, layer_patterns
from training.trainer import autocast, deterministic_algorithms, release_memory


# --- the attention that an arm runs ------------------------------------------------------------
class _AttentionOperators(TorchDispatchMode):
    """Notes the name of every attention operator that is dispatched inside it."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]  # without the overload
        if "attention" in name and name not in self.names:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def attention_used(config, arm, device):
    """What an arm's attention really runs at the configuration's shapes, as a JSON-like dict.

    ``evaluation``: dense, published, fused, masked or split; what ``auto`` comes to, for window,
    and "split and masked" where the layers' patterns differ so much.
    ``kernels``: the names of split's near and far kernel, else None.
    ``operators``: PyTorch's attention operators in one eager forward call.  Empty for dense and
    published, which are not run (their scores are S x S), where memory ran out, and where
    scaled_dot_product_attention has no fused kernel and computes plain products.

    Call it between trainings: it forgets cached masks and compiled code (``release_memory``).
    Raises ValueError where the window arm is told to use split and there are no kernels for it.
    """
    config, arm = config.of_arm(arm)
    model_class, evaluation = ARMS[arm]
    kernels, attends = None, [(evaluation, FULL_ATTENTION.get(evaluation))]
    if model_class is GPTWindowModel:
        attends = []
        for pattern in dict.fromkeys(layer_patterns(config)):
            evaluation, found = _window_evaluation(config, pattern, device)
            kernels = kernels or found
            attend = partial(window_attention, **pattern._asdict(), evaluation=evaluation)
            attends.append((evaluation, attend))
    operators = []
    for evaluation, attend in attends:
        if evaluation not in ("dense", "published"):
            with deterministic_algorithms(config.deterministic):  # which rule out some kernels
                operators += _dispatched_operators(attend, config, device)
            release_memory(device)
    return {
        "evaluation": " and ".join(dict.fromkeys(evaluation for evaluation, _ in attends)),
        "kernels": None if kernels is None else list(kernels),
        "operators": list(dict.fromkeys(operators)),
    }


def _window_evaluation(config, pattern, device):
    """The evaluation that ``window_attention`` comes to, and split's kernels or None."""
    dtype, evaluation = DTYPES[config.dtype], config.window_attention
    if evaluation == "auto":
        options = pattern._asdict() | {"dtype": dtype, "device": device}
        evaluation = attention_plan(config.seq_len, **options).evaluation
    if evaluation != "split":
        return evaluation, None
    kernels = split_kernels(device, dtype, config.d_model // config.n_heads)
    if kernels is None and config.window_attention == "auto":
        return "masked", None  # its place, where split does not work
    return evaluation, kernels


def _dispatched_operators(attend, config, device):
    """The attention operators of ``attend(q, k, v)`` on made-up inputs of the real shape."""
    heads = config.n_heads, config.d_model // config.n_heads
    # as the model's projection has it
    shape = (config.sequences_at_once, config.seq_len, 3, *heads)
    made = {"device": device, "dtype": DTYPES[config.dtype]}
    noted = _AttentionOperators()
    try:
        # a generator of its own leaves the global random state alone; gradients are wanted
        # because PyTorch's choice of a kernel depends on them
        generator = torch.Generator(device).manual_seed(0)
        qkv = torch.randn(shape, generator=generator, **made, requires_grad=True)
        with torch.enable_grad(), autocast(config, device), noted:
            attend(*qkv.unbind(dim=2))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return []
    return noted.names

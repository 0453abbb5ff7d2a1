"""Training ONE model: configuration, batches, schedule, timing and memory -> one run's metrics.

Knows nothing of arms in comparison, orders or files; compare_models.py does that.
"""

import argparse
import gc
import math
import os
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import distributed
from gpt import FULL_ATTENTION, GPTModel
from gpt_win import GPTWindowModel, per_layer
from machine import (
    device_state,
    fragmentation_remedy,
    growth_in_child,
    is_out_of_memory,
    synchronize,
)
from metrics_utils import pattern_of_arm, utc_now
from prepare_data import DEFAULT_PATH
from rotary import POSITIONS
from window_attention import (
    EVALUATIONS,
    attention_plan,
    check_pattern,
    clear_mask_cache,
    split_kernels,
    window_attention,
)

# arm -> (model class, attention); ``window`` takes its evaluation from the configuration
ARMS = {
    "baseline": (GPTModel, "dense"),
    "window": (GPTWindowModel, None),
    "fused": (GPTModel, "fused"),
    "published": (GPTModel, "published"),
}
DEFAULT_ARMS = ("baseline", "window", "fused")
SCHEDULES = ("cosine", "constant")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPILE_MODES = ("none", "default", "reduce-overhead")

UNTIMED_STEPS = 3  # before each training: kernels loaded, code compiled, allocator filled
MEMORY_STEPS = 2  # steps of the child process that measures memory on a CPU
GRADIENT_CLIP = 1.0
FINAL_LR_SHARE = 0.1
LARGEST_OPTION = 2**31 - 1
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
LOSS_BLOCK = 50  # losses stay on the device and are fetched this many at a time


# --- configuration -----------------------------------------------------------------------------


def _option(default, group, help, **argparse_options):
    """A field that is also a command-line option."""
    return field(
        default=default, metadata={"group": group, "help": help, "argparse": argparse_options}
    )


def _whole_numbers(text):
    """A command-line value: a whole number, or several of them as a tuple."""
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError:
        words = f"must be a whole number, or one for each layer as in 96,96,128, got {text!r}"
        raise argparse.ArgumentTypeError(words) from None
    return numbers if len(numbers) > 1 else numbers[0]


class Pattern(NamedTuple):
    """What a layer of the window model attends to, see ``window_attention.may_attend``."""

    window_size: int
    dilation: int
    sink_tokens: int


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides what an experiment does; the defaults are the ``paper`` preset."""

    preset: str = "paper"
    runs: int = _option(
        10, "experiment", "blocks: in each, every arm is trained once from the same seed"
    )
    seed: int = _option(0, "experiment", "decides orders, initial weights and batches")
    arms: tuple = _option(
        DEFAULT_ARMS,
        "experiment",
        f"which models to train: {' '.join(ARMS)}, or window models of other patterns, as w64-d8",
        nargs="+",
        metavar="ARM",
    )
    device: str = _option("auto", "experiment", "auto, cpu, cuda or cuda:N")
    dtype: str = _option(
        "float32", "experiment", "precision of the arithmetic (autocast)", choices=tuple(DTYPES)
    )
    compile: str = _option(
        "none",
        "experiment",
        "torch.compile every arm; --compile alone means default",
        nargs="?",
        const="default",
        choices=COMPILE_MODES,
    )
    equivalence_margin: float = _option(
        0.02,
        "experiment",
        "largest rise of the validation loss that still counts as no loss of quality, in nats",
    )
    deterministic: bool = _option(
        False,
        "experiment",
        "use deterministic algorithms (slower); recorded, never on by itself",
        action=argparse.BooleanOptionalAction,
    )
    batch_size: int = _option(8, "training", "sequences in a step, of all ranks together")
    gradient_accumulation: int = _option(
        1, "training", "parts of a step's batch that are computed one after the other, for memory"
    )
    max_steps: int = _option(0, "training", "optimizer steps of a training; 0: one pass over data")
    lr: float = _option(3e-4, "training", "peak learning rate of AdamW")
    warmup_steps: int = _option(500, "training", "steps of linear warm-up")
    schedule: str = _option(
        "cosine",
        "training",
        "learning rate after the warm-up; constant makes each moment the end of a training",
        choices=SCHEDULES,
    )
    val_batches: int = _option(0, "training", "held-out batches for the validation loss; 0: all")
    seq_len: int = _option(256, "model", "sequence length, tokens")
    d_model: int = _option(512, "model", "model width")
    n_heads: int = _option(16, "model", "attention heads")
    layers: int = _option(8, "model", "decoder blocks")
    positions: str = _option(
        "learned",
        "model",
        "a learned embedding of every position, or rotary ones in every attention",
        choices=POSITIONS,
    )
    window_size: int | tuple = _option(
        96,
        "pattern",
        "near keys before each token; W,W,... gives one for each layer",
        type=_whole_numbers,
    )
    dilation: int | tuple = _option(
        4,
        "pattern",
        "every how many tokens a far key; 0: none, 1: full attention; D,D,... gives one for each "
        "layer",
        type=_whole_numbers,
    )
    sink_tokens: int = _option(
        0, "pattern", "how many of the first tokens every later one attends to as well"
    )
    window_attention: str = _option(
        "auto", "pattern", "how the window arm evaluates the pattern", choices=EVALUATIONS
    )
    data: str = _option(DEFAULT_PATH, "files", "rows of tokens; prepared when missing")
    output_dir: str = _option("output", "files", "folder of results, report and weights")
    plots_dir: str = _option("plots", "files", "folder of the ten figures")
    # not chosen but found, see distributed.py
    world_size: int = 1
    backend: str = "none"

    @property
    def sequences_at_once(self):
        """Sequences that one rank computes together: its share of a micro-step."""
        return self.batch_size // (self.world_size * self.gradient_accumulation)

    @property
    def records_graphs(self):
        """Are CUDA graphs recorded in the warm-up?  Their replays allocate nothing that counts."""
        return self.compile == "reduce-overhead"

    def of_arm(self, arm):
        """The configuration and the name in ``ARMS`` that an arm's name means.

        An arm that names a pattern is the window arm with that pattern.
        """
        pattern = pattern_of_arm(arm)
        if pattern is None:
            return self, arm
        return replace(self, window_size=pattern[0], dilation=pattern[1]), "window"


PRESETS = {
    "paper": {},
    "long": {
        "seq_len": 4096,
        "batch_size": 4,
        "n_heads": 8,
        "dtype": "bfloat16",
        "compile": "reduce-overhead",  # by launches alone the host decides a step's time
        "warmup_steps": 50,
    },
    "laptop": {
        "runs": 6,
        "seq_len": 1024,
        "batch_size": 1,
        "d_model": 128,
        "n_heads": 4,
        "layers": 2,
        "max_steps": 60,
        "lr": 1e-3,
        "warmup_steps": 10,
        "val_batches": 8,
    },
}


def make_config(preset="paper", **changes):
    """The configuration of a preset with some fields changed, checked; raises ValueError."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    config = config_of({"preset": preset, **PRESETS[preset], **changes})
    check_config(config)
    return config


def config_of(values):
    """The ExperimentConfig of some of its fields; they may come from JSON, which has no tuples."""
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return ExperimentConfig(**values)


def layer_patterns(config):
    """The ``Pattern`` of every layer of the window model."""
    window_sizes = per_layer("--window-size", config.window_size, config.layers)
    dilations = per_layer("--dilation", config.dilation, config.layers)
    pairs = zip(window_sizes, dilations, strict=True)
    return [Pattern(*pair, config.sink_tokens) for pair in pairs]


def check_config(config):
    """Raise ValueError, naming the option, its value and the remedy, for what cannot be run."""
    _check_whole_numbers(config)
    for name in ("lr", "equivalence_margin"):
        value = getattr(config, name)
        number = isinstance(value, float | int) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value > 0):
            raise ValueError(f"{_flag(name)} must be a positive number, got {value}")
    if config.batch_size % (config.world_size * config.gradient_accumulation):
        raise ValueError(
            f"--batch-size {config.batch_size} cannot be split evenly over {config.world_size} "
            f"rank{'s' * (config.world_size > 1)} x --gradient-accumulation "
            f"{config.gradient_accumulation}: choose a multiple of "
            f"{config.world_size * config.gradient_accumulation}"
        )
    if not isinstance(config.deterministic, bool):
        raise ValueError(f"--deterministic must be True or False, got {config.deterministic!r}")
    if config.d_model % config.n_heads:
        raise ValueError(
            f"--d-model {config.d_model} is not divisible by --n-heads {config.n_heads}: "
            "choose a multiple of it"
        )
    head_dim = config.d_model // config.n_heads
    if config.positions == "rotary" and head_dim % 2:
        raise ValueError(
            f"--positions rotary needs an even --d-model / --n-heads, got {config.d_model} / "
            f"{config.n_heads} = {head_dim}: choose others"
        )
    for pattern in layer_patterns(config):
        check_pattern(*pattern)
    for name, value, choices in (
        ("--dtype", config.dtype, DTYPES),
        ("--compile", config.compile, COMPILE_MODES),
        ("--positions", config.positions, POSITIONS),
        ("--schedule", config.schedule, SCHEDULES),
        ("--window-attention", config.window_attention, EVALUATIONS),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r}: choose one of {', '.join(choices)}")
    if config.records_graphs and config.gradient_accumulation > 1:
        raise ValueError(
            "--compile reduce-overhead keeps gradients in CUDA graphs, which the next micro-step "
            "overwrites: choose --compile default, or --gradient-accumulation 1"
        )
    unknown = [arm for arm in config.arms if arm not in ARMS and pattern_of_arm(arm) is None]
    if unknown or not config.arms:
        raise ValueError(
            f"--arms {' '.join(unknown)}: choose from {', '.join(ARMS)}, or name a pattern, as "
            "w64-d8 for window_size 64, dilation 8"
        )
    for arm in config.arms:
        for pattern in layer_patterns(config.of_arm(arm)[0]):
            check_pattern(*pattern)
    if len(set(config.arms)) < len(config.arms):
        raise ValueError(f"--arms names an arm twice: {' '.join(config.arms)}")


def _check_whole_numbers(config):
    least = {"max_steps": 0, "warmup_steps": 0, "val_batches": 0, "seed": 0}
    least |= {"dilation": 0, "sink_tokens": 0}
    for item in fields(config):
        value = getattr(config, item.name)
        if item.type not in (int, int | tuple):
            continue
        several = isinstance(value, tuple) and item.type is not int
        for number in value if several else [value]:
            _check_whole_number(_flag(item.name), number, least.get(item.name, 1))


def _check_whole_number(flag, value, least):
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{flag} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{flag} must be at least {least}, got {value}")
    if value > LARGEST_OPTION:
        raise ValueError(f"{flag} must be at most {LARGEST_OPTION:,}, got {value:,}")


def _flag(name):
    return "--" + name.replace("_", "-")


# --- the pieces of a training ------------------------------------------------------------------


def build_model(config, arm, vocab_size, device, seed):
    """The arm's model on ``device``; equal seeds give every arm the same initial weights."""
    torch.manual_seed(seed)
    return _new_model(config, arm, vocab_size).to(device)


def _new_model(config, arm, vocab_size):
    config, arm = config.of_arm(arm)
    model_class, attention = ARMS[arm]
    pattern = {}
    if model_class is GPTWindowModel:
        pattern = {name: getattr(config, name) for name in Pattern._fields}
        attention = config.window_attention
    return model_class(
        config.d_model,
        config.n_heads,
        config.layers,
        vocab_size,
        config.seq_len,
        attention=attention,
        positions=config.positions,
        **pattern,
    )


def parameter_counts(config, vocab_size):
    """{arm: number of parameters} for the configuration's arms; needs no memory, draws nothing."""
    with torch.device("meta"):  # shapes alone
        models = {arm: _new_model(config, arm, vocab_size) for arm in config.arms}
    return {arm: sum(p.numel() for p in model.parameters()) for arm, model in models.items()}


def learning_rate(step, total_steps, peak, warmup_steps, schedule="cosine"):
    """Linear warm-up to ``peak``, then a cosine that ends at a tenth of it, or ``constant``."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * cosine)


def planned_steps(config, train_rows):
    """Optimizer steps of a training: ``max_steps``, or one pass over the rows."""
    return config.max_steps or train_rows // config.batch_size


def validation_rows(config, held_out):
    """Indices of the held-out rows that the validation uses: all, or some evenly spread."""
    used = min(held_out, config.val_batches * config.batch_size or held_out)
    return np.linspace(0, held_out - 1, used).round().astype(int)


def batches(rows, batch_size, steps, seed, share=slice(None)):
    """Yield ``steps`` batches of row arrays (batch_size, S + 1), shuffled anew in every pass.

    share: the part of every batch that is wanted.
    """
    per_pass = len(rows) // batch_size
    for step in range(steps):
        epoch, place = divmod(step, per_pass)
        if place == 0:
            order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        # sorted, so that a memory-mapped file is read forwards
        yield rows[np.sort(order[place * batch_size : (place + 1) * batch_size])[share]]


def share_of_rank(config):
    """The part of every batch that this rank trains on."""
    rows = config.batch_size // config.world_size
    return slice(distributed.rank() * rows, (distributed.rank() + 1) * rows)


def to_device(batch, device):
    """Row array (B, S + 1) -> inputs and targets, int64 (B, S) each, on ``device``."""
    tokens = torch.from_numpy(batch.astype(np.int64))
    if device.type == "cuda":
        tokens = tokens.pin_memory().to(device, non_blocking=True)
    return tokens[:, :-1], tokens[:, 1:]


def next_token_loss(model, inputs, targets):
    """Mean cross-entropy in nats per token."""
    logits = model(inputs)  # (B, S, V)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class MeanLoss(nn.Module):
    """A model and its loss as one module, which is what DistributedDataParallel takes."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, inputs, targets):
        return self.loss(self.model, inputs, targets)


def autocast(config, device):
    """The context that gives the arithmetic ``config.dtype``; weights stay float32."""
    if config.dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[config.dtype])


@contextmanager
def deterministic_algorithms(wanted):
    """Deterministic algorithms alone inside, where ``wanted``; afterwards all is as it was."""
    if not wanted:
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")  # PyTorch refuses cuBLAS without it
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        if workspace is None:
            del os.environ[CUBLAS_WORKSPACE]


def make_optimizer(model, config):
    return torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True)


def release_memory(device):
    """Leave nothing of one training behind for the next: garbage, caches, compiled code."""
    clear_mask_cache()
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    synchronize(device)


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


# --- one training ------------------------------------------------------------------------------


class Trainer:
    """One arm's model with its optimizer, and the step that trains it.

    rows: array of tokens (N, S + 1); everything random follows from ``seed``.  Where several ranks
    train together, each makes one with the same arguments, and they step together.
    """

    def __init__(self, config, arm, rows, vocab_size, device, seed):
        self.config, self.arm, self.rows = config, arm, rows
        self.device, self.seed = device, seed
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # events and streams are those of the current device
        loss = next_token_loss
        if config.compile != "none":
            loss = torch.compile(next_token_loss, mode=config.compile, dynamic=False)
        with distributed.agreeing_on_memory():
            self.model = build_model(config, arm, vocab_size, device, seed)
            if distributed.size() > 1:  # room for what the ranks exchange, tried while none waits
                torch.empty(2 * _bytes_of(self.model), dtype=torch.uint8, device=device)
        with distributed.memory_ends_all():
            self.loss = distributed.data_parallel(MeanLoss(self.model, loss))
        self.optimizer = make_optimizer(self.model, config)
        if distributed.rank():  # other rows, so other dropout; rank 0 draws what one process does
            torch.manual_seed(_seed_of_rank(seed, distributed.rank()))

    def batches(self, steps):
        """This rank's share of the first ``steps`` batches."""
        config = self.config
        return batches(self.rows, config.batch_size, steps, self.seed, share_of_rank(config))

    def step(self, batch, lr):
        """One optimizer step on a batch of rows; returns the loss, still on the device."""
        return self.update(*to_device(batch, self.device), lr)

    def update(self, inputs, targets, lr, together=True):
        """The same on tokens that are on the device already, (B, S) each.

        The loss is that of this rank's rows.  together: average the gradients over the ranks.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(inputs, targets, together)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_CLIP)
        self.optimizer.step()
        return loss

    def _gradients(self, inputs, targets, together):
        """Leave the gradients of the mean loss in the parameters; returns that loss."""
        parts = self.config.gradient_accumulation
        if parts == 1:
            return self._add_gradients(inputs, targets, 1, together)
        micro_steps = list(zip(inputs.chunk(parts), targets.chunk(parts), strict=True))
        losses = [self._add_gradients(*part, parts, False) for part in micro_steps[:-1]]
        losses.append(self._add_gradients(*micro_steps[-1], parts, together))
        return torch.stack(losses).sum()

    def _add_gradients(self, inputs, targets, parts, together):
        with nullcontext() if together else distributed.local_gradients(self.loss):
            with autocast(self.config, self.device):
                loss = self.loss(inputs, targets)
            if parts > 1:
                loss = loss / parts
            loss.backward()
        return loss.detach()

    def warm_up(self, steps=UNTIMED_STEPS):
        """Train ``steps`` steps and undo them: weights, optimizer, schedule and random state.

        Returns the seconds of the first step and of the rest (the first one compiles).
        """
        devices = [self.device] if self.device.type == "cuda" else []
        saved = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        seconds = []
        self.model.train()
        with torch.random.fork_rng(devices=devices):
            tried = self._try_memory() if distributed.size() > 1 else 0
            for batch in self.batches(steps):
                distributed.barrier()
                started = time.perf_counter()
                with distributed.memory_ends_all():
                    self.step(batch, self.config.lr)
                    synchronize(self.device)
                seconds.append(time.perf_counter() - started)
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(saved[name])
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer = make_optimizer(self.model, self.config)
        return tuple(distributed.largest(tried + seconds[0], sum(seconds[1:])))

    def _try_memory(self):
        """Steps without the other ranks, so that none waits where memory is too small for them.

        Two, for the first one makes the optimizer's state at its end.  Returns their seconds.
        """
        started = time.perf_counter()
        with distributed.agreeing_on_memory():
            for batch in self.batches(2):
                self.update(*to_device(batch, self.device), self.config.lr, together=False)
            synchronize(self.device)
        return time.perf_counter() - started

    def release_graphs(self):
        """Give back the memory that recorded steps keep for their replays; they are not used again.

        At long lengths the textbook attention's steps fill most of a GPU, and evaluation is eager.
        """
        self.optimizer.zero_grad(set_to_none=True)  # gradients lie in that memory
        release_memory(self.device)

    @torch.no_grad()
    def evaluate(self, held_out):
        """Mean loss in nats per token over the held-out rows, dropout off, always eager.

        Every rank takes its share of the rows.
        """
        rows = held_out[validation_rows(self.config, len(held_out))]
        mine = rows[distributed.rank() :: distributed.size()]
        at_once = self.config.sequences_at_once
        losses = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.eval()
        with distributed.agreeing_on_memory():
            for start in range(0, len(mine), at_once):
                batch = mine[start : start + at_once]
                inputs, targets = to_device(batch, self.device)
                with autocast(self.config, self.device):
                    losses += next_token_loss(self.model, inputs, targets).double() * len(batch)
            losses = losses.item()
        self.model.train()
        return distributed.total(losses)[0] / len(rows)


def _bytes_of(model):
    return sum(parameter.nbytes for parameter in model.parameters())


def _seed_of_rank(seed, rank):
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


class StepClock:
    """Seconds of every step: CUDA events, read at the end so that no step waits, or the host's."""

    def __init__(self, device):
        self.cuda = device.type == "cuda"
        self.marks = []
        self.mark()

    def mark(self):
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self):
        """Seconds between one mark and the next; call after synchronizing."""
        pairs = zip(self.marks[:-1], self.marks[1:], strict=True)
        if self.cuda:
            return [before.elapsed_time(after) / 1e3 for before, after in pairs]
        return [after - before for before, after in pairs]


def timed_steps(trainer, steps, progress):
    """Train ``steps`` steps; the only timed region.

    Returns the finite losses' array (the last one is not finite where the training diverged), the
    seconds of every step and of the whole.  ``progress(steps_done, loss)`` is called after every
    step, with loss None where it has not been fetched from the device.  Losses are those of all
    ranks' rows, the seconds of the whole the slowest rank's.
    """
    config, device = trainer.config, trainer.device
    block = LOSS_BLOCK if device.type == "cuda" else 1
    on_device = torch.empty(steps, device=device)
    losses = []
    synchronize(device)
    distributed.barrier()
    started = time.perf_counter()
    clock = StepClock(device)
    for step, batch in enumerate(trainer.batches(steps)):
        lr = learning_rate(step, steps, config.lr, config.warmup_steps, config.schedule)
        on_device[step] = trainer.step(batch, lr)
        clock.mark()
        fetched = None
        if (step + 1) % block == 0 or step + 1 == steps:
            losses += distributed.mean(on_device[len(losses) : step + 1].tolist())
            fetched = losses[-1]
        progress(step + 1, fetched)
        if fetched is not None and not np.isfinite(losses[-block:]).all():
            break
    synchronize(device)
    seconds = distributed.largest(time.perf_counter() - started)[0]
    losses = np.array(losses, dtype=np.float32)
    broken = np.flatnonzero(~np.isfinite(losses))
    done = broken[0] + 1 if broken.size else len(losses)
    return losses[:done], clock.seconds()[:done], seconds


def _empty_metrics(seed):
    """A training's metrics before anything was trained: times 0, results missing."""
    missing = math.nan
    return {
        "seed": seed,
        "total_steps": 0,
        "total_tokens": 0,
        "training_time": missing,
        "tokens_per_second": missing,
        "peak_memory_mb": missing,
        "peak_reserved_mb": missing,
        "final_loss": missing,
        "avg_loss_last_100": missing,
        "val_loss": missing,
        "compile_time": 0.0,
        "warmup_time": 0.0,
        "eval_time": 0.0,
        "wall_time": 0.0,
        "status": "ok",
        "message": "",
        "started_at": utc_now(),
        "losses": np.zeros(0, dtype=np.float32),
        "tokens_seen": np.zeros(0, dtype=np.int64),
        "step_seconds": np.zeros(0, dtype=np.float32),
    }


def _training_metrics(config, losses, step_seconds, seconds):
    """The figures that follow from a training's losses and times."""
    steps = len(losses)
    tokens = steps * config.batch_size * config.seq_len
    metrics = {
        "total_steps": steps,
        "total_tokens": tokens,
        "training_time": seconds,
        "losses": losses,
        "tokens_seen": np.arange(1, steps + 1, dtype=np.int64) * (tokens // steps),
        "step_seconds": np.array(step_seconds, dtype=np.float32),
    }
    if np.isfinite(losses).all():
        metrics["tokens_per_second"] = tokens / seconds
        metrics["final_loss"] = float(losses[-1])
        metrics["avg_loss_last_100"] = float(losses[-100:].mean(dtype=np.float64))
    return metrics


def _measure(trainer, dataset, metrics, progress):
    """Warm up, train and evaluate; ``metrics`` gets each figure as soon as it is known."""
    config, device = trainer.config, trainer.device
    cuda = device.type == "cuda"
    if cuda and config.records_graphs:
        torch.cuda.reset_peak_memory_stats(device)
    first, rest = trainer.warm_up()
    compiling = config.compile != "none"
    metrics["compile_time"] = first if compiling else 0.0
    metrics["warmup_time"] = rest if compiling else first + rest
    if cuda and not config.records_graphs:
        torch.cuda.reset_peak_memory_stats(device)
    steps = planned_steps(config, len(dataset.train))
    with distributed.memory_ends_all():
        losses, step_seconds, seconds = timed_steps(trainer, steps, progress)
    metrics |= _training_metrics(config, losses, step_seconds, seconds)
    if cuda:
        peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        peaks = [peak / 2**20 for peak in distributed.largest(*peaks)]
        metrics["peak_memory_mb"], metrics["peak_reserved_mb"] = peaks
    if not np.isfinite(losses[-1]):
        metrics["status"] = "diverged"
        metrics["message"] = f"the loss became {losses[-1]} at step {len(losses)}"
        return
    if config.records_graphs:
        trainer.release_graphs()
    started = time.perf_counter()
    metrics["val_loss"] = trainer.evaluate(dataset.held_out)
    metrics["eval_time"] = time.perf_counter() - started


def _stage(metrics):
    """How far a training came that ended, in words."""
    if metrics["total_steps"]:
        return f"in the evaluation, after all {metrics['total_steps']:,} steps"
    return "in the timed steps" if metrics["warmup_time"] else "before the timed steps"


def train(config, arm, dataset, seed, device, progress=lambda steps_done, loss: None):
    """Train one arm from ``seed`` and measure it; returns ``(metrics, model)``.

    dataset: has ``train`` and ``held_out`` rows (N, S + 1) and ``vocab_size``.  The metrics are
    the keys of metrics_utils.NUMBERS, TEXTS and SERIES without the place in the experiment, and
    ``device_before`` and ``device_after`` (see ``machine.device_state``; not in any of the times).
    A loss that is not finite or memory that runs out ends the training with ``status`` diverged or
    out_of_memory (model None then) and a ``message``.  Where several ranks train together, each
    calls it with the same arguments, and all have the same outcome; the figures are rank 0's.
    """
    before = device_state(device)
    metrics = _empty_metrics(seed)
    entered = time.perf_counter()
    trainer = None
    try:
        with deterministic_algorithms(config.deterministic):
            with distributed.agreeing_on_memory():
                if device.type == "cpu" and distributed.rank() == 0:
                    memory = child_peak_memory_mb(config, arm, dataset.vocab_size, seed)
                    metrics["peak_memory_mb"] = memory
            trainer = Trainer(config, arm, dataset.train, dataset.vocab_size, device, seed)
            _measure(trainer, dataset, metrics, progress)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        metrics["status"] = "out_of_memory"
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "lower --batch-size, --seq-len, --d-model or --layers"
        # among several ranks it may be another one's memory that ran out
        if distributed.size() == 1 and (fragmented := fragmentation_remedy(device)):
            remedy += f"; {fragmented}"
        metrics["message"] = f"out of memory on {device} {_stage(metrics)}: {remedy} ({words})"
    metrics["wall_time"] = time.perf_counter() - entered
    metrics |= {"ended_at": utc_now(), "device_before": before}
    metrics["device_after"] = device_state(device)
    return metrics, trainer.model if metrics["status"] == "ok" else None


# --- memory on a CPU ---------------------------------------------------------------------------


def child_peak_memory_mb(config, arm, vocab_size, seed):
    """Growth of resident memory in MB while a fresh process trains the arm for a few steps.

    The tokens are random: memory depends on how many there are, not on which.  The steps are
    eager ones, for a compiler's own memory would hide the model's.  Of several ranks, which are
    alike, it is the share of one.  See ``machine.growth_in_child`` for NaN and RuntimeError.
    """
    share = {"batch_size": config.batch_size // config.world_size, "world_size": 1}
    config = replace(config, compile="none", **share)
    job = {"config": asdict(config), "arm": arm, "vocab_size": vocab_size, "seed": seed}
    return growth_in_child("train_model", "memory_job", job)


def memory_job(config, arm, vocab_size, seed):
    """What the child of ``child_peak_memory_mb`` measures, as a function without arguments."""
    config = config_of(config)
    shape = (config.batch_size * MEMORY_STEPS, config.seq_len + 1)
    rows = np.random.default_rng(seed).integers(vocab_size, size=shape)
    # the first optimizer of a process loads the compiler, whose memory is not the training's
    torch.optim.AdamW([torch.zeros(1)])

    def work():
        with deterministic_algorithms(config.deterministic):
            trainer = Trainer(config, arm, rows, vocab_size, torch.device("cpu"), seed)
            for batch in batches(rows, config.batch_size, MEMORY_STEPS, seed):
                trainer.step(batch, config.lr)

    return work

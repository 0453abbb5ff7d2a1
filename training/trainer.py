"""One arm's model with its optimizer, and the step that trains it."""

import gc
import os
import time
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from attention.flex import MOST_COMPILED
from attention.masks import clear_mask_cache
from attention.shards import Shards
from gpt import GPTModel
from gpt_win import GPTWindowModel
from machine import ranks
from machine.command import UserError
from machine.device import synchronize
from training.arms import ARMS
from training.batches import batches, own_tokens
from training.loss import NextTokenLoss

UNTIMED_STEPS = 3  # before each training: kernels loaded, code compiled, allocator filled
GRADIENT_CLIP = 1.0
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def build_model(config, arm, vocab_size, device, seed):
    """The arm's model on ``device``; equal seeds give every arm the same initial weights.

    In float32 even where another library in the process has set another default.
    """
    torch.manual_seed(seed)
    return _new_model(config, arm, vocab_size).to(device, torch.float32)


def model_of(config, arm, vocab_size):
    """The class of an arm's model, and the arguments that rebuild it.

    How its attention is evaluated is not among them: whoever builds it chooses that.
    """
    names = ("d_model", "n_heads", "layers", "positions")
    arguments = {name: getattr(config, name) for name in names}
    arguments |= {"vocab_size": vocab_size, "max_seq_len": config.seq_len}
    pattern = config.pattern_of(arm)
    if pattern is None:
        return GPTModel, arguments
    return GPTWindowModel, arguments | {"nope": config.nope} | pattern


def _new_model(config, arm, vocab_size):
    build, arguments = model_of(config, arm, vocab_size)
    attention = ARMS[arm] if build is GPTModel else config.window_attention
    return build(**arguments, attention=attention)


def parameter_counts(config, vocab_size):
    """{arm: number of parameters} for the configuration's arms; needs no memory, draws nothing."""
    with torch.device("meta"):  # shapes alone
        models = {arm: _new_model(config, arm, vocab_size) for arm in config.arms}
    return {arm: sum(p.numel() for p in model.parameters()) for arm, model in models.items()}


def check_compiler(config, device):
    """Raise UserError where torch.compile does not work, or is turned off and would run eagerly."""
    if config.compile == "none":
        return
    asked, remedy = f"--compile {config.compile}: torch.compile", "or choose --compile none"
    try:
        marked = torch.compile(lambda x: x + int(torch.compiler.is_compiling()))
        is_compiled = marked(torch.zeros((), device=device)).item()
    except Exception as error:  # of the compiler's dozens
        reason = " ".join(str(error).strip().splitlines()[:2])
        raise UserError(f"{asked} does not work here ({reason}): mend that, {remedy}") from None
    if not is_compiled:
        raise UserError(f"{asked} is turned off (TORCHDYNAMO_DISABLE?): turn it on, {remedy}")


def autocast(config, device):
    """The context that gives the arithmetic ``config.dtype``; weights stay float32."""
    return torch.autocast(
        device.type, getattr(torch, config.dtype), enabled=config.dtype != "float32"
    )


def compiled(function, **options):
    """torch.compile with room for all trainers' variants; past its own limit it runs eagerly."""
    torch._dynamo.config.recompile_limit = MOST_COMPILED
    return torch.compile(function, dynamic=False, **options)


@contextmanager
def deterministic_algorithms(wanted):
    """Deterministic algorithms alone inside, where ``wanted``; afterwards all is as it was."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    if wanted:
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")  # PyTorch refuses cuBLAS without it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)


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
        self.model = build_model(config, arm, vocab_size, device, seed)
        self.model.checkpoint_blocks = config.checkpoint_blocks
        if config.shard_sequence > 1:
            group = ranks.mesh(config.shard_sequence, device.type).get_group("shard")
            self.model.cut(Shards.of(group))
        loss = self.eager_loss = NextTokenLoss(self.model, config.loss_chunk)
        if config.compile != "none":
            loss = compiled(loss, mode=config.compile)
        self.loss = ranks.data_parallel(loss)
        self.optimizer = make_optimizer(self.model, config)
        if ranks.rank():  # other rows, so other dropout; the first rank draws as one process alone
            seed_of_rank = np.random.SeedSequence([seed, ranks.rank()]).generate_state(1)
            torch.manual_seed(int(seed_of_rank[0]))

    def batches(self, steps):
        """This rank's share of the first ``steps`` batches."""
        batch_size = self.config.batch_size
        rows = batch_size // self.config.data_ranks
        place = ranks.rank() // self.config.shard_sequence
        share = slice(place * rows, (place + 1) * rows)
        return batches(self.rows, batch_size, steps, self.seed, share)

    def step(self, batch, lr):
        """One optimizer step on a batch of rows; returns the loss, still on the device.

        The loss is that of this rank's rows, the gradients are averaged over the ranks.
        """
        return self.update(*own_tokens(self.model, batch, self.device), lr)

    def update(self, inputs, targets, lr):
        """The same on tokens that are on the device already, (B, S) each."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(inputs, targets)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_CLIP)
        self.optimizer.step()
        return loss

    def _gradients(self, inputs, targets):
        """Leave the gradients of the mean loss in the parameters; returns that loss."""
        parts = self.config.gradient_accumulation
        losses = []
        for part in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
            is_last = len(losses) + 1 == parts  # in which the ranks exchange the gradients
            with nullcontext() if is_last else ranks.local_gradients(self.loss):
                with autocast(self.config, self.device):
                    loss = self.loss(*part)
                if parts > 1:
                    loss = loss / parts
                loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def warm_up(self, steps=UNTIMED_STEPS):
        """Train ``steps`` steps and undo them: weights, optimizer, schedule and random state.

        Returns (seconds of the step that compiles, 0 where none does; seconds of the others).
        """
        devices = [self.device] if self.device.type == "cuda" else []
        saved = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        seconds = []
        self.model.train()
        with torch.random.fork_rng(devices=devices):
            for batch in self.batches(steps):
                started = time.perf_counter()
                self.step(batch, self.config.lr)
                synchronize(self.device)
                seconds.append(time.perf_counter() - started)
        self.model.load_state_dict(saved)  # in place
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer = make_optimizer(self.model, self.config)
        compiling = 0 if self.config.compile == "none" else 1  # step
        return tuple(ranks.largest(sum(seconds[:compiling]), sum(seconds[compiling:])))

    @torch.no_grad()
    def evaluate(self, rows):
        """Mean loss in nats per token over rows of tokens (N, S + 1), dropout off, always eager.

        Every rank takes its share of the rows, or of their tokens.  Draws no random number.
        """
        shards = self.config.shard_sequence
        share = rows[ranks.share_of_rows(shards)]
        at_once = self.config.sequences_at_once
        losses = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.eval()
        for start in range(0, len(share), at_once):
            batch = share[start : start + at_once]
            inputs, targets = own_tokens(self.model, batch, self.device)
            with autocast(self.config, self.device):
                losses += self.eager_loss(inputs, targets).double() * len(batch)
        self.model.train()
        return ranks.total(losses.item())[0] / (len(rows) * shards)

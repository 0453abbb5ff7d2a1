"""Whole steps of the experiment's arms, timed side by side: of training, and for one new token."""

from functools import partial

import numpy as np
import torch

from attention.exchange import traffic
from benchmarks.tables import STEP
from benchmarks.timing import add_ratios, peak_mb, side_by_side
from generation.tokens import next_logits
from machine import ranks
from training.batches import own_tokens
from training.trainer import Trainer, autocast, build_model, release_memory

STEP_VOCAB = 10_000


def measure_steps(config, device, rounds):
    """Time a training step of every arm; returns (records, skipped) for JSON."""
    shape = config.batch_size, config.seq_len + 1
    tokens = np.random.default_rng(0).integers(STEP_VOCAB, size=shape)
    makers = {arm: partial(_training_step, config, arm, tokens, device) for arm in config.arms}
    return _side_by_side(makers, config, device, rounds)


def measure_decode_steps(config, device, rounds):
    """Time the step for the last of config.seq_len tokens; returns (records, skipped) for JSON."""
    with torch.no_grad(), autocast(config, device):
        makers = {arm: partial(_decode_step, config, arm, device) for arm in config.arms}
        return _side_by_side(makers, config, device, rounds)


def _side_by_side(makers, config, device, rounds):
    about = {name: getattr(config, name) for name in ("seq_len", "batch_size", "compile", "dtype")}
    about["direction"] = STEP
    # the compiler makes graphs of its own, and none can hold an exchange between ranks
    graphs = not config.records_graphs and config.world_size == 1
    records, skipped = side_by_side("arm", makers, about, device, rounds, graphs)
    add_ratios(records, "fused_over_this", lambda r: r["arm"] == "fused")
    release_memory(device)
    return records, skipped


def _training_step(config, arm, tokens, device):
    """A warmed-up step as a work, and its record: peak memory (on CUDA) and what it sends, in MB.

    On CUDA the whole step, optimizer included, is to be one CUDA graph: the host's time for
    launching kernels differs from machine to machine.
    """
    before = torch.cuda.memory_allocated()
    trainer = Trainer(config, arm, tokens, STEP_VOCAB, device, seed=0)
    trainer.model.train()
    rows = tokens[ranks.share_of_rows(config.shard_sequence)]
    work = partial(trainer.update, *own_tokens(trainer.model, rows, device), config.lr)
    for _ in range(4):  # compiles, makes the optimizer's state
        work()
    traffic.clear()
    work()
    sent, memory = ranks.largest(traffic.total() / 1e6, peak_mb(work, device, before))
    if device.type == "cuda" and not config.records_graphs:
        for group in trainer.optimizer.param_groups:
            group["capturable"] = True
    record = {"peak_memory_mb": memory}
    if config.shard_sequence > 1:
        record["sent_mb"] = sent
    return work, record


def _decode_step(config, arm, device):
    """The model's step as a work; the context is made up, for the time does not depend on it."""
    model = build_model(config, arm, STEP_VOCAB, device, seed=0).eval()
    caches = [block.mha.new_cache(config.batch_size, config.seq_len) for block in model.layers]
    stores = [store for cache in caches for store in cache.stores()]
    for store in stores:
        store.normal_()
    token = torch.zeros((config.batch_size, 1), dtype=torch.long, device=device)
    work = partial(last_logits, model, caches, token)
    work()
    return work, {"cache_mb": sum(store.nbytes for store in stores) / 1e6}


def last_logits(model, caches, token):
    """The logits (B, V) of a token that takes the last place of the caches, in every call anew."""
    for cache in caches:
        cache.filled = model.max_seq_len - 1
    return next_logits(model, token, caches)

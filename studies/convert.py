"""Conversion: what a model that was trained with full attention loses when its heads get a window,
at once and after a little more training.

Some heads of every layer stay full: the first ones, or those that matter most for copying.  The
second is DuoAttention's idea (Xiao et al. 2024, arXiv:2410.10819), whose gates are learned; here
every head is measured by itself.
"""

import math
from dataclasses import replace

from analysis.values import pattern_of_arm
from analysis.words import amount
from attention.pattern import whole
from experiment.identity import plain_config
from gpt_win import GPTWindowModel
from machine.command import UserError, bar, checked_options, say
from machine.describe import describe_code, describe_environment
from machine.device import resolve_device
from machine.files import file_sha256
from training.batches import validation_rows
from training.config import ExperimentConfig
from training.reach import second_showing_loss
from training.tokens import find_tokenizer, load_dataset
from training.train import Curve, timed_steps
from training.trainer import (
    Trainer,
    autocast,
    check_compiler,
    deterministic_algorithms,
    release_memory,
)
from training.weights import load_model, read_about

PASSAGES = 32  # to measure every head with
FULL_HEADS = (0, 1, 2, 4)
LR_SHARE = 0.1  # of the training's peak learning rate
WARMUP_SHARE = 0.1  # of the steps


def convert(
    path,
    data=None,
    pattern="w96-d0",
    full_heads=None,
    sink_tokens=0,
    steps=200,
    lr=None,
    seed=1,
    device="auto",
    compile=None,
    save=lambda content: None,
):
    """Convert a model of full attention, <arm>.safetensors, and measure what that costs.

    data: a file of tokens (None: that of the training); pattern: what the heads get, by the name of
    an arm without full heads; full_heads: a list of how many heads of a layer stay full, one
    conversion each (None: those of FULL_HEADS below the number of heads); sink_tokens: of the
    pattern.  steps: of fine-tuning; lr: its peak learning rate (None: a tenth of the training's);
    seed: is added to the training's, for other batches; compile: None: as in the training.  All
    else, precision, batch and schedule, is the training's, with a warm-up over the first tenth of
    the steps and a fresh optimizer.

    Returns a dict for JSON; its ``rows`` have the validation losses in nats a token, ``untrained``
    and ``fine_tuned`` (None where that diverged), the first those of the model with all its heads,
    fine-tuned alike.  ``save(content)`` is called after every row.  Raises UserError.
    """
    about = read_about(path)
    with checked_options():
        device = resolve_device(device)
        changes = {"device": str(device), "arms": ("fused", pattern), "sink_tokens": sink_tokens}
        config = _config(path, about, steps, lr, changes | {"data": data, "compile": compile})
        full_heads = _full_heads(full_heads, config.n_heads)
        seed = config.seed + whole("--seed", seed, 1)
        check_compiler(config, device)
    dataset = _dataset(config, about)
    model = load_model(path, device)
    weights, arguments = model.state_dict(), about["arguments"]
    content = {
        "weights": str(path),
        "weights_sha256": about["sha256"],
        "config": plain_config(config),
        "environment": describe_environment(device),
        "code": describe_code(),
        "seed": seed,
        "tokens": config.max_steps * config.batch_size * config.seq_len,
        "passages": PASSAGES,
        "rows": [],
    }
    with deterministic_algorithms(config.deterministic):
        # probed with rows of the training: the held-out ones are to tell how good the choice is
        importance = head_importance(model, arguments, pattern, dataset.train, config)
        content["importance"] = importance
        if importance is None:
            say(f"{config.seq_len} tokens are too short for the probe: the first heads alone")
        for arm, chosen, heads in _cases(pattern, full_heads, importance, arguments):
            ordered = with_heads_first(weights, heads, arguments["n_heads"])
            row = {"arm": arm, "chosen": chosen, "heads": heads}
            row |= _losses(config, arm, ordered, dataset, device, seed, arguments["vocab_size"])
            content["rows"].append(row)
            save(content)
            losses = (amount(row[key], "nats") for key in ("untrained", "fine_tuned"))
            say(f"{arm} ({chosen}): validation loss {' -> '.join(losses)}")
    return content


def _full_heads(counts, n_heads):
    """The numbers of full heads; ValueError for one beyond ``n_heads``."""
    if counts is None:
        return [count for count in FULL_HEADS if count < n_heads]
    for count in counts:
        if whole("--full-heads", count) > n_heads:
            raise ValueError(f"--full-heads {count}: the model has {n_heads} heads in a layer")
    return counts


def _config(path, about, steps, lr, changes):
    """The configuration of the fine-tuning; ValueError for what cannot be run.

    changes: values that replace the training's, but for those that are None.
    """
    if about["model"] != "GPTModel":
        raise ValueError(f"{path}: name a model trained with full attention, as fused.safetensors")
    _, pattern = changes["arms"]
    options = pattern_of_arm(pattern)
    if options is None or options["full_heads"] or options["full_layers"]:
        raise ValueError(f"--pattern {pattern}: name one without full heads, as w96-d0")
    steps = whole("--steps", steps, 1)
    try:
        trained = ExperimentConfig(**about["config"] | {"seed": about["seed"]})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: says nothing usable of its training ({error})") from None
    return replace(
        trained,
        nope=False,  # is for window models alone: the trained model has all its positions
        max_steps=steps,
        warmup_steps=int(WARMUP_SHARE * steps),
        lr=LR_SHARE * trained.lr if lr is None else lr,
        eval_every=0,
        world_size=1,
        shard_sequence=1,
        backend="none",
        **{name: value for name, value in changes.items() if value is not None},
    )


def _dataset(config, about):
    """The data to train on; UserError where a tokenizer shows that they are not the model's."""
    dataset = load_dataset(config.data, config.seq_len, config.batch_size)
    known = about["tokenizer_sha256"]
    others = known not in (None, file_sha256(find_tokenizer(config.data)))
    if others or dataset.vocab_size > about["arguments"]["vocab_size"]:
        raise UserError(f"{config.data}: not the data of the model: its tokenizer was another")
    return dataset


def _cases(pattern, full_heads, importance, arguments):
    """Yield (arm, how the full heads were chosen, the full heads of every layer) for every row."""
    n_heads, layers = arguments["n_heads"], arguments["layers"]
    yield "fused", "all", [list(range(n_heads))] * layers
    for count in dict.fromkeys(full_heads):
        arm = f"{pattern}-f{count}" if count else pattern
        first = [list(range(count))] * layers
        if count in (0, n_heads):
            yield arm, "all" if count else "none", first
            continue
        yield arm, "first", first
        if importance is not None:
            ranked = [sorted(range(n_heads), key=lambda h: -rises[h]) for rises in importance]
            yield arm, "probe", [heads[:count] for heads in ranked]


def with_heads_first(weights, heads, n_heads):
    """Weights of the same function in which these heads of every layer come first.

    weights: a state_dict of GPTModel, left as it is; heads: a list of them for every layer, the
    others follow in their order.  A head is D rows of each third of ``qkv`` (3C, C) and D columns
    of ``wo`` (C, C).
    """
    ordered = dict(weights)
    for layer, first in enumerate(heads):
        order = [*first, *(head for head in range(n_heads) if head not in first)]
        qkv, wo = (f"layers.{layer}.mha.{name}" for name in ("qkv", "wo"))
        C = len(weights[wo])
        ordered[qkv] = weights[qkv].view(3, n_heads, -1, C)[:, order].reshape(3 * C, C)
        ordered[wo] = weights[wo].view(C, n_heads, -1)[:, order].reshape(C, C)
    return ordered


def head_importance(model, arguments, pattern, rows, config):
    """By how much the loss of a second showing rises when one head alone gets the pattern.

    model: of full attention, built with ``arguments``; pattern: an arm's name; rows: of tokens
    (N, S + 1), see ``second_showing_loss``.  Returns nats a token, a list of the heads' (H,) for
    every layer; None where the sequences are too short.
    """
    layers, n_heads = arguments["layers"], arguments["n_heads"]
    weights, device = model.state_dict(), next(model.parameters()).device

    def loss(model):
        # a context for each call: inside one, autocast keeps its copies of weights even when others
        # are loaded
        with autocast(config, device):
            return second_showing_loss(
                model, rows, config.seq_len, PASSAGES, config.sequences_at_once
            )

    base = loss(model)
    if base is None:
        return None
    rises = [[] for _ in range(layers)]
    for layer in bar(range(layers), desc="layers probed"):
        full_heads = [n_heads] * layers
        full_heads[layer] -= 1  # the window is that of the last head
        options = config.pattern_of(pattern) | {"full_heads": full_heads}
        one_window = GPTWindowModel(**arguments, **options)
        one_window.to(device).eval()
        for head in range(n_heads):
            first = [[] for _ in range(layers)]
            first[layer] = [other for other in range(n_heads) if other != head]
            one_window.load_state_dict(with_heads_first(weights, first, n_heads))
            rises[layer].append(loss(one_window) - base)
    return rises


def _losses(config, arm, weights, dataset, device, seed, vocab_size):
    """The validation losses of an arm's model with these weights, before and after fine-tuning."""
    trainer = Trainer(config, arm, dataset.train, vocab_size, device, seed)
    trainer.model.load_state_dict(weights)
    rows = dataset.held_out[validation_rows(config, len(dataset.held_out))]
    untrained = trainer.evaluate(rows)
    release_memory(device)
    never = Curve(trainer, dataset.held_out)
    timed_steps(trainer, config.max_steps, lambda *_: None, never)
    trainer.optimizer.zero_grad(set_to_none=True)
    release_memory(device)  # evaluation is eager: it has no use for what a compiled step keeps
    fine_tuned = trainer.evaluate(rows)
    return {
        "untrained": untrained,
        "fine_tuned": fine_tuned if math.isfinite(fine_tuned) else None,
    }

"""The pieces of a training: model, step, warm-up, validation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CPU, DEVICES, VOCABULARY, tiny_config, tiny_dataset

from machine.command import UserError
from training.batches import own_tokens
from training.trainer import (
    NextTokenLoss,
    Trainer,
    autocast,
    build_model,
    check_compiler,
    parameter_counts,
)


def make_trainer(arm="window", device=CPU, **changes):
    dataset = tiny_dataset()
    return Trainer(tiny_config(**changes), arm, dataset.train, VOCABULARY, device, seed=7)


@pytest.mark.parametrize("device", DEVICES)
def test_warm_up_leaves_no_trace(device):
    trainer = make_trainer(device=torch.device(device))
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    buffers = {name: value.data_ptr() for name, value in trainer.model.state_dict().items()}
    random_state = torch.get_rng_state()
    device_state = torch.cuda.get_rng_state() if device == "cuda" else None
    trainer.warm_up()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
        assert value.data_ptr() == buffers[name], name
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert not trainer.optimizer.state
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.config.lr
    assert torch.equal(torch.get_rng_state(), random_state)
    if device == "cuda":
        assert torch.equal(torch.cuda.get_rng_state(), device_state)


def test_validation_is_the_mean_over_held_out_rows_without_dropout():
    trainer = make_trainer()
    held_out = tiny_dataset(rows=11).held_out[:3]  # the last batch is not full
    expected = []
    with torch.no_grad():
        trainer.model.eval()
        for row in held_out:
            tokens = torch.from_numpy(row.astype(np.int64))[None]
            log_p = trainer.model(tokens[:, :-1]).double().log_softmax(-1)
            expected.append(-log_p.gather(-1, tokens[:, 1:, None]).mean().item())
        trainer.model.train()
    assert trainer.evaluate(held_out) == pytest.approx(np.mean(expected), rel=1e-6)
    assert trainer.model.training


def test_parameters_are_counted_for_the_chosen_arms():
    config = tiny_config(arms=("window", "published"))
    expected = {
        arm: sum(p.numel() for p in build_model(config, arm, 30, CPU, 0).parameters())
        for arm in config.arms
    }
    assert parameter_counts(config, 30) == expected
    assert list(expected) == ["window", "published"]


def test_loss_is_in_nats():
    logits = torch.zeros(1, 4, 8)
    targets = torch.zeros(1, 4, dtype=torch.int64)
    assert NextTokenLoss(lambda _: logits)(None, targets).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"disable": True}, "is turned off"),
        ({"suppress_errors": True}, "is turned off"),
        ({}, r"does not work here \(.*no compiler at all"),
    ],
)
def test_a_compiler_that_does_not_compile_is_one_line(monkeypatch, setting, words):
    def broken(*_, **__):
        raise RuntimeError("no compiler at all\nand a long story")

    torch.compiler.reset()
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    with (
        torch._dynamo.config.patch(setting),
        pytest.raises(UserError, match=words) as raised,
    ):
        check_compiler(tiny_config(compile="default"), CPU)
    assert "\n" not in str(raised.value) and str(raised.value).endswith("choose --compile none")
    check_compiler(tiny_config(), CPU)


def test_weights_are_float32_whatever_the_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # as some libraries do when they are imported
    try:
        model = make_trainer().model
    finally:
        torch.set_default_dtype(before)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "memory", [{"loss_chunk": 5}, {"checkpoint_blocks": True}, {"loss_chunk": 100}]
)
@pytest.mark.parametrize("arm", ["fused", "window", "w3-d0-f1"])
def test_less_memory_gives_the_same_losses_and_weights(arm, memory, device):
    """With dropout too, whose masks are drawn again as they were."""
    dataset, trained = tiny_dataset(), []
    for changes in ({}, memory):
        config = tiny_config(n_heads=2, **changes)
        trainer = Trainer(config, arm, dataset.train, VOCABULARY, torch.device(device), 0)
        assert trainer.model.training
        losses = [trainer.step(batch, 1e-2).item() for batch in trainer.batches(3)]
        trained.append(
            (losses, torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        )
        evaluated = trainer.evaluate(dataset.held_out)
        trained[-1] += (evaluated,)
    (losses, weights, held_out), (other, other_weights, other_held_out) = trained
    assert losses == pytest.approx(other, rel=2e-6) and losses[0] - losses[-1] > 1e-4
    assert held_out == pytest.approx(other_held_out, rel=2e-6)
    assert torch.allclose(weights, other_weights, atol=2e-5)


def test_what_is_computed_again_is_not_kept():
    """Bytes that autograd saves in a forward pass, without the weights."""

    def saved(**changes):
        config, dataset = tiny_config(layers=4, **changes), tiny_dataset()
        trainer = Trainer(config, "fused", dataset.train, VOCABULARY, CPU, 0)
        weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
        kept = {}

        def keep(x):
            if (place := x.untyped_storage().data_ptr()) not in weights:
                kept[place] = x.untyped_storage().nbytes()
            return x

        (batch,) = trainer.batches(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            trainer.loss(*own_tokens(trainer.model, batch, CPU))
        return sum(kept.values())

    usual = saved()
    assert saved(checkpoint_blocks=True) < usual / 3
    assert saved(loss_chunk=8) < usual - 2 * 24 * VOCABULARY * 4


def test_gradients_of_the_output_layer_are_added_up_in_float32():
    """Under autocast many chunks would be added up in the 16 bits of the one cached copy."""
    config, dataset = tiny_config(dtype="bfloat16"), tiny_dataset()
    found = []
    for chunk in (0, 1):
        trainer = Trainer(replace(config, loss_chunk=chunk), "fused", dataset.train, 30, CPU, 0)
        trainer.model.eval()
        with autocast(config, CPU):
            loss = trainer.loss(*own_tokens(trainer.model, dataset.train[:16], CPU))
        loss.backward()
        found.append(trainer.model.fc_out.weight.grad.double())
    error = ((found[1] - found[0]).norm() / found[0].norm()).item()
    assert error < 5e-3, error

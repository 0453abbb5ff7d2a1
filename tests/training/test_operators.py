"""The attention that an arm really runs is named, and looking at it leaves no trace."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import CPU, DEVICES, VOCABULARY, needs_cuda, tiny_config, tiny_dataset

from attention import choose as attention_choose
from attention import full as attention_full
from attention import masks as attention_masks
from training import operators as training_operators
from training.arms import ARMS
from training.operators import attention_used
from training.trainer import Trainer, parameter_counts

CPU_KERNEL = "aten::_scaled_dot_product_flash_attention_for_cpu"
SPLIT = "window_attention::parts"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("arm", "changes", "evaluation", "kernels", "operators"),
    [
        ("fused", {}, "fused", None, [CPU_KERNEL]),
        ("baseline", {}, "dense", None, []),
        ("published", {}, "published", None, []),
        ("window", {}, "masked", None, [CPU_KERNEL]),
        ("window", {"window_attention": "dense"}, "dense", None, []),
        ("window", {"window_attention": "masked"}, "masked", None, [CPU_KERNEL]),
        ("window", {"window_attention": "split"}, "split", ["cpu", "cpu"], [SPLIT]),
        ("window", {"seq_len": 512}, "split", ["cpu", "cpu"], [SPLIT]),
        ("window", {"seq_len": 512, "dilation": 0}, "split", ["cpu", "cpu"], [SPLIT]),
        ("window", {"seq_len": 512, "dilation": 1}, "masked", None, [CPU_KERNEL]),
    ],
)
def test_the_attention_that_an_arm_runs_is_named(
    dtype, arm, changes, evaluation, kernels, operators
):
    used = attention_used(tiny_config(dtype=dtype, **changes), arm, CPU)
    assert used == {"evaluation": evaluation, "kernels": kernels, "operators": operators}
    assert json.loads(json.dumps(used, allow_nan=False)) == used


def test_the_attention_of_layers_that_differ_is_named_together():
    """At 512 tokens the first layer is worth splitting, the second is full attention."""
    config = tiny_config(seq_len=512, window_size=(32, 5), dilation=(4, 1), sink_tokens=3)
    used = attention_used(config, "window", CPU)
    assert used["evaluation"] == "split and masked" and used["kernels"] == ["cpu", "cpu"]
    assert used["operators"] == [SPLIT, CPU_KERNEL]
    same = attention_used(replace(config, window_size=(32, 32), dilation=(4, 4)), "window", CPU)
    assert same == attention_used(replace(config, window_size=32, dilation=4), "window", CPU)


def test_attention_is_tried_as_the_model_calls_it(monkeypatch):
    seen = []

    def spy(q, k, v):
        seen.extend((x.shape, x.dtype, x.stride(), x.requires_grad) for x in (q, k, v))
        return q

    monkeypatch.setitem(attention_full.FULL_ATTENTION, "fused", spy)
    config = tiny_config(dtype="bfloat16")
    attention_used(config, "fused", CPU)
    trainer = Trainer(config, "fused", tiny_dataset().train, VOCABULARY, CPU, seed=7)
    trainer.step(tiny_dataset().train[:2], 1e-3)
    assert len(seen) == 3 + 2 * 3  # one call, then one in each of two layers
    assert seen[:3] == seen[3:6] == seen[6:]
    assert seen[0] == (torch.Size([2, 24, 2, 8]), torch.bfloat16, (1152, 48, 8, 1), True)


def test_masked_is_named_where_auto_would_split_but_nothing_works(monkeypatch):
    for module in (training_operators, attention_choose):
        monkeypatch.setattr(module, "split_kernels", lambda *_: None)
    used = attention_used(tiny_config(seq_len=512), "window", CPU)
    assert used == {"evaluation": "masked", "kernels": None, "operators": [CPU_KERNEL]}
    with pytest.raises(ValueError, match="no kernel for"):
        attention_used(tiny_config(window_attention="split"), "window", CPU)


def test_textbook_attention_is_not_tried(monkeypatch):
    """Its scores are S x S, too many for a try at long lengths."""
    tried = []
    for arm, evaluation in (("baseline", "dense"), ("published", "published")):
        monkeypatch.setitem(attention_full.FULL_ATTENTION, evaluation, tried.append)
        attention_used(tiny_config(), arm, CPU)
    assert not tried


def test_attention_that_does_not_fit_names_no_operator(monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setitem(attention_full.FULL_ATTENTION, "fused", fail)
    error = torch.OutOfMemoryError("CUDA out of memory")
    used = attention_used(tiny_config(), "fused", CPU)
    assert used == {"evaluation": "fused", "kernels": None, "operators": []}
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        attention_used(tiny_config(), "fused", CPU)


@pytest.mark.parametrize("device", DEVICES)
def test_looking_at_attention_and_parameters_leaves_no_trace(device):
    device = torch.device(device)

    def random_states():
        on_gpus = torch.cuda.get_rng_state_all() if device.type == "cuda" else []
        return [torch.get_rng_state(), *on_gpus]

    before = random_states()
    for arm in ARMS:
        attention_used(tiny_config(), arm, device)
    parameter_counts(tiny_config(), VOCABULARY)
    assert all(torch.equal(a, b) for a, b in zip(before, random_states(), strict=True))
    assert attention_masks._kept_mask.results == {}


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_attention_has_a_fused_kernel(dtype):
    device = torch.device("cuda", 0)
    config = tiny_config(dtype=dtype, window_attention="split", seq_len=256)
    assert attention_used(config, "fused", device)["operators"]
    assert attention_used(config, "window", device)["operators"] == [SPLIT]

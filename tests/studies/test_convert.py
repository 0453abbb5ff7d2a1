"""A trained model's conversion: the right heads stay full, and every number is what it says."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import one_line
from tiny import CPU, big_logits, tiny_config, tiny_model
from torch.nn.functional import scaled_dot_product_attention

import convert as command
import studies.convert
from attention.pattern import window_mask
from gpt import CustomMHA, GPTModel
from gpt_win import GPTWindowModel
from machine.command import UserError
from studies.convert import convert, head_importance, with_heads_first
from training.batches import validation_rows
from training.reach import second_showing_loss
from training.tokens import load_dataset
from training.trainer import Trainer, model_of
from training.weights import load_model, save_weights

S, W = 192, 5
ARMS = "fused", "window"
CONFIG = tiny_config(seq_len=S, arms=ARMS, data="training_data.npy", device="cuda", lr=3e-3)
CONFIG = replace(CONFIG, positions="rotary", full_heads=1, nope=True)  # of window models alone


FOUR_HEADS = {"d_model": 24, "n_heads": 4, "layers": 2, "vocab_size": 40, "max_seq_len": S}


def model_of_four_heads(build, positions, **pattern):
    model = tiny_model(build, seed=3, **FOUR_HEADS, positions=positions, **pattern)
    return big_logits(model).eval()


def random_rows():
    """Nine rows of tokens for such a model."""
    return np.random.default_rng(0).integers(40, size=(9, S + 1)).astype(np.uint16)


def window_heads(model, patch, heads):
    """Give these heads, (layer, head) each, the window W by a mask on all scores."""
    layers = [block.mha for block in model.layers]

    def attend(mha, q, k, v):
        length = q.shape[1]
        masks = torch.ones(mha.n_heads, length, length, dtype=torch.bool).tril()
        for layer, head in heads:
            if layers[layer] is mha:
                masks[head] = window_mask(length, W, 0)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=masks).transpose(1, 2)

    patch.setattr(CustomMHA, "attend", attend)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("heads", [[[2, 0], [3]], [[], [3, 2, 1, 0]]])
def test_a_model_with_its_heads_in_another_order_computes_the_same(positions, heads):
    model = model_of_four_heads(GPTModel, positions).double()
    tokens = torch.randint(40, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = model(tokens)
    weights = with_heads_first(model.state_dict(), heads, 4)
    other = model_of_four_heads(GPTModel, positions).double()
    other.load_state_dict(weights)
    assert not torch.equal(weights["layers.1.mha.qkv"], model.layers[1].mha.qkv)
    torch.testing.assert_close(other(tokens), expected, rtol=1e-12, atol=1e-12)


def test_the_heads_that_are_named_stay_full(monkeypatch):
    model = model_of_four_heads(GPTModel, "rotary").double()
    tokens = torch.randint(40, (2, 30), generator=torch.Generator().manual_seed(0))
    pattern = {"window_size": W, "dilation": 0, "full_heads": 2}
    converted = model_of_four_heads(GPTWindowModel, "rotary", **pattern).double()
    converted.load_state_dict(with_heads_first(model.state_dict(), [[1, 3], [2, 0]], 4))
    found = converted(tokens)
    window_heads(model, monkeypatch, [(0, 0), (0, 2), (1, 1), (1, 3)])
    torch.testing.assert_close(found, model(tokens), rtol=1e-10, atol=1e-10)


def test_a_heads_importance_is_what_the_loss_rises_by_without_its_far_keys(monkeypatch):
    model = model_of_four_heads(GPTModel, "learned")
    model.layers[1].mha.wo.data[:, 12:18] = 0  # what head 2 says is not heard
    rows = random_rows()
    monkeypatch.setattr(studies.convert, "PASSAGES", 3)
    found = head_importance(model, FOUR_HEADS, f"w{W}-d0", rows, CONFIG)
    assert np.shape(found) == (2, 4) and found[1][2] == pytest.approx(0, abs=1e-6)
    base = second_showing_loss(model, rows, S, 3)
    for layer, head in ((0, 0), (0, 3), (1, 1)):
        with monkeypatch.context() as patch:
            window_heads(model, patch, [(layer, head)])
            rise = second_showing_loss(model, rows, S, 3) - base
        assert abs(rise) > 1e-4 and found[layer][head] == pytest.approx(rise, rel=1e-2, abs=1e-5)


def test_heads_are_told_apart_in_bfloat16_too(monkeypatch):
    """Autocast keeps a weight's bfloat16 copy as long as its context lasts."""
    monkeypatch.setattr(studies.convert, "PASSAGES", 3)
    model = model_of_four_heads(GPTModel, "learned")
    measured = model, FOUR_HEADS, f"w{W}-d0", random_rows()
    exact = head_importance(*measured, CONFIG)
    found = head_importance(*measured, replace(CONFIG, dtype="bfloat16"))
    assert np.ptp(found, axis=1).min() > 0.05
    np.testing.assert_allclose(found, exact, atol=0.02)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The weights of a trained model with full attention, and its data."""
    monkeypatch.chdir(tmp_path)
    steps = np.random.default_rng(0).integers(1, 3, size=10_000)  # to the next token: to be learned
    np.save("training_data.npy", (steps.cumsum() % 40).astype(np.uint16).reshape(-1, 25))
    (tmp_path / "tokenizer.json").write_text("{}")
    dataset = load_dataset("training_data.npy", S, 2)
    trainer = Trainer(CONFIG, "fused", dataset.train, dataset.vocab_size, CPU, 5)
    big_logits(trainer.model)
    for batch in trainer.batches(3):
        trainer.step(batch, 1e-3)
    _, arguments = model_of(CONFIG, "fused", dataset.vocab_size)
    about = {"arm": "fused", "seed": 5, "config": asdict(CONFIG)}
    path = save_weights(trainer.model, arguments, about, "tokenizer.json", "output")
    rows = validation_rows(CONFIG, len(dataset.held_out))
    return str(path), trainer.evaluate(dataset.held_out[rows])


HOW = {"pattern": f"w{W}-d0", "full_heads": (0, 1), "steps": 4, "device": "cpu"}


def test_a_conversion_is_measured_without_training_and_after_it(saved):
    path, loss = saved
    seen = []
    content = convert(path, **HOW, lr=3e-3, save=lambda saved: seen.append(len(saved["rows"])))
    rows = content["rows"]
    assert [(row["arm"], row["chosen"]) for row in rows] == [
        ("fused", "all"),
        ("w5-d0", "none"),
        ("w5-d0-f1", "first"),
        ("w5-d0-f1", "probe"),
    ]
    assert seen == [1, 2, 3, 4]
    assert rows[0]["untrained"] == pytest.approx(loss, rel=1e-6)
    assert len({row["untrained"] for row in rows[:3]}) == 3
    best = [[int(np.argmax(layer))] for layer in content["importance"]]
    assert rows[3]["heads"] == best and rows[2]["heads"] == [[0]] * 2
    for row in rows:
        assert row["fine_tuned"] < row["untrained"] - 0.01
    assert content["tokens"] == 4 * 2 * S and content["seed"] == 6
    assert content["config"]["device"] == "cpu"  # not where it was trained


def test_a_window_over_everything_is_the_full_model_before_and_after_training(saved):
    """So the same weights get the same batches at the same rates, whichever heads come first."""
    path, _ = saved
    rows = convert(path, **HOW | {"pattern": f"w{S}-d0", "full_heads": (0, 1, 2)})["rows"]
    assert [row["chosen"] for row in rows] == ["all", "none", "first", "probe", "all"]
    for row in rows[1:]:
        assert row["untrained"] == pytest.approx(rows[0]["untrained"], rel=1e-5)
    for row in (rows[1], rows[2], rows[4]):
        assert row["fine_tuned"] == pytest.approx(rows[0]["fine_tuned"], rel=1e-4)


def test_options_reach_the_training(saved, monkeypatch):
    monkeypatch.setattr(studies.convert, "PASSAGES", 2)  # of the probe, which is not meant here
    path, _ = saved
    how = HOW | {"full_heads": (0,)}
    content = convert(path, **how)
    one = content["rows"]
    assert content["config"]["lr"] == pytest.approx(CONFIG.lr / 10)
    assert convert(path, **how)["rows"][1]["fine_tuned"] == one[1]["fine_tuned"]
    for change in ({"seed": 2}, {"lr": 1e-2}, {"steps": 5}):
        assert convert(path, **how | change)["rows"][1]["fine_tuned"] != one[1]["fine_tuned"]
    with_sinks = convert(path, **how, sink_tokens=4)["rows"]
    assert with_sinks[0] == one[0]
    assert with_sinks[1]["untrained"] != one[1]["untrained"]


def code_of(path, options=""):
    return command.main(f"{path} --steps 2 --device cpu --pattern w5-d0 {options}".split())


def run(capsys, path, options=""):
    assert code_of(path, options) == 0
    return capsys.readouterr()


def test_the_command_prints_a_table_and_writes_all_of_it(saved, capsys):
    path, loss = saved
    printed = run(capsys, path, "--full-heads 0 1")
    content = json.loads(Path("output/conversion.json").read_text())
    assert len(content["rows"]) == 4 and content["weights"] == path
    table = printed.out
    assert f"{loss:.4f}" in table and "768 tokens" in table and "learning rate 0.0003" in table
    rise = content["rows"][1]["untrained"] - content["rows"][0]["untrained"]
    line = next(line for line in table.splitlines() if line.startswith("w5-d0 "))
    assert f"{rise:+.4f}" in line
    assert "written: output/conversion.json" in printed.err


def test_sequences_too_short_for_the_probe_keep_the_first_heads_alone(saved, capsys):
    path, _ = saved
    config = tiny_config(seq_len=24, arms=("fused",), data="training_data.npy")
    _, arguments = model_of(config, "fused", 40)
    model = GPTModel(**arguments)
    path = save_weights(
        model, arguments, {"arm": "x", "seed": 5, "config": asdict(config)}, None, "output"
    )
    printed = run(capsys, path, "--full-heads 1 --debug")
    assert " probe  " not in printed.out and " first  " in printed.out
    assert "too short for the probe" in printed.err


def refused(capsys, path, options=""):
    assert code_of(path, options) == 2
    return one_line(capsys)


def test_what_cannot_be_converted_is_one_clear_line(saved, capsys):
    path, _ = saved
    assert "--full-heads 3: the model has 2 heads" in refused(capsys, path, "--full-heads 3")
    for pattern in ("w5", "w5-d0-f1", "w5-d0-e2"):
        assert "--pattern" in refused(capsys, path, f"--pattern {pattern}")
    assert "--lr" in refused(capsys, path, "--lr 0")
    assert "--steps must be at least 1" in refused(capsys, path, "--steps 0")
    assert "--seed must be at least 1" in refused(capsys, path, "--seed 0")
    assert "none.npy: no such file" in refused(capsys, path, "--data none.npy")
    assert "no such file" in refused(capsys, "output/weights/none.safetensors")
    np.save("other.npy", np.full((900, 25), 77, np.uint16))
    assert "other.npy: not the data" in refused(capsys, path, "--data other.npy")
    Path("tokenizer.json").write_text("{} ")
    assert "training_data.npy: not the data" in refused(capsys, path)


def test_only_whole_models_with_full_attention_are_converted(saved, capsys):
    path, _ = saved
    model = load_model(path)
    build, arguments = model_of(CONFIG, "window", 40)
    about = {"config": asdict(CONFIG), "seed": 5}
    other = save_weights(build(**arguments), arguments, {"arm": "window", **about}, None, "output")
    assert "trained with full attention" in refused(capsys, other)
    _, arguments = model_of(CONFIG, "fused", 40)
    for config in ({"what": 1}, asdict(CONFIG) | {"lr": -1}):
        about = {"arm": "other", "seed": 5, "config": config}
        other = save_weights(model, arguments, about, None, "output")
        assert "other.safetensors: " in refused(capsys, other)
    safetensors.torch.save_file(model.state_dict(), other)
    assert "damaged" in refused(capsys, other)


def test_a_fine_tuning_that_diverges_is_told(saved, capsys):
    path, _ = saved
    printed = run(capsys, path, "--full-heads 0 --lr 1e30")
    rows = json.loads(Path("output/conversion.json").read_text())["rows"]
    assert rows[1]["fine_tuned"] is None and math.isfinite(rows[1]["untrained"])
    assert "w5-d0" in printed.out


def test_memory_that_runs_out_is_one_clear_line(saved, capsys, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(studies.convert, "convert", fail)
    assert code_of(saved[0]) == 1 and one_line(capsys).startswith("error: out of memory")


def test_from_python_what_is_wrong_is_raised(saved):
    with pytest.raises(UserError, match="the model has 2 heads"):
        convert(saved[0], **HOW | {"full_heads": (9,)})

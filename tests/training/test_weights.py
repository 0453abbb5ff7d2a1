"""Saved weights: the same model comes back, or a clear refusal, and nothing is ever executed."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from gpt import GPTModel
from gpt_win import GPTWindowModel
from machine.command import UserError
from machine.files import write_json
from training.weights import load_model, load_window_model, save_weights, save_window_weights

ARGUMENTS = {"d_model": 8, "n_heads": 2, "layers": 1, "vocab_size": 11, "max_seq_len": 9}
ARGUMENTS |= {"window_size": 3, "dilation": 2, "full_heads": 1, "stagger": True}
TOKENS = torch.arange(9)[None]


@pytest.fixture
def stored(tmp_path):
    torch.manual_seed(1)
    model = GPTWindowModel(**ARGUMENTS).eval()
    save_window_weights(model, ARGUMENTS, None, tmp_path)
    return tmp_path / "window_model_weights.pt", model


def test_the_same_model_comes_back(stored, tmp_path):
    path, model = stored
    again = load_window_model(path)
    assert torch.equal(again(TOKENS), model(TOKENS)) and not again.training
    assert (again.window_size, again.dilation) == (3, 2)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    save_window_weights(model, ARGUMENTS, tmp_path / "source" / "tokenizer.json", tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def refused(path):
    with pytest.raises(UserError) as caught:
        load_window_model(path)
    message = str(caught.value)
    assert "\n" not in message and str(path.parent) in message
    return message


def test_missing_files_are_named(stored):
    path, _ = stored
    content = path.read_bytes()
    path.unlink()
    assert "no such file" in refused(path)
    path.write_bytes(content)
    path.with_name("window_model_config.json").unlink()
    assert "window_model_config.json: no such file" in refused(path)


def test_mutated_weights_are_refused(stored):
    path, _ = stored
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(20):
        mutated = bytearray(content)
        place = rng.integers(len(content))
        mutated[place] ^= 1 << rng.integers(8)
        path.write_bytes(mutated)
        assert "damaged, or not the weights" in refused(path)


def test_weights_and_config_of_two_trainings_are_refused(stored, tmp_path):
    path, model = stored
    config = path.with_name("window_model_config.json")
    before = config.read_bytes()
    model.fc_out.bias.data += 1
    save_window_weights(model, ARGUMENTS, None, tmp_path)
    config.write_bytes(before)  # as if killed between the two
    assert "damaged, or not the weights" in refused(path)


def change_config(path, **changes):
    """Other values in the config beside the weights, whose checksum fits them again."""
    config = path.with_name("window_model_config.json")
    about = json.loads(config.read_text())
    about["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(config, about | changes)


def test_a_config_of_earlier_versions_is_read(stored):
    path, model = stored
    change_config(path, sha256="its own checksum")
    assert torch.equal(load_window_model(path)(TOKENS), model(TOKENS))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_code_in_a_file_is_not_executed(stored, tmp_path, kind):
    path, _ = stored
    bomb = {"fc_out.weight": Bomb(tmp_path / "executed")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(bomb, protocol=2))
    else:
        torch.save(bomb, path)
    change_config(path)
    assert "no weights of this suite" in refused(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{}, {"a": torch.zeros(3)}, [1, 2], torch.zeros(2)])
def test_foreign_weights_are_refused(stored, content):
    path, _ = stored
    torch.save(content, path)
    change_config(path)
    assert "no weights of this suite" in refused(path)


def test_arguments_that_fit_no_model_are_refused(stored):
    path, _ = stored
    for arguments in ({}, ARGUMENTS | {"d_model": 9}, ARGUMENTS | {"what": 1}, [1]):
        change_config(path, arguments=arguments)
        assert "no weights of this suite" in refused(path)
    change_config(path, model="Other")
    assert "not the config of a window model" in refused(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": "GPTWindowModel"}', "\xff"])
def test_damaged_configs_are_refused(stored, text):
    path, _ = stored
    path.with_name("window_model_config.json").write_bytes(text.encode("latin-1"))
    assert "train the model again" in refused(path)


def test_a_device_that_is_not_there_is_not_blamed_on_the_file(stored):
    with pytest.raises(RuntimeError, match="bogus"):
        load_window_model(stored[0], device="bogus")


def test_a_full_disk_is_an_error_of_the_file(tmp_path, monkeypatch):
    """torch.save itself would raise a RuntimeError of its own."""

    def write_to_a_full_disk(path, write):
        with open("/dev/full", "wb") as file:
            write(file)

    monkeypatch.setattr("training.weights.atomic_write", write_to_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_window_weights(GPTWindowModel(**ARGUMENTS), ARGUMENTS, None, tmp_path)


@pytest.fixture
def saved(tmp_path):
    """A model with full attention in a safetensors file."""
    torch.manual_seed(1)
    arguments = {name: ARGUMENTS[name] for name in list(ARGUMENTS)[:5]}
    model = GPTModel(**arguments).eval()
    about = {"arm": "fused", "suite_version": "1", "config": {"lr": 0.1}}
    return save_weights(model, arguments, about, None, tmp_path), model


def test_every_model_comes_back_from_one_file(saved, stored, tmp_path):
    path, model = saved
    assert path == tmp_path / "weights" / "fused.safetensors"
    again = load_model(path)
    assert type(again) is GPTModel and torch.equal(again(TOKENS), model(TOKENS))
    path, _ = save_weights(stored[1], ARGUMENTS, {"arm": "w3-d2"}, None, tmp_path), None
    again = load_model(path)
    assert type(again) is GPTWindowModel and torch.equal(again(TOKENS), stored[1](TOKENS))
    assert not again.training and again.layers[0].mha.pattern().stagger


def test_a_file_says_what_it_is_to_any_reader_of_safetensors(saved):
    path, model = saved
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["about"])
        assert (file.get_tensor("fc_out.bias") == model.fc_out.bias.detach().numpy()).all()
    assert (about["model"], about["arm"], about["suite_version"]) == ("GPTModel", "fused", "1")
    assert about["arguments"]["d_model"] == 8 and about["tokenizer_sha256"] is None
    assert about["config"] == {"lr": 0.1}


def test_mutated_safetensors_are_refused(saved):
    path, _ = saved
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [*rng.integers(len(content), size=20), *rng.integers(600, size=60)]  # of the header
    for place in places:
        mutated = bytearray(content)
        mutated[place] ^= 1 << rng.integers(8)
        path.write_bytes(mutated)
        assert "damaged, or no weights of this suite" in refused(path)
    for other in (b"", content[:-1], content[:100], pickle.dumps({}), content + b"x"):
        path.write_bytes(other)
        assert "damaged, or no weights of this suite" in refused(path)
    path.unlink()
    assert "no such file" in refused(path)


def test_safetensors_of_another_program_are_refused(saved):
    path, model = saved
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    for metadata in (None, {"format": "pt"}, {"about": "[]"}, {"about": '{"model": "GPTModel"}'}):
        safetensors.torch.save_file(weights, path, metadata)
        assert "damaged, or no weights of this suite" in refused(path)


def test_weights_that_fit_no_model_are_refused(saved, tmp_path):
    _, model = saved
    path = save_weights(model, ARGUMENTS | {"d_model": 9}, {"arm": "w9-d0"}, None, tmp_path)
    assert "damaged, or no weights of this suite" in refused(path)

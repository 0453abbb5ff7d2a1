"""The command generate.py: text to standard output, one clear line for whatever is wrong."""

import io
import json
import sys

import pytest
import torch
from conftest import nobody_reads, one_line
from tiny import big_logits, tiny_model
from tokenizers import ByteLevelBPETokenizer

import generate
from gpt import GPTModel
from gpt_win import GPTWindowModel
from training.prepare import END_OF_TEXT
from training.weights import load_tokenizer, load_window_model, save_weights, save_window_weights

TEXT = "def parse(self, naïve: str) -> int:\n    return len(naïve)  # 日本語 🙂\n"
WEIGHTS = ["--weights", "window_model_weights.pt", "--device", "cpu"]


def save_tokenizer(path, tokens):
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([TEXT * 5], tokens, special_tokens=[END_OF_TEXT])
    tokenizer.save(str(path))


def save(folder, positions="learned", change=None):
    """A small model with differing logits, and a real tokenizer."""
    tokenizer = folder / "source.json"
    save_tokenizer(tokenizer, 300)
    arguments = {"d_model": 16, "n_heads": 2, "layers": 2, "vocab_size": 300}
    arguments |= {"max_seq_len": 64, "window_size": 4, "dilation": 3, "positions": positions}
    model = big_logits(tiny_model(GPTWindowModel, **arguments))
    if change is not None:
        change(model)
    save_window_weights(model, arguments, tokenizer, folder)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path)
    return tmp_path


def run(capsys, *arguments, code=0):
    assert generate.main([*arguments, *WEIGHTS]) == code
    return capsys.readouterr()


def refused(capsys, *arguments):
    assert generate.main([*arguments, *WEIGHTS]) == 2
    return one_line(capsys)


def test_the_text_is_the_prompt_and_what_the_model_gives(folder, capsys):
    captured = run(capsys, "def parse(", "--tokens", "30", "--temperature", "0")
    path = folder / "window_model_weights.pt"
    model = load_window_model(path)
    tokenizer = load_tokenizer(path, len(model.word_embeddings.weight))
    ids = tokenizer.encode("def parse(").ids
    new = model.generate(torch.tensor([ids]), 30, temperature=0)[0, len(ids) :].tolist()
    end = tokenizer.token_to_id(END_OF_TEXT)
    new = new[: new.index(end)] if end in new else new
    assert captured.out == "def parse(" + tokenizer.decode(new) + "\n"
    assert " tokens/s on " in captured.err


def test_seeds_repeat_and_options_count(folder, capsys):
    def text(*options):
        return run(capsys, "def", "--tokens", "40", *options).out

    assert text("--seed", "1") == text("--seed", "1") != text("--seed", "2")
    assert text("--top-k", "1") == text("--temperature", "0") == text("--top-p", "1e-9")
    assert text("--top-k", "0", "--temperature", "5") != text("--top-k", "2", "--temperature", "5")


def test_the_prompt_comes_from_standard_input(folder, capsys, monkeypatch):
    expected = run(capsys, "naïve 🙂\n", "--tokens", "5").out
    stdin = io.TextIOWrapper(io.BytesIO("naïve 🙂\n".encode()), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run(capsys, "-", "--tokens", "5").out == expected
    for content, words in ((b"", "the prompt is empty"), (b"\xff", "the prompt is not UTF-8")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert words in refused(capsys, "-")


def test_characters_split_over_tokens_come_whole(folder, monkeypatch):
    tokenizer = load_tokenizer(folder / "window_model_weights.pt", 300)
    text = "한국어 🦜 naïve €\t\x00"
    ids = tokenizer.encode(text).ids
    assert len(ids) > len(text)  # some characters are several tokens
    written = []
    monkeypatch.setattr(generate, "write", written.append)
    assert generate.write_tokens(ids, tokenizer) == (len(ids), False)
    assert "".join(written) == text and "\ufffd" not in written and len(written) > 5
    written.clear()
    generate.write_tokens(tokenizer.encode("한").ids[:1], tokenizer)
    assert written == ["\ufffd"]


def test_learned_positions_end_with_a_note_and_rotary_ones_go_on(folder, capsys):
    captured = run(capsys, "def parse(", "--tokens", "500", "--seed", "3")
    assert "stopped: the sequence is full, learned positions end at 64" in captured.err
    for tokens in ("500", "0"):
        words = refused(capsys, "def parse(" * 40, "--tokens", tokens)
        assert "the sequence is full: the prompt has" in words
    save(folder, positions="rotary")
    captured = run(capsys, "def parse(" * 40, "--tokens", "70")
    assert "70 tokens, " in captured.err and "stopped" not in captured.err


def test_the_end_of_the_text_ends_it(folder, capsys):
    def always(model):
        model.fc_out.weight.data.zero_()
        model.fc_out.bias.data[0] = 9.0  # the tokenizer's first token

    save(folder, change=always)
    captured = run(capsys, "def", "--tokens", "40")
    assert captured.out == "def\n" and "stopped: the model ended the text" in captured.err
    # a prompt that spells it out is text
    assert run(capsys, END_OF_TEXT, "--tokens", "0").out == END_OF_TEXT + "\n"


def test_another_tokenizer_is_one_clear_line(folder, capsys):
    tokenizer, config = folder / "tokenizer.json", folder / "window_model_config.json"
    original = tokenizer.read_bytes()
    tokenizer.write_bytes(original + b"\n")
    assert "tokenizer.json: damaged, or not the tokenizer" in refused(capsys, "x")
    tokenizer.write_text("{}")
    assert "tokenizer.json: no tokenizer (" in refused(capsys, "x")
    tokenizer.unlink()
    assert "tokenizer.json: no such file" in refused(capsys, "x")
    about = json.loads(config.read_text())
    del about["tokenizer_sha256"]  # as earlier versions wrote it: the number of tokens must do
    config.write_text(json.dumps(about))
    tokenizer.write_bytes(original)
    run(capsys, "x", "--tokens", "1")
    save_tokenizer(tokenizer, 270)
    assert "not the tokenizer that window_model_config.json was" in refused(capsys, "x")


def test_missing_and_foreign_weights_are_one_clear_line(folder, capsys):
    weights = folder / "window_model_weights.pt"
    weights.write_bytes(b"no weights")
    assert "window_model_weights.pt: damaged" in refused(capsys, "x")
    weights.unlink()
    assert "no such file: python main.py writes it" in refused(capsys, "x")


def test_weights_that_diverged_are_refused(folder, capsys):
    save(folder, change=lambda model: model.fc_out.bias.data.fill_(float("nan")))
    assert "the training diverged" in refused(capsys, "x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], "the prompt is empty"),
        (["x\udcff"], "the prompt is not UTF-8"),
        (["x", "--tokens", "-1"], "--tokens must be at least 0, got -1"),
        (["x", "--top-k", "-1"], "--top-k must be at least 0, got -1"),
        (["x", "--top-p", "0"], "top_p must be above 0 and at most 1, got 0.0"),
        (["x", "--temperature", "-1"], "temperature must be a finite number, at least 0, got -1.0"),
        (["x", "--temperature", "nan"], "temperature must be a finite number, at least 0, got nan"),
        (["x", "--seed", str(2**64)], "--seed must fit into 64 bits"),
    ],
)
def test_wrong_options_are_one_clear_line(folder, capsys, arguments, words):
    assert words in refused(capsys, *arguments)


def test_a_device_that_is_not_there_is_one_clear_line(folder, capsys):
    assert generate.main(["x", "--device", "tpu"]) == 2
    assert capsys.readouterr().err.startswith("error: --device 'tpu'")


def test_an_interruption_ends_the_line_and_exits_with_130(folder, capsys, monkeypatch):
    original, calls = generate.write, []

    def write(text):
        calls.append(text)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(text)

    monkeypatch.setattr(generate, "write", write)
    captured = run(capsys, "def", code=130)
    assert captured.out.startswith("def") and captured.out.endswith("\n")
    assert captured.err == "interrupted\n"


def test_a_reader_that_stops_reading_ends_it_quietly(folder, capsys, monkeypatch):
    nobody_reads(monkeypatch)
    assert run(capsys, "def parse(", "--tokens", "50").err == ""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device"), 1, "the output could not be written (No space"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory on cpu: fewer --tokens"),
    ],
)
def test_a_full_disk_and_a_full_memory_are_one_clear_line(folder, capsys, error, code, words):
    def fail(*_):
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "write_tokens", fail)
        patch.setattr(sys, "stdout", sys.stdout)  # closed by the first error
        captured = run(capsys, "def", code=code)
    assert captured.err.startswith(f"error: {words}") and captured.err.count("\n") == 1
    with pytest.MonkeyPatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(generate, "write_tokens", fail)
        run(capsys, "def", "--debug")


def test_a_tokenizer_with_more_tokens_than_the_model_is_one_line(tmp_path, capsys):
    save(tmp_path)
    save_tokenizer(tmp_path / "tokenizer.json", 400)
    about = json.loads((tmp_path / "window_model_config.json").read_text())
    del about["tokenizer_sha256"]  # as weights of earlier versions
    (tmp_path / "window_model_config.json").write_text(json.dumps(about))
    code = generate.main([TEXT, "--weights", str(tmp_path / "window_model_weights.pt")])
    assert code == 2 and "tokens that the model does not know" in capsys.readouterr().err


def test_any_arm_is_generated_with_and_has_the_tokenizer_of_its_experiment(tmp_path, capsys):
    save_tokenizer(tmp_path / "source.json", 300)
    arguments = {"d_model": 16, "n_heads": 2, "layers": 1, "vocab_size": 300, "max_seq_len": 64}
    model = GPTModel(**arguments)
    path = save_weights(model, arguments, {"arm": "fused"}, tmp_path / "source.json", tmp_path)
    command = ["def", "--weights", str(path), "--tokens", "5", "--device", "cpu"]
    assert generate.main(command) == 0
    assert capsys.readouterr().out.startswith("def")
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text() + " ")
    assert generate.main(command) == 2
    assert "not the tokenizer that fused.safetensors was" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-4])
    assert generate.main(command) == 2
    assert "fused.safetensors: damaged" in capsys.readouterr().err

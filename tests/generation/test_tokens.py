"""Generation: what the kept keys give is what evaluating the whole sequence again gives."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import big_logits, tiny_model, tiny_tokens

from generation import tokens as generation_tokens
from generation.sampling import draw
from gpt import GPTModel
from gpt_win import GPTWindowModel

NOPE = {"positions": "rotary", "nope": True}


def build(model_class=GPTModel, seed=0, **changes):
    return big_logits(tiny_model(model_class, seed, **{"max_seq_len": 64, **changes}))


def recomputed(model, prompt, new):
    """Greedy tokens (B, T + new) and the logits of every new one, the whole sequence each time."""
    tokens, logits = prompt, []
    with torch.no_grad():
        for _ in range(new):
            logits.append(model(tokens)[:, -1])
            tokens = torch.cat([tokens, logits[-1].argmax(-1, keepdim=True)], dim=1)
    return tokens, logits


def cached(model, prompt, new, monkeypatch):
    """The same from ``generate``, and the logits that it drew from."""
    seen = []

    def keep_and_draw(logits, *sampling):
        assert not logits.requires_grad
        seen.append(logits)
        return draw(logits, *sampling)

    with monkeypatch.context() as patch:
        patch.setattr(generation_tokens, "draw", keep_and_draw)
        return model.generate(prompt, new, temperature=0), seen


def check_equal(model, prompt, new, monkeypatch):
    model.eval()
    tokens, logits = recomputed(model, prompt, new)
    found, found_logits = cached(model, prompt, new, monkeypatch)
    assert torch.equal(found, tokens)
    for one, other in zip(found_logits, logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert torch.equal(model.generate(prompt, new, temperature=0), tokens)


@pytest.mark.parametrize(
    ("model_class", "options"),
    [
        (GPTModel, {}),
        (GPTModel, {"positions": "rotary", "attention": "dense"}),
        (GPTWindowModel, {"window_size": 5, "dilation": 3, "attention": "split"}),
        (GPTWindowModel, {"window_size": 1, "dilation": 2, "positions": "rotary"}),
        (GPTWindowModel, {"window_size": 4, "dilation": 5, "sink_tokens": 9}),
        (GPTWindowModel, {"window_size": 63, "dilation": 3}),
        (GPTWindowModel, {"window_size": 100, "dilation": 2, "sink_tokens": 2}),
        (GPTWindowModel, {"window_size": 20, "dilation": 43}),
        (GPTWindowModel, {"window_size": 20, "dilation": 400, "sink_tokens": 100}),
        (GPTWindowModel, {"window_size": [3, 90], "dilation": [0, 1], "sink_tokens": 4}),
        (GPTWindowModel, {"window_size": 5, "dilation": 0, "full_heads": 1}),
        (GPTWindowModel, {"window_size": 5, "dilation": 3, "stagger": True, "sink_tokens": 2}),
        (GPTWindowModel, {"window_size": 0, "full_heads": [2, 1], "stagger": True} | NOPE),
    ],
)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 30)])
def test_named_patterns_equal_recomputation(model_class, options, batch, length, monkeypatch):
    check_equal(build(model_class, **options), tiny_tokens(batch, length), 64 - length, monkeypatch)


@given(
    window=st.integers(1, 40),
    dilation=st.integers(0, 12),
    sinks=st.integers(0, 6),
    length=st.integers(1, 39),
    batch=st.integers(1, 3),
    positions=st.sampled_from(["learned", "rotary"]),
)
@settings(max_examples=25, deadline=None)
def test_any_pattern_equals_recomputation(window, dilation, sinks, length, batch, positions):
    options = {"window_size": window, "dilation": dilation, "sink_tokens": sinks}
    model = build(GPTWindowModel, max_seq_len=40, layers=1, positions=positions, **options)
    with pytest.MonkeyPatch.context() as monkeypatch:
        check_equal(model, tiny_tokens(batch, length), 40 - length, monkeypatch)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize(
    ("model_class", "options"),
    [
        (GPTModel, {}),
        (GPTWindowModel, {"window_size": 4, "dilation": 3}),
        (GPTWindowModel, {"window_size": 4, "dilation": 0, "sink_tokens": 3}),
        (GPTWindowModel, {"window_size": 4, "full_heads": 1, "stagger": True, "nope": True}),
        (GPTWindowModel, {"window_size": [2, 6], "dilation": [5, 1], "sink_tokens": 12}),
    ],
)
@pytest.mark.parametrize("lengths", [(9, 1, 20, 20, 5), (2, 2, 1)])
def test_prompts_of_different_lengths_are_what_each_is_alone(
    model_class, options, positions, lengths, monkeypatch
):
    model = build(model_class, positions=positions, **options).eval()
    rows = [tiny_tokens(1, n, seed=n)[0] for n in lengths]
    together, logits = cached(model, rows, 30, monkeypatch)
    assert isinstance(together, list)
    for number, (row, found) in enumerate(zip(rows, together, strict=True)):
        tokens, alone = recomputed(model, row[None], 30)
        assert torch.equal(found, tokens[0])
        for one, other in zip(logits, alone, strict=True):
            torch.testing.assert_close(one[number], other[0], rtol=0, atol=1e-4)


def test_float64_is_exact_to_rounding(monkeypatch):
    model = build(GPTWindowModel, window_size=5, dilation=3, sink_tokens=2).double().eval()
    _, logits = recomputed(model, tiny_tokens(2, 9), 30)
    _, found = cached(model, tiny_tokens(2, 9), 30, monkeypatch)
    for one, other in zip(found, logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("sinks", [0, 2])  # with sinks a step is two products, without a kernel
def test_16_bits_by_autocast_stay_within_their_rounding(sinks, monkeypatch):
    model = build(GPTWindowModel, window_size=5, dilation=3, sink_tokens=sinks).eval()
    with torch.autocast("cpu", torch.bfloat16):
        tokens, logits = cached(model, tiny_tokens(2, 9), 20, monkeypatch)
    exact = model(tokens[:, :-1])[:, 8:]  # the same tokens at once, in float32
    for step, found in enumerate(logits):
        assert (found - exact[:, step]).norm() < 0.05 * exact[:, step].norm()


def test_the_stream_gives_what_generate_gives_and_training_goes_on_meanwhile():
    model = build(GPTWindowModel, window_size=4, dilation=3, dropout=0.5).train()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    found = []
    for ids in model.stream(tiny_tokens(2, 3), 10, temperature=0):
        assert torch.is_grad_enabled() and not ids.requires_grad
        assert [module.training for module in model.modules()] == modes
        found.append(ids)
    expected = model.generate(tiny_tokens(2, 3), 10, temperature=0)  # no dropout
    assert torch.equal(torch.stack(found, dim=1), expected[:, 3:])
    assert torch.equal(expected[:, :3], tiny_tokens(2, 3)) and expected.dtype == torch.int64
    assert [module.training for module in model.modules()] == modes


def test_an_error_inside_restores_the_mode(monkeypatch):
    model = build().train()

    def broken(*args):
        raise RuntimeError("broken")

    monkeypatch.setattr(generation_tokens, "draw", broken)
    with pytest.raises(RuntimeError, match="broken"):
        model.generate(tiny_tokens(1, 3), 2)
    assert all(module.training for module in model.modules())


def test_no_new_tokens_and_small_integers_and_lists():
    model = build()
    assert torch.equal(model.generate(tiny_tokens(2, 5), 0), tiny_tokens(2, 5))
    expected = model.generate(tiny_tokens(2, 5), 4, temperature=0)
    for dtype in (torch.uint8, torch.uint16, torch.int32):
        assert torch.equal(model.generate(tiny_tokens(2, 5).to(dtype), 4, temperature=0), expected)
    assert [len(row) for row in model.generate([[1, 2], (3,)], 4)] == [6, 5]


@pytest.mark.parametrize("model_class", [GPTModel, GPTWindowModel])
def test_learned_positions_end_at_max_seq_len(model_class):
    model = build(model_class)
    assert model.generate(tiny_tokens(1, 60), 4).shape == (1, 64)
    words = "a prompt of 60 tokens and max_new_tokens 5 are more than max_seq_len 64"
    with pytest.raises(ValueError, match=words):
        model.generate(tiny_tokens(1, 60), 5)
    with pytest.raises(ValueError, match="more than max_seq_len"):
        model.stream([tiny_tokens(1, 60)[0], tiny_tokens(1, 2)[0]], 5)  # before the first token


def test_rotary_positions_go_on_beyond_max_seq_len(monkeypatch):
    options = {"positions": "rotary", "window_size": 5, "dilation": 3}
    short = build(GPTWindowModel, max_seq_len=8, **options).eval()
    long = build(GPTWindowModel, max_seq_len=64, **options).eval()
    long.load_state_dict(short.state_dict())
    tokens, _ = recomputed(long, tiny_tokens(1, 6), 40)
    assert torch.equal(short.generate(tiny_tokens(1, 6), 40, temperature=0), tokens)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        ({"temperature": -0.1}, "temperature must be a finite number, at least 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be a finite number, at least 0, got nan"),
        ({"temperature": "1"}, "temperature must be a finite number, at least 0, got '1'"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_k": 2.0}, "top_k must be a whole number, got 2.0"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, got True"),
        ({"top_k": True}, "top_k must be a whole number, got True"),
        ({"stop": -1}, "stop must be at least 0, got -1"),
        ({"stop": 1.0}, "stop must be a whole number, got 1.0"),
        ({"stop": 50}, "stop 50 is not in the vocabulary of 50"),
        ({"prompt": [[]]}, "the prompt is empty"),
        ({"prompt": torch.zeros((2, 0), dtype=torch.long)}, "the prompt is empty"),
        ({"prompt": [[1], []]}, "the prompt is empty"),
        ({"prompt": []}, r"the prompt must be whole token ids \(B, T\)"),
        ({"prompt": torch.tensor([1, 2])}, r"the prompt must be whole token ids \(B, T\)"),
        ({"prompt": torch.zeros(1, 2)}, r"the prompt must be whole token ids \(B, T\)"),
        ({"prompt": 3}, r"the prompt must be whole token ids \(B, T\)"),
        ({"prompt": [[50]]}, "token 50 is not in the vocabulary of 50"),
        ({"prompt": [[3, -1]]}, "token -1 is not in the vocabulary of 50"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    arguments = {"prompt": [[1, 2]], "max_new_tokens": 2, **arguments}
    for method in (build().generate, build(GPTWindowModel).stream):
        with pytest.raises(ValueError, match=words):
            method(**arguments)


def test_a_seed_decides_what_is_drawn():
    model = build(GPTWindowModel, window_size=4, dilation=3)

    def text(seed):
        return model.generate(
            tiny_tokens(2, 3), 40, top_k=20, generator=torch.Generator().manual_seed(seed)
        )

    assert torch.equal(text(0), text(0)) and not torch.equal(text(0), text(1))


def test_rows_end_at_the_stop_token():
    model = build(GPTWindowModel, window_size=4, dilation=3)
    rows = [tiny_tokens(1, n, seed=n)[0] for n in (3, 5, 5)]
    going_on = torch.stack(list(model.stream(rows, 40, temperature=0)), dim=1)
    counts = {}  # of every token how many a row has up to its first one
    for token in range(50):
        places = [row.tolist().index(token) for row in going_on if token in row]
        if len(places) == len(rows) and len(set(places)) > 1:
            counts[token] = [place + 1 for place in places]
    stop, lengths = counts.popitem()
    expected = going_on[:, : max(lengths)].clone()
    for row, length in zip(expected, lengths, strict=True):
        row[length:] = stop
    found = torch.stack(list(model.stream(rows, 40, temperature=0, stop=stop)), dim=1)
    assert torch.equal(found, expected)
    texts = model.generate(rows, 40, temperature=0, stop=stop)
    assert all(map(torch.equal, texts, map(torch.cat, zip(rows, expected, strict=True))))


def test_numbers_of_numpy_are_whole_numbers():
    model = build(GPTWindowModel, window_size=np.int64(4), dilation=np.int64(3))
    model.load_state_dict(build().state_dict())
    expected = build(GPTWindowModel, window_size=4, dilation=3).generate([[1]], 9, 0)
    numbers = {"max_new_tokens": np.int64(9), "temperature": np.int64(0), "top_k": np.int64(5)}
    (found,) = model.generate(np.array([[1]]), **numbers, stop=np.uint8(49))
    assert torch.equal(found[:10], expected[0][: len(found)])
    drawn = model.generate([[1]], 9, top_k=np.int64(5), generator=torch.Generator())
    assert torch.equal(drawn[0], model.generate([[1]], 9, top_k=5, generator=torch.Generator())[0])

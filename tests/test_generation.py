"""Generation: what the kept keys give is what evaluating the whole sequence again gives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt
from attention.cache import PRODUCTS, KeyValueCache
from attention.full import dense_attention
from attention.pattern import window_mask
from generation.sampling import draw
from gpt import GPTModel
from gpt_win import GPTWindowModel

SIZES = {"d_model": 24, "n_heads": 3, "layers": 2, "vocab_size": 50, "max_seq_len": 64}


def build(model_class=GPTModel, seed=0, **changes):
    """A model whose logits differ: the initial weights of 0.01 would leave every key alike."""
    torch.manual_seed(seed)
    model = model_class(**{**SIZES, **changes})
    for parameter in model.parameters():
        parameter.data.mul_(20 if parameter.ndim > 1 else 1)
    return model


def prompts(batch, length, seed=1):
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(seed))


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
        patch.setattr(gpt, "draw", keep_and_draw)
        return model.generate(prompt, new, temperature=0), seen


def check_equal(model, prompt, new, monkeypatch):
    model.eval()
    tokens, logits = recomputed(model, prompt, new)
    found, found_logits = cached(model, prompt, new, monkeypatch)
    assert torch.equal(found, tokens)
    for one, other in zip(found_logits, logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert torch.equal(model.generate(prompt, new, temperature=0), tokens)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("attention", ["fused", "dense", "published"])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 17)])
def test_full_attention_equals_recomputation(positions, attention, batch, length, monkeypatch):
    model = build(attention=attention, positions=positions)
    check_equal(model, prompts(batch, length), 64 - length, monkeypatch)


@pytest.mark.parametrize(
    ("pattern", "options"),
    [
        ((5, 3), {}),
        ((5, 3), {"positions": "rotary", "attention": "split"}),
        ((1, 1), {}),
        ((1, 2), {"positions": "rotary"}),
        ((7, 0), {}),
        ((4, 0), {"sink_tokens": 3}),
        ((4, 5), {"sink_tokens": 9, "positions": "rotary"}),
        ((62, 1), {}),
        ((63, 3), {}),
        ((100, 2), {"sink_tokens": 2}),
        ((20, 43), {}),
        ((20, 42), {"attention": "dense"}),
        ((20, 400), {"sink_tokens": 100}),
        (([3, 9], [4, 1]), {}),
        (([3, 90], [0, 2]), {"sink_tokens": 4, "positions": "rotary"}),
    ],
)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 30), (3, 5)])
def test_every_pattern_equals_recomputation(pattern, options, batch, length, monkeypatch):
    model = build(GPTWindowModel, window_size=pattern[0], dilation=pattern[1], **options)
    check_equal(model, prompts(batch, length), 64 - length, monkeypatch)


@given(
    window=st.integers(1, 40),
    dilation=st.integers(0, 12),
    sinks=st.integers(0, 6),
    length=st.integers(1, 39),
    batch=st.integers(1, 3),
    positions=st.sampled_from(["learned", "rotary"]),
)
@settings(max_examples=40, deadline=None)
def test_any_pattern_equals_recomputation(window, dilation, sinks, length, batch, positions):
    options = {"window_size": window, "dilation": dilation, "sink_tokens": sinks}
    model = build(GPTWindowModel, max_seq_len=40, layers=1, positions=positions, **options)
    with pytest.MonkeyPatch.context() as monkeypatch:
        check_equal(model, prompts(batch, length), 40 - length, monkeypatch)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize(
    ("model_class", "options"),
    [
        (GPTModel, {}),
        (GPTWindowModel, {"window_size": 4, "dilation": 3}),
        (GPTWindowModel, {"window_size": 4, "dilation": 0, "sink_tokens": 3}),
        (GPTWindowModel, {"window_size": [2, 6], "dilation": [5, 1], "sink_tokens": 6}),
        (GPTWindowModel, {"window_size": 6, "dilation": 4, "sink_tokens": 12}),
    ],
)
@pytest.mark.parametrize("lengths", [(9, 1, 20, 20, 5), (7, 8), (2, 2, 1)])
def test_prompts_of_different_lengths_are_what_each_is_alone(
    model_class, options, positions, lengths, monkeypatch
):
    model = build(model_class, positions=positions, **options).eval()
    rows = [prompts(1, n, seed=n)[0] for n in lengths]
    together, logits = cached(model, rows, 30, monkeypatch)
    assert isinstance(together, list)
    for number, (row, found) in enumerate(zip(rows, together, strict=True)):
        tokens, alone = recomputed(model, row[None], 30)
        assert torch.equal(found, tokens[0])
        for one, other in zip(logits, alone, strict=True):
            torch.testing.assert_close(one[number], other[0], rtol=0, atol=1e-4)


def test_float64_is_exact_to_rounding(monkeypatch):
    model = build(GPTWindowModel, window_size=5, dilation=3, sink_tokens=2).double().eval()
    _, logits = recomputed(model, prompts(2, 9), 30)
    _, found = cached(model, prompts(2, 9), 30, monkeypatch)
    for one, other in zip(found, logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("sinks", [0, 2])  # with sinks a step is two products, without a kernel
def test_16_bits_by_autocast_stay_within_their_rounding(sinks, monkeypatch):
    model = build(GPTWindowModel, window_size=5, dilation=3, sink_tokens=sinks).eval()
    with torch.autocast("cpu", torch.bfloat16):
        tokens, logits = cached(model, prompts(2, 9), 20, monkeypatch)
    exact = model(tokens[:, :-1])[:, 8:]  # the same tokens at once, in float32
    for step, found in enumerate(logits):
        assert (found - exact[:, step]).norm() < 0.05 * exact[:, step].norm()


# --- drawing ---


def frequencies(logits, draws=40_000, **options):
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(logits).expand(draws, -1)
    ids = draw(rows, generator=generator, **options)
    return torch.bincount(ids, minlength=len(logits)).double() / draws


def expected_frequencies(logits, temperature=1.0, top_k=None, top_p=None):
    """By hand: tempered probabilities, the k largest, then the fewest that reach top_p."""
    weights = {i: math.exp(x / temperature) for i, x in enumerate(logits)}
    order = sorted(weights, key=lambda i: -weights[i])[: top_k or len(weights)]
    total, reached, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if top_p is not None and reached >= top_p:
            break
        kept.append(i)
        reached += weights[i] / total
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_k": 1},
        {"top_k": 100},
        {"top_p": 0.6},
        {"top_p": 0.01},
        {"top_p": 1.0},
        {"top_k": 4, "top_p": 0.8, "temperature": 1.7},
        {"top_k": 2, "top_p": 0.99},
    ],
)
def test_draws_have_the_frequencies_of_an_independent_calculation(options):
    logits = [0.3, -1.0, 1.5, 0.0, 1.1, -4.0]
    found = frequencies(logits, **options)
    for frequency, expected in zip(found, expected_frequencies(logits, **options), strict=True):
        # 5 standard deviations of a frequency
        assert abs(frequency - expected) <= 5 * math.sqrt(expected * (1 - expected) / 40_000)


def test_extreme_temperatures():
    rows = torch.tensor([[0.3, 80.0, 79.9], [5.0, -1e30, 3.0]])
    for temperature in (0, 1e-45, 1e-310):
        assert draw(rows, temperature).tolist() == [1, 0]
    assert set(draw(rows[:1].expand(500, -1), 1e9).tolist()) == {0, 1, 2}


def test_a_seed_decides_what_is_drawn():
    model = build(GPTWindowModel, window_size=4, dilation=3)

    def text(seed):
        return model.generate(
            prompts(2, 3), 40, top_k=20, generator=torch.Generator().manual_seed(seed)
        )

    assert torch.equal(text(0), text(0)) and not torch.equal(text(0), text(1))


# --- the method ---


def test_the_stream_gives_what_generate_gives_and_training_goes_on_meanwhile():
    model = build(GPTWindowModel, window_size=4, dilation=3, dropout=0.5).train()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    found = []
    for ids in model.stream(prompts(2, 3), 10, temperature=0):
        assert torch.is_grad_enabled() and not ids.requires_grad
        assert [module.training for module in model.modules()] == modes
        found.append(ids)
    expected = model.generate(prompts(2, 3), 10, temperature=0)  # no dropout
    assert torch.equal(torch.stack(found, dim=1), expected[:, 3:])
    assert torch.equal(expected[:, :3], prompts(2, 3)) and expected.dtype == torch.int64
    assert [module.training for module in model.modules()] == modes


def test_an_error_inside_restores_the_mode(monkeypatch):
    model = build().train()

    def broken(*args):
        raise RuntimeError("broken")

    monkeypatch.setattr(gpt, "draw", broken)
    with pytest.raises(RuntimeError, match="broken"):
        model.generate(prompts(1, 3), 2)
    assert all(module.training for module in model.modules())


def test_no_new_tokens_and_small_integers_and_lists():
    model = build()
    assert torch.equal(model.generate(prompts(2, 5), 0), prompts(2, 5))
    expected = model.generate(prompts(2, 5), 4, temperature=0)
    for dtype in (torch.uint8, torch.uint16, torch.int32):
        assert torch.equal(model.generate(prompts(2, 5).to(dtype), 4, temperature=0), expected)
    assert [len(row) for row in model.generate([[1, 2], (3,)], 4)] == [6, 5]


@pytest.mark.parametrize("model_class", [GPTModel, GPTWindowModel])
def test_learned_positions_end_at_max_seq_len(model_class):
    model = build(model_class)
    assert model.generate(prompts(1, 60), 4).shape == (1, 64)
    words = "a prompt of 60 tokens and max_new_tokens 5 are more than max_seq_len 64"
    with pytest.raises(ValueError, match=words):
        model.generate(prompts(1, 60), 5)
    with pytest.raises(ValueError, match="more than max_seq_len"):
        model.stream([prompts(1, 60)[0], prompts(1, 2)[0]], 5)  # before the first token


def test_rotary_positions_go_on_beyond_max_seq_len(monkeypatch):
    options = {"positions": "rotary", "window_size": 5, "dilation": 3}
    short = build(GPTWindowModel, max_seq_len=8, **options).eval()
    long = build(GPTWindowModel, max_seq_len=64, **options).eval()
    long.load_state_dict(short.state_dict())
    tokens, _ = recomputed(long, prompts(1, 6), 40)
    assert torch.equal(short.generate(prompts(1, 6), 40, temperature=0), tokens)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be a whole number and at least 0, got -1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number and at least 0, got 1.5"),
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be a finite number, got nan"),
        ({"temperature": "1"}, "temperature must be a finite number, got '1'"),
        ({"top_k": 0}, "top_k must be a whole number and at least 1, got 0"),
        ({"top_k": 2.0}, "top_k must be a whole number and at least 1, got 2.0"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"prompt": [[]]}, "the prompt is empty"),
        ({"prompt": torch.zeros((2, 0), dtype=torch.long)}, "the prompt is empty"),
        ({"prompt": [[1], []]}, "the prompt is empty"),
        ({"prompt": []}, r"the prompt must be token ids \(B, T\)"),
        ({"prompt": torch.tensor([1, 2])}, r"the prompt must be token ids \(B, T\)"),
        ({"prompt": torch.zeros(1, 2)}, "the prompt must be token ids, whole numbers"),
        ({"prompt": 3}, r"the prompt must be token ids \(B, T\)"),
        ({"prompt": [[50]]}, "token 50 is not in the vocabulary of 50"),
        ({"prompt": [[3, -1]]}, "token -1 is not in the vocabulary of 50"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    arguments = {"prompt": [[1, 2]], "max_new_tokens": 2, **arguments}
    for method in (build().generate, build(GPTWindowModel).stream):
        with pytest.raises(ValueError, match=words):
            method(**arguments)


# --- what a step reads ---


def test_a_step_reads_the_keys_of_its_pattern_and_copies_none():
    cache = KeyValueCache((2, 3, 8), 200, (9, 4, 0))
    numbers = torch.randn(2, 2, 200, 3, 8)
    assert cache.write(*numbers[:, :, :150])
    for slot in range(150, 200):
        assert not cache.write(*numbers[:, :, slot : slot + 1])
        near, far = cache.parts()
        assert near[0].shape[2] == 10 and far[0].shape[2] == (slot - 9) // 4
        for part, store in ((near, cache.near), (far, cache.far)):
            for tensor in part[:2]:
                assert tensor._base is store or tensor._base is store._base
                flat = tensor.flatten(0, 1)  # as the products take them
                assert flat.untyped_storage().data_ptr() == store.untyped_storage().data_ptr()
        expected = numbers[0][:, (slot - 9) % 4 : slot - 9 : 4].transpose(1, 2)
        assert torch.equal(far[0], expected)


@pytest.mark.parametrize("name", ["cpu", PRODUCTS])
def test_every_way_to_evaluate_a_step_equals_dense_attention(name):
    generator = torch.Generator().manual_seed(0)
    for pattern in ((9, 4, 0), (5, 1, 0), (7, 0, 0), (9, 3, 5)):
        q, k, v = torch.randn(3, 2, 200, 3, 8, generator=generator, dtype=torch.float64)
        expected = dense_attention(q, k, v, window_mask(200, *pattern[:2], sink_tokens=pattern[2]))
        cache = KeyValueCache((2, 3, 8), 200, pattern, dtype=torch.float64)
        cache.write(k[:, :100], v[:, :100])
        for slot in range(100, 200):
            now = slice(slot, slot + 1)
            cache.write(k[:, now], v[:, now])
            out = cache.attend(q[:, now], name)
            torch.testing.assert_close(out, expected[:, now], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pattern", [(1, 1, 0), (3, 2, 0), (3, 0, 2)])
def test_a_full_cache_is_refused(pattern):
    numbers = torch.randn(2, 1, 21, 1, 4)
    with pytest.raises(ValueError, match="21 tokens do not fit into a cache of 20"):
        KeyValueCache((1, 1, 4), 20, pattern).write(*numbers)
    cache = KeyValueCache((1, 1, 4), 20, pattern)
    cache.write(*numbers[:, :, :20])
    with pytest.raises(ValueError, match="21 tokens do not fit"):
        cache.write(*numbers[:, :, 20:])


def test_a_second_prompt_is_refused():
    cache = KeyValueCache((1, 1, 4), 20, (3, 2, 0))
    numbers = torch.randn(2, 1, 5, 1, 4)
    cache.write(*numbers)
    with pytest.raises(ValueError, match="one follows at a time, not 5"):
        cache.write(*numbers)
    assert cache.filled == 5 and not cache.write(*numbers[:, :, :1])  # as if it had not been asked

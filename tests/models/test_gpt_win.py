"""The two models: the same but for the attention, and exchangeable weights."""

import numpy as np
import pytest
import torch
from tiny import SIZES, tiny_model, tiny_tokens

from gpt import CustomMHA, GPTModel, TransformerDecoderBlock
from gpt_win import CustomWindowMHA, GPTWindowModel, TransformerDecoderBlockWindow


def test_inheritance_replaces_the_attention_and_nothing_else():
    full, window = tiny_model(), tiny_model(GPTWindowModel, window_size=5, dilation=3)
    assert isinstance(window, GPTModel)
    assert issubclass(TransformerDecoderBlockWindow, TransformerDecoderBlock)
    assert issubclass(CustomWindowMHA, CustomMHA)
    pairs = zip(full.modules(), window.modules(), strict=True)
    differing = {(type(a), type(b)) for a, b in pairs if type(a) is not type(b)}
    assert differing == {
        (GPTModel, GPTWindowModel),
        (TransformerDecoderBlock, TransformerDecoderBlockWindow),
        (CustomMHA, CustomWindowMHA),
    }


def test_equal_seeds_give_equal_weights_and_equal_random_state():
    full = tiny_model()
    after_full = torch.get_rng_state()
    window = tiny_model(GPTWindowModel)
    assert torch.equal(after_full, torch.get_rng_state())
    assert full.state_dict().keys() == window.state_dict().keys()
    for name, value in full.state_dict().items():
        assert torch.equal(value, window.state_dict()[name]), name
    assert not torch.equal(full.fc_out.weight, tiny_model(seed=1).fc_out.weight)


def test_parameter_names_and_initial_values_of_the_published_model():
    state = tiny_model().state_dict()
    block = {"mha.qkv", "mha.wo"} | {f"norm{i}.{p}" for i in (1, 2) for p in ("weight", "bias")}
    block |= {f"fc{i}.{p}" for i in (1, 2) for p in ("weight", "bias")}
    expected = {f"layers.{i}.{name}" for i in range(2) for name in block}
    expected |= {"word_embeddings.weight", "position_embeddings.weight"}
    assert set(state) == expected | {"fc_out.weight", "fc_out.bias"}
    assert state["layers.0.mha.qkv"].shape == (72, 24)
    assert state["layers.0.mha.wo"].shape == (24, 24)
    assert state["layers.0.fc1.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert not state["layers.1.fc2.bias"].any()


def test_state_dicts_load_into_each_other():
    full, window = tiny_model(), tiny_model(GPTWindowModel, seed=3, window_size=4, dilation=0)
    window.load_state_dict(full.state_dict())
    full.load_state_dict(window.state_dict())
    for full_causal in ({"window_size": 50, "dilation": 0}, {"window_size": (2, 7), "dilation": 1}):
        window = tiny_model(GPTWindowModel, seed=3, **full_causal)
        window.load_state_dict(full.state_dict())
        full.eval(), window.eval()
        torch.testing.assert_close(full(tiny_tokens()), window(tiny_tokens()), rtol=1e-5, atol=1e-7)


FULL = [  # every way to full causal attention
    (GPTModel, {"attention": "fused"}),
    (GPTModel, {"attention": "dense"}),
    (GPTModel, {"attention": "published"}),
    (GPTWindowModel, {"attention": "dense", "window_size": 40, "dilation": 0}),
    (GPTWindowModel, {"attention": "masked", "window_size": 3, "dilation": 1}),
    (GPTWindowModel, {"attention": "split", "window_size": 3, "dilation": 1}),
]


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_every_full_attention_gives_the_same_logits_and_gradients(positions):
    results = []
    for model_class, options in FULL:
        model = tiny_model(model_class, positions=positions, dropout=0.0, **options).double()
        logits = model(tiny_tokens())
        logits.logsumexp(-1).sum().backward()
        results.append((logits.detach(), model.layers[0].mha.qkv.grad))
    for logits, gradient in results[1:]:
        torch.testing.assert_close(logits, results[0][0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("model_class", "options"),
    [
        (GPTModel, {"attention": "fused"}),
        (GPTModel, {"attention": "dense"}),
        (GPTModel, {"attention": "published"}),
        (GPTWindowModel, {"attention": "masked", "window_size": 3, "dilation": 4}),
        (GPTWindowModel, {"window_size": 2, "dilation": 0}),
        (GPTWindowModel, {"attention": "split", "window_size": 3, "dilation": 4, "sink_tokens": 3}),
        (GPTWindowModel, {"attention": "split", "window_size": 3, "positions": "rotary"}),
    ],
)
def test_a_future_token_changes_nothing_before_it(model_class, options):
    model = tiny_model(model_class, **options).eval()
    before = tiny_tokens()
    for position in (1, 17, 32):
        after = before.clone()
        after[:, position] = (after[:, position] + 1) % 50
        difference = (model(before) - model(after)).abs().amax(dim=(0, 2))
        assert not difference[:position].any()
        assert difference[position] > 0


def test_the_window_reaches_the_model():
    """In one layer a token outside the pattern changes nothing, one inside it does."""
    model = tiny_model(GPTWindowModel, layers=1, window_size=3, dilation=5).eval()
    before = tiny_tokens()
    after = before.clone()
    after[:, 10] = (after[:, 10] + 1) % 50
    moved = (model(before) - model(after)).abs().amax(dim=(0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [10, 11, 12, 13, 18, 23, 28]


def test_the_sinks_reach_every_layer():
    """In one layer a sink is seen by all later tokens."""
    model = tiny_model(GPTWindowModel, layers=1, window_size=3, dilation=5, sink_tokens=2).eval()
    before = tiny_tokens()
    after = before.clone()
    after[:, 1] = (after[:, 1] + 1) % 50
    moved = (model(before) - model(after)).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False] + 32 * [True]
    model = tiny_model(GPTWindowModel, window_size=3, sink_tokens=2)
    assert [block.mha.pattern().sink_tokens for block in model.layers] == [2, 2]


@pytest.mark.parametrize(
    ("window_size", "dilation"), [(4, 3), ([2, 5, 40], 3), ([2, 5, 40], (1, 0, 3))]
)
def test_layers_with_patterns_of_their_own_equal_a_stack_built_by_hand(window_size, dilation):
    model = tiny_model(GPTWindowModel, layers=3, window_size=window_size, dilation=dilation).eval()
    window_sizes = window_size if isinstance(window_size, list) else [4, 4, 4]
    dilations = dilation if isinstance(dilation, tuple) else (3, 3, 3)
    x = model.word_embeddings(tiny_tokens()) + model.position_embeddings(torch.arange(33))
    for layer, pattern in enumerate(zip(window_sizes, dilations, strict=True)):
        block = TransformerDecoderBlockWindow(24, 3, *pattern, attention="dense").eval()
        block.load_state_dict(model.layers[layer].state_dict())
        x = block(x)
    torch.testing.assert_close(model(tiny_tokens()), model.fc_out(x), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("model_class", "changes", "words"),
    [
        (GPTModel, {"n_heads": 5}, "d_model 24 is not divisible by n_heads 5"),
        (GPTModel, {"n_heads": 0}, "n_heads must be at least 1, got 0"),
        (GPTModel, {"n_heads": 1.5}, "n_heads must be a whole number, got 1.5"),
        (GPTModel, {"d_model": -24}, "d_model must be at least 1, got -24"),
        (GPTModel, {"layers": -1}, "layers must be at least 1, got -1"),
        (GPTWindowModel, {"layers": -1}, "layers must be at least 1, got -1"),
        (GPTModel, {"vocab_size": 2.5}, "vocab_size must be a whole number, got 2.5"),
        (GPTModel, {"max_seq_len": None}, "max_seq_len must be a whole number, got None"),
        (GPTModel, {"attention": "flash"}, "unknown attention 'flash'"),
        (GPTWindowModel, {"window_size": -1}, "window_size must be at least 0, got -1"),
        (GPTWindowModel, {"dilation": -1}, "dilation must be at least 0, got -1"),
        (GPTWindowModel, {"sink_tokens": -1}, "sink_tokens must be at least 0, got -1"),
        (GPTWindowModel, {"dilation": (1, -1)}, "dilation must be at least 0, got -1"),
        (GPTWindowModel, {"window_size": (1, 2, 3)}, "window_size has 3 values for 2 layers: give"),
        (GPTWindowModel, {"dilation": []}, "dilation has 0 values for 2 layers: give one, or one"),
        (GPTWindowModel, {"attention": "fused"}, "unknown attention 'fused'"),
    ],
)
def test_wrong_arguments_are_named(model_class, changes, words):
    with pytest.raises(ValueError, match=words):
        tiny_model(model_class, **changes)


def test_a_sequence_that_is_too_long_is_named():
    with pytest.raises(ValueError, match="sequence of 41 tokens is longer than max_seq_len 40"):
        tiny_model()(tiny_tokens(seq_len=41))


def test_tokens_of_another_rank_are_named():
    for wrong in (tiny_tokens()[0], tiny_tokens()[..., None]):
        with pytest.raises(ValueError, match=r"tokens must be \(B, S\), got \("):
            tiny_model()(wrong)


def test_numbers_of_numpy_are_whole_numbers():
    options = {"window_size": (5, 9), "dilation": 3, "full_heads": (1, 0), "sink_tokens": 1}
    model = tiny_model(GPTWindowModel, **options, stagger=True)
    numbers = {k: tuple(map(np.int64, np.broadcast_to(v, 2))) for k, v in options.items()}
    numbers["sink_tokens"] = np.int64(1)
    sizes = {name: np.int64(size) for name, size in SIZES.items()}
    other = tiny_model(GPTWindowModel, **sizes | numbers, stagger=np.True_)
    assert torch.equal(other.eval()(tiny_tokens()), model.eval()(tiny_tokens()))
    for one, two in zip(model.layers, other.layers, strict=True):
        assert one.mha.pattern() == two.mha.pattern()
        assert all(type(value) in (int, bool) for value in (*two.mha.pattern(), two.mha.n_heads))

"""The pattern inside transformers' models, against explicit masks in float64 and transformers' own.

Models are small and random; nothing is downloaded.
"""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from attention import hf  # noqa: E402

H, WINDOW = 4, 6  # heads; sliding_window of the layers that have one, in keys
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": H,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 5,  # a scale that is not head_dim**-0.5
    "attn_logit_softcapping": None,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": H, "n_positions": 128, "attn_pdrop": 0.0}
MODELS = {
    "Llama": ("LlamaForCausalLM", SIZES),
    "Qwen2": ("Qwen2ForCausalLM", SIZES),
    "Qwen3": ("Qwen3ForCausalLM", SIZES),
    "Mistral": ("MistralForCausalLM", SIZES | {"sliding_window": None}),
    "Gemma2": ("Gemma2ForCausalLM", SIZES | GEMMA),
    "Gemma3": ("Gemma3ForCausalLM", SIZES | GEMMA),
    "GPT2": ("GPT2LMHeadModel", SIZES | GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
}
PATTERNS = [
    {"window_size": 3, "dilation": 4},
    {"window_size": 2, "dilation": 3, "full_heads": 1, "stagger": True, "sink_tokens": 2},
    {"window_size": 0, "dilation": 0},
    {"window_size": 4, "dilation": 0, "full_heads": 2},
]


@pytest.fixture(autouse=True)
def short_sequences_are_split(monkeypatch):
    monkeypatch.setattr("attention.choose.SPLIT_FROM", {("cpu", torch.float64): 16})
    # not by default, for sdpa has no softcapping, which these models go without
    monkeypatch.setattr(transformers.Gemma2PreTrainedModel, "_supports_sdpa", True)


def model_of(name, implementation, **changes):
    """A small model in float64; of one name, all have the same weights."""
    class_name, options = MODELS[name]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**options | changes)
    torch.manual_seed(0)
    model = model_class._from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for x in model.parameters():
            x.copy_(0.3 * torch.randn(x.shape))
    return model.double().eval()


@pytest.fixture
def mask_of(pattern_by_hand):
    """(sequences of every row, S, pattern) -> the pattern by its words, (B, H, S, S).

    sequences: (first place, length) of each; what lies in none is padding, which sees itself.
    """

    def by_hand(rows, seq_len, window_size, dilation, full_heads=0, stagger=False, sink_tokens=0):
        mask = torch.eye(seq_len).bool().repeat(len(rows), H, 1, 1)
        for row, sequences in enumerate(rows):
            for first, length in sequences:
                part = slice(first, first + length)
                for head in range(H):
                    phase = (head - full_heads) % dilation if stagger else 0
                    of_head = window_size, dilation, sink_tokens, phase
                    of_head = (length, 0) if head < full_heads else of_head
                    kept = pattern_by_hand(length, *of_head)[0]
                    mask[row, head, part, part] = torch.tensor(kept)
        return mask

    return by_hand


def explicit(model, ids, mask, sliding=None, **inputs):
    """Logits by transformers' sdpa over masks (B, H, S, S), those of sliding layers their own."""
    if "layer_types" in MODELS[model.name][1]:
        mask = {"full_attention": mask, "sliding_attention": sliding}
    return model(ids, attention_mask=mask, **inputs).logits


def results(model, logits, wanted):
    """The logits of the wanted tokens (B, S), and all gradients."""
    logits = logits[wanted]
    model.zero_grad()
    logits.square().sum().backward()
    return logits.detach(), [x.grad for x in model.parameters() if x.grad is not None]


def pair_of(name, pattern):
    """The model with the pattern, and the same for ``explicit``."""
    found, reference = model_of(name, hf.NAME, **pattern), model_of(name, "sdpa")
    reference.name = name
    return found, reference


def tokens(batch, seq_len):
    return torch.randint(3, 40, (batch, seq_len), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_logits_and_gradients_are_those_of_an_explicit_mask(name, pattern, mask_of):
    found, reference = pair_of(name, pattern)
    ids, everything = tokens(2, 21), torch.ones(2, 21).bool()
    rows = [[(0, 21)], [(0, 21)]]
    masks = mask_of(rows, 21, **pattern), mask_of(rows, 21, WINDOW - 1, 0)
    torch.testing.assert_close(
        results(found, found(ids).logits, everything),
        results(reference, explicit(reference, ids, *masks), everything),
    )


@pytest.mark.parametrize("name", MODELS)
def test_dilation_1_is_the_models_own_attention(name):
    found, reference = pair_of(name, {"window_size": 3, "dilation": 1})
    ids, everything = tokens(2, 21), torch.ones(2, 21).bool()
    torch.testing.assert_close(
        results(found, found(ids).logits, everything),
        results(reference, reference(ids).logits, everything),
    )


@pytest.mark.parametrize("keys", [1, 2, 7, 30])
def test_dilation_0_is_mistrals_sliding_window_of_one_key_more(keys):
    found = model_of("Mistral", hf.NAME, window_size=keys - 1, dilation=0)
    reference = model_of("Mistral", "sdpa", sliding_window=keys)
    ids, everything = tokens(2, 21), torch.ones(2, 21).bool()
    torch.testing.assert_close(
        results(found, found(ids).logits, everything),
        results(reference, reference(ids).logits, everything),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pattern", PATTERNS[:2], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_seen_by_none(name, pattern, side, mask_of):
    found, reference = pair_of(name, pattern)
    ids, wanted = tokens(2, 21), torch.ones(2, 21).bool()
    rows = [[(0, 21)], [(5, 16) if side == "left" else (0, 16)]]
    wanted[1] = False
    wanted[1, rows[1][0][0] :][:16] = True
    positions = (wanted.cumsum(1) - 1).clamp(min=0)
    masks = mask_of(rows, 21, **pattern), mask_of(rows, 21, WINDOW - 1, 0)
    logits = found(ids, attention_mask=wanted.long(), position_ids=positions).logits
    torch.testing.assert_close(
        results(found, logits, wanted),
        results(reference, explicit(reference, ids, *masks, position_ids=positions), wanted),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pattern", PATTERNS[:2], ids=str)
def test_packed_sequences_do_not_see_one_another(name, pattern, mask_of):
    found, reference = pair_of(name, pattern)
    ids, everything = tokens(1, 21), torch.ones(1, 21).bool()
    positions = torch.cat([torch.arange(9), torch.arange(12)])[None]
    rows = [[(0, 9), (9, 12)]]
    masks = mask_of(rows, 21, **pattern), mask_of(rows, 21, WINDOW - 1, 0)
    logits = found(ids, position_ids=positions, use_cache=False).logits
    expected = explicit(reference, ids, *masks, position_ids=positions)
    torch.testing.assert_close(
        results(found, logits, everything), results(reference, expected, everything)
    )


GENERATION = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 4},
    "none": {"use_cache": False},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pattern", PATTERNS[:2], ids=str)
@pytest.mark.parametrize("way", GENERATION)
@pytest.mark.parametrize("padding", [0, 3])
def test_what_generate_reads_is_what_a_recomputation_reads(name, pattern, way, padding, mask_of):
    found, reference = pair_of(name, pattern)
    ids, real = tokens(2, 10), torch.ones(2, 10).long()
    real[1, :padding] = 0
    lengths = {"max_new_tokens": 9, "min_new_tokens": 9}
    kept = {"output_logits": True, "return_dict_in_generate": True}
    out = found.generate(
        ids, attention_mask=real, do_sample=False, **lengths, **kept, **GENERATION[way]
    )
    places = out.sequences.shape[1] - 1
    rows = [[(0, places)], [(padding, places - padding)]]
    masks = mask_of(rows, places, **pattern), mask_of(rows, places, WINDOW - 1, 0)
    firsts = torch.tensor([[0], [padding]])
    positions = (torch.arange(places) - firsts).clamp(min=0)
    expected = explicit(reference, out.sequences[:, :-1], *masks, position_ids=positions)
    torch.testing.assert_close(torch.stack(out.logits, dim=1), expected[:, -9:].float())


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Gemma3"])
@pytest.mark.parametrize("pattern", PATTERNS[:2], ids=str)
def test_beams_have_the_likelihood_of_a_recomputation(name, pattern, mask_of):
    found, reference = pair_of(name, pattern)
    ids = tokens(2, 10)
    lengths = {"max_new_tokens": 9, "min_new_tokens": 9, "length_penalty": 0.0}
    kept = {"output_scores": True, "return_dict_in_generate": True}
    beams = {"num_beams": 3, "num_return_sequences": 3, "do_sample": False}
    out = found.generate(ids, attention_mask=torch.ones_like(ids), **beams, **lengths, **kept)
    places = out.sequences.shape[1] - 1
    rows = [[(0, places)]] * 6
    masks = mask_of(rows, places, **pattern), mask_of(rows, places, WINDOW - 1, 0)
    logits = explicit(reference, out.sequences[:, :-1], *masks)[:, -9:]
    chosen = logits.log_softmax(-1).gather(-1, out.sequences[:, -9:, None])
    torch.testing.assert_close(out.sequences_scores, chosen.sum((1, 2)).to(out.sequences_scores))


def test_what_is_whole_goes_to_window_attention(monkeypatch):
    calls = []
    for function in ("window_attention", "sdpa_attention_forward"):
        inner = getattr(hf, function)

        def counted(*inputs, inner=inner, function=function, **options):
            calls.append(function)
            return inner(*inputs, **options)

        monkeypatch.setattr(hf, function, counted)
    model, ids = model_of("Llama", hf.NAME, window_size=3, dilation=4), tokens(2, 21)
    real = torch.ones_like(ids)

    def called(**inputs):
        calls.clear()
        model(ids, **inputs)
        return set(calls)

    assert called() == called(attention_mask=real) == {"window_attention"}
    real[1, 0] = 0
    assert called(attention_mask=real) == {"sdpa_attention_forward"}
    calls.clear()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    assert set(calls) == {"window_attention"}


def test_a_mask_counts_from_the_offsets(mask_of):
    config = model_of("Llama", hf.NAME, **PATTERNS[0]).config
    sizes = {"batch_size": 1, "q_length": 2, "kv_length": 6, "q_offset": 7, "kv_offset": 3}
    expected = mask_of([[(0, 9)]], 9, **PATTERNS[0])[:, :1, 7:, 3:]
    assert torch.equal(hf.window_dilated_mask(config=config, **sizes), expected)


def test_what_lies_ahead_is_the_models_to_say():
    """As Gemma 3 has it for the tokens of an image."""
    config = model_of("Llama", hf.NAME, window_size=1, dilation=0).config
    images = torch.tensor([[-1, -1, 0, 0, 0, -1, -1]])
    mask = transformers.masking_utils.create_causal_mask(
        config, torch.zeros(1, 7, 32), None, None, block_sequence_ids=images
    )
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_the_pattern_is_saved_with_the_configuration():
    config = model_of("Llama", hf.NAME, **PATTERNS[1]).config
    again = transformers.LlamaConfig.from_dict(config.to_dict())
    assert hf.pattern_of(again) == hf.pattern_of(config) == (2, 3, 2, 1, True, 0)


def test_a_model_that_is_there_takes_the_pattern():
    model = model_of("Llama", "sdpa")
    model.config.update(PATTERNS[0])
    model.set_attn_implementation(hf.NAME)
    expected = model_of("Llama", hf.NAME, **PATTERNS[0])
    assert torch.equal(model(tokens(2, 21)).logits, expected(tokens(2, 21)).logits)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("Llama", {"attention_dropout": 0.1}, r"cannot do dropout 0.1 \(attention_dropout"),
        ("GPT2", {"attn_pdrop": 0.2}, "cannot do dropout 0.2 .*attn_pdrop"),
        ("Gemma2", {"attn_logit_softcapping": 50.0}, "cannot do softcap: leave it out"),
        ("Llama", {"is_causal": False}, "cannot do attention that is not causal"),
        ("Mistral", {"sliding_window": 6}, "every one has a sliding_window, set it to None"),
        ("Llama", {"window_size": None}, "needs window_size in the model's configuration"),
        ("Llama", {"window_size": -1}, "window_size must be at least 0, got -1"),
        ("Qwen3", {"full_heads": 5}, "full_heads must be .* n_heads, which is 4, got 5"),
    ],
)
def test_what_it_cannot_do_is_said(name, changes, words):
    model = model_of(name, hf.NAME, **{"window_size": 3, "dilation": 4} | changes).train()
    with pytest.raises(ValueError, match=words):
        model(tokens(1, 8))

"""The configuration: presets, and one clear line for what cannot be run."""

import argparse
import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import flat
from tiny import CPU, tiny_config

from attention import choose, rotary
from attention.choose import attention_plan
from attention.pattern import density
from training.arms import arm_density, patterns_of_arm
from training.config import (
    EVALUATIONS,
    POSITIONS,
    PRESETS,
    ExperimentConfig,
    add_options,
    make_config,
)
from training.prepare import PRESET_DATA
from training.trainer import parameter_counts


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_documented_sizes(preset):
    config = make_config(preset)
    expected = {"paper": (256, "float32", "none"), "long": (4096, "bfloat16", "reduce-overhead")}
    expected |= dict.fromkeys(("laptop", "smoke"), (512, "float32", "none"))
    assert (config.seq_len, config.dtype, config.compile) == expected[preset]
    # a warm-up that ends long before the training does
    assert not config.max_steps or config.warmup_steps <= config.max_steps / 10
    assert config.data in PRESET_DATA and parameter_counts(config, 1024).keys() == set(config.arms)


def test_small_presets_have_data_of_a_small_vocabulary_and_a_sparse_pattern():
    assert make_config("laptop").data == "training_data_1024.npy"
    assert PRESET_DATA["training_data_1024.npy"] == {"vocab_size": 1024}
    for preset in ("laptop", "smoke"):
        config = make_config(preset)
        (pattern, *_) = patterns_of_arm(asdict(config), "window")
        assert attention_plan(config.seq_len, pattern, config.n_heads).evaluation == "split"
        assert arm_density(asdict(config), "window") < 0.52


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_heads": 3}, "--d-model 16 is not divisible by --n-heads 3"),
        ({"positions": "none"}, "--positions 'none': choose one of learned, rotary"),
        ({"positions": "rotary", "d_model": 14}, "an even --d-model / --n-heads, got 14 / 2 = 7"),
        ({"window_size": (5, 6, 7)}, "--window-size has 3 values for 2 layers: give one, or one"),
        ({"dilation": (1,)}, "--dilation has 1 value for 2 layers: give one, or one for each"),
        ({"dilation": (3, -1)}, "--dilation must be at least 0, got -1"),
        ({"window_size": [5, 2.5]}, "--window-size must be a whole number, got 2.5"),
        ({"layers": (1, 2)}, r"--layers must be a whole number, got \(1, 2\)"),
        ({"sink_tokens": (1, 1)}, r"--sink-tokens must be a whole number, got \(1, 1\)"),
        ({"window_size": -1}, "--window-size must be at least 0, got -1"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"lr": 0.0}, "--lr must be a positive number, got 0.0"),
        ({"lr": math.nan}, "--lr must be a positive number, got nan"),
        ({"lr": "3e-4"}, "--lr must be a positive number, got '3e-4'"),  # as a YAML file gives it
        ({"lr": True}, "--lr must be a positive number, got True"),
        ({"runs": True}, "--runs must be a whole number, got True"),
        ({"data": 5}, "--data must be text, got 5"),
        ({"arms": "window"}, "--arms must be names, got 'window'"),
        ({"arms": (1,)}, r"--arms must be names, got \(1,\)"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"runs": 2.5}, "--runs must be a whole number, got 2.5"),
        ({"max_steps": 10**20}, "--max-steps must be at most 2,147,483,647"),
        ({"equivalence_margin": 0.0}, "--equivalence-margin must be a positive number, got 0.0"),
        ({"equivalence_margin": math.inf}, "--equivalence-margin must be .* number, got inf"),
        ({"window_attention": "fast"}, "--window-attention 'fast': choose one of auto"),
        ({"dtype": "float16"}, "--dtype 'float16': choose one of float32, bfloat16"),
        ({"compile": "fast"}, "--compile 'fast': choose one of none"),
        ({"arms": ("window", "sparse")}, "--arms sparse: choose from baseline, window"),
        ({"arms": ("w9-d03",)}, "--arms w9-d03: choose"),
        ({"arms": ("w9-d9999999999",)}, "-d9999999999: .* at most nine digits"),
        ({"arms": ("w9-d0-f5",)}, "--arms w9-d0-f5: full_heads must be .* n_heads, which is 2"),
        ({"arms": ("w9-d0-s",)}, "--arms w9-d0-s: stagger needs a dilation of at least 2, got 0"),
        ({"full_heads": (1, 3)}, "--full-heads must be .* from 0 to n_heads, which is 2, got 3"),
        ({"stagger": True, "dilation": 0}, "--stagger needs a dilation of at least 2, got 0"),
        ({"arms": ("w9-d0-e9",)}, "--arms w9-d0-e9: one layer of every 9 is full, of 2 none"),
        ({"stagger": "yes"}, "--stagger must be True or False, got 'yes'"),
        ({"nope": True, "full_heads": 1}, "--nope leaves rotary positions out of full heads"),
        ({"nope": True, "positions": "rotary"}, "--nope leaves .* there are none: add"),
        (  # of an arm that is not trained
            {"nope": True, "positions": "rotary", "full_heads": 1, "arms": ("fused", "w9-d0")},
            "--nope leaves .* there are none: add",
        ),
        ({"arms": ("window", "window")}, "--arms names an arm twice: window window"),
    ],
)
def test_a_configuration_that_cannot_run_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny_config(**changes)


def test_an_arms_name_says_its_heads():
    config = tiny_config(n_heads=4, d_model=16, layers=4, arms=("w0-d4",), window_size=0)
    assert config.pattern_of("w0-d4")["window_size"] == 0
    name = "w9-d3-s-f1-e2"
    assert config.pattern_of(name) == {
        "window_size": 9,
        "dilation": 3,
        "stagger": True,
        "full_heads": (1, 4, 1, 4),
        "sink_tokens": 0,
    }
    assert config.pattern_of("w9-d3")["full_heads"] == 0
    phases = [pattern.first_phase for pattern in patterns_of_arm(asdict(config), "w9-d5-s-f1")]
    assert phases == [0, 3, 1, 4]
    kept = arm_density(asdict(config), "w2-d0-e2")
    assert kept == (density(config.seq_len, 2, 0) + 1) / 2


def test_a_replaced_field_is_checked_and_lists_become_tuples():
    config = tiny_config(window_size=[5, 6], arms=["w64-d8"])
    assert config.window_size == (5, 6) and config.arms == ("w64-d8",)
    with pytest.raises(ValueError, match="--batch-size 2 cannot be split evenly over 3 ranks"):
        replace(config, world_size=3)


def test_the_experiment_is_not_deterministic_by_itself():
    assert not any(make_config(preset).deterministic for preset in PRESETS)
    assert {make_config(preset).equivalence_margin for preset in PRESETS} == {0.02}


def test_the_options_choose_among_what_there_is():
    assert POSITIONS == rotary.POSITIONS and EVALUATIONS == choose.EVALUATIONS


def test_every_field_with_a_help_is_an_option_that_tells_its_default():
    parser = argparse.ArgumentParser()
    add_options(parser)
    text = flat(parser.format_help())
    assert "(default: paper 256, long 4096, laptop 512, smoke 512)" in text
    assert "(default: paper baseline window fused, long fused window w96-d4-s" in text
    assert "(default: cosine)" in text
    options = set(vars(parser.parse_args([])))
    assert options == {item.name for item in fields(ExperimentConfig)} - {
        "preset",
        "world_size",
        "backend",
    }
    parsed = parser.parse_args(["--window-size", "5", "--dilation", "3,1", "--no-deterministic"])
    assert (parsed.window_size, parsed.dilation, parsed.deterministic) == (5, (3, 1), False)


def test_what_json_does_not_take_is_made_plain():
    numbers = {"seed": np.int64(3), "window_size": [np.int64(5), np.uint8(6)]}
    numbers |= {"lr": np.float32(0.5), "stagger": np.bool_(True), "dilation": np.array([3, 4])}
    config = tiny_config(**numbers, output_dir=Path("a", "b"), device=CPU)
    plain = {"seed": 3, "window_size": (5, 6), "lr": 0.5, "stagger": True, "dilation": (3, 4)}
    assert config == tiny_config(**plain, output_dir=str(Path("a", "b")), device="cpu")
    json.dumps(asdict(config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"world_size": 3}, "--shard-sequence 2 does not divide 3 ranks: .*--nproc-per-node 2"),
        ({"world_size": 1}, "--shard-sequence 2 does not divide 1 rank: "),
        ({"window_attention": "flex"}, "--window-attention flex: .* leave it out"),
        ({"compile": "reduce-overhead"}, "choose --compile default with --shard-sequence"),
        (
            {"seq_len": 255},
            "--shard-sequence, window: 255 tokens .* choose 254 tokens",
        ),
        ({"seq_len": 192}, "--shard-sequence, window: .* 97 tokens: leave them whole"),
        ({"batch_size": 3, "world_size": 4}, "--batch-size 3 .* over 2 ranks x"),
    ],
)
def test_what_cannot_be_sharded_is_said(changes, words):
    sharded = {"shard_sequence": 2, "world_size": 2, "arms": ("window", "fused")}
    with pytest.raises(ValueError, match=words):
        make_config("paper", **sharded | changes)


def test_ranks_that_share_sequences_share_no_rows():
    config = make_config("paper", shard_sequence=2, world_size=4, arms=("window", "fused"))
    assert config.data_ranks == 2 and config.sequences_at_once == 4
    alone = make_config("paper", shard_sequence=0, world_size=4, arms=("fused",))
    assert alone.shard_sequence == 4 and alone.sequences_at_once == 8

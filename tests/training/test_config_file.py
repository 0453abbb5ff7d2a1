"""config.toml: a configuration as text that repeats its experiment."""

from dataclasses import asdict

import pytest

from machine.command import UserError
from training.config import PRESETS, make_config
from training.config_file import read_config, to_toml

SPECIAL = {
    "layers": 8,
    "arms": ("window", "w8-d2-s"),
    "window_size": (5,) * 8,
    "dilation": 3,
    "full_heads": (1, 0) * 4,
    "stagger": True,
    "lr": 1e-22,
    "equivalence_margin": 1,
    "data": 'C:\\new "data"\t\x7f ± \U0001f40d.npy',
}


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "config.toml").write_text(text, encoding="utf-8")
        return read_config(tmp_path / "config.toml")

    return read


@pytest.mark.parametrize("changes", [{}, SPECIAL])
@pytest.mark.parametrize("preset", PRESETS)
def test_there_and_back_it_is_the_same(read, preset, changes):
    config = make_config(preset, **changes)
    assert make_config(**read(to_toml(asdict(config)))) == config


def test_what_cuts_its_sequences_is_repeated_by_as_many_ranks(read):
    config = make_config("paper", arms=("fused",), world_size=4, shard_sequence=2)
    text = to_toml(asdict(config))
    assert text.startswith("# torchrun --standalone --nproc-per-node 4 main.py --config")
    assert make_config(**read(text), world_size=4) == config


def test_it_is_grouped_as_the_help_is():
    lines = to_toml(asdict(make_config())).splitlines()
    assert [line for line in lines if line.startswith("[")] == [
        "[experiment]",
        "[training]",
        "[model]",
        "[pattern]",
        "[files]",
    ]
    assert lines.index("[training]") < lines.index("lr = 0.0003") < lines.index("[model]")
    assert 'arms = ["baseline", "window", "fused"]' in lines and "stagger = false" in lines


@pytest.mark.parametrize(("device", "kept"), [("cuda:1", "auto"), ("cpu", "cpu")])
def test_what_belongs_to_the_machine_stays_there(read, device, kept):
    config = make_config(device=device, world_size=2, backend="nccl")
    repeated = make_config(**read(to_toml(asdict(config))))
    assert (repeated.device, repeated.world_size, repeated.backend) == (kept, 1, "none")


def test_groups_are_for_the_eye(read):
    assert read('preset = "laptop"\nlr = 1\n[other]\nruns = 3') == {
        "preset": "laptop",
        "lr": 1,
        "runs": 3,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_step = 3", "max_step is no option, max_steps is"),
        ("[training]\nbatch-size = 3\nlr = 1", "batch-size is no option, batch_size is"),
        ("world_size = 2", "world_size is no option"),
        ("qqq = 1\nmax_step = 3", "qqq is no option; max_step is no option, max_steps is"),
        ("lr = 1\n[training]\nlr = 2", "lr is given twice"),
        ("lr = ", "is no TOML (Invalid value"),
        ("a = " + "[" * 9999, "is no TOML ("),
    ],
)
def test_what_is_no_configuration_is_one_line(read, tmp_path, text, words):
    with pytest.raises(UserError) as error:
        read(text)
    line = str(error.value)
    assert line.startswith(f"{tmp_path / 'config.toml'}: ") and words in line and "\n" not in line


def test_a_file_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.toml: no such file: "):
        read_config(tmp_path / "nowhere.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"bytes\.toml: is no TOML"):
        read_config(tmp_path / "bytes.toml")

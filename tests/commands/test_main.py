"""The experiment's command: its options, outputs, exit codes, and one line for what is wrong."""

import re
from pathlib import Path

import pytest
import torch
from conftest import flat, one_line
from small_experiment import (
    BLOCK,
    RESULTS,
    break_training,
    contents,
    run_main,
    run_out_of_memory,
    same_losses,
    stop_at,
)

import studies.command
from analysis.metrics import load_experiment
from compare_models import main
from figures.all import FIGURES, create_all_plots
from studies.command import config_from, ensure_data, with_file
from studies.options import build_parser
from training import prepare
from training.config import PRESETS
from training.tokens import load_dataset


def config_of(options):
    return config_from(build_parser().parse_args(options.split()))


def interrupt(*_):
    raise KeyboardInterrupt


# outputs and exit codes
def test_one_of_everything_is_no_plural(workplace, capsys):
    """In all that is said of one training of one step, and of two."""
    one = "--runs 1 --arms window --max-steps 1 --layers 1 --n-heads 1"
    for options in (one, f"{one} --dry-run", one.replace("1", "2")):
        output_dir = "--output-dir two" if "2" in options else ""
        assert run_main(f"{options} {output_dir}") == 0
        said = capsys.readouterr()
        nouns = "block|training|step|head|layer|row"
        words = re.findall(rf"\b([12]) ({nouns})(s?)\b", said.out + said.err)
        assert {name for _, name, _ in words} >= {"training"}
        assert all((number == "2") == bool(plural) for number, _, plural in words), words


def test_results_report_weights_and_plots(workplace, monkeypatch, capsys):
    monkeypatch.setattr(studies.command, "create_all_plots", create_all_plots)
    names = "1_training_curves", "9_summary", "11_validation"  # the last of curves, here none
    monkeypatch.setattr("figures.all.FIGURES", {name: FIGURES[name] for name in names})
    assert run_main("--runs 2") == 0
    printed = capsys.readouterr()
    assert contents("output") == sorted([*RESULTS, "report.html"])
    assert len(contents("output/runs")) == 2 * 3 and len(contents("plots")) == 2 * 2
    report = Path("output/improved_comparison_results.txt").read_text(encoding="utf-8")
    first = report[: report.index("\n\n")]
    assert first.startswith("Faster: ") and "\nUse: " in first
    assert printed.out == f"{report}\n{first}\n"  # stdout is the report and nothing else
    assert "block 2/2" in printed.err and "roughly" in printed.err


def test_nothing_but_failures_still_ends_with_a_report(workplace, monkeypatch, capsys):
    break_training(monkeypatch, "window", run_out_of_memory)
    assert run_main("--runs 1 --arms window") == 3
    assert "out_of_memory" in capsys.readouterr().out and contents("plots") == []


def test_a_presets_own_data_file_is_prepared_where_it_is_missing(workplace, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "read_corpus", lambda *_: (["def f(x): return x * 7\n" * 400], {}))
    monkeypatch.setitem(prepare.PRESET_DATA, "training_data_1024.npy", {"vocab_size": 263})
    data = config_of("--preset laptop --device cpu").data
    ensure_data(data)
    assert load_dataset(data).vocab_size == 263
    assert "training_data_1024.npy is missing" in capsys.readouterr().err
    assert "training_data_1024.tokenizer.json" in contents(workplace)


def test_a_data_file_that_is_there_is_never_prepared_anew(workplace):
    Path("training_data_1024.npy").write_text("a user's")
    ensure_data("training_data_1024.npy")
    assert contents(workplace) == ["training_data.npy", "training_data_1024.npy"]
    assert Path("training_data_1024.npy").read_text() == "a user's"


def test_data_in_the_output_folder_keeps_its_tokenizer(workplace):
    Path("tokenizer.json").write_text("{}")
    assert run_main("--runs 1 --arms window --output-dir .") == 0
    assert Path("tokenizer.json").read_text() == "{}"


def test_ctrl_c_while_plotting_keeps_everything(workplace, monkeypatch, capsys):
    monkeypatch.setattr(studies.command, "create_all_plots", interrupt)
    assert run_main(BLOCK) == 130
    assert "interrupted: finished trainings are kept" in capsys.readouterr().err


# bad input
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--n-heads 3", "--d-model 16 is not divisible by --n-heads 3"),
        ("--runs 0", "--runs must be at least 1, got 0"),
        ("--device cuda:77", "--device cuda:77: this machine has"),
        ("--seq-len 5000", "0 rows of 5,001 tokens"),
        ("--batch-size 59", "59"),
        ("--data other/tokens.npy", "other/tokens.npy"),  # it is never made up
        ("--config other.toml", "other.toml: no such file"),
    ],
)
def test_wrong_options_get_one_line_and_exit_code_2(workplace, capsys, options, words):
    assert run_main(options) == 2
    assert words in one_line(capsys) and contents(workplace) == ["training_data.npy"]


@pytest.mark.parametrize("options", ["--dilation x", "--preset big", "--runs many", "--nonsense"])
def test_options_that_argparse_refuses(workplace, capsys, options):
    with pytest.raises(SystemExit) as stop:
        run_main(options)
    assert stop.value.code == 2
    assert options.split()[-1] in capsys.readouterr().err


def test_a_file_where_a_folder_should_be_is_found_before_anything_is_trained(
    workplace, monkeypatch, capsys
):
    (workplace / "taken").write_text("")
    started = stop_at(monkeypatch, 1)
    for option in ("--output-dir", "--plots-dir"):
        assert run_main(f"{option} taken") == 1
        line = one_line(capsys)
        assert line.startswith("error: taken: cannot be written")
        assert "a file is where its folder should be" in line
    with pytest.raises(OSError):
        run_main("--output-dir taken --debug")
    assert started == []


# a configuration's file
def test_a_configurations_file_repeats_its_experiment(workplace):
    assert run_main(f"{BLOCK} --dilation 2") == 0
    assert main(["--config", "output/config.toml", "--output-dir", "again"]) == 0
    (old, about), (new, about_new) = (
        load_experiment(f"{folder}/experiment_results.npz") for folder in ("output", "again")
    )
    assert same_losses(old, new)
    assert {**about_new["config"], "output_dir": "output"} == about["config"]
    files = [Path(folder, "config.toml").read_text() for folder in ("output", "again")]
    assert files[0] == files[1].replace('"again"', '"output"')


def test_options_override_a_configurations_file(workplace):
    Path("mine.toml").write_text('preset = "laptop"\nlr = 1\n[model]\nlayers = 3\nn_heads = 2')
    options = "--config mine.toml --lr 2 --device cpu"
    arguments = with_file(build_parser().parse_args(options.split()))
    config = config_from(arguments)
    assert (config.preset, config.lr, config.layers, config.n_heads) == ("laptop", 2.0, 3, 2)
    assert config.seq_len == PRESETS["laptop"]["seq_len"]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("lr = -1", "", "--lr must be a positive number, got -1"),
        ("lr = 1979-05-27", "", "--lr must be a positive number, got datetime.date(1979, 5, 27)"),
        ("device = 5", "", "--device 5: choose auto, cpu, cuda or cuda:N"),
        ("preset = 'big'", "", "unknown preset 'big': choose one of paper"),
        ("preset = 'paper'", "--preset smoke", "--preset smoke: mine.toml is of preset paper"),
    ],
)
def test_wrong_values_in_a_file_are_one_line(workplace, capsys, text, options, words):
    Path("mine.toml").write_text(text)
    assert main(f"--config mine.toml {options}".split()) == 2
    assert one_line(capsys).startswith(f"error: {words}")
    assert contents(workplace) == ["mine.toml", "training_data.npy"]


# options
def test_help_is_complete_and_grouped():
    text = build_parser().format_help()
    documented = "runs seed arms preset device dtype compile batch-size max-steps seq-len d-model"
    documented += " n-heads layers window-size dilation lr warmup-steps data output-dir plots-dir"
    documented += " dry-run restart allow-mixed study seq-lens patterns"
    for option in documented.split():
        assert f"--{option} " in text or f"--{option}\n" in text, option
    for group in ("experiment:", "training:", "model:", "pattern:", "files:"):
        assert f"\n{group}\n" in text
    assert "paper 256, long 4096, laptop 512, smoke 512" in flat(text)


def test_a_value_for_each_layer_is_read_from_the_command_line():
    config = config_of("--preset laptop --device cpu --window-size 64,96 --dilation 4")
    assert (config.window_size, config.dilation) == ((64, 96), 4)


def test_presets_give_defaults_and_options_override_them():
    assert config_of("--preset long --device cpu").seq_len == 4096
    options = "--preset laptop --seq-len 64 --compile --arms window fused --device cpu"
    config = config_of(options)
    assert (config.seq_len, config.compile, config.arms) == (64, "default", ("window", "fused"))
    assert config.runs == PRESETS["laptop"]["runs"]


def test_studies_with_cuda_are_short_ones_of_preset_long(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for study, steps in (("lengths", 300), ("patterns", 600)):
        config = config_of(f"--study {study}")
        assert (config.preset, config.seq_len, config.max_steps) == ("long", 4096, steps)
        assert config.arms == ("baseline", "window", "fused")
        assert (config.lr, config.runs, config.eval_every) == (3e-4, 3, 0)
    chosen = config_of("--study lengths --lr 1e-3 --eval-every 100 --arms fused w96-d0-f1")
    assert (chosen.lr, chosen.eval_every, chosen.arms) == (1e-3, 100, ("fused", "w96-d0-f1"))


def test_the_default_preset_follows_the_device(monkeypatch):
    for available, preset in ((False, "laptop"), (True, "paper")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda value=available: value)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert config_of("").preset == preset


def test_accumulation_does_not_go_with_the_graphs_of_the_preset():
    options = "--preset long --device cpu"
    assert config_of(options).compile == "reduce-overhead"
    with pytest.raises(ValueError, match=r"CUDA graphs, .*: choose --compile default"):
        config_of(f"{options} --gradient-accumulation 2")
    options += " --gradient-accumulation 2 --compile default"
    assert config_of(options).compile == "default"

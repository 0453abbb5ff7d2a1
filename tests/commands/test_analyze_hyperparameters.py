"""``python analyze_hyperparameters.py``: its files, and one line for bad input."""

import pytest
from conftest import ROOT, is_drawn, nobody_reads, one_line

import analyze_hyperparameters


def run(arguments, path):
    folders = ["--output-dir", str(path / "output"), "--plots-dir", str(path / "plots")]
    return analyze_hyperparameters.main([*arguments.split(), *folders])


def test_the_comparison_writes_its_files_and_prints_the_report(tmp_path, capsys):
    assert run("", tmp_path) == 0
    out = capsys.readouterr().out
    report = (tmp_path / "output" / "hyperparameter_analysis.txt").read_text(encoding="utf-8")
    assert out.startswith(report)
    names = "hyperparameter_comparison", "sparsity_speedup_tradeoff"
    expected = sorted(f"{name}.{kind}" for name in names for kind in ("png", "pdf"))
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == expected
    for name in names:
        path = tmp_path / "plots" / f"{name}.png"
        assert f"wrote {path}" in out
        assert is_drawn(path)


def test_a_long_sequence_is_counted_and_drawn_without_its_pairs(tmp_path, capsys):
    assert run("96 4 1048576 --sink-tokens 4", tmp_path) == 0
    assert "549,756,338,176" in capsys.readouterr().out  # S (S + 1) / 2
    written = sorted(path.name for path in (tmp_path / "plots").iterdir())
    name = "config_w96_d4_n4_len1048576"
    assert written == [f"{name}.pdf", f"{name}.png"]
    assert (tmp_path / "output" / f"{name}.txt").is_file()


def test_one_configuration_in_an_empty_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert analyze_hyperparameters.main(["96", "4"]) == 0
    out = capsys.readouterr().out
    assert "MEASURED, from results/" in out and "Use at S " in out and "23,296" in out
    assert (tmp_path / "plots" / "config_w96_d4.png").is_file()


def test_the_files_are_written_whoever_reads(tmp_path, monkeypatch):
    nobody_reads(monkeypatch)
    assert run("96 4", tmp_path) == 0
    written = {path.name for path in tmp_path.glob("*/*")}
    assert written == {f"config_w96_d4.{kind}" for kind in ("txt", "png", "pdf")}


@pytest.mark.parametrize("arguments", ["", "96 4"])
@pytest.mark.parametrize("module", ["report.format_report", "pictures.draw_mask"])
def test_a_bug_of_ours_is_not_called_a_damaged_file(arguments, module, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(f"estimates.{module}", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run(arguments, tmp_path)


def test_every_configuration_has_files_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("figures.look.save_figures", lambda figures, _: list(figures))
    asked = "64 8", "64 8 512", "64 8 --sink-tokens 2", "--arms w64-d8-s", "--arms w64-d0-f1"
    asked += "--arms w64-d0-e4 --n-heads 8", "", "--seq-len 512"
    asked += (f"--measured {ROOT / 'results' / 'h100_pattern_study.json'}",)
    for arguments in asked:
        assert run(arguments, tmp_path) == 0
    names = {path.name for path in (tmp_path / "output").iterdir()}
    assert len(names) == len(asked) and "config_w64_d8.txt" in names


@pytest.mark.parametrize(
    "arguments, named",
    [
        ("96", "needs a dilation"),
        ("-1 4", "window_size must be a whole number from 0 to 2**40, got -1"),
        ("-3 4", "got -3"),
        ("96 -1", "dilation must be a whole number from 0 to 2**40, got -1"),
        ("96 4 0", "seq_len must be a whole number from 1 to 2**40, got 0"),
        ("--seq-len 0", "got 0"),
        ("96 4 256 --seq-len 512", "given twice"),
        ("--d-model 0", "d_model"),
        ("--seq-len 64 --measured", "give none of them"),
        ("--arms w96-d4 --measured FILE", "give none of them"),
        ("--sink-tokens 2 --measured FILE", "give none of them"),
    ],
)
def test_impossible_arguments_are_one_line_and_code_2(arguments, named, capsys, tmp_path):
    study = str(ROOT / "results" / "h100_pattern_study.json")
    assert run(arguments.replace("FILE", study), tmp_path) == 2
    assert named in one_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, named",
    [
        ("x 4", "'x'"),
        ("96 4.5", "'4.5'"),
        ("96 4 256 8", "arguments: 8"),
        ("--layers many", "many"),
    ],
)
def test_what_is_no_whole_number_ends_with_usage_and_code_2(arguments, named, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(arguments, tmp_path)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("usage:") and named in err.splitlines()[-1]

"""benchmark_attention.py: options in, tables, JSON and picture out."""

import json
import re
from functools import partial

import pytest
import torch
from conftest import is_drawn, nobody_reads, one_line

import benchmark_attention
from analysis.warnings import disturbances
from attention import density
from benchmarks import attention, problems, timing
from benchmarks.options import EPILOG
from benchmarks.peers import known_peers

TINY = ["--device", "cpu", "--heads", "2", "--head-dim", "8", "--rounds", "2"]
TINY += ["--batch-size", "2", "--seq-lens", "32", "16"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command into the test's folder, as if undisturbed; returns its exit code."""
    monkeypatch.setattr("analysis.warnings.disturbances", lambda record: [])
    folders = ["--output-dir", str(tmp_path / "out"), "--plots-dir", str(tmp_path / "plots")]
    return lambda *options: benchmark_attention.main([*options, *folders])


def saved(tmp_path, name):
    return json.loads((tmp_path / "out" / name).read_text())


def test_attention_gives_tables_json_and_picture(run, tmp_path, capsys):
    assert run(*TINY, "--peers", "split", "flash") == 0
    captured = capsys.readouterr()
    assert "float32, B2 H2 D8, w96-d4" in captured.out and "S 32\n" in captured.out
    assert "attention_scaling.png" in captured.err
    content = saved(tmp_path, "attention_benchmark.json")
    assert [r["seq_len"] for r in content["records"]] == [16] * 4 + [32] * 4
    assert content["environment"]["torch"] and content["options"]["peers"] == ["split", "flash"]
    assert is_drawn(tmp_path / "plots" / "attention_scaling.png")


def test_disturbed_times_are_marked_and_end_with_3(run, monkeypatch, capsys):
    states = iter([{"ran_s": 1, "waited_s": 2}, {"ran_s": 3, "waited_s": 4}] * 4)
    monkeypatch.setattr(timing, "device_state", lambda device: next(states))
    monkeypatch.setattr("analysis.warnings.disturbances", disturbances)
    assert run(*TINY, "--peers", "flash") == 3
    printed = capsys.readouterr().out
    assert len(re.findall(r"\d !", printed)) == 4
    assert printed.count("! forward: threads waited for a core that others had (50% of the") == 2


def test_the_picture_is_drawn_whoever_reads(run, tmp_path, monkeypatch):
    nobody_reads(monkeypatch)
    assert run(*TINY, "--peers", "split") == 0
    assert (tmp_path / "plots" / "attention_scaling.png").is_file()


def test_patterns_by_name_are_timed_beside_full_attention(run, tmp_path, monkeypatch):
    # what the compiler makes of them is in tests/attention
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    patterns = ["w4-d0-f1", "w4-d3-s"]
    options = ["--seq-lens", "32", "--patterns", *patterns, "--tokens", "64"]
    assert run(*TINY, *options) == 0
    records = saved(tmp_path, "attention_benchmark.json")["records"]
    by_name = {r["peer"]: r for r in records}
    assert set(by_name) == {*patterns, "flash"}
    of_heads = by_name["w4-d0-f1"]
    assert of_heads["batch_size"] == 2 and of_heads["evaluation"] == "masked"
    assert of_heads["density"] == pytest.approx((1 + density(32, 4, 0)) / 2)
    assert is_drawn(tmp_path / "plots" / "attention_scaling.png")


def test_decoding_gives_tables_and_json_whose_numbers_agree(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(attention.COPY_BYTES, "cpu", 2**16)
    assert run(*TINY, "--decode") == 0
    printed = capsys.readouterr().out
    assert "a copy moves" in printed and "skipped: cudnn at S 16 32, one token: " in printed
    records = saved(tmp_path, "decode_benchmark.json")["records"]
    assert [r["peer"] for r in records] == ["window", "full", "flash", "math"] * 2
    for r in records:
        # 2 sequences, 2 heads, 8 numbers of 4 bytes, keys and values; all within the window
        assert r["read_mb"] == pytest.approx(r["seq_len"] * 2 * 2 * 8 * 4 * 2 / 1e6)
        assert r["limit_ms"] == pytest.approx(r["read_mb"] / r["copy_gb_per_s"])
        assert r["share_of_limit"] == pytest.approx(r["limit_ms"] / r["median_ms"])
    assert not (tmp_path / "plots" / "attention_scaling.png").exists()


@pytest.mark.parametrize("name", ["step_benchmark", "decode_step_benchmark"])
def test_steps_give_a_table_and_json(run, tmp_path, capsys, name):
    more = ["--decode"] if name.startswith("decode") else ["--compile", "none"]
    assert run(*TINY, "--step", "--layers", "1", "--arms", "window", "fused", *more) == 0
    records = saved(tmp_path, f"{name}.json")["records"]
    assert [r["seq_len"] for r in records] == [16, 16, 32, 32]
    printed = capsys.readouterr().out
    assert "fused over this" in printed and "w96-d4, 1 layer, learned positions" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seq-lens", "8", "0"], "--seq-lens must be at least 1, got 0"),
        (["--window-size", "-1"], "--window-size must be at least 0, got -1"),
        (["--dilation", "-1"], "--dilation must be at least 0, got -1"),
        (["--patterns", "w96-d0-f9"], "full_heads must be a whole number from 0 to n_heads"),
        (["--step", "--patterns", "w96-d4"], "--patterns is for attention alone"),
        (["--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["--patterns", "w96-d0-e2"], "--patterns w96-d0-e2: give names of one layer"),
        (["--step", "--dtype", "float16"], "--dtype"),
        (["--peers", "full"], "--peers full: choose of split"),
        (["--decode", "--peers", "split"], "--peers split: choose of window"),
    ],
)
def test_wrong_options_are_named_in_one_line_and_end_with_2(run, tmp_path, capsys, options, words):
    assert run("--device", "cpu", *options) == 2
    assert words in one_line(capsys) and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_ends_with_1_before_timing(run, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert run(*TINY) == 1
    captured = capsys.readouterr()
    assert "cannot be written" in captured.err and captured.out == ""


@pytest.mark.parametrize(("title", "decode"), [("\npeers of --decode, ", True), ("peers, ", False)])
def test_help_names_every_peer_and_its_keys(title, decode):
    """They are told twice, for the peers themselves would load torch."""
    _, *lines = EPILOG[EPILOG.index(title) :].strip().splitlines()
    for name, peer in known_peers("pattern", decode=decode).items():
        assert lines.pop(0).startswith(f"  {name:16}{peer.attends:12}")
    assert not lines[0].startswith("  ")  # no further ones


def test_an_interruption_keeps_and_shows_the_finished_lengths(run, tmp_path, monkeypatch, capsys):
    original = problems.measure_attention

    def measure(case, **options):
        if case.seq_len == 32:
            raise KeyboardInterrupt
        return original(case, **options)

    monkeypatch.setattr(problems, "measure_attention", measure)
    assert run(*TINY, "--peers", "flash") == 130
    records = saved(tmp_path, "attention_benchmark.json")["records"]
    assert {r["seq_len"] for r in records} == {16}
    captured = capsys.readouterr()
    assert "S 16\n" in captured.out and "interrupted" in captured.err


@pytest.mark.parametrize(("first", "code"), [(True, 3), (False, 0)])
def test_of_several_ranks_the_first_alone_judges_and_writes(
    run, tmp_path, monkeypatch, first, code
):
    """Else torchrun would call a benchmark failed that the first rank calls undisturbed."""
    monkeypatch.setattr("analysis.warnings.disturbances", lambda record: ["load average", "9"])
    monkeypatch.setattr("machine.ranks.is_first", lambda: first)
    monkeypatch.setattr("figures.page.publish", lambda *_: None)
    assert run(*TINY, "--step", "--layers", "1", "--arms", "fused", "--compile", "none") == code
    assert (tmp_path / "out" / "step_benchmark.json").exists() == first

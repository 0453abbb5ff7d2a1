"""The benchmark measures what it says: by its own arithmetic, and only what is right."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import benchmark_attention
from attention import pattern as attention_pattern
from attention.choose import window_attention
from attention.full import fused_attention
from attention.pattern import density
from benchmarks import attention as benchmarks_attention
from benchmarks import decoding as benchmarks_decoding
from benchmarks import peers as benchmarks_peers
from benchmarks import picture as benchmarks_picture
from benchmarks import steps as benchmarks_steps
from benchmarks import tables as benchmarks_tables
from benchmarks import timing as benchmarks_timing
from benchmarks.attention import AttentionBenchmark
from benchmarks.peers import Case, Peer, Unavailable
from training import trainer as training_trainer
from training.config import make_config

CPU = torch.device("cpu")
CASE = Case(1, 64, 2, 8, 10, 3, "float32", "cpu")
TINY = ["--device", "cpu", "--heads", "2", "--head-dim", "8", "--rounds", "2"]
STEP = [*TINY, "--step", "--layers", "1", "--compile", "none", "--seq-lens", "16"]


def folders(tmp_path):
    return ["--output-dir", str(tmp_path / "out"), "--plots-dir", str(tmp_path / "plots")]


@pytest.fixture(scope="module")
def measured():
    """One benchmark over two lengths and all kinds of peers, without memory."""
    names = ["split", "dense", "flash", "cudnn", "local-attention"]
    benchmark = AttentionBenchmark(names, CPU, rounds=3, memory=False)
    for seq_len in (32, 64):
        benchmark.measure(Case(1, seq_len, 2, 8, 10, 3, "float32", "cpu"))
    return benchmark


def test_every_peer_is_timed_or_skipped_with_a_reason(measured):
    timed = {(r["peer"], r["seq_len"], r["direction"]) for r in measured.records}
    skipped = {(s["peer"], s["seq_len"], s["direction"]) for s in measured.skipped}
    assert not timed & skipped and len(timed | skipped) == 5 * 2 * 2
    assert {"split", "dense", "flash"} <= {peer for peer, *_ in timed}
    assert all(s["reason"] for s in measured.skipped)
    reasons = {s["peer"]: s["reason"] for s in measured.skipped}
    assert "no such kernel" in reasons["cudnn"]


def test_ratios_follow_from_the_samples_of_the_same_length_and_direction(measured):
    for record in measured.records:
        same = [
            r
            for r in measured.records
            if (r["seq_len"], r["direction"]) == (record["seq_len"], record["direction"])
        ]
        full = min(np.median(r["samples_ms"]) for r in same if r["attends"] == "all keys")
        assert len(record["samples_ms"]) == 3 and min(record["samples_ms"]) > 0
        assert record["median_ms"] == pytest.approx(np.median(record["samples_ms"]))
        assert record["ratio_to_best_full"] == pytest.approx(full / record["median_ms"])
        if record["attends"] == "near + far":
            kept = density(record["seq_len"], 10, 3)
            assert record["share_of_limit"] == pytest.approx(kept * record["ratio_to_best_full"])
        else:
            assert math.isnan(record["share_of_limit"])


def test_the_table_has_a_line_for_each_and_the_picture_a_line_and_the_limit(measured):
    table = benchmarks_tables.format_attention(measured.records, measured.skipped)
    for text in ("S 32 (B1 H2 D8, w10 d3, float32)", "split ", "near + far", "all keys"):
        assert text in table
    assert "skipped: cudnn at S 32 64: " in table
    figure = benchmarks_picture.plot_scaling(measured.records, "title")
    for axis, direction in zip(figure.axes, benchmarks_peers.DIRECTIONS, strict=True):
        here = [r for r in measured.records if r["direction"] == direction]
        labels = {line.get_label(): line for line in axis.get_lines()}
        assert len(labels) == len({r["peer"] for r in here}) + 1
        limit = next(line for label, line in labels.items() if label.startswith("limit"))
        full = [r["median_ms"] for r in here if r["attends"] == "all keys"]
        kept = [density(n, 10, 3) for n in (32, 64)]
        np.testing.assert_allclose(limit.get_ydata(), np.multiply(full, kept))


@pytest.mark.parametrize("name", ["split", "masked", "dense", "flash"])
def test_the_check_passes_what_is_exact(name):
    assert benchmarks_peers.error_of(name, CASE) < 1e-5


def test_the_check_refuses_a_peer_that_computes_something_else(monkeypatch):
    off_by_one = Peer(
        benchmarks_peers.PATTERN,
        lambda case: lambda q, k, v: window_attention(q, k, v, case.window_size + 1, case.dilation),
    )
    monkeypatch.setitem(benchmarks_peers.PEERS, "split", off_by_one)
    with pytest.raises(Unavailable, match="gives other results than textbook attention"):
        benchmarks_peers.error_of("split", CASE)
    benchmark = AttentionBenchmark(["split"], CPU, rounds=1, memory=False)
    benchmark.measure(CASE)
    assert not benchmark.records and len(benchmark.skipped) == 2


def test_a_peer_whose_code_fails_does_not_end_the_others(monkeypatch):
    def broken(case):
        raise KeyError("its own bug")

    monkeypatch.setitem(benchmarks_peers.PEERS, "dense", Peer(benchmarks_peers.PATTERN, broken))
    benchmark = AttentionBenchmark(["dense", "masked"], CPU, rounds=1, memory=False)
    benchmark.measure(CASE)
    assert {r["peer"] for r in benchmark.records} == {"masked"}
    assert {s["reason"] for s in benchmark.skipped} == {"KeyError: 'its own bug'"}


def test_without_a_backward_pass_the_forward_pass_is_still_timed(monkeypatch):
    def forward_only(case):
        def attend(q, k, v):
            if q.requires_grad:
                raise NotImplementedError("training is not supported")
            return fused_attention(q, k, v)

        return attend

    monkeypatch.setitem(
        benchmarks_peers.PEERS, "flash", Peer(benchmarks_peers.ALL_KEYS, forward_only)
    )
    benchmark = AttentionBenchmark(["flash"], CPU, rounds=1, memory=False)
    benchmark.measure(CASE)
    assert [r["direction"] for r in benchmark.records] == ["forward"]
    assert benchmark.skipped[0]["reason"] == "NotImplementedError: training is not supported"


def test_what_is_out_of_proportion_is_not_tried(monkeypatch):
    benchmark = AttentionBenchmark(["dense"], CPU, rounds=1, memory=False)
    monkeypatch.setattr(benchmarks_attention, "free_memory", lambda device: 1e6)
    benchmark.measure(Case(1, 512, 8, 8, 10, 3, "float32", "cpu"))
    assert not benchmark.records and "GB are free" in benchmark.skipped[0]["reason"]
    benchmark = AttentionBenchmark(["flash"], CPU, rounds=1, max_seconds=1e-9, memory=False)
    for seq_len in (16, 32):
        benchmark.measure(Case(1, seq_len, 2, 8, 10, 3, "float32", "cpu"))
    assert {r["seq_len"] for r in benchmark.records} == {16}
    assert "--max-seconds" in benchmark.skipped[0]["reason"]


def test_every_round_takes_every_work_in_turn(monkeypatch):
    monkeypatch.setitem(benchmarks_timing.SAMPLE_SECONDS, "cpu", 1e-9)  # one call a sample
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = benchmarks_timing.timed_in_rounds(works, CPU, rounds=4)
    assert {name: len(seconds) for name, seconds in samples.items()} == dict.fromkeys("abc", 4)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"


def test_memory_is_that_of_one_forward_and_backward_pass():
    large = Case(1, 1024, 4, 32, 10, 3, "float32", "cpu")
    dense = benchmarks_attention.peak_memory_mb("dense", large, None)
    flash = benchmarks_attention.peak_memory_mb("flash", large, None)
    # the scores of dense attention alone are 16 MB, kept several times over
    assert dense > 32 > flash > 0
    assert math.isnan(benchmarks_attention.peak_memory_mb("split-compiled", large, None))


def test_the_command_writes_table_json_and_picture(tmp_path, capsys):
    arguments = [*TINY, "--seq-lens", "16", "32", "--peers", "split", "flash", "--no-memory"]
    assert benchmark_attention.main([*arguments, *folders(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "S 32 (B1 H2 D8, w96 d4, float32)" in captured.out
    saved = json.loads((tmp_path / "out" / "attention_benchmark.json").read_text())
    assert len(saved["records"]) == 2 * 2 * 2 and saved["environment"]["torch"]
    assert saved["options"]["seq_lens"] == ["16", "32"]
    assert (tmp_path / "plots" / "attention_scaling.png").stat().st_size > 10_000


def test_steps_of_the_arms_are_timed_side_by_side(tmp_path, capsys):
    arms = ["--arms", "window", "fused", "--window-attention", "masked", "split"]
    assert benchmark_attention.main([*STEP, *arms, *folders(tmp_path)]) == 0
    saved = json.loads((tmp_path / "out" / "step_benchmark.json").read_text())
    records = {r["arm"]: r for r in saved["records"]}
    assert list(records) == ["window (masked)", "window (split)", "fused"]
    fused = np.median(records["fused"]["samples_ms"])
    for record in records.values():
        ratio = fused / np.median(record["samples_ms"])
        assert record["fused_over_this"] == pytest.approx(ratio)
    assert "window (split)" in capsys.readouterr().out


def test_a_step_that_fails_is_reported_and_the_others_go_on(monkeypatch):
    original = benchmarks_steps._step_of

    def step_of(config, arm, *rest):
        if arm == "window":
            raise RuntimeError("out of memory")
        return original(config, arm, *rest)

    monkeypatch.setattr(benchmarks_steps, "_step_of", step_of)
    sizes = {"d_model": 16, "n_heads": 2, "layers": 1, "seq_len": 16, "batch_size": 1}
    config = make_config("paper", device="cpu", **sizes)
    records, skipped = benchmarks_steps.measure_steps(config, ["none"], ["auto"], CPU, rounds=1)
    assert [r["arm"] for r in records] == ["baseline", "fused"]
    assert skipped[0]["arm"] == "window (auto)" and skipped[0]["reason"] == "out of memory"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seq-lens", "x"], "--seq-lens must be whole numbers, got 'x'"),
        (["--seq-lens", "0"], "--seq-lens must be at least 1, got 0"),
        (["--heads", "-1"], "--heads must be at least 1, got -1"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--max-seconds", "nan"], "--max-seconds must be a positive number, got nan"),
        (["--window-size", "0"], "window_size must be at least 1, got 0"),
        (["--device", "tpu"], "--device"),
        (["--step", "--dtype", "float16"], "--dtype"),
    ],
)
def test_wrong_options_are_named_and_end_with_2(tmp_path, capsys, arguments, words):
    code = benchmark_attention.main(["--device", "cpu", *arguments, *folders(tmp_path)])
    error = capsys.readouterr().err
    assert code == 2 and words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_ends_with_1_before_anything_is_timed(tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert benchmark_attention.main([*TINY, "--seq-lens", "8", *folders(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_an_interruption_keeps_the_finished_lengths(tmp_path, monkeypatch, capsys):
    original = AttentionBenchmark.measure

    def measure(self, case):
        if case.seq_len == 32:
            raise KeyboardInterrupt
        original(self, case)

    monkeypatch.setattr(AttentionBenchmark, "measure", measure)
    arguments = [*TINY, "--seq-lens", "16", "32", "--peers", "flash", "--no-memory"]
    assert benchmark_attention.main([*arguments, *folders(tmp_path)]) == 130
    saved = json.loads((tmp_path / "out" / "attention_benchmark.json").read_text())
    assert {r["seq_len"] for r in saved["records"]} == {16}
    assert "interrupted" in capsys.readouterr().err


def test_a_missing_package_is_the_reason():
    with pytest.raises(Unavailable, match="cannot import no_such_package"):
        benchmarks_peers._package("no_such_package")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_work_is_recorded_as_a_graph_and_its_tensors_stay():
    device = torch.device("cuda", 0)
    case = Case(1, 256, 2, 64, 32, 4, "bfloat16", "cuda:0")
    results = {}
    for name in ("split", "cudnn"):
        work = benchmarks_attention.work_of(
            benchmarks_peers.PEERS[name].make(case), case, benchmarks_peers.TRAINING
        )
        results[name], how = benchmarks_timing.as_cuda_graph(work, device)
        assert how == "CUDA graph"
        del work
    torch.cuda.empty_cache()
    samples = benchmarks_timing.timed_in_rounds(results, device, 3)
    assert all(0 < s < 1 for seconds in samples.values() for s in seconds)
    assert (
        benchmarks_attention.peak_memory_mb("split", case, lambda: torch.ones(2**20, device=device))
        == 4
    )


# --- one new token ---

DECODE = [*TINY, "--decode", "--seq-lens", "16", "300", "--batch-size", "2"]


@pytest.fixture
def small_copy(monkeypatch):
    monkeypatch.setitem(benchmarks_decoding.COPY_BYTES, "cpu", 2**16)


@pytest.mark.parametrize("name", ["window", "full", "window-products", "full-cpu", "flash", "math"])
@pytest.mark.parametrize("pattern", [(10, 3), (10, 0), (96, 1)])
def test_every_peer_of_decoding_is_exact(name, pattern):
    case = Case(2, 64, 2, 8, *pattern, "float32", "cpu")
    assert benchmarks_decoding.decode_error(name, case) < 1e-5


def test_a_peer_of_decoding_that_computes_something_else_is_refused(monkeypatch, small_copy):
    monkeypatch.setitem(
        benchmarks_decoding.DECODE_PEERS,
        "window",
        Peer(benchmarks_peers.PATTERN, benchmarks_decoding.DECODE_PEERS["full"].make),
    )
    records, skipped = benchmarks_decoding.measure_decoding(
        ["window", "full", "cudnn"], CASE, CPU, rounds=1
    )
    assert [r["peer"] for r in records] == ["full"]
    reasons = {s["peer"]: s["reason"] for s in skipped}
    assert "gives other results than textbook attention" in reasons["window"]
    assert "no such kernel" in reasons["cudnn"]


@pytest.mark.parametrize(("seq_len", "keys"), [(1, 1), (11, 11), (13, 11), (14, 12), (64, 28)])
def test_the_keys_that_a_step_reads_are_those_of_the_mask(seq_len, keys):
    case = Case(1, seq_len, 2, 8, 10, 3, "float32", "cpu")
    mask = attention_pattern.window_mask(seq_len, 10, 3)
    assert benchmarks_decoding.keys_read(case, benchmarks_peers.PATTERN) == keys == mask[-1].sum()
    assert benchmarks_decoding.keys_read(case, benchmarks_peers.ALL_KEYS) == seq_len
    read = sum(part[0].shape[2] for part in benchmarks_decoding.Stored(case).window.parts())
    assert read == keys


def test_decoding_writes_a_table_and_json_whose_numbers_agree(tmp_path, capsys, small_copy):
    assert benchmark_attention.main([*DECODE, *folders(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "context 300 (B2 H2 D8, w96 d4, float32): a copy moves" in captured.out
    assert "skipped: cudnn at S 16 300" in captured.out
    assert not (tmp_path / "plots" / "attention_scaling.png").exists()
    records = json.loads((tmp_path / "out" / "decode_benchmark.json").read_text())["records"]
    peers = {"window", "full", "flash", "math"}
    peers |= {f"{store}-{name}" for store in ("window", "full") for name in ("products", "cpu")}
    for seq_len in (16, 300):
        here = {r["peer"]: r for r in records if r["seq_len"] == seq_len}
        assert set(here) == peers
        full = min(r["median_ms"] for r in here.values() if r["attends"] == "all keys")
        for r in here.values():
            assert r["median_ms"] == pytest.approx(np.median(r["samples_ms"]))
            assert r["ratio_to_best_full"] == pytest.approx(full / r["median_ms"])
            assert r["limit_ms"] == pytest.approx(r["read_mb"] / r["copy_gb_per_s"])
            assert r["share_of_limit"] == pytest.approx(r["limit_ms"] / r["median_ms"])
        # B2 H2 D8, keys and values, 4 bytes
        assert here["full"]["read_mb"] == pytest.approx(seq_len * 2 * 2 * 8 * 2 * 4 / 1e6)
    assert here["window"]["read_mb"] == pytest.approx((97 + 50) * 2 * 2 * 8 * 2 * 4 / 1e6)


def test_whole_steps_of_decoding(tmp_path, capsys):
    assert benchmark_attention.main([*DECODE, "--step", "--layers", "2", *folders(tmp_path)]) == 0
    saved = json.loads((tmp_path / "out" / "decode_step_benchmark.json").read_text())
    assert [(r["arm"], r["seq_len"]) for r in saved["records"]] == [
        (arm, seq_len) for seq_len in (16, 300) for arm in ("baseline", "window", "fused")
    ]
    assert "fused over this" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["_step_of", "_decode_state"])
def test_an_arm_without_room_is_named_and_the_others_are_timed(what, tmp_path, capsys, monkeypatch):
    module = benchmarks_steps if what == "_step_of" else benchmarks_decoding
    real, calls = getattr(module, what), itertools.count()

    def no_room_at_first(*args):
        if next(calls) == 0:
            raise RuntimeError("can't allocate memory: 9 bytes")
        return real(*args)

    monkeypatch.setattr(module, what, no_room_at_first)
    options = [*DECODE, "--layers", "1"] if what == "_decode_state" else [*TINY, "--seq-lens", "16"]
    options += ["--step", "--compile", "none"] if what == "_step_of" else ["--step"]
    assert (
        benchmark_attention.main([*options, "--arms", "window", "fused", *folders(tmp_path)]) == 0
    )
    assert "skipped: window" in (out := capsys.readouterr().out) and "out of memory" in out
    (path,) = (tmp_path / "out").glob("*.json")
    saved = json.loads(path.read_text())
    assert saved["skipped"][0]["arm"].startswith("window") and saved["records"]


def test_a_context_without_room_is_named_and_the_others_are_timed(tmp_path, capsys, monkeypatch):
    real = benchmarks_decoding.Stored

    def stored(case, **options):
        if case.seq_len == 300:
            raise RuntimeError("can't allocate memory: 9 bytes")
        return real(case, **options)

    monkeypatch.setattr(benchmarks_decoding, "Stored", stored)
    assert benchmark_attention.main([*DECODE, *folders(tmp_path)]) == 0
    assert "at S 300, forward only: out of memory" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "decode_benchmark.json").read_text())
    assert {r["seq_len"] for r in saved["records"]} == {16}
    skipped = [r["peer"] for r in saved["skipped"] if r["seq_len"] == 300]
    assert skipped == benchmarks_decoding.decode_names(CPU)


def test_the_timed_step_is_that_of_the_model():
    """The step that is timed gives the logits of the whole sequence, time after time."""
    sizes = {"d_model": 16, "n_heads": 2, "layers": 2, "seq_len": 50}
    config = make_config("paper", device="cpu", window_size=10, dilation=3, **sizes)
    model = training_trainer.build_model(config, "window", 100, CPU, seed=0).eval()
    tokens = torch.randint(100, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        caches = [block.mha.new_cache(2, 50) for block in model.layers]
        model.features(tokens[:, :-1], torch.arange(49), caches)
        for _ in range(2):
            logits = benchmarks_decoding._model_step(model, caches, tokens[:, -1:])
            torch.testing.assert_close(logits, model(tokens)[:, -1])


def test_peers_of_the_other_benchmark_are_named(tmp_path, capsys):
    for options in (["--peers", "full"], ["--decode", "--peers", "split"]):
        assert benchmark_attention.main([*TINY, *options, *folders(tmp_path)]) == 2
        assert f"--peers {options[-1]}: choose of " in capsys.readouterr().err

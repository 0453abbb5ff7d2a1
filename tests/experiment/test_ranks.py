"""Several ranks train what one process trains: two processes on the CPU, started by torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, flat
from small_experiment import RESULTS, TINY, contents, prepare_workplace, run_main, write_data
from tiny import CPU, VOCABULARY, tiny_config, tiny_dataset

from analysis.metrics import load_experiment, load_metrics
from analysis.words import report_text
from attention.pattern import FULL, Pattern
from benchmarks.tables import result_sections
from estimates.shards import exchanged_bytes
from machine import ranks
from machine.command import UserError
from studies.command import check_ranks
from training.config import make_config
from training.trainer import UNTIMED_STEPS, Trainer

WORKER = Path(__file__).with_name("torchrun_worker.py")
SIZES = "--batch-size 4 --max-steps 5 --val-batches 0 --eval-every 2 --runs 1"
TWO_ARMS = f"{SIZES} --arms baseline fused"
EVERY_ARM = ("baseline", "window", "fused", "published")
OPTIONS = f"{SIZES} --arms {' '.join(EVERY_ARM)}"
# a window, far keys in turns, a full head, every second layer full; rotary positions, sinks
SHARDED = ("baseline", "published", "fused", "window", "w5-d3-s", "w4-d0-f1", "w4-d0-e2")
SHARDS = f"{SIZES} --layers 2 --positions rotary --nope --sink-tokens 2 --lr 3e-2 "
SHARDS += f"--arms {' '.join(SHARDED)}"
CASES = {
    "two": f"{OPTIONS} --output-dir two",
    "parts": f"{OPTIONS} --output-dir parts --gradient-accumulation 2",
    "shards": f"{SHARDS} --shard-sequence --loss-chunk 7 --checkpoint-blocks --output-dir shards",
    "shards again": f"{SHARDS} --output-dir shards --allow-mixed",
    "short shards": f"{SHARDS} --shard-sequence --seq-len 8 --output-dir short",
    "again": f"{OPTIONS} --output-dir two",
    "other ranks": f"{OPTIONS} --output-dir one --allow-mixed",
    "uneven": f"{SIZES} --batch-size 3 --output-dir uneven",
    "no data": f"{SIZES} --data none.npy --output-dir no_data",
    "diverged": f"{TWO_ARMS} --output-dir diverged",
    "study": f"{TWO_ARMS} --study lengths --seq-lens 12 24 --positions learned "
    "--arms fused --output-dir study",
}
FAULTS = {"parts": "clock 1 1", "diverged": f"diverge 2 {UNTIMED_STEPS + 3}"}


def torchrun(folder, *arguments, **environment):
    """Two ranks of the worker in ``folder``; a hang ends in an error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [*command, WORKER, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folders, **environment},
    )


def one_process(folder, options):
    with pytest.MonkeyPatch.context() as patch:
        prepare_workplace(folder, patch)
        patch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
        assert run_main(options) == 0


def assert_close_losses(one, other):
    # sums in another order, in float32: a few units of the last place
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=2e-6)
    assert other["val_loss"] == pytest.approx(one["val_loss"], rel=2e-6)
    assert other["curve"]["steps"] == one["curve"]["steps"] == [2, 4, 5]
    assert other["curve"]["losses"] == pytest.approx(one["curve"]["losses"], rel=2e-6)


# two ranks
@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Many experiments of one and of two ranks: the folder, what came of them, and the output."""
    folder = tmp_path_factory.mktemp("ranks")
    one_process(folder, f"{OPTIONS} --output-dir one")
    one_process(folder, f"{SHARDS} --output-dir whole")
    cases = {
        name: {"options": f"{TINY} {options}", "fault": FAULTS.get(name)}
        for name, options in CASES.items()
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    done = torchrun(folder, "cases.json")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "found.json").read_text()), done


@pytest.mark.parametrize("arm", EVERY_ARM)
@pytest.mark.parametrize("name", ["two", "parts"])
def test_losses_are_those_of_one_process(ran, name, arm):
    """Without dropout, for every arm; also where each rank takes its rows in two micro-steps."""
    one = load_metrics(ran[0] / "one" / "experiment_results.npz")[arm][0]
    other = load_metrics(ran[0] / name / "experiment_results.npz")[arm][0]
    assert_close_losses(one, other)
    assert other["total_tokens"] == one["total_tokens"] == 5 * 4 * 24
    assert other["tokens_per_second"] == pytest.approx(480 / other["training_time"])
    assert abs(one["losses"] - one["losses"][0]).max() > 1e-3  # it learns, so weights matter


@pytest.mark.parametrize("arm", SHARDED)
def test_losses_over_shards_are_those_of_whole_sequences(ran, arm):
    """Logits in chunks and blocks computed again, too."""
    one = load_metrics(ran[0] / "whole" / "experiment_results.npz")[arm][0]
    other = load_metrics(ran[0] / "shards" / "experiment_results.npz")[arm][0]
    assert_close_losses(one, other)
    assert other["total_tokens"] == one["total_tokens"] and np.isnan(other["peak_memory_mb"])
    assert abs(one["losses"] - one["losses"][0]).max() > 1e-3
    assert all(first == second > 0 for first, second in ran[1]["shards"]["weights"])


def test_how_the_sequence_was_cut_is_stored_said_and_never_mixed(ran):
    folder, found, done = ran
    metadata = load_experiment(folder / "shards" / "experiment_results.json")[1]
    assert metadata["config"]["shard_sequence"] == metadata["config"]["world_size"] == 2
    assert metadata["attention"]["fused"]["evaluation"] == "split over shards"
    report = flat((folder / "shards" / "improved_comparison_results.txt").read_text())
    assert "2 ranks (gloo), each sequence cut over 2 into 12 tokens, blocks computed" in report
    assert found["shards again"]["code"] == 2 and found["shards again"]["weights"] == []
    assert done.stderr.count("config.shard_sequence: 2 before, 1 now") == 1
    assert found["short shards"]["code"] == 2
    assert done.stderr.count("a shard of 4 tokens cannot hold the window") == 1


def test_steps_over_shards_are_timed_and_what_they_send_is_counted(ran):
    records, skipped = ran[1]["steps"]
    assert [record["arm"] for record in records] == ["fused", "w5-d0-f1"] and skipped == []
    assert all(record["timed_as"] == "calls" for record in records)
    for record, pattern in zip(records, (FULL, Pattern(5, 0, full_heads=1)), strict=True):
        a_layer = exchanged_bytes(64, 2, pattern, n_heads=2, head_dim=8, itemsize=4)
        assert record["sent_mb"] == pytest.approx(2 * sum(a_layer.values()) / 1e6)
    table = report_text(result_sections(records, skipped))
    assert "sent (MB)" in table


def test_every_rank_ends_with_the_same_weights_and_draws_dropout_of_its_own(ran):
    for name in ("two", "parts"):
        assert len(ran[1][name]["weights"]) == len(EVERY_ARM)
        assert all(first == second > 0 for first, second in ran[1][name]["weights"])
        assert all(first != second for first, second in ran[1][name]["seeds"])


def test_gradients_travel_in_the_last_micro_step_alone(ran):
    two, parts = ran[1]["two"], ran[1]["parts"]
    assert two["steps"] == parts["steps"] > 5 * len(EVERY_ARM)
    assert "unsynchronized" not in two and parts["unsynchronized"] == parts["steps"]


def test_the_time_is_that_of_the_slowest_rank(ran):
    """Rank 1's clock ran three times as fast; the seconds of single steps are rank 0's."""
    for (training,) in load_metrics(ran[0] / "parts" / "experiment_results.npz").values():
        assert training["training_time"] > 2 * training["step_seconds"].sum()


def test_ranks_are_stored_and_reported(ran):
    metadata = load_experiment(ran[0] / "parts" / "experiment_results.json")[1]
    assert metadata["config"]["world_size"] == 2 and metadata["config"]["backend"] == "gloo"
    assert metadata["identity"]["config"]["world_size"] == 2
    report = (ran[0] / "parts" / "improved_comparison_results.txt").read_text()
    heading = flat(report.split("\n\n")[1])
    assert "2 ranks (gloo), gradients accumulated over 2 micro-steps" in heading
    assert "on one rank's share of the batch" in heading
    assert not any("TORCHELASTIC" in name for name in metadata["environment"]["variables"])


def test_output_is_written_once(ran):
    folder, found, done = ran
    assert found["two"]["code"] == found["parts"]["code"] == 0
    assert done.stderr.count("block 1/1 window: ") == 3  # of the cases two, parts and shards
    reported = ["two", "parts", "shards", "again", "diverged"]
    heading = "Sliding-window + dilated attention against full attention"
    assert done.stdout.count(heading) == len(reported)
    assert contents(folder / "two") == RESULTS
    assert len(contents(folder / "two" / "runs")) == len(EVERY_ARM)


def test_a_complete_experiment_is_recognised_and_other_ranks_are_refused(ran):
    _, found, done = ran
    assert found["again"]["code"] == 0 and found["again"]["weights"] == []
    assert done.stderr.count("complete: 4 of 4 trainings done") == 1
    assert found["other ranks"]["code"] == 2 and found["other ranks"]["weights"] == []
    assert done.stderr.count("config.world_size: 1 before, 2 now") == 1


def test_wrong_options_and_data_are_said_once(ran):
    _, found, done = ran
    assert found["uneven"]["code"] == found["no data"]["code"] == 2
    words = "error: --batch-size 3 cannot be split evenly over 2 ranks x --gradient-accumulation 1"
    assert done.stderr.count(words) == 1 and done.stderr.count("none.npy") == 1


def test_a_training_that_diverges_on_one_rank_is_the_outcome_on_all(ran):
    folder, found, _ = ran
    assert found["diverged"]["code"] == 3
    metrics, metadata = load_experiment(folder / "diverged" / "experiment_results.json")
    first, last = metadata["plan"]["orders"][0]
    assert (metrics[first][0]["status"], metrics[last][0]["status"]) == ("ok", "diverged")
    assert metrics[last][0]["total_steps"] == 3


def test_a_study_works(ran):
    folder, found, _ = ran
    assert found["study"]["code"] == 0 and len(found["study"]["weights"]) == 2
    assert (folder / "study" / "length_study.json").is_file()


def test_ranks_agree_on_values_and_errors(ran):
    first, second = ran[1]["agreements"]
    assert (first.pop("first"), second.pop("first")) == (True, False)
    assert first.pop("first fails") == second.pop("other fails") == ["KeyError", "'none'"]
    assert second.pop("first fails") == ["UserError", "rank 0: 'none'"]
    assert first.pop("other fails") == ["UserError", "rank 1: 'none'"]
    agreed = {"largest": [2, -1], "mean": [1.5, 2], "from first": 0, "none fails": None}
    assert first == second == agreed


# the end of a rank
def test_a_rank_that_ends_ends_all_and_the_same_command_goes_on(tmp_path):
    """Rank 1 is killed in the second training; when that is tried again, its memory runs out."""
    write_data(tmp_path)
    options = [*TINY.split(), *TWO_ARMS.split()]
    killed = torchrun(tmp_path, *options, FAULT=f"kill 2 {UNTIMED_STEPS + 2}")
    kept = {path: path.read_bytes() for path in (tmp_path / "output" / "runs").iterdir()}
    filled = torchrun(tmp_path, *options, FAULT=f"memory 1 {UNTIMED_STEPS + 2}")
    for ended in (killed, filled):
        assert ended.returncode != 0 and ended.stdout == ""
    assert "Signal 9 (SIGKILL)" in killed.stderr, killed.stderr[-3000:]
    assert "error: rank 1: out of memory: lower --batch-size" in filled.stderr
    assert len(kept) == 1 and not list((tmp_path / "output").glob(".*.tmp"))
    done = torchrun(tmp_path, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming: 1 of 2 trainings done" in done.stderr and done.stderr.count("block 1/1 ") == 1
    report = (tmp_path / "output" / "improved_comparison_results.txt").read_text()
    answers = report.split("\n\n")[0]  # the last lines too
    assert done.stdout == f"{report}\n{answers}\n"
    assert all(path.read_bytes() == content for path, content in kept.items())
    one_process(tmp_path, f"{TWO_ARMS} --output-dir undisturbed")
    expected = load_metrics(tmp_path / "undisturbed" / "experiment_results.npz")
    for arm, (training,) in load_metrics(tmp_path / "output" / "experiment_results.npz").items():
        assert_close_losses(training, expected[arm][0])


# without torchrun
def test_the_ranks_shares_make_up_the_batch(monkeypatch):
    config = tiny_config(batch_size=12, world_size=3, gradient_accumulation=2)
    assert config.sequences_at_once == 2
    rows, seen = tiny_dataset(rows=16).train, []
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        (share,) = Trainer(config, "fused", rows, VOCABULARY, CPU, 0).batches(1)
        seen += share.tolist()
    assert seen == rows.tolist()


def test_a_batch_that_cannot_be_split_is_named():
    words = r"--batch-size 8 .* 3 ranks x .* 2: .* multiple of 6"
    with pytest.raises(ValueError, match=words):
        make_config(world_size=3, gradient_accumulation=2)


def test_ranks_that_differ_are_named(tmp_path, monkeypatch):
    write_data(tmp_path)
    data = str(tmp_path / "training_data.npy")
    config = make_config(data=data, seq_len=24, batch_size=4, device="cpu")
    other = {"data": "other", "torch": "1.0"}
    monkeypatch.setattr(ranks, "size", lambda: 3)
    monkeypatch.setattr(ranks, "on_every", lambda function, *arguments: torch.device("cpu"))
    monkeypatch.setattr(ranks, "gather", lambda mine: [mine, mine, mine | other])
    with pytest.raises(UserError, match=r"rank 2 differs in data, torch: every rank"):
        check_ranks(config)

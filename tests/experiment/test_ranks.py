"""Several ranks train what one process trains: two processes on the CPU, started by torchrun."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import compare_models
from analysis.metrics import load_experiment, load_metrics
from analysis.values import ranks_text
from experiment.identity import identity_of_config
from experiment.run import ranks_that_differ
from machine import ranks as machine_ranks
from training import train as training_train
from training import trainer as training_trainer
from training.batches import share_of_rank
from training.config import make_config

WORKER = Path(__file__).with_name("torchrun_worker.py")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs gloo")
TINY = "--seq-len 24 --d-model 16 --n-heads 2 --layers 1 --batch-size 4 --max-steps 5 --device cpu"
TINY += " --window-size 5 --dilation 3 --warmup-steps 2 --val-batches 0 --lr 1e-2 --runs 1"
TWO_ARMS = "--arms baseline fused --output-dir output"
EVERY_ARM = ("baseline", "window", "fused", "published")
# the untimed steps of two ranks: two that try the memory and the warm-up's
UNTIMED = 2 + training_trainer.UNTIMED_STEPS


def write_data(folder):
    tokens = np.random.default_rng(0).integers(40, size=(62, 25)).astype(np.uint16)
    np.save(folder / "training_data.npy", tokens)


def torchrun(folder, *arguments, **environment):
    """Two ranks of the worker in ``folder``; a hang ends in an error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, WORKER, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def one_process(folder, monkeypatch, options):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    monkeypatch.setattr(training_train, "child_peak_memory_mb", lambda *_: 12.5)
    monkeypatch.setattr(compare_models, "create_all_plots", lambda *_: [])
    assert compare_models.main([*TINY.split(), *options.split()]) == 0


# --- two ranks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Many experiments of one and of two ranks: the folder, what came of them, and the output."""
    folder = tmp_path_factory.mktemp("ranks")
    write_data(folder)
    every_arm = f"{TINY} --arms {' '.join(EVERY_ARM)}"
    with pytest.MonkeyPatch.context() as patch:
        one_process(folder, patch, f"--arms {' '.join(EVERY_ARM)} --output-dir one")
    cases = {
        "two": {"options": f"{every_arm} --output-dir two"},
        "parts": {
            "options": f"{every_arm} --output-dir parts --gradient-accumulation 2",
            "fault": "clock 1 0",
        },
        "again": {"options": f"{every_arm} --output-dir two"},
        "other_world": {"options": f"{every_arm} --output-dir one --allow-mixed"},
        "uneven": {"options": f"{TINY} --batch-size 3 --output-dir uneven"},
        "no_data": {"options": f"{TINY} --data none.npy --output-dir no_data"},
        "memory": {
            "options": f"{TINY} {TWO_ARMS}/memory",
            "fault": "memory 1 2",
        },
        "diverged": {
            "options": f"{TINY} {TWO_ARMS}/diverged",
            "fault": f"diverge 1 {UNTIMED + 3}",
        },
        "study": {
            "options": f"{TINY} --study lengths --seq-lens 12 24 --positions learned "
            "--arms fused --output-dir study"
        },
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    done = torchrun(folder, "cases.json")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "found.json").read_text()), done


@pytest.mark.parametrize("arm", EVERY_ARM)
@pytest.mark.parametrize("name", ["two", "parts"])
def test_losses_are_those_of_one_process(launch, name, arm):
    """Without dropout, for every arm; also where each rank takes its rows in two micro-steps."""
    one = load_metrics(launch[0] / "one" / "experiment_results.npz")[arm][0]
    other = load_metrics(launch[0] / name / "experiment_results.npz")[arm][0]
    # sums in another order, in float32: a few units of the last place
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=2e-6)
    assert other["val_loss"] == pytest.approx(one["val_loss"], rel=2e-6)
    assert other["total_tokens"] == one["total_tokens"] == 5 * 4 * 24
    assert other["tokens_per_second"] == pytest.approx(480 / other["training_time"])
    assert abs(one["losses"] - one["losses"][0]).max() > 1e-3  # it learns, so weights matter


def test_every_rank_ends_with_the_same_weights(launch):
    for name in ("two", "parts"):
        assert len(launch[1][name]["weights"]) == len(EVERY_ARM)
        for first, second in launch[1][name]["weights"]:
            assert first == second > 0


def test_every_rank_draws_dropout_of_its_own(launch):
    for first, second in launch[1]["two"]["seeds"]:
        assert first != second


def test_gradients_travel_in_the_last_micro_step_alone(launch):
    """Of the steps that try the memory, in none."""
    _, found, _ = launch
    tried, trained = found["two"]["steps"]
    assert tried > 0 and trained > 0 and found["two"]["unsynchronized"] == tried
    tried, trained = found["parts"]["steps"]
    assert found["parts"]["unsynchronized"] == 2 * tried + trained


def test_the_time_is_that_of_the_slowest_rank(launch):
    """Rank 1's clock ran three times as fast; the seconds of single steps are rank 0's."""
    for (run,) in load_metrics(launch[0] / "parts" / "experiment_results.npz").values():
        assert run["training_time"] > 2 * run["step_seconds"].sum()


def test_the_world_is_stored_and_reported(launch):
    metadata = load_experiment(launch[0] / "parts" / "experiment_results.json")[1]
    assert metadata["config"]["world_size"] == 2 and metadata["config"]["backend"] == "gloo"
    assert metadata["identity"]["config"]["world_size"] == 2
    report = (launch[0] / "parts" / "improved_comparison_results.txt").read_text()
    heading = " ".join(report.split("\n\n")[0].split())
    assert "2 ranks (gloo), gradients accumulated over 2 micro-steps" in heading
    assert "on one rank's share of the batch" in heading
    assert not any("TORCHELASTIC" in name for name in metadata["environment"]["variables"])


def test_output_is_written_once(launch):
    _, found, done = launch
    assert found["two"]["code"] == found["parts"]["code"] == 0
    assert done.stderr.count("run 1/1 window: ") == 2  # of the cases two and parts
    assert done.stdout.count("Sliding-window + dilated attention against full attention") == 5
    assert done.stderr.count("roughly") == 6
    names = sorted(path.name for path in (launch[0] / "two").iterdir())
    assert names == [
        "experiment_results.json",
        "experiment_results.npz",
        "improved_comparison_results.txt",
        "plan.json",
        "runs",
        "window_model_config.json",
        "window_model_weights.pt",
    ]
    assert len(list((launch[0] / "two" / "runs").iterdir())) == 2 * len(EVERY_ARM)


def test_a_complete_experiment_is_recognised_and_another_world_refused(launch):
    _, found, done = launch
    assert found["again"]["code"] == 0 and found["again"]["weights"] == []
    assert done.stderr.count("complete: all 4 trainings are done") == 1
    assert found["other_world"]["code"] == 2 and found["other_world"]["weights"] == []
    assert done.stderr.count("config.world_size: null before, 2 now") == 1


def test_wrong_options_and_data_are_said_once(launch):
    _, found, done = launch
    assert found["uneven"]["code"] == found["no_data"]["code"] == 2
    words = "error: --batch-size 3 cannot be split evenly over 2 ranks x --gradient-accumulation 1"
    assert done.stderr.count(words) == 1 and done.stderr.count("none.npy") == 1


@pytest.mark.parametrize(
    ("name", "status"), [("memory", "out_of_memory"), ("diverged", "diverged")]
)
def test_a_failure_of_one_rank_is_the_outcome_on_all(launch, name, status):
    """The ranks went on together to further trainings, so none was left waiting."""
    folder, found, _ = launch
    assert found[name]["code"] == 3
    metrics, metadata = load_experiment(folder / "output" / name / "experiment_results.json")
    last = metadata["plan"]["orders"][0][-1]
    assert [run["status"] for run in metrics[last]] == [status]
    assert [run["status"] for arm, (run,) in metrics.items() if arm != last] == ["ok"]
    assert metrics[last][0]["total_steps"] == (3 if status == "diverged" else 0)


def test_a_study_works(launch):
    folder, found, _ = launch
    assert found["study"]["code"] == 0 and len(found["study"]["weights"]) == 2
    assert (folder / "study" / "length_study.json").is_file()


# --- the end of a rank -------------------------------------------------------------------------


def test_a_killed_rank_ends_all_and_the_same_command_goes_on(tmp_path, monkeypatch):
    write_data(tmp_path)
    options = [*TINY.split(), *TWO_ARMS.split()]
    ended = torchrun(tmp_path, *options, FAULT=f"kill 1 {UNTIMED + 2}")
    assert ended.returncode != 0 and ended.stdout == ""
    said = [line for line in ended.stderr.splitlines() if "goes on from there" in line]
    assert len(said) == 1, ended.stderr[-3000:]
    kept = {path: path.read_bytes() for path in (tmp_path / "output" / "runs").iterdir()}
    assert len(kept) == 2 and not list((tmp_path / "output").glob(".*.tmp"))
    # the dead one's host has nothing to clean up, and no lock keeps the next start out
    done = torchrun(tmp_path, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming: 1 of 2 trainings done" in done.stderr and done.stderr.count("run 1/1 ") == 1
    report = (tmp_path / "output" / "improved_comparison_results.txt").read_text()
    assert done.stdout == report + "\n"
    assert all(path.read_bytes() == content for path, content in kept.items())
    one_process(tmp_path, monkeypatch, "--arms baseline fused --output-dir undisturbed")
    expected = load_metrics(tmp_path / "undisturbed" / "experiment_results.npz")
    for arm, (run,) in load_metrics(tmp_path / "output" / "experiment_results.npz").items():
        np.testing.assert_allclose(run["losses"], expected[arm][0]["losses"], rtol=2e-6)


def test_memory_that_one_rank_lacks_in_the_middle_of_a_training_ends_all(tmp_path):
    """The others wait in the middle of a step, where nothing can be agreed on."""
    write_data(tmp_path)
    ended = torchrun(
        tmp_path, *TINY.split(), *TWO_ARMS.split(), FAULT=f"memory 1 {UNTIMED + 2}", DROPOUT="on"
    )
    assert ended.returncode != 0
    assert ended.stderr.count("goes on from there") == 1
    assert "error: out of memory on rank 1 in the middle of a training" in ended.stderr
    assert len(list((tmp_path / "output" / "runs").iterdir())) == 2


def test_every_rank_ends_with_the_code_of_wrong_options(tmp_path):
    ended = torchrun(tmp_path, "--no-such-option")
    assert ended.returncode != 0 and ended.stderr.count("unrecognized arguments") == 1
    assert ended.stderr.count("exitcode  : 2") == 2 and list(tmp_path.iterdir()) == []


def test_a_store_that_does_not_answer_ends_the_rank(monkeypatch, capsys):
    """As where the machine that holds it has lost its power."""
    left, codes = threading.Event(), []

    def leave(code):
        codes.append(code)
        left.set()

    def get(*_):  # the test's end
        raise SystemExit

    store = SimpleNamespace(set=lambda *_: left.wait(30), get=get)
    monkeypatch.setattr(machine_ranks._world, "size", 2)
    monkeypatch.setattr(machine_ranks, "SILENCE", 0.01)
    monkeypatch.setattr(machine_ranks, "leave", leave)
    before = signal.set_wakeup_fd(-1)
    try:
        with pytest.raises(SystemExit):
            machine_ranks._Watch(store).run()
    finally:
        signal.set_wakeup_fd(before)
    assert codes == [1] and "has not answered for 0.01 seconds" in capsys.readouterr().err


def test_the_first_alone_says_why_all_end(monkeypatch, capsys):
    assert machine_ranks.first_to_speak() and machine_ranks.first_to_speak()  # one process
    monkeypatch.setattr(machine_ranks._world, "store", torch.distributed.HashStore())
    machine_ranks.say_once("the reason", knows=True)
    machine_ranks.say_once("another", knows=True)
    assert not machine_ranks.first_to_speak()
    assert capsys.readouterr().err == f"error: the reason; {machine_ranks.GOES_ON}\n"


# --- one process -------------------------------------------------------------------------------


def test_one_process_is_a_world_of_its_own(monkeypatch):
    assert (machine_ranks.rank(), machine_ranks.size()) == (
        0,
        1,
    ) and not machine_ranks.is_launched()
    assert machine_ranks.lead_or_follow(lambda: 5) == 5
    assert machine_ranks.together(max, 3, 4, key=lambda x: -x) == 3
    assert machine_ranks.gather("a") == ["a"]
    assert (
        machine_ranks.largest(1, 2)
        == [1, 2]
        == machine_ranks.total(1, 2)
        == machine_ranks.mean([1, 2])
    )
    cpu = torch.device("cpu")
    assert machine_ranks.local_device(cpu) == cpu and machine_ranks.backend(cpu) == "none"
    module = torch.nn.Linear(2, 2)
    assert machine_ranks.data_parallel(module) is module
    with machine_ranks.local_gradients(module), machine_ranks.agreeing_on_memory():
        machine_ranks.barrier()
    with (
        pytest.raises(torch.OutOfMemoryError),
        machine_ranks.memory_ends_all(),
        machine_ranks.agreeing_on_memory(),
    ):
        raise torch.OutOfMemoryError
    for name in machine_ranks.TORCHRUN:
        monkeypatch.setenv(name, "1")
    assert not machine_ranks.is_launched()  # torchrun with one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert machine_ranks.is_launched()
    monkeypatch.delenv("LOCAL_RANK")
    assert not machine_ranks.is_launched()  # another launcher's variables


def test_the_ranks_shares_make_up_the_batch(monkeypatch):
    config = make_config(batch_size=12, world_size=3, gradient_accumulation=2)
    assert config.sequences_at_once == 2
    rows, seen = np.arange(12), []
    for rank in range(3):
        monkeypatch.setattr(machine_ranks._world, "rank", rank)
        seen += rows[share_of_rank(config)].tolist()
    assert seen == rows.tolist()


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_give_the_losses_of_the_whole_batch(tmp_path, monkeypatch, parts):
    write_data(tmp_path)
    one_process(tmp_path, monkeypatch, "--output-dir whole")
    options = f"--output-dir parts --gradient-accumulation {parts}"
    one_process(tmp_path, monkeypatch, options)
    whole, other = (load_metrics(f"{name}/experiment_results.npz") for name in ("whole", "parts"))
    for arm in whole:
        losses = other[arm][0]["losses"], whole[arm][0]["losses"]
        np.testing.assert_allclose(*losses, rtol=2e-6)
        assert other[arm][0]["val_loss"] == pytest.approx(whole[arm][0]["val_loss"], rel=2e-6)


def test_cuda_graphs_do_not_add_up_gradients():
    with pytest.raises(ValueError, match="choose --compile default, or --gradient-accumulation 1"):
        make_config(compile="reduce-overhead", batch_size=4, gradient_accumulation=2)


def test_a_batch_that_cannot_be_split_is_named():
    with pytest.raises(ValueError, match=r"--batch-size 8 .* 3 ranks x .* 2: .* multiple of 6"):
        make_config(world_size=3, gradient_accumulation=2)


def test_the_world_is_part_of_the_identity_where_there_are_several():
    config = make_config()
    assert not {"world_size", "backend", "gradient_accumulation"} & set(identity_of_config(config))
    several = identity_of_config(replace(config, world_size=2, backend="gloo"))
    assert several["world_size"] == 2 and several["backend"] == "gloo"
    assert ranks_text({}) == "" == ranks_text({"world_size": 1, "gradient_accumulation": 1})


def test_ranks_with_other_data_are_named(tmp_path, monkeypatch):
    write_data(tmp_path)
    config = make_config(data=str(tmp_path / "training_data.npy"), seq_len=24, batch_size=4)
    others = {"data": "other"}, {"problem": "none.npy: no such file"}
    monkeypatch.setattr(
        machine_ranks, "gather", lambda mine: [mine, mine, mine | others[0], others[1]]
    )
    words = ["rank 2: differs in data", "rank 3: none.npy: no such file"]
    assert ranks_that_differ(replace(config, device="cpu")) == words

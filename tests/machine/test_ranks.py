"""One process is the first and only rank; several, under torchrun: tests/experiment/test_ranks."""

import argparse
import sys
from functools import partial

import pytest
import torch

from machine import ranks
from machine.command import UserError
from machine.start import run_on_ranks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_one_process_is_all_there_is():
    assert (ranks.rank(), ranks.size(), ranks.is_first()) == (0, 1, True)
    assert ranks.gather("a") == ["a"]
    assert ranks.from_first(max, 3, 4) == ranks.on_every(max, 3, 4) == 4
    assert ranks.largest(1, 2) == ranks.total(1, 2) == ranks.mean([1, 2]) == [1, 2]
    assert ranks.local_device(CPU) == CPU and ranks.backend(CPU) == "none"
    module = torch.nn.Linear(2, 2)
    assert ranks.data_parallel(module) is module
    with ranks.local_gradients(module):
        pass


def test_a_command_alone_is_just_called(monkeypatch):
    assert ranks.run(lambda: 5) == 5
    for size in ("2", ""):  # as another launcher's variable, or its empty one
        monkeypatch.setenv("WORLD_SIZE", size)
        assert ranks.run(lambda: 5) == 5


def test_every_rank_needs_a_gpu_of_its_machine(monkeypatch):
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks.local_device(CUDA) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="--device cuda:1 names one GPU for 2 ranks: name cuda"):
        ranks.chosen_device("cuda:1")
    assert (ranks.backend(CUDA), ranks.backend(CPU)) == ("nccl", "gloo")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="rank 3 has no GPU: its machine has 2, lower --nproc"):
        ranks.local_device(CUDA)


@pytest.fixture
def under_torchrun(monkeypatch):
    """``ranks.run`` without processes: (set the rank, seconds waited, exit codes)."""
    waited, ended = [], []

    def end(code):
        ended.append(code)
        raise SystemExit

    monkeypatch.setattr(ranks.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda backend: None)
    monkeypatch.setattr(ranks.time, "sleep", waited.append)
    monkeypatch.setattr(ranks.os, "_exit", end)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    return lambda rank: monkeypatch.setattr(ranks, "rank", lambda: rank), waited, ended


def fail(error):
    raise error


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_lost_another_says_so_in_one_line_and_leaves_the_report_to_torchrun(
    under_torchrun, capfd, rank
):
    """Connection errors of gloo and NCCL alone: another error goes through."""
    set_rank, waited, ended = under_torchrun
    set_rank(rank)
    for words in ("[gloo] Connection closed by peer", "NCCL error: remote process exited or so"):
        with pytest.raises(SystemExit):
            ranks.run(partial(fail, RuntimeError(words)))
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"error: rank {rank}: another rank has ended, which torchrun's")
        assert words in line
    assert waited == [60, 60] and ended == [1, 1]
    for words in ("shapes differ", "NCCL error: invalid usage"):
        with pytest.raises(RuntimeError, match=words):
            ranks.run(partial(fail, RuntimeError(words)))


def test_a_rank_that_fails_alone_is_heard_after_all(under_torchrun, capfd):
    """Where all fail alike the first ends them before; what it says is not said again."""
    set_rank, waited, ended = under_torchrun

    def command(code):
        print("a step", file=sys.stderr)
        if code:
            print("error: no such disk\n", file=sys.stderr)
        return code

    for rank, code in ((0, 2), (1, 0), (1, 2)):
        set_rank(rank)
        with pytest.raises(SystemExit):
            ranks.run(partial(command, code))
    assert ended == [2, 0, 2] and waited == [10]
    said = capfd.readouterr().err.splitlines()
    assert said == ["a step", "error: no such disk", "", "rank 1: error: no such disk"]


def test_wrong_options_end_every_rank_after_the_first_has_said_so(
    under_torchrun, capfd, monkeypatch
):
    set_rank, waited, ended = under_torchrun
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in (0, 1):
        set_rank(rank)
        with pytest.raises(SystemExit):
            run_on_ranks(argparse.ArgumentParser("main.py"), fail, ["--no-such-option"])
        said.append(capfd.readouterr().err.splitlines())
    words = "main.py: error: unrecognized arguments: --no-such-option"
    assert said[0][-1] == words and said[1] == [f"rank 1: {words}"]
    assert ended == [2, 2] and waited == [10]  # the second, which torchrun ends meanwhile

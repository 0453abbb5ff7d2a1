"""What a person sees while an experiment goes on."""

import argparse
import contextlib
import sys

import pytest

from experiment.progress import Progress, format_seconds
from machine.command import run_command

OK = {"status": "ok", "total_steps": 5, "training_time": 9.0}
OK |= {"peak_memory_mb": 3.0, "final_loss": 2.0, "val_loss": 2.1}
FAILED = {"status": "out_of_memory", "total_steps": 0, "message": "lower it"}


def test_every_training_gets_a_line(capsys):
    with Progress(4, done=1, steps=5) as progress:
        progress.advance(1, 3.5)
        progress.finish("block 1/2 fused", OK)
        progress.finish("block 2/2 window", FAILED)
        progress.finish("block 2/2 fused", OK)
    assert capsys.readouterr().err.splitlines() == [
        "block 1/2 fused: 9.0 s, 3 MB, loss 2.0000, validation 2.1000",
        "block 2/2 window: out of memory: lower it",
        "block 2/2 fused: 9.0 s, 3 MB, loss 2.0000, validation 2.1000",
    ]


def test_a_closed_stderr_stops_no_experiment():
    def story(arguments):
        with Progress(1, done=0, steps=5) as progress:
            progress.finish("block 1/1 fused", OK)

    with contextlib.redirect_stderr(None):
        assert run_command(argparse.ArgumentParser(), story, []) == 0


def test_the_bar_counts_the_steps_that_were_done_before_and_those_that_failed(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(4, done=1, steps=5) as progress:
        assert (progress.n, progress.total) == (5, 20)
        for step in range(1, 6):
            progress.advance(step, None)
        progress.finish("block 1/2 fused", OK)
        assert progress.n == 10
        progress.finish("block 2/2 window", FAILED)
        assert progress.n == 15


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_in_words(seconds, words):
    assert format_seconds(seconds) == words

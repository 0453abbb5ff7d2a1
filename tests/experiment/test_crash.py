"""No stop at any moment loses more than the training under way, or leaves anything half written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("crash_harness.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def harness(mode, folder):
    # a process that forks must not have touched a GPU, which even imports can do
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, HARNESS, mode, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_ended_at_any_write_the_experiment_goes_on_to_the_same_results(tmp_path):
    """From what every change of the disk in turn would leave, were it the last."""
    result = harness("writes", tmp_path)
    assert result["failures"] == [] and result["cases"] > 30


def test_killed_at_random_calls_the_experiment_goes_on_to_the_same_results(tmp_path):
    """SIGKILL at 12 function calls, drawn by a seed from all that an experiment makes."""
    result = harness("kills", tmp_path)
    assert result["failures"] == [] and result["killed"] == [-9] * 12

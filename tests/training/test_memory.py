"""Memory on a CPU, measured in a child process."""

import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import ROOT
from tiny import CPU, VOCABULARY, tiny_config

from training.memory import _resident_mb, child_peak_memory_mb
from training.trainer import build_model


def test_memory_is_that_of_the_training():
    config = tiny_config(d_model=256, dilation=(3, 1))
    peak = child_peak_memory_mb(config, "window", 20_000, seed=1)
    weights = sum(p.numel() for p in build_model(config, "window", 20_000, CPU, 0).parameters())
    least = 4 * 4 * weights / 2**20  # weights, gradients and two moments of AdamW, each 4 bytes
    assert least < peak < 2 * least, (least, peak)


def test_what_is_measured_is_no_import():
    """The compiler alone, which the first optimizer loads, would be a hundred megabytes."""
    code = f"""
import sys
from training.config import ExperimentConfig
from training.memory import prepare_steps, take_steps
config = ExperimentConfig(**{asdict(tiny_config())!r})
rows = prepare_steps(config, {VOCABULARY}, 0)
before = set(sys.modules)
take_steps(config, "window", rows, {VOCABULARY}, 0)
print(len(before), *sorted(set(sys.modules) - before))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    count, *loaded = done.stdout.split()
    assert int(count) > 1000 and len(loaded) < 5, loaded


def test_a_child_that_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "memory.py").write_text("{}['nonsense']")  # as of an unknown arm
    monkeypatch.setattr("training.memory.FOLDER", tmp_path)
    with pytest.raises(RuntimeError, match=r"measures memory failed.*KeyError: 'nonsense'"):
        child_peak_memory_mb(tiny_config(), "nonsense", VOCABULARY, seed=1)


def test_a_peak_that_the_system_does_not_tell_is_missing(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: "Name: python\nVmRSS: 2048 kB\n")  # gVisor
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert _resident_mb("VmRSS") == 2 and math.isnan(_resident_mb("VmHWM"))

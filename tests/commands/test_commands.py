"""Every command of the README, as a person types it: a process of its own in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
from conftest import ROOT

import analyze_hyperparameters
import benchmark_attention
import compare_models
import convert
import create_model_plots
import generate
import metrics_utils
import prepare_data
import train_model
from machine.command import SUITE_VERSION


def run(command, folder, **environment):
    """Run ``python <command>`` of this project in ``folder``."""
    script, *arguments = command.split()
    return subprocess.run(
        [sys.executable, ROOT / script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_prepare(tmp_path):
    text = "".join(f"def f{i}(x):\n    return x * {i} + {i % 7}\n\n" for i in range(600))
    (tmp_path / "source.py").write_text(text)
    done = run("prepare_data.py source.py --seq-len 32 --vocab-size 300", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rows of 33" in done.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A folder with a small experiment of every part, and what its command said."""
    folder = tmp_path_factory.mktemp("smoke")
    without_asserts = {"PYTHONOPTIMIZE": "1"}  # as python -O: no assert may act
    command = "main.py --preset smoke --device cpu --runs 1"
    done = run(command, folder, OMP_NUM_THREADS="1", **without_asserts)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {
        "training_data_smoke.npy",
        "training_data_smoke.tokenizer.json",
        "smoke",
    }
    for name in ("output", "plots"):  # where the other commands look
        (folder / name).symlink_to(folder / "smoke" / name)
    return folder, done


def test_smoke_goes_through_everything_and_says_that_it_shows_nothing(smoke):
    folder, done = smoke
    report = (folder / "output" / "improved_comparison_results.txt").read_text(encoding="utf-8")
    assert done.stdout == f"{report}\n{report[: report.index('Sliding-window')].rstrip()}\n"
    assert "sequence length 512" in report
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert warnings[0] == "warning: smoke test: says nothing about time or quality"
    # no terminal: plain lines, no bars
    assert done.stderr.count("block 1/1 ") == 2 and "\r" not in done.stderr
    names = {path.name for path in (folder / "output").iterdir()}
    assert {"experiment_results.npz", "window_model_weights.pt", "tokenizer.json"} <= names
    drawn = {path.stem for path in (folder / "plots").glob("*.png")}
    assert {"11_validation", "reach"} < drawn and len(drawn) >= 10
    with np.load(folder / "output" / "experiment_results.npz", allow_pickle=False) as file:
        assert file["window_peak_memory_mb"][0] > 0  # of a real child process


# Runs command lines one after the other, as scripts, and prints what came of each as JSON.
TOGETHER = """
import contextlib, io, json, runpy, sys
found = []
for command in sys.argv[1:]:
    script, *sys.argv[1:] = command.split()
    code = None
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    slow = sorted({"torch", "scipy.stats", "matplotlib", "pandas"} & set(sys.modules))
    found.append([code, said.getvalue(), complained.getvalue(), slow])
print(json.dumps(found))
"""


def run_together(commands, folder, *paths):
    """[exit code, stdout, stderr, slow modules loaded so far] of each, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, *(f"{ROOT}/{command}" for command in commands)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_results_are_printed_and_drawn_again_without_torch(smoke, tmp_path):
    folder, trained = smoke
    (tmp_path / "torch.py").write_text("raise ImportError('not needed')")
    names = "1_training_curves", "9_summary", "11_validation", "reach"
    commands = [
        "metrics_utils.py",
        f"create_model_plots.py output/experiment_results.npz other --only {' '.join(names)}",
        f"create_model_plots.py {ROOT}/results/h100_pattern_study.json {tmp_path}/study",
        f"create_model_plots.py {ROOT}/results/h200_attention_heads.json {tmp_path}/heads",
        f"metrics_utils.py {ROOT}/results/h100_length_study.json",
        f"metrics_utils.py {ROOT}/results/h100_step_heads.json",
    ]
    found = run_together(commands, folder, tmp_path)
    assert all((code, err) == (0, "") and out for code, out, err, _ in found), found
    assert trained.stdout.startswith(found[0][1])
    for name, figure in (("study", "pattern_pareto"), ("heads", "attention_scaling")):
        assert {path.stem for path in (tmp_path / name).iterdir()} == {figure}
    drawn = {path.name: path.read_bytes() for path in (folder / "other").iterdir()}
    assert len(drawn) == 2 * len(names)
    assert drawn == {name: (folder / "plots" / name).read_bytes() for name in drawn}


def test_generate_goes_on_from_a_prompt(smoke):
    done = run("generate.py def --tokens 5 --device cpu", smoke[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def") and "tokens/s" in done.stderr


SCRIPTS = {
    "main.py": compare_models,
    "prepare_data.py": prepare_data,
    "create_model_plots.py": create_model_plots,
    "analyze_hyperparameters.py": analyze_hyperparameters,
    "benchmark_attention.py": benchmark_attention,
    "generate.py": generate,
    "convert.py": convert,
    "metrics_utils.py": metrics_utils,
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_wrong_options(tmp_path, monkeypatch, capsys, script):
    monkeypatch.chdir(tmp_path)
    first = ["a prompt or a file"] if script in ("generate.py", "convert.py") else []
    wrong = [*first, "--no-such-option"]
    for options, code in (["--help"], 0), (wrong, 2):
        with pytest.raises(SystemExit) as stop:
            SCRIPTS[script].main(options)
        assert stop.value.code == code
    printed = capsys.readouterr()
    assert "usage" in printed.out and "example" in printed.out
    assert "default: None" not in printed.out
    assert "--no-such-option" in printed.err and os.listdir(tmp_path) == []


def test_help_waits_for_no_import(tmp_path):
    """What takes seconds to import is not needed to tell how a command is called."""
    scripts = [*SCRIPTS, "compare_models.py"]
    for script, (code, out, err, slow) in zip(
        scripts, run_together([f"{script} --help" for script in scripts], tmp_path), strict=True
    ):
        assert (code, err, slow) == (0, "", []) and out.startswith("usage: "), script


def test_an_interruption_while_main_is_loaded_is_one_line(tmp_path):
    (tmp_path / "tqdm.py").write_text("raise KeyboardInterrupt")
    done = run("main.py --preset smoke", tmp_path, PYTHONPATH=str(tmp_path))
    assert done.stderr == "interrupted before anything was started\n"
    assert done.returncode == 130


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_tells_its_version_and_torchs(capsys, script):
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[script].main(["--version"])
    printed = capsys.readouterr()
    assert stop.value.code == 0 and printed.err == ""
    assert printed.out.endswith(f" {SUITE_VERSION} (torch {version('torch')})\n")


def test_a_version_needs_no_torch(monkeypatch, capsys):
    monkeypatch.setattr("importlib.metadata.version", raise_not_found)
    with pytest.raises(SystemExit):
        metrics_utils.main(["--version"])
    assert capsys.readouterr().out == f"metrics_utils.py {SUITE_VERSION} (no torch)\n"


def raise_not_found(name):
    raise PackageNotFoundError(name)


def test_the_notebooks_module_has_what_it_names():
    assert all(hasattr(train_model, name) for name in train_model.__all__)


def test_attention_goes_home_as_one_folder_and_draws_itself(tmp_path):
    shutil.copytree(ROOT / "attention", tmp_path / "attention")
    code = """
import runpy, torch
from attention import may_attend, window_attention, window_mask
q = torch.ones(1, 5, 1, 2)
assert window_attention(q, q, q, 2, 2).shape == q.shape
runpy.run_module("attention", run_name="__main__")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 25


@pytest.mark.parametrize(
    ("redirection", "command", "code"),
    [
        (">&-", "metrics_utils.py results/h200_paper_3_runs.npz", 0),
        (">&-", "prepare_data.py no_such_file", 2),
        ("2>&-", "prepare_data.py no_such_file", 2),
    ],
)
def test_a_closed_stream_changes_no_exit_code_and_gets_nothing_through_the_other(
    redirection, command, code
):
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, *command.split()]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert redirection == ">&-" or "error" not in done.stdout


@pytest.fixture(params=["a closed pipe", "a full disk"])
def refusing(request):
    """A file that takes nothing, and what a command that writes its report there ends with."""
    if request.param == "a full disk":
        with open("/dev/full", "wb") as full:
            yield full, 1, "error: the output could not be written (No space left on device)\n"
        return
    read, end = os.pipe()
    os.close(read)
    yield end, 0, ""  # as of head: it has seen all it wants
    os.close(end)


@pytest.mark.parametrize(
    "command",
    ["metrics_utils.py --help", "metrics_utils.py results/h200_paper_3_runs.npz"],
)
def test_what_nobody_takes_is_no_traceback(refusing, command):
    stream, code, line = refusing
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # the interpreter flushes at its end
    how = {"stdout": stream, "stderr": subprocess.PIPE, "text": True, "env": buffered}
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, **how)
    assert (done.returncode, done.stderr) == (code, line)


def test_a_message_that_nobody_takes_changes_no_exit_code(refusing):
    stream, *_ = refusing
    command = [sys.executable, ROOT / "prepare_data.py", "no_such_file"]
    assert subprocess.run(command, stderr=stream).returncode == 2

"""Damaged files under every command that reads them: one line that names the file, no traceback.

The gate tries a few copies of each file, always the same.  Many, by hand, in half an hour:

    (ulimit -v 12000000; FUZZ_COPIES=300 pytest tests/fuzz)

A failure names its copy, so FUZZ_FIRST=217 FUZZ_COPIES=1 pytest tests/fuzz -k plan repeats it.
"""

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT, add_reach, make_experiment
from fuzz.mutations import (
    change_json,
    change_npy,
    change_npz,
    change_safetensors,
    change_weights,
    damaged_bytes,
)
from small_experiment import TINY, prepare_workplace
from tokenizers import ByteLevelBPETokenizer

import analyze_hyperparameters
import compare_models
import create_model_plots
import figures.look
import figures.page
import generate
import metrics_utils
import studies.command
from analysis.metrics import save_metrics
from experiment import run as experiment_run
from experiment.files import write_training
from machine.files import file_sha256
from training import train as training_train
from training.prepare import END_OF_TEXT

COPIES, FIRST = int(os.environ.get("FUZZ_COPIES", 2)), int(os.environ.get("FUZZ_FIRST", 0))
SECONDS = 30  # of one command
BLOCKS = "--runs 2 --arms window fused --eval-every 2"
DATA, TOKENIZER = "training_data.npy", "training_data.tokenizer.json"
EXPERIMENT = "output/experiment_results"


class Case(NamedTuple):
    """A file, how its content is changed, and a command that reads it."""

    file: str
    change: object
    main: object
    arguments: str
    foreign: str = ""  # what a message may name instead

    def __str__(self):
        return f"{self.file.replace('/', ' ')} under {self.main.__module__} {self.arguments[:20]}"


def cases():
    main, plots = compare_models.main, create_model_plots.main
    report, analyze = metrics_utils.main, analyze_hyperparameters.main
    yield Case(DATA, change_npy, main, f"{TINY} --runs 1 --arms window --output-dir new")
    yield Case(TOKENIZER, change_json, main, f"{TINY} --runs 1 --arms window --output-dir new")
    other = "output holds another experiment"
    yield Case("output/plan.json", change_json, main, f"{TINY} {BLOCKS}", other)
    yield Case("output/runs/000_window.npz", change_npz, main, f"{TINY} {BLOCKS}")
    weights = "def --weights model/window_model_weights.pt --tokens 3 --device cpu"
    yield Case("model/window_model_weights.pt", change_weights, generate.main, weights)
    fused = "def --weights model/weights/fused.safetensors --tokens 3 --device cpu"
    yield Case("model/weights/fused.safetensors", change_safetensors, generate.main, fused)
    both = "window_model_weights.pt"  # which may be what does not fit
    yield Case("model/window_model_config.json", change_json, generate.main, weights, both)
    yield Case("model/tokenizer.json", change_json, generate.main, weights, both)
    results = {f"{EXPERIMENT}.npz": change_npz, f"{EXPERIMENT}.json": change_json}
    names = ("h100_pattern_study", "h100_length_study", "h100_step_heads", "cpu_attention_heads")
    results |= {f"{name}.json": change_json for name in names}
    for file, change in results.items():
        yield Case(file, change, plots, f"{file} plots")
        yield Case(file, change, report, file)
    for file in ("h100_pattern_study.json", f"{EXPERIMENT}.npz"):
        yield Case(file, results[file], analyze, f"--measured {file}")
    yield Case("h100_pattern_study.json", change_json, analyze, "96 4")


CASES = list(cases())
PROCESSES = [CASES[0], next(case for case in CASES if case.main is metrics_utils.main)]


def draw(made, plots_dir, known=()):
    """In place of save_figures, and quicker: every figure is drawn, but not fitted nor written."""
    for figure in made.values():
        figure.set_layout_engine("none")
        figure.draw_without_rendering()
    return []


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with every kind of file, an experiment that one training waits in among them."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        prepare_workplace(folder, patch)
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(["def parse(self)"], 280, special_tokens=[END_OF_TEXT])
        tokenizer.save(TOKENIZER)
        tokens = np.load(DATA)
        tokens[0, 0] = tokenizer.get_vocab_size() - 1
        np.save(DATA, tokens)
        assert compare_models.main(f"{TINY} {BLOCKS}".split()) == 0
        shutil.copytree("output", "model", ignore=shutil.ignore_patterns("runs", "exp*", ".lock"))
        metrics, metadata = make_experiment(2, ("fused", "window", "w32-d0"), steps=30)
        add_reach(metrics, {"fused": 512, "window": 128})
        of_main = json.loads(Path("output/plan.json").read_bytes())
        # the reach of one training, which so small a model is not asked for
        loaded, _ = metrics_utils.load_experiment(f"{EXPERIMENT}.npz")
        training = loaded["window"][0] | {"reach": metrics["window"][0]["reach"]}
        write_training("output", of_main["experiment_id"], "window", training)
        Path("output/runs/001_fused.npz").unlink()
        for key in ("environment", "code", "identity", "attention", "config_sha256", "steps"):
            metadata[key] = of_main[key]
        metadata |= {"experiment_id": "made-up", "parameters": of_main["parameters"]}
        metadata["config"] = of_main["config"] | metadata["config"] | {"schedule": "constant"}
        save_metrics(metrics, metadata, "output")
        for path in (ROOT / "results").glob("*.json"):
            shutil.copy(path, folder)
    return folder


def restore(workplace, folder):
    """The folder as the workplace is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(workplace, folder)
    os.chdir(folder)


def contents(folder):
    """{path: bytes} of all files in a folder but locks."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.suffix and path.is_file()}


def seal(case):
    """Have the model's config name its changed files, which would be found out at once."""
    path = Path("model/window_model_config.json")
    if case.file.startswith("model/") and not case.file.endswith(path.name):
        about = json.loads(path.read_bytes())
        about["weights_sha256"] = file_sha256("model/window_model_weights.pt")
        about["tokenizer_sha256"] = None  # as of earlier versions
        path.write_text(json.dumps(about))


def mutate(case, copy):
    """Change the case's file in the present folder; returns what was changed, in words."""
    rng = np.random.default_rng([copy, len(case.file)])
    path = Path(case.file)
    foreign = [DATA, TOKENIZER, "output/plan.json", "output/runs/000_fused.npz"]
    foreign += ["model/window_model_weights.pt", f"{EXPERIMENT}.npz", "h100_pattern_study.json"]
    foreign = [Path(name).read_bytes() for name in foreign if name != case.file]
    if copy % 2:
        what, content = damaged_bytes(rng, path.read_bytes(), foreign)
    else:
        what, content = case.change(rng, path.read_bytes())
    path.write_bytes(content)
    seal(case)
    return what


def hang(*_):
    raise BaseException(f"hangs: more than {SECONDS} seconds")


def outcome(case):
    """Exit code and stderr of a case's command; the traceback's end where it has one."""
    said = io.StringIO()
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            return case.main(case.arguments.split()), said.getvalue()
    except BaseException:
        lines = traceback.format_exc().splitlines()
        ours = [line.strip() for line in lines if '"' + str(ROOT) in line and "/tests/" not in line]
        return None, f"TRACEBACK {' '.join(lines[-1].split())[:150]} in {ours[-1:]}"
    finally:
        signal.alarm(0)


def complaint(case, code, error, before):
    """What is wrong with how a command ended, in words; None where nothing is."""
    if code not in (0, 2) and not (code == 3 and case.main is compare_models.main):
        return f"exit code {code}: {error}"
    after, path = contents(Path.cwd()), Path.cwd() / case.file
    # an experiment may go on, notes that in its plan, and puts a damaged training aside
    goes_on = case.file.startswith("output/") and case.main is compare_models.main and code != 2
    if before[path] not in ([before[path]] if goes_on else [after.get(path)]):
        return "the file was changed"
    if goes_on and path.suffix == ".npz" and before[path] not in after.values():
        return "the training is gone"
    if code != 2:
        return None
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    named = path.name in error or (case.foreign and case.foreign in error)
    if "nothing to draw" in error:  # all that went well is gone
        return None
    if len(lines) != 1 or not named or (error.count("\n") > 1 and "holds another" not in error):
        return f"not one line that names the file: {error[:400]}"
    return None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_damage_to_a_file_ends_in_a_traceback(workplace, tmp_path, monkeypatch, case):
    monkeypatch.setattr(training_train, "child_peak_memory_mb", lambda *_: 12.5)
    monkeypatch.setattr(experiment_run, "estimate", lambda *_: 0)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    if case.file in (DATA, TOKENIZER):  # whose figures would be of any numbers
        monkeypatch.setattr(studies.command, "create_all_plots", lambda *_: [])
    monkeypatch.setattr(figures.page, "html", lambda *_: "")
    for module in (figures.page, figures.look):
        monkeypatch.setattr(module, "save_figures", draw)
    folder, found = tmp_path / "copy", []
    monkeypatch.setattr(analyze_hyperparameters, "KNOWN", folder / "h100_pattern_study.json")
    monkeypatch.chdir(tmp_path)
    for copy in range(FIRST, FIRST + COPIES):
        restore(workplace, folder)
        what = mutate(case, copy)
        before = contents(folder)
        if wrong := complaint(case, *outcome(case), before):
            found.append(f"copy {copy}, {what}: {wrong}")
    assert not found, f"{len(found)} of {COPIES}:\n" + "\n".join(found)


@pytest.mark.parametrize("case", PROCESSES, ids=str)
def test_a_process_of_its_own_ends_with_one_line(workplace, tmp_path, case):
    shutil.copytree(workplace, tmp_path / "copy")
    path = tmp_path / "copy" / case.file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    command = [sys.executable, ROOT / f"{case.main.__module__}.py", *case.arguments.split()]
    done = subprocess.run(command, cwd=path.parents[case.file.count("/")], capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"") and done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"error: ") and path.name.encode() in done.stderr

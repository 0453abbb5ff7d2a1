"""The report of saved metrics, printed again."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from analysis.report import format_report, write_report
from metrics_utils import main, print_metrics_summary, save_metrics


def test_the_report_is_printed_again_from_either_file(tmp_path, experiment, capsys):
    path, report = write_report(*experiment, tmp_path)
    assert path.read_text(encoding="utf-8") == report == format_report(*experiment)
    for saved in save_metrics(*experiment, tmp_path):
        assert main([str(saved)]) == 0
        assert capsys.readouterr() == (report + "\n", "")


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.*")), ids=lambda path: path.name)
def test_every_committed_result_can_be_read_again(path, capsys):
    assert main([str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_it_needs_no_torch_and_a_reader_who_stops_early_gets_no_traceback(tmp_path, experiment):
    path = save_metrics(*experiment, tmp_path)[1]
    (tmp_path / "torch.py").write_text("raise ImportError('not needed')")
    command = f"PYTHONPATH={tmp_path} {sys.executable} {ROOT / 'metrics_utils.py'} {path}"
    for shell, code in ((f"{command} | true", 0), (f"{command} > /dev/full", 1)):
        done = subprocess.run(shell, shell=True, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("section", "value"),
    [("attention", 3), ("config", {}), ("environment", {}), ("data", None), ("mixed", 3)],
)
def test_metadata_that_do_not_fit_are_one_line_and_exit_code_2(
    tmp_path, experiment, capsys, section, value
):
    metrics, metadata = experiment
    path = save_metrics(metrics, metadata | {section: value}, tmp_path)[1]
    assert main([str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and str(path) in printed.err


def test_a_file_that_is_not_there_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main([str(tmp_path / "nothing.json")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1


def test_the_summary_is_mean_and_sample_deviation(experiment, capsys):
    metrics, _ = experiment
    losses = np.array([training["val_loss"] for training in metrics["window"]])
    print_metrics_summary(metrics)
    assert f"{losses.mean():.4f} ± {losses.std(ddof=1):.4f}" in capsys.readouterr().out

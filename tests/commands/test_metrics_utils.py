"""The report of saved metrics, printed again."""

import numpy as np
import pytest
from conftest import ROOT, one_line

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
    assert str(path) in one_line(capsys)


def test_the_summary_is_mean_and_sample_deviation(experiment, capsys):
    metrics, _ = experiment
    losses = np.array([training["val_loss"] for training in metrics["window"]])
    print_metrics_summary(metrics)
    assert f"{losses.mean():.4f} ± {losses.std(ddof=1):.4f}" in capsys.readouterr().out

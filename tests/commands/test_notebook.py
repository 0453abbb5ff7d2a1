"""The experiment from a notebook: compare_models.run and load, and what they give."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from matplotlib.figure import Figure
from small_experiment import prepare_workplace, same_losses

from analysis.report import format_report
from analysis.rows import training_rows
from compare_models import load, run
from training.config import PRESETS

SIZES = {"seq_len": 24, "d_model": 16, "n_heads": 2, "layers": 1, "batch_size": 2, "max_steps": 4}
SIZES |= {"window_size": 5, "dilation": 3, "warmup_steps": 2, "val_batches": 1, "lr": 1e-2}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "laptop", SIZES)
    return prepare_workplace(tmp_path, monkeypatch)


def test_the_lines_of_the_documentation(workplace):
    text = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    start = text.index("from compare_models import run")
    names = {}
    exec(text[start : text.index("```", start)], names)
    result = names["result"]
    assert {arm: len(trainings) for arm, trainings in result.metrics.items()} == {
        "baseline": 2,
        "window": 2,
        "fused": 2,
    }
    assert result.metadata["config"]["preset"] == "laptop"
    assert repr(result) == result.report == format_report(result.metrics, result.metadata)


def test_it_prepares_the_presets_data_and_goes_on_in_its_folder(workplace, monkeypatch):
    prepared = []
    monkeypatch.setattr("studies.command.ensure_data", prepared.append)
    options = {"runs": 1, "arms": ["window"], "device": "cpu", "output_dir": "here"}
    result = run("laptop", **options)
    assert prepared == ["training_data.npy"]
    again, saved = run("laptop", **options), load("here/experiment_results.json")
    assert same_losses(result.metrics, again.metrics) and same_losses(again.metrics, saved.metrics)
    with pytest.raises(ValueError, match=r"here holds another experiment.*\n *config.lr: 0.01"):
        run("laptop", **options, lr=1.0)
    run("laptop", **options, lr=1.0, restart=True)
    assert len(list(Path().glob("here_earlier_*"))) == 1


def test_a_saved_result_as_a_table_and_figures():
    result = load(ROOT / "results" / "h200_paper_3_runs.npz")
    table = result.table()
    assert isinstance(table, pd.DataFrame)
    assert table.to_dict("records")[0] == pytest.approx(
        training_rows(result.metrics)[0], nan_ok=True
    )
    times = table.pivot(index="block", columns="arm", values="training_time")
    assert (times["window"] < times["baseline"]).all()
    by_number, by_name = result.figure(9), result.figure("summary")
    assert isinstance(by_number, Figure) and by_number.get_label() == by_name.get_label()
    with pytest.raises(ValueError, match="no figure '12': choose of 1_training_curves, "):
        result.figure(12)
    metrics, _ = result
    assert metrics is result.metrics


def test_wrong_options_are_value_errors_and_unknown_ones_type_errors(workplace):
    with pytest.raises(ValueError, match="--device cuda:77"):
        run("laptop", device="cuda:77")
    with pytest.raises(TypeError, match="max_step"):
        run("laptop", max_step=3)

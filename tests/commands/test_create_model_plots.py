"""``python create_model_plots.py``: its files, and one line for bad input."""

import pytest
from conftest import ROOT, add_reach, make_experiment, one_line

import create_model_plots
from analysis.metrics import save_metrics
from figures.all import FIGURES
from figures.page import figure_named
from machine.command import UserError


def test_writes_eleven_png_and_eleven_pdf_and_lists_them(tmp_path, capsys):
    path, _ = save_metrics(*make_experiment(2, ("window",)), tmp_path)
    assert create_model_plots.main([str(path), str(tmp_path / "new" / "plots")]) == 0
    listed = capsys.readouterr().out.split()
    found = sorted(str(p) for p in (tmp_path / "new" / "plots").iterdir())
    assert sorted(listed) == found and len(found) == 22
    for number in range(1, 12):
        assert sum(f"/{number}_" in name for name in found) == 2
    for name in found:
        with open(name, "rb") as file:
            assert file.read(4) == (b"%PDF" if name.endswith("pdf") else b"\x89PNG")


def test_the_probe_has_a_figure_where_there_was_one(tmp_path):
    metrics, metadata = make_experiment(2, ("window", "fused"))
    add_reach(metrics, {"window": 128})  # of one arm alone
    path, _ = save_metrics(metrics, metadata, tmp_path)
    assert create_model_plots.main([str(path), str(tmp_path / "plots"), "--only", "reach"]) == 0
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"reach.png", "reach.pdf"}


@pytest.mark.parametrize(
    ("only", "drawn"),
    [
        ("9_summary summary 9", ["9_summary"]),
        ("memory_speed 10 1", ["10_convergence", "1_training_curves", "6_memory_speed"]),
    ],
)
def test_only_what_is_asked_for_is_drawn_and_the_rest_stays(tmp_path, only, drawn):
    path, _ = save_metrics(*make_experiment(2), tmp_path)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "reach.png").write_text("of earlier")
    command = [str(path), str(tmp_path / "plots"), "--only", *only.split()]
    assert create_model_plots.main(command) == 0
    found = sorted(p.stem for p in (tmp_path / "plots").glob("*.png"))
    assert found == sorted([*drawn, "reach"])


def test_a_figure_that_there_is_not_is_one_line_with_those_that_there_are(tmp_path, capsys):
    path, _ = save_metrics(*make_experiment(2), tmp_path)
    command = [str(path), str(tmp_path / "plots"), "--only", "4", "reach"]
    assert create_model_plots.main(command) == 2
    error = one_line(capsys)
    assert error.startswith("error: no figure 'reach': choose of 1_training_curves, 2_final")
    assert error.endswith(", 11_validation\n")
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("name", ["12", "", "summary_9", "4_"])
def test_what_is_no_name_and_no_number_is_no_figure(name):
    with pytest.raises(UserError, match=f"no figure {name!r}: choose of 1_training_curves, "):
        figure_named(name, FIGURES)


def test_a_studys_figures_are_chosen_by_their_names(tmp_path, capsys):
    study = str(ROOT / "results" / "h100_length_study.json")
    assert create_model_plots.main([study, str(tmp_path), "--only", "length_scaling"]) == 0
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["length_scaling"] * 2
    assert create_model_plots.main([study, str(tmp_path), "--only", "quality"]) == 2
    assert "choose of length_" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("h100_attention_heads_long", ["attention_scaling.png"]),
        ("h100_step_heads", []),
    ],
)
def test_benchmarks_are_drawn_from_their_files(tmp_path, capsys, name, figures):
    code = create_model_plots.main([str(ROOT / "results" / f"{name}.json"), str(tmp_path)])
    assert sorted(path.name for path in tmp_path.glob("*.png")) == figures
    assert code == (0 if figures else 2)
    line = f"error: {ROOT}/results/{name}.json: steps have no figure: python metrics_utils.py"
    assert figures or capsys.readouterr().err.startswith(line)


def diverged():
    """An experiment of one training, which diverged."""
    metrics, metadata = make_experiment(1, ("window",))
    metrics["window"][0]["status"] = "diverged"
    return metrics, metadata


@pytest.mark.parametrize("experiment", [diverged(), ({}, {})], ids=["diverged", "empty"])
def test_without_a_training_to_draw_it_is_one_line_and_exit_2(tmp_path, capsys, experiment):
    path, _ = save_metrics(*experiment, tmp_path)
    assert create_model_plots.main([str(path), str(tmp_path / "plots")]) == 2
    one_line(capsys)
    assert not (tmp_path / "plots").exists()

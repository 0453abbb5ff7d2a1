"""A conversion's file is printed and drawn from what it holds."""

import json

import numpy as np
import pytest
from conftest import flat, is_drawn, one_line

import create_model_plots
import metrics_utils
from studies.conversion import answers, plot_conversion


@pytest.fixture
def content():
    """Of two layers of four heads; a fine-tuning diverged."""
    rows = [
        ("fused", "all", [0, 1, 2, 3], 1.7, 1.6),
        ("w96-d0", "none", [], 2.2, 2.0),
        ("w96-d0-f1", "first", [0], 2.1, 1.9),
        ("w96-d0-f1", "probe", [3], 1.9, None),
        ("w96-d0-f4", "all", [0, 1, 2, 3], 1.7, 1.6),
    ]
    keys = "arm", "chosen", "heads", "untrained", "fine_tuned"
    rows = [dict(zip(keys, row, strict=True)) for row in rows]
    for row in rows:
        row["heads"] = [row["heads"]] * 2
    config = {"max_steps": 200, "lr": 6e-5, "schedule": "cosine", "sink_tokens": 0}
    config["arms"] = ["fused", "w96-d0"]
    return {
        "weights": "output/weights/fused.safetensors",
        "config": config | {"seq_len": 4096, "dtype": "bfloat16"},
        "environment": {"device_name": "a device"},
        "tokens": 3_276_800,
        "rows": rows,
        "importance": [[0.0, 0.1, 0.0, 0.4], [0.0, -0.1, 0.0, 0.2]],
    }


def line_of(ax, label):
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return line.get_xydata().tolist()


def test_the_figure_draws_the_rises_and_every_heads_importance(content):
    before, after, heads, _ = plot_conversion(content)["conversion"].axes
    first, probe = "the first of every layer", "chosen by the probe"
    np.testing.assert_allclose(line_of(before, first), [[0, 0.5], [1, 0.4]])
    np.testing.assert_allclose(line_of(before, probe), [[0, 0.5], [1, 0.2]])
    np.testing.assert_allclose(line_of(after, first), [[0, 0.4], [1, 0.3]])
    np.testing.assert_allclose(line_of(after, probe), [[0, 0.4], [1, np.nan]])
    assert heads.images[0].get_array().tolist() == content["importance"]
    assert all(tick == round(tick) for tick in (*heads.get_xticks(), *heads.get_yticks()))


def test_both_panels_show_all_that_either_has(content):
    content["rows"][1]["fine_tuned"] = 3.0  # a rise far above those without training
    before, after, *_ = plot_conversion(content)["conversion"].axes
    assert before.get_ylim() == after.get_ylim() and before.get_ylim()[1] > 1.4


def test_layers_and_heads_are_told_by_whole_numbers_that_have_room(content):
    for layers, ticks in ((1, [0]), (9, [*range(9)][::2]), (40, [*range(0, 40, 5)])):
        content["importance"] = [[0.1, 0.2]] * layers
        heads = plot_conversion(content)["conversion"].axes[2]
        assert (list(heads.get_xticks()), list(heads.get_yticks())) == ([0, 1], ticks)


def test_without_a_probe_nothing_is_said_of_it(content):
    content["importance"] = None
    content["rows"] = [row for row in content["rows"] if row["chosen"] != "probe"]
    figure = plot_conversion(content)["conversion"]
    before, _, heads = figure.axes
    assert not heads.images and "Right:" not in figure.get_label()
    assert [text.get_text() for text in before.get_legend().texts] == ["the first of every layer"]


def test_the_answers_name_what_loses_least(content):
    without, after = answers(content)
    assert without == "Without training: w96-d0-f1 (probe) loses least, +0.2000 nats a token"
    assert after == "After 200 steps: w96-d0-f1 (first) loses least, +0.3000 nats a token"
    del content["rows"][1:]
    assert answers(content)[0] == "Without training: nothing is known"


def test_its_file_is_printed_drawn_and_made_a_page(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conversion.json").write_text(json.dumps(content))
    assert metrics_utils.main(["conversion.json", "--html", "page.html"]) == 0
    lines = [flat(line) for line in capsys.readouterr().out.splitlines()]
    assert "fused all 1.7000 - 1.6000 -" in lines
    assert "w96-d0-f1 probe 1.9000 +0.2000 - -" in lines
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert create_model_plots.main(["conversion.json", "plots"]) == 0
    assert is_drawn(tmp_path / "plots" / "conversion.png")


@pytest.mark.parametrize("damage", [{"arm": None}, {"chosen": ["first"]}, {"untrained": "1.7"}])
def test_a_damaged_file_is_one_line(content, tmp_path, capsys, damage):
    content["rows"][0] |= damage
    path = tmp_path / "conversion.json"
    path.write_text(json.dumps(content))
    assert metrics_utils.main([str(path)]) == 2
    assert "conversion.json: incomplete or not of this suite" in one_line(capsys)

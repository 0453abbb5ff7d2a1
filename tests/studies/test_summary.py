"""What a study's experiments come to, against calculations made here; its file."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.metrics import MetricsError
from attention.pattern import attended_pairs, causal_pairs
from gpt import model_flops
from studies.pictures import plot_study
from studies.summary import load_study, summarize
from studies.tables import format_study


def test_the_times_agree_with_a_calculation_by_hand(experiment_of):
    metrics, metadata = experiment_of("lengths", seq_len=256)
    (point,) = summarize("lengths", [(metrics, metadata)])["points"]
    window, fused = ([r["training_time"] for r in metrics[arm]] for arm in ("window", "fused"))
    logs = np.log(window) - np.log(fused)
    half = stats.t.ppf(0.975, 3) * logs.std(ddof=1) / 2
    expected = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    time = point["contrasts"]["window/fused"]["time"]
    assert [time["ratio"], time["low"], time["high"]] == pytest.approx(expected)
    step = point["arms"]["fused"]["step_ms"]
    assert step["mean"] == pytest.approx(1e3 * stats.gmean(fused) / 60)
    ends = stats.ttest_1samp(np.log(fused), 0).confidence_interval(0.95)
    assert [step["low"], step["high"]] == pytest.approx(1e3 * np.exp([*ends]) / 60)


def test_an_arm_that_was_not_trained_is_never_called_not_worse(experiment_of):
    metrics, metadata = experiment_of("lengths", seq_len=256)
    verdicts = []
    for line in (99.0, 0.1):
        metadata["data"]["unigram_loss"] = line
        (point,) = summarize("lengths", [(metrics, metadata)])["points"]
        verdicts.append(point["contrasts"]["window/fused"]["quality"]["verdict"])
    assert verdicts[0] != "not trained" and verdicts[1] == "not trained"


def test_the_limit_is_that_of_the_flops(lengths):
    linear, per_pair = model_flops(256, 128, 4, 512)
    full = linear + per_pair * causal_pairs(256)
    sparse = linear + per_pair * attended_pairs(256, 96, 4)
    assert lengths["points"][0]["step_limit"] == pytest.approx(full / sparse)


def test_memory_that_ran_out_is_a_result(lengths):
    last = lengths["points"][-1]
    assert last["arms"]["baseline"]["out_of_memory"] == 4
    assert last["contrasts"]["window/baseline"] is None
    assert last["contrasts"]["window/fused"]["val_loss"]["n"] == 4


def test_what_was_not_measured_is_not_compared(experiment_of):
    metrics, metadata = experiment_of("patterns")
    for without_loss, without_memory in zip(metrics["w96-d4"], metrics["w32-d0"], strict=True):
        without_loss["val_loss"] = without_memory["peak_memory_mb"] = math.nan
    content = summarize("patterns", [(metrics, metadata)])
    arms = content["points"][0]["arms"]
    assert arms["w96-d4"]["contrast"] is arms["w32-d0"]["contrast"]["memory"] is None
    assert "w96-d4" in format_study(content) and plot_study(content)


def test_curves_are_differences_over_the_tokens(patterns):
    curve = patterns["points"][0]["curves"]["w32-d0"]
    assert curve["tokens"][0] == 5 * 2048 and curve["tokens"][-1] == 60 * 2048
    assert curve["mean"][-1] == pytest.approx(0.3 * 57 / 59, abs=1e-5)
    assert curve["low"][-1] <= curve["mean"][-1] <= curve["high"][-1]


@pytest.mark.parametrize(
    "text", [b"", b"{}", b'{"study": "lengths"}', b'{"study": "x", "points": [1]}', b"\xff", b"[1]"]
)
def test_a_file_that_is_no_study_gets_one_line(tmp_path, text):
    path = tmp_path / "pattern_study.json"
    path.write_bytes(text)
    with pytest.raises(MetricsError, match=r"pattern_study.json: incomplete or not of this suite"):
        load_study(path)

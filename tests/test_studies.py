"""Studies: their points, what they come to, tables and pictures, and the analysis of them."""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import make_experiment
from scipy import stats

import analyze_hyperparameters
from analysis.metrics import MetricsError, save_metrics
from analysis.values import arm_of_pattern, ordered_arms, pattern_of_arm
from attention.pattern import attended_pairs, causal_pairs, density
from estimates import pattern as estimates_pattern
from estimates import report as estimates_report
from gpt import model_flops
from studies.pictures import plot_study, save_figures
from studies.points import (
    PATTERNS,
    StudyError,
    length_points,
    parse_pattern,
    pattern_points,
    shared_identity,
)
from studies.shared import points_on_disk
from studies.summary import load_study, pareto_front, save_study, summarize
from studies.tables import format_study, recommend

PATTERN_ARMS = ("fused", "w32-d0", "w96-d4", "w96-d16")
SPEED = {"fused": 1.0, "w32-d0": 0.6, "w96-d4": 0.9, "w96-d16": 0.8, "window": 0.7, "baseline": 2.5}
LOSS = {"fused": 0.0, "w32-d0": 0.3, "w96-d4": -0.05, "w96-d16": -0.01}


def experiment_of(arms, positions, seq_len, seed=0, runs=4):
    """A synthetic experiment whose arms differ in speed and loss by SPEED and LOSS."""
    metrics, metadata = make_experiment(runs=runs, arms=arms, steps=60, seed=seed)
    rng = np.random.default_rng(seed)
    for arm in arms:
        for run in metrics[arm]:
            noise = rng.normal(0, 0.002)
            run["training_time"] = 10 * SPEED[arm] * (1 + noise)
            shift = LOSS.get(arm, -0.02)
            run["val_loss"] = 4 + 0.1 * run["block"] + shift + noise
            curve = 9 * np.exp(-np.arange(60) / 30) + 2 + 0.1 * run["block"]
            run["losses"] = (curve + shift * np.arange(60) / 59).astype(np.float32)
    config = metadata["config"]
    config |= {"positions": positions, "seq_len": seq_len, "schedule": "constant"}
    config |= {"output_dir": f"out/{positions}_{seq_len}", "equivalence_margin": 0.02}
    metadata["pattern"]["density"] = density(seq_len, 96, 4)
    metadata |= {"steps": 60, "experiment_id": f"{positions}{seq_len}"}
    return metrics, metadata


@pytest.fixture
def patterns():
    kinds = enumerate(("learned", "rotary"))
    return summarize("patterns", [experiment_of(PATTERN_ARMS, k, 1024, n) for n, k in kinds])


@pytest.fixture
def lengths():
    arms = ("baseline", "window", "fused")
    found = []
    for seed, kind in enumerate(("learned", "rotary")):
        for seq_len in (256, 1024):
            found.append(experiment_of(arms, kind, seq_len, seed + seq_len))
    for run in found[-1][0]["baseline"]:
        run |= {"status": "out_of_memory", "training_time": math.nan, "val_loss": math.nan}
    return summarize("lengths", found)


def test_lengths_keep_the_tokens_of_a_step():
    points = length_points((1024, 256), ("learned", "rotary"), 4, 512)
    assert [p.name for p in points] == ["learned_256", "learned_1024", "rotary_256", "rotary_1024"]
    assert all(p.changes["seq_len"] * p.changes["batch_size"] == 2048 for p in points)
    for wrong in (0, 300, 4096):
        with pytest.raises(StudyError, match=f"--seq-lens {wrong}: does not divide the 2,048"):
            length_points((wrong,), ("learned",), 4, 512)


def test_patterns_have_the_control_and_dilation_0():
    (point,) = pattern_points((*PATTERNS, PATTERNS[0]), ("rotary",))
    assert point.changes["arms"][0] == "fused"
    assert [pattern_of_arm(arm) for arm in point.changes["arms"][1:]] == list(PATTERNS)
    assert len(PATTERNS) >= 8 and any(d == 0 for _, d in PATTERNS) and (96, 4) in PATTERNS
    assert parse_pattern("64:8") == (64, 8)
    for wrong in ("64", "64:", ":8", "64:-1", "a:b", "6.5:2"):
        with pytest.raises(StudyError, match="window_size:dilation"):
            parse_pattern(wrong)


def test_arms_are_named_by_pattern_and_ordered_by_number():
    assert pattern_of_arm(arm_of_pattern(96, 0)) == (96, 0)
    assert [pattern_of_arm(x) for x in ("window", "w96", "w96-d", "xw96-d4", "w96-d4x")] == [
        None
    ] * 5
    arms = ["w128-d4", "fused", "w96-d16", "other", "w96-d4"]
    assert ordered_arms(arms) == ["fused", "other", "w96-d4", "w96-d16", "w128-d4"]


def test_the_length_summary_agrees_with_a_calculation_of_its_own(lengths):
    metrics, _ = experiment_of(("baseline", "window", "fused"), "learned", 256, 256)
    point = lengths["points"][0]
    logs = np.log([r["training_time"] for r in metrics["window"]]) - np.log(
        [r["training_time"] for r in metrics["fused"]]
    )
    half = stats.t.ppf(0.975, 3) * logs.std(ddof=1) / 2
    time = point["contrasts"]["window/fused"]["time"]
    expected = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    assert [time["ratio"], time["low"], time["high"]] == pytest.approx(expected)
    steps = [1e3 * r["training_time"] / 60 for r in metrics["fused"]]
    assert point["arms"]["fused"]["step_ms"]["mean"] == pytest.approx(np.mean(steps))
    linear, per_pair = model_flops(256, 128, 4, 512)
    full = linear + per_pair * causal_pairs(256)
    sparse = linear + per_pair * attended_pairs(256, 96, 4)
    assert point["step_limit"] == pytest.approx(full / sparse)


def test_what_disturbed_a_point_is_told_with_the_study():
    experiments = [experiment_of(PATTERN_ARMS, kind, 1024) for kind in ("learned", "rotary")]
    experiments[1][0]["w96-d4"][2]["step_seconds"][7] = 0.9
    content = json.loads(json.dumps(summarize("patterns", experiments)))
    words = "warning: rotary: w96-d4, run 3: 1 of 60 steps took more than 1.5 times the median"
    analyses = [estimates_pattern.analyze_pattern(96, 4, 1024)]
    for text in (format_study(content), estimates_report.format_report(analyses, content)):
        text = " ".join(text.split())
        assert words in text and "warning: learned" not in text
        assert "exact tests" not in text  # nothing of the number of runs, which all points share
    for point in content["points"]:
        del point["warnings"]  # as in a file of an older version
    assert "warning" not in format_study(content)


def test_points_put_together_that_were_not_trained_alike_are_marked():
    points = [experiment_of(("window", "fused"), "learned", size) for size in (256, 512, 1024)]
    for gpu, (point, size) in enumerate(zip(points, (256, 512, 1024), strict=True)):
        point[1]["config"]["batch_size"] = 2048 // size
        with_identity(point, gpu)
    assert not any(point["mixed"] for point in summarize("lengths", points)["points"])
    identity = points[2][1]["identity"]
    identity["code"], identity["device"]["variables"]["PYTORCH_CUDA_ALLOC_CONF"] = "new", "x:True"
    content = summarize("lengths", points)
    lines = [
        'code: "new" there, "c0de" in learned_256',
        'device.variables.PYTORCH_CUDA_ALLOC_CONF: "x:True" there, null in learned_256',
    ]
    assert [point["mixed"] for point in content["points"]] == [[], [], lines]
    text = " ".join(format_study(content).split())
    assert all(f"MIXED: learned_1024: {line}" in text for line in lines)
    del points[0][1]["identity"]  # as in a file of an older suite: nothing is known
    assert summarize("lengths", points)["points"][0]["mixed"] == []


def test_memory_that_ran_out_is_a_result(lengths):
    last = lengths["points"][-1]
    assert last["arms"]["baseline"]["out_of_memory"] == 4
    assert last["contrasts"]["window/baseline"] is None
    assert last["contrasts"]["window/fused"]["val_loss"]["n"] == 4
    assert "out of memory" in format_study(lengths)
    figure = plot_study(lengths)["length_scaling"]
    crosses = [line for ax in figure.axes for line in ax.lines if line.get_marker() == "X"]
    assert len(crosses) == 3  # in all three panels of the rotary row
    assert [list(line.get_xdata()) for line in crosses] == [[1024]] * 3


def test_validation_losses_that_are_no_numbers_are_no_contrast():
    metrics, metadata = experiment_of(PATTERN_ARMS, "learned", 1024)
    for run in metrics["w96-d4"]:
        run["val_loss"] = math.nan
    content = summarize("patterns", [(metrics, metadata)])
    assert content["points"][0]["arms"]["w96-d4"]["contrast"] is None
    assert "w96-d4" in format_study(content) and plot_study(content)


def with_identity(experiment, gpu=0, **config):
    """A synthetic experiment that says how it was trained."""
    metadata = experiment[1]
    own = {key: metadata["config"][key] for key in ("positions", "seq_len", "batch_size")}
    config = {"lr": 1e-3, "device": "cuda:0"} | own | config
    variables = {"CUDA_VISIBLE_DEVICES": str(gpu), "NVIDIA_TF32_OVERRIDE": "0"}
    device = {"device_name": "H100", "uuid": f"GPU-{gpu}", "variables": variables, "driver": "580"}
    metadata["identity"] = {"config": config, "code": "c0de", "device": device}
    metadata["environment"]["gpu"] = {"uuid": device["uuid"], "name": "H100"}
    metadata["mixed"] = []
    return experiment


@pytest.fixture
def shared_folder(tmp_path):
    """A study's folder with points of several launches: {name: experiment}, one of them damaged."""
    experiments = {}
    for name, changes in {
        "learned_256": {},
        "learned_1024": {"gpu": 1},
        "rotary_256": {"gpu": 1, "device": "cuda:1"},
        "rotary_1024": {"lr": 1e-2},
        "learned_512": {},
        "learned_128": {},
        "learned_64": {},
        "learned_32": {},
        "learned_16": {},
    }.items():
        kind, seq_len = name.split("_")
        experiment = experiment_of(("window", "fused"), kind, int(seq_len))
        experiment[1]["config"]["batch_size"] = 2048 // int(seq_len)
        experiments[name] = with_identity(experiment, **changes)
    experiments["learned_512"][1]["status"] = "partial"
    experiments["rotary_1024"][1]["identity"]["device"]["variables"]["NVIDIA_TF32_OVERRIDE"] = "1"
    experiments["rotary_256"][1]["identity"]["device"]["driver"] = None  # not found out once
    experiments["learned_64"][1]["identity"]["config"]["batch_size"] *= 2
    experiments["learned_32"][1]["identity"]["config"] = "damaged"
    del experiments["learned_16"][1]["identity"]
    for name, experiment in experiments.items():
        save_metrics(*experiment, tmp_path / name)
    (tmp_path / "learned_128" / "experiment_results.npz").write_bytes(b"damaged")
    save_metrics(*experiments["rotary_256"], tmp_path / "backup")
    (tmp_path / "no point").mkdir()
    return tmp_path, experiments


def test_points_of_other_gpus_are_taken_in_and_those_of_other_trainings_named(shared_folder):
    folder, experiments = shared_folder
    own = {"learned_256": experiments["learned_256"]}
    shared = shared_identity("lengths", own["learned_256"][1]["identity"])
    found, left_out, under_way = points_on_disk("lengths", folder, shared, own)
    content = summarize("lengths", found)
    places = [(p["positions"], p["seq_len"]) for p in content["points"]]
    assert places == [("learned", 256), ("learned", 1024), ("rotary", 256)]
    assert under_way == {"learned_512": "8 of 8 trainings done"}
    damaged = ("learned_128", "learned_32")
    assert all(name in left_out.pop(name) for name in damaged)
    assert left_out == {
        "backup": "its configuration is that of rotary_256",
        "learned_16": "it does not say how it was trained",
        "learned_64": "config.tokens_of_a_step: 4096 there, 2048 here",
        "rotary_1024": "config.lr: 0.01 there, 0.001 here; "
        'device.variables.NVIDIA_TF32_OVERRIDE: "1" there, "0" here',
    }
    assert "(each point on one of 2)" in format_study(content)
    alone = format_study(summarize("lengths", list(own.values())))
    assert "each point on one" not in alone and "MIXED" not in alone


def test_a_folder_that_may_not_be_entered_is_named(shared_folder, monkeypatch):
    folder, experiments = shared_folder
    real = Path.is_file

    def refused(path):
        if path.parent.name == "rotary_256":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_file", refused)
    own = {"learned_256": experiments["learned_256"]}
    shared = shared_identity("lengths", own["learned_256"][1]["identity"])
    found, left_out, _ = points_on_disk("lengths", folder, shared, own)
    assert len(found) == 2 and "cannot be read (Permission denied)" in left_out["rotary_256"]


def test_own_points_that_differ_count_and_are_marked(shared_folder):
    folder, experiments = shared_folder
    shared = shared_identity("lengths", experiments["learned_256"][1]["identity"])
    own = {"rotary_1024": experiments["rotary_1024"]}
    found, left_out, _ = points_on_disk("lengths", folder, shared, own)
    assert "rotary_1024" not in left_out
    content = summarize("lengths", found)
    text = format_study(content)
    assert "MIXED: rotary_1024: config.lr: 0.01 there, 0.001 here" in text
    assert text.count("MIXED") == 2  # and the variable
    captions = [figure._supxlabel.get_text() for figure in plot_study(content).values()]
    assert all("MIXED" in text for text in captions)


def test_patterns_may_differ_between_the_points_of_a_study(tmp_path):
    for kind, arms in (("learned", PATTERN_ARMS), ("rotary", PATTERN_ARMS[:2])):
        experiment = with_identity(experiment_of(arms, kind, 1024), arms=list(arms))
        save_metrics(*experiment, tmp_path / kind)
    shared = shared_identity("patterns", experiment[1]["identity"])
    found, left_out, _ = points_on_disk("patterns", tmp_path, shared, {"rotary": experiment})
    assert not left_out
    content = summarize("patterns", found)
    assert [len(point["arms"]) for point in content["points"]] == [4, 2]
    assert format_study(content).count("w96-d16") >= 1
    save_figures(plot_study(content), tmp_path)
    experiment[1]["config"]["seq_len"] = 512
    shared = shared_identity("patterns", with_identity(experiment)[1]["identity"])
    _, left_out, _ = points_on_disk("patterns", tmp_path, shared, {"rotary": experiment})
    assert "config.seq_len: 1024 there, 512 here" in left_out["learned"]


def test_pareto_front():
    points = {"a": (1.0, 0.0), "b": (1.2, 0.0), "c": (2.0, 0.5), "d": (1.5, 0.6), "e": (0.5, -1.0)}
    assert pareto_front(points) == {"b", "c", "e"}
    assert pareto_front({"a": (1, 1), "twin": (1, 1)}) == {"a", "twin"}
    assert pareto_front({}) == set()


def test_the_front_of_the_patterns(patterns):
    arms = patterns["points"][0]["arms"]
    assert {arm for arm, s in arms.items() if s["pareto"]} == {"w32-d0", "w96-d4", "w96-d16"}


def test_equal_seconds_compare_losses_at_one_moment(patterns):
    metrics, _ = experiment_of(PATTERN_ARMS, "learned", 1024, 0)
    equal = patterns["points"][0]["equal_seconds"]
    seconds = min(run["training_time"] for runs in metrics.values() for run in runs)
    assert equal["seconds"] == seconds

    def loss_at(run):
        steps = int(60 * seconds / run["training_time"])
        return np.mean(run["losses"][steps - 5 : steps], dtype=np.float64)

    pairs = zip(metrics["w32-d0"], metrics["fused"], strict=True)
    expected = np.mean([loss_at(mine) - loss_at(other) for mine, other in pairs])
    assert equal["differences"]["w32-d0"]["mean"] == pytest.approx(expected)
    assert expected < 0 < patterns["points"][0]["arms"]["w32-d0"]["contrast"]["val_loss"]["mean"]


def test_curves_are_differences_over_the_tokens(patterns):
    curve = patterns["points"][0]["curves"]["w32-d0"]
    assert curve["tokens"][0] == 5 * 2048 and curve["tokens"][-1] == 60 * 2048
    assert curve["mean"][-1] == pytest.approx(0.3 * 57 / 59, abs=1e-5)
    assert curve["low"][-1] <= curve["mean"][-1] <= curve["high"][-1]


def test_recommendations_follow_the_measurements_alone(patterns):
    words = recommend(patterns)
    assert len(words) == 2
    # w32-d0 is faster but worse; of the two that are not worse w96-d16 is the faster one
    assert all("w96-d16 is the fastest of 2 patterns" in line for line in words)
    for point in patterns["points"]:
        for summary in point["arms"].values():
            if summary.get("contrast"):
                summary["contrast"]["time"] |= {"ratio": 1.2, "low": 1.1, "high": 1.3}
    assert all("no pattern is shown to be both faster" in line for line in recommend(patterns))


def test_undecided_quality_says_how_many_runs_would_decide(patterns):
    for point in patterns["points"]:
        for summary in point["arms"].values():
            if summary.get("contrast"):
                summary["contrast"]["quality"] |= {"verdict": "undecided", "runs_needed": 17}
    assert all("about 17 runs would decide" in line for line in recommend(patterns))


def test_one_run_has_no_intervals_and_breaks_nothing(tmp_path):
    arms = ("baseline", "window", "fused")
    content = summarize("lengths", [experiment_of(arms, "learned", 256, runs=1)])
    save_figures(plot_study(content), tmp_path)
    assert "[" not in format_study(content).split("[ ]")[0]
    content = summarize("patterns", [experiment_of(PATTERN_ARMS, "learned", 1024, runs=1)])
    save_figures(plot_study(content), tmp_path)
    assert "not worse" not in recommend(content)[0].split("; not worse: ")[0].replace(
        "not worse by 0.02", ""
    )


@pytest.mark.parametrize("study", ["lengths", "patterns"])
def test_saved_drawn_and_told_in_full(study, lengths, patterns, tmp_path):
    content = {"lengths": lengths, "patterns": patterns}[study]
    path = save_study(content, tmp_path)
    again = load_study(path)
    assert again == json.loads(json.dumps(content))
    paths = save_figures(plot_study(again), tmp_path)
    names = {"lengths": ["length_scaling", "length_quality"], "patterns": ["pattern_pareto"]}[study]
    assert [p.name for p in paths] == [f"{n}.{kind}" for n in names for kind in ("png", "pdf")]
    assert all(p.stat().st_size > 5000 for p in paths)
    assert not plt.get_fignums()
    text = format_study(again)
    for kind in ("learned positions", "rotary positions", "faster than fused"):
        assert kind in text


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"study": "lengths"}', b"\xff\xfe", b"[1, 2]", b'"text"']
)
def test_a_file_that_is_no_study_gets_one_line(tmp_path, content):
    path = tmp_path / "pattern_study.json"
    path.write_bytes(content)
    with pytest.raises(MetricsError, match="no study, or damaged"):
        load_study(path)
    with pytest.raises(MetricsError, match="--study patterns writes it"):
        load_study(tmp_path / "nothing.json")


def test_the_analysis_shows_what_was_measured(patterns, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_study(patterns, tmp_path / "output")
    assert analyze_hyperparameters.main(["--measured"]) == 0
    printed = capsys.readouterr().out
    assert "MEASURED by --study patterns on 2-core CPU" in printed
    assert printed.count("w96-d16 is the fastest of 2 patterns") == 2
    assert "1,024" in printed  # the study's length, not the analysis' own
    assert (tmp_path / "plots/sparsity_speedup_tradeoff.png").stat().st_size > 5000


def test_the_analysis_without_measurements_says_how_to_get_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert analyze_hyperparameters.main([]) == 0
    assert "compare_models.py --study patterns` measures" in capsys.readouterr().out
    for options, words in (
        (["--measured"], "--study patterns writes it"),
        (["96", "4", "--measured"], "give neither"),
    ):
        assert analyze_hyperparameters.main(options) == 2
        assert words in capsys.readouterr().err


def test_the_analysis_refuses_a_study_of_lengths(lengths, tmp_path, capsys):
    path = save_study(lengths, tmp_path)
    assert analyze_hyperparameters.main(["--measured", str(path)]) == 2
    assert "no study of patterns" in capsys.readouterr().err

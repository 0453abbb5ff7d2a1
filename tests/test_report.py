"""The report: every figure can be recomputed, every sentence follows from the figures."""

import itertools
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, make_experiment
from scipy import stats

from analysis import contrasts as analysis_contrasts
from analysis.claims import describe_change
from analysis.metrics import save_metrics
from analysis.report import format_report, write_report
from analysis.significance import Ratio, paired_ratio
from analysis.warnings import find_warnings, split_blocks
from metrics_utils import main


def flat(report):
    """A report's text without its line breaks."""
    return " ".join(report.split())


def column(metrics, arm, key):
    return np.array([run[key] for run in metrics[arm]])


def lines_of(report, title):
    """The lines of the contrast's table whose title begins so."""
    lines = report.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    return lines[start : lines.index("", start)]


def test_report_figures_recomputed_with_scipy(experiment):
    metrics, metadata = experiment
    table = lines_of(format_report(metrics, metadata), "window against baseline")
    line, more = (line for line in table if line.startswith("training time"))
    x, ref = (column(metrics, arm, "training_time") for arm in ("window", "baseline"))
    published, logs = stats.ttest_ind(x, ref), np.log(x / ref)
    paired = stats.ttest_rel(np.log(x), np.log(ref))
    low, high = np.exp(paired.confidence_interval(0.95))
    d = (x.mean() - ref.mean()) / math.sqrt((x.var(ddof=1) + ref.var(ddof=1)) / 2)
    assert f"{100 * (ref.mean() - x.mean()) / ref.mean():+.2f} %" in line
    assert f"{stats.gmean(x) / stats.gmean(ref):.4f}" in line
    assert f"[{low:.4f}, {high:.4f}]" in line
    assert f"{paired.pvalue:.2g}" in line
    assert f"t {published.statistic:.2f}, p {published.pvalue:.2g}*" in more
    assert f"{d:.2f}" in more
    assert f"{logs.mean() / logs.std(ddof=1):.2f}" in more
    assert f"{2 / 2 ** len(logs):.2g}" in more  # every log ratio has the same sign


def test_adjusted_p_is_holms_over_the_declared_family(experiment):
    metrics, metadata = experiment
    metadata["plan"]["family"] = [
        ["window", "fused", "training_time"],
        ["window", "fused", "val_loss"],
    ]
    pairs = [
        [column(metrics, a, key) for a in ("window", "fused")]
        for key in ("training_time", "val_loss")
    ]
    time_p, loss_p = (stats.ttest_rel(*np.log(pair)).pvalue for pair in pairs)
    assert time_p < loss_p
    report = format_report(metrics, metadata)
    rows = lines_of(report, "window against fused")
    assert f"{2 * time_p:.2g}*" in rows[2] and f"{max(loss_p, 2 * time_p):.2g}" in rows[5]
    assert "(Holm, 2 tests)" in " ".join(report.split())
    # outside the family there is a p and no adjusted one
    assert lines_of(report, "fused against baseline")[2].split()[-2] == "-"


def test_a_loss_of_zero_costs_its_row_and_not_the_report(experiment):
    metrics, metadata = experiment
    for run in metrics["window"]:
        run["val_loss"] = 0.0
    report = format_report(metrics, metadata)
    assert "a value is not positive" in report and "Where the speed comes from" in report


def test_decomposition_multiplies_up(experiment):
    report = format_report(*experiment)
    total, kernel, sparsity = map(float, re.findall(r"(\d+\.\d{3})x \[", flat(report)))
    assert total == pytest.approx(kernel * sparsity, rel=2e-3)
    assert "Sparsity made training faster at sequence length 1,024" in flat(report)


def slower_window(metrics, factor):
    for run, fused in zip(metrics["window"], metrics["fused"], strict=True):
        run["training_time"] = fused["training_time"] * factor * (1 + 1e-4 * run["block"])


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.5, "Sparsity made training slower at sequence length 1,024: window took 50"),
        (0.995, "Sparsity brought no speed worth the name"),
        (1.0, "Sparsity brought no speed worth the name"),
        (0.5, "Sparsity made training faster"),
    ],
)
def test_the_verdict_follows_the_figures(experiment, factor, words):
    metrics, metadata = experiment
    slower_window(metrics, factor)
    report = flat(format_report(metrics, metadata))
    assert words in report
    assert ("made training faster" in report) == (factor == 0.5)


def test_no_verdict_without_a_difference(experiment):
    metrics, metadata = experiment
    for i, run in enumerate(metrics["window"]):
        run["training_time"] = metrics["fused"][i]["training_time"] * (1 + 0.1 * (-1) ** i)
    report = format_report(metrics, metadata)
    report = flat(report)
    assert "No speed from sparsity is shown" in report and "no difference detected" in report


def test_one_run_is_reported_without_any_test():
    report = format_report(*make_experiment(runs=1))
    assert "One run: no spread, no test." in report
    assert "nan" not in report.lower() and "± " not in report.split("improvement: of")[0].replace(
        "Mean ± standard", ""
    )
    assert "What sparsity does to the time at sequence length 1,024 is not shown" in report


def test_without_the_control_the_report_says_what_is_missing():
    report = format_report(*make_experiment(arms=("baseline", "window")))
    assert "No decomposition: it needs the arms baseline, window and fused" in report


def test_runs_that_failed_are_named_and_left_out(experiment):
    metrics, metadata = experiment
    metrics["baseline"][1] |= {"status": "out_of_memory", "message": "out of memory on cuda"}
    metrics["baseline"][1]["training_time"] = math.nan
    metadata["status"] = "partial"
    report = format_report(metrics, metadata)
    assert "baseline, run 2: out_of_memory: out of memory on cuda" in report
    assert "PARTIAL: 12 of 12 trainings." in report
    kept = [0, 2, 3]
    x, ref = (column(metrics, arm, "training_time")[kept] for arm in ("window", "baseline"))
    assert f"{paired_ratio(x, ref).ratio:.4f}" in report
    for run in metrics["baseline"]:
        run["status"] = "diverged"
    assert "no run in which both ended well" in format_report(metrics, metadata)


def test_no_figure_is_fixed_text():
    """Every number of the report's tables follows from the data: change the data, all change."""
    reports = [format_report(*make_experiment(seed=seed)) for seed in (0, 1)]
    rows = [[line for line in r.splitlines() if line.startswith("training time")] for r in reports]
    for one, other in zip(*rows, strict=True):
        assert not set(re.findall(r"\d+\.\d{4}", one)) & set(re.findall(r"\d+\.\d{4}", other))


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Ratio(0.8, 0.78, 0.82, 1e-9, 10), "took 20.00% less time than b [18.00%, 22.00%], p 1e"),
        (Ratio(1.25, 1.2, 1.3, 1e-99, 10), "took 25.00% more time than b [20.00%, 30.00%], p < 1e"),
        (Ratio(0.99, 0.9, 1.1, 0.7, 10), "no difference detected, ratio 0.9900"),
        (Ratio(0.9, None, None, None, 1, "one run: no test"), "10.00% less time than b (one run"),
        (Ratio(1.0, None, None, None, 3, "same in every run"), "took as much time as b (same in"),
        (Ratio(0.99998, None, None, None, 3, "same in every run"), "as b (to 0.01 %, same in"),
    ],
)
def test_sentences_on_time(ratio, words):
    assert words in describe_change(ratio, "a", "b")


def test_write_report(tmp_path, experiment):
    path, text = write_report(*experiment, tmp_path)
    assert path.name == "improved_comparison_results.txt"
    assert path.read_text(encoding="utf-8") == text == format_report(*experiment)


def test_a_p_that_does_not_survive_the_adjustment_is_said_so(experiment):
    metrics, metadata = experiment
    for i, run in enumerate(metrics["window"]):
        run["training_time"] = metrics["fused"][i]["training_time"] * (0.97 + 0.02 * (i % 2))
    x, ref = (column(metrics, arm, "training_time") for arm in ("window", "fused"))
    assert 0.01 < stats.ttest_rel(np.log(x), np.log(ref)).pvalue < 0.05
    text = flat(format_report(metrics, metadata))
    assert "which is not significant among so many" in text.split("2. ")[1].split("3. ")[0]
    metadata["plan"]["family"] = [["window", "fused", "training_time"]]
    assert "not significant among" not in flat(format_report(metrics, metadata))


@pytest.mark.parametrize("evaluation", ["masked", "dense"])
def test_a_window_that_computes_every_pair_says_nothing_about_sparsity(experiment, evaluation):
    metrics, metadata = experiment
    metadata["pattern"]["evaluation"] = evaluation
    text = flat(format_report(metrics, metadata))
    assert "The pattern as a mask, which spares no pair, at sequence length 1,024" in text
    assert f"evaluated as {evaluation}, which computes every pair" in text
    assert "Sparsity made" not in text and "x sparsity" not in text
    del metadata["pattern"]  # an older file, whose configuration says it
    metadata["config"]["window_attention"] = evaluation
    assert "which spares no pair" in flat(format_report(metrics, metadata))


def test_every_claim_says_what_it_rests_on_and_what_it_does_not_show():
    text = format_report(*make_experiment(6))
    claims = re.split(r"^\d+\. ", text[text.index("Claims") : text.index("\n\nMean")], flags=re.M)
    claims = [flat(claim) for claim in claims[1:]]
    assert len(claims) == 10
    for claim in claims[1:]:
        assert re.search("This (does not show|says nothing)", claim) and (
            ", p " in claim or "same in every run" in claim
        ), claim
        assert re.search(r"\[[-+]?\d", claim) or "same in every run" in claim, claim
    assert sum("Primary" in claim for claim in claims) == 4


def test_an_arm_that_never_fits_does_not_take_the_claim_on_sparsity_with_it(experiment):
    """Where the textbook arm runs out of memory, window against fused is what there is to say."""
    metrics, metadata = experiment
    for run in metrics["baseline"]:
        run |= {"status": "out_of_memory", "message": "out of memory on cuda"}
    text = flat(format_report(metrics, metadata))
    assert "No decomposition: in no run did baseline, window and fused all end well." in text
    assert "Sparsity made training faster at sequence length 1,024: window took" in text


def test_a_small_gain_that_may_be_larger_is_not_called_nothing(experiment):
    metrics, metadata = experiment
    for i, run in enumerate(metrics["window"]):
        run["training_time"] = metrics["fused"][i]["training_time"] * (
            0.9925 + 0.0045 * (i % 2 - 0.5)
        )
    text = flat(format_report(metrics, metadata))
    assert "No speed from sparsity is shown" in text and "significant, but below 1%" in text


def test_the_results_carry_every_test(experiment):
    metrics, metadata = experiment
    tests = {
        (t["arm"], t["reference"], t["outcome"]): t
        for t in analysis_contrasts.tests_of(metrics, metadata)
    }
    assert len(tests) == 3 * 4
    found = tests["window", "fused", "training_time"]
    x, ref = (column(metrics, arm, "training_time") for arm in ("window", "fused"))
    assert found["p"] == paired_ratio(x, ref).p and found["adjusted_p"] > found["p"]
    loss = tests["window", "fused", "val_loss"]
    e = column(metrics, "window", "val_loss") - column(metrics, "fused", "val_loss")
    assert loss["difference"]["mean"] == pytest.approx(e.mean())
    assert loss["quality"]["margin"] == 0.02 and loss["quality"]["verdict"]
    json.dumps(analysis_contrasts.tests_of(metrics, metadata), allow_nan=False)


# --- quality -----------------------------------------------------------------------------------


def with_losses(experiment, differences):
    """The validation loss of window is that of fused plus these, run by run."""
    metrics, metadata = experiment
    for run, fused, difference in zip(
        metrics["window"], metrics["fused"], differences, strict=True
    ):
        run["val_loss"] = fused["val_loss"] + difference
    return metrics, metadata


def quality_of(metrics, metadata):
    text = flat(format_report(metrics, metadata))
    return text[text.index("Quality: ") : text.index("This does not", text.index("Quality: "))]


@pytest.mark.parametrize(
    ("center", "spread", "words", "equivalence"),
    [
        (0.0, 0.005, "window is not worse than fused by the margin of 0.02 nats", "equivalent"),
        (-0.2, 0.005, "window is not worse than fused by the margin of 0.02 nats", "different"),
        (0.2, 0.005, "window is worse than fused by more than the margin", "different"),
        (0.01, 0.2, "whether window is worse than fused by 0.02 nats is undecided", "undecided"),
    ],
)
def test_quality_is_a_claim_with_three_answers(center, spread, words, equivalence):
    differences = center + spread * np.array([-1, 1, -0.5, 0.5, 0, 0.8, -0.8, 0.1])
    metrics, metadata = with_losses(make_experiment(8), differences)
    text = quality_of(metrics, metadata)
    assert words in text and f"Equivalence within ±0.02: {equivalence}" in text
    e = column(metrics, "window", "val_loss") - column(metrics, "fused", "val_loss")
    low, high = stats.ttest_1samp(e, 0).confidence_interval(0.9)
    assert (
        f"validation loss {abs(e.mean()):.4f} nats {'lower' if e.mean() < 0 else 'higher'}" in text
    )
    assert f"at most {high:+.4f}" in text and f"[{low:+.4f}, {high:+.4f}]" in text
    percent = 100 * e.mean() / column(metrics, "fused", "val_loss").mean()
    assert f"({percent:+.2f} %, perplexity {100 * math.expm1(e.mean()):+.2f} %)" in text
    needed = re.search(r"About (\d+) runs would decide it", text)
    assert bool(needed) == (equivalence == "undecided")
    assert needed is None or int(needed[1]) > 8


def test_the_same_losses_need_no_test():
    text = quality_of(*with_losses(make_experiment(4), [0.0] * 4))
    assert "not worse" in text and "the same difference in every run" in text and "nan" not in text


def test_faster_and_not_worse_needs_both():
    spread = [0.001, -0.001, 0.002, 0.0]
    good = flat(format_report(*with_losses(make_experiment(4), spread)))
    assert "Faster and not worse: of window against fused this is shown: time ratio" in good
    worse = flat(format_report(*with_losses(make_experiment(4), [0.5 + s for s in spread])))
    assert "this is not shown (not worse is not)" in worse
    metrics, metadata = with_losses(make_experiment(4), spread)
    slower_window(metrics, 1.5)
    assert "this is not shown (faster is not)" in flat(format_report(metrics, metadata))


def test_older_files_declare_no_margin_and_get_no_quality_claim(experiment):
    metrics, metadata = experiment
    del metadata["plan"]["equivalence_margin"], metadata["plan"]["family"]
    report = flat(format_report(metrics, metadata))
    assert "Quality:" not in report and "(Holm, 8 tests)" in report  # one ratio has no spread


# --- warnings ----------------------------------------------------------------------------------


def test_a_clean_experiment_has_no_warning():
    assert find_warnings(*make_experiment(6, seed=1)) == []


def test_few_runs_are_warned_that_the_exact_test_cannot_reach_its_level():
    for runs, p in ((2, "0.5"), (5, "0.0625")):
        warnings = " ".join(find_warnings(*make_experiment(runs)))
        assert f"{runs} runs: the exact tests cannot go below p {p}" in warnings
    assert "exact tests" not in " ".join(find_warnings(*make_experiment(6)))


def damage(metrics, name):
    if name == "noise":
        for i, run in enumerate(metrics["window"]):
            run["training_time"] *= 1 + 0.2 * (-1) ** i
    elif name == "far":
        metrics["fused"][2]["training_time"] *= 3
    elif name == "hot":
        metrics["fused"][1]["device_after"] = {"throttle_reasons": ["hw_slowdown"]}
    elif name == "busy":
        metrics["window"][3]["device_before"] = {"other_processes": 2}
    elif name == "stall":
        metrics["window"][1]["step_seconds"][30] = 0.9
    elif name == "outlier":
        metrics["window"][3]["peak_memory_mb"] = 2000.0
    elif name == "first":
        metrics["baseline"][0]["training_time"] *= 1.3
    elif name == "split":
        metrics["window"][4]["process"] = "second"
    elif name == "failed":
        for run in (metrics["window"][0], metrics["fused"][5]):
            run |= {"status": "diverged", "message": "the loss became nan at step 3"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("noise", "window: the training time varies by 2"),
        ("far", "fused: a training took"),
        ("hot", "fused, run 2: the device slowed itself down (hw_slowdown)"),
        ("busy", "window, run 4: other processes were using the device"),
        ("outlier", "window, run 4: peak memory 2,000 is far from the others'; it is kept"),
        ("stall", "window, run 2: 1 of 40 steps took more than 1.5 times the median"),
        ("first", "baseline: the very first training took longer than every other"),
        ("split", "run 5 was cut in two by a stop"),
        ("failed", "2 trainings failed"),
    ],
)
def test_what_a_reader_must_know_is_warned_of(name, words):
    metrics, metadata = make_experiment(6)
    damage(metrics, name)
    assert any(words in warning for warning in find_warnings(metrics, metadata))
    assert words in flat(format_report(metrics, metadata)).replace("- ", "-")


def test_only_few_steps_that_cost_much_of_a_training_are_a_stall():
    def warnings_with(steps):
        metrics, metadata = make_experiment(6, seed=1)
        metrics["window"][1]["step_seconds"] = np.array(steps, np.float32)
        return find_warnings(metrics, metadata)

    (warning,) = warnings_with([0.1] * 98 + [1.1, 1.1])
    assert "(100.0 ms; step 99: 1,100.0 ms) and cost 16.7% of the training time" in warning
    assert warnings_with([0.1] * 97 + [1.1] * 3) == []  # 3 %: so the arm is
    assert warnings_with([0.1] * 99 + [0.2]) == []  # costs 1 %
    assert warnings_with([0.1] * 9 + [0.14]) == []  # 1.4 times the median
    assert warnings_with([]) == [] == warnings_with([0.1, math.nan, 9])
    assert warnings_with([0, 0, 0, 1]) == []  # a clock too coarse to tell


def test_what_slowed_a_failed_training_is_not_warned_of():
    metrics, metadata = make_experiment(7, seed=1)
    metrics["window"][1] |= {"status": "out_of_memory", "message": "8 GiB"}
    metrics["window"][1]["device_after"] = {"throttle_reasons": ["sw_power_cap"]}
    metrics["window"][1]["step_seconds"][30] = 0.9
    assert find_warnings(metrics, metadata) == []


def test_few_pairs_are_warned_of_also_where_every_arm_has_many_runs():
    metrics, metadata = make_experiment(7)
    for i, arm in enumerate(metrics):
        metrics[arm][i] |= {"status": "diverged", "message": "the loss became nan at step 3"}
    assert "5 runs: the exact tests cannot go below" in " ".join(find_warnings(metrics, metadata))


def test_another_alpha_in_the_plan_is_warned_of(experiment):
    metrics, metadata = experiment
    metadata["plan"]["alpha"] = 0.01
    text = flat(format_report(metrics, metadata))
    assert "alpha 0.01, 9 tests in the family" in text
    assert "the plan declares alpha 0.01, and this version of the suite tests at 0.05" in text


def test_mixed_and_repeated_trainings_are_named():
    metrics, metadata = make_experiment(6)
    metadata |= {"mixed": ["config.lr: 0.1 before, 0.2 now"], "set_aside": ["a/b.json"]}
    report = flat(format_report(metrics, metadata))
    assert "MIXED" in report and "config.lr: 0.1 before, 0.2 now" in report and "a/b.json" in report


def test_a_block_is_split_when_two_launches_trained_it(experiment):
    metrics, _ = experiment
    assert split_blocks(metrics) == []
    metrics["fused"][2]["process"] = metrics["fused"][3]["process"] = "second"
    for arm in metrics:
        metrics[arm][3]["process"] = "second"
    assert split_blocks(metrics) == [2]


# --- order, drift, outliers --------------------------------------------------------------------


def interleaved(runs=12):
    """An experiment whose arms come in every order, and so after every other arm."""
    metrics, metadata = make_experiment(runs)
    previous = ""
    for run, order in zip(range(runs), itertools.cycle(itertools.permutations(metrics))):
        for place, arm in enumerate(order):
            metrics[arm][run] |= {"position": place, "index": 3 * run + place}
            metrics[arm][run]["previous_arm"] = previous
            previous = arm
    return metrics, metadata


def test_a_position_effect_is_estimated_and_taken_out():
    metrics, metadata = interleaved()
    for runs in metrics.values():
        for run in runs:
            run["training_time"] *= math.exp(0.05 * run["position"])
    text = flat(format_report(metrics, metadata))
    found = re.search(r"position, window against fused: one place later \+(\d\.\d+) %", text)
    assert float(found[1]) == pytest.approx(100 * math.expm1(0.05), abs=0.1)
    adjusted = re.search(
        r"window against fused: .*? adjusted for it the time ratio is (\d\.\d+)", text
    )
    assert float(adjusted[1]) == pytest.approx(0.9, abs=0.01)


def test_drift_over_the_experiment_is_estimated():
    metrics, metadata = interleaved()
    for runs in metrics.values():
        for run in runs:
            run["training_time"] *= math.exp(0.01 * run["index"])
    text = flat(format_report(metrics, metadata))
    drift = re.search(r"from one training to the next \+(\d\.\d+) % \[", text)
    assert float(drift[1]) == pytest.approx(1, abs=0.1)


def test_an_outlying_run_is_named_and_kept():
    metrics, metadata = make_experiment(8)
    metrics["window"][2]["training_time"] *= 1.5
    text = flat(format_report(metrics, metadata))
    assert "window run 3: training time" in text.split("none dropped): ")[1]
    assert f"{column(metrics, 'window', 'training_time').mean():.2f} ±" in text


# --- the command -------------------------------------------------------------------------------


def test_the_report_is_printed_again_from_either_file_without_torch(tmp_path, experiment):
    (tmp_path / "torch.py").write_text("raise ImportError('not needed')")
    report = format_report(*experiment)
    for path in save_metrics(*experiment, tmp_path):
        done = subprocess.run(
            [sys.executable, ROOT / "metrics_utils.py", path],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == report + "\n"


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


@pytest.mark.parametrize("value", [0.0, 1e-300, 1e300, math.nan, math.inf])
def test_times_beyond_reason_cost_their_lines_and_not_the_report(experiment, value):
    metrics, metadata = experiment
    metrics["window"][1]["training_time"] = value
    assert "Claims" in format_report(metrics, metadata)


def test_a_loss_beyond_reason_has_no_perplexity(experiment):
    metrics, metadata = experiment
    for run in metrics["window"]:
        run["val_loss"] = 1e8 + run["block"]
    text = quality_of(metrics, metadata)
    assert "worse than fused by more than" in text and "perplexity" not in text


def test_a_reader_who_stops_early_and_a_full_disk_get_no_traceback(tmp_path, experiment):
    path = save_metrics(*experiment, tmp_path)[1]
    command = f"{sys.executable} {ROOT / 'metrics_utils.py'} {path}"
    for shell, code in ((f"{command} | true", 0), (f"{command} > /dev/full", 1)):
        done = subprocess.run(shell, shell=True, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr


def test_a_file_that_is_no_result_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main([str(tmp_path / "nothing.json")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1

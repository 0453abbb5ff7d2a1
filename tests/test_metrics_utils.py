"""Saved metrics: exact round trips, clear refusals, a report whose figures can be recomputed."""

import json
import math
import os
import re

import numpy as np
import pytest
from conftest import make_experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metrics_utils import (
    NUMBERS,
    SCHEMA_VERSION,
    SERIES,
    TEXTS,
    MetricsError,
    atomic_write,
    describe_time,
    format_report,
    format_summary,
    load_experiment,
    load_metrics,
    print_metrics_summary,
    save_metrics,
    write_report,
)
from significance import Ratio, paired_ratio


def assert_same_metrics(left, right):
    assert list(left) == list(right)
    for arm in left:
        assert len(left[arm]) == len(right[arm])
        for mine, other in zip(left[arm], right[arm], strict=True):
            assert set(mine) == set(other) == {*NUMBERS, *TEXTS, *SERIES}
            for key, value in mine.items():
                if isinstance(value, np.ndarray):
                    assert value.dtype == other[key].dtype
                    assert value.tobytes() == other[key].tobytes(), key
                else:
                    assert type(value) is type(other[key]), key
                    assert value == other[key] or (value != value and other[key] != other[key]), key


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_round_trip_is_exact(tmp_path, experiment, suffix):
    metrics, metadata = experiment
    diverged = metrics["window"][1]
    diverged |= {"status": "diverged", "message": "the loss became nan at step 3"}
    diverged |= {"total_steps": 3, "total_tokens": 6144, "final_loss": math.nan}
    for key in SERIES:
        diverged[key] = diverged[key][:3]
    diverged["losses"] = np.array([9.1, np.float32(0.1), np.nan], dtype=np.float32)
    metrics["fused"].pop()  # an experiment under way has arms of different length
    save_metrics(metrics, metadata, tmp_path)
    loaded, loaded_metadata = load_experiment(tmp_path / f"experiment_results{suffix}")
    assert_same_metrics(metrics, loaded)
    assert loaded_metadata == {**metadata, "schema_version": SCHEMA_VERSION}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=5),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
def test_round_trip_of_any_figure(tmp_path_factory, losses, time, message):
    metrics, metadata = make_experiment(runs=1, arms=("window",), steps=len(losses))
    metrics["window"][0] |= {"losses": np.array(losses, np.float32), "training_time": time}
    metrics["window"][0]["message"] = message
    folder = tmp_path_factory.mktemp("any")
    save_metrics(metrics, metadata, folder)
    assert_same_metrics(metrics, load_metrics(folder / "experiment_results.npz"))
    if math.isfinite(time) and np.isfinite(losses).all():
        assert_same_metrics(metrics, load_metrics(folder / "experiment_results.json"))


def test_npz_holds_plain_numeric_arrays_by_arm_and_name(tmp_path, experiment):
    metrics, metadata = experiment
    path, _ = save_metrics(metrics, metadata, tmp_path)
    with np.load(path, allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} <= set("iuf")
        expected = [run["training_time"] for run in metrics["window"]]
        assert file["window_training_time"].tolist() == expected
        assert file["window_losses"].shape == (4, 40)


def test_json_is_strict_and_readable(tmp_path, experiment):
    metrics, metadata = experiment
    _, path = save_metrics(metrics, metadata, tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["metrics"]["window"][0]["peak_reserved_mb"] is None
    assert content["metadata"]["config"]["window_size"] == 96


def test_a_run_that_lacks_a_key_is_refused_before_anything_is_written(tmp_path, experiment):
    metrics, metadata = experiment
    del metrics["window"][2]["val_loss"]
    with pytest.raises(MetricsError, match="window run 2: missing val_loss"):
        save_metrics(metrics, metadata, tmp_path)
    assert list(tmp_path.iterdir()) == []


def saved(tmp_path):
    return save_metrics(*make_experiment(runs=2), tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("which", [0, 1])
def test_a_truncated_file_is_refused_by_name(tmp_path, which, share):
    path = saved(tmp_path)[which]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(MetricsError, match=re.escape(str(path))):
        load_experiment(path)


@pytest.mark.parametrize("which", [0, 1])
def test_a_mutated_file_is_refused_or_right(tmp_path, which):
    path = saved(tmp_path)[which]
    content = path.read_bytes()
    rng = np.random.default_rng(which)
    for _ in range(60):
        mutated = bytearray(content)
        for place in rng.integers(len(content), size=3):
            mutated[place] = rng.integers(256)
        path.write_bytes(mutated)
        try:
            load_experiment(path)
        except MetricsError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npz", b"", "damaged"),
        ("a.npz", b"not a zip file", "damaged"),
        ("a.json", b"[1, 2]", "damaged"),
        ("a.json", b"{}", "not a metrics file"),
        ("a.json", b"\xff\xfe\x00", "damaged"),
        ("a.json", b'{"metrics": {}, "metadata": {"schema_version": 99}}', "schema_version 99"),
        ("a.json", b'{"metrics": {}, "metadata": {}}', "schema_version None"),
        ("a.json", b'{"metrics": {}, "metadata": {"config": "x"}}', "is not a table"),
        ("a.json", b'{"metrics": {"x": [{}]}, "metadata": {"schema_version": 1}}', "missing run"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MetricsError, match=words):
        load_experiment(path)


def test_a_foreign_npz_a_pickled_one_and_a_folder_are_refused(tmp_path):
    np.savez(tmp_path / "foreign.npz", a=np.arange(3))
    with pytest.raises(MetricsError, match="not a metrics file of this suite"):
        load_experiment(tmp_path / "foreign.npz")
    np.savez(tmp_path / "pickled.npz", metadata=np.array([{"a": 1}], dtype=object))
    with pytest.raises(MetricsError, match="damaged"):
        load_experiment(tmp_path / "pickled.npz")
    for path in (tmp_path, tmp_path / "nothing.npz"):
        with pytest.raises(MetricsError, match="no such file"):
            load_experiment(path)


def test_atomic_write_leaves_the_old_file_and_nothing_else_when_it_fails(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    atomic_write(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- the report --------------------------------------------------------------------------------


def column(metrics, arm, key):
    return np.array([run[key] for run in metrics[arm]])


def test_summary_is_mean_and_sample_deviation(experiment, capsys):
    metrics, _ = experiment
    times = column(metrics, "window", "training_time")
    expected = f"{times.mean():.2f} ± {times.std(ddof=1):.2f}"
    assert expected in format_summary(metrics)
    print_metrics_summary(metrics)
    assert capsys.readouterr().out == format_summary(metrics) + "\n"


def test_report_figures_recomputed_with_scipy(experiment):
    metrics, metadata = experiment
    lines = format_report(metrics, metadata).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("window against baseline"))
    line = next(line for line in lines[start:] if line.startswith("training time"))
    x, ref = (column(metrics, arm, "training_time") for arm in ("window", "baseline"))
    published = stats.ttest_ind(x, ref)
    paired = stats.ttest_rel(np.log(x), np.log(ref))
    low, high = np.exp(paired.confidence_interval(0.95))
    d = (x.mean() - ref.mean()) / math.sqrt((x.var(ddof=1) + ref.var(ddof=1)) / 2)
    assert f"{100 * (ref.mean() - x.mean()) / ref.mean():+.2f} %" in line
    assert f"{stats.gmean(x) / stats.gmean(ref):.4f}" in line
    assert f"[{low:.4f}, {high:.4f}]" in line
    assert f"{paired.pvalue:.2g}" in line
    assert f"t {published.statistic:.2f}, p {published.pvalue:.2g}*" in line
    assert f"{d:.2f}" in line


def test_a_loss_of_zero_costs_its_row_and_not_the_report(experiment):
    metrics, metadata = experiment
    for run in metrics["window"]:
        run["val_loss"] = 0.0
    report = format_report(metrics, metadata)
    assert "a value is not positive" in report and "Where the speed comes from" in report


def test_decomposition_multiplies_up(experiment):
    report = format_report(*experiment)
    total, kernel, sparsity = map(float, re.findall(r"(\d+\.\d{3})x", report))
    assert total == pytest.approx(kernel * sparsity, rel=2e-3)
    assert "Sparsity made training faster at sequence length 1,024" in report


def slower_window(metrics, factor):
    for run, fused in zip(metrics["window"], metrics["fused"], strict=True):
        run["training_time"] = fused["training_time"] * factor * (1 + 1e-4 * run["run"])


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.5, "Sparsity brought no speed worth the name at sequence length 1,024: window took 50"),
        (0.995, "Sparsity brought no speed worth the name"),
        (1.0, "Sparsity brought no speed worth the name"),
        (0.5, "Sparsity made training faster"),
    ],
)
def test_the_verdict_follows_the_figures(experiment, factor, words):
    metrics, metadata = experiment
    slower_window(metrics, factor)
    report = format_report(metrics, metadata)
    assert words in report
    assert ("made training faster" in report) == (factor == 0.5)


def test_no_verdict_without_a_difference(experiment):
    metrics, metadata = experiment
    for i, run in enumerate(metrics["window"]):
        run["training_time"] = metrics["fused"][i]["training_time"] * (1 + 0.1 * (-1) ** i)
    report = format_report(metrics, metadata)
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
    ],
)
def test_sentences_on_time(ratio, words):
    assert words in describe_time(ratio, "a", "b")


def test_write_report(tmp_path, experiment):
    path, text = write_report(*experiment, tmp_path)
    assert path.name == "improved_comparison_results.txt"
    assert path.read_text(encoding="utf-8") == text == format_report(*experiment)

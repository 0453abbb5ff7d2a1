"""The report: every figure can be recomputed, every sentence follows from the figures."""

import itertools
import math
import re

import numpy as np
import pytest
from conftest import flat, make_experiment, set_beside_fused
from scipy import stats

from analysis.claims import describe_change
from analysis.metrics import load_experiment, save_metrics
from analysis.report import format_report, heading
from analysis.significance import Ratio, paired_ratio


def column(metrics, arm, key):
    return np.array([training[key] for training in metrics[arm]])


def lines_of(report, title):
    """The lines of the contrast's tables whose title begins so."""
    lines = report.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    return lines[start : lines.index("", start)]


def test_figures_recomputed_with_scipy(experiment):
    metrics, metadata = experiment
    report = format_report(metrics, metadata)
    table = lines_of(report, "window against baseline")
    line, more = (line for line in table if line.startswith("training time"))
    x, ref = (column(metrics, arm, "training_time") for arm in ("window", "baseline"))
    published, logs = stats.ttest_ind(x, ref), np.log(x / ref)
    paired = stats.ttest_rel(np.log(x), np.log(ref))
    low, high = np.exp(paired.confidence_interval(0.95))
    d = (x.mean() - ref.mean()) / math.sqrt((x.var(ddof=1) + ref.var(ddof=1)) / 2)
    assert f"{100 * (1 - stats.gmean(x / ref)):+.2f} %" in line
    assert f"{stats.gmean(x) / stats.gmean(ref):.4f}" in line
    assert f"[{low:.4f}, {high:.4f}]" in line
    assert f"{paired.pvalue:.2g}" in line
    assert f"{np.median(x / ref):.4f}" in more
    assert f"{published.statistic:.2f}" in more and f"{published.pvalue:.2g}*" in more
    assert f"{d:.2f}" in more
    assert f"{logs.mean() / logs.std(ddof=1):.2f}" in more
    assert f"{2 / 2 ** len(logs):.2g}" in more  # every log ratio has the same sign
    x = column(metrics, "window", "val_loss")
    assert f"{x.mean():.4f} ± {x.std(ddof=1):.4f}" in report
    deviation = stats.median_abs_deviation(x)
    assert f"{np.median(x):.4f} ± {deviation:.4f} ({x.min():.4f} … {x.max():.4f})" in report


def test_one_block_far_off_makes_no_two_answers(experiment):
    """The mean would call window slower, the geometric mean of the pairs faster."""
    metrics, metadata = with_times(experiment, [0.5, 0.51, 0.5, 3.0])
    x, ref = (column(metrics, arm, "training_time") for arm in ("window", "fused"))
    report = format_report(metrics, metadata)
    line, more = (
        line
        for line in lines_of(report, "window against fused (")
        if line.startswith("training time")
    )
    assert x.mean() > ref.mean() and "+21.36 %" in line and "0.7864" in line
    assert "too few blocks: no interval" in line and "0.5050" in more
    assert "no difference detected, ratio 0.78" in flat(report)
    assert "too few blocks: no interval." in flat(report)


def test_adjusted_p_is_holms_over_the_declared_family(experiment):
    metrics, metadata = experiment
    keys = ("training_time", "val_loss")
    metadata["plan"]["family"] = [["window", "fused", key] for key in keys]
    pairs = [[column(metrics, a, key) for a in ("window", "fused")] for key in keys]
    time_p, loss_p = (stats.ttest_rel(*np.log(pair)).pvalue for pair in pairs)
    assert time_p < loss_p
    report = format_report(metrics, metadata)
    rows = lines_of(report, "window against fused")
    assert f"{2 * time_p:.2g}*" in rows[2] and f"{max(loss_p, 2 * time_p):.2g}" in rows[5]
    assert "(Holm, 2 tests)" in flat(report)
    # outside the family there is a p and no adjusted one
    assert lines_of(report, "fused against baseline")[2].split()[-3] == "-"


def test_a_value_of_zero_costs_its_row_and_not_the_report(experiment):
    metrics, metadata = experiment
    for training in metrics["window"]:
        training["peak_memory_mb"] = 0.0
    report = format_report(metrics, metadata)
    assert not any(line.startswith("peak memory ") for line in lines_of(report, "window against"))
    assert "Memory (sparsity alone)" not in flat(report)


def test_decomposition_multiplies_up(experiment):
    report = flat(format_report(*experiment))
    sentence = report[report.index("Where the speed comes from") :]
    total, kernel, sparsity = map(float, re.findall(r"(\d+\.\d{3}) \[", sentence)[:3])
    assert total == pytest.approx(kernel * sparsity, rel=2e-3)


def with_times(experiment, factors):
    """The training time of window is that of fused times these, block by block."""
    set_beside_fused(experiment[0], "window", factors=factors)
    return experiment


STEADY = 1 + 1e-4 * np.arange(4)


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (0.5 * STEADY, "made training faster at sequence length 1,024: window took 49.99 "),
        (1.5 * STEADY, "made training slower at sequence length 1,024: window took 50.02 "),
        (0.995 * STEADY, "Sparsity brought no speed worth the name"),
        (STEADY, "Sparsity brought no speed worth the name"),
        (1 + 0.1 * np.array([1, -1, 1, -1]), "No speed from sparsity is shown"),
        # a small gain that may be larger is not called nothing
        (0.9925 + 0.00225 * np.array([-1, 1, -1, 1]), "No speed from sparsity is shown"),
    ],
)
def test_the_verdict_on_sparsity_follows_the_figures(experiment, factors, words):
    report = flat(format_report(*with_times(experiment, factors)))
    assert words in report
    assert ("made training faster" in report) == ("faster" in words)


def test_a_pattern_evaluated_as_a_mask_says_nothing_about_sparsity(experiment):
    metrics, metadata = experiment
    metadata["pattern"]["evaluation"] = "masked"
    report = flat(format_report(metrics, metadata))
    assert "The pattern as a mask, which spares no pair" in report
    assert "the pattern was evaluated as masked, which computes every pair" in report


PATTERNS = ("w96-d4-s", "w96-d0-f1", "w32-d0-f1", "w96-d0-e4")


def test_every_pattern_has_its_claims_under_its_name():
    metrics, metadata = make_experiment(6, arms=("fused", *PATTERNS))
    set_beside_fused(metrics, "w32-d0-f1", factors=0.8 + 1e-3 * np.arange(6))
    metadata["attention"] = {"w96-d4-s": {"evaluation": "masked", "kernels": [], "operators": []}}
    report = flat(format_report(metrics, metadata))
    assert "Sparsity (w32-d0-f1) made training faster at sequence length 1,024: w32-d0" in report
    assert "The pattern (w96-d4-s) as a mask, which spares no pair, at" in report
    assert report.count("the pattern was evaluated as masked, which computes") == 2
    assert "No decomposition" not in report
    claims = report[report.index("Claims 1.") : report.index("Mean ±")]
    for arm in PATTERNS:
        assert re.search(f"Quality: (whether )?{arm} is [^:]*fused", claims), arm
        assert f"{arm} against fused (sparsity alone)" in report
    places = [claims.index(word) for word in ("(w32-d0-f1)", "Quality: ", "Memory (")]
    assert places == sorted(places) and claims.rindex("Quality: ") < places[2]
    assert claims.count("Primary, one of 4 such claims") == 4
    assert claims.count("(Holm, 12 tests)") == 8  # those of time and memory


def test_the_heading_says_how_much_each_named_pattern_keeps():
    _, metadata = make_experiment(2, arms=("fused", "w32-d0-f1"))
    used = {"evaluation": "flex", "kernels": ["flex_attention"], "operators": [], "density": 0.146}
    metadata["attention"] = {"w32-d0-f1": used}
    line = "attention: w32-d0-f1 flex (flex_attention), 14.6% of the causal pairs"
    assert line in heading(metadata)


def test_what_was_not_declared_is_not_called_primary():
    metrics, metadata = make_experiment(6, arms=("fused", "w96-d0"))
    metadata["plan"] |= {"family": [], "primary": []}
    report = flat(format_report(metrics, metadata))
    assert "Quality: " in report and "Not declared before the first training" in report
    assert "Primary" not in report and "Holm, " not in report
    assert "Sparsity (" not in report  # one pattern needs no name


def test_one_block_is_reported_without_any_test():
    report = format_report(*make_experiment(blocks=1))
    assert "One block: no spread, no test." in report
    assert "No speed from sparsity is shown at sequence length 1,024" in report
    figures = report.split("improvement: of")[0].replace("Mean ± standard", "")
    assert "nan" not in report.lower() and "± " not in figures.replace("Median ± median", "")


def test_trainings_that_failed_are_named_and_left_out(experiment):
    metrics, metadata = experiment
    metrics["baseline"][1] |= {"status": "out_of_memory", "message": "out of memory on cuda"}
    metrics["baseline"][1]["training_time"] = math.nan
    metadata["status"] = "partial"
    report = format_report(metrics, metadata)
    assert "baseline, block 2: out_of_memory: out of memory on cuda" in report
    assert report.startswith("Faster (partial: 12/12 trainings): ")
    kept = [0, 2, 3]
    x, ref = (column(metrics, arm, "training_time")[kept] for arm in ("window", "baseline"))
    assert f"{paired_ratio(x, ref).ratio:.4f}" in report


def test_an_arm_that_never_fits_does_not_take_the_claim_on_sparsity_with_it(experiment):
    metrics, metadata = experiment
    failed = {"status": "out_of_memory", "message": "out of memory on cuda"}
    metrics["baseline"] = [training | failed for training in metrics["baseline"]]
    text = flat(format_report(metrics, metadata))
    assert "No decomposition: it needs blocks in which baseline, window and fused" in text
    assert "Sparsity made training faster at sequence length 1,024: window took" in text
    assert "window against baseline: no block in which both ended well" in text
    without = {arm: metrics[arm] for arm in ("window", "fused")}
    assert "decomposition" not in format_report(without, metadata)
    everyone = {arm: [t | failed for t in trainings] for arm, trainings in metrics.items()}
    assert "12 trainings failed" in format_report(everyone, metadata)


@pytest.mark.parametrize("arms", [("fused",), ("w96-d4", "fused")])
def test_where_nothing_can_be_compared_nothing_is_claimed(arms):
    metrics, metadata = make_experiment(2, arms=arms)
    for training in metrics[arms[0]] * (len(arms) > 1):
        training["status"] = "diverged"
    assert "1. none: no block has two arms to compare" in format_report(metrics, metadata)


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Ratio(0.8, 0.78, 0.82, 1e-9, 10), "took 20.00 % [18.00 %, 22.00 %] less time than b (p"),
        (Ratio(1.25, 1.2, 1.3, 1e-99, 10), "took 25.00 % [20.00 %, 30.00 %] more time than b (p <"),
        (Ratio(0.995, 0.994, 0.996, 1e-9, 10), "(p 1e-09): significant, but below 1%."),
        (Ratio(0.99, 0.9, 1.1, 0.7, 10), "no difference detected, ratio 0.9900 [0.9000, 1.1000]"),
        (Ratio(0.9, note="one block: no test"), "10.00 % less time than b (one block"),
        (Ratio(1.0, n=3, note="same in every block"), "as much time as b, to 0.01 % (same in"),
    ],
)
def test_sentences_on_time(ratio, words):
    assert words in describe_change(ratio, "a", "b")


def test_every_claim_has_its_evidence_and_its_limits(experiment):
    text = format_report(*experiment)
    claims = flat(text[text.index("Claims\n") : text.index("Mean ±")])
    claims = re.split(r" \d+\. (?=[A-Z])", claims)[1:]
    assert len(claims) == 9
    limits = [re.search("This (does not show|says nothing).*", claim) for claim in claims]
    assert limits[-1]  # and what two neighbours do not show is said after the second
    for claim, limit, following in zip(claims[1:], limits[1:], limits[2:] + [None], strict=True):
        assert limit or following, claim
        assert not limit or not following or limit[0] != following[0]
        tested = re.search(r"\bp \d", claim) and re.search(r"\[[-+]?\d", claim)
        assert tested or "same in every block" in claim, claim
    assert sum("Primary" in claim for claim in claims) == 4


def with_losses(experiment, differences):
    """The validation loss of window is that of fused plus these, block by block."""
    set_beside_fused(experiment[0], "window", differences=differences)
    return experiment


def quality_of(metrics, metadata):
    text = flat(format_report(metrics, metadata))
    return re.split(r" \d+\. (?=[A-Z])|This does not", text[text.index("Quality: ") :])[0]


@pytest.mark.parametrize(
    ("center", "spread", "words", "equivalence"),
    [
        (0.0, 0.005, "window is not worse than fused by 0.02 nats", "equivalent"),
        (-0.2, 0.005, "window is not worse than fused by 0.02 nats", "different"),
        (0.2, 0.005, "window is worse than fused by more than 0.02", "different"),
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
    direction = "lower" if e.mean() < 0 else "higher"
    assert f"validation loss {abs(e.mean()):.4f} nats {direction}" in text
    is_worse = words.startswith("window is worse")
    bound = f"at least {low:+.4f}" if is_worse else f"at most {high:+.4f}"
    assert bound in text and f"[{low:+.4f}, {high:+.4f}]" in text
    p = stats.ttest_1samp(e, 0.02, alternative="greater" if is_worse else "less").pvalue
    test = "inferiority" if is_worse else "non-inferiority"
    assert f", p {p:.2g} ({test}, paired" in text
    percent = 100 * e.mean() / column(metrics, "fused", "val_loss").mean()
    assert f"({percent:+.2f} %)" in text
    assert bool(re.search(r"About \d+ blocks would decide it", text)) == ("undecided" in words)


def test_what_is_not_worse_in_the_mean_says_with_how_many_seeds_it_was():
    metrics, metadata = with_losses(make_experiment(8), [-0.1, -0.1, 0.03, *[-0.1] * 5])
    text = quality_of(metrics, metadata)
    assert "window is not worse" in text
    assert "worse by more than 0.02 nats in 1 of 8 blocks, and may be with up to 47% of" in text
    metrics, metadata = with_losses(make_experiment(8), [0.1] * 7 + [0.11])
    assert "all seeds" not in quality_of(metrics, metadata)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (0.3, "in favour of fused"),
        (-0.3, "in favour of window"),
        (0.0, "No trend of the training losses"),
    ],
)
@pytest.mark.parametrize("worse", [1, -1])
def test_a_difference_that_changes_at_the_end_is_said_so(change, words, worse):
    metrics, metadata = with_losses(
        make_experiment(6, arms=("window", "fused"), steps=200), [worse] * 6
    )
    rng, last, changes = np.random.default_rng(7), np.arange(40), []
    for training, fused in zip(metrics["window"], metrics["fused"], strict=True):
        mine = rng.normal(0, 0.1, 200) + np.r_[[0] * 160, change * last / 40]
        training["losses"] = fused["losses"] + mine.astype(np.float32)
        difference = training["losses"][160:].astype(float) - fused["losses"][160:]
        changes.append(40 * stats.linregress(last, difference).slope)
    text = quality_of(metrics, metadata)
    low, high = stats.ttest_1samp(changes, 0).confidence_interval(0.95)
    assert f"{np.mean(changes):+.4f} [{low:+.4f}, {high:+.4f}] nats over the last fifth" in text
    assert words in text


@pytest.mark.parametrize(("blocks", "steps"), [(1, 200), (6, 20)])
def test_one_block_or_few_steps_show_no_trend_either_way(blocks, steps):
    assert "last fifth" not in quality_of(*make_experiment(blocks, steps=steps))


def test_older_files_declare_no_margin_and_get_no_quality_claim(tmp_path, experiment):
    metrics, metadata = experiment
    for lacking in ("equivalence_margin", "family", "primary"):
        del metadata["plan"][lacking]
    path, _ = save_metrics(metrics, metadata, tmp_path)
    report = flat(format_report(*load_experiment(path)))
    assert "Quality:" not in report and "(Holm, 8 tests)" in report  # one ratio has no spread


def interleaved(blocks=12):
    """An experiment whose arms come in every order, and so after every other arm."""
    metrics, metadata = make_experiment(blocks)
    orders = list(itertools.permutations(metrics))
    for block in range(blocks):
        for place, arm in enumerate(orders[block % len(orders)]):
            metrics[arm][block] |= {"position": place, "index": 3 * block + place}
    return metrics, metadata


def test_position_and_drift_are_estimated():
    metrics, metadata = interleaved()
    for trainings in metrics.values():
        for training in trainings:
            training["training_time"] *= math.exp(0.05 * training["position"])
    text = flat(format_report(metrics, metadata))
    later = re.search(r"position, window against fused: one place later \+(\d\.\d+) % \[", text)
    assert float(later[1]) == pytest.approx(100 * math.expm1(0.05), abs=0.1)
    for trainings in metrics.values():
        for training in trainings:
            training["training_time"] *= math.exp(0.01 * training["index"])
    text = flat(format_report(metrics, metadata))
    drift = re.search(r"from one training to the next \+(\d\.\d+) % \[", text)
    assert float(drift[1]) == pytest.approx(1, abs=0.1)


def test_the_head_tells_the_pattern_of_the_arm_window_where_it_was_trained():
    """Other arms name theirs, and sinks are all arms'."""
    told = "pattern: window_size 96, dilation 4, sink_tokens 2, 38.5% of the causal pairs, "
    for arms, line in (
        (("fused", "window"), told),
        (("fused", "w32-d0"), "pattern: sink_tokens 2 data: "),
    ):
        metrics, metadata = make_experiment(1, arms)
        metadata["pattern"]["evaluation"] = "split" if "window" in arms else None
        metadata["config"]["sink_tokens"] = 2
        assert line in flat(format_report(metrics, metadata))
    metadata["config"]["sink_tokens"] = 0
    assert "pattern: " not in format_report(metrics, metadata)


def test_a_pattern_that_leaves_out_no_pair_says_nothing_about_sparsity():
    metrics, metadata = make_experiment(4)
    used = {"evaluation": "masked", "kernels": [], "operators": [], "density": 1.0}
    metadata["attention"]["window"] = used
    text = flat(format_report(metrics, metadata))
    assert "The pattern, which leaves out no pair here, at sequence length 1,024: window" in text
    assert "This says nothing about sparsity, for the pattern leaves out no pair here." in text

"""What was measured is written and drawn: tables.py and picture.py."""

import math

import numpy as np
from conftest import flat

from analysis.words import report_text
from attention import density
from benchmarks.picture import plot_benchmark
from benchmarks.tables import ALL_KEYS, FORWARD, TRAINING, result_sections

OPTIONS = {"tokens": None, "batch_size": 1, "heads": 2, "head_dim": 8, "dtype": "float32"}
OPTIONS |= {"patterns": ["w10-d3"]}


def picture_of(records):
    content = {"options": OPTIONS, "environment": {"device_name": "CPU"}, "records": records}
    return plot_benchmark(content)["attention_scaling"]


def results_text(records, skipped):
    return report_text(result_sections(records, skipped))


def test_a_time_that_is_missing_is_a_dash_and_its_reason_is_told():
    record = {"peer": "mine", "seq_len": 64, "attends": "all keys", "ratio_to_best_full": math.nan}
    forward = {**record, "direction": FORWARD, "median_ms": 12.0, "quartiles_ms": [11, 14]}
    forward["samples_ms"] = [12.0, 12.1]
    other = {**forward, "peer": "other", "direction": TRAINING, "ratio_to_best_full": 0.5}
    missing = {"peer": "mine", "direction": TRAINING, "reason": "out of memory"}
    skipped = [{**missing, "seq_len": seq_len} for seq_len in (64, 1024)]
    text = results_text([forward, other], skipped)
    heading, titles, mine, others, *_, last = (flat(s) for s in text.splitlines())
    assert heading == "S 64"
    assert titles == "peer attends to forward (ms) forward + backward (ms) over best full"
    assert mine == "mine all keys 12.0 ± 1.5 - -"
    assert others == "other all keys - 12.0 ± 1.5 0.50x"
    assert last == "skipped: mine at S 64 1,024, forward + backward: out of memory"


def test_one_round_has_no_spread():
    record = {"peer": "mine", "seq_len": 64, "direction": FORWARD, "median_ms": 12.0}
    record |= {"quartiles_ms": [12, 12], "samples_ms": [12]}
    assert flat(results_text([record], [])).startswith("S 64 peer forward (ms) mine 12.0 ms:")


def test_times_that_were_disturbed_are_marked_and_their_table_says_by_what():
    about = {"seq_len": 64, "median_ms": 12.0, "quartiles_ms": [11, 14], "samples_ms": [12, 12]}
    busy = {"device_before": {"other_processes": 1}, "device_after": None}
    records = [
        {**about, "peer": "mine", "direction": FORWARD, "samples_ms": [12.0, 11.0, 14.0, 15.0]},
        {**about, "peer": "other", "direction": FORWARD},
        {**about, "peer": "mine", "direction": TRAINING, **busy},
    ]
    lines = [flat(line) for line in results_text(records, []).splitlines()]
    assert lines[2:4] == ["mine 12.0 ± 1.5 ! 12.0 ± 1.5 !", "other 12.0 ± 1.5 -"]
    assert lines[4:7] == [
        f"! {FORWARD}: times spread or drift by 10% or more",
        f"! {TRAINING}: other processes were using the device",
        "",
    ]
    assert lines[-1].startswith("!: disturbed, not to be quoted")
    for r in records:
        r |= {"ratio_to_best_full": 1.0, "attends": ALL_KEYS}
    assert "DISTURBED" in picture_of(records).get_suptitle()
    assert "DISTURBED" not in picture_of(records[1:2]).get_suptitle()


def test_the_picture_has_a_line_for_each_peer_and_the_limit(measured):
    records, _ = measured
    for axis, timed in zip(picture_of(records).axes, (FORWARD, TRAINING), strict=True):
        here = {
            (r["peer"], r["seq_len"]): r["median_ms"] for r in records if r["direction"] == timed
        }
        *drawn, _ = [line.get_ydata() for line in axis.get_lines()]  # the last: full attention
        limit = [density(n, 10, 3) for n in (32, 64)]
        split, dense = (
            [here[name, n] / here["flash", n] for n in (32, 64)] for name in ("split", "dense")
        )
        np.testing.assert_allclose(drawn, [split, limit, dense, limit, [1, 1]])

"""Trainings and curves as .csv: what other programs read is what was measured."""

import csv
import math

import numpy as np
from conftest import make_experiment

from analysis.metrics import NUMBERS
from analysis.rows import training_section, write_rows


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_a_training_in_the_order_of_time(tmp_path):
    metrics, _ = make_experiment(3)
    metrics["window"][1] |= {
        "status": "diverged",
        "message": 'loss "nan",\nas said',
        "val_loss": math.nan,
    }
    rows = read(write_rows(metrics, tmp_path)[0])
    trainings = {(arm, t["block"]): t for arm, ts in metrics.items() for t in ts}
    assert len(rows) == len(trainings)
    assert [int(row["index"]) for row in rows] == sorted(int(row["index"]) for row in rows)
    for row in rows:
        training = trainings[row["arm"], int(row["block"])]
        for key in NUMBERS:
            np.testing.assert_equal(float(row[key]), float(training[key]))
        assert row["message"] == training["message"] and row["status"] == training["status"]


def test_a_row_a_step_with_the_validation_loss_where_one_was_measured(tmp_path):
    metrics, _ = make_experiment(2)
    curve = {"steps": [2, 4], "losses": [3.25, 2.5]}
    metrics["fused"][1]["curve"] = curve
    rows = read(write_rows(metrics, tmp_path)[1])
    mine = [row for row in rows if (row["arm"], row["block"]) == ("fused", "1")]
    training = metrics["fused"][1]
    assert [int(row["step"]) for row in mine] == list(range(1, len(training["losses"]) + 1))
    assert [float(row["training_loss"]) for row in mine] == training["losses"].tolist()
    assert [int(row["tokens"]) for row in mine] == training["tokens_seen"].tolist()
    np.testing.assert_allclose(
        float(mine[-1]["seconds"]), training["step_seconds"].sum(), rtol=1e-6
    )
    found = {
        int(row["step"]): float(row["validation_loss"]) for row in mine if row["validation_loss"]
    }
    assert found == {2: 3.25, 4: 2.5}


def test_the_table_of_trainings_counts_from_1_and_has_a_dash_where_nothing_was_measured():
    metrics, _ = make_experiment(2)
    metrics["window"][0] |= {"status": "diverged", "val_loss": math.nan}
    (table,) = training_section(metrics).parts
    failed = [row for row in table[1:] if row[4] == "diverged"]
    assert [(row[0], row[1], row[-1]) for row in failed] == [("1", "window", "-")]
    assert {row[2] for row in table[1:]} == {str(n + 1) for n in range(len(metrics))}

"""An experiment's trainings and their curves as rows, for spreadsheets and other programs."""

import csv
import io
import math
from pathlib import Path

import numpy as np

from analysis.metrics import NUMBERS, TEXTS
from analysis.values import OUTCOMES, in_order
from analysis.words import Section, amount
from machine.files import write_text

TRAININGS_NAME, CURVES_NAME = "trainings.csv", "curves.csv"
CURVE_COLUMNS = ("arm", "block", "step", "tokens", "seconds", "training_loss", "validation_loss")


def training_rows(metrics):
    """A dict a training, in the order of time: its arm, and what metrics.py describes of it."""
    keys = *NUMBERS, *TEXTS
    return [{"arm": arm, **{key: t[key] for key in keys}} for arm, t in in_order(metrics)]


def curve_rows(metrics):
    """A dict a step of every training, with the keys of CURVE_COLUMNS.

    The validation loss is "" where none was measured at the end of the step.
    """
    for arm, trainings in metrics.items():
        for t in trainings:
            curve = t["curve"] or {"steps": [], "losses": []}
            validation = dict(zip(curve["steps"], curve["losses"], strict=True))
            seconds = np.cumsum(t["step_seconds"], dtype=float)
            series = zip(t["tokens_seen"], seconds, t["losses"], strict=True)
            for step, values in enumerate(series, start=1):
                numbers = [value.item() for value in values]
                row = arm, t["block"], step, *numbers, validation.get(step, "")
                yield dict(zip(CURVE_COLUMNS, row, strict=True))


def write_rows(metrics, output_dir):
    """Write trainings.csv and curves.csv into ``output_dir``; returns their paths."""
    columns = {TRAININGS_NAME: ("arm", *NUMBERS, *TEXTS), CURVES_NAME: CURVE_COLUMNS}
    rows = {TRAININGS_NAME: training_rows(metrics), CURVES_NAME: curve_rows(metrics)}
    paths = []
    for name in columns:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns[name])
        writer.writeheader()
        writer.writerows(rows[name])
        paths.append(Path(output_dir) / name)
        write_text(paths[-1], text.getvalue())
    return paths


def training_section(metrics):
    """Every training in a line, in the order of time."""
    table = [["block", "arm", "place", "seed", "status", *(f"{n} ({u})" for _, n, u in OUTCOMES)]]
    for row in training_rows(metrics):
        place = str(row["position"] + 1)
        cells = [str(row["block"] + 1), row["arm"], place, str(row["seed"]), row["status"]]
        measured = [
            amount(None if math.isnan(row[key]) else row[key], unit) for key, _, unit in OUTCOMES
        ]
        table.append([*cells, *measured])
    return Section("Every training", [table])

"""Prints the report of saved metrics again; also reads, writes and sums up metrics for programs.

python metrics_utils.py [output/experiment_results.json]     needs no torch
"""

import argparse
import json
import re
import sys
from pathlib import Path

from analysis.metrics import (
    RESULTS_NAME,
    MetricsError,
    fitting,
    load_experiment,
    load_metrics,
    save_metrics,
)
from analysis.values import print_metrics_summary
from analysis.words import report_text
from machine.command import DefaultsInHelp, UserError, run_command
from machine.files import read_file, write_text

__all__ = ["load_experiment", "load_metrics", "main", "print_metrics_summary", "save_metrics"]

# what a .json holds, by its first key
KINDS = {b"study": "study", b"options": "benchmark", b"weights": "conversion"}


def saved_kind(path):
    """What a result file holds: a value of KINDS, or "experiment"."""
    if Path(path).suffix != ".json":
        return "experiment"
    content = read_file(path, MetricsError, "python main.py writes one")
    first = re.match(rb'\s*{\s*"(\w+)"', content)  # the whole is parsed once, by its own reader
    return KINDS.get(first and first[1], "experiment")


def page_of(path):
    """What a result file says, whatever its kind, as a Page."""
    # these import matplotlib, for which --help does not wait
    from benchmarks.picture import benchmark_page
    from figures.all import experiment_page
    from studies.conversion import conversion_page
    from studies.pictures import study_page

    kind = saved_kind(path)
    if kind == "experiment":
        return experiment_page(*load_experiment(path))
    make = {"study": study_page, "benchmark": benchmark_page, "conversion": conversion_page}[kind]
    return make(json.loads(Path(path).read_bytes()))


def print_report(arguments):
    """Load a result file, print what it says, and write it in the forms that are asked for."""
    if arguments.tensorboard:
        write_logs(arguments.results, arguments.tensorboard)
    with fitting(arguments.results):
        page = page_of(arguments.results)
        if arguments.html:
            from figures.page import html

            write_text(arguments.html, html(page, page.draw()))
        text = report_text(page.sections)
    print(text)


def write_logs(path, folder):
    """An experiment's file as logs of TensorBoard; UserError for another kind of file."""
    from experiment.tensorboard import check_tensorboard, write_tensorboard  # needs torch

    if saved_kind(path) != "experiment":
        raise UserError(f"{path}: --tensorboard takes an experiment's file")
    check_tensorboard()
    write_tensorboard(*load_experiment(path), folder)


def main(argv=None):
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="metrics_utils.py",
        description="Print the report of a saved experiment again, or the tables of a study, a "
        "benchmark or a conversion.",
        epilog="example: python metrics_utils.py results/h100_paper_10_runs.npz",
        formatter_class=DefaultsInHelp,
    )
    default = f"output/{RESULTS_NAME}.json"
    parser.add_argument("results", nargs="?", default=default, help="saved metrics, .json or .npz")
    parser.add_argument("--html", metavar="FILE", help="also write it as one page, with figures")
    logs = "write an experiment's losses as logs of TensorBoard too; needs torch and tensorboard"
    parser.add_argument("--tensorboard", metavar="DIR", help=logs)
    return run_command(parser, print_report, argv)


if __name__ == "__main__":
    sys.exit(main())

"""The report of saved metrics (analysis/metrics.py) again, and how to read, write and sum them up.

python metrics_utils.py [output/experiment_results.json]     needs no torch
"""

import argparse
import sys

from analysis.metrics import RESULTS_NAME, fitting, load_experiment, load_metrics, save_metrics
from analysis.report import format_report
from analysis.values import print_metrics_summary
from machine.command import run_command

__all__ = ["load_experiment", "load_metrics", "main", "print_metrics_summary", "save_metrics"]


def print_report(arguments):
    """Load a saved experiment and print its report."""
    with fitting(arguments.results):
        report = format_report(*load_experiment(arguments.results))
    print(report)


def main(argv=None):
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="metrics_utils.py",
        description="Print the report of a saved experiment again.",
        epilog="example: python metrics_utils.py results/h100_paper_10_runs.npz",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = f"output/{RESULTS_NAME}.json"
    parser.add_argument("results", nargs="?", default=default, help="saved metrics, .json or .npz")
    return run_command(parser, print_report, argv)


if __name__ == "__main__":
    sys.exit(main())

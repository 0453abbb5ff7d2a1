"""Saved metrics: reading, writing and summarising them.  Needs no torch.

    python metrics_utils.py [output/experiment_results.json]     prints the report again

An experiment is two files with the same content: ``experiment_results.npz`` (numbers for programs,
loads with ``allow_pickle=False``) and ``experiment_results.json`` (for people and other languages).

In memory the metrics are ``{arm: [run, run, ...]}``, one dict a run with the keys of ``NUMBERS``,
``TEXTS``, ``RECORDS`` and ``SERIES`` below, and the metadata (configuration, plan, code, versions,
device, data) is one JSON-like dict.  In the npz each number is an array over runs,
``<arm>_<name>`` (R,); each series is ``<arm>_<name>`` (R, steps), padded at the end where a run
stopped early; ``metadata`` holds the rest as the bytes of a JSON text.
"""

import argparse
import sys

from analysis.metrics import RESULTS_NAME, fitting, load_experiment
from analysis.report import format_report
from machine.command import add_debug, run_command


def build_parser():
    """The command line, with every default in its help."""
    parser = argparse.ArgumentParser(
        prog="metrics_utils.py",
        description="Print the report of a saved experiment again.",
        epilog="example: python metrics_utils.py results/h100_paper_10_runs.npz",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    results = f"output/{RESULTS_NAME}.json"
    parser.add_argument("results", nargs="?", default=results, help="saved metrics, .json or .npz")
    add_debug(parser)
    return parser


def print_report(arguments):
    """Load a saved experiment and print its report."""
    with fitting(arguments.results):
        report = format_report(*load_experiment(arguments.results))
    print(report)


def main(argv=None):
    """The command line; returns the exit code."""
    return run_command(build_parser(), print_report, argv)


if __name__ == "__main__":
    sys.exit(main())

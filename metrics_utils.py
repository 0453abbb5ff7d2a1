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
import os
import sys

from analysis.metrics import RESULTS_NAME, MetricsError, fitting, load_experiment
from analysis.report import format_report


def main(argv=None):
    """Print the report of a saved experiment; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="metrics_utils.py",
        description="Print the report of a saved experiment again.",
        epilog="example: python metrics_utils.py results/h100_paper_10_runs.npz",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    results = f"output/{RESULTS_NAME}.json"
    parser.add_argument("results", nargs="?", default=results, help="saved metrics, .json or .npz")
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without ± gets a ? and not a traceback
            stream.reconfigure(errors="replace")
    try:
        with fitting(args.results):
            report = format_report(*load_experiment(args.results))
    except MetricsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        print(report, flush=True)
    except BrokenPipeError:  # as of `| head`: what was read is all that was wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: the report could not be written ({error.strerror})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Eleven figures of a saved experiment, each as .png (300 dpi) and .pdf.  Needs no torch.

    python create_model_plots.py [output/experiment_results.npz [plots/]]

Everything is drawn from that one file; equal data give equal bytes.  Figures are made without
pyplot: nothing stays open, and no backend or style of a notebook changes.
"""

import argparse
import sys

from analysis.metrics import fitting, load_experiment
from figures.all import create_all_plots
from machine.command import checked_options, run_command


def draw(arguments):
    """Load a saved experiment, draw its figures and list the files."""
    with checked_options(), fitting(arguments.results):
        paths = create_all_plots(*load_experiment(arguments.results), arguments.plots_dir)
    print(*paths, sep="\n")


def main(argv=None):
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Draw the eleven figures of a saved experiment, each as .png and .pdf.",
        epilog="example: python create_model_plots.py output/experiment_results.npz plots/",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    results = "output/experiment_results.npz"
    parser.add_argument("results", nargs="?", default=results, help="saved metrics")
    parser.add_argument("plots_dir", nargs="?", default="plots/", help="folder for the figures")
    return run_command(parser, draw, argv, kept=": the figures finished so far are written")


if __name__ == "__main__":
    sys.exit(main())

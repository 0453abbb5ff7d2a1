"""The figures of a saved experiment, each as .png (300 dpi) and .pdf.  Needs no torch.

    python create_model_plots.py [output/experiment_results.npz [plots/]]

Everything is drawn from that one file; equal data give equal bytes.  Figures are made without
pyplot: nothing stays open, and no backend or style of a notebook changes.
"""

import argparse
import json
import sys
from pathlib import Path

from analysis.metrics import fitting, load_experiment
from benchmarks.picture import plot_benchmark
from figures.all import create_all_plots
from figures.look import save_figures
from machine.command import UserError, checked_options, run_command
from metrics_utils import saved_kind
from studies.pictures import plot_study
from studies.saved import read_study


def create_plots(path, plots_dir):
    """Draw the figures of a result file; returns the paths written."""
    kind = saved_kind(path)
    if kind == "experiment":
        return create_all_plots(*load_experiment(path), plots_dir)
    if kind == "study":
        return save_figures(plot_study(read_study(path)), plots_dir)
    figures = plot_benchmark(json.loads(Path(path).read_bytes()))
    if not figures:
        raise UserError(f"{path}: steps have no figure: python metrics_utils.py {path} prints them")
    return save_figures(figures, plots_dir)


def draw(arguments):
    """Draw the figures of a result file and list the files."""
    with checked_options(), fitting(arguments.results):
        paths = create_plots(arguments.results, arguments.plots_dir)
    print(*paths, sep="\n")


def main(argv=None):
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Draw the figures of a saved experiment, or of a study or a benchmark, each as "
        ".png and .pdf.",
        epilog="example: python create_model_plots.py output/experiment_results.npz plots/",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    results = "output/experiment_results.npz"
    parser.add_argument("results", nargs="?", default=results, help="saved metrics")
    parser.add_argument("plots_dir", nargs="?", default="plots/", help="folder for the figures")
    return run_command(parser, draw, argv, kept=": the figures finished so far are written")


if __name__ == "__main__":
    sys.exit(main())

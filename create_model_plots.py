"""The figures of a saved experiment, each as .png (300 dpi) and .pdf.  Needs no torch.

    python create_model_plots.py [output/experiment_results.npz [plots/]]

Everything is drawn from that one file; equal data give equal bytes.  Figures are made without
pyplot: nothing stays open, and no backend or style of a notebook changes.
"""

import argparse
import sys

from analysis.metrics import fitting
from machine.command import UserError, checked_options, run_command
from metrics_utils import page_of


def create_plots(path, plots_dir):
    """Draw the figures of a result file; returns the paths written."""
    from figures.page import save_drawn  # matplotlib, for which --help does not wait

    page = page_of(path)
    figures = page.draw()
    if not figures:
        raise UserError(f"{path}: steps have no figure: python metrics_utils.py {path} prints them")
    return save_drawn(page, figures, plots_dir)


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

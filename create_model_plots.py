"""The figures of a saved experiment, each as .png (300 dpi) and .pdf.  Needs no torch.

    python create_model_plots.py [output/experiment_results.npz [plots/]] [--only 4 9]

Everything is drawn from that one file; equal data give equal bytes.  Figures are made without
pyplot: nothing stays open, and no backend or style of a notebook changes.
"""

import argparse
import sys

from analysis.metrics import fitting
from machine.command import DefaultsInHelp, UserError, run_command
from metrics_utils import page_of


def draw(arguments):
    """Draw the figures of a result file, all or those asked for, and list the files."""
    # these import matplotlib, for which --help does not wait
    from figures.look import save_figures
    from figures.page import figure_named

    path = arguments.results
    with fitting(path):
        page = page_of(path)
        figures, known = page.draw(), page.known
        if not figures:
            remedy = f"python metrics_utils.py {path} prints them"
            raise UserError(f"{path}: steps have no figure: {remedy}")
        if arguments.only:  # the files of others stay
            names = [figure_named(text, figures) for text in arguments.only]
            figures, known = {name: figures[name] for name in names}, ()
        paths = save_figures(figures, arguments.plots_dir, known)
    print(*paths, sep="\n")


def main(argv=None):
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Draw the figures of a saved experiment, a study, a benchmark or a conversion, "
        "each as .png and .pdf.",
        epilog="example: python create_model_plots.py output/experiment_results.npz plots/",
        formatter_class=DefaultsInHelp,
    )
    results = "output/experiment_results.npz"
    parser.add_argument("results", nargs="?", default=results, help="saved metrics")
    parser.add_argument("plots_dir", nargs="?", default="plots/", help="folder for the figures")
    text = "draw these alone, by number or name (4 9_summary); files of other figures stay"
    parser.add_argument("--only", nargs="+", metavar="FIGURE", help=text)
    return run_command(parser, draw, argv, kept=": the figures finished so far are written")


if __name__ == "__main__":
    sys.exit(main())

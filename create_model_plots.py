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


def create_plots(path, plots_dir, only=None):
    """Draw the figures of a result file; returns the paths written.

    only: their numbers or names, where it is not all of them; the others' files stay.
    """
    # matplotlib, for which --help does not wait
    from figures.look import save_figures
    from figures.page import figure_named

    page = page_of(path)
    figures = page.draw()
    if not figures:
        raise UserError(f"{path}: steps have no figure: python metrics_utils.py {path} prints them")
    if only is None:
        return save_figures(figures, plots_dir, page.known)
    names = [figure_named(text, figures) for text in only]
    return save_figures({name: figures[name] for name in names}, plots_dir)


def draw(arguments):
    """Draw the figures of a result file and list the files."""
    with fitting(arguments.results):
        paths = create_plots(arguments.results, arguments.plots_dir, arguments.only)
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
    text = "these alone, by number or name, as 4 9_summary; the files of others stay"
    parser.add_argument("--only", nargs="+", metavar="FIGURE", help=text)
    return run_command(parser, draw, argv, kept=": the figures finished so far are written")


if __name__ == "__main__":
    sys.exit(main())

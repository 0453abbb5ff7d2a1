"""The experiment: every arm trained in every block, in balanced random order, and the report.

A block trains each arm once, from the same seed, adjacent in time, so that arms can be compared
pair by pair.  Every finished training is on the disk before the next begins, and the same command
goes on where a stop left off.  ``python main.py`` runs it from the command line;
``run`` from a notebook.  What takes seconds to import is imported where it is used: --help does
not wait for it.
"""

import argparse
import sys
from typing import NamedTuple

from analysis.metrics import RESULTS_NAME, load_experiment
from analysis.report import format_report
from analysis.rows import training_rows
from machine.command import GOES_ON
from machine.start import run_on_ranks
from studies.options import build_parser


class Result(NamedTuple):
    """An experiment's results in a notebook, which shows them as the report."""

    metrics: dict
    metadata: dict

    @property
    def report(self):
        """The report as text."""
        return format_report(*self)

    def __repr__(self):
        return self.report

    def table(self):
        """A pandas.DataFrame with a row a training, in the order of time."""
        import pandas as pd

        return pd.DataFrame(training_rows(self.metrics))

    def figure(self, which):
        """The matplotlib Figure of a number or name, 9 or "summary"; UserError lists them."""
        from figures.all import draw_all
        from figures.page import figure_named

        figures = draw_all(*self)
        return figures[figure_named(str(which), figures)]


def load(path=f"output/{RESULTS_NAME}.npz"):
    """The ``Result`` of a saved experiment, .npz or .json; MetricsError for what is none."""
    return Result(*load_experiment(path))


def run(preset=None, restart=False, allow_mixed=False, **options):
    """Train as ``python main.py`` does, and return a ``Result``.

    Prepares a preset's data that are missing, and goes on after a stop.  preset: as --preset of the
    command, so None chooses by the device; options: fields of ExperimentConfig, which override it.
    Writes ``output_dir``, but not the report and the figures.  Raises ValueError for options that
    cannot be run; for the folder of another experiment it is a UserError.
    """
    from experiment.run import run_experiment
    from studies.command import config_from, ensure_data

    config = config_from(argparse.Namespace(preset=preset, study=None, **options))
    ensure_data(config.data)
    return Result(*run_experiment(config, restart=restart, allow_mixed=allow_mixed))


def main(argv=None):
    """The command line of the experiment; returns the exit code (see --help)."""
    argv = sys.argv[1:] if argv is None else argv

    def story(arguments):
        from studies.command import tell

        return tell(arguments, argv)

    return run_on_ranks(build_parser(), story, argv, kept=f": {GOES_ON}")


if __name__ == "__main__":
    sys.exit(main())

"""Ten figures of a saved experiment, each as .png (300 dpi) and .pdf.  Needs no torch.

    python create_model_plots.py [output/experiment_results.npz [plots/]]

Everything is drawn from that one file.  ``prepare`` sorts the runs once; every figure is then a
function of the prepared ``Experiment`` that returns a matplotlib Figure, and the caller saves it:

    fig = training_curves(prepare(*load_experiment("output/experiment_results.npz")))

Figures are made without pyplot: nothing stays open, and no backend or style of a notebook changes.
The statistics are those of significance.py; equal data give equal bytes.
"""

import argparse
import sys

from analysis.metrics import MetricsError, fitting, load_experiment
from figures.all import create_all_plots


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description="Draw ten figures of a saved experiment, each as .png and .pdf.",
        epilog="example: python create_model_plots.py output/experiment_results.npz plots/",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    results = "output/experiment_results.npz"
    parser.add_argument("results", nargs="?", default=results, help="saved metrics")
    parser.add_argument("plots_dir", nargs="?", default="plots/", help="folder for the figures")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    try:
        with fitting(args.results):
            paths = create_all_plots(*load_experiment(args.results), args.plots_dir)
    except MetricsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the figures finished so far are written", file=sys.stderr)
        return 130
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

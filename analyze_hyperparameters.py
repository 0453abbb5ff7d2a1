"""What a window_size and a dilation keep, and what that could save: exact counts, no model built.

``python analyze_hyperparameters.py`` compares eight configurations at 256 tokens;
``python analyze_hyperparameters.py 64 8 512`` analyses one (window_size dilation [seq_len]).
Pairs are counted in closed form, so any length is instant.  Speed-ups are estimates from those
counts; ``python main.py`` measures.

Letters: S sequence length, C d_model, L layers, V vocabulary, w window_size, d dilation,
N sink_tokens.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from analysis.metrics import MetricsError, fitting
from analysis.values import pattern_of_arm
from estimates.pattern import CONFIGURATIONS, D_MODEL, LAYERS, SEQ_LEN, VOCAB_SIZE, analyze_pattern
from estimates.pictures import plot_comparison, plot_configuration
from estimates.report import format_report
from estimates.tradeoff import plot_tradeoff
from figures.look import save_figure
from machine.command import UserError, add_debug, checked_options, run_command
from machine.files import atomic_write
from studies.summary import load_study

DEFAULT_STUDY = Path("output/pattern_study.json")
EXAMPLE = "python analyze_hyperparameters.py 96 4 512"
DESCRIPTION = f"""\
What a sliding window + dilated pattern keeps of full causal attention, and the speed-up that
FLOP counts suggest (an estimate; `python main.py` measures).  Without arguments it compares
{" ".join(f"({w},{d})" for w, d in CONFIGURATIONS)}."""
EPILOG = f"""\
examples:
  python analyze_hyperparameters.py                  compare the eight configurations
  python analyze_hyperparameters.py --seq-len 4096   the same at another length
  python analyze_hyperparameters.py 96 4             one configuration
  {EXAMPLE}         one configuration at 512 tokens
  python analyze_hyperparameters.py --measured       measured patterns, and what to choose

dilation 0 means no far keys (a pure sliding window), dilation 1 is full causal attention.
Writes hyperparameter_analysis.txt and, as png and pdf, hyperparameter_comparison and
sparsity_speedup_tradeoff, or for one configuration config_wW_dD (config_wW_dD_nN with sinks) as
txt, png and pdf.
exit code: 0 done, 1 a file could not be written, 2 a wrong argument"""


def build_parser():
    """The command line, with every default in its help."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    number = partial(parser.add_argument, type=int)
    number("window_size", nargs="?", help="previous tokens that are all attended to, at least 1")
    number("dilation", nargs="?", help="beyond them every dilation-th token, at least 0")
    number("seq_len", nargs="?", help=f"sequence length in tokens (default: {SEQ_LEN})")
    number("--seq-len", dest="length", metavar="S", help="the same, also for the comparison")
    number("--sink-tokens", metavar="N", default=0, help="first tokens seen by all (default: 0)")
    number("--d-model", metavar="C", default=D_MODEL, help="model width (default: %(default)s)")
    number("--layers", metavar="L", default=LAYERS, help="layers (default: %(default)s)")
    number("--vocab-size", metavar="V", default=VOCAB_SIZE, help="vocabulary (default: 10000)")
    folder = partial(parser.add_argument, type=Path)
    measured = (
        "the patterns, length and model of a study (compare_models.py --study patterns), with "
        f"what it measured (FILE: {DEFAULT_STUDY})"
    )
    folder("--measured", nargs="?", const=DEFAULT_STUDY, metavar="FILE", help=measured)
    folder("--output-dir", default=Path("output"), help="report (default: %(default)s)")
    folder("--plots-dir", default=Path("plots"), help="pictures (default: %(default)s)")
    add_debug(parser)
    return parser


def asked_analyses(arguments):
    """The analyses of the given configuration, or of all of them; UserError names what is off."""
    pattern, seq_len = (arguments.window_size, arguments.dilation), arguments.seq_len
    if pattern[0] is not None and pattern[1] is None:
        raise UserError(f"window_size {pattern[0]} needs a dilation too; example: {EXAMPLE}")
    if seq_len is None:
        seq_len = arguments.length
    elif arguments.length not in (None, seq_len):
        raise UserError(f"seq_len is {seq_len} and --seq-len {arguments.length}: give one of them")
    if seq_len is None:
        seq_len = SEQ_LEN
    model = (seq_len, arguments.d_model, arguments.layers, arguments.vocab_size)
    chosen = CONFIGURATIONS if pattern[0] is None else [pattern]
    with checked_options():
        return [analyze_pattern(*one, *model, arguments.sink_tokens) for one in chosen]


def measured_analyses(arguments):
    """A study's content and the analyses of its patterns; UserError names what is off."""
    path = arguments.measured
    if arguments.window_size is not None or arguments.length is not None:
        raise UserError("--measured takes patterns and length from the study: give neither")
    with fitting(path):
        content = load_study(path)
        if content["study"] != "patterns":
            raise MetricsError(f"{path}: is no study of patterns")
        config = content["config"]
        sizes = config["seq_len"], config["d_model"], config["layers"]
        vocab_size, sinks = content["data"]["vocab_size"], config.get("sink_tokens", 0)
        arms = dict.fromkeys(arm for point in content["points"] for arm in point["arms"])
        patterns = [pattern_of_arm(arm) for arm in arms if pattern_of_arm(arm)]
        return content, [analyze_pattern(*p, *sizes, vocab_size, sinks) for p in patterns]


def figures_of(analyses, content):
    """{file name without suffix: function that draws it}."""
    if len(analyses) > 1 or content is not None:
        return {
            "hyperparameter_comparison": lambda: plot_comparison(analyses),
            "sparsity_speedup_tradeoff": lambda: plot_tradeoff(analyses, content),
        }
    a = analyses[0]
    sinks = f"_n{a.sink_tokens}" if a.sink_tokens else ""
    return {f"config_w{a.window_size}_d{a.dilation}{sinks}": lambda: plot_configuration(a)}


def analyze(arguments):
    """Print the report, write it and the figures, and list the files."""
    content = None
    if arguments.measured is None:
        analyses = asked_analyses(arguments)
    else:
        content, analyses = measured_analyses(arguments)
    report, figures = format_report(analyses, content), figures_of(analyses, content)
    print(report)
    name = next(iter(figures)) if len(figures) == 1 else "hyperparameter_analysis"
    path = arguments.output_dir / f"{name}.txt"
    atomic_write(path, lambda file: file.write(report.encode()))
    print(f"wrote {path}")
    for name, draw in figures.items():
        for path in save_figure(draw(), arguments.plots_dir, name):
            print(f"wrote {path}")


def main(argv=None):
    """The command line; returns the exit code."""
    kept = ": the files listed are written"
    return run_command(build_parser(), analyze, argv, lambda arguments: kept)


if __name__ == "__main__":
    sys.exit(main())

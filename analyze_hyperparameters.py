"""What a window_size and a dilation keep, and what that could save: exact counts, no model built.

Pairs are counted in closed form, so any length is instant.  Speed-ups are estimates from those
counts; `python main.py` measures.  Without arguments eight configurations are compared.

Letters: S sequence length, C d_model, L layers, V vocabulary, w window_size, d dilation,
N sink_tokens.
"""

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from analysis.metrics import MetricsError, fitting
from analysis.values import pattern_of_arm
from machine.command import DefaultsInHelp, UserError, checked_options, run_command
from machine.files import write_text
from training.arms import pattern_options
from training.tokens import DEFAULT_SEQ_LEN

DEFAULT_STUDY = Path("output/pattern_study.json")
# what is known of patterns: a study's .json, or an experiment's .npz
KNOWN = Path(__file__).resolve().parent / "results" / "h200_long.npz"
MODEL = "d_model", "layers", "vocab_size", "n_heads", "sink_tokens"  # options that describe it
EXAMPLE = "python analyze_hyperparameters.py 96 4 512"
EPILOG = f"""\
examples:
  python analyze_hyperparameters.py                  compare the eight configurations
  python analyze_hyperparameters.py --seq-len 4096   the same at another length
  {EXAMPLE}         one configuration at 512 tokens
  python analyze_hyperparameters.py --arms w96-d4-s w96-d0-f1 w96-d0-e4 --n-heads 8
  python analyze_hyperparameters.py --measured       measured patterns, and what to choose

exit code: 0 done, 1 a file could not be written, 2 a wrong argument"""


class Help(DefaultsInHelp, argparse.RawDescriptionHelpFormatter):
    """Every default in the help, and the examples line by line."""


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=Help)
    number = partial(parser.add_argument, type=int)
    number("window_size", nargs="?", help="previous tokens that are all attended to; 0: none")
    number("dilation", nargs="?", help="beyond them every dilation-th token; 0: none, 1: all")
    number("seq_len", nargs="?", help="sequence length in tokens (default: 256)")
    number("--seq-len", dest="length", metavar="S", help="the same, for a comparison too")
    number("--sink-tokens", metavar="N", default=0, help="first tokens seen by all")
    number("--d-model", metavar="C", default=512, help="model width")
    number("--layers", metavar="L", default=8, help="layers")
    number("--n-heads", metavar="H", default=16, help="heads of a layer")
    text = "patterns by their names: w96-d4-s, w96-d0-f1"
    parser.add_argument("--arms", nargs="+", metavar="ARM", help=text)
    number("--vocab-size", metavar="V", default=10_000, help="vocabulary")
    folder = partial(parser.add_argument, type=Path)
    measured = (
        "the patterns, length and model of a study (compare_models.py --study patterns), with "
        f"what it measured (FILE: {DEFAULT_STUDY})"
    )
    folder("--measured", nargs="?", const=DEFAULT_STUDY, metavar="FILE", help=measured)
    folder("--output-dir", default=Path("output"), help="report")
    folder("--plots-dir", default=Path("plots"), help="pictures")
    return parser


def asked_analyses(arguments):
    """The analyses of what is asked for, or of CONFIGURATIONS; UserError names what is wrong."""
    from estimates.pattern import CONFIGURATIONS, PatternAnalysis  # --help need not wait for torch

    window_size, dilation = arguments.window_size, arguments.dilation
    if window_size is not None and dilation is None:
        raise UserError(f"window_size {window_size} needs a dilation too; example: {EXAMPLE}")
    lengths = {arguments.seq_len, arguments.length} - {None}
    if len(lengths) > 1:
        raise UserError(f"seq_len is given twice, as {lengths}: give one of the two")
    model = {name: getattr(arguments, name) for name in MODEL}
    model["seq_len"] = max(lengths, default=DEFAULT_SEQ_LEN)
    with checked_options():
        if arguments.arms:
            if window_size is not None:
                raise ValueError("--arms names whole patterns: give no other")
            return analyses_of_arms(arguments.arms, model)
        patterns = CONFIGURATIONS if window_size is None else [(window_size, dilation)]
        return [PatternAnalysis(*pattern, **model) for pattern in patterns]


def analyses_of_arms(arms, model):
    """The analyses of patterns by their names; ValueError for a text that names none."""
    from estimates.pattern import PatternAnalysis

    for arm in arms:
        if pattern_of_arm(arm) is None:
            raise ValueError(f"--arms {arm}: give names as w96-d4, w96-d4-s, w96-d0-f1, w96-d0-e4")
    return [PatternAnalysis(**model | pattern_options(model, arm)) for arm in arms]


def measured_analyses(arguments):
    """A study's content and the analyses of its patterns; UserError names what is wrong."""
    from studies.summary import load_study

    path = arguments.measured
    default = build_parser().get_default
    asked = ("window_size", "length", "arms", *MODEL)
    if any(getattr(arguments, name) != default(name) for name in asked):
        words = "takes patterns, length and model from the study"
        raise UserError(f"--measured {words}: give none of them, or leave it out")
    with fitting(path):
        content = load_study(path)
        if content["study"] != "patterns":
            raise MetricsError(f"{path}: is no study of patterns")
        config = content["config"]
        model = {name: config[name] for name in ("seq_len", "d_model", "layers", "n_heads")}
        model["vocab_size"] = content["data"]["vocab_size"]
        model["sink_tokens"] = config.get("sink_tokens", 0)
        arms = dict.fromkeys(arm for point in content["points"] for arm in point["arms"])
        return content, analyses_of_arms([arm for arm in arms if pattern_of_arm(arm)], model)


def analyze(arguments):
    """Write the report and the figures, print the report and list the files."""
    from estimates.pictures import plot_comparison, plot_configuration, plot_tradeoff
    from estimates.report import format_report, known_text
    from figures.look import save_figures
    from studies.summary import load_study

    content, checked = None, nullcontext()
    if arguments.measured is None:
        analyses = asked_analyses(arguments)
    else:
        content, analyses = measured_analyses(arguments)
        checked = fitting(arguments.measured)
    arms = arguments.arms or [f"w{a.window_size}-d{a.dilation}" for a in analyses]
    which = "" if analyses[0].seq_len == DEFAULT_SEQ_LEN else f"_len{analyses[0].seq_len}"
    with checked:
        report = format_report(analyses, content)
        if len(analyses) > 1 or content is not None:
            which += "_measured" * (content is not None)
            name = f"hyperparameter_analysis{which}"
            figures = {
                f"hyperparameter_comparison{which}": plot_comparison(analyses),
                f"sparsity_speedup_tradeoff{which}": plot_tradeoff(analyses, content),
            }
        else:
            sinks = f"_n{arguments.sink_tokens}" if arguments.sink_tokens else ""
            name = f"config_{arms[0].replace('-', '_')}{sinks}{which}"
            figures = {name: plot_configuration(analyses[0])}
    if content is None:
        named = [] if arguments.sink_tokens else arms  # names of patterns have no sinks
        with fitting(KNOWN):
            report += "\n" + known_text(load_study(KNOWN), f"results/{KNOWN.name}", named)
    path = arguments.output_dir / f"{name}.txt"
    write_text(path, report)
    paths = [path, *save_figures(figures, arguments.plots_dir)]
    print(report)
    for written in paths:
        print(f"wrote {written}")


def main(argv=None):
    """The command line; returns the exit code."""
    return run_command(build_parser(), analyze, argv, kept=": the finished files are written")


if __name__ == "__main__":
    sys.exit(main())

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
from estimates.pictures import plot_comparison, plot_configuration, plot_style
from estimates.report import format_report
from estimates.tradeoff import plot_tradeoff
from machine.files import atomic_write
from studies.summary import load_study

DEFAULT_STUDY = Path("output/pattern_study.json")
# --- the command line --------------------------------------------------------------------------
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


def _whole(text):
    try:
        return int(text)
    except ValueError:
        message = f"must be a whole number, got {text!r}; example: {EXAMPLE}"
        raise argparse.ArgumentTypeError(message) from None


def build_parser():
    """The command line, with every default in its help."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    add = partial(parser.add_argument, type=_whole)
    add("window_size", nargs="?", help="previous tokens that are all attended to, at least 1")
    add("dilation", nargs="?", help="beyond them every dilation-th token, at least 0")
    add("seq_len", nargs="?", help=f"sequence length in tokens (default: {SEQ_LEN})")
    add("--seq-len", dest="length", metavar="S", help="the same, also for the comparison")
    add("--sink-tokens", metavar="N", default=0, help="first tokens seen by all (default: 0)")
    add("--d-model", metavar="C", default=D_MODEL, help="model width (default: %(default)s)")
    add("--layers", metavar="L", default=LAYERS, help="layers (default: %(default)s)")
    add("--vocab-size", metavar="V", default=VOCAB_SIZE, help="vocabulary (default: %(default)s)")
    add(
        "--measured",
        nargs="?",
        const=DEFAULT_STUDY,
        type=Path,
        metavar="FILE",
        help="the patterns, length and model of a study (compare_models.py --study patterns), with "
        f"what it measured (FILE: {DEFAULT_STUDY})",
    )
    add("--output-dir", type=Path, default=Path("output"), help="report (default: %(default)s)")
    add("--plots-dir", type=Path, default=Path("plots"), help="pictures (default: %(default)s)")
    return parser


def _measured_analyses(parser, args):
    """A study's content and the analyses of its patterns, or a usage error."""
    if args.window_size is not None or args.length is not None:
        parser.error("--measured takes patterns and length from the study: give neither")
    try:
        with fitting(args.measured):
            content = load_study(args.measured)
            if content["study"] != "patterns":
                raise MetricsError(f"{args.measured}: is no study of patterns")
            config = content["config"]
            sizes = config["seq_len"], config["d_model"], config["layers"]
            arms = [arm for point in content["points"] for arm in point["arms"]]
            patterns = dict.fromkeys(p for arm in arms if (p := pattern_of_arm(arm)))
            vocab_size = content["data"]["vocab_size"]
            sinks = config.get("sink_tokens", 0)
            return content, [analyze_pattern(*p, *sizes, vocab_size, sinks) for p in patterns]
    except MetricsError as error:
        parser.error(str(error))


def _analyses(parser, args):
    """The analyses the arguments ask for; a usage error where they make no sense."""
    if args.window_size is not None and args.dilation is None:
        parser.error(f"window_size {args.window_size} needs a dilation too; example: {EXAMPLE}")
    lengths = {args.seq_len, args.length} - {None} or {SEQ_LEN}
    if len(lengths) > 1:
        parser.error(f"seq_len is {args.seq_len} and --seq-len {args.length}: give one of the two")
    chosen = CONFIGURATIONS if args.window_size is None else [(args.window_size, args.dilation)]
    model = (*lengths, args.d_model, args.layers, args.vocab_size)
    try:
        return [analyze_pattern(w, d, *model, args.sink_tokens) for w, d in chosen]
    except ValueError as error:
        parser.error(f"{error}; example: {EXAMPLE}")


def save_figure(figure, path):
    """Write a figure at 300 dpi in the format of the path's suffix; equal figures, equal bytes."""
    options = {"format": path.suffix[1:], "dpi": 300}
    if path.suffix == ".pdf":
        options["metadata"] = {"CreationDate": None}
    with plot_style():
        atomic_write(path, lambda file: figure.savefig(file, **options))


def _writers(analyses, content, report, output_dir, plots_dir):
    """Each path to write, with the function that writes it."""
    a, several = analyses[0], len(analyses) > 1 or content is not None
    sinks = f"_n{a.sink_tokens}" if a.sink_tokens else ""
    name = f"config_w{a.window_size}_d{a.dilation}{sinks}"
    path = output_dir / f"{'hyperparameter_analysis' if several else name}.txt"
    yield path, partial(atomic_write, path, lambda file: file.write(report.encode()))
    figures = {name: lambda: plot_configuration(a)}
    if several:
        figures = {
            "hyperparameter_comparison": lambda: plot_comparison(analyses),
            "sparsity_speedup_tradeoff": lambda: plot_tradeoff(analyses, content),
        }
    for name, plot in figures.items():
        figure = plot()
        for path in (plots_dir / f"{name}.png", plots_dir / f"{name}.pdf"):
            yield path, partial(save_figure, figure, path)


def main(argv=None):
    """Report, write and list the files; returns the exit code.  Wrong usage: SystemExit(2)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    content = None
    if args.measured is None:
        analyses = _analyses(parser, args)
    else:
        content, analyses = _measured_analyses(parser, args)
    report = format_report(analyses, content)
    print(report)
    for path, write in _writers(analyses, content, report, args.output_dir, args.plots_dir):
        try:
            write()
        except KeyboardInterrupt:
            print("interrupted: the files listed are written", file=sys.stderr)
            return 130
        except OSError as error:
            print(f"{parser.prog}: error: {error.filename}: {error.strerror}", file=sys.stderr)
            return 1
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

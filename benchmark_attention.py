"""Attention, and whole training steps, timed side by side with what a user could take instead.

``--step`` and ``--decode`` time other things (see ``--help``).  Each prints tables and writes every
sample as JSON; attention draws it over sequence length too.

Each peer is first checked against textbook attention in float64 over the keys that it claims; those
that are right are timed in rounds, in each of which every one has its turn in random order.
"""

import sys
import warnings
from functools import partial
from pathlib import Path

import torch

from analysis.warnings import disturbances
from analysis.words import report_text
from benchmarks.attention import measure_attention
from benchmarks.options import build_parser, complete, problems_of
from benchmarks.peers import known_peers
from benchmarks.picture import benchmark_page
from benchmarks.steps import measure_decode_steps, measure_steps
from benchmarks.tables import FORWARD, ONE_TOKEN, TRAINING
from figures.look import save_figures
from figures.page import write_page
from machine.command import DISTURBED, DONE, checked_options, run_command, say
from machine.describe import describe_environment
from machine.files import check_writable, write_json


def benchmark_of(args, device):
    """What measures one of the problems, and the name of the JSON file."""
    if args.step:
        measure, name = measure_steps, "step_benchmark"
        if args.decode:
            measure, name = measure_decode_steps, "decode_step_benchmark"
        return partial(measure, device=device, rounds=args.rounds), name
    directions, name = [FORWARD, TRAINING], "attention_benchmark"
    if args.decode:
        directions, name = [ONE_TOKEN], "decode_benchmark"
    known = known_peers(args.pattern, args.patterns, args.decode)
    peers = {peer: known[peer] for peer in args.peers}
    how = {"peers": peers, "directions": directions, "rounds": args.rounds}
    return partial(measure_attention, **how), name


def tell(args):
    """Measure length by length, each saved when it is finished; then the tables and the picture.

    Returns the exit code.
    """
    warnings.filterwarnings("ignore", module="torch")
    with checked_options():
        device = complete(args)
        problems = problems_of(args)
    check_writable(args.output_dir, args.plots_dir)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    measure, name = benchmark_of(args, device)
    content = {"options": vars(args), "environment": describe_environment(device)}
    content |= {"records": [], "skipped": []}
    path = Path(args.output_dir) / f"{name}.json"
    try:
        for problem in problems:
            timed, failed = measure(problem)
            content["records"] += timed
            content["skipped"] += failed
            write_json(path, content)
    finally:  # what was measured before an interruption is shown too
        page = benchmark_page(content)
        figures, written = page.draw(), []
        if content["records"]:
            written = [path, path.with_suffix(".html")]
            write_page(written[1], page, figures)
        written += save_figures(figures, args.plots_dir)
        print(report_text(page.sections), flush=True)
        say("written: " + ", ".join(map(str, written)))
    return DISTURBED if any(map(disturbances, content["records"])) else DONE


def main(argv=None):
    """The command line; returns the exit code (see --help)."""
    kept = ": the lengths that were finished are kept"
    return run_command(build_parser(), tell, argv, kept)


if __name__ == "__main__":
    sys.exit(main())

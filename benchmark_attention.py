"""Attention timed side by side with what a user could take instead.

``--step`` and ``--decode`` time other things (see ``--help``): training steps, or one new token.
Every benchmark prints tables and writes all samples as JSON; attention over whole sequences is
drawn over their length too.

Each peer is first checked against textbook attention in float64 over the keys that it claims.  The
peers that are right are timed in rounds: in each round every one has its turn, in random order.
"""

import sys
import warnings
from pathlib import Path

from benchmarks.options import build_parser
from machine.command import DISTURBED, DONE, checked_options
from machine.files import check_writable, write_json
from machine.start import run_on_ranks


def tell(args):
    """Measure length by length, each saved when it is finished; print the tables and draw.

    Returns the exit code.
    """
    import torch

    from analysis.warnings import disturbances
    from benchmarks.picture import benchmark_page
    from benchmarks.problems import benchmark_of, complete, problems_of
    from figures.page import publish
    from machine import ranks
    from machine.describe import describe_environment

    warnings.filterwarnings("ignore", module="torch")
    with checked_options():
        device = complete(args)
        problems = problems_of(args)
        measure, name = benchmark_of(args, device)
    ranks.from_first(check_writable, args.output_dir, args.plots_dir)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    content = {"options": vars(args), "environment": describe_environment(device)}
    content |= {"records": [], "skipped": []}
    path = Path(args.output_dir) / f"{name}.json"
    try:
        for problem in problems:
            timed, failed = measure(problem)
            content["records"] += timed
            content["skipped"] += failed
            if ranks.is_first():
                write_json(path, content)
    finally:  # what was measured before an interruption is shown too
        if ranks.is_first() and (content["records"] or content["skipped"]):
            publish(benchmark_page(content), path, args.plots_dir)
    disturbed = ranks.is_first() and any(map(disturbances, content["records"]))
    return DISTURBED if disturbed else DONE


def main(argv=None):
    """The command line; returns the exit code (see --help)."""
    kept = ": the lengths that were finished are kept"
    return run_on_ranks(build_parser(), tell, argv, kept)


if __name__ == "__main__":
    sys.exit(main())

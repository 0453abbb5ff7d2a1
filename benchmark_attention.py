"""Attention, and whole training steps, timed side by side with what a user could take instead.

``python benchmark_attention.py`` times every peer that runs here, forward alone and with the
backward pass; ``--step`` times training steps of the experiment's arms; ``--decode`` times the
attention of one new token over its context, and with ``--step`` the models' whole step for one.
Each prints tables and writes every sample as JSON; the first draws time over sequence length too.

Each peer is first checked against textbook attention in float64 over the keys that it claims; those
that are right are timed in rounds, in each of which every one has its turn in random order.
"""

import sys
import warnings
from functools import partial
from pathlib import Path

import torch

from benchmarks.attention import AttentionBenchmark
from benchmarks.decoding import DECODE_PEERS, measure_decoding
from benchmarks.options import build_parser, complete, problems_of
from benchmarks.peers import FORWARD, ONE_TOKEN, PEERS, TRAINING
from benchmarks.picture import plot_scaling
from benchmarks.steps import measure_decode_steps, measure_steps
from benchmarks.tables import results_text
from figures.look import save_figure
from machine.command import checked_options, run_command, say
from machine.describe import describe_environment
from machine.device import device_name
from machine.files import check_writable, write_json


def benchmark_of(args, device):
    """What measures one of the problems, and the name of the JSON file."""
    common = {"device": device, "rounds": args.rounds}
    if args.step and args.decode:
        return partial(measure_decode_steps, **common), "decode_step_benchmark"
    if args.step:
        measure = partial(measure_steps, evaluations=args.window_attention, **common)
        return measure, "step_benchmark"
    limits = {"max_seconds": args.max_seconds, "memory": not args.no_memory}
    if args.decode:
        peers = {name: DECODE_PEERS[name] for name in args.peers}
        benchmark = AttentionBenchmark(peers, [ONE_TOKEN], **common, **limits)
        return partial(measure_decoding, benchmark), "decode_benchmark"
    peers = {name: PEERS[name] for name in args.peers}
    benchmark = AttentionBenchmark(peers, [FORWARD, TRAINING], **common, **limits)
    return benchmark.measure, "attention_benchmark"


def tell(args):
    """Measure length by length, each saved when it is finished; then the tables and the picture."""
    warnings.filterwarnings("ignore", module="torch|local_attention")
    with checked_options():
        device = complete(args)
        problems = problems_of(args)
    check_writable(args.output_dir, args.plots_dir)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    measure, name = benchmark_of(args, device)
    about = {"options": vars(args), "environment": describe_environment(device)}
    path = Path(args.output_dir) / f"{name}.json"
    records, skipped = [], []
    try:
        for problem in problems:
            timed, failed = measure(problem)
            records += timed
            skipped += failed
            write_json(path, {**about, "records": records, "skipped": skipped})
    finally:  # what was measured before an interruption is shown too
        show(args, device, records, skipped, path)


def show(args, device, records, skipped, path):
    """The tables, and of whole attention the picture."""
    sizes = f"B{args.batch_size} H{args.heads} D{args.head_dim}"
    pattern = f"w{args.window_size} d{args.dilation}"
    title = f"{device_name(device)}, {args.dtype}, {sizes}, {pattern}"
    print(f"{title}, torch {torch.__version__}\n")
    print(results_text(records, skipped), flush=True)
    written = [path] if records else []
    if records and not (args.step or args.decode):
        written += save_figure(plot_scaling(records, title), args.plots_dir, "attention_scaling")
    say("written: " + ", ".join(map(str, written)))


def main(argv=None):
    """The command line; returns the exit code (see --help)."""
    kept = ": the lengths that were finished are kept"
    return run_command(build_parser(), tell, argv, kept=lambda args: kept)


if __name__ == "__main__":
    sys.exit(main())

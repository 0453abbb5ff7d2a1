"""Attention, and whole training steps, timed side by side with what a user could take instead.

``python benchmark_attention.py`` times every peer that runs here, forward alone and with the
backward pass; ``--step`` times training steps of the experiment's arms; ``--decode`` times the
attention of one new token over its context, and with ``--step`` the models' whole step for one.
Each prints tables and writes a JSON file with every sample; the first draws a log-log picture of
time over sequence length too.

Times of one length come from rounds: in each, every peer is timed once, in random order.  Each
peer is first checked against textbook attention in float64 over the pattern that it claims; one
that gives something else is not timed.
"""

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path

import torch

from attention.choose import EVALUATIONS
from attention.pattern import check_pattern
from benchmarks.attention import AttentionBenchmark
from benchmarks.decoding import DECODE_PEERS, measure_decoding
from benchmarks.peers import ALL_DTYPES, FORWARD, ONE_TOKEN, PEERS, TRAINING, Case
from benchmarks.picture import plot_scaling
from benchmarks.steps import measure_decode_steps, measure_steps
from benchmarks.tables import results_text
from figures.look import save_figure
from machine.command import DONE, FAILED, add_debug, checked_options, run_command, say
from machine.describe import describe_environment
from machine.device import device_name, resolve_device
from machine.files import check_writable, write_json
from training.config import ARMS, COMPILE_MODES, DEFAULT_ARMS, make_config

LENGTHS = [256, 1024, 4096, 16384]
DEFAULTS = {
    "cpu": {"seq_lens": LENGTHS, "heads": 4, "head_dim": 32, "dtype": "float32"},
    "cuda": {"seq_lens": [*LENGTHS, 65536], "heads": 16, "head_dim": 64, "dtype": "bfloat16"},
}
EPILOG = """
examples:
  python benchmark_attention.py --seq-lens 1024 4096 --head-dim 32 --heads 4
  python benchmark_attention.py --step --seq-lens 16384 --head-dim 32
  python benchmark_attention.py --decode --batch-size 8 --seq-lens 4096 65536

exit codes: 0 done, 1 a file could not be written, 2 wrong options, 130 interrupted, 143 terminated
(what was measured is kept)"""


def build_parser():
    """The command line, with every default in its help."""
    parser = argparse.ArgumentParser(
        description="Time attention against every peer that runs here, or (--step) whole training "
        "steps of the experiment's arms, or (--decode) the attention of one new token, or (both) "
        "the models' whole step for one.",
        epilog=_described("peers", PEERS) + _described("peers of --decode", DECODE_PEERS) + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(flag, help, **options):
        default = options.get("default")
        if isinstance(default, list):
            default = " ".join(default)
        note = "" if default is None else f" (default: {default})"
        parser.add_argument(flag, help=help + note, **options)

    add("--device", "auto, cpu, cuda or cuda:N", default="auto")
    add("--dtype", "default: float32 on a CPU, bfloat16 on CUDA", choices=ALL_DTYPES)
    lengths = " ".join(map(str, DEFAULTS["cuda"]["seq_lens"]))
    text = f"default: {lengths}, on a CPU no more than 16384"
    add("--seq-lens", text, type=int, nargs="+", metavar="S")
    add("--batch-size", "sequences", type=int, default=1)
    add("--heads", "default: 16 on CUDA, 4 on a CPU", type=int)
    add("--head-dim", "default: 64 on CUDA, 32 on a CPU", type=int)
    add("--window-size", "near keys before each token", type=int, default=96)
    add("--dilation", "every how many tokens a far key; 0: none", type=int, default=4)
    add("--peers", "of those below; default: all", nargs="+", metavar="PEER")
    add("--rounds", "how often each is timed", type=int, default=11)
    add("--max-seconds", "leave out a peer expected to take longer a call", type=float, default=10)
    add("--no-memory", "do not measure memory", action="store_true")
    add("--output-dir", "folder of the JSON file", default="output")
    add("--plots-dir", "folder of the picture", default="plots")
    add_debug(parser)
    add("--step", "time training steps of the arms instead", action="store_true")
    add("--decode", "time one new token over contexts of S tokens instead", action="store_true")
    add_several = partial(add, nargs="+")
    modes = ["none", "default"]
    text = "with --step, without --decode: torch.compile modes"
    add_several("--compile", text, choices=COMPILE_MODES, default=modes)
    add_several("--arms", "with --step", choices=list(ARMS), default=list(DEFAULT_ARMS))
    text = "with --step, without --decode: one window arm for each"
    add_several("--window-attention", text, choices=EVALUATIONS, default=["auto"])
    add("--layers", "with --step: decoder blocks", type=int, default=8)
    return parser


def _described(title, peers):
    lines = [f"  {name:16}{peer.attends:12}{peer.description}" for name, peer in peers.items()]
    return "\n".join([f"{title}, and to which keys each attends:", *lines, ""])


def complete(args):
    """Fill in what depends on the device and check the options; returns the device.  ValueError."""
    device = resolve_device(args.device)
    for name, value in DEFAULTS[device.type].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.seq_lens = sorted(set(args.seq_lens))
    numbers = {"seq_lens": args.seq_lens[0]}
    for name in ("batch_size", "heads", "head_dim", "rounds", "layers"):
        numbers[name] = getattr(args, name)
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not args.max_seconds > 0:
        raise ValueError(f"--max-seconds must be a positive number, got {args.max_seconds}")
    check_pattern(args.window_size, args.dilation)
    known = DECODE_PEERS if args.decode else PEERS
    args.peers = args.peers or list(known)
    for name in args.peers:
        if name not in known:
            raise ValueError(f"--peers {name}: choose of {', '.join(known)}")
    return device


def problems_of(args, device):
    """What is measured, length by length: cases, or for steps the experiment's configurations."""
    args.device = str(device)
    of_pattern = {"window_size": args.window_size, "dilation": args.dilation}
    same = {name: getattr(args, name) for name in ("device", "dtype", "batch_size")} | of_pattern
    if not args.step:
        shape = {"heads": args.heads, "head_dim": args.head_dim}
        return [Case(seq_len=seq_len, **shape, **same) for seq_len in args.seq_lens]
    same |= {"d_model": args.heads * args.head_dim, "n_heads": args.heads}
    same |= {"layers": args.layers, "arms": tuple(args.arms)}
    modes = ["none"] if args.decode else args.compile
    return [
        make_config("paper", seq_len=seq_len, compile=mode, **same)
        for seq_len in args.seq_lens
        for mode in modes
    ]


def benchmark_of(args, device):
    """What measures one of the problems, and the name of the JSON file."""
    common = {"device": device, "rounds": args.rounds}
    if args.step and args.decode:
        return partial(measure_decode_steps, **common), "decode_step_benchmark"
    if args.step:
        measure = partial(measure_steps, evaluations=args.window_attention, **common)
        return measure, "step_benchmark"
    known, timed = (DECODE_PEERS, [ONE_TOKEN]) if args.decode else (PEERS, [FORWARD, TRAINING])
    peers = {name: known[name] for name in args.peers}
    limits = {"max_seconds": args.max_seconds, "memory": not args.no_memory}
    benchmark = AttentionBenchmark(peers, timed, **common, **limits)
    if args.decode:
        return partial(measure_decoding, benchmark), "decode_benchmark"
    return benchmark.measure, "attention_benchmark"


def tell(args):
    """Measure length by length, each saved when it is finished; then the tables and the picture."""
    warnings.filterwarnings("ignore", module="torch|local_attention")
    with checked_options():
        device = complete(args)
        problems = problems_of(args, device)
    try:
        check_writable(args.output_dir, args.plots_dir)
    except OSError as error:
        say(f"error: {error}")
        return FAILED
    if device.type == "cuda":
        torch.cuda.set_device(device)
    measure, name = benchmark_of(args, device)
    path = Path(args.output_dir) / f"{name}.json"
    about = {"options": vars(args), "environment": describe_environment(device)}
    records, skipped, written = [], [], []
    try:
        for problem in problems:
            timed, failed = measure(problem)
            records += timed
            skipped += failed
            write_json(path, {**about, "records": records, "skipped": skipped})
            written = [path]
    finally:  # what was measured before an interruption is shown too
        title = (
            f"{device_name(device)}, {args.dtype}, B{args.batch_size} H{args.heads} "
            f"D{args.head_dim}, w{args.window_size} d{args.dilation}"
        )
        print(f"{title}, torch {torch.__version__}\n\n{results_text(records, skipped)}", flush=True)
        if records and name == "attention_benchmark":
            figure = plot_scaling(records, title)
            written += save_figure(figure, args.plots_dir, "attention_scaling")
        say("written: " + ", ".join(map(str, written)))
    return DONE


def main(argv=None):
    """The command line; returns the exit code (see --help)."""
    kept = ": the lengths that were finished are kept"
    return run_command(build_parser(), tell, argv, kept=lambda args: kept)


if __name__ == "__main__":
    sys.exit(main())

"""The benchmark's command line, and the problems that it means."""

import argparse

import numpy as np

from analysis.values import pattern_of_arm
from benchmarks.peers import ALL_DTYPES, Case, known_peers
from machine.device import resolve_device
from training.config import COMPILE_MODES, DEFAULT_ARMS, make_config

LENGTHS = [256, 1024, 4096, 16384]
DEFAULTS = {
    "cpu": {"seq_lens": LENGTHS, "heads": 4, "head_dim": 32, "dtype": "float32"},
    "cuda": {"seq_lens": [*LENGTHS, 65536], "heads": 16, "head_dim": 64, "dtype": "bfloat16"},
}
DESCRIPTION = (
    "Time attention against every peer that runs here, or (--step) whole training steps of the "
    "experiment's arms, or (--decode) the attention of one new token, or (both) the models' whole "
    "step for one."
)
EXAMPLES = """
examples:
  python benchmark_attention.py --seq-lens 1024 4096 --head-dim 32 --heads 4
  python benchmark_attention.py --patterns w96-d4 w96-d0-f1 --seq-lens 1024 4096 16384
  python benchmark_attention.py --step --seq-lens 16384 --head-dim 32
  python benchmark_attention.py --decode --batch-size 8 --seq-lens 4096 65536

exit codes: 0 done, 1 a file could not be written, 2 wrong options, 3 done but other programs,
lowered clocks or unsteady times disturbed it (the table says which: do not quote it), 130
interrupted, 143 terminated (what was measured is kept)"""


def build_parser():
    """The command line, with every default in its help."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=_listed("peers") + _listed("peers of --decode", decode=True) + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, said = parser.add_argument, " (default: %(default)s)"
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N" + said)
    add("--dtype", choices=ALL_DTYPES, help="default: float32 on a CPU, bfloat16 on CUDA")
    text = "default: 256 1024 4096 16384, on CUDA 65536 too"
    add("--seq-lens", type=int, nargs="+", metavar="S", help=text)
    add("--batch-size", type=int, default=1, help="sequences" + said)
    text = "tokens in all: as many sequences of each length as they make, in place of --batch-size"
    add("--tokens", type=int, metavar="T", help=text)
    add("--heads", type=int, help="default: 16 on CUDA, 4 on a CPU")
    add("--head-dim", type=int, help="default: 64 on CUDA, 32 on a CPU")
    add("--window-size", type=int, default=96, help="near keys before each token" + said)
    add("--dilation", type=int, default=4, help="every how many tokens a far key; 0: none" + said)
    text = "these in place of its evaluations, by their names, as w96-d4 w96-d0-f1"
    add("--patterns", nargs="+", metavar="ARM", default=[], help=text)
    add("--peers", nargs="+", metavar="PEER", help="of those below; default: all, where they run")
    add("--rounds", type=int, default=11, help="how often each is timed" + said)
    add("--output-dir", default="output", help="folder of the JSON file" + said)
    add("--plots-dir", default="plots", help="folder of the picture" + said)
    add("--step", action="store_true", help="time training steps of the arms instead")
    text = "time one new token over contexts of S tokens instead"
    add("--decode", action="store_true", help=text)
    text = "with --step: default: " + " ".join(DEFAULT_ARMS)
    add("--arms", nargs="+", metavar="ARM", default=list(DEFAULT_ARMS), help=text)
    text, modes = "with --step alone; default: none default", ["none", "default"]
    add("--compile", nargs="+", choices=COMPILE_MODES, default=modes, help=text)
    add("--layers", type=int, default=8, help="with --step: decoder blocks" + said)
    return parser


def _listed(title, decode=False):
    peers = known_peers("pattern", decode=decode)
    lines = [f"  {name:16}{peer.attends:12}{peer.description}" for name, peer in peers.items()]
    return "\n".join([f"{title}, and to which keys each attends:", *lines, ""])


def complete(args):
    """Fill in what depends on the device and check the rest; returns the device.  ValueError."""
    device = resolve_device(args.device)
    args.device = str(device)
    for name, value in DEFAULTS[device.type].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.seq_lens = sorted(set(args.seq_lens))
    least = dict.fromkeys(("seq_lens", "batch_size", "heads", "head_dim", "rounds", "layers"), 1)
    if args.tokens is not None:
        least["tokens"] = 1
    for name, limit in (least | {"window_size": 0, "dilation": 0}).items():
        smallest = min(np.atleast_1d(getattr(args, name)))
        if smallest < limit:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least {limit}, got {smallest}")
    if args.step and args.patterns:
        raise ValueError("--patterns is for attention alone: with --step name them with --arms")
    args.pattern = f"w{args.window_size}-d{args.dilation}"
    for arm in args.patterns or [args.pattern]:
        if pattern_of_arm(arm) is None or pattern_of_arm(arm)["full_layers"]:
            raise ValueError(f"--patterns {arm}: give names of one layer, as w96-d4-s, w96-d0-f1")
        Case(1, 1, args.heads, 8, args.dtype, args.device).pattern(arm)  # fits the heads
    known = known_peers(args.pattern, args.patterns, args.decode)
    args.peers = args.peers or list(known)
    for name in args.peers:
        if name not in known:
            raise ValueError(f"--peers {name}: choose of {', '.join(known)}")
    return device


def problems_of(args):
    """What is measured, length by length: cases, or for steps the experiment's configurations."""
    common = {"device": args.device, "dtype": args.dtype}
    sizes = [{"seq_len": S, "batch_size": batch_size(args, S)} for S in args.seq_lens]
    if not args.step:
        common |= {"heads": args.heads, "head_dim": args.head_dim}
        return [Case(**size, **common) for size in sizes]
    common |= {"d_model": args.heads * args.head_dim, "n_heads": args.heads}
    common |= {"layers": args.layers, "arms": tuple(args.arms)}
    common |= {"window_size": args.window_size, "dilation": args.dilation}
    modes = ["none"] if args.decode else args.compile
    return [
        make_config("paper", compile=mode, **size, **common) for size in sizes for mode in modes
    ]


def batch_size(args, seq_len):
    """How many sequences of a length there are."""
    return args.batch_size if args.tokens is None else max(1, args.tokens // seq_len)

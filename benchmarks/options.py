"""The benchmark's command line, and the problems that it means."""

import argparse
from functools import partial

from attention.choose import EVALUATIONS
from attention.pattern import check_pattern
from benchmarks.decoding import DECODE_PEERS
from benchmarks.peers import ALL_DTYPES, PEERS, Case
from machine.command import add_debug
from machine.device import resolve_device
from training.config import ARMS, COMPILE_MODES, DEFAULT_ARMS, make_config

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
  python benchmark_attention.py --step --seq-lens 16384 --head-dim 32
  python benchmark_attention.py --decode --batch-size 8 --seq-lens 4096 65536

exit codes: 0 done, 1 a file could not be written, 2 wrong options, 130 interrupted, 143 terminated
(what was measured is kept)"""


def build_parser():
    """The command line, with every default in its help."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=_listed("peers", PEERS) + _listed("peers of --decode", DECODE_PEERS) + EXAMPLES,
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
    text = "default: 256 1024 4096 16384, on CUDA 65536 too"
    add("--seq-lens", text, type=int, nargs="+", metavar="S")
    add("--batch-size", "sequences", type=int, default=1)
    add("--heads", "default: 16 on CUDA, 4 on a CPU", type=int)
    add("--head-dim", "default: 64 on CUDA, 32 on a CPU", type=int)
    add("--window-size", "near keys before each token", type=int, default=96)
    add("--dilation", "every how many tokens a far key; 0: none", type=int, default=4)
    add("--peers", "of those below; default: all, where they run", nargs="+", metavar="PEER")
    add("--rounds", "how often each is timed", type=int, default=11)
    add("--max-seconds", "leave out a peer expected to take longer a call", type=float, default=10)
    add("--no-memory", "do not measure memory", action="store_true")
    add("--output-dir", "folder of the JSON file", default="output")
    add("--plots-dir", "folder of the picture", default="plots")
    add_debug(parser)
    add("--step", "time training steps of the arms instead", action="store_true")
    add("--decode", "time one new token over contexts of S tokens instead", action="store_true")
    add_several = partial(add, nargs="+")
    text, modes = "with --step, without --decode: torch.compile modes", ["none", "default"]
    add_several("--compile", text, choices=COMPILE_MODES, default=modes)
    add_several("--arms", "with --step", choices=list(ARMS), default=list(DEFAULT_ARMS))
    text = "with --step, without --decode: one window arm for each"
    add_several("--window-attention", text, choices=EVALUATIONS, default=["auto"])
    add("--layers", "with --step: decoder blocks", type=int, default=8)
    return parser


def _listed(title, peers):
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


def problems_of(args):
    """What is measured, length by length: cases, or for steps the experiment's configurations."""
    names = "device", "dtype", "batch_size", "window_size", "dilation"
    common = {name: getattr(args, name) for name in names}
    if not args.step:
        common |= {"heads": args.heads, "head_dim": args.head_dim}
        return [Case(seq_len=seq_len, **common) for seq_len in args.seq_lens]
    common |= {"d_model": args.heads * args.head_dim, "n_heads": args.heads}
    common |= {"layers": args.layers, "arms": tuple(args.arms)}
    modes = ["none"] if args.decode else args.compile
    return [
        make_config("paper", seq_len=seq_len, compile=mode, **common)
        for seq_len in args.seq_lens
        for mode in modes
    ]

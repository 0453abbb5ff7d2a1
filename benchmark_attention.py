"""Attention, and whole training steps, timed side by side with what a user could take instead.

``python benchmark_attention.py`` times every peer that runs here, forward alone and with the
backward pass; ``--step`` times training steps of the experiment's arms; ``--decode`` times the
attention of one new token over its context, and with ``--step`` the models' whole step for one.
Each prints a table and writes a JSON file with every sample; the first draws a log-log picture of
time over sequence length too.

Times of one length come from rounds: in each, every peer is timed once, so that what drifts
(clock speed, other programs) meets all alike.  Each peer is first checked against textbook
attention in float64 over the pattern that it claims; one that gives something else is not timed.

Letters: B batch, S sequence length, H heads, D head_dim, w window_size, d dilation.
"""

import argparse
import errno
import math
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch

from attention.choose import EVALUATIONS
from attention.pattern import check_pattern
from benchmarks.attention import AttentionBenchmark
from benchmarks.decoding import DECODE_PEERS, decode_names, measure_decode_steps, measure_decoding
from benchmarks.peers import ALL_DTYPES, DESCRIPTIONS, PEERS, Case
from benchmarks.picture import plot_scaling
from benchmarks.steps import measure_steps
from benchmarks.tables import format_attention, format_decoding, format_steps
from figures.look import save_figure
from machine.command import add_debug, checked_options, run_command, say
from machine.describe import describe_environment
from machine.device import device_name, resolve_device
from machine.files import atomic_write, check_writable, to_json
from training.config import ARMS, COMPILE_MODES, DEFAULT_ARMS, make_config

SEQ_LENS = {"cpu": (256, 1024, 4096, 16384), "cuda": (256, 1024, 4096, 16384, 65536)}
# --- the command line --------------------------------------------------------------------------
ALL_PEERS = tuple(dict.fromkeys([*PEERS, *DECODE_PEERS]))


def build_parser():
    """The command line, with every default in its help."""
    peers = "\n".join(
        f"  {name:16}{peer.attends:15}{DESCRIPTIONS[name]}" for name, peer in PEERS.items()
    )
    parser = argparse.ArgumentParser(
        description="Time attention against every peer that runs here, or (--step) whole training "
        "steps of the experiment's arms, or (--decode) the attention of one new token, or (both) "
        "the models' whole step for one.",
        epilog=f"peers, and to which keys each attends:\n{peers}\n\n"
        "peers of --decode: window and full as the models generate; with -flash, -cudnn, "
        "-efficient, -cpu or -products\nby that kernel of PyTorch, or two matrix products; flash, "
        "cudnn, efficient, math: scaled_dot_product_attention over all keys\n\n"
        "examples:\n"
        "  python benchmark_attention.py --seq-lens 1024 4096 --head-dim 32 --heads 4\n"
        "  python benchmark_attention.py --step --seq-lens 16384 --head-dim 32\n"
        "  python benchmark_attention.py --decode --batch-size 8 --seq-lens 4096 65536\n\n"
        "exit codes: 0 done, 1 a file could not be written, 2 wrong options, 130 interrupted, "
        "143 terminated (what was measured is kept)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(flag, help, **options):
        default = options.get("default")
        note = f" (default: {default})" if isinstance(default, int | float | str) else ""
        parser.add_argument(flag, help=help + note, **options)

    add("--device", "auto, cpu, cuda or cuda:N", default="auto")
    add("--dtype", "default: float32 on a CPU, bfloat16 on CUDA", choices=tuple(ALL_DTYPES))
    add("--seq-lens", f"default: {SEQ_LENS['cuda']}, on a CPU no more than 16384", nargs="+")
    add("--batch-size", "sequences", type=int, default=1)
    add("--heads", "default: 16 on CUDA, 4 on a CPU", type=int)
    add("--head-dim", "default: 64 on CUDA, 32 on a CPU", type=int)
    add("--window-size", "near keys before each token", type=int, default=96)
    add("--dilation", "every how many tokens a far key; 0: none", type=int, default=4)
    add("--peers", "default: all, each where it can run", nargs="+", choices=ALL_PEERS)
    add("--rounds", "how often each is timed, in turn with the others", type=int, default=11)
    add("--max-seconds", "leave out a peer expected to take longer a call", type=float, default=10)
    add("--no-memory", "do not measure memory", action="store_true")
    add("--output-dir", "folder of the JSON file", default="output")
    add("--plots-dir", "folder of the picture", default="plots")
    add_debug(parser)
    add("--step", "time training steps of the arms instead", action="store_true")
    add("--decode", "time one new token over contexts of S tokens instead", action="store_true")
    choices = {"nargs": "+", "choices": COMPILE_MODES, "default": ("none", "default")}
    text = "with --step, without --decode: torch.compile modes (default: none default)"
    add("--compile", text, **choices)
    choices = {"nargs": "+", "choices": tuple(ARMS), "default": DEFAULT_ARMS}
    add("--arms", f"with --step (default: {' '.join(DEFAULT_ARMS)})", **choices)
    choices = {"nargs": "+", "choices": EVALUATIONS, "default": ("auto",)}
    text = "with --step, without --decode: one window arm for each (default: auto)"
    add("--window-attention", text, **choices)
    add("--layers", "with --step: decoder blocks", type=int, default=8)
    return parser


def cases_from(args):
    """The device and the cases, shortest first, that the arguments mean; ValueError."""
    device = resolve_device(args.device)
    cuda = device.type == "cuda"
    defaults = {"heads": 16 if cuda else 4, "head_dim": 64 if cuda else 32}
    sizes = {name: getattr(args, name) or default for name, default in defaults.items()}
    for name in ("batch_size", "heads", "head_dim", "rounds", "layers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not (math.isfinite(args.max_seconds) and args.max_seconds > 0):
        raise ValueError(f"--max-seconds must be a positive number, got {args.max_seconds}")
    check_pattern(args.window_size, args.dilation)
    known = DECODE_PEERS if args.decode else PEERS
    for name in args.peers or ():
        if name not in known:
            raise ValueError(f"--peers {name}: choose of {', '.join(known)}")
    lengths = []
    for text in args.seq_lens or SEQ_LENS[device.type]:
        try:
            lengths.append(int(text))
        except ValueError:
            raise ValueError(f"--seq-lens must be whole numbers, got {text!r}") from None
        if lengths[-1] < 1:
            raise ValueError(f"--seq-lens must be at least 1, got {text}")
    dtype = args.dtype or ("bfloat16" if cuda else "float32")
    return device, [
        Case(
            args.batch_size,
            seq_len,
            *sizes.values(),
            args.window_size,
            args.dilation,
            dtype,
            str(device),
        )
        for seq_len in sorted(set(lengths))
    ]


def _step_config(args, case):
    """The experiment's configuration for steps at a case's sizes; ValueError."""
    return make_config(
        "paper",
        arms=tuple(args.arms),
        device=case.device,
        dtype=case.dtype,
        batch_size=case.batch_size,
        seq_len=case.seq_len,
        d_model=case.heads * case.head_dim,
        n_heads=case.heads,
        layers=args.layers,
        window_size=case.window_size,
        dilation=case.dilation,
    )


def _save(path, args, device, records, skipped):
    """Write what there is so far, whole or not at all."""
    content = {
        "options": vars(args),
        "environment": describe_environment(device),
        "records": records,
        "skipped": skipped,
    }
    text = to_json(content, indent=1)
    atomic_write(path, lambda file: file.write(text.encode()))


def run_attention(args, device, cases):
    """The attention benchmark; yields (records, skipped) after every length."""
    names = args.peers or list(PEERS)
    memory = not args.no_memory
    benchmark = AttentionBenchmark(names, device, args.rounds, args.max_seconds, memory)
    for case in cases:
        benchmark.measure(case)
        yield benchmark.records, benchmark.skipped


def run_steps(args, device, cases):
    """The step benchmark; yields (records, skipped) after every length."""
    configs = [_step_config(args, case) for case in cases]
    records, skipped = [], []
    for config in configs:
        more = measure_steps(config, args.compile, args.window_attention, device, args.rounds)
        records += more[0]
        skipped += more[1]
        yield records, skipped


def run_decoding(args, device, cases):
    """The benchmark of one new token; yields (records, skipped) after every context."""
    records, skipped = [], []
    for case in cases:
        more = measure_decoding(args.peers or decode_names(device), case, device, args.rounds)
        records += more[0]
        skipped += more[1]
        yield records, skipped


def run_decode_steps(args, device, cases):
    """The benchmark of the models' step for one new token; yields (records, skipped)."""
    records, skipped = [], []
    for config in [_step_config(args, case) for case in cases]:
        more = measure_decode_steps(config, device, args.rounds)
        records += more[0]
        skipped += more[1]
        yield records, skipped


def _check_folders(*folders):
    """``check_writable``, with the folder in the error for ``run_command`` to name."""
    for folder in folders:
        try:
            check_writable(folder)
        except OSError as error:
            words = str(error).removeprefix(f"{Path(folder)} ")
            raise OSError(errno.EIO, words, str(folder)) from None


def _benchmark_of(args):
    """What measures, the name of its JSON file and what makes its table."""
    if args.decode and args.step:
        return run_decode_steps, "decode_step_benchmark", format_steps
    if args.decode:
        return run_decoding, "decode_benchmark", format_decoding
    if args.step:
        return run_steps, "step_benchmark", format_steps
    return run_attention, "attention_benchmark", format_attention


def _tell(args):
    """Measure length by length, each saved when it is finished; then the table and the picture."""
    warnings.filterwarnings("ignore", module="torch|local_attention")
    with checked_options():
        device, cases = cases_from(args)
        for case in cases if args.step else ():
            _step_config(args, case)
    _check_folders(args.output_dir, args.plots_dir)
    run, name, form = _benchmark_of(args)
    path = Path(args.output_dir) / f"{name}.json"
    records, skipped = [], []

    def show():
        print(device_name(device) + f", torch {torch.__version__}\n")
        print(form(records, skipped), flush=True)
        written = [path] if path.exists() and records else []
        if records and not (args.step or args.decode):
            figure = plot_scaling(records, _title(records, device))
            written += save_figure(figure, args.plots_dir, "attention_scaling")
        say("written: " + ", ".join(str(p) for p in written))

    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for records, skipped in run(args, device, cases):
                _save(path, args, device, records, skipped)
    except KeyboardInterrupt:
        show()
        raise
    show()


def main(argv=None):
    """The command line; returns the exit code (see --help)."""
    kept = ": the lengths that were finished are kept"
    return run_command(build_parser(), _tell, argv, kept=lambda args: kept)


def _title(records, device):
    r = records[0]
    return (
        f"{device_name(device)}, {r['dtype']}, B{r['batch_size']} "
        f"H{r['heads']} D{r['head_dim']}, w{r['window_size']} d{r['dilation']}"
    )


if __name__ == "__main__":
    sys.exit(main())

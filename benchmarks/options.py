"""The benchmark's command line."""

import argparse

from training.arms import DEFAULT_ARMS
from training.config import COMPILE_MODES, DTYPES, POSITIONS

DESCRIPTION = (
    "Time attention against every peer that runs here, or (--step) whole training steps of the "
    "experiment's arms, or (--decode) the attention of one new token, or (both) the models' whole "
    "step for one."
)
EPILOG = """\
peers, and to which keys each attends:
  split           pattern     this project's split
  split-compiled  pattern     the same compiled
  masked          pattern     PyTorch's with a mask
  dense           pattern     textbook with a mask
  flex            pattern     FlexAttention, compiled
  flash           all keys    FlashAttention
  cudnn           all keys    cuDNN's kernel
  efficient       all keys    memory-efficient kernel
peers of --decode, and to which keys each attends:
  window          pattern     as the window model generates
  full            all keys    as the other models generate
  flash           all keys    FlashAttention
  cudnn           all keys    cuDNN's kernel
  efficient       all keys    memory-efficient kernel
  math            all keys    matrix products

examples:
  python benchmark_attention.py --seq-lens 1024 4096 --head-dim 32 --heads 4
  python benchmark_attention.py --patterns w96-d4 w96-d0-f1 --seq-lens 1024 4096 16384
  python benchmark_attention.py --step --seq-lens 16384 --head-dim 32
  python benchmark_attention.py --decode --batch-size 8 --seq-lens 4096 65536
  torchrun --standalone --nproc-per-node 2 benchmark_attention.py --step --shard-sequence
      --seq-lens 262144 --arms fused w96-d0-f1 --positions rotary --compile none --loss-chunk 8192

exit codes: 0 done, 1 a file could not be written, 2 wrong options, 3 done but other programs,
lowered clocks or unsteady times disturbed it (the table says which: do not quote it), 130
interrupted, 143 terminated (what was measured is kept)"""


def build_parser():
    """The command line, with every default in its help."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, said = parser.add_argument, " (default: %(default)s)"
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N" + said)
    add("--dtype", choices=(*DTYPES, "float16"), help="default: float32 on a CPU, bfloat16 on CUDA")
    text = "default: 256 1024 4096 16384, on CUDA 65536 too"
    add("--seq-lens", type=int, nargs="+", metavar="S", help=text)
    add("--batch-size", type=int, default=1, help="sequences" + said)
    text = "tokens in all: as many sequences of each length as they make, in place of --batch-size"
    add("--tokens", type=int, metavar="T", help=text)
    add("--heads", type=int, help="default: 16 on CUDA, 4 on a CPU")
    add("--head-dim", type=int, help="default: 64 on CUDA, 32 on a CPU")
    add("--window-size", type=int, default=96, help="near keys before each token" + said)
    text = "beyond them a far key every this many tokens; 0: none" + said
    add("--dilation", type=int, default=4, help=text)
    text = "time these patterns by name (w96-d4 w96-d0-f1), not the evaluations of one"
    add("--patterns", nargs="+", metavar="ARM", default=[], help=text)
    text = "which of those below; default: all that run here"
    add("--peers", nargs="+", metavar="PEER", help=text)
    add("--rounds", type=int, default=11, help="how often each is timed" + said)
    add("--output-dir", default="output", help="folder of the JSON file" + said)
    add("--plots-dir", default="plots", help="folder of the picture" + said)
    add("--step", action="store_true", help="time training steps of the arms instead")
    text = "time one new token over contexts of S tokens instead"
    add("--decode", action="store_true", help=text)
    text = "with --step: default: " + " ".join(DEFAULT_ARMS)
    add("--arms", nargs="+", metavar="ARM", default=list(DEFAULT_ARMS), help=text)
    text, modes = "with --step, not --decode; default: none and default", ["none", "default"]
    add("--compile", nargs="+", choices=COMPILE_MODES, default=modes, help=text)
    add("--layers", type=int, default=8, help="with --step: decoder blocks" + said)
    text = "with --step" + said
    add("--positions", choices=POSITIONS, default="learned", help=text)
    text = "with --step: as in main.py, for long sequences"
    add("--checkpoint-blocks", action="store_true", help=text)
    add("--loss-chunk", type=int, default=0, metavar="T", help=text + said)
    text = "with --step under torchrun: cut every sequence over this many ranks; no number: all"
    add("--shard-sequence", type=int, nargs="?", default=1, const=0, metavar="RANKS", help=text)
    return parser

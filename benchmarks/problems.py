"""What the benchmark's options mean: the problems, and what measures each."""

from functools import partial

import torch

from analysis.values import pattern_of_arm
from attention.pattern import whole
from benchmarks.attention import measure_attention
from benchmarks.peers import Case, known_peers
from benchmarks.steps import measure_decode_steps, measure_steps
from benchmarks.tables import FORWARD, ONE_TOKEN, TRAINING
from machine import ranks
from training.config import make_config

LENGTHS = [256, 1024, 4096, 16384]
DEFAULTS = {
    "cpu": {"seq_lens": LENGTHS, "heads": 4, "head_dim": 32, "dtype": "float32"},
    "cuda": {"seq_lens": [*LENGTHS, 65536], "heads": 16, "head_dim": 64, "dtype": "bfloat16"},
}


def complete(args):
    """Fill in what depends on the device and check the rest; returns the device of this rank.

    Raises ValueError for options that cannot be run.
    """
    device = ranks.chosen_device(args.device)
    args.device = str(device)
    for name, value in DEFAULTS[device.type].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.seq_lens = sorted(set(args.seq_lens))
    for name in ("batch_size", "tokens", "heads", "head_dim", "rounds", "layers"):
        if getattr(args, name) is not None:
            whole(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    whole("--seq-lens", args.seq_lens[0], 1)  # the shortest
    whole("--window-size", args.window_size)
    whole("--dilation", args.dilation)
    of_steps = args.checkpoint_blocks, args.loss_chunk, args.shard_sequence != 1, ranks.size() > 1
    if any(of_steps) and (args.decode or not args.step):
        raise ValueError(
            "torchrun, --shard-sequence, --checkpoint-blocks and --loss-chunk are for training "
            "steps: add --step, without --decode"
        )
    if args.shard_sequence == 0 and ranks.size() > 1:
        args.shard_sequence = ranks.size()
    if args.step and args.patterns:
        raise ValueError("--patterns is for attention alone: with --step name them with --arms")
    args.pattern = f"w{args.window_size}-d{args.dilation}"
    for arm in args.patterns or [args.pattern]:
        if pattern_of_arm(arm) is None or pattern_of_arm(arm)["full_layers"]:
            raise ValueError(f"--patterns {arm}: give names of one layer, as w96-d4-s, w96-d0-f1")
        Case(1, 1, args.heads, 8, args.dtype, args.device).pattern(arm)  # fits the heads
    return ranks.local_device(device)


def problems_of(args):
    """What to measure, length by length: cases or, with --step, configurations of experiments."""
    common = {"device": args.device, "dtype": args.dtype}
    sizes = []
    for seq_len in args.seq_lens:
        batch_size = args.batch_size if args.tokens is None else max(1, args.tokens // seq_len)
        sizes.append({"seq_len": seq_len, "batch_size": batch_size})
    if not args.step:
        common |= {"heads": args.heads, "head_dim": args.head_dim}
        return [Case(**size, **common) for size in sizes]
    common |= {"d_model": args.heads * args.head_dim, "n_heads": args.heads}
    common |= {"layers": args.layers, "arms": tuple(args.arms), "positions": args.positions}
    common |= {"checkpoint_blocks": args.checkpoint_blocks, "loss_chunk": args.loss_chunk}
    common |= {"shard_sequence": args.shard_sequence, "world_size": ranks.size()}
    common |= {"backend": ranks.backend(torch.device(args.device))}
    common |= {"window_size": args.window_size, "dilation": args.dilation}
    modes = ["none"] if args.decode else args.compile
    return [
        make_config("paper", compile=mode, **size, **common) for size in sizes for mode in modes
    ]


def benchmark_of(args, device):
    """A function that measures one of the problems, and the JSON file's name.

    ValueError for unknown peers.
    """
    known = known_peers(args.pattern, args.patterns, args.decode)
    args.peers = args.peers or list(known)
    for name in args.peers:
        if name not in known:
            raise ValueError(f"--peers {name}: choose of {', '.join(known)}")
    if args.step:
        measure, name = measure_steps, "step_benchmark"
        if args.decode:
            measure, name = measure_decode_steps, "decode_step_benchmark"
        return partial(measure, device=device, rounds=args.rounds), name
    directions, name = [FORWARD, TRAINING], "attention_benchmark"
    if args.decode:
        directions, name = [ONE_TOKEN], "decode_benchmark"
    peers = {peer: known[peer] for peer in args.peers}
    how = {"peers": peers, "directions": directions, "rounds": args.rounds}
    return partial(measure_attention, **how), name

"""The configuration of an experiment: every field with its default and option, presets, checks.

Listing the options needs no torch; making a configuration does.
"""

import argparse
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePath

from training.arms import ARMS, DEFAULT_ARMS, pattern_options
from training.checks import check_field, check_together, flag
from training.tokens import DEFAULT_PATH, LAPTOP_PATH, SMOKE_PATH

DTYPES = ("float32", "bfloat16")  # of torch
POSITIONS = ("learned", "rotary")  # of attention/rotary.py
EVALUATIONS = ("auto", "dense", "masked", "split", "flex")  # of attention/choose.py
COMPILE_MODES = ("none", "default", "reduce-overhead")


def _option(default, help, least=1, group=None, **argparse_options):
    """A field that is also a command-line option.

    least: the smallest whole number it takes; group: the title of the options that begin here.
    """
    about = {"group": group, "help": help, "least": least, "argparse": argparse_options}
    return field(default=default, metadata=about)


def _whole_numbers(text):
    """A command-line value: a whole number, or several of them as a tuple."""
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError:
        words = f"must be a whole number, or one for each layer as in 96,96,128, got {text!r}"
        raise argparse.ArgumentTypeError(words) from None
    return numbers if len(numbers) > 1 else numbers[0]


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides what an experiment does; the defaults are the ``paper`` preset.

    Raises ValueError, naming the option, its value and the remedy, for what cannot be run.
    """

    preset: str = "paper"
    runs: int = _option(10, "blocks: every arm trained once, from one seed", group="experiment")
    seed: int = _option(0, "decides orders, initial weights and batches", least=0)
    arms: tuple = _option(
        DEFAULT_ARMS,
        f"which models to train: {' '.join(ARMS)}, or window models of other patterns by name, as "
        "w64-d8",
        nargs="+",
        metavar="ARM",
    )
    device: str = _option("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = _option("float32", "precision of the arithmetic (autocast)", choices=DTYPES)
    compile: str = _option(
        "none",
        "torch.compile every arm; --compile alone means default",
        nargs="?",
        const="default",
        choices=COMPILE_MODES,
    )
    equivalence_margin: float = _option(
        0.02, "largest rise of the validation loss that still counts as no loss of quality, in nats"
    )
    deterministic: bool = _option(
        False, "use deterministic algorithms (slower); recorded, never on by itself"
    )
    batch_size: int = _option(8, "sequences in a step, of all ranks together", group="training")
    gradient_accumulation: int = _option(
        1, "compute every batch in this many parts, one after the other, to save memory"
    )
    checkpoint_blocks: bool = _option(
        False,
        "compute the activations of blocks again in the backward pass in place of keeping them, to "
        "save memory: one more forward pass",
    )
    loss_chunk: int = _option(
        0, "compute logits for this many tokens at a time, to save memory; 0: for all", least=0
    )
    shard_sequence: int = _option(
        1,
        "cut every sequence over this many ranks of torchrun (without a number: all), where "
        "one GPU cannot hold it",
        least=0,
        nargs="?",
        const=0,
        metavar="RANKS",
    )
    max_steps: int = _option(0, "optimizer steps of a training; 0: one pass over data", least=0)
    lr: float = _option(3e-4, "peak learning rate of AdamW")
    warmup_steps: int = _option(500, "steps of linear warm-up", least=0)
    schedule: str = _option(
        "cosine",
        "learning rate after the warm-up; constant makes each moment the end of a training",
        choices=("cosine", "constant"),
    )
    val_batches: int = _option(0, "held-out batches for the validation loss; 0: all", least=0)
    eval_every: int = _option(
        0, "steps between held-out losses during a training; 0: none", least=0
    )
    reach_passages: int = _option(
        0, "passages for the probe of how far back a model copies from; 0: no probe", least=0
    )
    seq_len: int = _option(256, "sequence length, tokens", group="model")
    d_model: int = _option(512, "model width")
    n_heads: int = _option(16, "attention heads")
    layers: int = _option(8, "decoder blocks")
    positions: str = _option("learned", "learned embeddings, or rotary ones", choices=POSITIONS)
    window_size: int | tuple = _option(
        96,
        "near keys before each token; W,W,... gives one for each layer",
        least=0,
        group="pattern",
    )
    dilation: int | tuple = _option(
        4,
        "beyond them a far key every this many tokens; 0: none, 1: full attention; D,D,... gives "
        "one for each layer",
        least=0,
    )
    sink_tokens: int = _option(0, "first tokens that every later one attends to as well", least=0)
    full_heads: int | tuple = _option(
        0,
        "heads of each layer that attend to everything; F,F,... gives one for each layer",
        least=0,
    )
    stagger: bool = _option(False, "shift the far keys from head to head")
    nope: bool = _option(False, "with --positions rotary: full heads get no positions")
    window_attention: str = _option("auto", "how the pattern is evaluated", choices=EVALUATIONS)
    data: str = _option(
        DEFAULT_PATH, "file of rows of tokens; a preset's own is prepared if missing", group="files"
    )
    output_dir: str = _option("output", "folder of results, report and weights")
    plots_dir: str = _option("plots", "folder of the figures")
    # not chosen but found, see machine/ranks.py
    world_size: int = 1
    backend: str = "none"

    def __post_init__(self):
        if self.shard_sequence == 0:
            if self.world_size == 1:
                remedy = "start it with torchrun --nproc-per-node N"
                raise ValueError(f"--shard-sequence needs several ranks: {remedy}")
            object.__setattr__(self, "shard_sequence", self.world_size)
        for item in fields(self):
            object.__setattr__(self, item.name, _plain(getattr(self, item.name)))
            check_field(item, getattr(self, item.name))
        check_together(self)

    @property
    def head_dim(self):
        """Numbers in a query or key of one head."""
        return self.d_model // self.n_heads

    @property
    def data_ranks(self):
        """How many ranks, or groups of ranks that share their sequences, have rows of their own."""
        return self.world_size // self.shard_sequence

    @property
    def sequences_at_once(self):
        """How many sequences, or shards of them, one rank computes together in a micro-step."""
        return self.batch_size // (self.data_ranks * self.gradient_accumulation)

    @property
    def records_graphs(self):
        """Are CUDA graphs recorded in the warm-up?  Replays of them raise no memory statistic."""
        return self.compile == "reduce-overhead"

    def pattern_of(self, arm):
        """The pattern of an arm of the window model, as GPTWindowModel takes it, else None."""
        return pattern_options(asdict(self), arm)


PRESETS = {
    "paper": {},
    "long": {
        "runs": 5,
        # documented, staggered, the window alone; with full heads, of two windows; full layers.
        # Without the baseline, which takes five times as long and computes what fused does
        "arms": ("fused", "window", "w96-d4-s", "w96-d0", "w96-d0-f1", "w32-d0-f1", "w96-d0-e4"),
        "seq_len": 4096,
        "batch_size": 4,
        "n_heads": 8,
        "dtype": "bfloat16",
        "compile": "reduce-overhead",  # else launching kernels decides a step's time
        "positions": "rotary",
        "lr": 6e-4,
        "warmup_steps": 50,
        "eval_every": 250,
        "reach_passages": 200,
    },
    "laptop": {
        "runs": 6,
        "seq_len": 512,
        "batch_size": 2,
        "d_model": 128,
        "n_heads": 4,
        "layers": 2,
        "max_steps": 400,
        "lr": 5e-3,
        "warmup_steps": 40,
        "val_batches": 16,
        "eval_every": 50,
        "reach_passages": 16,
        "data": LAPTOP_PATH,
    },
    "smoke": {  # everything once, as fast as it goes; its results are marked
        "runs": 2,
        "arms": ("window", "fused"),
        "seq_len": 512,
        "batch_size": 1,
        "d_model": 32,
        "n_heads": 2,
        "layers": 1,
        "max_steps": 40,
        "lr": 1e-2,
        "warmup_steps": 4,
        "val_batches": 4,
        "eval_every": 10,
        "reach_passages": 4,
        "data": SMOKE_PATH,
        "output_dir": "smoke/output",  # not where an experiment is to go
        "plots_dir": "smoke/plots",
    },
}


ARGPARSE = {kind: {"type": kind} for kind in (int, float, str)}
ARGPARSE[int | tuple] = {"type": _whole_numbers}
ARGPARSE[bool] = {"action": argparse.BooleanOptionalAction}


def add_options(parser):
    """Add an option for every field of ``ExperimentConfig``, in the groups that the fields name."""
    for item in fields(ExperimentConfig):
        if not item.metadata:  # of no option
            continue
        if item.metadata["group"]:
            group = parser.add_argument_group(item.metadata["group"])
        options = ARGPARSE.get(item.type, {}) | item.metadata["argparse"]
        text = f"{item.metadata['help']} {_default_text(item)}"
        group.add_argument(flag(item), help=text, **options)


def _default_text(item):
    """A field's default, or one for each preset where they differ."""
    values = [changes.get(item.name, item.default) for changes in PRESETS.values()]
    texts = [" ".join(value) if isinstance(value, tuple) else str(value) for value in values]
    if len(set(texts)) > 1:
        texts = [f"{preset} {text}" for preset, text in zip(PRESETS, texts, strict=True)]
    return f"(default: {', '.join(dict.fromkeys(texts))})"


def make_config(preset="paper", **changes):
    """The configuration of a preset with some fields changed; raises ValueError."""
    if preset not in tuple(PRESETS):
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    return ExperimentConfig(**{"preset": preset, **PRESETS[preset], **changes})


def _plain(value):
    """A field's value in Python's own types: lists, as JSON has them, become tuples."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return str(value) if isinstance(value, PurePath) or type(value).__name__ == "device" else value

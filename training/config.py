"""The configuration of an experiment: every field with its default and option, presets, checks.

To tell the options needs no torch; to make a configuration does.
"""

import argparse
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePath

from analysis.values import pattern_of_arm
from training.tokens import DEFAULT_PATH, LAPTOP_PATH, SMOKE_PATH

# arm -> its full attention; None: the window model, as for arms that name a pattern (w64-d8)
ARMS = {"baseline": "dense", "window": None, "fused": "fused", "published": "published"}
DEFAULT_ARMS = ("baseline", "window", "fused")
DTYPES = ("float32", "bfloat16")  # of torch
POSITIONS = ("learned", "rotary")  # of attention/rotary.py
EVALUATIONS = ("auto", "dense", "masked", "split", "flex")  # of attention/choose.py
COMPILE_MODES = ("none", "default", "reduce-overhead")
LARGEST_OPTION = 2**31 - 1


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
        f"which models to train: {' '.join(ARMS)}, or window models of other patterns, as w64-d8",
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
    gradient_accumulation: int = _option(1, "parts of a batch, one after the other, for memory")
    checkpoint_blocks: bool = _option(
        False,
        "keep no activations of blocks but compute them again: less memory, a third more time",
    )
    loss_chunk: int = _option(
        0, "tokens whose logits exist at a time, for memory; 0: those of all", least=0
    )
    shard_sequence: int = _option(
        1,
        "cut every sequence over so many ranks of torchrun, alone over all of them, where one GPU "
        "cannot hold it",
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
        0, "steps from one held-out loss during a training to the next; 0: none", least=0
    )
    reach_passages: int = _option(
        0, "passages of the probe that tells how far back a model copies from; 0: none", least=0
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
        "every how many tokens a far key; 0: none, 1: full attention; D,D,... gives one for each "
        "layer",
        least=0,
    )
    sink_tokens: int = _option(0, "first tokens that every later one attends to as well", least=0)
    full_heads: int | tuple = _option(
        0,
        "heads of each layer that attend to everything; F,F,... gives one for each layer",
        least=0,
    )
    stagger: bool = _option(False, "heads take turns in their far keys")
    nope: bool = _option(False, "full heads get no positions where the others get rotary ones")
    window_attention: str = _option("auto", "how the pattern is evaluated", choices=EVALUATIONS)
    data: str = _option(DEFAULT_PATH, "rows of tokens; prepared when missing", group="files")
    output_dir: str = _option("output", "folder of results, report and weights")
    plots_dir: str = _option("plots", "folder of the figures")
    # not chosen but found, see machine/ranks.py
    world_size: int = 1
    backend: str = "none"

    def __post_init__(self):
        if self.shard_sequence == 0:
            object.__setattr__(self, "shard_sequence", self.world_size)
        for item in fields(self):
            object.__setattr__(self, item.name, _plain(getattr(self, item.name)))
            _check_field(item, getattr(self, item.name))
        _check_together(self)

    @property
    def data_ranks(self):
        """Ranks, or groups of those that share their sequences, that have rows of their own."""
        return self.world_size // self.shard_sequence

    @property
    def sequences_at_once(self):
        """Sequences, or shards of them, that one rank computes together, in a micro-step."""
        return self.batch_size // (self.data_ranks * self.gradient_accumulation)

    @property
    def records_graphs(self):
        """Are CUDA graphs recorded in the warm-up?  Their replays allocate nothing that counts."""
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
        group.add_argument(_flag(item), help=text, **options)


def _flag(item):
    return "--" + item.name.replace("_", "-")


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


def pattern_options(config, arm):
    """The pattern of an arm of the window model, as GPTWindowModel takes it, else None.

    config: the fields of an ExperimentConfig, a dict.
    """
    if arm == "window":
        names = ("window_size", "dilation", "full_heads", "stagger", "sink_tokens")
        return {name: config[name] for name in names}
    options = pattern_of_arm(arm)
    if options is None:
        return None
    every = options.pop("full_layers")
    if every > config["layers"]:
        raise ValueError(f"every {every}th layer is full, of {config['layers']}: none would be")
    if every:
        of_layers = [options["full_heads"]] * config["layers"]
        for layer in range(every - 1, config["layers"], every):
            of_layers[layer] = config["n_heads"]
        options["full_heads"] = tuple(of_layers)
    return options | {"sink_tokens": config["sink_tokens"]}


def patterns_of_arm(config, arm):
    """The ``attention.pattern.Pattern`` of every layer of an arm of the window model, a list.

    config: the fields of an ExperimentConfig, a dict.
    """
    from gpt_win import layer_patterns

    return layer_patterns(config["layers"], config["n_heads"], **pattern_options(config, arm))


def arm_density(config, arm):
    """The share of the causal pairs that an arm keeps, of all its heads; 1 for full attention."""
    from attention.pattern import layer_density

    if pattern_options(config, arm) is None:
        return 1
    seq_len, n_heads = config["seq_len"], config["n_heads"]
    kept = [layer_density(seq_len, p, n_heads) for p in patterns_of_arm(config, arm)]
    return sum(kept) / len(kept)


def _plain(value):
    """Lists, from JSON, as tuples; what JSON does not take, of numpy or a path, as Python's own."""
    if hasattr(value, "tolist"):  # a number, too
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return str(value) if isinstance(value, PurePath) or type(value).__name__ == "device" else value


def _check_field(item, value):
    """One field by itself: its choices, its type, its smallest and largest value."""
    flag, least = _flag(item), item.metadata.get("least", 1)
    choices = item.metadata.get("argparse", {}).get("choices")
    if choices and value not in choices:
        raise ValueError(f"{flag} {value!r}: choose one of {', '.join(choices)}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if item.type is float and not (number and 0 < value < math.inf):
        raise ValueError(f"{flag} must be a positive number, got {value!r}")
    if item.type is bool and not isinstance(value, bool):
        raise ValueError(f"{flag} must be True or False, got {value!r}")
    if item.type is str and not isinstance(value, str):
        raise ValueError(f"{flag} must be text, got {value!r}")
    if item.type is tuple and not (isinstance(value, tuple) and {*map(type, value)} <= {str}):
        raise ValueError(f"{flag} must be names, got {value!r}")
    if item.type not in (int, int | tuple):
        return
    several = item.type is not int and isinstance(value, tuple)
    for number in value if several else [value]:
        if type(number) is not int:  # nor a bool
            raise ValueError(f"{flag} must be a whole number, got {number!r}")
        if not least <= number <= LARGEST_OPTION:
            limit = f"least {least}" if number < least else f"most {LARGEST_OPTION:,}"
            raise ValueError(f"{flag} must be at {limit}, got {number:,}")


def _check_together(config):
    """What fields must agree in, in a step's batch and in the model; arms, each of them once."""
    _check_shards(config)
    parts = config.data_ranks * config.gradient_accumulation
    if config.batch_size % parts:
        ranks = "1 rank" if config.data_ranks == 1 else f"{config.data_ranks} ranks"
        raise ValueError(
            f"--batch-size {config.batch_size} cannot be split evenly over {ranks} x "
            f"--gradient-accumulation {config.gradient_accumulation}: choose a multiple of {parts}"
        )
    if config.records_graphs and config.gradient_accumulation > 1:
        raise ValueError(
            "--compile reduce-overhead keeps gradients in CUDA graphs, which the next micro-step "
            "overwrites: choose --compile default, or --gradient-accumulation 1"
        )
    d_model, n_heads = config.d_model, config.n_heads
    if d_model % n_heads:
        heads = f"--n-heads {n_heads}: choose a multiple of it"
        raise ValueError(f"--d-model {d_model} is not divisible by {heads}")
    if config.positions == "rotary" and d_model // n_heads % 2:
        words = f"got {d_model} / {n_heads} = {d_model // n_heads}: choose others"
        raise ValueError(f"--positions rotary needs an even --d-model / --n-heads, {words}")
    unknown = [arm for arm in config.arms if arm not in ARMS and pattern_of_arm(arm) is None]
    if unknown or not config.arms:
        known = f"{', '.join(ARMS)}, or name a pattern, as w64-d8 for window_size 64, dilation 8"
        more = "and -s for stagger, -f1 for 1 full head a layer, -e4 for every 4th layer full"
        limits = "numbers have at most nine digits"
        raise ValueError(f"--arms {' '.join(unknown)}: choose from {known}, {more} ({limits})")
    if len(set(config.arms)) < len(config.arms):
        raise ValueError(f"--arms names an arm twice: {' '.join(config.arms)}")
    full_heads = 0
    for arm in ("window", *(arm for arm in config.arms if arm not in ARMS)):
        try:
            patterns = patterns_of_arm(asdict(config), arm)
            full_heads += sum(p.full_heads + (p.dilation == 1) for p in patterns)
        except ValueError as error:
            name, _, rest = str(error).partition(" ")
            option = f"--{name.replace('_', '-')} {rest}"
            raise ValueError(option if arm == "window" else f"--arms {arm}: {error}") from None
    if config.nope and (config.positions != "rotary" or not full_heads):
        words = "leaves rotary positions out of full heads, and there are none"
        raise ValueError(f"--nope {words}: add --positions rotary --full-heads 1, or leave it out")


def _check_shards(config):
    """Whether sequences can be cut over so many ranks; shards hold the windows and the sinks."""
    shards = config.shard_sequence
    if config.world_size % shards:
        raise ValueError(
            f"--shard-sequence {shards} does not divide {counted(config.world_size, 'rank')}: "
            f"start it with torchrun --nproc-per-node {shards}, or a multiple of it"
        )
    if shards == 1:
        return
    whole = [arm for arm in config.arms if ARMS.get(arm) in ("dense", "published")]
    if whole:
        raise ValueError(
            f"--arms {' '.join(whole)}: their scores of all pairs are not cut with "
            "--shard-sequence: name others, as fused window w96-d0-f1"
        )
    if config.window_attention not in ("auto", "split"):
        words = "over shards attention is split's: leave it out with --shard-sequence"
        raise ValueError(f"--window-attention {config.window_attention}: {words}")
    if config.records_graphs:
        raise ValueError(
            "--compile reduce-overhead records no exchange between ranks: choose --compile default "
            "with --shard-sequence"
        )
    from attention.pattern import FULL
    from attention.shards import check_shards

    for arm in config.arms:
        full = pattern_options(asdict(config), arm) is None
        for pattern in [FULL] if full else patterns_of_arm(asdict(config), arm):
            try:
                check_shards(config.seq_len, shards, pattern)
            except ValueError as error:
                raise ValueError(f"--shard-sequence, {arm}: {error}") from None

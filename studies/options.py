"""The command line of experiments and studies.  Needs no torch."""

import argparse
import sys

from machine.command import GOES_ON
from studies.points import LENGTHS, PATTERNS
from studies.tables import STUDIES
from training.config import PRESETS, add_options
from training.config_file import CONFIG_NAME

NOT_CONFIG = ("preset", "dry_run", "debug", "restart", "allow_mixed")
NOT_CONFIG += ("study", "seq_lens", "patterns", "tensorboard", "config")


def build_parser():
    """The command line, derived from the fields of ExperimentConfig."""
    parser = argparse.ArgumentParser(
        prog="compare_models.py" if sys.argv[0].endswith("compare_models.py") else "main.py",
        description="Train a GPT with full attention and with sliding-window + dilated attention, "
        "many times in balanced random order, and report what the sparsity buys in time, memory "
        "and quality. Prepares its data when there is none.",
        epilog="examples:\n"
        "  python main.py                             the whole experiment with this machine's "
        "preset\n"
        "  python main.py --dry-run                   what it would do, and roughly how long\n"
        "  python main.py --study lengths             from which length on sparsity pays\n"
        "  torchrun --standalone --nproc-per-node 8 main.py    the same on 8 GPUs\n\n"
        f"after a stop: {GOES_ON}\n\n"
        "exit codes: 0 done, 1 a file could not be written, 2 wrong options or data or a folder "
        "that holds another experiment, 3 done but a training diverged or ran out of memory, 130 "
        "interrupted, 143 terminated",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--preset",
        default=None,
        choices=tuple(PRESETS),
        help="paper: the published experiment; long: seven arms at S 4096 in compiled bfloat16, "
        "one pass over 100M tokens or more (python prepare_data.py --corpus site-packages), "
        "without the baseline, which takes five times as long; laptop: small, in minutes; smoke: "
        "everything in half a minute, which says nothing about time or quality (default: paper "
        "with CUDA, laptop without)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=None,
        help=f"take the options from a file, such as the {CONFIG_NAME} in the --output-dir of an "
        "experiment that is to be repeated; options on the command line override it",
    )
    switch = {"action": "store_true", "default": False}
    parser.add_argument("--dry-run", help="print the plan and a time estimate only", **switch)
    parser.add_argument("--restart", help="rename the old --output-dir and start anew", **switch)
    parser.add_argument(
        "--allow-mixed",
        help="go on with an experiment although configuration, data, code or device differ; the "
        "results are marked",
        **switch,
    )
    parser.add_argument(
        "--tensorboard",
        metavar="DIR",
        default=None,
        help="write the losses of every training as logs of TensorBoard too, when all are done; "
        "needs the package tensorboard",
    )
    add_study_options(parser)
    add_options(parser)
    return parser


def add_study_options(parser):
    study = parser.add_argument_group(
        "study",
        "Many experiments, each in a folder below --output-dir, summed up in one table and in "
        "pictures. Other defaults: 3 runs, a constant learning rate, preset long with CUDA "
        "(but --arms, --lr and --eval-every of paper).",
    )
    study.add_argument(
        "--study",
        default=None,
        choices=STUDIES,
        help="lengths: the arms at several sequence lengths, with equally many tokens in every "
        "step; patterns: window models of many patterns against fused. Both with learned and with "
        "rotary positions, unless --positions chooses one",
    )
    lengths = ", ".join(f"{' '.join(map(str, x))} ({device})" for device, x in LENGTHS.items())
    several = {"nargs": "+", "default": None}
    text = f"lengths of --study lengths (default: {lengths})"
    study.add_argument("--seq-lens", type=int, metavar="S", help=text, **several)
    patterns = " ".join(PATTERNS)
    text = f"patterns of --study patterns, W:D or names (default: {patterns})"
    study.add_argument("--patterns", metavar="W:D", help=text, **several)

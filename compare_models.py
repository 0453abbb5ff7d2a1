"""The experiment: every arm trained in every run, in balanced random order, measured and reported.

A run is a block: each arm once, from the same seed, adjacent in time, so that arms can be compared
pair by pair.  Every finished training is on the disk before the next begins, and the same command
goes on where a stop left off.  ``python main.py`` runs it from the command line;
``run_experiment`` from a notebook.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from analysis.metrics import RESULTS_NAME
from analysis.report import write_report
from analysis.values import in_order, planned_trainings
from attention.rotary import POSITIONS
from experiment.estimate import begin_experiment, dry_run
from experiment.files import StoreError, read_plan, read_runs
from experiment.progress import _exit_code, _say_stopped
from experiment.run import check_ranks, ensure_data, run_experiment, world_of
from figures.all import FIGURES, create_all_plots
from machine import ranks
from machine.command import FAILED, TRAININGS_FAILED, USAGE, say
from machine.device import resolve_device
from machine.files import check_writable, explained, remove_leftovers
from machine.signals import terminable
from studies.points import (
    DEFAULTS,
    LENGTHS,
    PATTERNS,
    STUDIES,
    STUDY_DEFAULTS,
    length_points,
    parse_pattern,
    pattern_points,
    study_folder,
)
from studies.run import run_study
from training.config import PRESETS, add_options, check_config, make_config
from training.operators import attention_used
from training.tokens import load_dataset
from training.trainer import deterministic_algorithms

NOT_CONFIG = ("preset", "dry_run", "debug", "restart", "allow_mixed")
NOT_CONFIG += ("study", "seq_lens", "patterns")


# --- the command line --------------------------------------------------------------------------
def build_parser():
    """The command line, derived from the fields of ExperimentConfig."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Train a GPT with full attention and with sliding-window + dilated attention, "
        "many times in balanced random order, and report what the sparsity buys in time, memory "
        "and quality. Prepares its data when there is none.",
        epilog="examples:\n"
        "  python main.py                             the whole experiment with this machine's "
        "preset\n"
        "  python main.py --dry-run                   what it would do, and roughly how long\n"
        "  python main.py --preset long --runs 3      where sparsity can pay (CUDA)\n"
        "  python main.py --window-size 64 --dilation 8 --output-dir out/64_8 --plots-dir "
        "out/64_8\n"
        "  python main.py --study lengths             from which length on sparsity pays\n"
        "  python main.py --study patterns            which window_size and dilation to choose\n"
        "  torchrun --standalone --nproc-per-node 8 main.py    the same on 8 GPUs\n\n"
        "every finished training is kept: after a stop the same command goes on from there\n\n"
        "exit codes: 0 done, 1 a file could not be written, 2 wrong options or data or a folder "
        "that holds another experiment, 3 done but a training diverged or ran out of memory, 130 "
        "interrupted, 143 terminated",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="paper: the published experiment; long: S 4096 in compiled bfloat16; laptop: small "
        "and short (default: paper with CUDA, laptop without)",
    )
    switch = {"action": "store_true", "default": False}
    parser.add_argument("--dry-run", help="print the plan and a time estimate, no more", **switch)
    parser.add_argument(
        "--restart", help="move the results in --output-dir aside and start anew", **switch
    )
    parser.add_argument(
        "--allow-mixed",
        help="go on with an experiment although configuration, data, code or device differ; the "
        "results are marked",
        **switch,
    )
    parser.add_argument("--debug", help="show the traceback of an error", **switch)
    study = parser.add_argument_group(
        "study",
        "Many experiments, each in a folder of its own below --output-dir, summed up in one table "
        "and in pictures. The defaults change: 3 runs, a constant learning rate, preset long with "
        "CUDA, fewer steps. The same command started once for each GPU shares the points.",
    )
    study.add_argument(
        "--study",
        choices=STUDIES,
        help="lengths: the arms at several sequence lengths, --batch-size x --seq-len tokens in "
        "every step; patterns: window models of many patterns against fused. Both with learned "
        "and with rotary positions, unless --positions chooses",
    )
    lengths = ", ".join(f"{' '.join(map(str, x))} ({device})" for device, x in LENGTHS.items())
    study.add_argument(
        "--seq-lens", nargs="+", type=int, metavar="S", help=f"of the lengths (default: {lengths})"
    )
    patterns = " ".join(f"{w}:{d}" for w, d in PATTERNS)
    study.add_argument(
        "--patterns", nargs="+", metavar="W:D", help=f"of the patterns (default: {patterns})"
    )
    add_options(parser)
    return parser


def config_from(arguments):
    """The checked configuration that parsed arguments mean; ValueError for what cannot be run."""
    chosen = {key: value for key, value in vars(arguments).items() if key not in NOT_CONFIG}
    if "arms" in chosen:
        chosen["arms"] = tuple(chosen["arms"])
    device = resolve_device(chosen.get("device", "auto"))
    if device.type == "cuda" and ":" in chosen.get("device", "") and ranks.size() > 1:
        raise ValueError(
            f"--device {chosen['device']} names one GPU for {ranks.size()} ranks: every rank "
            "takes its own, name cuda"
        )
    study = getattr(arguments, "study", None)
    large = "long" if study else "paper"
    preset = getattr(arguments, "preset", None) or (large if device.type == "cuda" else "laptop")
    if study:
        chosen = {**DEFAULTS, **STUDY_DEFAULTS[study, device.type], **chosen}
    graphs = PRESETS[preset].get("compile") == "reduce-overhead" and "compile" not in chosen
    if graphs and chosen.get("gradient_accumulation", 1) > 1:
        say("note: CUDA graphs do not go with --gradient-accumulation: --compile default instead")
        chosen["compile"] = "default"
    return make_config(preset, **{**chosen, "device": str(device), **world_of(device)})


def _refuse_study_options(arguments):
    """ValueError for options of a study that is not asked for."""
    for option, study in (("seq_lens", "lengths"), ("patterns", "patterns")):
        if hasattr(arguments, option) and getattr(arguments, "study", None) != study:
            raise ValueError(f"--{option.replace('_', '-')} belongs to --study {study}")


def points_from(arguments, config):
    """The points of the study that parsed arguments mean; ValueError for what cannot be run."""
    _refuse_study_options(arguments)
    positions = (arguments.positions,) if hasattr(arguments, "positions") else POSITIONS
    if arguments.study == "lengths":
        lengths = getattr(arguments, "seq_lens", LENGTHS[torch.device(config.device).type])
        return length_points(lengths, positions, config.batch_size, config.seq_len)
    if hasattr(arguments, "arms"):
        raise ValueError("--arms does not go with --study patterns: name --patterns")
    patterns = [parse_pattern(text) for text in getattr(arguments, "patterns", ())] or PATTERNS
    return pattern_points(patterns, positions)


def prepare_experiment(arguments):
    """Everything that can be wrong with options, folders and data, before hours of training.

    Returns the configuration and the dataset; raises ValueError or OSError.
    """
    config = config_from(arguments)
    _refuse_study_options(arguments)
    ensure_data(config.data)
    dataset = load_dataset(config.data, config.seq_len, config.batch_size)
    check_ranks(config)
    if config.window_attention == "split":
        with deterministic_algorithms(config.deterministic):
            for arm in config.arms:  # ValueError if it can't
                attention_used(config, arm, torch.device(config.device))
    if not arguments.dry_run:
        check_writable(config.output_dir, config.plots_dir)
    return config, dataset


def prepare_study(arguments):
    """The same for a study: its configuration, and [(point, configuration, dataset)]."""
    config = config_from(arguments)
    points = points_from(arguments, config)
    ensure_data(config.data)
    prepared = []
    for point in points:
        folder = study_folder(config.output_dir, arguments.study) / point.name
        here = replace(config, **point.changes, output_dir=str(folder))
        try:
            check_config(here)
            dataset = load_dataset(here.data, here.seq_len, here.batch_size)
        except ValueError as error:
            raise ValueError(f"point {point.name}: {error}") from None
        prepared.append((point, here, dataset))
    check_ranks(prepared[0][1])
    if not arguments.dry_run:
        check_writable(config.output_dir, config.plots_dir)
    return config, prepared


def run_and_report(config, dataset, arguments, argv):
    """The experiment, its report on stdout and in a file, and its plots; returns the exit code."""
    codes, began = [], []

    def begin(stored):
        began.append(True)
        return begin_experiment(config, dataset, stored)

    def report(metrics, metadata):
        if metadata["processes"] and not began:
            say(f"complete: all {len(in_order(metrics))} trainings are done; reporting them again")
        codes.append(report_results(config, metrics, metadata))

    options = {"restart": arguments.restart, "allow_mixed": arguments.allow_mixed}
    try:
        run_experiment(config, dataset, **options, before=begin, after=report, argv=argv)
        return codes[0]
    except KeyboardInterrupt as stop:
        _say_stopped(stop, f": {_kept(config, arguments.restart)}")
        return _exit_code(stop)


def report_results(config, metrics, metadata):
    """Write and print the report and draw the plots; returns the exit code."""
    report_path, report = write_report(metrics, metadata, config.output_dir)
    paths = [Path(config.output_dir) / f"{RESULTS_NAME}.npz", report_path]
    finished_well = [run for run in in_order(metrics) if run["status"] == "ok"]
    if finished_well:
        figures = [f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")]
        remove_leftovers(config.plots_dir, figures)
        paths += create_all_plots(metrics, metadata, config.plots_dir)
    print(report, flush=True)
    say("written: " + ", ".join(str(path) for path in paths if path.suffix != ".pdf"))
    return 0 if len(finished_well) == len(in_order(metrics)) else TRAININGS_FAILED


def _kept(config, restarted):
    """What an interrupted experiment leaves, in words, and how to go on."""
    plan = read_plan(config.output_dir)
    done = in_order(read_runs(config.output_dir, plan)[0]) if plan else ()
    if not done:
        return "no training had been finished, so nothing was kept"
    total = planned_trainings(plan)
    command = "the same command without --restart" if restarted else "the same command"
    return (
        f"{len(done)} of {total} trainings are kept in {config.output_dir}; {command} goes on from "
        "there"
    )


def main(argv=None):
    """The command line of the experiment; returns the exit code (see --help).

    Of the ranks that torchrun started, rank 0 alone reads it; the others do as rank 0 says.
    """
    return ranks.lead_or_follow(partial(_lead, argv))


def _lead(argv):
    arguments = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without ± gets a ? and not a traceback
            stream.reconfigure(errors="replace")
    with terminable():
        argv = sys.argv[1:] if argv is None else argv
        try:
            study = hasattr(arguments, "study")
            try:
                config, prepared = (prepare_study if study else prepare_experiment)(arguments)
            except ValueError as error:
                return _complain(error, arguments, USAGE)
            if study:
                return run_study(config, prepared, arguments, argv)
            if arguments.dry_run:
                dry_run(config, prepared, arguments.restart, arguments.allow_mixed)
                return 0
            return run_and_report(config, prepared, arguments, argv)
        except StoreError as error:
            return _complain(error, arguments, USAGE)
        except OSError as error:
            return _complain(error, arguments, FAILED)
        except KeyboardInterrupt as stop:
            _say_stopped(stop, " before the first training")
            return _exit_code(stop)


def _complain(error, arguments, code):
    """One line for an error, or its traceback with --debug; returns ``code``."""
    if arguments.debug:
        raise error
    words = error
    if isinstance(error, OSError) and error.filename is not None:
        error = explained(error, error.filename)
        words = f"{error.filename}: {error.strerror}"
    print(f"error: {words}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

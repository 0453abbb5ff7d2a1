"""The story of an experiment's command, and a study's: what its options mean, and what is done.

The options themselves are in options.py, which needs no torch.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch

from analysis.answers import answers
from analysis.metrics import RESULTS_NAME
from analysis.report import write_report
from analysis.rows import write_rows
from analysis.values import ok_trainings, trainings_of
from analysis.words import Section, report_text
from experiment.run import dry_run, run_experiment
from experiment.tensorboard import check_tensorboard, write_tensorboard
from figures.all import create_all_plots
from figures.page import PAGE_NAME
from machine import ranks
from machine.command import DONE, TRAININGS_FAILED, UserError, checked_options, say
from machine.describe import describe_code
from machine.device import device_name
from machine.files import check_writable, file_sha256
from studies.options import NOT_CONFIG
from studies.points import (
    DEFAULTS,
    LENGTHS,
    PATTERNS,
    STUDY_DEFAULTS,
    length_points,
    parse_pattern,
    pattern_points,
    study_folder,
)
from studies.run import run_study
from studies.tables import point_name
from training.config import POSITIONS, make_config
from training.config_file import read_config
from training.prepare import PRESET_DATA, prepare_data
from training.tokens import load_dataset


def with_file(arguments):
    """The arguments, joined by those of the --config file as if they had been given too."""
    if arguments.config is None:
        return arguments
    file = ranks.from_first(read_config, arguments.config)
    preset = file.setdefault("preset", arguments.preset)
    if arguments.preset not in (None, preset):
        raise ValueError(
            f"--preset {arguments.preset}: {arguments.config} is of preset {preset}, with all its "
            "values: leave one of the two out"
        )
    return argparse.Namespace(**{**file, **vars(arguments), "preset": preset})


def config_from(arguments):
    """The checked configuration that parsed arguments mean; ValueError for what cannot be run."""
    chosen = {key: value for key, value in vars(arguments).items() if key not in NOT_CONFIG}
    device = ranks.chosen_device(chosen.get("device", "auto"))
    preset = arguments.preset
    if preset is None:
        on_gpu = "long" if arguments.study else "paper"
        preset = on_gpu if device.type == "cuda" else "laptop"
    if arguments.study:
        chosen = {**DEFAULTS, **STUDY_DEFAULTS[arguments.study, device.type], **chosen}
    chosen |= {"device": str(device), "world_size": ranks.size(), "backend": ranks.backend(device)}
    return make_config(preset, **chosen)


def points_from(arguments, config):
    """The points of the study that parsed arguments mean, none without a study.

    ValueError for what cannot be run, and for a study's options without it.
    """
    study = arguments.study
    if arguments.seq_lens and study != "lengths":
        raise ValueError("--seq-lens belongs to --study lengths")
    if arguments.patterns and study != "patterns":
        raise ValueError("--patterns belongs to --study patterns")
    if study is None:
        return []
    positions = (arguments.positions,) if hasattr(arguments, "positions") else POSITIONS
    if study == "lengths":
        lengths = arguments.seq_lens or LENGTHS[torch.device(config.device).type]
        return length_points(lengths, positions, config.batch_size, config.seq_len)
    if hasattr(arguments, "arms"):
        raise ValueError("--arms does not go with --study patterns: name --patterns")
    patterns = [parse_pattern(text) for text in arguments.patterns or ()]
    return pattern_points(patterns or PATTERNS, positions)


def prepare_point(point, config, study):
    """A point's name, configuration and dataset; ValueError names the point."""
    name = point_name(study, point)
    folder = study_folder(config.output_dir, study) / name
    try:
        point_config = replace(config, **point, output_dir=str(folder))
        dataset = load_dataset(point_config.data, point_config.seq_len, point_config.batch_size)
    except ValueError as error:
        raise ValueError(f"point {name}: {error}") from None
    return name, point_config, dataset


def ensure_data(path):
    """Prepare a preset's data file where it is missing, from the standard library, and say so.

    A file that the user named is never made up: load_dataset says that it is missing.
    """
    if os.path.lexists(path) or path not in PRESET_DATA:
        return
    say(f"{path} is missing: preparing it from the Python standard library's own source")
    summary, _ = prepare_data(output=path, **PRESET_DATA[path])
    say(summary)


def check_ranks(config):
    """Raise UserError, before hours of training, where the ranks cannot train one model.

    Machines need not share a disk, so the files of each are compared.
    """
    if ranks.size() == 1:
        return
    device = ranks.on_every(ranks.local_device, torch.device(config.device))
    mine = {
        "data": file_sha256(config.data),
        "code": describe_code()["sources_sha256"],
        "torch": torch.__version__,
        "device": device_name(device).split(" (")[0],
    }
    for rank, other in enumerate(ranks.gather(mine)):
        if different := [key for key in mine if other[key] != mine[key]]:
            raise UserError(
                f"rank {rank} differs in {', '.join(different)}: every rank needs the same data, "
                "code, torch and kind of device"
            )


def report_results(config, metrics, metadata):
    """Write the report, the figures and the rows, print the report; returns the exit code."""
    folder = Path(config.output_dir)
    report_path, report = write_report(metrics, metadata, folder)
    paths = [folder / f"{RESULTS_NAME}.npz", report_path, *write_rows(metrics, folder)]
    ended_well = ok_trainings(metrics)
    if ended_well:
        paths += create_all_plots(metrics, metadata, config.plots_dir, folder / PAGE_NAME)
    print(report, flush=True)
    say("written: " + ", ".join(str(path) for path in paths if path.suffix != ".pdf"))
    print(report_text([Section("", answers(metrics, metadata))]), end="", flush=True)  # at the end
    return DONE if len(ended_well) == len(trainings_of(metrics)) else TRAININGS_FAILED


def tell(arguments, argv):
    """The whole story of the command; returns its exit code (see --help)."""
    with checked_options():
        arguments = with_file(arguments)
        config = config_from(arguments)
        points = points_from(arguments, config)
        if arguments.tensorboard:
            if points:
                raise ValueError("--tensorboard does not go with --study")
            check_tensorboard()
        ranks.from_first(ensure_data, config.data)
        if points:
            prepared = [
                ranks.on_every(prepare_point, point, config, arguments.study) for point in points
            ]
        else:
            dataset = ranks.on_every(load_dataset, config.data, config.seq_len, config.batch_size)
        check_ranks(config)
    if not arguments.dry_run:
        ranks.from_first(check_writable, config.output_dir, config.plots_dir)
    if points:
        return run_study(config, prepared, arguments, argv)
    how = {"restart": arguments.restart, "allow_mixed": arguments.allow_mixed}
    if arguments.dry_run:
        dry_run(config, dataset, **how)
        return DONE
    results = run_experiment(config, dataset, **how, argv=argv)
    if not ranks.is_first():
        return DONE
    if arguments.tensorboard:
        write_tensorboard(*results, arguments.tensorboard)
    return report_results(config, *results)

"""A study: its experiments one after the other, summed up."""

from functools import partial

from analysis.report import write_report
from experiment.estimate import begin_experiment, dry_run
from experiment.files import Busy, locked
from experiment.identity import identity_here, identity_of_config
from experiment.progress import _exit_code, _say_stopped, format_seconds
from experiment.run import run_experiment
from experiment.stored import move_old_results, result_names
from machine.command import TRAININGS_FAILED, say
from studies.shared import SharedStudy
from studies.tables import format_study


# --- studies -----------------------------------------------------------------------------------
def points_here(study, prepared, allow_mixed, restart=False):
    """The points of ``prepared`` that this launch is to train, each announced first."""
    for number, (point, here, dataset) in enumerate(prepared, start=1):
        say(f"point {number} of {len(prepared)}: {point.name}")
        identity = study.identity | {"config": identity_of_config(here)}
        elsewhere = study.of_another_gpu(here.output_dir, identity, allow_mixed)
        if elsewhere and not restart:
            say(f"  {elsewhere}")
        else:
            yield point, here, dataset


def dry_run_study(study, prepared, restart, allow_mixed):
    """``dry_run`` of every point, and roughly how long all take."""
    seconds = 0
    for point, here, dataset in points_here(study, prepared, allow_mixed, restart):
        print(f"{point.name}:")
        seconds += dry_run(here, dataset, restart, allow_mixed)
    say(f"all {len(prepared)} points: roughly {format_seconds(seconds)}")


def run_study(config, prepared, arguments, argv):
    """A study's experiments, one after the other, and what they come to; returns the exit code.

    What another launch trains at this moment is left to it, and what one has completed is taken.
    """
    try:
        _, first, dataset = prepared[0]
        identity = identity_here(first, dataset)
        study = SharedStudy(arguments.study, config.output_dir, config.plots_dir, identity, say)
        if arguments.dry_run:
            dry_run_study(study, prepared, arguments.restart, arguments.allow_mixed)
            return 0
        if arguments.restart:  # all before the first training, so that the same command goes on
            for _, here, _ in prepared:
                with locked(here.output_dir, result_names(here)):
                    move_old_results(here)
        for point, here, dataset in points_here(study, prepared, arguments.allow_mixed):
            options = {"allow_mixed": arguments.allow_mixed, "argv": argv}
            options["before"] = partial(begin_experiment, here, dataset)
            try:
                results = run_experiment(here, dataset, **options)
            except Busy as busy:
                say(f"  left to the launch that trains it: {busy.holder}")
                continue
            write_report(*results, here.output_dir)
            study.own[point.name] = results
            study.sum_up()
        return report_study(study)
    except KeyboardInterrupt as stop:
        command = "the same command without --restart" if arguments.restart else "the same command"
        kept = f"finished trainings are kept below {config.output_dir}"
        _say_stopped(stop, f": {kept}; {command} goes on from there")
        return _exit_code(stop)


def report_study(study):
    """Print a study's tables and draw its figures; returns the exit code.

    Memory that ran out is a result of a study, and no failure.
    """
    content, paths = study.sum_up(draw=True)
    if content is None:
        say("no point is complete yet: the launches that train them will report the study")
        return 0
    print(format_study(content), flush=True)
    say("written: " + ", ".join(str(path) for path in paths if path.suffix != ".pdf"))
    arms = [arm for point in content["points"] for arm in point["arms"].values()]
    return TRAININGS_FAILED if any(arm["diverged"] for arm in arms) else 0

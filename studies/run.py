"""A study: an experiment at every point, one after the other, and what they come to."""

from analysis.report import write_report
from experiment.files import move_aside
from experiment.progress import format_seconds
from experiment.run import dry_run, run_experiment
from figures.page import publish
from machine import ranks
from machine.command import DONE, TRAININGS_FAILED, say
from machine.files import write_json
from studies.pictures import study_page
from studies.points import study_folder
from studies.summary import summarize


def run_study(config, prepared, arguments, argv):
    """Train what waits at every point, report the study and return the exit code.

    prepared: [(a point's name, its configuration, its dataset)].  After a stop the same command
    goes on: points that are complete are only reported again.
    """
    folder = study_folder(config.output_dir, arguments.study)
    path = folder.with_suffix(".json")
    experiments, content = [], None
    seconds = 0
    if arguments.restart and not arguments.dry_run:
        ranks.from_first(move_study_aside, folder, path, config.data)
    for number, (name, point_config, dataset) in enumerate(prepared, start=1):
        say(f"point {number} of {len(prepared)}: {name}")
        if arguments.dry_run:
            print(f"{name}:")
            seconds += dry_run(point_config, dataset, arguments.restart, arguments.allow_mixed)
            continue
        results = run_experiment(
            point_config, dataset, allow_mixed=arguments.allow_mixed, argv=argv
        )
        if results is not None:  # on the first rank
            write_report(*results, point_config.output_dir)
            experiments.append(results)
            content = summarize(arguments.study, experiments)
            write_json(path, content)  # after every point: a stop loses nothing
    if arguments.dry_run:
        say(f"all {len(prepared)} points: roughly {format_seconds(seconds)}")
        return DONE
    return ranks.from_first(report_study, content, path, config.plots_dir)


def move_study_aside(folder, path, data):
    """Rename an earlier study's folder, with the study's files in it, out of the way."""
    moved = move_aside(folder, data)
    for file in (path, path.with_suffix(".html")):
        if moved and file.exists():
            file.rename(moved / file.name)


def report_study(content, path, plots_dir):
    """Print and draw a study; returns the exit code.

    Memory that ran out is a result of a study, and no failure.
    """
    publish(study_page(content), path, plots_dir)
    arms = [arm for point in content["points"] for arm in point["arms"].values()]
    return TRAININGS_FAILED if any(arm["diverged"] for arm in arms) else DONE

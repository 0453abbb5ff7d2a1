"""A study's folder: points on the disk, summed up while others still train."""

from pathlib import Path

from analysis.metrics import RESULTS_NAME, MetricsError, fitting, load_experiment
from analysis.values import in_order, planned_trainings
from experiment.files import locked, read_plan, read_runs
from experiment.identity import identities_differ
from studies.pictures import plot_study, save_figures
from studies.points import THERE_AND_HERE, _on_any_gpu, point_name, shared_identity, study_folder
from studies.summary import save_study, summarize


def points_on_disk(study, folder, shared, own):
    """A study's points, whichever launch trained them.

    folder: where each has a folder of its own.  shared: the ``shared_identity`` of this launch.
    own: {name: (metrics, metadata)} of the points that this launch has done; where one was trained
    otherwise (--allow-mixed), it is marked.  Returns [(metrics, metadata)], {name of a folder: why
    it is no point of this study} and {name: how much is done} of those under way.
    """
    experiments, left_out, under_way = [], {}, {}
    for metrics, metadata in own.values():
        there = shared_identity(study, metadata["identity"])
        lines = metadata["mixed"] + identities_differ(there, shared, THERE_AND_HERE)
        experiments.append((metrics, metadata | {"mixed": list(dict.fromkeys(lines))}))
    for path in sorted(Path(folder).iterdir()):
        results = path / f"{RESULTS_NAME}.npz"
        try:
            if path.name in own or not results.is_file():
                continue
            metrics, metadata = load_experiment(results)
            with fitting(results):
                why_not = _why_no_point(study, path.name, metadata, shared)
                if why_not is None and metadata["status"] != "complete":
                    under_way[path.name] = _progress(metrics, metadata)
                elif why_not is None:
                    summarize(study, [(metrics, metadata)])  # or it is damaged
                    experiments.append((metrics, metadata))
        except MetricsError as error:
            why_not = str(error)
        except OSError as error:  # of a folder that may not be entered
            why_not = f"{results}: cannot be read ({error.strerror})"
        if why_not:
            left_out[path.name] = why_not
    return experiments, left_out, under_way


def _progress(metrics, metadata):
    return f"{len(in_order(metrics))} of {planned_trainings(metadata)} trainings done"


def _why_no_point(study, name, metadata, shared):
    """Why an experiment in a study's folder is no point of the study, in words, or None."""
    if "identity" not in metadata:
        return "it does not say how it was trained"
    if (expected := point_name(study, metadata["config"])) != name:
        return f"its configuration is that of {expected}"
    there = shared_identity(study, metadata["identity"])
    return "; ".join(identities_differ(there, shared, THERE_AND_HERE)) or None


# --- a folder that launches share --------------------------------------------------------------
class SharedStudy:
    """A study's folder, in which several launches may train, each the points that it finds free.

    Its file and figures are always made anew, in turn, from all points on the disk.
    """

    def __init__(self, study, output_dir, plots_dir, identity, say=print):
        """identity: of any point, if this launch trained it; say: gets each remark."""
        self.study, self.identity, self.say = study, identity, say
        self.shared = shared_identity(study, identity)
        self.output_dir, self.plots_dir = output_dir, plots_dir
        self.folder = study_folder(output_dir, study)
        self.own = {}  # {name of a point: (metrics, metadata)}, of this launch
        self.said = set()

    def of_another_gpu(self, folder, identity, allow_mixed=False):
        """How far a launch on another GPU came with the point in ``folder``, in words, or None.

        identity: what the point would be if it were trained here.  allow_mixed: what another one
        has only begun counts as none, since this launch may go on with it.
        """
        plan = read_plan(folder)
        if plan is None or not identities_differ(plan["identity"], identity):
            return None
        if identities_differ(_on_any_gpu(plan["identity"]), _on_any_gpu(identity)):
            return None
        metrics = read_runs(folder, plan)[0]
        if len(in_order(metrics)) == planned_trainings(plan):
            return "done by a launch on another GPU"
        words = f"begun on another GPU, {_progress(metrics, plan)}: left to a launch there"
        return None if allow_mixed else words

    def sum_up(self, draw=False):
        """Write the study's file, and its figures; returns its content and the paths.

        Content None: no point is complete.
        """
        with locked(self.folder, wait=True):
            found = points_on_disk(self.study, self.folder, self.shared, self.own)
            experiments, left_out, under_way = found
            for name, why in left_out.items():
                if (name, why) not in self.said:
                    self.say(f"{self.folder / name} is left out of the study: {why}")
                self.said.add((name, why))
            if draw:
                for name, how_much in under_way.items():
                    self.say(f"{self.folder / name} is not in the study yet: {how_much}")
            if not experiments:
                return None, []
            content = summarize(self.study, experiments)
            paths = [save_study(content, self.output_dir)]
            if draw:
                paths += save_figures(plot_study(content), self.plots_dir)
            return content, paths

"""Studies: the experiment at many sequence lengths or with many patterns, summed up.

``python compare_models.py --study lengths`` and ``--study patterns`` train; every point of a study
is an experiment with a folder of its own, which goes on after a stop like any other.  What is here
works on their saved metrics: which points there are, the content of ``<study>_study.json``, its
tables and its pictures.  That file is always made anew from the points on the disk, so that several
launches, each with a GPU and some points of its own, can share a study.

    content = summarize("lengths", [load_experiment(path) for path in paths])
    print(format_study(content))
    figures = plot_study(content)  # {name: Figure}

Letters: S sequence length, w window_size, d dilation.
"""

import math
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from create_model_plots import LOOK, MARGIN, arm_styles, save_figure, smooth
from gpt import model_flops
from metrics_utils import (
    DAMAGE,
    RESULTS_NAME,
    MetricsError,
    arm_of_pattern,
    fitting,
    launched,
    load_experiment,
    ordered_arms,
    pattern_of_arm,
    planned_trainings,
    read_file,
    shared_values,
    text_table,
    unsealed,
    utc_now,
    write_sealed,
)
from report import measurement_warnings
from run_store import identities_differ, locked, read_plan, read_runs
from significance import mean_interval, non_inferiority, paired_difference, paired_ratio
from window_attention import causal_pairs, density

STUDIES = ("lengths", "patterns")
LENGTHS = {"cpu": (256, 512, 1024, 2048), "cuda": (256, 1024, 4096, 16384)}
# three windows, each alone and with far keys; the published 96, 4 among them
PATTERNS = ((32, 0), (32, 8), (96, 0), (96, 4), (96, 16), (256, 0), (256, 8), (256, 32))
# over a preset; a constant learning rate, so that every moment is the end of a training
DEFAULTS = {"runs": 3, "schedule": "constant"}
# a million tokens of preset long: a large corpus holds out more than a training reads
ON_CUDA = {"val_batches": 64}
STUDY_DEFAULTS = {
    ("lengths", "cpu"): {"batch_size": 2, "max_steps": 40},
    ("lengths", "cuda"): {"max_steps": 300, **ON_CUDA},
    ("patterns", "cpu"): {},
    ("patterns", "cuda"): {"max_steps": 600, **ON_CUDA},
}
# what the points of a study may differ in, beside the GPU that trained them
OF_A_POINT = {"lengths": ("seq_len", "batch_size", "positions"), "patterns": ("arms", "positions")}
THERE_AND_HERE = "there", "here"
CURVE_POINTS = 40
NO_ROOM = "out_of_memory"


class StudyError(ValueError):
    """A study that cannot be made or read; the message names the value or file and the remedy."""


# --- the points --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One experiment of a study: its folder's name, and what it changes in the configuration."""

    name: str
    changes: dict


def length_points(lengths, positions, batch_size, seq_len):
    """A point for each kind of positions and each length, all of batch_size x seq_len tokens."""
    tokens = batch_size * seq_len
    points = []
    for kind in positions:
        for length in sorted(set(lengths)):
            if length < 1 or tokens % length:
                raise StudyError(
                    f"--seq-lens {length}: does not divide the {tokens:,} tokens of a step "
                    "(--batch-size x --seq-len): choose lengths that do"
                )
            changes = {"seq_len": length, "batch_size": tokens // length, "positions": kind}
            points.append(Point(point_name("lengths", changes), changes))
    return points


def pattern_points(patterns, positions):
    """A point for each kind of positions: ``fused`` and a window arm for each pattern."""
    arms = ("fused", *dict.fromkeys(arm_of_pattern(*pattern) for pattern in patterns))
    changes = [{"arms": arms, "positions": kind} for kind in positions]
    return [Point(point_name("patterns", c), c) for c in changes]


def point_name(study, config):
    """What the folder of a point is called: ``rotary_1024``, of a study of patterns ``rotary``."""
    kind = config.get("positions", "learned")
    return f"{kind}_{config['seq_len']}" if study == "lengths" else kind


def parse_pattern(text):
    """(window_size, dilation) of a text like ``96:4``; StudyError."""
    window_size, colon, dilation = text.partition(":")
    if not (colon and window_size.isdecimal() and dilation.isdecimal()):
        raise StudyError(f"--patterns {text}: give window_size:dilation, as 96:4")
    return int(window_size), int(dilation)


# --- summing up --------------------------------------------------------------------------------


def _arm_summary(runs):
    """Means over an arm's trainings that ended well, with t intervals, and how the others ended."""
    ok = [run for run in runs if run["status"] == "ok"]
    summary = {"runs": len(runs), "ok": len(ok)}
    summary |= {s: sum(r["status"] == s for r in runs) for s in (NO_ROOM, "diverged")}
    series = {
        "step_ms": [1e3 * run["training_time"] / run["total_steps"] for run in ok],
        "tokens_per_second": [run["tokens_per_second"] for run in ok],
        "peak_memory_mb": [run["peak_memory_mb"] for run in ok],
        "val_loss": [run["val_loss"] for run in ok],
    }
    for name, values in series.items():
        values = [value for value in values if math.isfinite(value)]
        summary[name] = asdict(mean_interval(values)) if values else None
    return summary


def _contrast(metrics, arm, reference, margin):
    """An arm against another, block by block; None where no block has both."""
    pair = arm, reference
    # a training may end well and have no validation loss that is a number
    if not all(len(shared_values(metrics, pair, key)[0]) for key in ("training_time", "val_loss")):
        return None
    contrast = {}
    for name, key in (("time", "training_time"), ("memory", "peak_memory_mb")):
        values = shared_values(metrics, pair, key)
        contrast[name] = asdict(paired_ratio(*values)) if len(values[0]) else None
    losses = shared_values(metrics, pair, "val_loss")
    contrast["val_loss"] = asdict(paired_difference(*losses))
    contrast["quality"] = asdict(non_inferiority(*losses, margin))
    return contrast


def _limits(config, kept, vocab_size):
    """The share of the pairs that a pattern keeps, and what that saves of a whole step's FLOPs.

    step_limit: FLOPs of a step with full attention over those of a step with the pattern.
    """
    seq_len = config["seq_len"]
    linear, per_pair = model_flops(seq_len, config["d_model"], config["layers"], vocab_size)
    attention = per_pair * causal_pairs(seq_len)
    return {"density": kept, "step_limit": (linear + attention) / (linear + attention * kept)}


def _unlike_marked(study, experiments):
    """The experiments, those marked as mixed that were not trained as the first unmarked one."""

    def unmarked(metadata):
        return "identity" in metadata and not metadata.get("mixed")

    first = next((metadata for _, metadata in experiments if unmarked(metadata)), None)
    marked = []
    for metrics, metadata in experiments:
        if unmarked(metadata):
            one, other = (shared_identity(study, m["identity"]) for m in (metadata, first))
            words = "there", f"in {point_name(study, first['config'])}"
            metadata = metadata | {"mixed": identities_differ(one, other, words)}
        marked.append((metrics, metadata))
    return marked


def summarize(study, experiments):
    """A study's content, plain values for JSON, from its experiments' (metrics, metadata).

    Points differ in what OF_A_POINT names; one that differs from the first in more (code, another
    option, a variable) is marked as mixed.
    """
    if not experiments:
        raise StudyError(f"no experiment of the study of {study} has a finished training")
    experiments = _unlike_marked(study, experiments)
    summarize_one = _length_point if study == "lengths" else _pattern_point
    metadata = experiments[0][1]
    environment = metadata["environment"]
    points = [summarize_one(*experiment) for experiment in experiments]
    return {
        "study": study,
        "created_at": utc_now(),
        "device_name": environment["device_name"],
        "gpus": len({gpu["uuid"] for _, m in experiments if (gpu := m["environment"].get("gpu"))}),
        "torch": environment["torch"],
        "data": metadata["data"],
        "code": metadata.get("code"),
        "config": metadata["config"],
        "points": sorted(points, key=lambda point: (point["positions"], point["seq_len"])),
    }


def _place(metrics, metadata):
    """What a point says of its experiment."""
    config = metadata["config"]
    keys = ("seq_len", "batch_size", "dtype", "compile", "runs", "output_dir")
    place = {key: config[key] for key in keys}
    place["positions"] = config.get("positions", "learned")
    place["steps"], place["status"] = metadata["steps"], metadata["status"]
    place["mixed"] = metadata.get("mixed", [])
    place["warnings"] = measurement_warnings(metrics, metadata)
    place["experiment_id"] = metadata["experiment_id"]
    return place


def _length_point(metrics, metadata):
    config, vocab_size = metadata["config"], metadata["data"]["vocab_size"]
    margin = metadata["plan"]["equivalence_margin"]
    point = _place(metrics, metadata)
    point |= _limits(config, metadata["pattern"]["density"], vocab_size)
    point["evaluation"] = metadata["pattern"]["evaluation"]
    point["arms"] = {arm: _arm_summary(metrics[arm]) for arm in ordered_arms(metrics)}
    pairs = [p for p in (("window", "fused"), ("window", "baseline")) if set(p) <= set(metrics)]
    point["contrasts"] = {"/".join(p): _contrast(metrics, *p, margin) for p in pairs}
    return point


def _pattern_point(metrics, metadata):
    config, vocab_size = metadata["config"], metadata["data"]["vocab_size"]
    margin = metadata["plan"]["equivalence_margin"]
    point = _place(metrics, metadata) | {"margin": margin}
    arms = {}
    for arm in ordered_arms(metrics):
        arms[arm] = _arm_summary(metrics[arm])
        if pattern := pattern_of_arm(arm):
            arms[arm] |= {"window_size": pattern[0], "dilation": pattern[1]}
            kept = density(config["seq_len"], *pattern, config.get("sink_tokens", 0))
            arms[arm] |= _limits(config, kept, vocab_size)
            arms[arm]["contrast"] = _contrast(metrics, arm, "fused", margin)
    point["arms"] = arms
    point["equal_seconds"] = _equal_seconds(metrics)
    point["curves"] = _curves(metrics)
    for name, losses in (("pareto", _val_differences), ("pareto_seconds", _equal_differences)):
        front = pareto_front({arm: (_speed_up(arms, arm), y) for arm, y in losses(point).items()})
        for arm in arms:
            arms[arm][name] = arm in front
    return point


def _speed_up(arms, arm):
    """How many times as fast as ``fused`` an arm trains, the geometric mean over the blocks."""
    return 1.0 if arm == "fused" else 1 / arms[arm]["contrast"]["time"]["ratio"]


def _val_differences(point):
    """{arm: mean validation loss minus that of fused} at equal tokens."""
    arms = point["arms"]
    found = {a: s["contrast"]["val_loss"]["mean"] for a, s in arms.items() if s.get("contrast")}
    return {"fused": 0.0} | found


def _equal_differences(point):
    """{arm: mean training loss minus that of fused} at equal seconds."""
    if point["equal_seconds"] is None:
        return {}
    differences = point["equal_seconds"]["differences"].items()
    return {"fused": 0.0} | {a: d["mean"] for a, d in differences if point["arms"][a]["contrast"]}


def pareto_front(points):
    """The names of {name: (speed-up, loss)} that no other one beats in both; ties stay."""
    return {
        name
        for name, (speed, loss) in points.items()
        if not any(
            (s >= speed and value <= loss) and (s > speed or value < loss)
            for s, value in points.values()
        )
    }


def _smoothed(run):
    """A training's loss as the mean of the last steps' (a twentieth of all, at least 5)."""
    losses = np.asarray(run["losses"], dtype=np.float64)
    window = min(len(losses), max(5, len(losses) // 20))
    return smooth(losses[None], window)[0], window


def _by_run(metrics, arm):
    return {run["run"]: run for run in metrics[arm] if run["status"] == "ok"}


def _curves(metrics):
    """Training loss minus that of fused over the tokens seen, with the t interval over runs."""
    reference = _by_run(metrics, "fused")
    curves = {}
    for arm in ordered_arms(metrics):
        runs = _by_run(metrics, arm)
        shared = sorted(set(runs) & set(reference))
        if arm == "fused" or not shared:
            continue
        rows = []
        for run in shared:
            (mine, window), (other, _) = _smoothed(runs[run]), _smoothed(reference[run])
            rows.append(mine - other)
        differences = np.array(rows)  # (runs, steps - window + 1)
        chosen = np.unique(np.linspace(0, differences.shape[1] - 1, CURVE_POINTS).round())
        chosen = chosen.astype(int)
        bands = [asdict(mean_interval(differences[:, i])) for i in chosen]
        tokens = runs[shared[0]]["tokens_seen"][chosen + window - 1]
        curves[arm] = {"tokens": [int(t) for t in tokens], "smoothed_steps": window}
        curves[arm] |= {key: [band[key] for band in bands] for key in ("mean", "low", "high")}
    return curves


def _equal_seconds(metrics):
    """Training losses when every training has had the time of the fastest one, against fused.

    A training's steps count as equally long.  With a constant learning rate the loss at that
    moment is that of a training which ends there.  None without a block of fused and another.
    """
    ok = [run for arm in metrics for run in _by_run(metrics, arm).values()]
    reference = _by_run(metrics, "fused")
    if not (ok and reference):
        return None
    seconds = min(run["training_time"] for run in ok)

    def loss_of(run):
        losses, window = _smoothed(run)
        steps = int(run["total_steps"] * seconds / run["training_time"])
        return float(losses[max(0, steps - window)])

    differences = {}
    for arm in ordered_arms(metrics):
        runs = _by_run(metrics, arm)
        shared = sorted(set(runs) & set(reference))
        if arm == "fused" or not shared:
            continue
        pair = [[loss_of(of[run]) for run in shared] for of in (runs, reference)]
        differences[arm] = asdict(paired_difference(*pair))
    return {"seconds": seconds, "differences": differences}


# --- files -------------------------------------------------------------------------------------


def _on_any_gpu(identity):
    """An experiment's identity without which of several equal GPUs trained it."""
    config = {key: value for key, value in identity["config"].items() if key != "device"}
    device = {key: value for key, value in identity["device"].items() if key != "uuid"}
    variables = device.get("variables", {}).items()
    device["variables"] = {k: v for k, v in variables if k != "CUDA_VISIBLE_DEVICES"}
    return identity | {"config": config, "device": device}


def shared_identity(study, identity):
    """What all points of a study have in common: an identity without what is one point's own."""
    identity = _on_any_gpu(identity)
    config = identity["config"]
    if study == "lengths":
        config["tokens_of_a_step"] = config["seq_len"] * config["batch_size"]
    config = {key: value for key, value in config.items() if key not in OF_A_POINT[study]}
    return identity | {"config": config}


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
    return f"{len(launched(metrics))} of {planned_trainings(metadata)} trainings done"


def _why_no_point(study, name, metadata, shared):
    """Why an experiment in a study's folder is no point of the study, in words, or None."""
    if "identity" not in metadata:
        return "it does not say how it was trained"
    if (expected := point_name(study, metadata["config"])) != name:
        return f"its configuration is that of {expected}"
    there = shared_identity(study, metadata["identity"])
    return "; ".join(identities_differ(there, shared, THERE_AND_HERE)) or None


def study_folder(output_dir, study):
    """Where the points of a study lie, each in a folder of its own."""
    return Path(output_dir) / study_name(study)


def study_name(study):
    """The stem of a study's file: ``length_study`` or ``pattern_study``."""
    return f"{study[:-1]}_study"


def save_study(content, output_dir):
    """Write ``<study>_study.json``, sealed with a checksum, whole or not at all; its path."""
    path = Path(output_dir) / f"{study_name(content['study'])}.json"
    write_sealed(path, content)
    return path


def load_study(path):
    """The content of a study's file; MetricsError names the file and the remedy."""
    remedy = "python compare_models.py --study patterns writes it"
    text = read_file(path, MetricsError, remedy)
    try:
        content = unsealed(text)
        if content["study"] not in STUDIES or not content["points"]:
            raise ValueError("it holds no study")
    except (*DAMAGE, KeyError) as error:
        raise MetricsError(
            f"{path}: no study, or damaged ({error}): start the study again, it makes the file "
            "anew from what was trained"
        ) from None
    return content


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
        if len(launched(metrics)) == planned_trainings(plan):
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


# --- tables ------------------------------------------------------------------------------------


def with_interval(estimate, template):
    """An estimate with its interval in brackets, as text."""
    if estimate is None:
        return "-"
    value = template.format(estimate["mean"])
    if estimate["low"] is None:
        return value
    return f"{value} [{template.format(estimate['low'])}, {template.format(estimate['high'])}]"


def _gain(ratio):
    """A ratio of times turned into how many times as fast, with its interval."""
    if ratio is None:
        return "-"
    return with_interval(_inverse(ratio), "{:.3f}")


def _memory(contrast):
    return "-" if not contrast or not contrast["memory"] else f"{contrast['memory']['ratio']:.3f}"


def _outcome(arm):
    """An arm's step time and spread, or why there is none."""
    if arm["step_ms"] is not None:
        return with_interval(arm["step_ms"], "{:,.2f}")
    return "out of memory" if arm[NO_ROOM] else "diverged" if arm["diverged"] else "-"


def format_study(content):
    """A study's tables as text, a table for each kind of positions."""
    config = content["config"]
    gpus = content.get("gpus", 1)
    device = content["device_name"] + f" (each point on one of {gpus})" * (gpus > 1)
    lines = [
        f"Study of {content['study']}: {device}, torch {content['torch']}, "
        f"{config['dtype']}, compile {config['compile']}",
        f"model: d_model {config['d_model']}, {config['n_heads']} heads, {config['layers']} "
        f"layers; {content['points'][0]['steps']:,} steps of "
        f"{config['seq_len'] * config['batch_size']:,} tokens; learning rate "
        f"{config.get('schedule', 'cosine')} after the warm-up",
        "",
    ]
    lines += warning_lines(content)
    table = _length_table if content["study"] == "lengths" else _pattern_table
    for kind in dict.fromkeys(point["positions"] for point in content["points"]):
        here = [point for point in content["points"] if point["positions"] == kind]
        lines += [f"{kind} positions", *text_table(table(here)), ""]
        lines += _equal_lines(here) if content["study"] == "patterns" else []
    if content["study"] == "patterns":
        lines += [*recommend(content), ""]
    lines.append(
        "[ ]: 95 % t interval over the runs, paired by run where two arms are compared. faster: "
        "time of the other arm / time of the window arm.\nvalidation loss: window - other arm, "
        "nats a token, lower is better."
    )
    return "\n".join(lines)


def warning_lines(content):
    """What was taken together and what may have disturbed which point, as wrapped lines."""
    found = []
    for point in content["points"]:
        name = point_name(content["study"], point)
        found += [f"MIXED: {name}: {line}" for line in point.get("mixed", ())]
        # older files hold no warnings
        found += [f"warning: {name}: {warning}" for warning in point.get("warnings", ())]
    wrapped = [textwrap.wrap(w, 100, subsequent_indent="  ", break_on_hyphens=False) for w in found]
    return [line for lines in wrapped for line in lines] + [""] * bool(found)


def _length_table(points):
    rows = [["S", "pairs kept", "evaluation", "step baseline (ms)", "step fused (ms)"]]
    rows[0] += ["step window (ms)", "faster than fused", "limit", "faster than baseline"]
    rows[0] += ["memory/fused", "memory/baseline", "val. loss - fused"]
    for point in points:
        arms, contrasts = point["arms"], point["contrasts"]
        with_fused, with_baseline = (contrasts.get(f"window/{a}") for a in ("fused", "baseline"))
        row = [f"{point['seq_len']:,}", f"{point['density']:.1%}", point["evaluation"] or "-"]
        row += [_outcome(arms[a]) if a in arms else "-" for a in ("baseline", "fused", "window")]
        row += [_gain(with_fused and with_fused["time"]), f"{point['step_limit']:.3f}"]
        row += [_gain(with_baseline and with_baseline["time"])]
        row += [_memory(with_fused), _memory(with_baseline)]
        row += [with_interval(with_fused and with_fused["val_loss"], "{:+.4f}")]
        rows.append(row)
    return rows


def _pattern_table(points):
    rows = [["pattern", "pairs kept", "step (ms)", "faster than fused", "limit", "memory/fused"]]
    rows[0] += ["val. loss - fused", "quality", "on the front"]
    for point in points:
        for arm, summary in point["arms"].items():
            contrast = summary.get("contrast")
            row = [arm, f"{summary.get('density', 1):.1%}", _outcome(summary)]
            row += [_gain(contrast and contrast["time"]), f"{summary.get('step_limit', 1):.3f}"]
            row += [_memory(contrast), with_interval(contrast and contrast["val_loss"], "{:+.4f}")]
            row += [contrast["quality"]["verdict"] if contrast else "-"]
            rows.append([*row, "yes" if summary["pareto"] else ""])
    return rows


def _equal_lines(points):
    """Training losses at equal seconds, a line for each arm."""
    lines = []
    for point in points:
        equal = point["equal_seconds"]
        if equal is None:
            continue
        lines.append(
            f"after equal time, {equal['seconds']:.1f} s of training: training loss - fused (nats)"
        )
        rows = [["pattern", "difference", "on the front"]]
        for arm, difference in equal["differences"].items():
            on_front = "yes" if point["arms"][arm]["pareto_seconds"] else ""
            rows.append([arm, with_interval(difference, "{:+.4f}"), on_front])
        lines += [*text_table(rows), ""]
    return lines


# --- what the measurements say -----------------------------------------------------------------


def measured_rows(point):
    """[(arm, its summary, speed-up over fused as mean, low and high)] of a point's patterns."""
    return [
        (arm, summary, _inverse(summary["contrast"]["time"]))
        for arm, summary in point["arms"].items()
        if summary.get("contrast")
    ]


def recommend(content):
    """Sentences on which pattern to choose, from the measurements of a study of patterns alone.

    For each kind of positions: the fastest pattern that is shown to be faster than fused and whose
    validation loss is shown not to be worse by the margin; or what is missing.
    """
    return [_recommendation(point) for point in content["points"]]


def _recommendation(point):
    kind, margin = f"{point['positions']} positions, S {point['seq_len']:,}", point["margin"]
    rows = measured_rows(point)
    if not rows:
        return f"{kind}: no pattern and fused ended well in the same run, so nothing to compare."
    faster = [row for row in rows if row[2]["low"] is not None and row[2]["low"] > 1]
    verdict = {arm: summary["contrast"]["quality"]["verdict"] for arm, summary, _ in rows}
    good = [row for row in faster if verdict[row[0]] == "not worse"]
    if good:
        arm, summary, gain = max(good, key=lambda row: row[2]["mean"])
        loss = summary["contrast"]["val_loss"]
        return (
            f"{kind}: {arm} is the fastest of {len(good)} pattern{'s' * (len(good) > 1)} shown to "
            f"be faster than fused and not worse by {margin:g} nats: "
            f"{with_interval(gain, '{:.3f}')} times as fast, validation loss "
            f"{with_interval(loss, '{:+.4f}')}."
        )
    words = f"{kind}: no pattern is shown to be both faster than fused and not worse by {margin:g}"
    words += f" nats; shown to be faster: {_names(faster)}; not worse: "
    words += _names([row for row in rows if verdict[row[0]] == "not worse"])
    undecided = [row for row in rows if verdict[row[0]] == "undecided"]
    if undecided:
        needed = [s["contrast"]["quality"]["runs_needed"] for _, s, _ in undecided]
        needed = [n for n in needed if n is not None]
        words += f"; quality undecided: {_names(undecided)}"
        words += f" (about {min(needed)} runs would decide the first)" if needed else ""
    return words + "."


def _names(rows):
    return ", ".join(arm for arm, *_ in rows) or "none"


# --- pictures ----------------------------------------------------------------------------------


def plot_study(content):
    """The study's figures: {file name without suffix: Figure}."""
    with matplotlib.rc_context(LOOK):
        if content["study"] == "patterns":
            return {"pattern_pareto": _plot_pareto(content)}
        return {"length_scaling": _plot_scaling(content), "length_quality": _plot_quality(content)}


def save_figures(figures, plots_dir):
    """Write every figure as .png and .pdf; returns the paths."""
    paths = []
    with matplotlib.rc_context(LOOK):
        for name, figure in figures.items():
            paths += save_figure(figure, plots_dir, name)
    return paths


def _setting(content):
    config = content["config"]
    mixed = any(point.get("mixed") for point in content["points"])
    note = "MIXED trainings (see the table); " if mixed else ""
    return (
        f"{note}{content['device_name']}, torch {content['torch']}, {config['dtype']}, compile "
        f"{config['compile']}; d_model {config['d_model']}, {config['n_heads']} heads, "
        f"{config['layers']} layers, {content['points'][0]['runs']} runs a point"
    )


def _kinds(content):
    """{kind of positions: its points, shortest first}."""
    kinds = dict.fromkeys(point["positions"] for point in content["points"])
    by_length = sorted(content["points"], key=lambda point: point["seq_len"])
    return {kind: [p for p in by_length if p["positions"] == kind] for kind in kinds}


def _log_lengths(ax, points):
    lengths = sorted({point["seq_len"] for point in points})
    ax.set_xscale("log")
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=30 if len(lengths) > 4 else 0)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)  # ticks alone would let 1 in


PANELS = (
    ("step_ms", "step time", lambda ms, _: EngFormatter(unit="s", sep=" ")(ms / 1e3)),
    ("tokens_per_second", "tokens/s", lambda n, _: EngFormatter(sep=" ")(n)),
    ("peak_memory_mb", "peak memory", lambda mb, _: f"{mb:,.0f} MB"),
)


def _plot_scaling(content):
    """Step time, tokens/s and peak memory over the length, log-log, a row a kind of positions."""
    kinds = _kinds(content)
    figure = Figure(figsize=(7.2, 0.9 + 2.2 * len(kinds)), layout="constrained")
    rows = figure.subplots(len(kinds), len(PANELS), squeeze=False, sharex=True, sharey="col")
    arms = dict.fromkeys(arm for point in content["points"] for arm in point["arms"])
    styles = {arm: style for arm, style in arm_styles(list(arms)).items() if arm in arms}
    for (kind, points), axes in zip(kinds.items(), rows, strict=True):
        for ax, (key, name, unit) in zip(axes, PANELS, strict=True):
            _log_lengths(ax, points)
            ax.set_yscale("log")
            for arm in arms:
                _scaling_line(ax, points, arm, key, styles[arm])
            limit = [
                (p["seq_len"], p["arms"]["fused"][key]["mean"], p["step_limit"])
                for p in points
                if key != "peak_memory_mb" and p["arms"].get("fused", {}).get(key)
            ]
            if limit:
                x, y, gain = map(np.array, zip(*limit, strict=True))
                y = y / gain if key == "step_ms" else y * gain
                ax.plot(x, y, color="black", ls="--", lw=1, zorder=2, label="_limit")
            ax.set_ylim(_extent(content, key))
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(unit)
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.set_title(f"{name}, {kind} positions")
    for ax in rows[-1]:
        ax.set_xlabel("sequence length S (tokens)")
    handles = [
        Line2D([], [], color=s.color, marker=s.marker, ls=s.linestyle, label=arm)
        for arm, s in styles.items()
    ]
    handles.append(Line2D([], [], color="black", ls="--", lw=1, label="fused at the FLOP limit"))
    failed = any(s[NO_ROOM] for p in content["points"] for s in p["arms"].values())
    if failed:
        handles.append(Line2D([], [], color="black", marker="X", ls="", label="out of memory"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    _foot(figure, _setting(content) + "; bars: 95 % t interval")
    return figure


def _extent(content, key):
    """Limits of a logarithmic axis for all means and intervals of ``key``."""
    found = [s[key] for p in content["points"] for s in p["arms"].values() if s[key]]
    ends = [e for f in found for k in ("mean", "low", "high") if (e := f[k]) and e > 0]
    return (min(ends) / 1.5, max(ends) * 1.5) if ends else (1, 10)


def _scaling_line(ax, points, arm, key, style):
    here = [(p["seq_len"], p["arms"][arm][key]) for p in points if p["arms"].get(arm, {}).get(key)]
    if here:
        x, estimates = zip(*here, strict=True)
        _points_with_bars(ax, x, estimates, style, linestyle=style.linestyle)
    lost = [p["seq_len"] for p in points if arm in p["arms"] and p["arms"][arm][NO_ROOM]]
    if lost:  # at the upper edge, or at the lower one where more is better
        y = 0.06 if key == "tokens_per_second" else 0.94
        where = ax.get_xaxis_transform()
        look = {"ms": 7, "color": style.color, "mec": "black", "clip_on": False}
        ax.plot(lost, [y] * len(lost), "X", **look, transform=where, scaley=False)


def _points_with_bars(ax, x, estimates, style, **options):
    """Means with their intervals where there are any."""
    y = np.array([e["mean"] for e in estimates])
    low = np.array([e["mean"] if e["low"] is None else e["low"] for e in estimates])
    high = np.array([e["mean"] if e["high"] is None else e["high"] for e in estimates])
    low = np.maximum(low, y * 1e-3) if ax.get_yscale() == "log" else low
    look = {"color": style.color, "marker": style.marker, "ms": 4.5, "lw": 1.3, "capsize": 2}
    ax.errorbar(x, y, yerr=(y - low, high - y), **look, **options)


def _foot(figure, text):
    """The setting below a figure, in as many lines as its width needs."""
    columns = int(19 * figure.get_figwidth())
    text = text.replace("95 % t interval", "95\u00a0%\u00a0t\u00a0interval")  # one word to wrap
    figure.supxlabel("\n".join(textwrap.wrap(text, columns)), fontsize=6.5, color="0.35")


def _plot_quality(content):
    """Validation loss of window minus fused over the length, with its interval and the margin."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    kinds = _kinds(content)
    axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    style = arm_styles(["window"])["window"]
    for ax, (kind, points) in zip(axes, kinds.items(), strict=True):
        _log_lengths(ax, points)
        found = [
            (p["seq_len"], c["val_loss"])
            for p in points
            if (c := p["contrasts"].get("window/fused")) is not None
        ]
        margin = content["config"]["equivalence_margin"]
        ax.axhspan(-margin, margin, **MARGIN)
        ax.axhline(0, color="black", lw=0.8)
        if found:
            x, estimates = zip(*found, strict=True)
            _points_with_bars(ax, x, estimates, style, linestyle="-")
        ax.set(title=f"{kind} positions", xlabel="sequence length S (tokens)")
    axes[0].set_ylabel("validation loss,\nwindow - fused (nats/token)")
    _foot(
        figure,
        f"{_setting(content)}; bars: 95 % t interval, paired by run; shaded: margin of "
        f"{content['config']['equivalence_margin']:g} nats",
    )
    return figure


FAR_MARKERS, FAR_LINES = "o^Dv<>", ("-", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (8, 2)), ":")


def _pattern_looks(content):
    """{arm: how it looks}: colour by window, marker and line by dilation, open without far keys."""
    arms = {arm: s for point in content["points"] for arm, s in point["arms"].items()}
    patterns = {arm: (s["window_size"], s["dilation"]) for arm, s in arms.items() if arm != "fused"}
    windows, dilations = (sorted(set(values)) for values in zip(*patterns.values(), strict=True))
    dilations = [d for d in dilations if d]
    palette = sns.color_palette("colorblind", max(3, len(windows)))
    looks = {"fused": {"color": "black", "marker": "*", "ms": 8, "ls": "-"}}
    for arm, (window, dilation) in patterns.items():
        look = {"color": palette[windows.index(window)], "ms": 5, "ls": "--", "marker": "s"}
        if dilation:
            n = dilations.index(dilation)
            look["marker"] = FAR_MARKERS[n % len(FAR_MARKERS)]
            look["ls"] = FAR_LINES[n % len(FAR_LINES)]
        else:
            look["mfc"] = "white"
        looks[arm] = look
    return looks


def _plot_pareto(content):
    """Speed-up against loss at equal tokens and at equal seconds, and loss over training."""
    kinds = _kinds(content)
    figure = Figure(figsize=(10.0, 0.8 + 3.0 * len(kinds)), layout="constrained")
    rows = figure.subplots(len(kinds), 3, squeeze=False)
    looks = _pattern_looks(content)
    for (kind, points), axes in zip(kinds.items(), rows, strict=True):
        for point in points:
            _pareto_panel(axes[0], point, looks, "pareto", _token_points(point))
            _pareto_panel(axes[1], point, looks, "pareto_seconds", _second_points(point))
            _curve_panel(axes[2], point, looks)
        axes[0].set_title(f"equal tokens, {kind} positions")
        axes[1].set_title(f"equal seconds, {kind} positions")
        axes[2].set_title(f"over training, {kind} positions")
        axes[0].set_ylabel("validation loss - fused (nats/token)")
        axes[1].set_ylabel("training loss - fused (nats/token)")
        axes[2].set_ylabel("training loss - fused (nats/token)")
    rows[-1][0].set_xlabel("times as fast as fused")
    rows[-1][1].set_xlabel("times as fast as fused")
    rows[-1][2].set_xlabel("tokens seen")
    handles = [Line2D([], [], label=arm, **look) for arm, look in looks.items()]
    # long enough to tell the dashes apart
    look = {"ncols": min(9, len(handles)), "handlelength": 3.2}
    figure.legend(handles=handles, loc="outside upper center", **look)
    _foot(
        figure,
        f"{_setting(content)}, S {content['points'][0]['seq_len']:,}; lower right is better; "
        "rings, and the dashes between them: Pareto front of the means; d0: no far keys; bars and "
        "bands: 95 % t interval, paired by run, cut where they leave the panel",
    )
    return figure


def _inverse(ratio):
    """A ratio's estimate turned over, as mean, low and high."""
    low, high = (None if ratio[k] is None else 1 / ratio[k] for k in ("high", "low"))
    return {"mean": 1 / ratio["ratio"], "low": low, "high": high}


def _token_points(point):
    return {arm: (gain, s["contrast"]["val_loss"]) for arm, s, gain in measured_rows(point)}


def _second_points(point):
    equal = (point["equal_seconds"] or {"differences": {}})["differences"]
    return {arm: (gain, equal[arm]) for arm, _, gain in measured_rows(point) if arm in equal}


def _pareto_panel(ax, point, looks, front, estimates):
    """Every pattern with both intervals; the front as rings and a line through them."""
    exact = {"mean": 1.0, "low": None, "high": None}
    estimates = {"fused": (exact, exact | {"mean": 0.0})} | estimates
    ax.axhline(0, color="0.6", lw=0.7)
    ax.axvline(1, color="0.6", lw=0.7)
    for arm, (x, y) in estimates.items():
        bars = {}
        for name, estimate in (("xerr", x), ("yerr", y)):
            if estimate["low"] is not None:
                ends = estimate["mean"] - estimate["low"], estimate["high"] - estimate["mean"]
                bars[name] = [[ends[0]], [ends[1]]]
        look = looks[arm] | {"ls": "none"}
        if point["arms"][arm][front]:
            ax.plot(x["mean"], y["mean"], "o", ms=look["ms"] + 6, mfc="none", mec="black", mew=1)
        ax.errorbar(x["mean"], y["mean"], **bars, **look, elinewidth=0.8, capsize=1.5, zorder=3)
    members = [estimates[arm] for arm in estimates if point["arms"][arm][front]]
    line = sorted((x["mean"], y["mean"]) for x, y in members)
    if len(line) > 1:
        ax.plot(*zip(*line, strict=True), color="black", lw=0.8, ls="--", zorder=2)
    xs, ys = zip(*estimates.values(), strict=True)
    ax.set(xlim=_window_of(xs), ylim=_window_of(ys))


def _window_of(estimates):
    """Limits of an axis: all means, and their intervals as far as the means keep half of it."""
    means = [e["mean"] for e in estimates]
    low, high = min(means), max(means)
    room = 0.5 * max(high - low, 1e-3 * max(abs(low), abs(high), 1e-3))
    ends = [e[k] for e in estimates for k in ("low", "high") if e[k] is not None]
    wide = min([low, *ends]), max([high, *ends])
    return max(wide[0], low - room) - 0.2 * room, min(wide[1], high + room) + 0.2 * room


def _curve_panel(ax, point, looks):
    """Loss difference over training, a line a pattern."""
    ax.axhline(0, color="black", lw=0.8)
    for arm, curve in point["curves"].items():
        look = {"color": looks[arm]["color"], "ls": looks[arm]["ls"]}
        ax.plot(curve["tokens"], curve["mean"], lw=1.2, **look)
        low, high = curve["low"], curve["high"]
        if None not in (*low, *high):
            ax.fill_between(curve["tokens"], low, high, color=look["color"], alpha=0.12, lw=0)
    ax.set_ylim(_window_of([{"mean": m, "low": None, "high": None} for m in _curve_ends(point)]))
    ax.xaxis.set_major_formatter(lambda n, _: EngFormatter(sep=" ")(n))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.margins(x=0.02)


def _curve_ends(point):
    """The largest and the smallest mean difference over training, and 0; with half as much room."""
    values = [0.0, *(m for curve in point["curves"].values() for m in curve["mean"])]
    low, high = min(values), max(values)
    return low - 0.3 * (high - low), high + 0.3 * (high - low)

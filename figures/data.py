"""A saved experiment prepared for drawing, and the estimates that figures show."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from analysis.metrics import MetricsError
from analysis.significance import LEVEL, mean_interval, no_spread, paired_ratio
from analysis.values import (
    OUTCOMES,
    declared_margin,
    ok_values,
    ordered_arms,
    pattern_text,
    planned_trainings,
    shared_values,
    trainings_of,
)
from figures.look import arm_styles


class Metric(NamedTuple):
    """One number a training."""

    key: str
    name: str
    unit: str


METRICS = TIME, MEMORY, TRAIN_LOSS, VAL_LOSS = [Metric(*outcome[:3]) for outcome in OUTCOMES]
LOSSES = TRAIN_LOSS, VAL_LOSS
SPEED = Metric("tokens_per_second", "speed", "tokens/s")


@dataclass(frozen=True)
class Experiment:
    """What the figures draw."""

    arms: list  # those with a training that went well, the reference first
    ok: dict  # {arm: its trainings that went well, by block}
    started: list  # [(arm, training)] of every training, failed ones too, in the order of time
    styles: dict  # {arm: ArmStyle}
    setting: str  # device, sizes and revision, for the captions
    partial: str  # "partial: 7/20 trainings", or "" when complete
    margin: float | None  # of equivalence, in nats of validation loss, where declared

    @property
    def reference(self):
        return self.arms[0]

    def values(self, arm, metric):
        return ok_values(self.ok, arm, metric.key)

    def pair(self, arm, base, metric):
        """The metric over the blocks in which both arms went well, aligned: as in the report."""
        return shared_values(self.ok, (arm, base), metric.key)

    def blocks(self, *arms):
        """The trainings of the blocks in which all ``arms`` went well, a tuple for each block."""
        by_block = [{training["block"]: training for training in self.ok[arm]} for arm in arms]
        shared = sorted(set.intersection(*map(set, by_block)))
        return [tuple(trainings[block] for trainings in by_block) for block in shared]

    def has(self, metric):
        """Whether every training that went well has this metric: not every device tells memory."""
        values = [training[metric.key] for arm in self.arms for training in self.ok[arm]]
        return bool(np.isfinite(values).all() and min(values) > 0)


def reference_first(arms):
    """The arms in their order, but first baseline or, without it, fused."""
    arms = ordered_arms(arms)
    if "baseline" not in arms and "fused" in arms:
        arms.insert(0, arms.pop(arms.index("fused")))
    return arms


def describe_setting(metadata):
    """Device, sizes, number format and revision in one line."""
    config, environment = metadata["config"], metadata["environment"]
    facts = [environment["device_name"], f"seq_len {config['seq_len']}", config["dtype"]]
    if "window" in config["arms"]:  # the other arms name their pattern
        facts.append(pattern_text(config))
    if environment.get("git_revision"):
        facts.append(f"git {environment['git_revision']}")
    return ", ".join(facts)


def partial_mark(metrics, metadata):
    """What must be seen on every figure: that trainings are missing, or of several kinds."""
    marks = []
    if metadata["status"] == "partial":
        done = len(trainings_of(metrics))
        marks.append(f"partial: {done}/{planned_trainings(metadata)} trainings")
    if metadata.get("mixed"):
        marks.append("mixed: trainings that differ")
    return "; ".join(marks)


def prepare(metrics, metadata):
    """The ``Experiment`` of loaded metrics; MetricsError when no training went well."""
    ok = {}
    for arm, trainings in metrics.items():
        good = [training for training in trainings if training["status"] == "ok"]
        if good:
            ok[arm] = sorted(good, key=lambda training: training["block"])
    if not ok:
        raise MetricsError("nothing to draw: no training went well (train again, or other options)")
    return Experiment(
        arms=reference_first(ok),
        ok=ok,
        started=sorted(trainings_of(metrics), key=lambda start: start[1]["index"]),
        styles=arm_styles(metrics),
        setting=describe_setting(metadata),
        partial=partial_mark(metrics, metadata),
        margin=declared_margin(metadata),
    )


@dataclass(frozen=True)
class Estimate:
    """Values of an arm, their mean (or ratio) and its 95 % t interval, None where there is none."""

    values: np.ndarray
    center: float
    low: float | None
    high: float | None

    @property
    def error(self):
        """The interval as matplotlib's errorbar wants it: (2, 1) distances, or None."""
        if self.low is None:
            return None
        return np.maximum([[self.center - self.low], [self.high - self.center]], 0)

    def with_interval(self, template):
        """The estimate and its interval: 0.801 [0.764, 0.839]."""
        center = template.format(self.center)
        if self.low is None:
            return center
        return f"{center} [{template.format(self.low)}, {template.format(self.high)}]"

    def plus_minus(self, places, sign=""):
        """The mean and half its interval: −0.0173 ± 0.0038; sign "+" to show it on both."""
        center = f"{self.center:{sign},.{places}f}".replace("-", "−")
        if self.low is None:
            return center
        return f"{center} ± {(self.high - self.low) / 2:,.{places}f}"


def mean_of(values):
    """The ``Estimate`` of a mean."""
    interval = mean_interval(values)
    if no_spread(values):
        return Estimate(values, interval.mean, None, None)
    return Estimate(values, interval.mean, interval.low, interval.high)


def absolute(data, arm, metric):
    """An arm's mean of a metric."""
    return mean_of(data.values(arm, metric))


def ratio(data, arm, base, metric):
    """Ratio arm / base of a metric, block by block."""
    x, reference = data.pair(arm, base, metric)
    found = paired_ratio(x, reference)
    return Estimate(x / reference, found.ratio, found.low, found.high)


def relative(data, arm, metric):
    """To the reference, block by block: the difference of a loss, the ratio of anything else."""
    if metric not in LOSSES:
        return ratio(data, arm, data.reference, metric)
    x, reference = data.pair(arm, data.reference, metric)
    return mean_of(x - reference)


def t_band(values):
    """Pointwise 95 % t interval of the mean over the rows of (R, points): (2, points)."""
    mean, error = values.mean(axis=0), stats.sem(values, axis=0)
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * error
    return np.stack([mean - half, mean + half])


def table(trainings, key):
    """A series of all these trainings, (R, steps), up to the shortest."""
    steps = min(training["total_steps"] for training in trainings)
    return np.stack([training[key][:steps] for training in trainings]).astype(np.float64)


def smoothing_window(steps):
    """An odd number of steps, a thirtieth of the training."""
    return max(3, steps // 30 | 1) if steps >= 3 else 1


def smooth(losses, window):
    """Centred moving average of each row; only full windows, so the ends get shorter."""
    kernel = np.full(window, 1 / window)
    return np.stack([np.convolve(row, kernel, mode="valid") for row in losses])

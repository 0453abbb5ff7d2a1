"""A saved experiment prepared for drawing, and the estimates that figures show."""

import math
from dataclasses import dataclass

import numpy as np

from analysis.metrics import MetricsError
from analysis.significance import Interval, mean_interval, paired_ratio
from analysis.values import (
    TRAIN_LOSS,
    VAL_LOSS,
    Metric,
    in_order,
    not_trained,
    ok_trainings,
    ok_values,
    ordered_arms,
    pattern_text,
    reading_marks,
    shared_values,
)
from figures.look import arm_styles

LOSSES = TRAIN_LOSS, VAL_LOSS
WITHOUT_MODEL = {
    "unigram_loss": "loss of tokens' frequencies",
    "bigram_loss": "loss of pairs of tokens",
}
NAMED_ARMS = 3  # in a title; more are counted
SPEED = Metric("tokens_per_second", "speed", "tokens/s")


@dataclass(frozen=True)
class Experiment:
    """What the figures draw."""

    arms: list  # those with a training that went well, the reference first
    ok: dict  # {arm: its trainings that went well, by block}
    started: list  # [(arm, training)] of every training, failed ones too, in the order of time
    styles: dict  # {arm: ArmStyle}
    setting: str  # device, sizes and revision, for the captions
    mark: str  # what must be seen on every figure, as "partial: 7/20 trainings", or ""
    margin: float | None  # of equivalence, in nats of validation loss, where declared
    idle: list  # the arms that are not trained, so that their losses say nothing of quality
    without_model: dict  # {words: validation loss without a model, in nats}, where known

    @property
    def reference(self):
        return self.arms[0]

    @property
    def compared(self):
        """The arms in words, the reference last."""
        others = self.arms[1:]
        if not others:
            return self.reference
        named = ", ".join(others) if len(others) <= NAMED_ARMS else f"{len(others)} arms"
        return f"{named} against {self.reference}"

    def values(self, arm, metric):
        return ok_values(self.ok, arm, metric.key)

    def has(self, metric):
        """Whether every training that went well has this metric: not every device tells memory."""
        values = [training[metric.key] for arm in self.arms for training in self.ok[arm]]
        return bool(np.isfinite(values).all() and min(values) > 0)


def describe_setting(metadata):
    """Device, sizes, number format and revision in one line."""
    config, environment = metadata["config"], metadata["environment"]
    facts = [environment["device_name"], f"seq_len {config['seq_len']}", config["dtype"]]
    if pattern := pattern_text(config):
        facts.append(pattern)
    code = metadata.get("code") or {}
    if code.get("revision"):
        facts.append(f"git {code['revision'][:12]}{'+' if code['dirty'] else ''}")
    return ", ".join(facts)


def losses_without_model(about):
    """{words: validation loss without a model, in nats}, where known.

    about: ``data`` of the metadata.
    """
    known = {words: about[key] for key, words in WITHOUT_MODEL.items() if about[key] is not None}
    return {"loss of equally likely tokens": math.log(about["vocab_size"])} | known


def prepare(metrics, metadata):
    """The ``Experiment`` of loaded metrics; MetricsError when no training went well."""
    ok = {}
    for arm, training in sorted(ok_trainings(metrics), key=lambda item: item[1]["block"]):
        ok.setdefault(arm, []).append(training)
    if not ok:
        raise MetricsError("nothing to draw: no training went well (train again, or other options)")
    idle = not_trained(ok, metadata)
    marks = reading_marks(metrics, metadata) + ["not trained"] * bool(idle)
    # fused, where it was trained, is the reference: window arms differ by the pattern alone
    arms = sorted(ordered_arms(ok), key=lambda arm: arm != "fused")
    return Experiment(
        arms=arms,
        ok=ok,
        started=in_order(metrics),
        styles=arm_styles(metrics),
        setting=describe_setting(metadata),
        mark="; ".join(marks),
        margin=metadata["plan"]["equivalence_margin"],
        idle=idle,
        without_model=losses_without_model(metadata["data"]),
    )


def ratio(data, arm, metric, base=None):
    """Every block's ratio arm / base of a metric, and their geometric mean, an ``Interval``.

    base: an arm; None: the reference.
    """
    values, base_values = shared_values(data.ok, (arm, base or data.reference), metric.key)
    found = paired_ratio(values, base_values)
    return values / base_values, Interval(found.ratio, found.low, found.high, found.n)


def difference(data, arm, metric):
    """Every block's difference arm - reference of a metric, and their mean, an ``Interval``."""
    values, reference_values = shared_values(data.ok, (arm, data.reference), metric.key)
    return values - reference_values, mean_interval(values - reference_values)

"""A saved experiment prepared for drawing, and the estimates that figures show."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from analysis.metrics import MetricsError
from analysis.power import ALPHA
from analysis.significance import ROUNDING, mean_interval, non_inferiority, paired_ratio
from analysis.values import SHOWN_SHARE, declared_margin, layers_text, ordered_arms, trainings_of
from figures.look import arm_styles, minus, number

DRAWN_POINTS = 1000  # a line is at most this many points; 7.2 inches show no more


@dataclass(frozen=True)
class Metric:
    """One number a run: its key, its name, its unit and the words for less and more of it."""

    key: str
    name: str
    unit: str
    less: str = ""
    more: str = ""
    digits: int = 3  # of a ratio, after the point


TIME = Metric("training_time", "training time", "s", "faster", "slower")
MEMORY = Metric("peak_memory_mb", "peak memory", "MB", "less memory", "more memory")
LOSS_WORDS = ("nats/token", "lower loss", "higher loss", 4)
TRAIN_LOSS = Metric("avg_loss_last_100", "training loss, last ≤ 100 steps", *LOSS_WORDS)
VAL_LOSS = Metric("val_loss", "validation loss", *LOSS_WORDS)
SPEED = Metric("tokens_per_second", "speed", "tokens/s")
METRICS = (TIME, MEMORY, TRAIN_LOSS, VAL_LOSS)
LOSSES = (TRAIN_LOSS, VAL_LOSS)


# --- the prepared experiment -------------------------------------------------------------------
@dataclass(frozen=True)
class Experiment:
    """What the figures draw.  The reference arm comes first in ``arms``.

    ok: {arm: its runs that went well}; paired: {arm: its runs of the blocks in which every arm
    went well}, aligned; launches: [(arm, run)] of every training, failed
    ones too, in the order of their start.
    """

    arms: tuple
    ok: dict
    paired: dict
    launches: list
    styles: dict
    setting: str  # device, sizes and revision, for the captions
    partial: str  # "partial: 7/20 trainings", or "" when complete
    margin: float | None = None  # of equivalence, in nats of validation loss, where declared

    @property
    def reference(self):
        return self.arms[0]

    @property
    def pairs(self):
        return len(self.paired[self.reference]) if len(self.arms) > 1 else 0

    def values(self, arm, metric, paired=False):
        runs = (self.paired if paired else self.ok)[arm]
        return np.array([run[metric.key] for run in runs], dtype=np.float64)

    def pair(self, arm, base, metric):
        """The metric over the blocks in which both arms went well, aligned: as in the report."""
        runs = [{run["block"]: run[metric.key] for run in self.ok[a]} for a in (arm, base)]
        shared = sorted(set(runs[0]) & set(runs[1]))
        return [np.array([of[block] for block in shared], dtype=np.float64) for of in runs]

    def has(self, metric):
        """Whether every ok run has this metric (memory is not measurable everywhere)."""
        values = np.concatenate([self.values(arm, metric) for arm in self.arms])
        return bool(np.isfinite(values).all() and (values > 0).all())


@dataclass(frozen=True)
class Estimate:
    """Values of an arm, their mean (or ratio) and its 95 % t interval, None where there is none."""

    values: np.ndarray
    center: float
    low: float | None
    high: float | None

    @property
    def identical(self):
        return len(self.values) > 1 and np.ptp(self.values) <= ROUNDING * np.abs(self.values).max()

    @property
    def error(self):
        """The interval as matplotlib's errorbar wants it: (2, 1) distances, or None."""
        if self.low is None:
            return None
        return np.maximum([[self.center - self.low], [self.high - self.center]], 0)


def went_well(run):
    finite = np.isfinite(run["losses"]).all()
    return run["status"] == "ok" and run["total_steps"] > 0 and bool(finite)


def ordered(arms):
    """The arms, reference first: baseline, else fused, else the first known one."""
    known = ordered_arms(arms)
    reference = next((arm for arm in ("baseline", "fused") if arm in known), known[0])
    return (reference, *(arm for arm in known if arm != reference))


def describe_setting(metadata):
    """Device, sizes, number format and revision in one line, as far as the file has them."""
    config, environment = metadata.get("config") or {}, metadata.get("environment") or {}
    # arms that name a pattern have that one
    chosen = config if "window" in (config.get("arms") or ["window"]) else {}
    pattern = [chosen.get(name) for name in ("window_size", "dilation")]
    window_size, dilation = (None if value is None else layers_text(value) for value in pattern)
    known = (
        ("{}", environment.get("device_name") or config.get("device")),
        ("seq_len {}", config.get("seq_len")),
        ("w = {}", window_size),
        ("d = {}", dilation),
        ("{} sinks", config.get("sink_tokens") or None),
        ("{}", config.get("dtype")),
        ("git {}", environment.get("git_revision")),
    )
    facts = [form.format(value) for form, value in known if value is not None]
    return ", ".join(fact.replace(" ", "\N{NO-BREAK SPACE}") for fact in facts)


def partial_mark(metrics, metadata):
    """What must be seen on every figure: that trainings are missing, or of several kinds."""
    mixed = "mixed: trainings that differ" if metadata.get("mixed") else ""
    if metadata.get("status") != "partial":
        return mixed
    arms = (metadata.get("config") or {}).get("arms") or metrics
    total = len((metadata.get("plan") or {}).get("orders") or ()) * len(arms)
    done = sum(len(runs) for runs in metrics.values())
    return f"partial: {done}/{total or '?'} trainings" + (f"; {mixed}" if mixed else "")


def prepare(metrics, metadata):
    """The ``Experiment`` of loaded metrics; MetricsError when no training went well."""
    ok = {arm: [run for run in runs if went_well(run)] for arm, runs in metrics.items()}
    ok = {arm: sorted(runs, key=lambda run: run["block"]) for arm, runs in ok.items() if runs}
    if not ok:
        statuses = Counter(run["status"] for runs in metrics.values() for run in runs)
        found = ", ".join(f"{n} {status}" for status, n in statuses.items()) or "no training at all"
        raise MetricsError(f"nothing to draw: no training went well ({found})")
    blocks = set.intersection(*({run["block"] for run in runs} for runs in ok.values()))
    return Experiment(
        arms=ordered(ok),
        ok=ok,
        paired={arm: [run for run in runs if run["block"] in blocks] for arm, runs in ok.items()},
        launches=sorted(trainings_of(metrics), key=lambda launch: launch[1]["index"]),
        styles=arm_styles(metrics),
        setting=describe_setting(metadata),
        partial=partial_mark(metrics, metadata),
        margin=declared_margin(metadata),
    )


# --- estimates and numbers ---------------------------------------------------------------------
def absolute(data, arm, metric):
    values = data.values(arm, metric)
    interval = mean_interval(values)
    return Estimate(values, interval.mean, interval.low, interval.high)


def compare(data, arm, reference, metric):
    """Ratio arm / reference of a metric, block by block: ``(Ratio, Estimate)``."""
    x, base = data.pair(arm, reference, metric)
    ratio = paired_ratio(x, base)
    return ratio, Estimate(x / base, ratio.ratio, ratio.low, ratio.high)


def relative(data, arm, metric):
    """To the reference, block by block: the difference of a loss, the ratio of anything else."""
    if metric not in LOSSES:
        return compare(data, arm, data.reference, metric)[1]
    x, base = data.pair(arm, data.reference, metric)
    interval = mean_interval(x - base)
    return Estimate(x - base, interval.mean, interval.low, interval.high)


def t_band(values):
    """Pointwise 95 % t interval of the mean over the rows of (R, points): (2, points)."""
    intervals = [mean_interval(point) for point in values.T]
    return np.array([[i.low for i in intervals], [i.high for i in intervals]])


def margin_span(data, arm, base):
    """The equivalence margin around ``base``'s mean validation loss, as a span of ratios."""
    share = data.margin / data.pair(arm, base, VAL_LOSS)[1].mean()
    return max(1 - share, 0.01), 1 + share  # a log axis has no 0


def table(runs, key):
    """A series of all these runs, (R, steps), up to the shortest."""
    steps = min(run["total_steps"] for run in runs)
    return np.stack([run[key][:steps] for run in runs]).astype(np.float64)


def drawn(length):
    """Indices of at most DRAWN_POINTS of ``length`` points, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(length, DRAWN_POINTS)).round().astype(int))


def smoothing_window(steps):
    """An odd number of steps, a thirtieth of the training."""
    return max(3, steps // 30 | 1) if steps >= 3 else 1


def smooth(losses, window):
    """Centred moving average of each row; only full windows, so the ends get shorter."""
    kernel = np.full(window, 1 / window)
    return np.stack([np.convolve(row, kernel, mode="valid") for row in losses])


def mean_text(estimate):
    """A mean and half its interval: 1,502 ± 1.6."""
    half = 0 if estimate.error is None else estimate.error[0, 0]
    if not half or estimate.identical:
        return number(estimate.center)
    half = f"{half:#.2g}".rstrip(".") if half < 99.5 else f"{half:,.0f}"
    return f"{number(estimate.center)} ± {half}"


def ratio_text(ratio, digits):
    shown = [f"{v:.{digits}f}" for v in (ratio.ratio, ratio.low, ratio.high) if v is not None]
    return shown[0] if len(shown) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def verdict(ratio, metric):
    """What a ratio says, in words; a difference is named only where the test found one."""
    if ratio.p is None and abs(ratio.ratio - 1) < SHOWN_SHARE:
        words = "identical" if abs(ratio.ratio - 1) < ROUNDING else "equal to 0.01 %"
        return words if ratio.n == 1 else f"{words} in every run"
    if ratio.p is not None and ratio.p >= ALPHA:
        return "no difference detected"
    percent = 100 * (ratio.ratio - 1)
    change = f"{percent:+.{1 if abs(percent) >= 1 else 2}f} %"
    words = minus(f"{metric.less if percent < 0 else metric.more}: {change}")
    if ratio.p is None:
        words += ", one run" if ratio.n == 1 else " in every run"
    return words


def loss_verdict(data, arm, base):
    """The validation loss against the declared margin, in words; without one, the ratio's."""
    ratio = compare(data, arm, base, VAL_LOSS)[0]
    if data.margin is None or ratio.n == 1:
        return verdict(ratio, VAL_LOSS)
    x, reference = data.pair(arm, base, VAL_LOSS)
    words = non_inferiority(x, reference, data.margin).verdict
    return f"{words} (margin {data.margin:g} nats)" if words == "not worse" else words

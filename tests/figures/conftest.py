"""Made-up experiments of every kind, and what a drawn figure holds."""

import itertools

import numpy as np
import pytest
from conftest import add_reach, flat, make_experiment
from scipy import stats

from figures.data import prepare

MANY = ["baseline", "window", "fused", "published", *(f"w{2**i}-d{i}" for i in range(3, 11))]


def fail(metrics, arm, block, status="diverged"):
    training = metrics[arm][block]
    training["losses"] = training["losses"].copy()
    training["losses"][-1] = np.nan
    nothing = dict.fromkeys(("val_loss", "avg_loss_last_100", "final_loss"), np.nan)
    training.update(nothing, status=status)


def make_failed():
    """One training failed."""
    metrics, metadata = make_experiment(4)
    fail(metrics, "baseline", 3)
    return metrics, metadata


def make_partial():
    """Seven of fifteen trainings, no block complete, one without its memory; no margin declared."""
    metrics, metadata = make_experiment(5)
    metrics["baseline"] = metrics["baseline"][:2]
    metrics["window"] = metrics["window"][2:4]
    metrics["fused"] = metrics["fused"][:3]
    metrics["window"][1]["peak_memory_mb"] = float("nan")
    metadata["plan"]["equivalence_margin"] = None
    return metrics, metadata | {"status": "partial"}


def make_many():
    """One block of many arms, of which one failed; two steps."""
    metrics, metadata = make_experiment(1, MANY, steps=2)
    fail(metrics, "published", 0, "out_of_memory")
    return metrics, metadata


def prepare_probed(metrics, metadata):
    """Every second arm copies from farther than the others; trainings that failed tell nothing."""
    add_reach(metrics, {arm: (256, 960)[i % 2] for i, arm in enumerate(metrics)})
    for training in itertools.chain(*metrics.values()):
        if training["status"] != "ok":
            training["reach"] = None
    return prepare(metrics, metadata)


EXPERIMENTS = {
    "failed": make_failed,
    "partial": make_partial,
    "many": make_many,
    "one arm": lambda: make_experiment(3, ("window",)),
    "one block": lambda: make_experiment(1),
    "four blocks": make_experiment,
}


@pytest.fixture(params=["failed", "partial", "many", "one arm"])
def any_experiment(request):
    return prepare_probed(*EXPERIMENTS[request.param]())


@pytest.fixture
def prepared():
    """prepared("failed"), or prepared(*arguments of make_experiment)."""

    def of(*arguments, **options):
        if arguments and arguments[0] in EXPERIMENTS:
            return prepare_probed(*EXPERIMENTS[arguments[0]]())
        return prepare_probed(*make_experiment(*arguments, **options))

    return of


@pytest.fixture
def artists():
    """Artists and containers of an axes with this label."""

    def of(ax, label):
        every = [*ax.lines, *ax.collections, *ax.patches, *ax.containers]
        return [artist for artist in every if artist.get_label() == label]

    return of


@pytest.fixture
def caption():
    """A figure's caption on one line."""
    return lambda fig: flat(fig.get_supxlabel()).replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture
def interval_of():
    """The drawn ends of an errorbar's last bar: (low, high) in its own direction."""

    def of(container):
        segment = container.lines[2][-1].get_segments()[0]
        return segment[:, np.ptp(segment, axis=0).argmax()]

    return of


@pytest.fixture
def t_interval():
    """The textbook's 95 % t interval of a mean, from scipy itself."""

    def of(values):
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        return stats.t.interval(0.95, len(values) - 1, np.mean(values), error)

    return of

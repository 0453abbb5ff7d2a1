"""The figures by name, one of them drawn, and all of them written."""

from functools import partial
from itertools import product
from pathlib import Path

from analysis.reach import reach_records
from figures.curves import convergence, per_run, training_curves
from figures.data import MEMORY, SPEED, VAL_LOSS, prepare
from figures.look import OUR_LOOK, save_figures
from figures.reach import reach
from figures.validation import has_curves, validation
from figures.values import distributions, final_losses, metrics_comparison, summary, tradeoff

FIGURES = {
    "1_training_curves": training_curves,
    "2_final_losses": final_losses,
    "3_metrics_comparison": metrics_comparison,
    "4_speedup_quality": partial(tradeoff, metrics=(SPEED, VAL_LOSS), better="↘"),
    "5_memory_quality": partial(tradeoff, metrics=(MEMORY, VAL_LOSS), better="↙"),
    "6_memory_speed": partial(tradeoff, metrics=(MEMORY, SPEED), better="↖"),
    "7_distributions": distributions,
    "8_per_run": per_run,
    "9_summary": summary,
    "10_convergence": convergence,
    "11_validation": validation,
    "reach": reach,
}
NEEDS = {"11_validation": has_curves, "reach": reach_records}  # what not every experiment has


@OUR_LOOK
def draw(name, data):
    """The figure of this name, a matplotlib Figure; ``data`` is an ``Experiment``."""
    return FIGURES[name](data)


def create_all_plots(metrics, metadata, plots_dir):
    """Draw and save the figures that there is something for; returns the paths written."""
    data = prepare(metrics, metadata)
    names = [name for name in FIGURES if name not in NEEDS or NEEDS[name](data.ok)]
    others = set(FIGURES) - set(names)
    for name, kind in product(others, ("png", "pdf")):  # of an earlier experiment
        (Path(plots_dir) / f"{name}.{kind}").unlink(missing_ok=True)
    return save_figures({name: draw(name, data) for name in names}, plots_dir)

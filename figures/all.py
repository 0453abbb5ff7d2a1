"""The eleven figures by name, one of them drawn, and all of them written."""

from functools import partial
from pathlib import Path

import matplotlib

from figures.curves import convergence, per_run, training_curves
from figures.data import MEMORY, SPEED, VAL_LOSS, prepare
from figures.look import LOOK, save_figures
from figures.validation import has_curves, validation
from figures.values import distributions, final_losses, metrics_comparison, summary, tradeoff

VALIDATION = "11_validation"  # drawn where it was evaluated in the course of the trainings
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
    VALIDATION: validation,
}


@matplotlib.rc_context(LOOK)
def draw(name, data):
    """The figure of this name, a matplotlib Figure; ``data`` is an ``Experiment``."""
    return FIGURES[name](data)


def create_all_plots(metrics, metadata, plots_dir):
    """Draw and save all figures that the experiment has data for; returns the paths written."""
    data = prepare(metrics, metadata)
    names = list(FIGURES)
    if not has_curves(data):
        names.remove(VALIDATION)
        for kind in ("png", "pdf"):  # of an earlier experiment
            (Path(plots_dir) / f"{VALIDATION}.{kind}").unlink(missing_ok=True)
    return save_figures({name: draw(name, data) for name in names}, plots_dir)

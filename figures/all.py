"""The ten figures by name, and all of them written."""

from figures.curves import convergence, training_curves
from figures.data import prepare
from figures.look import save_figure
from figures.tradeoffs import memory_quality, memory_speed, speedup_quality
from figures.trainings import per_run
from figures.values import distributions, final_losses, metrics_comparison, summary

FIGURES = {
    "1_training_curves": training_curves,
    "2_final_losses": final_losses,
    "3_metrics_comparison": metrics_comparison,
    "4_speedup_quality": speedup_quality,
    "5_memory_quality": memory_quality,
    "6_memory_speed": memory_speed,
    "7_distributions": distributions,
    "8_per_run": per_run,
    "9_summary": summary,
    "10_convergence": convergence,
}


def create_all_plots(metrics, metadata, plots_dir):
    """Draw and save the ten figures; returns the paths written."""
    data, paths = prepare(metrics, metadata), []
    for name, draw in FIGURES.items():
        paths += save_figure(draw(data), plots_dir, name)
    return paths

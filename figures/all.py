"""The figures by name, one of them drawn, all of them written, and the experiment's page."""

import shlex
from functools import partial

from analysis.report import TITLE, report_sections
from analysis.rows import training_section
from analysis.values import MEMORY, VAL_LOSS
from analysis.words import Section, fact_table
from figures.curves import convergence, per_run, training_curves, validation
from figures.data import SPEED, prepare
from figures.look import OUR_LOOK, save_figures
from figures.page import Page, write_all
from figures.reach import reach
from figures.values import distributions, final_losses, metrics_comparison, summary, tradeoff

FIGURES = {  # each gives None where an experiment has nothing for it
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


@OUR_LOOK
def draw(name, data):
    """The figure of this name, a matplotlib Figure or None; ``data`` is an ``Experiment``."""
    return FIGURES[name](data)


def draw_all(metrics, metadata):
    """{name: Figure} of all figures that the experiment has something for."""
    data = prepare(metrics, metadata)
    figures = {name: draw(name, data) for name in FIGURES}
    return {name: figure for name, figure in figures.items() if figure}


def experiment_page(metrics, metadata):
    """A saved experiment as a Page."""
    facts = {**metadata["config"], **metadata["environment"], **metadata["data"]}
    facts = {key: value for key, value in facts.items() if value is not None}
    (first, *_) = metadata.get("processes") or [{}]  # files of the first version have none
    again = []
    if first.get("argv") is not None:  # None: from a notebook
        again.append(shlex.join(["python", "main.py", *first["argv"]]))
    again += [f"{key}: {value}" for key, value in (metadata["code"] or {}).items()]
    return Page(
        TITLE,
        report_sections(metrics, metadata),
        [
            training_section(metrics),
            Section("To repeat it", again),
            Section("Configuration, machine and data", [fact_table(facts)]),
        ],
        partial(draw_all, metrics, metadata),
        tuple(FIGURES),
        "9_summary",
    )


def create_all_plots(metrics, metadata, plots_dir, page_path=None):
    """Save the figures that the experiment has something for; returns the paths written.

    page_path: where to write the experiment as a page too; None: nowhere.
    """
    page = experiment_page(metrics, metadata)
    if page_path is None:
        return save_figures(page.draw(), plots_dir, page.known)
    return write_all(page_path, page, plots_dir)

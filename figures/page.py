"""A result as one page of HTML: what its report says, its figures, and what lies behind them."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib

from analysis.words import report_text
from figures.look import OUR_LOOK, save_figures
from machine.command import UserError, say
from machine.files import write_text

PAGE_NAME = "report.html"
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


class Page(NamedTuple):
    """What a result file says, to be printed, drawn or written as HTML.

    sections, details: lists of analysis.words.Section.  The first section has the answers; the
    details are for those who want to repeat or check the result.
    draw: gives {name: Figure}; a Figure's label is its text for those who cannot see it.
    known: the names of all figures that such a result can have, where this one may lack some.
    lead: the name of the figure to be seen first.
    """

    title: str
    sections: list
    details: list
    draw: Callable
    known: tuple = ()
    lead: str = ""


def figure_named(text, names):
    """The name that ``text`` means: 9_summary for itself, for its number 9 and for summary.

    Raises UserError with all names where it means none of them.
    """
    for name in names:
        number, _, rest = name.partition("_")
        if text == name or (number.isdigit() and text in (number, rest)):
            return name
    raise UserError(f"no figure {text!r}: choose of {', '.join(names)}")


@OUR_LOOK
def _svg(name, figure):
    """A figure as an svg element, whose ids begin with its name: a page has several figures."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # equal figures have equal bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=150)
    svg = buffer.getvalue()
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg[svg.index("<svg") :])
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return re.sub(r' width="\S+" height="\S+"', "", svg, count=1)  # as wide as the page


def html(page, figures):
    """The whole page as text, which needs no other file; ``figures``: what ``page.draw`` made."""
    drawn = {name: (figure.get_label(), _svg(name, figure)) for name, figure in figures.items()}
    return TEMPLATES.get_template("page.html").render(page=page, figures=drawn)


def write_all(path, page, plots_dir):
    """Draw a page's figures, save them and write the page to ``path``; returns all paths."""
    figures = page.draw()
    drawn = save_figures(figures, plots_dir, page.known)
    write_text(path, html(page, figures))
    return [path, *drawn]


def publish(page, path, plots_dir):
    """Print what a result file says, and write its figures and, beside ``path``, its page."""
    paths = [path, *write_all(path.with_suffix(".html"), page, plots_dir)]
    print(report_text(page.sections), flush=True)
    say("written: " + ", ".join(str(path) for path in paths if path.suffix != ".pdf"))

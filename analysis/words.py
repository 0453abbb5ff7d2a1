"""Numbers, intervals and tables as text: the one place that decides digits and signs."""

import json
from textwrap import TextWrapper
from typing import NamedTuple

import numpy as np

from analysis.significance import ALPHA

COLUMNS = 100
DIGITS = {"s": 2, "MB": 1, "nats": 4, "gain": 2, "%": 2, "sd": 2}  # after the point


class Section(NamedTuple):
    """A part of what is reported: a title, "" for none, and below it texts and tables.

    A table is a list of rows of texts, the titles of its columns first.
    """

    title: str
    parts: list
    indent: str = "  "  # of a text's later lines


def amount(value, unit, sign=""):
    """A number without its unit, which decides the digits: "1,368.3" of MB; "-" for None.

    sign: "+" to show it on positive numbers too.
    """
    return "-" if value is None else f"{value:{sign},.{DIGITS[unit]}f}"


def percent(share, sign=""):
    """A share in percent, 12.50 %; "-" for None."""
    return "-" if share is None else f"{amount(100 * share, '%', sign)} %"


def p_value(p):
    """A p-value with two significant digits, "-" where there was no test."""
    if p is None:
        return "-"
    return f"{p:.2g}" if p >= 1e-15 else "< 1e-15"


def starred(p):
    """A p-value with a mark where it is below ALPHA."""
    return p_value(p) + ("*" if p is not None and p < ALPHA else " ")


def with_interval(center, low, high, form="{:.4f}".format):
    """An estimate with its interval: "1.037 [0.989, 1.087]"; alone where ``low`` is None.

    form: a function that writes each of the numbers.
    """
    return form(center) if low is None else f"{form(center)} [{form(low)}, {form(high)}]"


def mean_sd(values, unit):
    """Mean ± standard deviation of an array; a single value alone, "-" for none."""
    if not values.size:
        return "-"
    mean = amount(values.mean(), unit)
    return mean if values.size == 1 else f"{mean} ± {amount(values.std(ddof=1), unit)}"


def median_mad(values, unit):
    """Median ± median absolute deviation (least … most) of an array; "-" below two values."""
    if values.size < 2:
        return "-"
    middle = np.median(values)
    deviation = np.median(abs(values - middle))
    extremes = f"({amount(values.min(), unit)} … {amount(values.max(), unit)})"
    return f"{amount(middle, unit)} ± {amount(deviation, unit)} {extremes}"


def text_table(rows):
    """Rows of texts as aligned lines, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def fact_table(facts):
    """{name: value} as a table; a dict or list in a value as JSON."""
    rows = [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in facts.items()]
    return [["name", "value"], *rows]


def section_lines(section):
    """A section as lines: its texts wrapped at COLUMNS, its tables as wide as they are."""
    wrap = TextWrapper(COLUMNS, subsequent_indent=section.indent, break_on_hyphens=False).wrap
    lines = [section.title] if section.title else []
    for part in section.parts:
        lines += wrap(part) if isinstance(part, str) else text_table(part)
    return lines


def report_text(sections):
    """Sections as text, a blank line between them; those without parts are left out."""
    return "\n\n".join("\n".join(section_lines(x)) for x in sections if x.parts) + "\n"

"""Numbers and tables as text."""

import textwrap

from analysis.power import ALPHA

COLUMNS = 100


# --- words for numbers -------------------------------------------------------------------------
def p_value(p):
    return "-" if p is None else f"{p:.2g}" if p >= 1e-15 else "< 1e-15"


def starred(p):
    """A p-value with a mark where it is below ALPHA."""
    return p_value(p) + ("*" if p is not None and p < ALPHA else " ")


def number(value, template):
    return "-" if value is None else template.format(value)


def interval(ratio):
    """A ratio's interval, or in its place why there is none."""
    return ratio.note if ratio.low is None else f"[{ratio.low:.4f}, {ratio.high:.4f}]"


def wrapped(text, indent="  "):
    return textwrap.wrap(text, COLUMNS, subsequent_indent=indent, break_on_hyphens=False)


def text_table(rows):
    """Rows of texts as aligned lines, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines

"""How every figure looks: sizes, colours, an arm's style, saving."""

from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import matplotlib.style
import seaborn as sns

from machine.files import atomic_write

WIDTH = 7.2  # inches: two columns of a paper
LOOK = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("paper", font_scale=0.83),  # 8 points, ticks and legends 7.3
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same figure everywhere
    "axes.titlelocation": "left",
    "axes.formatter.useoffset": False,
    "grid.linewidth": 0.5,
    "grid.color": "0.9",
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a $ in the name of an arm or a device is a $
    "savefig.dpi": 300,
}
# a context, inside which a user's matplotlibrc changes nothing
OUR_LOOK = matplotlib.style.context(["default", LOOK])
FAILED = {"marker": "X", "ms": 6, "color": "black", "ls": "none", "zorder": 6}
MARGIN = {"facecolor": "#F5DC8C", "edgecolor": "none", "zorder": 0.5}


@dataclass(frozen=True)
class ArmStyle:
    """How an arm looks in every figure: three ways to tell it apart, so gray print works too."""

    color: str
    marker: str
    linestyle: object

    @property
    def line(self):
        return {"color": self.color, "linestyle": self.linestyle}


STYLES = {  # colours of seaborn's "colorblind" palette
    "baseline": ArmStyle("#0173B2", "o", "-"),
    "window": ArmStyle("#D55E00", "s", (0, (6, 1.5))),
    "fused": ArmStyle("#029E73", "^", (0, (6, 1.5, 1, 1.5))),
    "published": ArmStyle("#CC78BC", "D", (0, (1.5, 1))),
}
# for further arms: with 11 colours and 7 markers the first 77 arms have different pairs of them
MORE_COLORS = "#56B4E9", "#7B3FA0", "#949494", "#8C8000", "#F07CC0", "#6B4423", "#E3B505"
MORE_COLORS += "#1F3A93", "#C0392B", "#000000", "#7FBF3F"
MORE_MARKERS = "vP<>X*h"
MORE_LINES = (0, (4, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (8, 2, 2, 2)), (0, (2, 2))


def arm_styles(arms):
    """{arm: ArmStyle}; those without a style of their own get further ones, in order of name."""
    more = sorted(set(arms) - set(STYLES))
    looks = zip(more, cycle(MORE_COLORS), cycle(MORE_MARKERS), cycle(MORE_LINES), strict=False)
    styles = STYLES | {arm: ArmStyle(*look) for arm, *look in looks}
    return {arm: styles[arm] for arm in arms}


@OUR_LOOK
def save_figures(figures, plots_dir, known=()):
    """Write {name: Figure} as .png and .pdf, without dates, each whole or not at all.

    known: names of figures; files of those that are not among ``figures`` are left from an earlier
    result and are removed.  Returns the paths written.
    """
    paths = []
    for name in set(known) - set(figures):
        for kind in ("png", "pdf"):
            (Path(plots_dir) / f"{name}.{kind}").unlink(missing_ok=True)
    for name, fig in figures.items():
        for kind, info in (("png", {}), ("pdf", {"CreationDate": None})):
            paths.append(Path(plots_dir) / f"{name}.{kind}")
            atomic_write(paths[-1], partial(fig.savefig, format=kind, metadata=info))
            fig.set_layout_engine("none")  # keep the places found: the second file is quicker
    return paths

"""House style of every figure: colours, fonts, saving as PNG and SVG.

Every function returns a matplotlib Figure and shows nothing; `save` writes it as PNG and SVG. Colours are Okabe and Ito's,
told apart by colour-blind readers: blue normal, vermilion anomalous, amber the truth's band.
"""

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatterMathtext

from vau_lib.workspace import artifacts

NORMAL, ANOMALOUS, TRUTH, INK, QUIET = "#0072B2", "#D55E00", "#F0B429", "#22303C", "#8A97A3"
SERIES = (NORMAL, ANOMALOUS, "#009E73", "#CC79A7", "#56B4E9", INK)
FORMATS = ("png", "svg")


def use() -> None:
    """Set the house style; called once in a notebook's set-up cell."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        rc={
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.titlesize": 12,
            "axes.labelcolor": INK,
            "axes.edgecolor": QUIET,
            "text.color": INK,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        },
    )


def save(figure: Figure, path: Path) -> list[Path]:
    """Write the figure beside `path` as .png and .svg, whole or not at all, the same bytes each time; return the files."""
    written = []
    for suffix in FORMATS:
        with artifacts.replacing(Path(path).with_suffix(f".{suffix}")) as temporary:
            with plt.rc_context({"svg.hashsalt": "vau"}):  # else its ids are drawn anew
                figure.savefig(temporary, format=suffix, metadata={"Date": None} if suffix == "svg" else None)
        written.append(Path(path).with_suffix(f".{suffix}"))
    return written


TITLE = {"x": 0.01, "ha": "left", "fontweight": "bold", "fontsize": 12}
TITLE_LETTERS = 9.5  # per inch of a figure, at that size


class TitledFigure(Figure):
    """A figure whose title is broken into lines that fit, and whose text is its title.

    So an executed notebook keeps the title beside the picture (see `workspace.gallery`).
    """

    def suptitle(self, t: str, **options):
        """Set the title in the house style, in lines as long as the figure is wide."""
        return super().suptitle(fill(t, max(20, int(TITLE_LETTERS * self.get_figwidth()))), **TITLE | options)

    def draw(self, renderer) -> None:
        """Draw, every text as it is: two dollar signs in a video's name, a camera's or an answer begin no formula."""
        for side in (side for axis in self.axes for side in (axis.xaxis, axis.yaxis)):
            if isinstance(side.get_major_formatter(), LogFormatterMathtext):  # its powers of ten are formulas
                side.set_major_formatter("{x:g}")
                side.set_minor_formatter("")
        for text in self.findobj(Text):
            text.set_parse_math(False)
        super().draw(renderer)

    def __repr__(self) -> str:
        titles = [self.get_suptitle(), *(axis.get_title(loc) for axis in self.axes for loc in ("left", "center"))]
        return " ".join(next(filter(None, titles), "").split()) or super().__repr__()


def empty(**options) -> TitledFigure:
    """Make a figure without axes that pyplot forgets at once, so that a notebook shows what is returned and shows it once."""
    figure = plt.figure(FigureClass=TitledFigure, **options)
    plt.close(figure)
    return figure


def subplots(*arguments, **options) -> tuple:
    """Make a figure and its axes, as pyplot does; pyplot forgets it at once, like one of `empty`."""
    figure, axes = plt.subplots(*arguments, FigureClass=TitledFigure, **options)
    plt.close(figure)
    return figure, axes


METHOD_COLOURS = {
    "supervised start": QUIET, "rewarded": ANOMALOUS, "rewarded, against the shuffled video": SERIES[2],
    "rewarded, shuffled labels": NORMAL,
}  # fmt: skip

"""How a figure of the report is themed, and becomes SVG for the page.

Text and lines are drawn in two marker colours which the page turns into its own, so that one SVG serves light and dark.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.curves import Look, look
from experiments.reporting.collect import MeasuredRun

INK, GRID = "#202122", "#d8d9da"  # not used by any palette: the page replaces them


def table(runs: Sequence[MeasuredRun], name: str) -> pd.DataFrame:
    """A measurement table of all runs that have it, with `variant`, `seed` and `panel`."""
    found = [
        run.measured.tables[name].assign(variant=run.config.variant, seed=run.config.seed, panel=look(run.config).panel)
        for run in runs
        if name in run.measured.tables and not run.measured.tables[name].empty
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def looks(runs: Sequence[MeasuredRun]) -> dict[str, Look]:
    return {run.config.variant: look(run.config) for run in runs}


def symlog(axes: Axes, axis: Literal["x", "y"], linthresh: float) -> None:
    """Logarithmic beyond +-linthresh, with the margin of that scale: matplotlib keeps the one of the linear scale."""
    (axes.set_xscale if axis == "x" else axes.set_yscale)("symlog", linthresh=linthresh)
    axes.autoscale_view(scalex=axis == "x", scaley=axis == "y")


@contextmanager
def themed() -> Iterator[None]:
    """Drawing style of every figure; figures opened inside are closed."""
    colours: dict[Any, Any] = {
        key: INK
        for key in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor", "axes.titlecolor")
    }
    extra: dict[Any, Any] = {
        "grid.color": GRID,
        "svg.fonttype": "none",
        "svg.hashsalt": "loopsight",
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "font.size": 9.5,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.w_pad": 0.1,  # inches: the longest label of an axis keeps off the edge
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "legend.fontsize": 9,
        # As those of decades, so that all numbers of an axis stand in one line.
        "xtick.minor.size": plt.rcParamsDefault["xtick.major.size"],
        "xtick.minor.pad": plt.rcParamsDefault["xtick.major.pad"],
        "ytick.minor.size": plt.rcParamsDefault["ytick.major.size"],
        "ytick.minor.pad": plt.rcParamsDefault["ytick.major.pad"],
        "font.family": "sans-serif",
    }
    with sns.axes_style("whitegrid"), plt.rc_context(colours | extra):
        try:
            yield
        finally:
            plt.close("all")


def svg(figure: Figure, key: str) -> str:
    """An inline SVG element in the page's colours, its ids unique by the key."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r"url\(#", f"url(#{key}-", text)
    text = re.sub(r'href="#', f'href="#{key}-', text)
    for colour, name in ((INK, "currentColor"), (GRID, "var(--grid)")):
        text = text.replace(colour, name)
    # Size comes from the page, up to a text of its size; name and description are given by the element around it.
    widest = 1.25 * figure.get_figwidth()
    opening = rf'<svg id="svg-{key}" aria-hidden="true" style="max-width: {widest:g}in" \1'
    return re.sub(r'<svg (.*?)width="[^"]*" height="[^"]*"', opening, text, count=1)

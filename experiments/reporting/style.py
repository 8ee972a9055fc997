"""How a variant looks in every figure, and how a figure becomes SVG for the page and PNG beside it.

Colour says the readout (or remedy), dashes say the head and embeddings, a panel the placement of the loss. Text and
lines are drawn in two marker colours which the page turns into its own, so that one SVG serves light and dark.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402
import seaborn as sns  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from experiments.config import RunConfig  # noqa: E402
from experiments.measure.statistics import geometric_interval, t_interval  # noqa: E402
from experiments.reporting.collect import MeasuredRun  # noqa: E402

INK, GRID = "#202122", "#d8d9da"  # not used by any palette: the page replaces them
_COLOURS = sns.color_palette("colorblind").as_hex()
READOUT_COLOURS = {
    "RMSNorm": _COLOURS[3],
    "raw": _COLOURS[0],
    "RMSNorm, penalty": _COLOURS[2],
    "RMSNorm, norm between loops": _COLOURS[4],
    "raw, RMSNorm at the last loop": _COLOURS[1],
    "LayerNorm": _COLOURS[5],
    "other": _COLOURS[7],
}
MARKERS = dict(zip(READOUT_COLOURS, "osDP^Xv", strict=True))
PANELS = ("per-loop loss", "terminal loss", "controls, per-loop loss")


@dataclass(frozen=True, kw_only=True)
class Look:
    """Of a variant: its colour and marker, its dashes, and its panel."""

    colour: str
    marker: str
    dashes: Any
    panel: str


def look(config: RunConfig) -> Look:
    """By configuration, so that a new variant needs no entry here."""
    readout = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm", "raw": "raw"}.get(config.model.readout.kind, "other")
    if config.model.readout.kind == "raw_final_rmsnorm":
        readout = "raw, RMSNorm at the last loop"
    elif config.supervision.norm_penalty is not None:
        readout = "RMSNorm, penalty" if readout == "RMSNorm" else "other"
    elif config.model.between.kind != "none":
        readout = "RMSNorm, norm between loops" if readout == "RMSNorm" else "other"
    small = config.model.embedding_std != 1.0
    dashes: Any = (1, 1.5) if small else (5, 2)
    control = small or not config.model.readout.tied
    if small and not config.model.readout.tied:
        dashes = (5, 1.5, 1, 1.5)
    panel = PANELS[2] if control else PANELS[config.supervision.placement == "terminal"]
    return Look(colour=READOUT_COLOURS[readout], marker=MARKERS[readout], dashes=dashes if control else "", panel=panel)


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


def geometric_mean(values: Any) -> float:
    found = [value for value in values if value > 0 and math.isfinite(value)]
    return geometric_interval(found).mean if found else math.nan


def log_bounds(values: Any) -> tuple[float, float]:
    """Seed interval of positive values; the value itself with one seed."""
    found = [value for value in values if value > 0 and math.isfinite(value)]
    if not found:
        return math.nan, math.nan
    interval = geometric_interval(found)
    return (
        (interval.mean, interval.mean)
        if interval.low is None or interval.high is None
        else (
            interval.low,
            interval.high,
        )
    )


def bounds(values: Any) -> tuple[float, float]:
    """Seed interval; the value itself with one seed."""
    interval = t_interval([float(value) for value in values])
    return (
        (interval.mean, interval.mean)
        if interval.low is None or interval.high is None
        else (
            interval.low,
            interval.high,
        )
    )


def lines(axes: Axes, rows: pd.DataFrame, x: str, y: str, variants: dict[str, Look], *, log: bool = True) -> None:
    """One line a variant, its band the 95 % interval over seeds."""
    rows = rows.dropna(subset=[y])
    order = [variant for variant in variants if variant in set(rows["variant"])]
    sns.lineplot(
        rows,
        x=x,
        y=y,
        hue="variant",
        style="variant",
        hue_order=order,
        style_order=order,
        palette={variant: variants[variant].colour for variant in order},
        markers={variant: variants[variant].marker for variant in order} if rows[x].nunique() <= 12 else False,
        dashes={variant: variants[variant].dashes for variant in order},
        estimator=geometric_mean if log else "mean",
        errorbar=log_bounds if log else bounds,
        markeredgewidth=0,
        ax=axes,
    )
    if log:
        axes.set_yscale("log")


def symlog(axes: Axes, axis: Literal["x", "y"], linthresh: float) -> None:
    """Logarithmic beyond +-linthresh, with the margin of that scale: matplotlib keeps the one of the linear scale."""
    (axes.set_xscale if axis == "x" else axes.set_yscale)("symlog", linthresh=linthresh)
    axes.autoscale_view(scalex=axis == "x", scaley=axis == "y")


def shared_legend(figure: Figure, columns: int = 3) -> None:
    """One legend under all panels, of the entries of each."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
        legend = axes.get_legend()
        if legend is not None:
            legend.remove()
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)


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


def png(figure: Figure) -> bytes:
    """On white, 150 dots an inch, laid out as it is."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


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

"""How a variant looks in every figure, and its line over loops, factors or steps with the interval over seeds.

Colour says the readout (or remedy), dashes say the head and embeddings, a panel the placement of the loss.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")  # for every figure: whoever draws imports this

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.config import RunConfig
from experiments.measure.statistics import Interval, geometric_interval, t_interval

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
    *earlier, _ = config.supervision.loop_weights(config.model.num_loops)
    panel = PANELS[2] if control else PANELS[not any(earlier)]
    return Look(colour=READOUT_COLOURS[readout], marker=MARKERS[readout], dashes=dashes if control else "", panel=panel)


def geometric_mean(values: Any) -> float:
    found = _positive(values)
    return geometric_interval(found).mean if found else math.nan


def log_bounds(values: Any) -> tuple[float, float]:
    """Seed interval of positive values; the value itself with one seed."""
    found = _positive(values)
    return _ends(geometric_interval(found)) if found else (math.nan, math.nan)


def bounds(values: Any) -> tuple[float, float]:
    """Seed interval; the value itself with one seed."""
    return _ends(t_interval([float(value) for value in values]))


def _positive(values: Any) -> list[float]:
    return [value for value in values if value > 0 and math.isfinite(value)]


def _ends(interval: Interval) -> tuple[float, float]:
    if interval.low is None or interval.high is None:
        return interval.mean, interval.mean
    return interval.low, interval.high


def lines(axes: Axes, rows: pd.DataFrame, x: str, y: str, variants: dict[str, Look], *, log: bool = True) -> None:
    """One line a variant, its band the 95 % interval over seeds; means are geometric where the axis is logarithmic.

    Aggregated here: where an axis shares its scale and is logarithmic already, seaborn's estimators get logarithms.
    """
    marked = rows[x].nunique() <= 12
    for variant, how in variants.items():
        of = rows[rows["variant"] == variant].dropna(subset=[y]).groupby(x)[y]
        if not of.ngroups:
            continue
        mean = of.agg(geometric_mean if log else "mean")
        low, high = zip(*of.agg(log_bounds if log else bounds), strict=True)
        axes.plot(
            mean.index,
            mean,
            color=how.colour,
            linestyle=(0, how.dashes) if how.dashes else "-",
            marker=how.marker if marked else None,
            markeredgewidth=0,
            label=variant,
        )
        axes.fill_between(mean.index, low, high, color=how.colour, alpha=0.2, linewidth=0)
    if log:
        axes.set_yscale("log")


def shared_legend(figure: Figure, columns: int = 3) -> None:
    """One legend under all panels, of the entries of each, in as many columns as fit, at most so many."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
        legend = axes.get_legend()
        if legend is not None:
            legend.remove()
    for count in range(columns if entries else 0, 0, -1):
        legend = figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=count, frameon=False, handlelength=3.5
        )
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def panels(
    rows: pd.DataFrame, count: int, *, sharex: bool | Literal["row"] = True, sharey: bool = True
) -> tuple[Figure, Any, list[str]]:
    """A column of axes for each group of variants, and `count` rows of them: within a group every look is its own."""
    present = [panel for panel in PANELS if panel in set(rows["panel"])]
    size = (3.7 * max(len(present), 1.4), 1.1 + 3.0 * count)
    figure, grid = plt.subplots(
        count,
        len(present),
        figsize=size,
        layout="constrained",
        sharex=sharex,
        sharey="row" if sharey else False,
        squeeze=False,
    )
    return figure, grid, present

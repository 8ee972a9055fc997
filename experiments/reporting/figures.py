"""Every measurement as a figure, drawn from stored tables only: lines over loops, factors and steps."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.curves import lines, panels, shared_legend
from experiments.figures import FRACTION
from experiments.reporting.collect import MeasuredRun
from experiments.reporting.style import INK, looks, symlog, table

Runs = tuple[MeasuredRun, ...]


def by_panel(
    runs: Runs,
    name: str,
    x: str,
    y: str,
    *,
    xlabel: str,
    ylabel: str,
    log: bool = True,
    log_x: bool = False,
    sharey: bool = True,
) -> tuple[Figure, list[Axes]] | None:
    """A quantity in one panel for each group of variants."""
    rows = table(runs, name)
    if rows.empty or rows[y].dropna().empty:
        return None
    figure, grid, present = panels(rows, 1, sharey=sharey)
    for axes, panel in zip(grid[0], present, strict=True):
        lines(axes, rows[rows["panel"] == panel], x, y, looks(runs), log=log)
        axes.set(title=panel, xlabel=xlabel, ylabel=ylabel)
        if log_x:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    return figure, list(grid[0])


def _trained(axes: Axes, runs: Runs) -> None:
    axes.axvline(runs[0].measured.trained_loops, color=INK, linewidth=0.8, linestyle=":", label="trained depth K")


def norm_by_loop(runs: Runs) -> Figure | None:
    drawn = by_panel(runs, "loops", "k", "l2_norm_mean", xlabel="loop k", ylabel="mean L2 norm of the state")
    return _with_depth(drawn, runs)


def cross_entropy_by_loop(runs: Runs) -> Figure | None:
    drawn = by_panel(
        runs, "loops", "k", "cross_entropy", xlabel="loop k", ylabel="cross-entropy (nats a token)", sharey=False
    )
    return _with_depth(drawn, runs)


def _with_depth(drawn: tuple[Figure, list[Axes]] | None, runs: Runs) -> Figure | None:
    if drawn is None:
        return None
    for axes in drawn[1]:
        _trained(axes, runs)
    shared_legend(drawn[0])
    return drawn[0]


def radial_fractions(runs: Runs) -> Figure | None:
    rows = table(runs, "radial")
    if rows.empty:
        return None
    columns = {"immediate": "of the loop's own loss", "total": "of the whole training loss"}
    figure, grid, present = panels(rows, len(columns))
    for of_column, (column, words) in zip(grid, columns.items(), strict=True):
        clipped = rows.assign(**{column: rows[column].clip(lower=1e-17)})
        for axes, panel in zip(of_column, present, strict=True):
            lines(axes, clipped[clipped["panel"] == panel], "k", column, looks(runs))
            axes.axhline(
                rows["random_direction"].iloc[0], color=INK, linewidth=0.8, linestyle="--", label="random direction"
            )
            axes.axhline(1e-16, color=INK, linewidth=0.8, linestyle=":", label="float64 rounding")
            axes.set(title=panel, xlabel="loop k", ylabel=f"radial-gradient fraction\n{words}")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shared_legend(figure)
    return figure


INCREMENTS = {
    "regime_number": ("regime number |b(2h) - b(h)| / |b(h)|", True),
    "radial_increment": ("radial increment <u, b>", False),
    "angular_step": ("turn of the direction (rad)", True),
    "heading_cosine": ("cosine of successive direction steps", False),
}


def increments(runs: Runs) -> Figure | None:
    rows = table(runs, "increments")
    if rows.empty:
        return None
    figure, grid, present = panels(rows, len(INCREMENTS))
    for of_column, (column, (label, log)) in zip(grid, INCREMENTS.items(), strict=True):
        for axes, panel in zip(of_column, present, strict=True):
            lines(axes, rows[(rows["k"] > 0) & (rows["panel"] == panel)], "k", column, looks(runs), log=log)
            axes.set(xscale="log", xlabel="loop k", ylabel=label, title=panel)
            if column == "radial_increment":
                symlog(axes, "y", 1.0)
            _trained(axes, runs)
    shared_legend(figure)
    return figure


def growth(runs: Runs) -> Figure | None:
    rows = table(runs, "growth")
    if rows.empty:
        return None
    wanted = (
        "scale_invariant",
        "terminal_scale_invariant",
        "untied_scale_invariant",
        "scale_visible",
        "scale_removing",
    )
    order = [variant for variant in wanted if variant in set(rows["variant"])] or list(rows["variant"].unique())[:5]
    columns = min(len(order), 3)
    count = -(-len(order) // columns)
    figure, grid = plt.subplots(
        count, columns, figsize=(3.2 * columns + 1, 1.2 + 2.9 * count), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(order) :]:
        axes.remove()
    for axes, variant in zip(grid.flat, order, strict=False):
        _growth_panel(axes, rows[rows["variant"] == variant])
        axes.set(title=variant, xlabel="loop k", ylabel="mean L2 norm")
    shared_legend(figure)
    return figure


def _growth_panel(axes: Axes, rows: pd.DataFrame) -> None:
    """Seed means: the norm seen as a broad line, each predictor as a thin one; the band of the one that is judged."""
    seen = rows.groupby("k")["l2_norm_seen"].mean()
    axes.plot(seen.index, seen, color=INK, linewidth=5.0, alpha=0.3, label="seen")
    dashes = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
    styles = zip(sns.color_palette("colorblind", 8).as_hex(), dashes * 2, strict=True)
    for (colour, style), (method, of) in zip(styles, rows.groupby("method", sort=False), strict=False):
        mean = of.groupby("k")[["l2_norm_predicted", "low", "high"]].mean().dropna()
        if len(mean):
            axes.plot(mean.index, mean["l2_norm_predicted"], color=colour, linestyle=style, label=str(method))
        if method == "direction_flow":
            axes.fill_between(mean.index, mean["low"], mean["high"], color=colour, alpha=0.12, linewidth=0)
    top = max(seen.max() * 1.6, 1e-9)
    axes.set_ylim(min(0.0, seen.min()), top)  # a predictor that leaves this has failed, and its error is in the table


def scale_sensitivity(runs: Runs) -> Figure | None:
    drawn = by_panel(
        runs,
        "scale_sensitivity",
        "factor",
        "change",
        xlabel="factor on the last state",
        ylabel="change of cross-entropy (nats)",
        log=False,
        log_x=True,
    )
    if drawn is None:
        return None
    for axes in drawn[1]:
        symlog(axes, "y", 1e-2)
    shared_legend(drawn[0])
    return drawn[0]


def deferred(runs: Runs) -> Figure | None:
    rows = table(runs, "deferred")
    if rows.empty:
        return None
    rows = rows.assign(visibility=rows["visibility"].clip(lower=1e-30))
    figure, grid, present = panels(rows, 2, sharex="row")
    for axes, panel in zip(grid[0], present, strict=True):
        of = rows[(rows["panel"] == panel) & (rows["factor"] == rows["factor"].min())]
        lines(axes, of, "k", "visibility", looks(runs))
        axes.set(title=panel, xlabel="loop k whose scale is seen", ylabel="deferred visibility\n(random direction: 1)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes, panel in zip(grid[1], present, strict=True):
        lines(axes, rows[(rows["panel"] == panel) & (rows["k"] == 1)], "factor", "visibility", looks(runs))
        axes.set(xscale="log", xlabel="factor on h_1", ylabel="deferred visibility of h_1's scale")
    shared_legend(figure)
    return figure


def pressure(runs: Runs) -> Figure | None:
    rows = table(runs, "pressure")
    if rows.empty:
        return None
    drawn = by_panel(
        runs, "pressure", "step", "k0_pressure", xlabel="training step", ylabel="pressure <G_0, h_0> (nats)", log=False
    )
    assert drawn is not None
    for axes in drawn[1]:
        symlog(axes, "x", 1.0)
        symlog(axes, "y", 1e-2)
    shared_legend(drawn[0])
    return drawn[0]


def own_token(runs: Runs) -> Figure | None:
    drawn = by_panel(
        runs,
        "own_token",
        "step",
        "own_logit",
        xlabel="training step",
        ylabel="logit of the token that went in",
        log=False,
    )
    if drawn is None:
        return None
    for axes in drawn[1]:
        symlog(axes, "x", 1.0)
    shared_legend(drawn[0])
    return drawn[0]


def common(runs: Runs) -> Figure | None:
    drawn = by_panel(
        runs, "common", "step", "common_fraction", xlabel="training step", ylabel="common fraction of h_K", log=False
    )
    if drawn is None:
        return None
    for axes in drawn[1]:
        symlog(axes, "x", 1.0)
        axes.set_ylim(FRACTION)
    shared_legend(drawn[0])
    return drawn[0]

"""Every measurement as a figure, continued: points and bars, one row a variant."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims.confounds import CELLS
from experiments.curves import READOUT_COLOURS, bounds, geometric_mean, log_bounds, panels, shared_legend
from experiments.reporting.collect import MeasuredRun
from experiments.reporting.figures import Runs
from experiments.reporting.style import INK, looks, symlog, table


def points(
    axes: Axes,
    rows: pd.DataFrame,
    value: str,
    hue: str,
    runs: Runs,
    *,
    log: bool = False,
    legend: bool = True,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> None:
    """A row for each variant, a colour for each level: mean and 95 % interval over seeds, cut to what a mean can be."""
    present = set(rows["variant"])

    def interval(values: Any) -> tuple[float, float]:
        low, high = np.clip((log_bounds if log else bounds)(values), *within)
        return low, high

    sns.pointplot(
        rows,
        x=value,
        y="variant",
        hue=hue,
        order=[variant for variant in looks(runs) if variant in present],
        palette="colorblind",
        dodge=0.5 if rows[hue].nunique() > 1 else False,
        linestyle="none",
        markersize=4,
        err_kws={"linewidth": 1.5},
        estimator=geometric_mean if log else "mean",
        errorbar=interval,
        legend="auto" if legend else False,
        ax=axes,
    )
    axes.set_ylabel("")
    if log:
        axes.set_xscale("log")


def _by_variant(
    runs: Runs,
    rows: pd.DataFrame,
    value: str,
    hue: str,
    label: str,
    *,
    log: bool = False,
    zero: float | None = None,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> Figure | None:
    if rows.empty or rows[value].dropna().empty:
        return None
    rows = rows.dropna(subset=[value])
    figure, axes = plt.subplots(figsize=(8.0, 1.6 + 0.32 * rows["variant"].nunique()), layout="constrained")
    points(axes, rows, value, hue, runs, log=log, within=within)
    axes.set_xlabel(label)
    if zero is not None:
        axes.axvline(zero, color=INK, linewidth=0.8, linestyle=":")
    shared_legend(figure, 4)
    return figure


def token_norms(runs: Runs) -> Figure | None:
    rows = table(runs, "loops")
    if rows.empty:
        return None
    last = rows[rows["k"] == runs[0].measured.trained_loops]
    names = ["l2_norm_median", "l2_norm_mean", "l2_norm_p99", "l2_norm_max"]
    long = last.melt(id_vars=["variant", "seed"], value_vars=names, var_name="over tokens", value_name="norm")
    long["over tokens"] = long["over tokens"].str.removeprefix("l2_norm_")
    return _by_variant(runs, long, "norm", "over tokens", "L2 norm after loop K", log=True)


def clamp(runs: Runs) -> Figure | None:
    figure = _by_variant(
        runs, table(runs, "clamp"), "change", "mode", "change of cross-entropy when clamped (nats)", zero=0.0
    )
    if figure is not None:
        symlog(figure.axes[0], "x", 1e-2)
    return figure


def halting(runs: Runs) -> Figure | None:
    rows, depth = table(runs, "halting"), float(runs[0].measured.trained_loops)
    return _by_variant(runs, rows, "average_loops", "policy", "loops used on average, of K", within=(1.0, depth))


def coefficient_law(runs: Runs) -> Figure | None:
    rows = table(runs, "coefficient_law")
    if rows.empty:
        return None
    rows = rows.dropna(subset=["coefficient_predicted"])
    if rows.empty:
        return None
    figure = _by_variant(runs, rows, "coefficient_seen", "placement", "coefficient of 1/s, as seen (dotted: predicted)")
    if figure is not None:
        for predicted in rows["coefficient_predicted"].unique():
            figure.axes[0].axvline(predicted, color=INK, linewidth=0.8, linestyle=":")
    return figure


def pareto(runs: Runs) -> Figure | None:
    rows = table(runs, "depth")
    if rows.empty:
        return None
    figure, grid, present = panels(rows, 1, sharey=False)
    for axes, panel in zip(grid[0], present, strict=True):
        for variant, how in looks(runs).items():
            of = rows[(rows["variant"] == variant) & (rows["panel"] == panel)]
            if of.empty:
                continue
            mean = of.groupby("k")[["tokens_per_second", "cross_entropy"]].mean()
            axes.plot(
                mean["tokens_per_second"] / 1000,
                mean["cross_entropy"],
                color=how.colour,
                marker=how.marker,
                linestyle=(0, how.dashes) if how.dashes else "-",
                label=variant,
            )
        axes.set(
            xscale="log",
            yscale="log",
            title=panel,
            xlabel="thousand tokens a second",
            ylabel="cross-entropy (nats a token)",
        )
    shared_legend(figure)
    return figure


def epsilon_leak(runs: Runs) -> Figure | None:
    rows = table(runs, "radial")
    rows = rows if rows.empty else rows[rows["epsilon_leak_predicted"] < 1.0]
    if rows.empty:
        return None
    figure, axes = plt.subplots(figsize=(6.2, 4.4), layout="constrained")
    for variant, how in looks(runs).items():
        of = rows[rows["variant"] == variant]
        if len(of):
            x, y = of["epsilon_leak_predicted"], of["epsilon_leak_seen"]
            axes.scatter(x, y, color=how.colour, marker=how.marker, s=18, label=variant)
    ends = [rows["epsilon_leak_predicted"].min(), rows["epsilon_leak_predicted"].max()]
    axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=":", label="as predicted")
    axes.set(xscale="log", yscale="log", xlabel="leak predicted, eps / (ms + eps)", ylabel="leak seen")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def attribution(runs: Runs) -> Figure | None:
    rows = table(runs, "attribution")
    if rows.empty:
        return None
    totals = rows.groupby(["variant", "seed", "group"])["contribution"].sum().groupby(level=["variant", "group"]).mean()
    wide = totals.unstack("group")
    wide = wide.reindex([variant for variant in looks(runs) if variant in wide.index])
    figure, axes = plt.subplots(figsize=(8.0, 1.6 + 0.34 * len(wide)), layout="constrained")
    groups = [group for group in wide.columns if group not in ("sum", "truth")]
    colours = dict(zip(groups, sns.color_palette("colorblind", len(groups)).as_hex(), strict=True))
    ends = {1: np.zeros(len(wide)), -1: np.zeros(len(wide))}
    for group in groups:
        values = wide[group].fillna(0.0).to_numpy()
        left = np.where(values >= 0, ends[1], ends[-1])
        axes.barh(wide.index, values, left=left, color=colours[group], label=group, height=0.65, linewidth=0)
        for sign in ends:
            ends[sign] = ends[sign] + np.where(values * sign > 0, values, 0.0)
    axes.scatter(wide["truth"], wide.index, color=INK, marker="|", s=90, zorder=3, label="the change itself")
    axes.invert_yaxis()
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_xlabel("change of mean log |h_K| over training, by parameter group")
    shared_legend(figure, 4)
    return figure


def precision(runs: Runs) -> Figure | None:
    rows = table(runs, "precision")
    if rows.empty:
        return None
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, 1.8 + 0.3 * rows["variant"].nunique()), layout="constrained", sharey=True
    )
    points(left, rows, "moving_fraction_at_64", "dtype", runs)
    left.set_xlabel("share of tokens still moving at loop 64")
    long = rows.melt(
        id_vars=["variant", "seed", "dtype"], value_vars=["loops_predicted", "loops_seen"], value_name="loops"
    ).dropna(subset=["loops"])
    long["loops until"] = long["dtype"] + long["variable"].str.removeprefix("loops").str.replace("_", ", ")
    if len(long):
        points(right, long, "loops", "loops until", runs, log=True)
    right.set_xlabel("loops until it stops")
    shared_legend(figure, 3)
    return figure


def factorial(runs: Runs) -> Figure | None:
    rows = table(_in_cells(runs), "loops")
    if rows.empty:
        return None
    last = rows[rows["k"] == runs[0].measured.trained_loops].copy()
    cells = {run.config.variant: cell for run in _in_cells(runs) for cell in run.measured.labels if cell in CELLS}
    last["readout"] = last["variant"].map(lambda name: {"raw": "raw", "rmsnorm": "RMSNorm"}[cells[name].split()[0]])
    last["cell"] = last["variant"].map(lambda name: "\n".join(cells[name].split()[1:]))
    order = [
        cell for cell in ("tied\nN(0,1)", "tied\nsmall", "untied\nN(0,1)", "untied\nsmall") if cell in set(last["cell"])
    ]
    figure, grid = plt.subplots(1, 2, figsize=(9.0, 4.2), layout="constrained")
    quantities: Sequence[tuple[str, str, Callable[..., object], Callable[..., object] | str]] = (
        ("l2_norm_mean", "mean L2 norm after loop K", log_bounds, geometric_mean),
        ("cross_entropy", "cross-entropy after loop K (nats)", bounds, "mean"),
    )
    for axes, (column, label, errors, middle) in zip(grid, quantities, strict=True):
        sns.pointplot(
            last,
            x="cell",
            y=column,
            hue="readout",
            hue_order=[name for name in ("RMSNorm", "raw") if name in set(last["readout"])],
            order=order,
            palette={name: READOUT_COLOURS[name] for name in ("RMSNorm", "raw")},
            markers=["o", "s"][: last["readout"].nunique()],
            errorbar=errors,
            estimator=middle,
            err_kws={"linewidth": 1.5},
            linewidth=1.2,
            ax=axes,
        )
        axes.set(xlabel="head and embeddings", ylabel=label)
    grid[0].set_yscale("log")
    shared_legend(figure)
    return figure


def _in_cells(runs: Runs) -> tuple[MeasuredRun, ...]:
    return tuple(run for run in runs if any(label in CELLS for label in run.measured.labels))

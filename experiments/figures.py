"""Figures of one run and of a comparison, drawn from stored tables only."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.curves import Look, lines, panels, shared_legend
from experiments.files import atomic_path

PALETTE = "colorblind"
FRACTION = (0.0, 1.01)  # limits of an axis: an interval under normality may leave 0 to 1, a fraction cannot


def _figure(path: Path, draw: Callable[[Axes], None], *, width: float = 5.0, height: float = 3.8) -> None:
    with sns.axes_style("whitegrid"), sns.color_palette(PALETTE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=2, frameon=False)  # beside the lines, not over them
        plain_ticks(figure)
        _write(path, figure)


def _write(path: Path, figure: Figure) -> None:
    """And close it."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(figure))
    plt.close(figure)


def png(figure: Figure) -> bytes:
    """150 dots an inch, drawn once: `savefig` draws everything twice, for a layout that the first drawing makes."""
    buffer = io.BytesIO()
    figure.set_dpi(150)
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _loop_axis(axes: Axes) -> None:
    axes.set_xlabel("loop k")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _step_axis(axes: Axes) -> None:
    axes.set(xlabel="training step", xscale="log")  # most of it happens in the first steps


def _setting_axis(setting: str, values: Sequence[float], axes: Axes) -> None:
    axes.set(xlabel=setting.replace("_", " "), xscale="log")
    axes.set_xticks(values)  # of all panels, which share the axis
    axes.xaxis.set_minor_locator(NullLocator())


def plain_ticks(figure: Figure) -> None:
    """Numbers without mathematical typesetting on logarithmic axes, and between decades where there are few; ticks that
    were chosen stay."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if axis.get_scale() not in ("log", "symlog"):
            continue
        chosen = isinstance(axis.get_major_locator(), FixedLocator)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = axis.get_view_interval()
        shown: tuple[int, ...] = ()
        if axis.get_scale() == "log" and high < 100 * low and not chosen:
            shown = (2, 3, 4, 5, 6, 8) if high < 10 * low else (2, 5)
            axis.set_minor_locator(LogLocator(subs=shown))
        axis.set_minor_formatter(FuncFormatter(lambda value, _, shown=shown: f"{value:g}" if shown else ""))


def draw_run(folder: Path, summary: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
    """The four figures of a run, into `folder`/figures."""
    validation, state = summary["validation"], summary["state"]
    loops = range(1, len(validation["cross_entropy"]) + 1)
    title = summary["run"]

    def norm_by_loop(axes: Axes) -> None:
        for name, values in validation["l2_norm"].items():
            axes.plot(loops, values, marker="o", label=f"{name} over tokens")
        axes.set(title=title, ylabel="L2 norm of the state", yscale="log")
        _loop_axis(axes)

    def norm_by_step(axes: Axes) -> None:
        steps = [record["step"] for record in metrics]
        for k in range(1, len(metrics[0]["l2_norm"]) + 1):  # the loops trained with, not those evaluated
            axes.plot(steps, [record["l2_norm"][k - 1] for record in metrics], label=f"loop {k}")
        axes.set(title=title, xlabel="training step", ylabel="mean L2 norm (training batch)", yscale="log")

    def cross_entropy(axes: Axes) -> None:
        axes.plot(loops, validation["cross_entropy"], marker="o")
        axes.set(title=title, ylabel="validation cross-entropy (nats a token)")
        _loop_axis(axes)

    def radial_fraction(axes: Axes) -> None:
        axes.plot(loops, state["radial_gradient_fraction"], marker="o")
        axes.axhline(1e-16, color="grey", linestyle=":", label="float64 rounding")
        axes.set(title=title, ylabel="radial-gradient fraction", yscale="log", ylim=(1e-18, 1.0))
        _loop_axis(axes)

    drawings = {
        "norm_by_loop": norm_by_loop,
        "norm_by_step": norm_by_step,
        "cross_entropy_by_loop": cross_entropy,
        "radial_gradient_fraction_by_loop": radial_fraction,
    }
    for name, draw in drawings.items():
        _figure(folder / "figures" / f"{name}.png", draw)


def draw_comparison(path: Path, by_loop: pd.DataFrame, looks: dict[str, Look]) -> None:
    """Norm and cross-entropy of every loop: a line a variant, its band the 95 % interval over seeds.

    Args:
        path: PNG to write.
        by_loop: one row a variant, seed and loop: `variant`, `seed`, `loop`, `l2_norm`, `cross_entropy`.
        looks: of every variant.
    """
    quantities = {"l2_norm": ("mean L2 norm of the state", True), "cross_entropy": ("cross-entropy (nats)", False)}
    _draw_by_panel(path, by_loop, "loop", quantities, looks, _loop_axis)


def draw_training(path: Path, by_step: pd.DataFrame, looks: dict[str, Look]) -> None:
    """Norm and cross-entropy of the last loop over training, by variant, with 95 % intervals over seeds; all axes and
    means are logarithmic.

    Args:
        path: PNG to write.
        by_step: one row a variant, seed and step: `variant`, `seed`, `step`, `l2_norm`, `cross_entropy`.
        looks: of every variant.
    """
    quantities = {
        "l2_norm": ("mean L2 norm after the last loop", True),
        "cross_entropy": ("its training cross-entropy (nats)", True),
    }
    _draw_by_panel(path, by_step, "step", quantities, looks, _step_axis)


def draw_over(path: Path, runs: pd.DataFrame, setting: str, looks: dict[str, Look]) -> None:
    """Norm and cross-entropy after training, over a setting, by variant, with 95 % intervals over seeds.

    Args:
        path: PNG to write.
        runs: one row a run: `variant`, `seed`, `l2_norm`, `cross_entropy` and the setting.
        setting: a column of positive numbers.
        looks: of every variant.
    """
    quantities = {
        "l2_norm": ("mean L2 norm after the last loop", True),
        "cross_entropy": ("its cross-entropy (nats)", False),
    }
    _draw_by_panel(
        path, runs, setting, quantities, looks, partial(_setting_axis, setting, sorted(runs[setting].unique()))
    )


def draw_sizes(path: Path, runs: pd.DataFrame, looks: dict[str, Look]) -> None:
    """Root mean square of the last loop's state after training, over learning rate x width: a panel a variant, a line a
    width and depth, with 95 % intervals over seeds.

    Args:
        path: PNG to write.
        runs: one row a run: `variant`, `seed`, `learning_rate`, `d_model`, `num_layers`, `l2_norm`.
        looks: of every variant.
    """
    rows = runs.sort_values(["num_layers", "d_model"])
    rows = rows.assign(
        product=rows["learning_rate"] * rows["d_model"],
        rms=rows["l2_norm"] / rows["d_model"] ** 0.5,
        line=[f"width {d}, {n} layers" for d, n in zip(rows["d_model"], rows["num_layers"], strict=True)],
    )

    def finish(axes: Axes) -> None:
        axes.set(xlabel="learning rate x width", ylabel="RMS after the last loop", xscale="log")

    _draw_by_variant(path, rows, "product", "rms", looks, "viridis", finish)


def draw_courses(path: Path, common: pd.DataFrame, looks: dict[str, Look]) -> None:
    """Norm of the last loop's state at the kept steps of training: a panel a variant, a line a setting, with 95 %
    intervals over seeds.

    Args:
        path: PNG to write.
        common: one row a run and step: `variant`, `seed`, `step`, `l2_norm`, and `line`, the name of the setting, in
            the order of the lines; steps from 1.
        looks: of every variant.
    """

    def finish(axes: Axes) -> None:
        _step_axis(axes)
        axes.set(ylabel="mean L2 norm after the last loop")

    _draw_by_variant(path, common, "step", "l2_norm", looks, PALETTE, finish)


def _draw_by_variant(
    path: Path,
    rows: pd.DataFrame,
    x: str,
    y: str,
    looks: dict[str, Look],
    palette: str,
    finish: Callable[[Axes], object],
) -> None:
    """A panel a variant; in each a line for every `line` of the rows, in their order."""
    names = rows["line"].unique()
    colours = dict(zip(names, sns.color_palette(palette, len(names)).as_hex(), strict=True))
    with sns.axes_style("whitegrid"):
        figure, grid = plt.subplots(1, len(looks), figsize=(4.5 * len(looks), 4.1), layout="constrained", sharey=True)
        for axes, (variant, look) in zip(np.atleast_1d(grid), looks.items(), strict=True):
            of_variant = rows[rows["variant"] == variant].assign(variant=lambda frame: frame["line"])
            styles = {name: replace(look, colour=colour, marker="o", dashes="") for name, colour in colours.items()}
            lines(axes, of_variant, x, y, styles)
            axes.set(title=variant)
            finish(axes)
        shared_legend(figure, 3)
        plain_ticks(figure)
        _write(path, figure)


def draw_remedies(path: Path, by_step: pd.DataFrame) -> None:
    """Norm and training cross-entropy of the last loop from the step on at which remedies were begun: a column of
    panels a variant, a line a remedy, with 95 % intervals over seeds.

    Args:
        path: PNG to write.
        by_step: one row a variant, seed, remedy and step: `variant`, `seed`, `remedy`, `step`, `l2_norm`,
            `cross_entropy`.
    """
    quantities = {"l2_norm": "mean L2 norm after the last loop", "cross_entropy": "its training cross-entropy (nats)"}
    variants, remedies = (list(dict.fromkeys(by_step[key])) for key in ("variant", "remedy"))
    looks = {
        remedy: Look(colour=colour, marker="o", dashes="" if remedy != remedies[0] else (5, 2), panel="")
        for remedy, colour in zip(remedies, sns.color_palette("colorblind", len(remedies)).as_hex(), strict=True)
    }
    with sns.axes_style("whitegrid"):
        size = (4.5 * len(variants), 7.1)
        figure, grid = plt.subplots(2, len(variants), figsize=size, layout="constrained", sharex=True, squeeze=False)
        for of_quantity, (quantity, label) in zip(grid, quantities.items(), strict=True):
            for axes, variant in zip(of_quantity, variants, strict=True):
                rows = by_step[by_step["variant"] == variant]
                lines(axes, rows.assign(variant=rows["remedy"]), "step", quantity, looks)
                axes.set(title=variant, ylabel=label)
        for axes in grid[-1]:
            axes.set_xlabel("training step")
        shared_legend(figure, 3)
        plain_ticks(figure)
        _write(path, figure)


def draw_common(path: Path, common: pd.DataFrame, looks: dict[str, Look]) -> None:
    """Norm and common fraction of the last loop's state at the kept steps of training, by variant.

    Args:
        path: PNG to write.
        common: one row a run and step: `variant`, `seed`, `step`, `l2_norm`, `common_fraction`; steps from 1.
        looks: of every variant.
    """
    quantities = {
        "l2_norm": ("mean L2 norm after the last loop", True),
        "common_fraction": ("common fraction of its mean square", False),
    }
    _draw_by_panel(path, common, "step", quantities, looks, _step_axis, limits={"common_fraction": FRACTION})


def _draw_by_panel(
    path: Path,
    rows: pd.DataFrame,
    x: str,
    quantities: dict[str, tuple[str, bool]],
    looks: dict[str, Look],
    finish: Callable[[Axes], object],
    limits: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> None:
    """A row of panels for each quantity, with its label and whether its axis is logarithmic; limits where there are."""
    rows = rows.assign(panel=[looks[variant].panel for variant in rows["variant"]])
    with sns.axes_style("whitegrid"):
        figure, grid, present = panels(rows, len(quantities), sharey=False)
        for of_quantity, (quantity, (label, log)) in zip(grid, quantities.items(), strict=True):
            for axes, panel in zip(of_quantity, present, strict=True):
                lines(axes, rows[rows["panel"] == panel], x, quantity, looks, log=log)
                axes.set(title=panel, ylabel=label)
                finish(axes)
                if quantity in limits:
                    axes.set_ylim(limits[quantity])
        shared_legend(figure, 4)
        plain_ticks(figure)
        _write(path, figure)

"""What is drawn is what the tables say, in every panel."""

import inspect
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from experiments.comparison import compare
from experiments.curves import (
    MARKERS,
    PANELS,
    READOUT_COLOURS,
    Look,
    bounds,
    geometric_mean,
    lines,
    log_bounds,
    look,
    panels,
    shared_legend,
)
from experiments.reporting import charts, figures
from experiments.reporting.collect import MeasuredRun
from experiments.reporting.gallery import PICTURES
from experiments.reporting.style import table, themed

NAMES = ("scale_visible", "scale_invariant", "terminal_scale_visible", "terminal_scale_invariant",
         "untied_scale_invariant", "untied_scale_visible")  # fmt: skip
LONG = ("untied_small_init_scale_visible", "untied_small_init_scale_invariant")


@pytest.fixture
def runs(world):
    return tuple(
        MeasuredRun(
            folder=Path(name), config=world.config(name, seed), summary={}, record={}, measured=world.run(name, seed)
        )
        for name in NAMES
        for seed in (0, 1, 2)
    )


@pytest.mark.parametrize("module", [charts, figures])
def test_every_figure_stands_in_the_report(module):
    made = {
        name
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
        if list(inspect.signature(function).parameters) == ["runs"]
    }
    unused = sorted(made - {picture.draw.__name__ for picture in PICTURES})
    assert made and not unused, f"add {unused} to PICTURES in experiments/reporting/gallery.py"


def drawn(figure):
    """The y values of every line that belongs to a variant, by place of its axes and variant."""
    return {
        (place, line.get_label()): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for place, axes in enumerate(figure.axes)
        for line in axes.get_lines()
        if line.get_label() in NAMES
    }


def require_drawn(figure, rows, columns, x, middle):
    found = drawn(figure)
    panels = len(figure.axes) // len(columns)
    assert len(found) == len(NAMES) * len(columns) and panels == 3
    for (place, variant), (xs, ys) in found.items():
        column = columns[place // panels]
        of = rows[rows["variant"] == variant].dropna(subset=[column]).groupby(x)[column]
        np.testing.assert_array_equal(xs, of.mean().index)
        np.testing.assert_allclose(ys, of.agg(middle), rtol=1e-12)


def test_radial_fractions(runs):
    with themed():
        rows = table(runs, "radial")
        clipped = rows.assign(**{name: rows[name].clip(lower=1e-17) for name in ("immediate", "total")})
        require_drawn(figures.radial_fractions(runs), clipped, ["immediate", "total"], "k", geometric_mean)


def test_increments(runs):
    with themed():
        rows = table(runs, "increments")
        figure = figures.increments(runs)
        logarithmic, found = [name for name, (_, log) in figures.INCREMENTS.items() if log], 0
        for place, name in enumerate(figures.INCREMENTS):
            middle = geometric_mean if name in logarithmic else "mean"
            for axes in figure.axes[3 * place : 3 * place + 3]:
                for line in axes.get_lines():
                    of = rows[(rows["variant"] == line.get_label()) & (rows["k"] > 0)].dropna(subset=[name])
                    if len(of):
                        np.testing.assert_allclose(line.get_ydata(), of.groupby("k")[name].agg(middle), rtol=1e-12)
                        found += 1
        assert found == len(NAMES) * len(figures.INCREMENTS)


@pytest.mark.parametrize(
    ("draw", "name", "x", "column", "middle"),
    [
        (figures.norm_by_loop, "loops", "k", "l2_norm_mean", geometric_mean),
        (figures.cross_entropy_by_loop, "loops", "k", "cross_entropy", geometric_mean),
        (figures.scale_sensitivity, "scale_sensitivity", "factor", "change", "mean"),
        (figures.common, "common", "step", "common_fraction", "mean"),
        (figures.own_token, "own_token", "step", "own_logit", "mean"),
    ],
)
def test_one_quantity_in_every_panel(runs, draw, name, x, column, middle):
    with themed():
        require_drawn(draw(runs), table(runs, name), [column], x, middle)


def test_bars_end_where_a_mean_can_be_no_further(runs):
    for run in runs:
        loops = [1.0, 1.1, 3.9][run.config.seed]  # 2.0 [-2.1, 6.1]
        run.measured.tables["halting"]["average_loops"] = [loops, 2.0 + 0.1 * loops, 4.0]
    with themed():
        figure = charts.halting(runs)
        bars = {
            tuple(np.round(line.get_xdata(), 3)) for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2
        }
    low, high = bounds([2.1, 2.11, 2.39])
    assert bars == {(1.0, 4.0), (round(low, 3), round(high, 3)), (4.0, 4.0)}


def test_the_band_is_the_interval_over_seeds(runs):
    rows = table(runs, "loops")
    looks = {run.config.variant: look(run.config) for run in runs}
    figure, axes = plt.subplots()
    lines(axes, rows, "k", "l2_norm_mean", {"scale_visible": looks["scale_visible"]})
    (band,) = axes.collections
    of = rows[rows["variant"] == "scale_visible"].groupby("k")["l2_norm_mean"].agg(log_bounds)
    ends = band.get_paths()[0].vertices
    for k, (low, high) in of.items():
        assert {low, high} <= set(ends[ends[:, 0] == k][:, 1])
    plt.close(figure)


def test_the_comparison_draws_geometric_means_of_norms_and_means_of_losses(world, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr("experiments.figures.plt.close", kept.append)
    sessions = [{
        "date": "2026-01-02T03:04:05", "processor": "P", "torch_threads": 1, "device": "cpu", "python": "3.11",
        "packages": {"torch": "2.13"}, "commit": "0123456789abcdef", "uncommitted_changes": False,
    }]  # fmt: skip

    def summary(name, seed):
        norms = [1.0 + seed, 10.0 ** (1 + seed)]
        return {
            "run": f"{name}-{seed}", "variant": name, "seed": seed, "num_loops": 2, "parameters": 1000,
            "config": world.config(name, seed).to_dict(), "sessions": sessions, "corpus": {"note": None},
            "validation": {
                "tokens": 99, "cross_entropy": [5.0 + seed, 4.0 + 2 * seed],
                "l2_norm": dict.fromkeys(("mean", "median", "p99", "max"), norms),
            },
            "state": {"radial_gradient_fraction": [0.5, 0.25]},
        }  # fmt: skip

    compare([summary(name, seed) for name in NAMES for seed in (0, 1)], tmp_path)
    (figure,) = kept
    assert len(drawn(figure)) == 2 * len(NAMES)
    for (place, _), (xs, ys) in drawn(figure).items():
        np.testing.assert_array_equal(xs, [1, 2])
        np.testing.assert_allclose(ys, [2**0.5, 10**1.5] if place < 3 else [5.5, 5.0])
    monkeypatch.undo()
    plt.close(figure)


LOOKS = {
    "scale_visible": ("raw", "", 0),
    "scale_invariant": ("RMSNorm", "", 0),
    "norm_penalty": ("RMSNorm, penalty", "", 0),
    "scale_removing": ("RMSNorm, norm between loops", "", 0),
    "final_norm": ("raw, RMSNorm at the last loop", "", 0),
    "layernorm": ("LayerNorm", "", 0),
    "terminal_scale_invariant": ("RMSNorm", "", 1),
    "terminal_norm_penalty": ("RMSNorm, penalty", "", 1),
    "untied_scale_visible": ("raw", (5, 2), 2),
    "small_init_scale_invariant": ("RMSNorm", (1, 1.5), 2),
    "untied_small_init_scale_visible": ("raw", (5, 1.5, 1, 1.5), 2),
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_variant_looks_like_its_configuration(name, world):
    readout, dashes, panel = LOOKS[name]
    expected = Look(colour=READOUT_COLOURS[readout], marker=MARKERS[readout], dashes=dashes, panel=PANELS[panel])
    assert look(world.config(name)) == expected


@pytest.mark.parametrize(("weights", "panel"), [((0.0, 0.0, 0.0, 1.0), 1), ((1.0, 0.0, 0.0, 0.0), 0)])
def test_a_run_stands_where_its_own_loss_is(weights, panel, world):
    config = world.config("scale_invariant")
    weighted = replace(config, supervision=replace(config.supervision, weights=weights))
    assert look(weighted).panel == PANELS[panel]


def test_a_remedy_of_another_readout_is_none_of_the_remedies_shown(world):
    penalised, removing = world.config("norm_penalty"), world.config("scale_removing")
    layernorm = world.config("layernorm").model.readout
    for config in (penalised, removing):
        other = replace(config, model=replace(config.model, readout=layernorm))
        assert look(other).colour == READOUT_COLOURS["other"]


def test_only_positive_numbers_are_on_a_logarithmic_axis():
    values = [4.0, 0.0, -1.0, float("inf"), float("nan"), 9.0]
    assert geometric_mean(values) == pytest.approx(6.0)
    assert log_bounds(values) == log_bounds([4.0, 9.0]) and log_bounds([3.0]) == pytest.approx((3.0, 3.0))
    assert np.prod(log_bounds(values)) == pytest.approx(6.0**2)
    assert np.isnan([geometric_mean([0.0]), *log_bounds([-1.0])]).all()
    assert bounds([-3.0]) == (-3.0, -3.0)


@pytest.mark.parametrize("log", [True, False])
def test_a_line_is_drawn_where_there_is_something_and_has_its_look(log):
    rows = pd.DataFrame({"variant": ["a"] * 5 + ["b"], "x": [1, 1, 2, 2, 3, 1], "y": [1.0, 4.0, 2.0, 8.0, None, None]})
    looks = {name: Look(colour="#123456", marker="s", dashes=(5, 2) if log else "", panel="") for name in ("a", "b")}
    figure, axes = plt.subplots()
    lines(axes, rows, "x", "y", looks, log=log)
    (line,), (band,) = axes.get_lines(), axes.collections
    assert line.get_xdata().tolist() == [1, 2] and line.get_ydata() == pytest.approx([2, 4] if log else [2.5, 5.0])
    assert (line.get_label(), line.get_color(), line.get_marker()) == ("a", "#123456", "s")
    assert line.is_dashed() == log and axes.get_yscale() == ("log" if log else "linear")
    ends = band.get_paths()[0].vertices
    assert set((log_bounds if log else bounds)([1.0, 4.0])) <= set(ends[ends[:, 0] == 1][:, 1])
    plt.close(figure)


@pytest.mark.parametrize(("steps", "marker"), [(12, "s"), (13, "None")])
def test_points_are_marked_where_they_are_few(steps, marker):
    rows = pd.DataFrame({"variant": "a", "x": range(steps), "y": 1.0})
    figure, axes = plt.subplots()
    lines(axes, rows, "x", "y", {"a": Look(colour="#123456", marker="s", dashes="", panel="")})
    assert axes.get_lines()[0].get_marker() == marker
    plt.close(figure)


def test_one_legend_stands_for_those_of_all_panels():
    figure, (left, right, _) = plt.subplots(1, 3)
    (first,) = left.plot([1, 2], color="#123456", label="a")
    right.plot([1, 2], label="a")
    right.plot([1, 2], label="b")
    right.legend()
    shared_legend(figure)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"] and right.get_legend() is None
    assert legend.get_lines()[0].get_color() == first.get_color()
    empty = plt.figure()
    shared_legend(empty)
    assert not empty.legends
    narrow, axes = plt.subplots(figsize=(1, 1))
    axes.plot([1, 2], label="wider than its figure")
    shared_legend(narrow)
    assert len(narrow.legends) == 1
    for each in (figure, empty, narrow):
        plt.close(each)


def test_panels_share_what_they_are_asked_to():
    rows = pd.DataFrame({"panel": [PANELS[1], PANELS[0]]})
    for sharex, sharey in ((True, True), ("row", True), (True, False)):
        figure, grid, present = panels(rows, 2, sharex=sharex, sharey=sharey)
        assert present == [*PANELS[:2]] and grid.shape == (2, 2)
        by_x, by_y = grid[0, 0].get_shared_x_axes(), grid[0, 0].get_shared_y_axes()
        assert by_x.joined(grid[0, 0], grid[1, 0]) == (sharex is True) and by_x.joined(grid[0, 0], grid[0, 1])
        assert by_y.joined(grid[0, 0], grid[0, 1]) == sharey and not by_y.joined(grid[0, 0], grid[1, 0])
        plt.close(figure)


@pytest.mark.parametrize(
    "names", [NAMES[:1], NAMES[:2], NAMES[:2] + NAMES[4:], NAMES, NAMES[:2] + LONG, NAMES + LONG], ids=len
)
@pytest.mark.parametrize("columns", [3, 4])
def test_a_legend_is_not_wider_than_its_figure(names, columns, world):
    """One panel of one variant or two, two panels, three, the longest names."""
    with themed():
        rows = pd.DataFrame({"panel": [look(world.config(name)).panel for name in names], "variant": names})
        figure, grid, shown = panels(rows, 2)
        for name, panel in rows[["variant", "panel"]].itertuples(index=False):
            grid[0, shown.index(panel)].plot([1, 2], label=name)
        shared_legend(figure, columns)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
        found = len({round(text.get_window_extent().x0) for text in legend.get_texts()})
        assert found >= {NAMES: columns, NAMES + LONG: 2}.get(names, 1)

"""Norms of several sizes: the law that was predicted is found where it is planted, and every prediction can fail."""

import json

import pandas as pd
import pytest
from summaries import summary_of

from experiments.config import RunConfig
from experiments.curves import look
from experiments.figures import draw_sizes
from experiments.grids import GRIDS
from experiments.grids.compare import compare_grid, identity
from experiments.grids.design import Setting
from experiments.grids.sizes import BASE, BLIND, DEEP, HIGH, LOW, NARROW, RAW, SIZES, WIDE, WIDE_LOW

GRID = GRIDS["sizes"]
WIDE_SLOW, NARROW_FAST = LOW
WIDE_FAST, NARROW_FASTEST = HIGH
SAME_RATE = Setting(1e-3, d_model=256)


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr("experiments.grids.sizes.draw_sizes", lambda *_: None)


def world():
    """The contrast is 20 x rate x width x layers / 2 but at the product 0.384 twice as much, so that all come true."""
    cells = {}
    for setting in SIZES:
        product = setting.learning_rate * setting.d_model * setting.num_layers / 2
        contrast = 20.0 * product * (2.0 if product > 0.3 else 1.0)
        for seed in (3, 4, 5):
            raw = 2.0 * (1 + 0.01 * seed) * setting.d_model**0.5
            cells.setdefault((BLIND, setting), []).append(summary_of(BLIND, setting, seed, raw * contrast, 3.5))
            cells.setdefault((RAW, setting), []).append(summary_of(RAW, setting, seed, raw, 3.0))
    return cells


def judged(cells):
    """By quantity."""
    runs = [run for of_cell in cells.values() for run in of_cell]
    table = pd.DataFrame(
        [
            identity(run)
            | {
                "l2_norm": run["validation"]["l2_norm"]["mean"][-1],
                "cross_entropy": run["validation"]["cross_entropy"][-1],
            }
            for run in runs
        ]
    )
    return {row.quantity: row for row in (judgement.judge(table) for judgement in GRID.judgements)}


def rows_of(cells, out):
    runs = [run for of_cell in cells.values() for run in of_cell]
    steps = [identity(run) | {"step": step, "l2_norm": 1.0, "common_fraction": 0.5} for run in runs for step in (0, 10)]
    compare_grid("sizes", GRID, runs, {"common": pd.DataFrame(steps)}, out)
    return {row["quantity"]: row for row in json.loads((out / "claims.json").read_text())}


def test_a_planted_law_is_found(undrawn, tmp_path):
    rows = rows_of(world(), tmp_path)
    predicted = {name: row for name, row in rows.items() if row["predicted"] != "none made"}
    assert {row["verdict"] for row in predicted.values()} == {"supported"}
    assert {name.partition(" ")[0] for name in predicted} == {f"({n})" for n in range(1, 11)}
    observed = {name: row["observed"].split()[0] for name, row in rows.items()}
    assert observed["(1) at 1e-3: C at width 256 / at 64"] == "4"
    assert observed["(2) at rate x width 0.128: C at width 256 / at 64"] == "1"
    assert observed["(3) at rate x width 0.384: C at width 256 / at 64"] == "1"
    assert observed["(4) at rate x width 0.384: C at width 64"] == "15.4"
    assert observed["(5) at rate x width 0.128: C at width 256"] == "2.56"
    assert observed["(6) at 1e-3: C with 8 layers / with 2"] == "8"
    assert observed["(7) at 1e-3: raw RMS, width 256 / 64"] == "1"
    assert observed["(8) at 1e-3: C at width 512"] == "20.5"
    assert observed["(9) at rate x width 0.128: C at width 512 / at 64"] == "1"
    assert observed["(10) at rate x width 0.128: C at width 512"] == "2.56"
    assert observed["128, 8, 0.001: CE, blind - raw, nats"] == "0.5"


def test_the_products_are_what_the_predictions_name():
    assert [s.learning_rate * s.d_model for s in (*LOW, BASE, WIDE_LOW)] == pytest.approx([0.128] * 4)
    assert [s.learning_rate * s.d_model for s in (*HIGH, Setting(3e-3))] == pytest.approx([0.384] * 3)


FALSE = {
    "(1) at 1e-3: C at width 256 / at 64": (BLIND, SAME_RATE, 0.3),
    "(2) at rate x width 0.128: C at width 256 / at 64": (BLIND, WIDE_SLOW, 0.3),
    "(2) at rate x width 0.128: upper bound": (BLIND, WIDE_SLOW, 3.0),
    "(3) at rate x width 0.384: C at width 256 / at 64": (BLIND, WIDE_FAST, 0.3),
    "(3) at rate x width 0.384: upper bound": (BLIND, WIDE_FAST, 3.0),
    "(4) at rate x width 0.384: C at width 256": (RAW, WIDE_FAST, 10.0),
    "(4) at rate x width 0.384: C at width 64": (RAW, NARROW_FASTEST, 10.0),
    "(5) at rate x width 0.128: C at width 256": (RAW, WIDE_SLOW, 0.1),
    "(5) at rate x width 0.128: C at width 64": (RAW, NARROW_FAST, 0.1),
    "(6) at 1e-3: C with 8 layers / with 2": (BLIND, DEEP, 0.1),
    "(7) at 1e-3: raw RMS, width 256 / 64": (RAW, NARROW, 3.0),
    "(7) at 1e-3: upper bound": (RAW, NARROW, 0.3),
    "(8) at 1e-3: C at width 512": (BLIND, WIDE, 0.1),
    "(9) at rate x width 0.128: C at width 512 / at 64": (BLIND, WIDE_LOW, 0.3),
    "(9) at rate x width 0.128: upper bound": (BLIND, WIDE_LOW, 3.0),
    "(10) at rate x width 0.128: C at width 512": (RAW, WIDE_LOW, 0.1),
}


@pytest.mark.parametrize("quantity", FALSE)
def test_a_prediction_fails_where_its_own_cell_is_otherwise(quantity):
    variant, setting, factor = FALSE[quantity]
    cells = world()
    for run in cells[variant, setting]:
        run["validation"]["l2_norm"]["mean"][-1] *= factor
    assert judged(cells)[quantity].verdict == "not supported"


def test_every_prediction_is_among_those_that_were_seen_to_fail():
    assert {name for name, row in judged(world()).items() if row.predicted != "none made"} == FALSE.keys()


def test_the_figure_has_a_line_a_size_over_rate_times_width(kept, tmp_path):
    runs = [run for (_, setting), of_cell in world().items() for run in of_cell if setting.d_model != 512]
    table = pd.DataFrame([identity(run) | {"l2_norm": run["validation"]["l2_norm"]["mean"][-1]} for run in runs])
    draw_sizes(
        tmp_path / "sizes.png", table, {run["variant"]: look(RunConfig.from_dict(run["config"])) for run in runs}
    )
    (figure,) = kept
    blind, raw = figure.axes
    drawn = {line.get_label(): line.get_data() for line in blind.get_lines()}
    assert list(drawn) == ["width 64, 2 layers", "width 128, 2 layers", "width 256, 2 layers", "width 128, 8 layers"]
    x, y = drawn["width 64, 2 layers"]
    assert x.tolist() == pytest.approx([0.064, 0.128, 0.384])
    assert y.tolist() == pytest.approx([2.56 * 1.04, 5.12 * 1.04, 30.72 * 1.04], rel=1e-3)
    assert (blind.get_title(), raw.get_title()) == (BLIND, RAW)
    assert len({line.get_color() for line in blind.get_lines()}) == 4

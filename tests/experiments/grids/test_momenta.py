"""Norms over momentum: what is planted is found, and every prediction can fail."""

import json

import pandas as pd
import pytest
from summaries import summary_of

from experiments.config import RunConfig
from experiments.curves import look
from experiments.figures import draw_courses
from experiments.grids.compare import compare_grid, identity
from experiments.grids.design import setting_of
from experiments.grids.momenta import (
    BLIND,
    HALF,
    MOMENTA,
    MOMENTUM_GRID,
    NAMES,
    NONE,
    RAW,
    UNTIED_BLIND,
    UNTIED_RAW,
    USUAL,
)

LARGEST = {
    BLIND: {NONE: 0.5, HALF: 0.6, USUAL: 1.0},
    UNTIED_BLIND: {NONE: 0.25, HALF: 0.4, USUAL: 1.0},
    RAW: {NONE: 1.0, HALF: 1.0, USUAL: 1.0},
    UNTIED_RAW: {NONE: 1.0, HALF: 1.0, USUAL: 1.0},
}
"""Of the largest norm at 0.9. Final norms are three quarters of it, of raw models at 0 one and a half times that."""


WEIGHTS = ("equal", "0.25 0.25 0.25 0.25", "0 0 0 1")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr("experiments.grids.momenta.draw_courses", lambda *_: None)


def final(variant, setting):
    largest = 800.0 * LARGEST[variant][setting]
    return largest * (1.125 if setting == NONE and variant in (RAW, UNTIED_RAW) else 0.75)


def world():
    """The largest norm and the run, by cell and seed."""
    return {
        (variant, setting): [
            (
                800.0 * LARGEST[variant][setting] * (1 + 0.01 * seed),
                summary_of(
                    variant,
                    setting,
                    seed,
                    norm=final(variant, setting) * (1 + 0.01 * seed),
                    loss=4.0 + 0.5 * setting.momentum,
                ),
            )
            for seed in (3, 4, 5)
        ]
        for variant in NAMES
        for setting in MOMENTA
    }


def rows_of(cells, out):
    """By quantity."""
    runs = [of_seed for of_cell in cells.values() for of_seed in of_cell]
    steps = [
        identity(run) | {"step": step, "l2_norm": norm, "common_fraction": 0.5}
        for largest, run in runs
        for step, norm in ((0, 1.0), (34, largest), (200, 2.0))
    ]
    compare_grid("momenta", MOMENTUM_GRID, [run for _, run in runs], {"common": pd.DataFrame(steps)}, out)
    return {row["quantity"]: row for row in json.loads((out / "claims.json").read_text())}


def test_planted_norms_are_found(tmp_path):
    rows = rows_of(world(), tmp_path)
    predicted = {name: row for name, row in rows.items() if row["predicted"] != "none made"}
    assert {row["verdict"] for row in predicted.values()} == {"supported"}
    assert {name[:3] for name in predicted} == {f"({n})" for n in range(1, 7)}
    assert len(rows) == len(MOMENTUM_GRID.judgements)
    observed = {name: row["observed"].split()[0] for name, row in rows.items()}
    assert observed["(1) tied, blind: largest norm at 0 / at 0.9"] == "0.5"
    assert observed["(2) untied, blind: largest norm at 0 / at 0.9"] == "0.25"
    assert observed["(3) tied, blind: largest norm at 0.5 / at 0.9"] == "0.6"
    assert observed["(4) untied, blind: largest norm at 0.5 / at 0.9"] == "0.4"
    assert observed["(5) tied, raw: norm at 0 / at 0.9"] == observed["(6) untied, raw: upper bound"] == "1.5"
    assert observed["tied, blind: norm at 0 / at 0.9"] == "0.5"
    assert observed["untied, raw: norm at 0.5 / at 0.9"] == "1"
    assert observed["tied, raw: CE at 0 - at 0.9, nats"] == "-0.45"


FALSE = {
    "(1) tied, blind: largest norm at 0 / at 0.9": (BLIND, NONE, 2.0),
    "(2) untied, blind: largest norm at 0 / at 0.9": (UNTIED_BLIND, NONE, 3.0),
    "(3) tied, blind: largest norm at 0.5 / at 0.9": (BLIND, HALF, 2.0),
    "(4) untied, blind: largest norm at 0.5 / at 0.9": (UNTIED_BLIND, HALF, 3.0),
    "(5) tied, raw: norm at 0 / at 0.9": (RAW, NONE, 0.2),
    "(5) tied, raw: upper bound": (RAW, NONE, 2.0),
    "(6) untied, raw: norm at 0 / at 0.9": (UNTIED_RAW, NONE, 0.2),
    "(6) untied, raw: upper bound": (UNTIED_RAW, NONE, 2.0),
}


@pytest.mark.parametrize("quantity", FALSE)
def test_a_prediction_fails_where_its_own_cell_is_otherwise(quantity, tmp_path):
    variant, setting, factor = FALSE[quantity]
    cells = world()
    if variant in (BLIND, UNTIED_BLIND):
        cells[variant, setting] = [(largest * factor, run) for largest, run in cells[variant, setting]]
    else:
        for _, run in cells[variant, setting]:
            run["validation"]["l2_norm"]["mean"][-1] *= factor
    rows = rows_of(cells, tmp_path)
    assert rows[quantity]["verdict"] == "not supported"
    others = [row["verdict"] for name, row in rows.items() if name in FALSE and name != quantity]
    assert others == ["supported"] * (len(FALSE) - 1)


def test_every_prediction_is_among_those_that_were_seen_to_fail(tmp_path):
    predicted = {name for name, row in rows_of(world(), tmp_path).items() if row["predicted"] != "none made"}
    assert predicted == FALSE.keys()


def test_the_settings_differ_in_momentum_alone_and_have_its_names():
    assert {setting._replace(momentum=0.9) for setting in MOMENTA} == {USUAL}
    assert {float(name) for name in MOMENTA.values()} == {setting.momentum for setting in MOMENTA}


def test_equal_weights_are_one_setting_however_they_are_given():
    plain, given, last = (summary_of(BLIND, USUAL._replace(loop_weights=weights), 3, 1.0) for weights in WEIGHTS)
    assert setting_of(plain) == setting_of(given) == USUAL
    assert setting_of(last).loop_weights == "0 0 0 1"


def test_the_figure_has_a_line_a_momentum_over_the_steps(kept, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.grids.momenta.draw_courses", draw_courses)
    runs = [(setting, run) for (_, setting), of_cell in world().items() for _, run in of_cell]
    table = pd.DataFrame(
        [
            identity(run) | {"step": step, "l2_norm": step * (1.0 + setting.momentum)}
            for setting, run in reversed(runs)
            for step in (200, 1, 0, 34)
        ]
    )
    looks = {run["variant"]: look(RunConfig.from_dict(run["config"])) for _, run in runs}
    MOMENTUM_GRID.draw(tmp_path, table, table, looks)
    (figure,) = kept
    assert [axes.get_title() for axes in figure.axes] == list(NAMES)
    drawn = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(drawn) == ["momentum 0", "momentum 0.5", "momentum 0.9"]
    assert drawn["momentum 0.5"].get_xdata().tolist() == [1, 34, 200]
    assert drawn["momentum 0.5"].get_ydata().tolist() == pytest.approx([1.5, 51.0, 300.0])
    assert len({line.get_color() for line in drawn.values()}) == 3
    assert figure.axes[0].get_xlabel() == "training step" and figure.axes[0].get_xscale() == "log"

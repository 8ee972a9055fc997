"""Norms over where the loss is: what is planted is found, and every prediction can fail."""

import json

import pandas as pd
import pytest
from summaries import summary_of

from experiments.config import RunConfig
from experiments.curves import look
from experiments.figures import draw_courses
from experiments.grids.compare import compare_grid, identity
from experiments.grids.placements import (
    ALL_BUT_FIRST,
    ALL_BUT_LAST,
    BLIND,
    EVERY,
    EVERY_BARE,
    FIRST,
    LAST,
    LAST_BARE,
    NAMES,
    PLACEMENT_GRID,
    PLACEMENTS,
    RAW,
    UNTIED_BLIND,
    UNTIED_RAW,
)

OF_BLIND = {EVERY: 1.0, LAST: 0.5, FIRST: 1.5, ALL_BUT_FIRST: 0.7, ALL_BUT_LAST: 1.1, EVERY_BARE: 0.8, LAST_BARE: 0.2}
"""Of 800, the largest norm of a blind run. Final norms are half of the largest; a raw run's largest is 80."""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr("experiments.grids.placements.draw_courses", lambda *_: None)


def world():
    """The largest norm, what the first loop asks, and the run, by cell and seed."""
    cells = {}
    for variant in NAMES:
        for setting in PLACEMENTS:
            for seed in (3, 4, 5):
                largest = 800.0 * OF_BLIND[setting] if variant in (BLIND, UNTIED_BLIND) else 80.0
                largest *= 1 + 0.01 * seed
                run = summary_of(variant, setting, seed, norm=largest / 2, loss=3.0 + list(PLACEMENTS).index(setting))
                run["validation"]["l2_norm"]["mean"][:2] = [40.0, 44.0]
                cells.setdefault((variant, setting), []).append([largest, -0.5, run])
    return cells


def courses(cells):
    """The last loop's loss stops asking at step 11; what the first one's asks at other steps says something else."""
    rows = [
        identity(run)
        | {"step": step, "l2_norm": norm, "common_fraction": 0.5}
        | {"common_derivative": last, "first_common_derivative": first}
        for of_cell in cells.values()
        for largest, asked, run in of_cell
        for step, norm, last, first in (
            (200, 2.0, 0.2, 7.0),
            (0, 1.0, 0.1, 7.0),
            (6, 2.0, -0.3, 7.0),
            (11, largest, 0.0, asked),
        )
    ]
    return pd.DataFrame(rows)


def rows_of(cells, out):
    """By quantity."""
    runs = [run for of_cell in cells.values() for *_, run in of_cell]
    compare_grid("placements", PLACEMENT_GRID, runs, {"common": courses(cells)}, out)
    return {row["quantity"]: row for row in json.loads((out / "claims.json").read_text())}


def test_planted_norms_are_found(tmp_path):
    rows = rows_of(world(), tmp_path)
    predicted = {name: row for name, row in rows.items() if row["predicted"] != "none made"}
    assert {row["verdict"] for row in predicted.values()} == {"supported"}
    assert {name.split()[0] for name in predicted} == {f"({n})" for n in range(1, 14)}
    assert len(rows) == len(PLACEMENT_GRID.judgements)
    observed = {name.split()[0]: row["observed"].split()[0] for name, row in predicted.items()}
    found = ["0.5", "1.5", "0.25", "0.5", "1.5", "0.25", "1", "1", "-0.5", "0.7", "0.7", "1.1", "1.1"]
    assert [observed[f"({n})"] for n in range(1, 14)] == found
    assert rows["untied, blind: norm at the first loop with a loss, last / first"]["observed"].startswith("5.2 ")
    assert rows["untied, raw: CE, first - every, nats"]["observed"].startswith("2 ")
    assert rows["tied, blind: norm, first / every"]["observed"].startswith("1.5 ")


@pytest.mark.parametrize("variant", [BLIND, UNTIED_BLIND])
def test_one_seed_without_a_value_is_not_left_out(variant, tmp_path):
    cells = world()
    cells[variant, EVERY_BARE][0][1] = float("nan")
    (row,) = [row for name, row in rows_of(cells, tmp_path).items() if name.startswith(f"(9) {NAMES[variant]}")]
    assert (row["observed"], row["verdict"]) == ("no value for 1 of 3 seeds", "inconclusive")


def test_a_loss_that_never_stops_asking_gives_no_value(tmp_path):
    cells = world()
    table = courses(cells).assign(common_derivative=-1.0)
    runs = [run for of_cell in cells.values() for *_, run in of_cell]
    compare_grid("placements", PLACEMENT_GRID, runs, {"common": table}, tmp_path)
    rows = [row for row in json.loads((tmp_path / "claims.json").read_text()) if row["quantity"].startswith("(9)")]
    assert [(row["observed"], row["verdict"]) for row in rows] == [("no value for 3 of 3 seeds", "inconclusive")] * 2


FALSE = {
    "(1)": (UNTIED_BLIND, LAST, 3.0),
    "(2)": (UNTIED_BLIND, FIRST, 0.5),
    "(3)": (UNTIED_BLIND, LAST_BARE, 8.0),
    "(4)": (BLIND, LAST, 3.0),
    "(5)": (BLIND, FIRST, 0.5),
    "(6)": (BLIND, LAST_BARE, 8.0),
    "(10)": (UNTIED_BLIND, ALL_BUT_FIRST, 1.5),
    "(11)": (BLIND, ALL_BUT_FIRST, 1.5),
    "(13) untied": (UNTIED_BLIND, ALL_BUT_LAST, 0.7),
    "(13) tied": (BLIND, ALL_BUT_LAST, 0.7),
}


@pytest.mark.parametrize("number", FALSE)
def test_a_prediction_of_the_largest_norm_fails_where_its_own_cell_is_otherwise(number, tmp_path):
    variant, setting, factor = FALSE[number]
    cells = world()
    for of_seed in cells[variant, setting]:
        of_seed[0] *= factor
    (failed,) = [name for name, row in rows_of(cells, tmp_path).items() if row["verdict"] == "not supported"]
    assert failed.startswith(number)


@pytest.mark.parametrize(("variant", "number"), [(RAW, "(7)"), (UNTIED_RAW, "(8)")])
@pytest.mark.parametrize(("factor", "suffix"), [(0.2, "norm, last / every"), (3.0, "upper bound")])
def test_the_raw_norm_must_stay_between_its_bounds(variant, number, factor, suffix, tmp_path):
    cells = world()
    for *_, run in cells[variant, LAST]:
        run["validation"]["l2_norm"]["mean"][-1] *= factor
    (failed,) = [name for name, row in rows_of(cells, tmp_path).items() if row["verdict"] == "not supported"]
    assert failed.startswith(number) and failed.endswith(suffix)


@pytest.mark.parametrize("variant", [BLIND, UNTIED_BLIND])
def test_a_first_loop_that_no_longer_asks_is_seen(variant, tmp_path):
    cells = world()
    for of_seed in cells[variant, EVERY_BARE]:
        of_seed[1] = 0.5
    (failed,) = [name for name, row in rows_of(cells, tmp_path).items() if row["verdict"] == "not supported"]
    assert failed.startswith(f"(9) {NAMES[variant]}, no momentum")


@pytest.mark.parametrize("variant", [BLIND, UNTIED_BLIND])
@pytest.mark.parametrize(("factor", "suffix"), [(0.5, "all but the first / first"), (2.0, "upper bound")])
def test_the_norm_at_the_first_loop_with_a_loss_must_stay_between_its_bounds(variant, factor, suffix, tmp_path):
    cells = world()
    for *_, run in cells[variant, ALL_BUT_FIRST]:
        run["validation"]["l2_norm"]["mean"][1] *= factor
    (failed,) = [name for name, row in rows_of(cells, tmp_path).items() if row["verdict"] == "not supported"]
    assert failed.startswith(f"(12) {NAMES[variant]}") and failed.endswith(suffix)


def test_the_settings_are_of_one_rate_and_of_all_the_weight():
    assert {s._replace(loop_weights="equal", momentum=0.9) for s in PLACEMENTS} == {EVERY}
    for setting in (LAST, FIRST, LAST_BARE):
        weights = [float(weight) for weight in setting.loop_weights.split()]
        assert len(weights) == 4 and sum(weights) == 1.0
    assert ALL_BUT_FIRST.loop_weights.split() == ["0"] + ["0.25"] * 3  # which every loop has otherwise
    assert (EVERY_BARE.momentum, LAST_BARE.momentum) == (0.0, 0.0)


def test_the_figure_has_a_line_a_placement(kept, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.grids.placements.draw_courses", draw_courses)
    cells = world()
    looks = {v: look(RunConfig.from_dict(cells[v, EVERY][0][-1]["config"])) for v in NAMES}
    PLACEMENT_GRID.draw(tmp_path, courses(cells), courses(cells), looks)
    (figure,) = kept
    drawn = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(drawn) == list(PLACEMENTS.values())
    assert drawn["first"].get_xdata().tolist() == [6, 11, 200]
    assert drawn["first"].get_ydata()[1] == pytest.approx(1200.0 * 1.04, rel=1e-3)

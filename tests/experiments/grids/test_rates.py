"""Norms under several learning rates: laws that are planted are found, and every prediction can fail."""

import json
import math

import pandas as pd
import pytest
from summaries import summary_of

from experiments.config import RunConfig
from experiments.curves import look
from experiments.errors import UsageError
from experiments.figures import draw_common, draw_over
from experiments.grids import GRIDS
from experiments.grids.compare import compare_grid, identity
from experiments.grids.design import Setting
from experiments.grids.rates import (
    HIGH,
    LOW,
    MIDDLE,
    PAIRS,
    SCHEDULES,
    TIED_BLIND,
    TIED_RAW,
    UNTIED_BLIND,
    UNTIED_RAW,
    WARMED,
)

RATES = GRIDS["rates"]
EXPONENTS = {TIED_BLIND: 0.3, TIED_RAW: -0.1, UNTIED_BLIND: 1.0, UNTIED_RAW: 0.0}
AT_MIDDLE = {TIED_BLIND: 600.0, TIED_RAW: 5.0, UNTIED_BLIND: 60.0, UNTIED_RAW: 20.0}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    for name in ("draw_over", "draw_common"):
        monkeypatch.setattr(f"experiments.grids.rates.{name}", lambda *_: None)


def world():
    """A power law of the rate for every variant, all predictions true; by variant and schedule, three seeds each."""
    return {
        (variant, schedule): [
            summary_of(
                variant,
                schedule,
                seed,
                norm=AT_MIDDLE[variant]
                * (1 + 0.01 * seed)
                * (schedule.learning_rate / 1e-3) ** power
                * (0.5 if schedule == WARMED else 1.0),
                loss=3.0 + math.log10(schedule.learning_rate) + 0.01 * seed,
            )
            for seed in (3, 4, 5)
        ]
        for variant, power in EXPONENTS.items()
        for schedule in SCHEDULES
    }


def commons(runs, most=0.999):
    """The largest norm and the largest common fraction stand in the middle, at different steps, out of order."""
    steps = [
        {"step": 20, "l2_norm": 5.0, "common_fraction": 0.5},
        {"step": 0, "l2_norm": 1.0, "common_fraction": 0.1},
        {"step": 10, "l2_norm": 6.0, "common_fraction": 0.2},
        {"step": 5, "l2_norm": 4.0, "common_fraction": most},
    ]
    return pd.DataFrame([identity(run) | of_step for run in runs for of_step in steps])


def verdicts(cells, out, most=0.999):
    runs = [run for of_cell in cells.values() for run in of_cell]
    compare_grid("rates", RATES, runs, {"common": commons(runs, most)}, out)
    return json.loads((out / "claims.json").read_text())


def test_planted_laws_are_found(tmp_path):
    rows = verdicts(world(), tmp_path)
    assert len(rows) == len(RATES.judgements) == len({row["quantity"] for row in rows})
    assert {row["verdict"] for row in rows if row["predicted"] != "none made"} == {"supported"}
    assert {row["quantity"][1] for row in rows if row["verdict"] == "supported"} == set("12345678")
    observed = {row["quantity"]: row["observed"] for row in rows}
    assert observed["(1) untied, blind: norm at 3e-3 / at 1e-3"].startswith("3 [3, 3] over 3")
    assert observed["(2) untied, raw: norm at 3e-3 / at 1e-3"].startswith("1 [1, 1]")
    assert observed["(4) untied, at 1e-3: blind norm / raw"].startswith("3 [3, 3]")
    assert observed["(7) untied, blind: CE at 1e-3 - at 3e-3, nats"].startswith("-0.477 [-0.477, -0.477]")
    assert observed["(8) blind runs at 1e-3 and above: largest common fraction"] == "in 18 of 18, least 0.999"
    assert observed["tied, blind: norm with warm-up / without"].startswith("0.5 [0.5, 0.5]")
    assert observed["untied, blind: norm at 1e-3 / at 3e-4"].startswith("3.33 [3.33, 3.33]")
    assert observed["tied, blind: norm at 1e-3 / at 3e-4"].startswith("1.44 [1.44, 1.44]")


def test_what_a_blind_readout_costs_is_told_by_rate(tmp_path):
    cells = world()
    for schedule, cost in ((LOW, 0.0), (MIDDLE, 0.1), (HIGH, 0.5), (WARMED, 0.25)):
        for run in cells[UNTIED_BLIND, schedule]:
            run["validation"]["cross_entropy"][-1] += cost
    observed = {row["quantity"]: row["observed"].split()[0] for row in verdicts(cells, tmp_path)}
    assert [observed[f"untied, at {name}: CE, blind - raw, nats"] for name in SCHEDULES.values()] == [
        "0",
        "0.1",
        "0.5",
        "0.25",
    ]
    assert observed["untied: this difference at 3e-3 - at 1e-3, nats"] == "0.4"


def test_the_table_has_each_pair_under_each_schedule(tmp_path):
    verdicts(world(), tmp_path)
    cells = table_of(tmp_path)
    assert cells.keys() == {(pair, name) for pair in PAIRS for name in SCHEDULES.values()}
    blind, raw, ratio, loss_of_blind, loss_of_raw, largest, of_raw, most, last = cells["untied, small", "1e-3"]
    assert blind.startswith("62.4 [") and raw.startswith("20.8 [") and ratio == "3 [3, 3]"
    assert loss_of_blind == loss_of_raw and loss_of_raw.startswith("0.04 [")
    assert largest == of_raw == "6 [6, 6]"
    assert (most, last) == ("0.999", "0.5")
    assert cells["tied, N(0, 1)", "3e-3 after 50 steps of warm-up"][0].startswith("434 [")


def table_of(folder):
    lines = (folder / "rates.md").read_text().splitlines()[2:10]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], row[1]): row[2:] for row in rows}


FALSE = {
    "(1) untied, blind: norm at 3e-3 / at 1e-3": (UNTIED_BLIND, HIGH, 0.5),
    "(2) untied, raw: norm at 3e-3 / at 1e-3": (UNTIED_RAW, HIGH, 3.0),
    "(3) tied, blind: norm at 3e-3 / at 1e-3": (TIED_BLIND, HIGH, 0.5),
    "(3) tied, blind: upper bound": (TIED_BLIND, HIGH, 3.0),
    "(4) untied, at 1e-3: blind norm / raw": (UNTIED_BLIND, MIDDLE, 2.0),
    "(6) untied, blind: norm with warm-up / without": (UNTIED_BLIND, WARMED, 3.0),
    **{f"(5) tied, at {name}: blind norm / raw": (TIED_RAW, s, 300.0) for s, name in SCHEDULES.items()},
}


@pytest.mark.parametrize("quantity", FALSE)
def test_a_prediction_fails_where_its_own_cell_is_otherwise(quantity, tmp_path):
    variant, schedule, factor = FALSE[quantity]
    cells = world()
    for run in cells[variant, schedule]:
        run["validation"]["l2_norm"]["mean"][-1] *= factor
    (row,) = [row for row in verdicts(cells, tmp_path) if row["quantity"] == quantity]
    assert row["verdict"] == "not supported"


def test_a_lower_loss_at_the_higher_rate_is_seen(tmp_path):
    cells = world()
    for run in cells[UNTIED_BLIND, HIGH]:
        run["validation"]["cross_entropy"][-1] = 0.0
    rows = {row["quantity"]: row["verdict"] for row in verdicts(cells, tmp_path)}
    assert rows["(7) untied, blind: CE at 1e-3 - at 3e-3, nats"] == "not supported"


@pytest.mark.parametrize(
    ("variant", "schedule", "expected"),
    [(TIED_RAW, HIGH, "supported"), (TIED_BLIND, LOW, "supported"), (TIED_BLIND, WARMED, "not supported")],
)
def test_one_blind_run_that_differs_refutes_what_was_said_of_every_one(variant, schedule, expected, tmp_path):
    runs = [run for of_cell in world().values() for run in of_cell]
    common = commons(runs)
    of_run = (common["variant"] == variant) & (common["seed"] == 4)
    of_run &= common["learning_rate"] == schedule.learning_rate
    of_run &= common["warmup_steps"] == schedule.warmup_steps
    common.loc[of_run, "common_fraction"] = 0.2
    compare_grid("rates", RATES, runs, {"common": common}, tmp_path)
    (row,) = [row for row in json.loads((tmp_path / "claims.json").read_text()) if row["quantity"].startswith("(8)")]
    assert row["verdict"] == expected
    assert expected == "supported" or row["observed"] == "in 17 of 18, least 0.2"


def test_what_was_not_run_is_named(tmp_path):
    cells = {key: runs for key, runs in world().items() if key[1] != LOW}
    cells[UNTIED_RAW, MIDDLE] = cells[UNTIED_RAW, MIDDLE][:1]
    rows = {row["quantity"]: row for row in verdicts(cells, tmp_path)}
    assert len(rows) == len(RATES.judgements)
    lacking = {quantity for quantity, row in rows.items() if row["observed"] == "not run"}
    assert lacking == {quantity for quantity in rows if "3e-4" in quantity}
    assert rows["(5) tied, at 3e-4: blind norm / raw"]["verdict"] == "inconclusive"
    assert rows["tied, blind: norm at 1e-3 / at 3e-4"]["verdict"] == "no prediction"
    assert rows["(4) untied, at 1e-3: blind norm / raw"]["observed"].endswith("over 1 seed")
    assert rows["(4) untied, at 1e-3: blind norm / raw"]["verdict"] == "inconclusive"
    table = table_of(tmp_path)
    assert set(table["tied, N(0, 1)", "3e-4"]) == {"not run"} and len(table) == 8
    del cells[TIED_BLIND, WARMED]
    rows = {row["quantity"][:3]: row["observed"] for row in verdicts(cells, tmp_path)}
    assert rows["(8)"] == "not run"


def test_a_grid_has_its_cells_and_no_others():
    assert all(RATES.has(summary_of(variant, schedule, 0, 1.0)) for variant in EXPONENTS for schedule in SCHEDULES)
    for variant, setting in [
        ("norm_penalty", HIGH),
        (TIED_BLIND, Setting(1e-2)),
        (TIED_BLIND, Setting(3e-3, 10)),
        (TIED_BLIND, Setting(3e-3, d_model=64)),
        (TIED_BLIND, Setting(3e-3, num_layers=3)),
    ]:
        assert not RATES.has(summary_of(variant, setting, 0, 1.0))


def test_runs_of_another_kind_are_refused(tmp_path):
    def refused(match, *runs):
        with pytest.raises(UsageError, match=match):
            compare_grid("rates", RATES, runs, {"common": commons(runs)}, tmp_path)

    first = summary_of(TIED_BLIND, HIGH, 3, 1.0)
    longer = summary_of(TIED_BLIND, LOW, 3, 1.0)
    longer["config"]["training"]["steps"] = 300
    refused("cannot be compared", first, longer)
    refused("given twice", first, first)
    other = summary_of(TIED_BLIND, HIGH, 4, 1.0)
    for common in (commons([first]), commons([first]).head(0)):
        with pytest.raises(UsageError, match="kept no weights along training"):
            compare_grid("rates", RATES, [first, other], {"common": common}, tmp_path)


def looks(variants):
    return {variant: look(RunConfig.from_dict(summary_of(variant, HIGH, 3, 1.0)["config"])) for variant in variants}


def test_the_figure_over_rates_has_its_ticks_at_the_rates(kept, tmp_path):
    rows = [
        {
            "variant": variant,
            "seed": seed,
            "learning_rate": rate,
            "l2_norm": 1e3 * rate * 4**seed,
            "cross_entropy": seed,
        }
        for variant in (TIED_BLIND, UNTIED_BLIND)
        for seed in (0, 1)
        for rate in (3e-4, 1e-3, 3e-3)
    ]
    draw_over(tmp_path / "rates.png", pd.DataFrame(rows), "learning_rate", looks([TIED_BLIND, UNTIED_BLIND]))
    (figure,) = kept
    norms, losses = figure.axes[:2], figure.axes[2:]
    for axes in norms:
        ((x, y),) = [line.get_data() for line in axes.get_lines()]
        assert x.tolist() == [3e-4, 1e-3, 3e-3] and y.tolist() == pytest.approx([0.6, 2.0, 6.0])
    for axes in losses:
        assert [text.get_text() for text in axes.get_xticklabels()] == ["0.0003", "0.001", "0.003"]
        assert not axes.xaxis.get_minorticklocs().size
        assert axes.get_lines()[0].get_ydata().tolist() == [0.5, 0.5, 0.5]


def test_the_figure_of_the_common_part_stays_between_0_and_1(kept, tmp_path):
    rows = [
        {"variant": TIED_BLIND, "seed": seed, "step": step, "l2_norm": step * 4.0**seed, "common_fraction": fraction}
        for step, fractions in ((1, (0.2, 0.4)), (10, (0.8, 1.0)))
        for seed, fraction in enumerate(fractions)
    ]
    draw_common(tmp_path / "common.png", pd.DataFrame(rows), looks([TIED_BLIND]))
    (figure,) = kept
    norms, fractions = figure.axes
    assert norms.get_lines()[0].get_ydata().tolist() == pytest.approx([2.0, 20.0])
    assert fractions.get_lines()[0].get_ydata().tolist() == pytest.approx([0.3, 0.9])
    assert fractions.get_ylim() == (0.0, 1.01) and norms.get_ylim()[1] > 20.0

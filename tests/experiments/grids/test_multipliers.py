"""Norms over the embedding multiplier: what is planted is found, and every prediction can fail."""

import json
import math

import pandas as pd
import pytest
from summaries import summary_of

from experiments.config import RunConfig
from experiments.curves import look
from experiments.figures import draw_over
from experiments.grids.compare import compare_grid, identity
from experiments.grids.design import last_of
from experiments.grids.multipliers import (
    BLIND,
    LARGE,
    MULTIPLIER_GRID,
    MULTIPLIERS,
    ONE,
    RAW,
    SMALL,
    SMALLEST,
    UNTIED_BLIND,
    UNTIED_RAW,
)
from experiments.grids.rates import SCHEDULES

EXPONENTS = {BLIND: 1.0, RAW: 0.0, UNTIED_BLIND: 0.25, UNTIED_RAW: 0.1}
LEFT = {BLIND: 1.2, RAW: 0.1, UNTIED_BLIND: 0.9, UNTIED_RAW: 0.8}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr("experiments.grids.multipliers.draw_over", lambda *_: None)


def world():
    """A power of the multiplier for every variant, and losses that grow by a nat with every factor of 4."""
    return {
        (variant, setting): [
            summary_of(
                variant,
                setting,
                seed,
                norm=100.0 * (1 + 0.01 * seed) * setting.embedding_multiplier**power,
                loss=4.0 + list(MULTIPLIERS).index(setting),
            )
            for seed in (3, 4, 5)
        ]
        for variant, power in EXPONENTS.items()
        for setting in MULTIPLIERS
    }


def rows_of(cells, out, left=None):
    """By quantity. The rows of other loops say something else."""
    runs = [run for of_cell in cells.values() for run in of_cell]
    common = pd.DataFrame([identity(run) | {"step": 0, "l2_norm": 1.0, "common_fraction": 0.5} for run in runs])
    own = [
        identity(run) | {"step": step, "embedding_left": value, "centred_left": value / 2, "own_logit": 5.0}
        for run in runs
        for step, value in ((1, 0.4), (2, (left or LEFT)[run["variant"]]))
    ]
    compare_grid("multipliers", MULTIPLIER_GRID, runs, {"common": common, "own_token": pd.DataFrame(own)}, out)
    return {row["quantity"]: row for row in json.loads((out / "claims.json").read_text())}


def test_planted_laws_are_found(tmp_path):
    rows = rows_of(world(), tmp_path)
    predicted = {name: row for name, row in rows.items() if row["predicted"] != "none made"}
    assert {row["verdict"] for row in predicted.values()} == {"supported"}
    assert {name[:3] for name in predicted} == {f"({n})" for n in range(1, 9)}
    assert len(rows) == len(MULTIPLIER_GRID.judgements)
    observed = {name: row["observed"].split()[0] for name, row in rows.items()}
    assert observed["(1) tied, blind: norm at 4 / at 1"] == "4"
    assert observed["(2) tied, blind: norm at 1/4 / at 1"] == "0.25"
    assert observed["(3) tied, blind: norm at 1/16 / at 1/4"] == "0.25"
    assert observed["(4) blind: norm at 4 / at 1, tied over untied"] == "2.83"
    assert observed["(5) tied, raw: CE at 1/4 - at 1, nats"] == "-1"
    assert observed["(7) tied, blind, at 1: left of the embedding"] == "1.2"
    assert observed["(8) tied, raw, at 1: left of the embedding"] == "0.1"
    assert observed["untied, raw: norm at 4 / at 1"] == "1.15"
    assert observed["untied, blind: CE at 4 - at 1, nats"] == "1"
    assert observed["tied, blind: CE at 1/16 - at 1, nats"] == "-2"
    assert observed["untied, blind, at 4: left of the embedding, means taken off"] == "0.45"
    assert pd.read_csv(tmp_path / "runs.csv").groupby("variant")["embedding_left"].unique().to_dict() == LEFT


FALSE = {
    "(1) tied, blind: norm at 4 / at 1": (BLIND, LARGE, 0.4, 0.0),
    "(2) tied, blind: norm at 1/4 / at 1": (BLIND, SMALL, 3.0, 0.0),
    "(3) tied, blind: norm at 1/16 / at 1/4": (BLIND, SMALLEST, 5.0, 0.0),
    "(4) blind: norm at 4 / at 1, tied over untied": (UNTIED_BLIND, LARGE, 4.0, 0.0),
    "(5) tied, raw: CE at 1/4 - at 1, nats": (RAW, SMALL, 1.0, 2.0),
    "(6) tied, blind: CE at 1/4 - at 1, nats": (BLIND, SMALL, 1.0, 2.0),
}


@pytest.mark.parametrize("quantity", FALSE)
def test_a_prediction_fails_where_its_own_cell_is_otherwise(quantity, tmp_path):
    variant, setting, factor, nats = FALSE[quantity]
    cells = world()
    for run in cells[variant, setting]:
        run["validation"]["l2_norm"]["mean"][-1] *= factor
        run["validation"]["cross_entropy"][-1] += nats
    assert rows_of(cells, tmp_path)[quantity]["verdict"] == "not supported"


@pytest.mark.parametrize(
    ("quantity", "variant"),
    [
        ("(7) tied, blind, at 1: left of the embedding", BLIND),
        ("(8) tied, raw, at 1: left of the embedding", RAW),
    ],
)
def test_the_two_ways_to_be_rid_of_a_token_are_told_apart(quantity, variant, tmp_path):
    other = LEFT | {variant: LEFT[RAW if variant == BLIND else BLIND]}
    assert rows_of(world(), tmp_path, left=other)[quantity]["verdict"] == "not supported"


def test_every_prediction_is_among_those_that_were_seen_to_fail(tmp_path):
    predicted = {name for name, row in rows_of(world(), tmp_path).items() if row["predicted"] != "none made"}
    assert {name for name in predicted if name[:3] not in ("(7)", "(8)")} == FALSE.keys()


def test_the_settings_are_of_one_rate_and_have_their_names():
    assert {setting._replace(embedding_multiplier=1.0) for setting in MULTIPLIERS} == {ONE}
    assert ONE in SCHEDULES
    named = {name: setting.embedding_multiplier for setting, name in MULTIPLIERS.items()}
    assert named == {"1/16": 0.0625, "1/4": 0.25, "1": 1.0, "4": 4.0}


def test_the_figure_is_over_the_multiplier(kept, tmp_path):
    cells = {key: runs for key, runs in world().items() if key[0] in (BLIND, RAW) or key[1] in (ONE, LARGE)}
    runs = [run for of_cell in cells.values() for run in of_cell]
    table = pd.DataFrame(
        [identity(run) | {"l2_norm": run["validation"]["l2_norm"]["mean"][-1], "cross_entropy": 3.0} for run in runs]
    )
    looks = {run["variant"]: look(RunConfig.from_dict(run["config"])) for run in runs}
    draw_over(tmp_path / "multipliers.png", table, "embedding_multiplier", looks)
    (figure,) = kept
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == BLIND]
    assert line.get_xdata().tolist() == [0.0625, 0.25, 1.0, 4.0]
    assert line.get_ydata().tolist() == pytest.approx([100.0 * 1.04 * x for x in line.get_xdata()], rel=1e-3)
    assert figure.axes[-1].get_xlabel() == "embedding multiplier"
    assert [text.get_text() for text in figure.axes[-1].get_xticklabels()] == ["0.0625", "0.25", "1", "4"]


def test_what_is_told_of_a_table_is_its_last_row_and_no_value_where_there_is_none():
    told = last_of("own_token", "own_logit")
    frame = pd.DataFrame({"step": [1, 2], "own_logit": [3.0, 4.0]})
    assert told({}, {"own_token": frame}) == 4.0
    for without in (frame[:0], frame.drop(columns="own_logit"), pd.DataFrame()):
        assert math.isnan(told({}, {"own_token": without}))

"""What a blind norm owes to where the loss is: after every loop, some, or one alone, for two pairs.

Every loop runs the same weights, so that what the first loop's loss asks of them, later loops do, too. Behind a blind
readout no loss objects. The account that is put to the test: where the norm goes on growing although the last loop's
loss has stopped asking for a larger vector common to all tokens (`loopsight/common_vector.py`), the first loop's still
asks; with a loss after the last loop alone, the norm stops where that loss stops asking, but for what momentum adds.

What was known when each of the predictions (1) to (13) was made stands in results/placements/README.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.config import RunConfig
from experiments.curves import Look
from experiments.expectations import Side
from experiments.figures import draw_courses
from experiments.grids.design import Cell, Estimand, Grid, between, by_setting, column_of, losses, norm_quotient, norms
from experiments.grids.momenta import LARGEST, NAMES, NONE, USUAL
from experiments.grids.multipliers import BLIND, RAW, UNIT_PAIRS, UNTIED_BLIND, UNTIED_RAW

EVERY, EVERY_BARE = USUAL, NONE
LAST, FIRST = EVERY._replace(loop_weights="0 0 0 1"), EVERY._replace(loop_weights="1 0 0 0")
ALL_BUT_FIRST, ALL_BUT_LAST = (
    EVERY._replace(loop_weights=weights) for weights in ("0 0.25 0.25 0.25", "0.25 0.25 0.25 0")
)
LAST_BARE = EVERY_BARE._replace(loop_weights=LAST.loop_weights)
PLACEMENTS = {
    EVERY: "every loop",
    LAST: "last",
    FIRST: "first",
    ALL_BUT_FIRST: "all but the first",
    ALL_BUT_LAST: "all but the last",
    EVERY_BARE: "every, no momentum",
    LAST_BARE: "last, no momentum",
}


FIRST_NORM = "first_norm"


def _first_norm(summary: dict[str, Any], _: Mapping[str, pd.DataFrame]) -> float:
    """The norm at the first loop that has a loss."""
    config = RunConfig.from_dict(summary["config"])
    weights = config.supervision.loop_weights(config.model.num_loops)
    first = next(loop for loop, weight in enumerate(weights) if weight != 0.0)
    return float(summary["validation"]["l2_norm"]["mean"][first])


def _first_asks(_: dict[str, Any], tables: Mapping[str, pd.DataFrame]) -> float:
    """The first loop's derivative at the first kept step at which the last loop's is not negative.

    The start is left out, where it can be either by chance. NaN where there is no such step, and of a run that was
    measured by an older version, without the first loop.
    """
    course = tables["common"]
    if "first_common_derivative" not in course:
        return float("nan")
    trained = course[course["step"] > 0]
    no_longer = trained[trained["common_derivative"] >= 0]
    return float("nan") if no_longer.empty else float(no_longer["first_common_derivative"].iloc[0])


def _largest(quantity: str, above: Cell, below: Cell, side: Side, bound: float) -> Estimand:
    """The quotient of two cells' largest norms."""
    return norms(quantity, above, below, side, bound, LARGEST)


def _raw_norm(number: int, variant: str) -> tuple[Estimand, Estimand]:
    """The final norm with a loss after the last loop alone over that after every loop."""
    estimate = norm_quotient((variant, LAST), (variant, EVERY))
    return between(f"({number}) {NAMES[variant]}: norm, last / every", estimate, 0.5, 2.0)


def _same_norm(number: int, variant: str) -> tuple[Estimand, Estimand]:
    """The norm at the first loop that has a loss: the second loop's over the first's."""
    estimate = norm_quotient((variant, ALL_BUT_FIRST), (variant, FIRST), FIRST_NORM)
    quantity = f"({number}) {NAMES[variant]}: norm at the first loop with a loss, all but the first / first"
    return between(quantity, estimate, 2 / 3, 1.5)


def _asks(number: int, variant: str) -> Estimand:
    asked = "asked by the first loop's loss when not by the last's, nats per e-fold"
    return Estimand(
        quantity=f"({number}) {NAMES[variant]}, no momentum: {asked}",
        estimate=lambda runs: column_of(runs, (variant, EVERY_BARE), "first_asks"),
        side="below",
        bound=0.0,
        geometric=False,
    )


def _draw(out: Path, _: pd.DataFrame, common: pd.DataFrame, looks: dict[str, Look]) -> None:
    draw_courses(out / "placements.png", by_setting(common, PLACEMENTS), looks)


PLACEMENT_GRID = Grid(
    pairs=UNIT_PAIRS,
    heading="loss after",
    settings=PLACEMENTS,
    judgements=(
        _largest(
            "(1) untied, blind: largest norm, last / every", (UNTIED_BLIND, LAST), (UNTIED_BLIND, EVERY), "below", 0.75
        ),
        _largest(
            "(2) untied, blind: largest norm, first / every", (UNTIED_BLIND, FIRST), (UNTIED_BLIND, EVERY), "above", 1.0
        ),
        _largest(
            "(3) untied, blind, no momentum: largest norm, last / every",
            (UNTIED_BLIND, LAST_BARE),
            (UNTIED_BLIND, EVERY_BARE),
            "below",
            0.75,
        ),
        _largest("(4) tied, blind: largest norm, last / every", (BLIND, LAST), (BLIND, EVERY), "below", 1.0),
        _largest("(5) tied, blind: largest norm, first / every", (BLIND, FIRST), (BLIND, EVERY), "above", 1.0),
        _largest(
            "(6) tied, blind, no momentum: largest norm, last / every",
            (BLIND, LAST_BARE),
            (BLIND, EVERY_BARE),
            "below",
            0.75,
        ),
        *_raw_norm(7, RAW),
        *_raw_norm(8, UNTIED_RAW),
        *(_asks(9, variant) for variant in (BLIND, UNTIED_BLIND)),
        *(
            _largest(
                f"({number}) {NAMES[variant]}: largest norm, all but the first / every",
                (variant, ALL_BUT_FIRST),
                (variant, EVERY),
                "below",
                0.9,
            )
            for number, variant in ((10, UNTIED_BLIND), (11, BLIND))
        ),
        *(row for variant in (UNTIED_BLIND, BLIND) for row in _same_norm(12, variant)),
        *(
            _largest(
                f"(13) {NAMES[variant]}: largest norm, all but the last / every",
                (variant, ALL_BUT_LAST),
                (variant, EVERY),
                "above",
                0.9,
            )
            for variant in (UNTIED_BLIND, BLIND)
        ),
        *(
            norms(
                f"{name}: norm at the first loop with a loss, last / first",
                (variant, LAST),
                (variant, FIRST),
                column=FIRST_NORM,
            )
            for variant, name in NAMES.items()
        ),
        *(
            norms(f"{name}: norm, {PLACEMENTS[setting]} / every", (variant, setting), (variant, EVERY))
            for variant, name in NAMES.items()
            for setting in (LAST, FIRST, ALL_BUT_FIRST, ALL_BUT_LAST)
            if (setting, variant) not in ((LAST, RAW), (LAST, UNTIED_RAW))
        ),
        *(
            losses(f"{name}: CE, {PLACEMENTS[setting]} - every, nats", (variant, setting), (variant, EVERY))
            for variant, name in NAMES.items()
            for setting in (LAST, FIRST, ALL_BUT_FIRST, ALL_BUT_LAST)
        ),
    ),
    draw=_draw,
    columns={FIRST_NORM: _first_norm, "first_asks": _first_asks},
)

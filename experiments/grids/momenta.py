"""What a blind norm owes to momentum: AdamW's beta1 at 0, 0.5 and 0.9, for two N(0, 1) pairs.

A blind norm goes on growing when the loss has stopped asking for it, that is when its derivative along the vector
common to all tokens has changed sign (`loopsight/common_vector.py`). The account that is put to the test: what it
gains from there is what AdamW's mean gradient still holds. A loss that sees the scale would take it back.

The predictions (1) to (6) were made before any run with another momentum than 0.9 (LOG.md, 2026-11-30).
"""

from pathlib import Path

import pandas as pd

from experiments.curves import Look
from experiments.figures import draw_courses
from experiments.grids.design import Cell, Estimand, Grid, Setting, between, by_setting, losses, norm_quotient, norms
from experiments.grids.multipliers import BLIND, ONE, RAW, UNIT_PAIRS, UNTIED_BLIND, UNTIED_RAW

NONE, HALF, USUAL = ONE._replace(momentum=0.0), ONE._replace(momentum=0.5), ONE
MOMENTA = {NONE: "0", HALF: "0.5", USUAL: "0.9"}
NAMES = {BLIND: "tied, blind", UNTIED_BLIND: "untied, blind", RAW: "tied, raw", UNTIED_RAW: "untied, raw"}
LARGEST = "largest_norm"


def _cells(variant: str, setting: Setting) -> tuple[Cell, Cell]:
    """That of a setting and that of the usual momentum."""
    return (variant, setting), (variant, USUAL)


def _raw_norm(number: int, variant: str) -> tuple[Estimand, Estimand]:
    """The final norm without momentum over that with."""
    return between(f"({number}) {NAMES[variant]}: norm at 0 / at 0.9", norm_quotient(*_cells(variant, NONE)), 0.5, 2.0)


def _draw(out: Path, _: pd.DataFrame, common: pd.DataFrame, looks: dict[str, Look]) -> None:
    names = {setting: f"momentum {name}" for setting, name in MOMENTA.items()}
    draw_courses(out / "momenta.png", by_setting(common, names), looks)


MOMENTUM_GRID = Grid(
    pairs=UNIT_PAIRS,
    heading="momentum",
    settings=MOMENTA,
    judgements=(
        norms("(1) tied, blind: largest norm at 0 / at 0.9", *_cells(BLIND, NONE), "below", 0.75, LARGEST),
        norms("(2) untied, blind: largest norm at 0 / at 0.9", *_cells(UNTIED_BLIND, NONE), "below", 0.5, LARGEST),
        norms("(3) tied, blind: largest norm at 0.5 / at 0.9", *_cells(BLIND, HALF), "below", 1.0, LARGEST),
        norms("(4) untied, blind: largest norm at 0.5 / at 0.9", *_cells(UNTIED_BLIND, HALF), "below", 1.0, LARGEST),
        *_raw_norm(5, RAW),
        *_raw_norm(6, UNTIED_RAW),
        *(
            norms(f"{name}: norm at {MOMENTA[setting]} / at 0.9", *_cells(variant, setting))
            for variant, name in NAMES.items()
            for setting in ((NONE, HALF) if variant in (BLIND, UNTIED_BLIND) else (HALF,))
        ),
        *(
            losses(f"{name}: CE at {MOMENTA[setting]} - at 0.9, nats", *_cells(variant, setting))
            for variant, name in NAMES.items()
            for setting in (NONE, HALF)
        ),
    ),
    draw=_draw,
)

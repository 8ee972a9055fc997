"""What a blind norm owes to the learning rate: two pairs of variants at three rates and after a warm-up.

The predictions (1) to (8) were made before the runs, from seed 0 alone, which is not among them (LOG.md, 2026-11-30).
"""

from pathlib import Path

import pandas as pd

from experiments.curves import Look
from experiments.figures import draw_common, draw_over
from experiments.grids.design import (
    Estimand,
    Estimate,
    Grid,
    InEveryRun,
    Setting,
    between,
    loss_difference,
    losses,
    matched,
    norm_quotient,
    norms,
)

LOW, MIDDLE, HIGH, WARMED = Setting(3e-4), Setting(1e-3), Setting(3e-3), Setting(3e-3, 50)
SCHEDULES = {
    LOW: "3e-4",
    MIDDLE: "1e-3",
    HIGH: "3e-3",
    WARMED: "3e-3 after 50 steps of warm-up",
}
PAIRS = {
    "tied, N(0, 1)": ("scale_invariant", "scale_visible"),
    "untied, small": ("untied_small_init_scale_invariant", "untied_small_init_scale_visible"),
}
(TIED_BLIND, TIED_RAW), (UNTIED_BLIND, UNTIED_RAW) = PAIRS.values()


def _cost_of_blindness(schedule: Setting) -> Estimate:
    return loss_difference((UNTIED_BLIND, schedule), (UNTIED_RAW, schedule))


def _cost_at_high_less_at_middle(runs: pd.DataFrame) -> "pd.Series[float]":
    high, middle = matched(_cost_of_blindness(HIGH)(runs), _cost_of_blindness(MIDDLE)(runs))
    return high - middle


def _draw(out: Path, runs: pd.DataFrame, common: pd.DataFrame, looks: dict[str, Look]) -> None:
    draw_over(out / "rates.png", runs[runs["warmup_steps"] == 0], "learning_rate", looks)
    at_high = (common["learning_rate"] == HIGH.learning_rate) & (common["warmup_steps"] == HIGH.warmup_steps)
    draw_common(out / "common.png", common[at_high & (common["step"] > 0)], looks)


RATES = Grid(
    pairs=PAIRS,
    heading="learning rate",
    settings=SCHEDULES,
    judgements=(
        norms("(1) untied, blind: norm at 3e-3 / at 1e-3", (UNTIED_BLIND, HIGH), (UNTIED_BLIND, MIDDLE), "above", 2.0),
        norms("(2) untied, raw: norm at 3e-3 / at 1e-3", (UNTIED_RAW, HIGH), (UNTIED_RAW, MIDDLE), "below", 2.0),
        *between(
            "(3) tied, blind: norm at 3e-3 / at 1e-3",
            norm_quotient((TIED_BLIND, HIGH), (TIED_BLIND, MIDDLE)),
            1.0,
            2.0,
        ),
        norms("(4) untied, at 1e-3: blind norm / raw", (UNTIED_BLIND, MIDDLE), (UNTIED_RAW, MIDDLE), "below", 5.0),
        *(
            norms(f"(5) tied, at {name}: blind norm / raw", (TIED_BLIND, schedule), (TIED_RAW, schedule), "above", 5.0)
            for schedule, name in SCHEDULES.items()
        ),
        norms("(6) untied, blind: norm with warm-up / without", (UNTIED_BLIND, WARMED), (UNTIED_BLIND, HIGH), "below"),
        losses("(7) untied, blind: CE at 1e-3 - at 3e-3, nats", (UNTIED_BLIND, MIDDLE), (UNTIED_BLIND, HIGH), "below"),
        InEveryRun(
            quantity="(8) blind runs at 1e-3 and above: largest common fraction",
            cells=[(blind, schedule) for blind in (TIED_BLIND, UNTIED_BLIND) for schedule in (MIDDLE, HIGH, WARMED)],
            column="most_common",
            bound=0.99,
        ),
        norms("tied, blind: norm with warm-up / without", (TIED_BLIND, WARMED), (TIED_BLIND, HIGH)),
        norms("untied, blind: norm at 1e-3 / at 3e-4", (UNTIED_BLIND, MIDDLE), (UNTIED_BLIND, LOW)),
        norms("untied, raw: norm at 1e-3 / at 3e-4", (UNTIED_RAW, MIDDLE), (UNTIED_RAW, LOW)),
        norms("tied, blind: norm at 1e-3 / at 3e-4", (TIED_BLIND, MIDDLE), (TIED_BLIND, LOW)),
        *(
            losses(f"untied, at {name}: CE, blind - raw, nats", (UNTIED_BLIND, schedule), (UNTIED_RAW, schedule))
            for schedule, name in SCHEDULES.items()
        ),
        Estimand(
            quantity="untied: this difference at 3e-3 - at 1e-3, nats",
            estimate=_cost_at_high_less_at_middle,
            geometric=False,
        ),
    ),
    draw=_draw,
)

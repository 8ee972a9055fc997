"""What a tied, blind norm owes to the token's own embedding: the factor between head and h_0, head untouched.

A tied head multiplies the state by the very embedding it began as. Behind a readout sqrt(d) h / |h|, h_0 = m (e + p),
m the embedding multiplier and p a learned position, the logit of the token that went in is sqrt(d) <h, e> / |h|, at
h_0 d / sqrt(2) where e and p are N(0, 1). It was expected that a blind model makes that small by |h|, in proportion to
m, and a raw one, whose logit is <h, e>, by updates against e. How much of the embedding is left along itself, <h_K, e>
/ <h_0, e>, was to tell the two ways apart; since a vector common to all tokens has its part in that, the same of what
differs between tokens stands beside it.

The predictions (1) to (8) were made before the runs that they are of (LOG.md, 2026-11-30).
"""

from pathlib import Path

import pandas as pd

from experiments.curves import Look
from experiments.expectations import Side
from experiments.figures import draw_over
from experiments.grids.design import Estimand, Grid, Setting, column_of, last_of, losses, matched, norm_quotient, norms
from experiments.grids.rates import MIDDLE, PAIRS

TIED, UNTIED = "tied, N(0, 1)", "untied, N(0, 1)"
BLIND, RAW = PAIRS[TIED]
UNTIED_BLIND, UNTIED_RAW = "untied_scale_invariant", "untied_scale_visible"
UNIT_PAIRS = {TIED: (BLIND, RAW), UNTIED: (UNTIED_BLIND, UNTIED_RAW)}
"""Those whose embeddings are drawn from N(0, 1)."""
SMALLEST, SMALL, ONE, LARGE = (MIDDLE._replace(embedding_multiplier=factor) for factor in (1 / 16, 1 / 4, 1.0, 4.0))
MULTIPLIERS = {SMALLEST: "1/16", SMALL: "1/4", ONE: "1", LARGE: "4"}


def _left(
    quantity: str, variant: str, setting: Setting, side: Side | None = None, column: str = "centred_left"
) -> Estimand:
    """How much of the embedding is left in the last state of a cell."""
    return Estimand(
        quantity=quantity,
        estimate=lambda runs: column_of(runs, (variant, setting), column),
        side=side,
        bound=0.5,
        geometric=False,
    )


def _tied_over_untied(runs: pd.DataFrame) -> "pd.Series[float]":
    """How much more the norm of the tied blind model follows the multiplier from 1 to 4."""
    of_heads = (norm_quotient((variant, LARGE), (variant, ONE))(runs) for variant in (BLIND, UNTIED_BLIND))
    tied, untied = matched(*of_heads)
    return tied / untied


def _draw(out: Path, runs: pd.DataFrame, _: pd.DataFrame, looks: dict[str, Look]) -> None:
    draw_over(out / "multipliers.png", runs, "embedding_multiplier", looks)


MULTIPLIER_GRID = Grid(
    pairs=UNIT_PAIRS,
    heading="embedding multiplier",
    settings=MULTIPLIERS,
    judgements=(
        norms("(1) tied, blind: norm at 4 / at 1", (BLIND, LARGE), (BLIND, ONE), "above", 2.0),
        norms("(2) tied, blind: norm at 1/4 / at 1", (BLIND, SMALL), (BLIND, ONE), "below", 0.5),
        norms("(3) tied, blind: norm at 1/16 / at 1/4", (BLIND, SMALLEST), (BLIND, SMALL), "below", 1.0),
        Estimand(
            quantity="(4) blind: norm at 4 / at 1, tied over untied",
            estimate=_tied_over_untied,
            side="above",
        ),
        losses("(5) tied, raw: CE at 1/4 - at 1, nats", (RAW, SMALL), (RAW, ONE), "below"),
        losses("(6) tied, blind: CE at 1/4 - at 1, nats", (BLIND, SMALL), (BLIND, ONE), "below"),
        _left("(7) tied, blind, at 1: left of the embedding", BLIND, ONE, "above", "embedding_left"),
        _left("(8) tied, raw, at 1: left of the embedding", RAW, ONE, "below", "embedding_left"),
        *(
            norms(f"{head}, {readout}: norm at {MULTIPLIERS[setting]} / at 1", (variant, setting), (variant, ONE))
            for head, readout, variant, settings in (
                ("tied", "blind", BLIND, (SMALLEST,)),
                ("tied", "raw", RAW, (SMALLEST, SMALL, LARGE)),
                ("untied", "blind", UNTIED_BLIND, (SMALLEST, SMALL, LARGE)),
                ("untied", "raw", UNTIED_RAW, (SMALLEST, SMALL, LARGE)),
            )
            for setting in settings
        ),
        *(
            losses(f"{head}, {readout}: CE at {MULTIPLIERS[setting]} - at 1, nats", (variant, setting), (variant, ONE))
            for head, readout, variant, settings in (
                ("tied", "blind", BLIND, (SMALLEST, LARGE)),
                ("tied", "raw", RAW, (SMALLEST, LARGE)),
                ("untied", "blind", UNTIED_BLIND, (SMALLEST, SMALL, LARGE)),
                ("untied", "raw", UNTIED_RAW, (SMALLEST, SMALL, LARGE)),
            )
            for setting in settings
        ),
        *(
            _left(
                f"{head}, {readout}, at {MULTIPLIERS[setting]}: left of the embedding, means taken off",
                variant,
                setting,
            )
            for head, readout, variant, settings in (
                ("tied", "blind", BLIND, MULTIPLIERS),
                ("tied", "raw", RAW, MULTIPLIERS),
                ("untied", "blind", UNTIED_BLIND, MULTIPLIERS),
                ("untied", "raw", UNTIED_RAW, MULTIPLIERS),
            )
            for setting in settings
        ),
    ),
    draw=_draw,
    columns={name: last_of("own_token", name) for name in ("embedding_left", "centred_left", "own_logit")},
    tables=("own_token",),
)

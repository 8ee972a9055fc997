"""What a blind norm owes to width, depth and rate: the untied pair with small embeddings, resized.

The predictions (1) to (10) were made before the runs that they are of, with no look at any (LOG.md, 2026-11-30): that
the contrast, blind norm over raw norm, goes by rate x width and up with depth.
"""

from pathlib import Path

import pandas as pd

from experiments.curves import Look
from experiments.expectations import Side
from experiments.figures import draw_sizes
from experiments.grids.design import (
    Estimand,
    Estimate,
    Grid,
    Setting,
    between,
    column_of,
    losses,
    matched,
    norm_quotient,
)
from experiments.grids.rates import PAIRS

UNTIED = "untied, small"
BLIND, RAW = PAIRS[UNTIED]
WIDTHS = {
    64: (1e-3, 2e-3, 6e-3),
    128: (1e-3, 3e-3),
    256: (5e-4, 1e-3, 1.5e-3),
    512: (2.5e-4, 1e-3),
}
"""Width to the learning rates it was trained at, with two layers."""
DEEP = Setting(1e-3, d_model=128, num_layers=8)
WIDE, WIDE_LOW = Setting(1e-3, d_model=512), Setting(2.5e-4, d_model=512)
SIZES = {Setting(rate, d_model=width): f"{width}, 2, {rate:g}" for width, rates in WIDTHS.items() for rate in rates}
SIZES |= {DEEP: "128, 8, 0.001"}


def _contrast(setting: Setting) -> Estimate:
    """Blind norm over raw norm."""
    return norm_quotient((BLIND, setting), (RAW, setting))


def _quotient(above: Setting, below: Setting) -> Estimate:
    """The quotient of two contrasts."""

    def estimate(runs: pd.DataFrame) -> "pd.Series[float]":
        first, second = matched(_contrast(above)(runs), _contrast(below)(runs))
        return first / second

    return estimate


def _above_two(quantity: str, above: Setting, below: Setting) -> Estimand:
    """The quotient of two contrasts, seen from two."""
    return Estimand(quantity=quantity, estimate=_quotient(above, below), side="above", bound=2.0)


def _limit(quantity: str, setting: Setting, side: Side) -> Estimand:
    """A contrast, seen from five."""
    return Estimand(quantity=quantity, estimate=_contrast(setting), side=side, bound=5.0)


def _raw_quotient(runs: pd.DataFrame) -> "pd.Series[float]":
    """Root mean squares: a norm has the square root of the width in it."""
    wide, narrow = matched(*(column_of(runs, (RAW, Setting(1e-3, d_model=width))) / width**0.5 for width in (256, 64)))
    return wide / narrow


def _draw(out: Path, runs: pd.DataFrame, _: pd.DataFrame, looks: dict[str, Look]) -> None:
    draw_sizes(out / "sizes.png", runs, looks)


NARROW, BASE = Setting(1e-3, d_model=64), Setting(1e-3)
LOW = Setting(5e-4, d_model=256), Setting(2e-3, d_model=64)  # rate x width 0.128, as BASE
HIGH = Setting(1.5e-3, d_model=256), Setting(6e-3, d_model=64)  # 0.384

SIZE_GRID = Grid(
    pairs={UNTIED: PAIRS[UNTIED]},
    heading="width, layers, learning rate",
    settings=SIZES,
    judgements=(
        _above_two("(1) at 1e-3: C at width 256 / at 64", Setting(1e-3, d_model=256), NARROW),
        *between("(2) at rate x width 0.128: C at width 256 / at 64", _quotient(*LOW), 0.5, 2.0),
        *between("(3) at rate x width 0.384: C at width 256 / at 64", _quotient(*HIGH), 0.5, 2.0),
        *(_limit(f"(4) at rate x width 0.384: C at width {size.d_model}", size, "above") for size in HIGH),
        *(_limit(f"(5) at rate x width 0.128: C at width {size.d_model}", size, "below") for size in LOW),
        _above_two("(6) at 1e-3: C with 8 layers / with 2", DEEP, BASE),
        *between("(7) at 1e-3: raw RMS, width 256 / 64", _raw_quotient, 0.5, 2.0),
        _limit("(8) at 1e-3: C at width 512", WIDE, "above"),
        *between("(9) at rate x width 0.128: C at width 512 / at 64", _quotient(WIDE_LOW, LOW[1]), 0.5, 2.0),
        _limit("(10) at rate x width 0.128: C at width 512", WIDE_LOW, "below"),
        *(losses(f"{name}: CE, blind - raw, nats", (BLIND, size), (RAW, size)) for size, name in SIZES.items()),
    ),
    draw=_draw,
)

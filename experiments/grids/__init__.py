"""Pairs of variants under several settings, with predictions made before the runs. One module a grid."""

from experiments.grids.design import Grid
from experiments.grids.momenta import MOMENTUM_GRID
from experiments.grids.multipliers import MULTIPLIER_GRID
from experiments.grids.placements import PLACEMENT_GRID
from experiments.grids.rates import RATES
from experiments.grids.sizes import SIZE_GRID

GRIDS: dict[str, Grid] = {
    "rates": RATES,
    "sizes": SIZE_GRID,
    "multipliers": MULTIPLIER_GRID,
    "momenta": MOMENTUM_GRID,
    "placements": PLACEMENT_GRID,
}

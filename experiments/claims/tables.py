"""The measurement tables of one run as claims and figures read them, and what each table must hold."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

SCHEMA: dict[str, tuple[str, ...]] = {
    "loops": ("k", "cross_entropy", "perplexity", "l2_norm_mean", "l2_norm_median", "l2_norm_p99", "l2_norm_max"),
    "radial": ("k", "immediate", "total", "random_direction", "epsilon_leak_predicted", "epsilon_leak_seen"),
    "increments": (
        "k",
        "regime_number",
        "radial_increment",
        "perpendicular_part",
        "angular_step",
        "angular_step_times_norm",
        "heading_cosine",
        "pythagoras_residual",
        "second_order_seen",
        "second_order_predicted",
    ),
    "growth": ("k", "l2_norm_trained", "l2_norm_seen", "method", "l2_norm_predicted", "low", "high"),
    "growth_exponent": ("quantity", "estimate", "low", "high"),
    "clamp": ("mode", "cross_entropy", "change", "low", "high"),
    "depth": ("k", "cross_entropy", "perplexity", "tokens_per_second", "low", "high"),
    "halting": (
        "policy",
        "threshold",
        "loops_calibration",
        "perplexity_ratio_calibration",
        "average_loops",
        "perplexity_ratio",
        "low",
        "high",
        "met",
    ),
    "scale_sensitivity": ("factor", "cross_entropy", "change"),
    "attribution": ("step_from", "step_to", "group", "contribution"),
    "pressure": ("step", "k0_pressure", "norm"),
    "common": ("step", "l2_norm", "common_fraction", "common_derivative", "first_common_derivative"),
    "own_token": ("step", "embedding_left", "centred_left", "norm_ratio", "own_logit"),
    "deferred": ("k", "factor", "visibility", "immediate_visibility", "theory_exponent", "fitted_exponent"),
    "coefficient_law": ("placement", "coefficient_predicted", "coefficient_seen"),
    "precision": ("dtype", "loops_predicted", "loops_seen", "moving_fraction_at_64", "overflow_loop"),
}


class NotMeasured(Exception):
    """The table, or the rows asked for, are not there; the message says which."""


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """What was measured on one run.

    Attributes:
        name: of the run's folder.
        labels: the names it can be asked for by: its variant, and its cell of the factorial if it is one.
        seed: of its training.
        trained_loops: K.
        tables: name to tidy table, columns as in SCHEMA.
    """

    name: str
    labels: tuple[str, ...]
    seed: int
    trained_loops: int
    tables: Mapping[str, pd.DataFrame]

    def rows(self, table: str) -> pd.DataFrame:
        """A table with at least one row.

        Raises:
            NotMeasured: it is missing or empty.
        """
        found = self.tables.get(table)
        if found is None or found.empty:
            raise NotMeasured(f"{self.name}: no table {table}")
        return found

    def column(self, table: str, column: str, **where: object) -> np.ndarray:
        """The finite and infinite values, not the missing ones, of a column in the rows where the others are as given.

        Raises:
            NotMeasured: there is none.
        """
        rows = self.rows(table)
        for name, wanted in where.items():
            rows = rows[rows[name] == wanted]
        values = rows[column].dropna().to_numpy(float)
        if not len(values):
            asked = ", ".join(f"{name}={wanted}" for name, wanted in where.items())
            raise NotMeasured(f"{self.name}: no {column} in table {table}{' where ' * bool(asked)}{asked}")
        return values

    def value(self, table: str, column: str, **where: object) -> float:
        """The one value of a column where the others are as given.

        Raises:
            NotMeasured: there is none, or more than one.
        """
        values = self.column(table, column, **where)
        if len(values) > 1:
            raise NotMeasured(f"{self.name}: {len(values)} values of {column} in table {table} where one was expected")
        return float(values[0])

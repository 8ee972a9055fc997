"""A grid: pairs of variants under several settings of training, size and loss, and what was predicted of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.comparison import judged
from experiments.config import TRAINING_PRESETS, RunConfig, loop_weights_of
from experiments.curves import Look
from experiments.expectations import Row, Side, Verdict
from experiments.measure.statistics import geometric_interval, t_interval
from models import PRESETS


class Setting(NamedTuple):
    """What the runs of a grid may differ in, beside variant and seed."""

    learning_rate: float
    warmup_steps: int = 0
    d_model: int = PRESETS["cpu"].d_model
    num_layers: int = PRESETS["cpu"].num_layers
    embedding_multiplier: float = PRESETS["cpu"].embedding_multiplier
    momentum: float = TRAINING_PRESETS["cpu"].momentum
    loop_weights: str = "equal"
    """Of the loops' losses, as on the command line."""


Cell = tuple[str, Setting]
"""A variant under a setting: its runs are the seeds."""
Estimate = Callable[[pd.DataFrame], "pd.Series[float]"]
Column = Callable[[dict[str, Any], Mapping[str, pd.DataFrame]], float]
"""What is told of a run: a function of its summary and of its tables by name, `common` in the order of the steps."""


def setting_of(summary: dict[str, Any]) -> Setting:
    """The setting of a run, from its summary."""
    config = RunConfig.from_dict(summary["config"])
    training, model = config.training, config.model
    return Setting(
        training.learning_rate,
        training.warmup_steps,
        model.d_model,
        model.num_layers,
        model.embedding_multiplier,
        training.momentum,
        loop_weights_of(config),
    )


def column_of(runs: pd.DataFrame, cell: Cell, column: str = "l2_norm") -> "pd.Series[float]":
    """A column of the runs of one cell, by seed; without rows where nothing was run."""
    variant, setting = cell
    chosen = runs["variant"] == variant
    for name, value in setting._asdict().items():
        chosen &= runs[name] == value
    return runs[chosen].set_index("seed")[column]


def last_of(table: str, column: str) -> Column:
    """The last row's value of a table; NaN where the run has none."""

    def last(_: dict[str, Any], tables: Mapping[str, pd.DataFrame]) -> float:
        rows = tables[table]
        return float(rows[column].iloc[-1]) if column in rows and len(rows) else float("nan")

    return last


def by_setting(common: pd.DataFrame, names: Mapping[Setting, str]) -> pd.DataFrame:
    """The rows after the start, with `line`, the name of their setting, in the order of the names."""
    settings = common[list(Setting._fields)].itertuples(index=False)
    line = pd.Categorical([names[Setting(*values)] for values in settings], list(names.values()))
    return common.assign(line=line)[common["step"] > 0].sort_values("line")


def matched(first: "pd.Series[float]", second: "pd.Series[float]") -> "tuple[pd.Series[float], pd.Series[float]]":
    """Of the seeds that both have."""
    return first.align(second, join="inner")


def norm_quotient(above: Cell, below: Cell, column: str = "l2_norm") -> Estimate:
    """One cell's final norm, or another column, over another cell's, seed by seed."""

    def estimate(runs: pd.DataFrame) -> "pd.Series[float]":
        first, second = matched(column_of(runs, above, column), column_of(runs, below, column))
        return first / second

    return estimate


def loss_difference(first: Cell, second: Cell) -> Estimate:
    """One cell's cross-entropy less another's, seed by seed, in nats a token."""

    def estimate(runs: pd.DataFrame) -> "pd.Series[float]":
        one, other = matched(*(column_of(runs, cell, "cross_entropy") for cell in (first, second)))
        return one - other

    return estimate


@dataclass(frozen=True, kw_only=True)
class Estimand:
    """A quantity of every seed, and what was predicted of it.

    Attributes:
        quantity: what it is, in words, after the number of the prediction.
        estimate: from one row a run to one value a seed.
        side: where it was put, seen from `bound`; None where nobody predicted.
        geometric: its mean and interval are those of the logarithm.
    """

    quantity: str
    estimate: Estimate
    side: Side | None = None
    bound: float = 1.0
    geometric: bool = True

    def judge(self, runs: pd.DataFrame) -> Row:
        """Every seed and both ends of the interval must agree with the prediction, or with its opposite."""
        found = self.estimate(runs)
        predicted = f"{self.side} {self.bound:g}" if self.side else "none made"
        if found.empty:
            return _undecided(self.quantity, predicted, "not run")
        if found.isna().any():
            return _undecided(self.quantity, predicted, f"no value for {found.isna().sum()} of {len(found)} seeds")
        values = found.tolist()
        interval = (geometric_interval if self.geometric else t_interval)(values)
        return judged(self.quantity, values, interval, self.side, self.bound)


def norms(
    quantity: str, above: Cell, below: Cell, side: Side | None = None, bound: float = 1.0, column: str = "l2_norm"
) -> Estimand:
    """The quotient of two cells' final norms, or of another column of the table of runs."""
    return Estimand(quantity=quantity, estimate=norm_quotient(above, below, column), side=side, bound=bound)


def between(quantity: str, estimate: Estimate, low: float, high: float) -> tuple[Estimand, Estimand]:
    """A quantity put between two bounds: a line for each."""
    upper = f"{quantity.partition(':')[0]}: upper bound"
    return (
        Estimand(quantity=quantity, estimate=estimate, side="above", bound=low),
        Estimand(quantity=upper, estimate=estimate, side="below", bound=high),
    )


def losses(quantity: str, first: Cell, second: Cell, side: Side | None = None) -> Estimand:
    """The difference of two cells' final cross-entropies, seen from 0."""
    estimate = loss_difference(first, second)
    return Estimand(quantity=quantity, estimate=estimate, side=side, bound=0.0, geometric=False)


@dataclass(frozen=True, kw_only=True)
class InEveryRun:
    """A prediction of every single run: one exception refutes it.

    Attributes:
        quantity: what it is, in words.
        cells: whose runs.
        column: of the table of runs.
        bound: to be exceeded.
    """

    quantity: str
    cells: Sequence[Cell]
    column: str
    bound: float

    def judge(self, runs: pd.DataFrame) -> Row:
        """Counts the runs above the bound; undecided unless every cell was run."""
        predicted = f"above {self.bound:g} in every one"
        found = [column_of(runs, cell, self.column) for cell in self.cells]
        if any(of.empty for of in found):
            return _undecided(self.quantity, predicted, "not run")
        values = pd.concat(found)
        above = int((values > self.bound).sum())
        return Row(
            quantity=self.quantity,
            basis="empirical",
            predicted=predicted,
            observed=f"in {above} of {len(values)}, least {values.min():.3g}",
            verdict="supported" if above == len(values) else "not supported",
        )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells and what is said of them.

    Attributes:
        pairs: name to the blind variant and the one with a raw readout.
        heading: what tells the settings apart, in words.
        settings: setting to its name, in the order of the table.
        judgements: lines of the table of predictions.
        columns: of the table of runs, beside those that every grid has.
        tables: of the runs, beside `common`, that these columns are made from.
        draw: makes the figures in a folder, from one row a run, one row a run and kept step, and the looks of the
            variants.
    """

    pairs: Mapping[str, tuple[str, str]]
    heading: str
    settings: Mapping[Setting, str]
    judgements: Sequence[Estimand | InEveryRun]
    draw: Callable[[Path, pd.DataFrame, pd.DataFrame, dict[str, Look]], None]
    columns: Mapping[str, Column] = field(default_factory=dict)
    tables: Sequence[str] = ()

    def has(self, summary: dict[str, Any]) -> bool:
        """Whether a run is of one of the cells."""
        variants = {variant for pair in self.pairs.values() for variant in pair}
        return summary["variant"] in variants and setting_of(summary) in self.settings


def _undecided(quantity: str, predicted: str, why: str) -> Row:
    verdict: Verdict = "no prediction" if predicted == "none made" else "inconclusive"
    return Row(quantity=quantity, basis="empirical", predicted=predicted, observed=why, verdict=verdict)

"""One number from the tables of one run or of several: what claims are judged by. Nothing here knows a prediction."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from experiments.claims.tables import NotMeasured, RunTables

FLOOR = 1e-17  # below float64 rounding: a fraction of exactly 0 still has a logarithm
Estimate = Callable[..., float]


def last_norm(run: RunTables) -> float:
    """Mean Euclidean norm of h_K."""
    return run.value("loops", "l2_norm_mean", k=run.trained_loops)


def cross_entropy(run: RunTables, k: int | None = None) -> float:
    """Held-out nats a token after loop k, K if not given."""
    return run.value("loops", "cross_entropy", k=run.trained_loops if k is None else k)


def cross_entropy_difference(run: RunTables, other: RunTables) -> float:
    """Of two runs, after loop K."""
    return cross_entropy(run) - cross_entropy(other)


def absolute_cross_entropy_difference(run: RunTables, other: RunTables) -> float:
    """Its size, whatever its sign."""
    return abs(cross_entropy_difference(run, other))


def early_exit_cost(run: RunTables) -> float:
    """Cross-entropy after loop 1 less that after loop K."""
    return cross_entropy(run, 1) - cross_entropy(run)


def early_exit_cost_difference(run: RunTables, other: RunTables) -> float:
    """How much more the loops gain in `run` than in `other`."""
    return early_exit_cost(run) - early_exit_cost(other)


def ratio(of: Callable[[RunTables], float]) -> Estimate:
    """A quantity of the first run over that of the second."""
    return lambda run, other: of(run) / of(other)


def product(of: Callable[[RunTables], float], powers: Sequence[int]) -> Estimate:
    """The product of a quantity of every run to its power."""
    return lambda *runs: math.prod(of(run) ** power for run, power in zip(runs, powers, strict=True))


def fraction(column: str, pick: Callable[[np.ndarray], float], loops: Callable[[int], Sequence[int]]) -> Estimate:
    """The largest or smallest radial-gradient fraction over some loops."""

    def estimate(run: RunTables) -> float:
        found = [run.column("radial", column, k=k) for k in loops(run.trained_loops)]
        return max(float(pick(np.abs(np.concatenate(found)))), FLOOR)

    return estimate


def every_loop(trained: int) -> Sequence[int]:
    return range(1, trained + 1)


def all_but_the_last(trained: int) -> Sequence[int]:
    return range(1, trained)


def only_the_last(trained: int) -> Sequence[int]:
    return [trained]


def largest_change(table: str, column: str = "change") -> Callable[..., Estimate]:
    """The largest absolute value of a column, over the rows where another has one of the given values."""

    def among(name: str, wanted: Sequence[object]) -> Estimate:
        return lambda run: max(abs(run.value(table, column, **{name: value})) for value in wanted)

    return among


def largest_absolute(table: str, column: str) -> Estimate:
    """The largest absolute value of a column."""
    return lambda run: float(np.abs(run.column(table, column)).max())


def relative_error(table: str, seen: str, predicted: str) -> Estimate:
    """The largest |predicted / seen - 1| over the rows that have both."""

    def estimate(run: RunTables) -> float:
        rows = run.rows(table).dropna(subset=[seen, predicted])
        rows = rows[rows[seen] != 0.0]
        if rows.empty:
            raise NotMeasured(f"{run.name}: no prediction in table {table}")
        return float((rows[predicted] / rows[seen] - 1.0).abs().max())

    return estimate


def rescaling_curvature(run: RunTables) -> float:
    """The smallest second divided difference of cross-entropy in the factor, over the steepest slope."""
    rows = run.rows("scale_sensitivity").sort_values("factor")
    factor, value = rows["factor"].to_numpy(float), rows["cross_entropy"].to_numpy(float)
    if len(rows) < 3:
        raise NotMeasured(f"{run.name}: fewer than three factors")
    slopes = np.diff(value) / np.diff(factor)
    return float(np.diff(slopes).min() / np.abs(slopes).max())


def best_factor_distance(run: RunTables) -> float:
    """|ln c| of the factor c with the lowest cross-entropy."""
    rows = run.rows("scale_sensitivity")
    factors = rows["factor"].to_numpy(float)
    return abs(math.log(factors[rows["cross_entropy"].to_numpy(float).argmin()]))


def settling(run: RunTables) -> float:
    """|last increment of the norm over loops 1..K / first|: linear growth has about 1."""
    norms = [run.value("loops", "l2_norm_mean", k=k) for k in every_loop(run.trained_loops)]
    if len(norms) < 3:
        raise NotMeasured(f"{run.name}: fewer than three loops")
    return abs((norms[-1] - norms[-2]) / (norms[1] - norms[0]))


def deferred_over_immediate(run: RunTables) -> float:
    """Visibility of h_1's radial direction through the later loops over what its own readout sees of it."""
    immediate = abs(run.value("deferred", "immediate_visibility", k=1, factor=1.0))
    return run.value("deferred", "visibility", k=1, factor=1.0) / max(immediate, 1e-40)


def exponent_error(run: RunTables) -> float:
    """The largest |fitted - theory| exponent."""
    rows = run.rows("deferred").dropna(subset=["theory_exponent", "fitted_exponent"])
    if rows.empty:
        raise NotMeasured(f"{run.name}: no exponent in table deferred")
    return float((rows["fitted_exponent"] - rows["theory_exponent"]).abs().max())


def dense_over_terminal(run: RunTables) -> float:
    """|seen dense / seen terminal coefficient - (K + 1) / (2 K)|, relative."""
    dense, terminal = (run.value("coefficient_law", "coefficient_seen", placement=p) for p in ("per_loop", "terminal"))
    predicted = (run.trained_loops + 1) / (2 * run.trained_loops)
    return abs(dense / terminal / predicted - 1.0)


def average_loops(run: RunTables) -> float:
    """Of the logit-margin policy."""
    return run.value("halting", "average_loops", policy="margin")


def average_loops_difference(run: RunTables, other: RunTables) -> float:
    return average_loops(run) - average_loops(other)


def tail_ratio(run: RunTables) -> float:
    """99th percentile over median of the norm over tokens, after loop K."""
    p99, median = (run.value("loops", f"l2_norm_{name}", k=run.trained_loops) for name in ("p99", "median"))
    return p99 / median

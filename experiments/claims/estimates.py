"""One number from the tables of one run or of several: what claims are judged by. Nothing here knows a prediction."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from experiments.claims.tables import NotMeasured, RunTables

FLOOR = 1e-17  # below float64 rounding: a fraction of exactly 0 still has a logarithm
LOOPS_RUN = {"bfloat16": 1024, "float16": 4096}  # by the table `precision`
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
    """The smallest second divided difference of cross-entropy in the factor, over the largest change."""
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


def growth_beyond(run: RunTables) -> float:
    """The norm after 64 loops over that after K + 1."""
    rows = run.rows("growth").sort_values("k")["l2_norm_seen"].to_numpy(float)
    return float(rows[-1] / rows[0])


def growth_error(method: str, k: int) -> Estimate:
    """|predicted - seen| / |seen - norm at K| after loop k; predicting no growth has error 1."""

    def estimate(run: RunTables) -> float:
        predicted, seen = (run.value("growth", c, k=k, method=method) for c in ("l2_norm_predicted", "l2_norm_seen"))
        return abs(predicted - seen) / abs(seen - last_norm(run))

    return estimate


def band_coverage(method: str) -> Estimate:
    """The share of loops whose norm lies in the predictor's band."""

    def estimate(run: RunTables) -> float:
        rows = run.rows("growth")
        rows = rows[rows["method"] == method].dropna(subset=["low", "high"])
        if rows.empty:
            raise NotMeasured(f"{run.name}: no band for {method}")
        return float(rows["l2_norm_seen"].between(rows["low"], rows["high"]).mean())

    return estimate


def at_trained_depth(column: str) -> Estimate:
    """A column of `increments` for the step from h_K."""
    return lambda run: run.value("increments", column, k=run.trained_loops)


def angular_exponent(run: RunTables) -> float:
    """|1 + log-log slope of the angular step against the norm| from h_K on: 0 if it falls as 1/s."""
    rows = _far(run)
    angle = rows["angular_step"].to_numpy(float)
    s = rows["angular_step_times_norm"].to_numpy(float) / angle
    if s.max() < 1.5 * s.min():
        raise NotMeasured(f"{run.name}: the norm hardly changes beyond loop {run.trained_loops}")
    return abs(1.0 + float(np.polyfit(np.log(s), np.log(angle), 1)[0]))


def heading(run: RunTables) -> float:
    """Mean cosine of successive direction steps from h_K on."""
    return float(_far(run)["heading_cosine"].dropna().mean())


def increment_drift(run: RunTables) -> float:
    """|ln| of the last radial increment over the one at h_K."""
    increments = _far(run)["radial_increment"].to_numpy(float)
    return abs(math.log(increments[-1] / increments[0])) if (increments[[0, -1]] > 0).all() else math.inf


def second_order_error(run: RunTables) -> float:
    """|sum of predicted / sum of seen - 1| of the part of the increment beyond first order, from h_K on."""
    rows = _far(run).dropna(subset=["second_order_seen", "second_order_predicted"])
    if rows.empty:
        raise NotMeasured(f"{run.name}: no second order in table increments")
    return abs(float(rows["second_order_predicted"].sum() / rows["second_order_seen"].sum()) - 1.0)


def _far(run: RunTables) -> pd.DataFrame:
    rows = run.rows("increments")
    rows = rows[rows["k"] >= run.trained_loops].sort_values("k")
    if len(rows) < 3:
        raise NotMeasured(f"{run.name}: fewer than three steps beyond loop {run.trained_loops}")
    return rows


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


def attribution_error(run: RunTables) -> float:
    """|sum of the groups' contributions - change of mean log |h_K|| over the change, all of training."""
    rows = run.rows("attribution").groupby("group")["contribution"].sum()
    return abs(rows["sum"] - rows["truth"]) / abs(rows["truth"])


def embedding_share(run: RunTables) -> float:
    """The embeddings' contribution over the sum."""
    rows = run.rows("attribution").groupby("group")["contribution"].sum()
    return float(sum(value for name, value in rows.items() if "embedding" in str(name)) / rows["sum"])


def initial_pressure(run: RunTables) -> float:
    """Sum over tokens of <G_0, h_0> at step 0."""
    return run.value("pressure", "k0_pressure", step=0)


def pressure_share(run: RunTables, other: RunTables) -> float:
    """|pressure of `run`| over |pressure of `other`|, at step 0."""
    return abs(initial_pressure(run)) / abs(initial_pressure(other))


def stop_error(dtype: str) -> Estimate:
    """|log2 (loops predicted / seen)| until a low-precision residual stream stops moving.

    A stream that should have stopped within the loops run and did not counts as stopping at the last of them.
    """

    def estimate(run: RunTables) -> float:
        predicted = run.value("precision", "loops_predicted", dtype=dtype)
        try:
            seen = run.value("precision", "loops_seen", dtype=dtype)
        except NotMeasured:
            seen = LOOPS_RUN[dtype]
            if predicted >= seen or not _never_overflowed(run, dtype):
                raise
        return abs(math.log2(predicted / seen))

    return estimate


def _never_overflowed(run: RunTables, dtype: str) -> bool:
    rows = run.rows("precision")
    return bool(rows.loc[rows["dtype"] == dtype, "overflow_loop"].isna().all())


def moving_difference(run: RunTables) -> float:
    """Fraction of tokens still moving at loop 64: float16 less bfloat16."""
    moving = {d: run.value("precision", "moving_fraction_at_64", dtype=d) for d in ("float16", "bfloat16")}
    return moving["float16"] - moving["bfloat16"]


def average_loops(run: RunTables) -> float:
    """Of the logit-margin policy."""
    return run.value("halting", "average_loops", policy="margin")


def average_loops_difference(run: RunTables, other: RunTables) -> float:
    return average_loops(run) - average_loops(other)


def tail_ratio(run: RunTables) -> float:
    """99th percentile over median of the norm over tokens, after loop K."""
    p99, median = (run.value("loops", f"l2_norm_{name}", k=run.trained_loops) for name in ("p99", "median"))
    return p99 / median

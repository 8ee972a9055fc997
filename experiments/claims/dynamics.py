"""The same of growth: across loops beyond the trained depth, across training, and in low precision."""

import math

import numpy as np
import pandas as pd

from experiments.claims.estimates import Estimate
from experiments.claims.tables import NotMeasured, RunTables
from experiments.measure.precision import MAX_LOOPS

LOOPS_RUN = {str(dtype).removeprefix("torch."): loops for dtype, loops in MAX_LOOPS.items()}


def growth_beyond(run: RunTables) -> float:
    """The norm after 64 loops over that after K + 1."""
    rows = run.rows("growth").sort_values("k")["l2_norm_seen"].to_numpy(float)
    return float(rows[-1] / rows[0])


def growth_error(method: str, k: int) -> Estimate:
    """|predicted - seen| / |seen - norm at K| after loop k; predicting no growth has error 1."""

    def estimate(run: RunTables) -> float:
        columns = ("l2_norm_predicted", "l2_norm_seen", "l2_norm_trained")
        predicted, seen, trained = (run.value("growth", column, k=k, method=method) for column in columns)
        if seen == trained:
            raise NotMeasured(f"{run.name}: the norm does not change between the trained loops and loop {k}")
        return abs(predicted - seen) / abs(seen - trained)

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


def attribution_error(run: RunTables) -> float:
    """|sum of the groups' contributions - change of mean log |h_K|| over the change, all of training."""
    rows = run.rows("attribution").groupby("group")["contribution"].sum()
    return abs(rows["sum"] - rows["truth"]) / abs(rows["truth"])


def embedding_share(run: RunTables) -> float:
    """The size of the embeddings' contribution over the sum."""
    rows = run.rows("attribution").groupby("group")["contribution"].sum()
    if not rows["sum"] > 0.0:
        raise NotMeasured(f"{run.name}: the log norm did not grow, so there is nothing to share out")
    return abs(float(sum(value for name, value in rows.items() if "embedding" in str(name)) / rows["sum"]))


def initial_pressure(run: RunTables) -> float:
    """Sum over tokens of <G_0, h_0> at step 0."""
    return run.value("pressure", "k0_pressure", step=0)


def pressure_share(run: RunTables, other: RunTables) -> float:
    """|pressure of `run`| over |pressure of `other`|, at step 0."""
    return abs(initial_pressure(run)) / abs(initial_pressure(other))


def stop_error(dtype: str, decides: float) -> Estimate:
    """|log2 (loops predicted / seen)| until a low-precision residual stream stops moving.

    Of a stream that still moved after the last loop run only a bound is known, the error if it stopped there: it is
    taken if it is at least `decides`, and nothing is said otherwise.
    """

    def estimate(run: RunTables) -> float:
        predicted = run.value("precision", "loops_predicted", dtype=dtype)
        try:
            seen = run.value("precision", "loops_seen", dtype=dtype)
        except NotMeasured:
            seen = LOOPS_RUN[dtype]
            if not _never_overflowed(run, dtype):
                raise
            if math.log2(seen / predicted) < decides:
                raise NotMeasured(
                    f"{run.name}: half of the {dtype} streams still moved after {seen} loops, predicted {predicted:.0f}"
                ) from None
        return abs(math.log2(predicted / seen))

    return estimate


def _never_overflowed(run: RunTables, dtype: str) -> bool:
    rows = run.rows("precision")
    return bool(rows.loc[rows["dtype"] == dtype, "overflow_loop"].isna().all())


def moving_difference(run: RunTables) -> float:
    """Fraction of tokens still moving at loop 64: float16 less bfloat16."""
    moving = {d: run.value("precision", "moving_fraction_at_64", dtype=d) for d in ("float16", "bfloat16")}
    return moving["float16"] - moving["bfloat16"]

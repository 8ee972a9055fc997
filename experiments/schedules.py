"""What a blind norm owes to the learning rate: two pairs of variants under four schedules, and what was predicted.

A schedule is a learning rate and its steps of linear warm-up. The predictions were made before the runs, from seed 0
alone, which is not among them (LOG.md, 2026-11-30).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from experiments.comparison import INTERVALS, over_seeds
from experiments.config import RunConfig
from experiments.curves import look
from experiments.errors import UsageError
from experiments.expectations import Row, Verdict, as_dicts
from experiments.figures import draw_common, draw_rates
from experiments.files import atomic_path, write_json
from experiments.measure.statistics import geometric_interval, t_interval
from experiments.provenance import provenance
from experiments.tables import markdown, rows_as_markdown

Schedule = tuple[float, int]
Cell = tuple[str, Schedule]
Estimate = Callable[[pd.DataFrame], "pd.Series[float]"]

LOW, MIDDLE, HIGH, WARMED = (3e-4, 0), (1e-3, 0), (3e-3, 0), (3e-3, 50)
SCHEDULES: Mapping[Schedule, str] = {
    LOW: "3e-4",
    MIDDLE: "1e-3",
    HIGH: "3e-3",
    WARMED: "3e-3 after 50 steps of warm-up",
}
PAIRS: Mapping[str, tuple[str, str]] = {
    "tied, N(0, 1)": ("scale_invariant", "scale_visible"),
    "untied, small": ("untied_small_init_scale_invariant", "untied_small_init_scale_visible"),
}
"""Of each pair the blind variant and the one with a raw readout."""
(TIED_BLIND, TIED_RAW), (UNTIED_BLIND, UNTIED_RAW) = PAIRS.values()


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A claim about a quantity of every seed.

    Attributes:
        quantity: what it is, in words.
        estimate: from one row a run to one value a seed.
        side: where it was put, seen from `bound`; None where nobody predicted.
        geometric: its mean and interval are those of the logarithm.
    """

    quantity: str
    estimate: Estimate
    side: Literal["above", "below"] | None = None
    bound: float = 1.0
    geometric: bool = True


def _of(runs: pd.DataFrame, cell: Cell, column: str = "l2_norm") -> "pd.Series[float]":
    """A column of one variant under one schedule, by seed."""
    variant, (rate, warmup) = cell
    chosen = (runs["variant"] == variant) & (runs["learning_rate"] == rate) & (runs["warmup_steps"] == warmup)
    return runs[chosen].set_index("seed")[column]


def _norms(
    quantity: str, above: Cell, below: Cell, side: Literal["above", "below"] | None = None, bound: float = 1.0
) -> Prediction:
    """About the quotient of two cells' final norms."""
    return Prediction(
        quantity=quantity, estimate=lambda runs: _of(runs, above) / _of(runs, below), side=side, bound=bound
    )


def _difference(first: Cell, second: Cell) -> Estimate:
    return lambda runs: _of(runs, first, "cross_entropy") - _of(runs, second, "cross_entropy")


def _exponent(variant: str) -> Estimate:
    """Slope of the logarithm of the norm over that of the rate."""

    def slope(runs: pd.DataFrame) -> "pd.Series[float]":
        logs = pd.DataFrame({math.log(s[0]): np.log(_of(runs, (variant, s))) for s in (LOW, MIDDLE, HIGH)}).dropna()
        return logs.apply(lambda seed: float(np.polyfit(logs.columns.to_numpy(float), seed, 1)[0]), axis=1)

    return slope


def _least_common(runs: pd.DataFrame) -> "pd.Series[float]":
    """1 - the largest common fraction along a training, of the blind run where it stays furthest from 1."""
    cells = [(variant, schedule) for variant in (TIED_BLIND, UNTIED_BLIND) for schedule in (MIDDLE, HIGH, WARMED)]
    return 1.0 - pd.DataFrame({cell: _of(runs, cell, "most_common") for cell in cells}).dropna().min(axis=1)


PREDICTIONS = (
    _norms("untied, blind: norm at 3e-3 / at 1e-3", (UNTIED_BLIND, HIGH), (UNTIED_BLIND, MIDDLE), "above", 2.0),
    _norms("untied, raw: norm at 3e-3 / at 1e-3", (UNTIED_RAW, HIGH), (UNTIED_RAW, MIDDLE), "below", 2.0),
    _norms("tied, blind: norm at 3e-3 / at 1e-3", (TIED_BLIND, HIGH), (TIED_BLIND, MIDDLE), "above", 1.0),
    _norms("tied, blind: norm at 3e-3 / at 1e-3", (TIED_BLIND, HIGH), (TIED_BLIND, MIDDLE), "below", 2.0),
    _norms("untied, at 1e-3: blind norm / raw", (UNTIED_BLIND, MIDDLE), (UNTIED_RAW, MIDDLE), "below", 5.0),
    *(
        _norms(f"tied, at {name}: blind norm / raw", (TIED_BLIND, schedule), (TIED_RAW, schedule), "above", 5.0)
        for schedule, name in SCHEDULES.items()
    ),
    _norms("untied, blind: norm with warm-up / without", (UNTIED_BLIND, WARMED), (UNTIED_BLIND, HIGH), "below", 1.0),
    _norms("tied, blind: norm with warm-up / without", (TIED_BLIND, WARMED), (TIED_BLIND, HIGH)),
    Prediction(
        quantity="untied, blind: cross-entropy at 1e-3 - at 3e-3, nats",
        estimate=_difference((UNTIED_BLIND, MIDDLE), (UNTIED_BLIND, HIGH)),
        side="below",
        bound=0.0,
        geometric=False,
    ),
    Prediction(
        quantity="1 - largest common fraction, worst blind run at 1e-3 and above",
        estimate=_least_common,
        side="below",
        bound=0.01,
        geometric=False,
    ),
    *(
        Prediction(
            quantity=f"{pair}, {kind}: d log norm / d log rate",
            estimate=_exponent(variant),
            geometric=False,
        )
        for pair, variants in PAIRS.items()
        for kind, variant in zip(("blind", "raw"), variants, strict=True)
    ),
)


def compare_schedules(summaries: Sequence[dict[str, Any]], common: pd.DataFrame, out: Path) -> str:
    """Write runs, verdicts, figures and Markdown into `out`; return the Markdown.

    Args:
        summaries: the contents of the runs' `summary.json`; equal in all but variant, seed and schedule.
        common: their tables `common`, with the columns of `identity` in front.
        out: folder.

    Raises:
        UsageError: the runs differ in more, a schedule or variant is not of this experiment, or a run has no table.
    """
    _require_comparable(summaries)
    _require_kept_weights(summaries, common)
    runs = _runs(summaries, common)
    rows = [row for prediction in PREDICTIONS if (row := _judge(prediction, runs))]
    text = "\n\n".join([_cells(runs), rows_as_markdown(as_dicts(rows)), INTERVALS + provenance(summaries)])
    for name, frame in (("runs", runs), ("common", common)):
        with atomic_path(out / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")
    write_json(out / "claims.json", as_dicts(rows))
    looks = {summary["variant"]: look(RunConfig.from_dict(summary["config"])) for summary in summaries}
    draw_rates(out / "rates.png", runs[runs["warmup_steps"] == 0], looks)
    at_high = (common["learning_rate"] == HIGH[0]) & (common["warmup_steps"] == HIGH[1])
    draw_common(out / "common.png", common[at_high & (common["step"] > 0)], looks)
    with atomic_path(out / "rates.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return text


def identity(summary: dict[str, Any]) -> dict[str, Any]:
    """What tells one run from the others."""
    training = summary["config"]["training"]
    schedule = {name: training[name] for name in ("learning_rate", "warmup_steps")}
    return schedule | {"variant": summary["variant"], "seed": summary["seed"]}


def _require_comparable(summaries: Sequence[dict[str, Any]]) -> None:
    def shared(summary: dict[str, Any]) -> tuple[Any, ...]:
        config = summary["config"]
        training = config["training"] | {"learning_rate": None, "warmup_steps": None}
        return config["preset"], training, config["corpus_key"], config["model"]["num_loops"]

    for summary in summaries:
        if shared(summary) != shared(summaries[0]):
            raise UsageError(
                f"{summaries[0]['run']} and {summary['run']} differ in more than variant, seed, learning rate and "
                "warm-up; put runs of one kind into the folders."
            )
        run = identity(summary)
        if (run["learning_rate"], run["warmup_steps"]) not in SCHEDULES:
            known = "; ".join(SCHEDULES.values())
            raise UsageError(f"{summary['run']} has another schedule than these: {known}; leave its folder out.")
        if summary["variant"] not in {variant for pair in PAIRS.values() for variant in pair}:
            raise UsageError(f"{summary['run']} is of neither pair of this experiment; leave it out.")
    if len({tuple(identity(summary).values()) for summary in summaries}) < len(summaries):
        raise UsageError("a run was given twice; seeds must differ, or their interval means nothing.")


def _require_kept_weights(summaries: Sequence[dict[str, Any]], common: pd.DataFrame) -> None:
    with_rows = set(zip(*(common[key] for key in identity(summaries[0])), strict=True))
    for summary in summaries:
        if tuple(identity(summary).values()) not in with_rows:
            raise UsageError(f"{summary['run']} kept no weights along training; train it again with --snapshots 10.")


def _runs(summaries: Sequence[dict[str, Any]], common: pd.DataFrame) -> pd.DataFrame:
    """One row a run, in the order of schedules and pairs."""
    keys = list(identity(summaries[0]))
    along = pd.DataFrame([dict(zip(keys, run, strict=True)) | _along(rows) for run, rows in common.groupby(keys)])
    rows = [
        identity(summary)
        | {
            "l2_norm": summary["validation"]["l2_norm"]["mean"][-1],
            "cross_entropy": summary["validation"]["cross_entropy"][-1],
        }
        for summary in summaries
    ]
    runs = pd.DataFrame(rows).merge(along, on=keys)
    return runs.sort_values(["learning_rate", "warmup_steps", "variant", "seed"], ignore_index=True)


def _along(rows: pd.DataFrame) -> dict[str, float]:
    """Of one training: the largest and the last common fraction, and by what the norm grew after the loss had turned.

    It turns at the first kept step at which it would have the common vector smaller, after one at which it would have
    it larger; NaN where it never does.
    """
    rows = rows.sort_values("step")
    pull, norms = rows["common_derivative"], rows["l2_norm"]
    turned = norms[(pull > 0.0) & (pull.shift() < 0.0)]
    return {
        "most_common": rows["common_fraction"].max(),
        "last_common": rows["common_fraction"].iloc[-1],
        "growth_after_turn": norms.max() / turned.iloc[0] if len(turned) else math.nan,
    }


def _judge(prediction: Prediction, runs: pd.DataFrame) -> Row | None:
    """A line of the table; None where no seed has all that it needs."""
    values = prediction.estimate(runs).dropna().tolist()
    if not values:
        return None
    interval = (geometric_interval if prediction.geometric else t_interval)(values)
    verdict: Verdict = "no prediction"
    if prediction.side:
        verdict = over_seeds(values, interval, prediction.bound, prediction.bound, prediction.side)
    return Row(
        quantity=prediction.quantity,
        basis="empirical",
        predicted=f"{prediction.side} {prediction.bound:g}" if prediction.side else "none made",
        observed=f"{interval.text(3)} over {len(values)} seed{'s' * (len(values) > 1)}",
        verdict=verdict,
    )


def _cells(runs: pd.DataFrame) -> str:
    """Both pairs under every schedule."""
    rows = []
    for pair, (blind, raw) in PAIRS.items():
        for schedule, name in SCHEDULES.items():
            norms = {variant: _of(runs, (variant, schedule)) for variant in (blind, raw)}
            if any(of.empty for of in norms.values()):
                continue
            losses = [_of(runs, (variant, schedule), "cross_entropy") for variant in (blind, raw)]
            ratio = (norms[blind] / norms[raw]).dropna()
            fractions = [_of(runs, (blind, schedule), column) for column in ("most_common", "last_common")]
            after = _of(runs, (blind, schedule), "growth_after_turn").dropna().tolist()
            rows.append(
                [
                    pair,
                    name,
                    *(geometric_interval(of.tolist()).text(3) for of in (*norms.values(), ratio)),
                    *(t_interval(of.tolist()).text(4) for of in losses),
                    *(f"{of.mean():.3g}" for of in fractions),
                    geometric_interval(after).text(3) if after else "",
                ]
            )
    header = ["head, embeddings", "learning rate", "norm, blind", "norm, raw", "ratio", "CE, blind", "CE, raw"]
    of_blind = ["common, at most", "common, at the end", "growth after the loss turned"]
    return markdown([*header, *(f"{name} (blind)" for name in of_blind)], rows)

"""What a blind norm owes to the learning rate: two pairs of variants under four schedules, and what was predicted.

A schedule is a learning rate and its steps of linear warm-up. The predictions (1) to (8) were made before the runs,
from seed 0 alone, which is not among them (LOG.md, 2026-11-30).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.comparison import judged, require_comparable
from experiments.config import RunConfig
from experiments.curves import look
from experiments.errors import UsageError
from experiments.expectations import Row, Side, Verdict, as_dicts
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
MOST_COMMON = 0.99
"""Of a blind state's mean square, predicted to be exceeded at some kept step of every run at 1e-3 and above."""
NOTE = (
    "Blind: RMSNorm readouts; raw: the partner with raw ones. Norms and cross-entropies (CE) of loop 4. Largest: over "
    "the steps whose weights were kept, on 2,048 held-out tokens. Common fraction: the part of the state's mean square "
    "that one vector for all tokens makes; of blind runs, means over seeds. Intervals: 95 % each, Student t over "
    "seeds, of the logarithm for norms and their ratios. "
)


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


def _final(runs: pd.DataFrame, cell: Cell, column: str = "l2_norm") -> "pd.Series[float]":
    """A column of one variant under one schedule, by seed."""
    variant, (rate, warmup) = cell
    chosen = (runs["variant"] == variant) & (runs["learning_rate"] == rate) & (runs["warmup_steps"] == warmup)
    return runs[chosen].set_index("seed")[column]


def _norms(quantity: str, above: Cell, below: Cell, side: Side | None = None, bound: float = 1.0) -> Estimand:
    """The quotient of two cells' final norms."""
    return Estimand(
        quantity=quantity, estimate=lambda runs: _final(runs, above) / _final(runs, below), side=side, bound=bound
    )


def _loss_difference(first: Cell, second: Cell) -> Estimate:
    return lambda runs: _final(runs, first, "cross_entropy") - _final(runs, second, "cross_entropy")


def _cost_of_blindness(schedule: Schedule) -> Estimate:
    return _loss_difference((UNTIED_BLIND, schedule), (UNTIED_RAW, schedule))


ESTIMANDS = (
    _norms("(1) untied, blind: norm at 3e-3 / at 1e-3", (UNTIED_BLIND, HIGH), (UNTIED_BLIND, MIDDLE), "above", 2.0),
    _norms("(2) untied, raw: norm at 3e-3 / at 1e-3", (UNTIED_RAW, HIGH), (UNTIED_RAW, MIDDLE), "below", 2.0),
    _norms("(3) tied, blind: norm at 3e-3 / at 1e-3", (TIED_BLIND, HIGH), (TIED_BLIND, MIDDLE), "above", 1.0),
    _norms("(3) the same, its upper bound", (TIED_BLIND, HIGH), (TIED_BLIND, MIDDLE), "below", 2.0),
    _norms("(4) untied, at 1e-3: blind norm / raw", (UNTIED_BLIND, MIDDLE), (UNTIED_RAW, MIDDLE), "below", 5.0),
    *(
        _norms(f"(5) tied, at {name}: blind norm / raw", (TIED_BLIND, schedule), (TIED_RAW, schedule), "above", 5.0)
        for schedule, name in SCHEDULES.items()
    ),
    _norms("(6) untied, blind: norm with warm-up / without", (UNTIED_BLIND, WARMED), (UNTIED_BLIND, HIGH), "below"),
    Estimand(
        quantity="(7) untied, blind: CE at 1e-3 - at 3e-3, nats",
        estimate=_loss_difference((UNTIED_BLIND, MIDDLE), (UNTIED_BLIND, HIGH)),
        side="below",
        bound=0.0,
        geometric=False,
    ),
    _norms("tied, blind: norm with warm-up / without", (TIED_BLIND, WARMED), (TIED_BLIND, HIGH)),
    _norms("untied, blind: norm at 1e-3 / at 3e-4", (UNTIED_BLIND, MIDDLE), (UNTIED_BLIND, LOW)),
    _norms("untied, raw: norm at 1e-3 / at 3e-4", (UNTIED_RAW, MIDDLE), (UNTIED_RAW, LOW)),
    _norms("tied, blind: norm at 1e-3 / at 3e-4", (TIED_BLIND, MIDDLE), (TIED_BLIND, LOW)),
    *(
        Estimand(
            quantity=f"untied, at {name}: CE, blind - raw, nats",
            estimate=_cost_of_blindness(schedule),
            geometric=False,
        )
        for schedule, name in SCHEDULES.items()
    ),
    Estimand(
        quantity="untied: this difference at 3e-3 - at 1e-3, nats",
        estimate=lambda runs: _cost_of_blindness(HIGH)(runs) - _cost_of_blindness(MIDDLE)(runs),
        geometric=False,
    ),
)


def compare_schedules(summaries: Sequence[dict[str, Any]], common: pd.DataFrame, out: Path) -> str:
    """Write runs, verdicts, figures and Markdown into `out`; return the Markdown.

    Args:
        summaries: the contents of the runs' `summary.json`; equal in all but variant, seed and schedule.
        common: their tables `common`, with the columns of `identity`.
        out: folder.

    Raises:
        UsageError: as `require_design`, or a run has no table.
    """
    require_design(summaries)
    _require_kept_weights(summaries, common)
    runs = _runs(summaries, common)
    rows = [*(_judge(estimand, runs) for estimand in ESTIMANDS), _judge_common(runs)]
    rows.sort(key=lambda row: not row.quantity.startswith("("))  # predictions first
    text = "\n\n".join([_cell_table(runs), rows_as_markdown(as_dicts(rows)), NOTE + provenance(summaries)])
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


def require_design(summaries: Sequence[dict[str, Any]]) -> None:
    """Check that runs belong to this experiment.

    Raises:
        UsageError: the runs differ in more than variant, seed and schedule, one was given twice, or one is of another
            schedule or variant.
    """
    require_comparable(summaries, free=("learning_rate", "warmup_steps"))
    for summary in summaries:
        run = identity(summary)
        if (run["learning_rate"], run["warmup_steps"]) not in SCHEDULES:
            known = "; ".join(SCHEDULES.values())
            raise UsageError(f"{summary['run']} has another schedule than these: {known}; leave its folder out.")
        if summary["variant"] not in {variant for pair in PAIRS.values() for variant in pair}:
            raise UsageError(f"{summary['run']} is of neither pair of this experiment; leave it out.")


def _require_kept_weights(summaries: Sequence[dict[str, Any]], common: pd.DataFrame) -> None:
    with_rows = set(zip(*(common[key] for key in identity(summaries[0])), strict=True))
    for summary in summaries:
        if tuple(identity(summary).values()) not in with_rows:
            raise UsageError(f"{summary['run']} kept no weights along training; train it again with --snapshots 10.")


def _runs(summaries: Sequence[dict[str, Any]], common: pd.DataFrame) -> pd.DataFrame:
    """One row a run, in the order of schedules and variants."""
    keys = list(identity(summaries[0]))
    courses = (
        common.sort_values("step")
        .groupby(keys)
        .agg(
            largest_norm=("l2_norm", "max"),
            most_common=("common_fraction", "max"),
            last_common=("common_fraction", "last"),
        )
    )
    rows = [
        identity(summary)
        | {
            "l2_norm": summary["validation"]["l2_norm"]["mean"][-1],
            "cross_entropy": summary["validation"]["cross_entropy"][-1],
        }
        for summary in summaries
    ]
    return pd.DataFrame(rows).join(courses, on=keys).sort_values(keys, ignore_index=True)


def _judge(estimand: Estimand, runs: pd.DataFrame) -> Row:
    values = estimand.estimate(runs).dropna().tolist()
    if not values:
        predicted = f"{estimand.side} {estimand.bound:g}" if estimand.side else "none made"
        return _not_run(estimand.quantity, predicted)
    interval = (geometric_interval if estimand.geometric else t_interval)(values)
    return judged(estimand.quantity, values, interval, estimand.side, estimand.bound)


def _judge_common(runs: pd.DataFrame) -> Row:
    """Said of every run, so that one exception refutes it."""
    quantity, predicted = (
        "(8) blind runs at 1e-3 and above: largest common fraction",
        f"above {MOST_COMMON:g} in every one",
    )
    cells = [(variant, schedule) for variant in (TIED_BLIND, UNTIED_BLIND) for schedule in (MIDDLE, HIGH, WARMED)]
    found = [_final(runs, cell, "most_common") for cell in cells]
    if any(of.empty for of in found):
        return _not_run(quantity, predicted)
    fractions = pd.concat(found)
    reached = int((fractions > MOST_COMMON).sum())
    return Row(
        quantity=quantity,
        basis="empirical",
        predicted=predicted,
        observed=f"in {reached} of {len(fractions)}, least {fractions.min():.3g}",
        verdict="supported" if reached == len(fractions) else "not supported",
    )


def _not_run(quantity: str, predicted: str) -> Row:
    verdict: Verdict = "no prediction" if predicted == "none made" else "inconclusive"
    return Row(quantity=quantity, basis="empirical", predicted=predicted, observed="not run", verdict=verdict)


def _cell_table(runs: pd.DataFrame) -> str:
    """Both pairs under every schedule."""
    header = ["head, embeddings", "learning rate", "norm, blind", "norm, raw", "ratio", "CE, blind", "CE, raw"]
    header += ["largest norm, blind", "largest norm, raw", "common fraction, largest", "common fraction, last"]
    rows = []
    for pair, variants in PAIRS.items():
        for schedule, name in SCHEDULES.items():
            blind, raw = cells = [(variant, schedule) for variant in variants]
            norms = [_final(runs, cell) for cell in cells]
            ratio = (norms[0] / norms[1]).dropna()
            if ratio.empty:
                rows.append([pair, name, *["not run"] * (len(header) - 2)])
                continue
            losses = [_final(runs, cell, "cross_entropy") for cell in cells]
            largest = [_final(runs, cell, "largest_norm") for cell in cells]
            fractions = [_final(runs, blind, column) for column in ("most_common", "last_common")]
            rows.append(
                [
                    pair,
                    name,
                    *(geometric_interval(of.tolist()).text(3) for of in (*norms, ratio)),
                    *(t_interval(of.tolist()).text(4) for of in losses),
                    *(geometric_interval(of.tolist()).text(3) for of in largest),
                    *(f"{of.mean():.3g}" for of in fractions),
                ]
            )
    return markdown(header, rows)

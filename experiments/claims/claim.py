"""A claim is data; evaluating it over runs gives a finding.

Estimates are made seed by seed, on runs of that seed only, so that a comparison is paired. Verdicts are those of
`expectations.below_or_above`, and over seeds those of `comparison.over_seeds`: between two thresholds nothing is
decided, nor by one seed, nor where the seeds or the ends of the interval disagree.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.claims.tables import NotMeasured, RunTables
from experiments.comparison import over_seeds
from experiments.expectations import Verdict
from experiments.measure.statistics import Interval, geometric_interval, t_interval

Outcome = Verdict | Literal["not measured"]
Runs = Mapping[str, Mapping[int, RunTables]]
# What an earlier sweep of the same preset had shown before thresholds were written down.
SEEN_TABLES = frozenset({"loops", "radial", "scale_sensitivity"})


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Supported wholly on the expected side of its bound, not supported wholly beyond the other one.

    Attributes:
        expect: the side the claim is on.
        low, high: `below` is supported under `low` and refuted over `high`; `above` the other way round.
    """

    expect: Literal["below", "above"]
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low must not exceed high, got {self.low} and {self.high}.")

    def text(self) -> str:
        supported, refuted = (self.low, self.high) if self.expect == "below" else (self.high, self.low)
        other = "above" if self.expect == "below" else "below"
        return f"supported {self.expect} {supported:g}, not supported {other} {refuted:g}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about trained models that a measurement can refute.

    Attributes:
        key: short name, unique, also the anchor in the report.
        text: the claim in one sentence.
        source: where it is made (paper, theory proposition, independent readers, this project).
        basis: `by construction` follows from the readout's definition, trained or not, and tests the code; `empirical`
            is evidence.
        prediction: direction and size at this project's sizes, in words.
        method: how the estimate of one seed is computed.
        tables: the measurement tables it reads.
        cases: tuples of labels (variants or factorial cells); the claim is made of every case.
        estimate: one number from the runs of a case and seed, in the order of the case.
        rule: None where nobody has made a prediction.
        spread: interval of the logarithm for positive quantities, of the number itself otherwise.
        unit: of the estimate.
        figure: key of the figure that shows it.
        seen: the quantity had been seen on an earlier sweep, though its table is not one of SEEN_TABLES.
        note: what a reader must know.
    """

    key: str
    text: str
    source: str
    basis: Literal["by construction", "empirical"] = "empirical"
    prediction: str
    method: str
    tables: tuple[str, ...]
    cases: tuple[tuple[str, ...], ...]
    estimate: Callable[..., float]
    rule: Rule | None
    spread: Literal["linear", "log"] = "linear"
    unit: str = ""
    figure: str
    seen: bool = False
    note: str = ""

    @property
    def fixed_after_looking(self) -> bool:
        """Whether an earlier sweep had shown the quantity when prediction and thresholds were written down."""
        return self.seen or self.tables[0] in SEEN_TABLES


@dataclass(frozen=True, kw_only=True)
class CaseFinding:
    """One case of a claim: estimates by seed, their interval, the verdict, and what was left out and why."""

    case: tuple[str, ...]
    estimates: Mapping[int, float]
    interval: Interval | None
    verdict: Outcome
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim with what the runs say about it.

    Attributes:
        verdict: `not supported` as soon as one case is, `supported` if all measured cases are.
    """

    claim: Claim
    cases: tuple[CaseFinding, ...]
    verdict: Outcome


def index(runs: Sequence[RunTables]) -> Runs:
    """Runs by label and seed."""
    found: dict[str, dict[int, RunTables]] = {}
    for run in runs:
        for label in run.labels:
            found.setdefault(label, {})[run.seed] = run
    return found


def evaluate(claim: Claim, runs: Runs) -> Finding:
    """Judge every case of a claim."""
    cases = tuple(_evaluate_case(claim, case, runs) for case in claim.cases)
    return Finding(claim=claim, cases=cases, verdict=_together([case.verdict for case in cases]))


def _evaluate_case(claim: Claim, case: tuple[str, ...], runs: Runs) -> CaseFinding:
    estimates: dict[int, float] = {}
    left_out = [f"no run of {label}" for label in case if not runs.get(label)]
    for seed in sorted(set.intersection(*(set(runs.get(label, {})) for label in case))):
        try:
            estimates[seed] = float(claim.estimate(*(runs[label][seed] for label in case)))
        except NotMeasured as error:
            left_out.append(str(error))
        except (ArithmeticError, ValueError) as error:
            left_out.append(f"seed {seed}: {error}")
    values = list(estimates.values())
    interval = _interval(values, claim.spread) if values else None
    return CaseFinding(
        case=case,
        estimates=estimates,
        interval=interval,
        verdict=_judge(claim.rule, values, interval),
        left_out=tuple(left_out),
    )


def _interval(values: list[float], spread: Literal["linear", "log"]) -> Interval:
    """An interval with NaN ends, which decide nothing, where a value is not finite or has no logarithm."""
    if not all(math.isfinite(value) and (value > 0 or spread == "linear") for value in values):
        return Interval(mean=math.nan, low=math.nan, high=math.nan)
    return geometric_interval(values) if spread == "log" else t_interval(values)


def _judge(rule: Rule | None, values: list[float], interval: Interval | None) -> Outcome:
    if interval is None:
        return "not measured"
    if rule and rule.expect == "below" and len(values) > 1 and all(value == math.inf for value in values):
        return "not supported"  # the largest error there is, for example of a growth that turned round
    return over_seeds(values, interval, rule.low, rule.high, rule.expect) if rule else "no prediction"


def _together(verdicts: list[Outcome]) -> Outcome:
    measured = [verdict for verdict in verdicts if verdict != "not measured"]
    if not measured:
        return "not measured"
    if "not supported" in measured:
        return "not supported"
    return measured[0] if len(set(measured)) == 1 else "inconclusive"

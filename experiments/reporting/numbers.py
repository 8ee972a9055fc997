"""Findings as words and plain values, for the templates: nothing is computed here that a claim has not computed."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from experiments.claims import CaseFinding, Claim, Finding, Outcome
from experiments.claims.confounds import CELLS
from experiments.measure.statistics import Interval

VERDICTS: tuple[Outcome, ...] = ("not supported", "inconclusive", "supported", "no prediction", "not measured")


def as_dict(finding: Finding) -> dict[str, Any]:
    """A finding as strict JSON."""
    claim = finding.claim
    return {
        "key": claim.key,
        "claim": claim.text,
        "source": claim.source,
        "basis": claim.basis,
        "predicted": claim.prediction,
        "rule": claim.rule.text() if claim.rule else "none: no prediction was made",
        "method": claim.method,
        "fixed": fixed(claim),
        "note": claim.note,
        "unit": claim.unit,
        "tables": list(claim.tables),
        "figure": claim.figure,
        "verdict": finding.verdict,
        "observed": observed(finding),
        "cases": [_case(case) for case in finding.cases],
    }


def _case(case: CaseFinding) -> dict[str, Any]:
    interval = case.interval
    bounds = (interval.mean, interval.low, interval.high) if interval else (None, None, None)
    return {
        "case": case_name(case.case),
        "verdict": case.verdict,
        "estimates": {str(seed): _finite(value) for seed, value in case.estimates.items()},
        **dict(zip(("mean", "low", "high"), map(_finite, bounds), strict=True)),
        "text": _with_bounds(interval) if interval else "",
        "by_seed": ", ".join(f"{seed}: {number(value)}" for seed, value in case.estimates.items()),
        "left_out": list(case.left_out),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def number(value: float) -> str:
    """Three digits; integers in the thousands, where an exponent would be harder to read."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def _with_bounds(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return number(interval.mean)
    return f"{number(interval.mean)} [{number(interval.low)}, {number(interval.high)}]"


def fixed(claim: Claim) -> str:
    """When the prediction was written down, in words."""
    if claim.rule is None:
        return "no prediction"
    if claim.fixed_after_looking:
        return "after an earlier sweep had shown this quantity"
    return "before this quantity was measured on any sweep"


def case_name(case: tuple[str, ...]) -> str:
    """`a`, `a / b`, or what many cells are together."""
    return "the eight cells" if case == tuple(CELLS) else " / ".join(case)


def observed(finding: Finding) -> str:
    """The estimates of a claim's cases, in one line each where there are few, as a range where there are many."""
    measured = [case for case in finding.cases if case.interval is not None]
    if not measured:
        return "not measured"
    unit = f" {finding.claim.unit}" if finding.claim.unit in ("nats", "loops") else ""
    if len(measured) == 1 and measured[0].interval is not None:
        seeds = len(measured[0].estimates)
        return f"{_with_bounds(measured[0].interval)}{unit}, {seeds} seed{'s' * (seeds > 1)}"
    means = [case.interval.mean for case in measured if case.interval is not None]
    agree = Counter(case.verdict for case in measured)
    tally = ", ".join(f"{agree[verdict]} {verdict}" for verdict in VERDICTS if agree[verdict])
    return f"{number(min(means))} to {number(max(means))}{unit} over {len(measured)} cases ({tally})"


def counts(findings: Sequence[Finding]) -> dict[Outcome, int]:
    """How many claims have each verdict, worst first."""
    found = Counter(finding.verdict for finding in findings)
    return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}

"""What each variant is predicted to do, fixed before a run, and the rule that turns a measurement into a verdict.

A prediction comes from the variant's definition (degree of its readouts, placement of its loss) and from the paper,
never from the run that it judges; an earlier sweep had been seen when the thresholds were set (`claims.claim`). Between
two thresholds nothing is decided: the verdict is `inconclusive`. One prediction was changed after such a run, and its
line says so (LOG.md, 2026-11-21).

A line by construction follows from the readout's definition alone, trained or not: it tests that the code is what it
claims, and is no evidence for the paper.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from experiments.measure.state import StateMeasurement
from experiments.measure.validation import Validation
from experiments.variants import Variant
from models import ModelConfig
from models.readouts import build_readout

Verdict = Literal["supported", "not supported", "inconclusive", "no prediction"]
Side = Literal["above", "below"]

BLIND_FRACTION, VISIBLE_FRACTION = 1e-6, 1e-4  # the paper reports 1e-8 (float32 floor) against 1e-2
BLIND_CHANGE, VISIBLE_CHANGE = 1e-4, 1e-2  # nats a token
LARGE_NORM_REGIME = 0.1  # growth is predicted for a regime number below this, and wherever the paper predicts it
NEXT_NORM_SUPPORTED, NEXT_NORM_REFUTED = 0.2, 0.5  # error relative to the increment seen; "no growth" has error 1
PINNED, UNPINNED = 100.0, 200.0  # Euclidean; "norms in the tens" and clearly beyond them
SETTLED, UNSETTLED = 0.6, 0.85  # last increment over first; linear growth has about 1
EXITS_USABLE, EXITS_UNUSABLE = 0.5, 1.0  # nats lost by leaving after loop 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table predicted / observed / verdict; `basis` says what a verdict is worth."""

    quantity: str
    basis: Literal["by construction", "empirical"]
    predicted: str
    observed: str
    verdict: Verdict


def below_or_above(value: float, low: float, high: float, expect: Side) -> Verdict:
    """Verdict on "below low" or "above high"; what lies between decides nothing, nor does NaN."""
    if value < low:
        return "supported" if expect == "below" else "not supported"
    if value > high:
        return "supported" if expect == "above" else "not supported"
    return "inconclusive"


def table(variant: Variant, model: ModelConfig, validation: Validation, state: StateMeasurement) -> list[Row]:
    """All lines for one run."""
    return [
        *_final_norm(variant, validation),
        *_radial_fractions(model, state),
        *_rescaling(model, validation),
        *_next_norm(variant, state),
        *_exits(variant, model, validation),
    ]


def _final_norm(variant: Variant, validation: Validation) -> Iterator[Row]:
    norms = validation.l2_norm["mean"]
    predicted = "none made"
    verdict: Verdict = "no prediction"
    if variant.final_norm == "tens":
        predicted = f"last below {PINNED:g} (pinned)"
        verdict = below_or_above(norms[-1], PINNED, UNPINNED, "below")
    elif variant.final_norm == "grows":
        predicted = f"last above {UNPINNED:g} (not pinned)"
        verdict = below_or_above(norms[-1], PINNED, UNPINNED, "above")
    elif variant.final_norm == "settles":
        predicted = f"settles: last increment / first below {SETTLED:g} (made after seed 0 was seen)"
        ratio = (norms[-1] - norms[-2]) / (norms[1] - norms[0]) if len(norms) > 2 else math.nan
        verdict = below_or_above(abs(ratio), SETTLED, UNSETTLED, "below")
    yield Row(
        quantity="mean L2 norm after each loop",
        basis="empirical",
        predicted=predicted,
        observed=" -> ".join(f"{norm:.3g}" for norm in norms),
        verdict=verdict,
    )


def _radial_fractions(model: ModelConfig, state: StateMeasurement) -> Iterator[Row]:
    readout = build_readout(model)
    last = len(state.radial_gradient_fraction)
    for k, fraction in enumerate(state.radial_gradient_fraction, 1):
        blind = readout.degree(is_last=k == last) == 0
        value = math.nan if fraction is None else fraction
        yield Row(
            quantity=f"radial-gradient fraction, loop {k}",
            basis="by construction" if blind else "empirical",
            predicted=f"below {BLIND_FRACTION:g} (blind)" if blind else f"above {VISIBLE_FRACTION:g} (visible)",
            observed=f"{value:.2g}",
            verdict=below_or_above(value, BLIND_FRACTION, VISIBLE_FRACTION, "below" if blind else "above"),
        )


def _rescaling(model: ModelConfig, validation: Validation) -> Iterator[Row]:
    blind = build_readout(model).degree(is_last=True) == 0
    for factor, cross_entropy in validation.rescaled_cross_entropy.items():
        change = cross_entropy - validation.cross_entropy[-1]
        yield Row(
            quantity=f"change of cross-entropy, last state x {factor}",
            basis="by construction" if blind else "empirical",
            predicted=f"within {BLIND_CHANGE:g}" if blind else f"more than {VISIBLE_CHANGE:g}",
            observed=f"{change:+.2g} nats",
            verdict=below_or_above(abs(change), BLIND_CHANGE, VISIBLE_CHANGE, "below" if blind else "above"),
        )


def _next_norm(variant: Variant, state: StateMeasurement) -> Iterator[Row]:
    """Lemma 2 as a prediction: what the step does to 1e6 h_K tells |h_{K+1}|; the null is that it does not grow."""
    seen = state.next_l2_norm - state.l2_norm
    error = abs(state.next_l2_norm_predicted - state.next_l2_norm) / abs(seen) if seen else math.nan
    applies = variant.final_norm == "grows" or state.regime_number < LARGE_NORM_REGIME
    predicted = f"{state.next_l2_norm_predicted:.4g} (carry {state.carry:.2g}, increment {state.radial_increment:+.3g})"
    yield Row(
        quantity=f"L2 norm one loop further, from {state.l2_norm:.4g}",
        basis="empirical",
        predicted=predicted if applies else f"none: regime number {state.regime_number:.2g}",
        observed=f"{state.next_l2_norm:.4g}" + (f" ({error:.1%} of the increment off)" if applies else ""),
        verdict=below_or_above(error, NEXT_NORM_SUPPORTED, NEXT_NORM_REFUTED, "below") if applies else "no prediction",
    )


def _exits(variant: Variant, model: ModelConfig, validation: Validation) -> Iterator[Row]:
    first, last = validation.cross_entropy[0], validation.cross_entropy[-1]
    *earlier, _ = weights = variant.supervision.loop_weights(len(validation.cross_entropy))
    side: Side | None = "below" if all(weights) else None if any(earlier) else "above"
    bounds = {"below": f"below {EXITS_USABLE:g} nats", "above": f"above {EXITS_UNUSABLE:g} nats", None: "none made"}
    verdict: Verdict = "no prediction"
    learnt = last < math.log(model.vocab_size)  # of a model worse than guessing an early exit costs nothing
    if side is not None:
        verdict = below_or_above(first - last, EXITS_USABLE, EXITS_UNUSABLE, side) if learnt else "inconclusive"
    yield Row(
        quantity="cross-entropy lost by leaving after loop 1",
        basis="empirical",
        predicted=bounds[side],
        observed=f"{first - last:+.2g} nats ({first:.3f} against {last:.3f})"
        + ("" if learnt else ", worse than guessing"),
        verdict=verdict,
    )


def as_dicts(rows: list[Row]) -> list[dict[str, Any]]:
    return [vars(row) for row in rows]

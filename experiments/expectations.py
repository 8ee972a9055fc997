"""What each variant is predicted to do, fixed before a run, and the rule that turns a measurement into a verdict.

A prediction comes from the variant's definition (degree of its readouts, placement of its loss) and from the paper,
never from the run. Between two thresholds nothing is decided: the verdict is `inconclusive`.
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

BLIND_FRACTION, VISIBLE_FRACTION = 1e-6, 1e-4  # the paper reports 1e-8 (float32 floor) against 1e-2
BLIND_CHANGE, VISIBLE_CHANGE = 1e-4, 1e-2  # nats a token
LARGE_NORM_REGIME = 0.1  # growth is predicted for a regime number below this
NEXT_NORM_SUPPORTED, NEXT_NORM_REFUTED = 0.05, 0.20  # relative error
TENS = 100.0  # "norms in the tens"
SETTLED, UNSETTLED = 0.05, 0.20  # relative change of the norm in the last loop
EXITS_USABLE, EXITS_UNUSABLE = 0.5, 1.0  # nats lost by leaving after loop 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table predicted / observed / verdict."""

    quantity: str
    predicted: str
    observed: str
    verdict: Verdict


def below_or_above(value: float, low: float, high: float, expect: Literal["below", "above"]) -> Verdict:
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
        *_radial_fractions(variant, model, state),
        *_rescaling(model, validation),
        *_next_norm(state),
        *_exits(variant, validation),
    ]


def _final_norm(variant: Variant, validation: Validation) -> Iterator[Row]:
    norms = validation.l2_norm["mean"]
    observed = " -> ".join(f"{norm:.3g}" for norm in norms)
    quantity = "mean L2 norm after each loop"
    if variant.final_norm is None:
        yield Row(quantity=quantity, predicted="none made", observed=observed, verdict="no prediction")
        return
    if variant.final_norm == "settles":
        change = abs(norms[-1] / norms[-2] - 1.0) if len(norms) > 1 else math.nan
        yield Row(
            quantity=quantity,
            predicted=f"settles: last change below {SETTLED:.0%}",
            observed=observed,
            verdict=below_or_above(change, SETTLED, UNSETTLED, "below"),
        )
        return
    expect: Literal["below", "above"] = "below" if variant.final_norm == "tens" else "above"
    yield Row(
        quantity=quantity,
        predicted=f"last {expect} {TENS:g} ({'pinned' if expect == 'below' else 'not pinned'})",
        observed=observed,
        verdict=below_or_above(norms[-1], TENS, TENS, expect),
    )


def _radial_fractions(variant: Variant, model: ModelConfig, state: StateMeasurement) -> Iterator[Row]:
    readout = build_readout(model)
    last = len(state.radial_gradient_fraction)
    for k, fraction in enumerate(state.radial_gradient_fraction, 1):
        blind = readout.degree(is_last=k == last) == 0
        yield Row(
            quantity=f"radial-gradient fraction, loop {k}",
            predicted=f"below {BLIND_FRACTION:g} (blind)" if blind else f"above {VISIBLE_FRACTION:g} (visible)",
            observed=f"{fraction:.2g}",
            verdict=below_or_above(fraction, BLIND_FRACTION, VISIBLE_FRACTION, "below" if blind else "above"),
        )


def _rescaling(model: ModelConfig, validation: Validation) -> Iterator[Row]:
    blind = build_readout(model).degree(is_last=True) == 0
    for factor, cross_entropy in validation.rescaled_cross_entropy.items():
        change = cross_entropy - validation.cross_entropy[-1]
        yield Row(
            quantity=f"change of cross-entropy, last state x {factor}",
            predicted=f"within {BLIND_CHANGE:g}" if blind else f"more than {VISIBLE_CHANGE:g}",
            observed=f"{change:+.2g} nats",
            verdict=below_or_above(abs(change), BLIND_CHANGE, VISIBLE_CHANGE, "below" if blind else "above"),
        )


def _next_norm(state: StateMeasurement) -> Iterator[Row]:
    error = abs(state.next_l2_norm_predicted / state.next_l2_norm - 1.0)
    applies = state.regime_number < LARGE_NORM_REGIME
    observed = f"{state.next_l2_norm:.4g} ({error:.2%} off)"
    predicted = f"{state.next_l2_norm_predicted:.4g} (carry {state.carry:.2g}, increment {state.radial_increment:.3g})"
    yield Row(
        quantity="L2 norm one loop further",
        predicted=predicted
        if applies
        else f"none: regime number {state.regime_number:.2g}, not below {LARGE_NORM_REGIME:g}",
        observed=observed if applies else f"{state.next_l2_norm:.4g}",
        verdict=below_or_above(error, NEXT_NORM_SUPPORTED, NEXT_NORM_REFUTED, "below") if applies else "no prediction",
    )


def _exits(variant: Variant, validation: Validation) -> Iterator[Row]:
    first, last = validation.cross_entropy[0], validation.cross_entropy[-1]
    usable = variant.supervision.placement == "per_loop"
    yield Row(
        quantity="cross-entropy lost by leaving after loop 1",
        predicted=f"below {EXITS_USABLE:g}" if usable else f"above {EXITS_UNUSABLE:g} nats",
        observed=f"{first - last:+.2g} nats ({first:.3f} against {last:.3f})",
        verdict=below_or_above(first - last, EXITS_USABLE, EXITS_UNUSABLE, "below" if usable else "above"),
    )


def as_dicts(rows: list[Row]) -> list[dict[str, Any]]:
    return [vars(row) for row in rows]

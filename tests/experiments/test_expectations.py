"""Verdict rules on synthetic measurements whose answer is known, in both directions and in between."""

from dataclasses import replace

import pytest

from experiments.expectations import below_or_above, table
from experiments.measure.state import StateMeasurement
from experiments.measure.validation import Validation
from experiments.variants import VARIANTS
from models import PRESETS

VALIDATION = Validation(
    tokens=100,
    cross_entropy=[4.2, 4.1, 4.0, 4.0],
    l2_norm={name: [20.0, 60.0, 200.0, 600.0] for name in ("mean", "median", "p99", "max")},
    rescaled_cross_entropy={"0.5": 4.0, "2.0": 4.00001},
)
STATE = StateMeasurement(
    tokens=10,
    radial_gradient_fraction=[1e-11] * 4,
    tokens_without_gradient=[0] * 4,
    carry=1.0,
    regime_number=0.01,
    radial_increment=100.0,
    l2_norm=600.0,
    next_l2_norm_predicted=700.0,
    next_l2_norm=710.0,
)


NORM = "mean L2 norm after each loop"
NEXT = "L2 norm one loop further, from 600"
EXIT = "cross-entropy lost by leaving after loop 1"


def verdicts(name="scale_invariant", validation=VALIDATION, state=STATE, weights=None):
    variant = VARIANTS[name]
    if weights is not None:
        variant = replace(variant, supervision=replace(variant.supervision, weights=weights))
    rows = table(variant, variant.model_config(PRESETS["cpu"]), validation, state)
    return {row.quantity: row.verdict for row in rows}


def test_a_blind_growing_run_supports_every_prediction_for_scale_invariant():
    assert set(verdicts().values()) == {"supported"}


def test_the_same_run_refutes_the_predictions_for_scale_visible():
    found = verdicts("scale_visible")
    growth = {NEXT, EXIT}  # made of every variant alike
    assert {found.pop(quantity) for quantity in growth} == {"supported"}
    assert set(found.values()) == {"not supported"}


@pytest.mark.parametrize(
    ("variant", "last", "verdict"),
    [
        ("scale_invariant", 201.0, "supported"),
        ("scale_invariant", 150.0, "inconclusive"),
        ("scale_invariant", 99.0, "not supported"),
        ("scale_visible", 99.0, "supported"),
        ("scale_visible", 150.0, "inconclusive"),
        ("scale_visible", 201.0, "not supported"),
        ("untied_scale_invariant", 1e6, "no prediction"),
        ("scale_visible", float("nan"), "inconclusive"),
    ],
)
def test_final_norm(variant, last, verdict):
    assert verdicts(variant, replace(VALIDATION, l2_norm={"mean": [10.0, 10.0, 10.0, last]}))[NORM] == verdict


@pytest.mark.parametrize(
    ("norms", "verdict"),
    [
        ([300.0, 376.0, 376.0, 377.0], "supported"),
        ([300.0, 376.0, 425.0, 480.0], "inconclusive"),
        ([300.0, 400.0, 500.0, 600.0], "not supported"),
        ([56.4, 56.9, 57.4, 57.9], "not supported"),  # slow, but linear
        ([300.0], "inconclusive"),
    ],
)
def test_a_norm_between_loops_is_predicted_to_settle(norms, verdict):
    assert verdicts("scale_removing", replace(VALIDATION, l2_norm={"mean": norms}))[NORM] == verdict


def test_a_final_norm_readout_is_blind_at_its_last_loop_only():
    state = replace(STATE, radial_gradient_fraction=[1e-2, 1e-2, 1e-2, 1e-11])
    found = verdicts("final_norm", state=state)
    assert {found[f"radial-gradient fraction, loop {k}"] for k in (1, 2, 3, 4)} == {"supported"}
    wrong = verdicts("final_norm", state=replace(STATE, radial_gradient_fraction=[1e-2] * 4))
    assert wrong["radial-gradient fraction, loop 4"] == "not supported"


def test_growth_is_predicted_in_the_large_norm_regime_and_wherever_the_paper_predicts_it():
    outside = replace(STATE, regime_number=2.0)
    assert verdicts("norm_penalty", state=outside)[NEXT] == "no prediction"
    assert verdicts("scale_invariant", state=outside)[NEXT] == "supported"


def test_predicting_no_growth_would_be_refuted():
    assert verdicts(state=replace(STATE, next_l2_norm_predicted=600.0))[NEXT] == "not supported"


def test_without_any_gradient_nothing_is_decided():
    state = replace(STATE, radial_gradient_fraction=[None] * 4)
    assert verdicts(state=state)["radial-gradient fraction, loop 1"] == "inconclusive"


def test_a_loss_that_falls_counts_as_a_change():
    validation = replace(VALIDATION, rescaled_cross_entropy={"0.5": 3.0, "2.0": 4.0})
    quantity = "change of cross-entropy, last state x 0.5"
    assert verdicts("scale_invariant", validation)[quantity] == "not supported"
    assert verdicts("scale_visible", validation)[quantity] == "supported"


def test_what_holds_by_construction_is_marked():
    variant = VARIANTS["final_norm"]
    rows = table(variant, variant.model_config(PRESETS["cpu"]), VALIDATION, STATE)
    marked = {row.quantity for row in rows if row.basis == "by construction"}
    changes = {f"change of cross-entropy, last state x {factor}" for factor in (0.5, 2.0)}
    assert marked == {"radial-gradient fraction, loop 4"} | changes


@pytest.mark.parametrize(
    ("observed", "verdict"), [(715.0, "supported"), (750.0, "inconclusive"), (1500.0, "not supported")]
)
def test_next_norm(observed, verdict):
    assert verdicts(state=replace(STATE, next_l2_norm=observed))[NEXT] == verdict


@pytest.mark.parametrize(
    ("first", "per_loop", "terminal"),
    [(4.1, "supported", "not supported"), (9.0, "not supported", "supported"), (4.7, "inconclusive", "inconclusive")],
)
def test_early_exits(first, per_loop, terminal):
    validation = replace(VALIDATION, cross_entropy=[first, 4.0, 4.0, 4.0])
    assert verdicts("scale_invariant", validation)[EXIT] == per_loop
    assert verdicts("terminal_scale_invariant", validation)[EXIT] == terminal


@pytest.mark.parametrize(
    ("weights", "verdict"),
    [
        ((0.0, 0.0, 0.0, 1.0), "supported"),
        ((0.4, 0.3, 0.2, 0.1), "not supported"),
        ((1.0, 0.0, 0.0, 0.0), "no prediction"),
        ((0.0, 0.5, 0.5, 0.5), "no prediction"),
    ],
)
def test_early_exits_are_predicted_by_where_the_loss_was(weights, verdict):
    validation = replace(VALIDATION, cross_entropy=[9.0, 4.0, 4.0, 4.0])
    assert verdicts("scale_invariant", validation, weights=weights)[EXIT] == verdict


def test_between_the_thresholds_nothing_is_decided():
    assert below_or_above(0.5, 0.1, 1.0, "below") == below_or_above(0.5, 0.1, 1.0, "above") == "inconclusive"

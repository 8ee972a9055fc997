"""Tables read off the one pass: loops 1..2K, and the last state rescaled."""

import math

import numpy as np
import pytest

from experiments.measure import loops, scale_sensitivity
from experiments.measure.validation import validate


def test_the_loops_up_to_k_are_those_of_validation(make_context):
    context = make_context("final_norm")
    table = loops.measure(context)["loops"]
    assert table["k"].tolist() == list(range(1, 9))
    expected = validate(context.model, context.windows, num_loops=4, batch_size=16)
    assert table["cross_entropy"][:4].tolist() == pytest.approx(expected.cross_entropy)
    assert table["perplexity"].tolist() == pytest.approx([math.exp(value) for value in table["cross_entropy"]])
    for name, values in expected.l2_norm.items():
        assert table[f"l2_norm_{name}"][:4].tolist() == pytest.approx(values)


def test_a_known_growth_is_seen_beyond_k(make_context, planted):
    """Norm 7 + 3 k for every token, so mean, median, p99 and maximum agree."""
    table = loops.measure(make_context(model=planted(lambda h: h + 3.0 * h / h.norm(dim=-1, keepdim=True))))["loops"]
    for name in ("mean", "median", "p99", "max"):
        assert table[f"l2_norm_{name}"].tolist() == pytest.approx([7.0 + 3.0 * k for k in range(1, 9)])
    assert np.ptp(table["cross_entropy"]) < 1e-5  # the direction stays, and the readout sees nothing else


@pytest.mark.parametrize(
    ("variant", "blind"),
    [("scale_invariant", True), ("layernorm", True), ("final_norm", True), ("scale_visible", False)],
)
def test_only_a_raw_readout_notices_the_scale(variant, blind, make_context):
    table = scale_sensitivity.measure(make_context(variant))["scale_sensitivity"]
    assert (table["factor"].iloc[0], table["factor"].iloc[-1]) == (pytest.approx(0.1), pytest.approx(10.0))
    assert np.diff(np.log(table["factor"])) == pytest.approx(math.log(10) / 5)
    assert table.loc[table["factor"] == 1.0, "change"].tolist() == [0.0]
    others = table[table["factor"] != 1.0]
    leak = 1e-4 / others["factor"].clip(upper=1.0) ** 2  # epsilon's, the larger the smaller the state
    assert (others["change"].abs() < leak).all() if blind else (others["change"].abs() > 10 * leak.max()).all()


def test_a_raw_readouts_cross_entropy_is_convex_in_the_factor(make_context):
    table = scale_sensitivity.measure(make_context("scale_visible"))["scale_sensitivity"]
    slopes = np.diff(table["cross_entropy"]) / np.diff(table["factor"])
    assert (np.diff(slopes) > 0.0).all()


def test_factor_1_is_the_loss_after_k_loops(make_context):
    context = make_context("scale_visible")
    table = scale_sensitivity.measure(context)["scale_sensitivity"]
    assert table.loc[table["factor"] == 1.0, "cross_entropy"].item() == pytest.approx(
        loops.measure(context)["loops"]["cross_entropy"][3], rel=1e-6
    )

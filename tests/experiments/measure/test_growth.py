"""Growth of recurrences whose future is known, and predictors that must fail where their hypotheses do."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from experiments.measure.growth import growth, growth_exponent, limiting_direction, measure
from experiments.measure.predictors import predictors
from experiments.measure.slopes import log_log_slope
from loopsight.protocol import unroll

LOOPS = 4


class Sublayer(nn.Module):
    def __init__(self, move):
        super().__init__()
        self.forward = move


@pytest.fixture
def grow(planted):
    """Both tables of a planted step, and its states h_0..h_64."""

    def make(move):
        model = planted(move).double()
        model.sublayers = nn.ModuleList([Sublayer(move)])
        with torch.no_grad():
            states = unroll(model.step, model.embed(torch.arange(12).view(2, 6)), 64)
            limit = limiting_direction(model, states[LOOPS])
            table = growth(predictors(model, limit), states, LOOPS)
            exponents = growth_exponent(model, limit, states, LOOPS).set_index("quantity")
        return table, exponents, states

    return make


def last(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["k"] == 64].set_index("method")


def direction(h):
    return h / h.norm(dim=-1, keepdim=True)


def test_a_constant_radial_increment_is_predicted_by_all_but_the_diffusive(grow):
    table, exponents, _ = grow(lambda h: h + 3.0 * direction(h))
    at_end = last(table)
    exact = at_end.drop("diffusive")
    assert exact["l2_norm_predicted"].tolist() == pytest.approx([7.0 + 3.0 * 64] * len(exact), rel=1e-6)
    assert (exact["l2_norm_seen"] == at_end["l2_norm_seen"].iloc[0]).all()
    assert (exact["high"] - exact["low"] < 1e-3).all()
    assert at_end.loc["diffusive", "l2_norm_predicted"] == pytest.approx((19.0**2 + 60 * 9.0) ** 0.5)
    assert exponents.loc["coherent_share", "estimate"] > 0.95
    assert exponents.loc[["carry", "slope_predicted", "slope_seen", "slope_asymptotic"], "estimate"].tolist() == (
        pytest.approx([1.0, 3.0, 3.0, 3.0], rel=1e-6)
    )
    assert exponents.loc["direction_converged", "estimate"] == 1.0
    assert sorted(set(table["k"])) == list(range(LOOPS + 1, 65))


def test_an_increment_that_depends_on_the_norm_is_not_predicted(grow):
    table, _, _ = grow(lambda h: h + 3.0 * direction(h) * (1 + 100.0 / h.norm(dim=-1, keepdim=True)))
    at_end = last(table)
    error = (at_end["l2_norm_predicted"] / at_end["l2_norm_seen"] - 1).abs()
    assert (error > 0.05).all()


def test_an_attracting_direction_gives_slope_and_power_law(grow):
    """b(u) = (3, 1, 1, ...) u: the direction tends to the first axis, as k^(1/3 - 1)."""
    scales = torch.ones(32, dtype=torch.float64)
    scales[0] = 3.0
    table, exponents, _ = grow(lambda h: h + direction(h) * scales)
    at_end = last(table)
    error = (at_end["l2_norm_predicted"] / at_end["l2_norm_seen"] - 1).abs()
    assert exponents.loc["slope_asymptotic", "estimate"] == pytest.approx(3.0, rel=1e-3)
    assert error["direction_flow"] < 1e-2 and error["power_law"] < 0.1
    assert error["constant_increment"] > 10 * error["direction_flow"]
    assert at_end.loc["asymptotic_slope", "l2_norm_predicted"] > 1.1 * at_end.loc["asymptotic_slope", "l2_norm_seen"]


def test_a_rotating_displacement_has_no_limit(grow):
    turn = torch.block_diag(*[torch.tensor([[1.0, -2.0], [2.0, 1.0]], dtype=torch.float64)] * 16)
    table, exponents, _ = grow(lambda h: h + direction(h) @ turn.T)
    assert exponents.loc["direction_converged", "estimate"] == 0.0
    assert last(table).loc[["asymptotic_slope", "power_law"], "l2_norm_predicted"].isna().all()
    at_end = last(table).loc["direction_flow"]
    assert at_end["l2_norm_predicted"] == pytest.approx(at_end["l2_norm_seen"], rel=1e-6)


def test_exponents_of_ballistic_and_diffusive_growth(planted):
    model = planted(lambda h: h + 3.0 * direction(h)).double()
    unit = direction(torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    ballistic = [(k + 1e-9) * unit for k in range(65)]
    generator = torch.Generator().manual_seed(1)
    steps = torch.randn(65, 4, 64, 32, generator=generator, dtype=torch.float64)
    diffusive = list(steps.cumsum(0))
    with torch.no_grad():
        for states, expected, tolerance in ((ballistic, 1.0, 1e-6), (diffusive, 0.5, 0.05)):
            limit = limiting_direction(model, states[LOOPS])
            found = growth_exponent(model, limit, states, LOOPS).set_index("quantity")
            for quantity in ("exponent", "exponent_late"):
                row = found.loc[quantity]
                assert row["estimate"] == pytest.approx(expected, abs=tolerance)
                assert row["low"] <= row["estimate"] <= row["high"]
            coherent = found.loc["coherent_share", "estimate"]
            assert (coherent > 0.8) if expected == 1.0 else abs(coherent) < 0.2


@pytest.fixture
def exponents_of(planted):
    """The table of states of the given lengths, h_0 to h_64, in one direction."""

    def make(lengths):
        model = planted(lambda h: h + 3.0 * direction(h)).double()
        unit = direction(torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
        states = [length * unit for length in lengths]
        with torch.no_grad():
            limit = limiting_direction(model, states[LOOPS])
            return growth_exponent(model, limit, states, LOOPS).set_index("quantity")["estimate"]

    return make


@pytest.mark.parametrize("y", [[0.0, 1.0], [1.0, -1.0]])
def test_what_has_no_logarithm_has_no_slope(y):
    assert np.isnan(log_log_slope([1.0, 2.0], y))
    assert log_log_slope([1.0, 2.0], [3.0, 12.0]) == pytest.approx(2.0)


def test_exponents_are_fitted_from_loop_5_and_from_loop_33_on(exponents_of):
    lengths = np.random.default_rng(0).uniform(1.0, 9.0, 65)
    found = exponents_of(lengths.tolist())
    for quantity, first in (("exponent", 5), ("exponent_late", 33)):
        slope, _ = np.polyfit(np.log(np.arange(first, 65)), np.log(lengths[first:]), 1)
        assert found[quantity] == pytest.approx(slope)


@pytest.mark.parametrize(("last", "share"), [(2.0, 2 / 3), (4.0, 6 / 15)])
def test_one_step_along_the_state_is_coherent_but_for_its_own_square(last, share, exponents_of):
    """From 1 to 2, 2 s a = 2 of the 3 gained by the square; from 1 to 4, 6 of 15. What comes before h_K is no part."""
    found = exponents_of([9.0] * LOOPS + [1.0] * 30 + [last] * (65 - LOOPS - 30))
    assert found["coherent_share"] == pytest.approx(share)


def test_where_the_norm_has_shrunk_there_is_no_growth_to_share(exponents_of):
    assert np.isnan(exponents_of([2.0] * 32 + [1.0] * 33)["coherent_share"])


def test_the_band_is_the_error_made_within_the_trained_loops(planted):
    """A step that adds 3 at first and 4 from the third loop on, and a method that believes in 3."""
    model = planted(lambda h: h).double()
    u = direction(model.embed(torch.arange(4).view(2, 2)).detach())
    lengths = [10.0, 13.0, 16.0, 20.0, 24.0, *(24.0 + 4.0 * n for n in range(1, 61))]
    states = [length * u for length in lengths]

    def threes(h):
        s = h.norm(dim=-1)
        while True:
            s = s + 3.0
            yield s

    table = growth({"threes": threes}, states, LOOPS)
    at_end = table.iloc[-1]
    assert at_end["l2_norm_predicted"] == pytest.approx(24.0 + 3.0 * 60)
    assert (at_end["low"], at_end["high"]) == pytest.approx((204.0 - 60.0, 204.0 + 60.0))
    assert at_end["l2_norm_seen"] == pytest.approx(264.0)


def test_methods_that_need_a_plain_stack_are_absent_behind_an_operation_between_loops(make_context):
    tables = {variant: measure(make_context(variant)) for variant in ("scale_invariant", "scale_removing")}
    methods = {variant: set(found["growth"]["method"]) for variant, found in tables.items()}
    assert methods["scale_invariant"] - methods["scale_removing"] == {
        "power_law",
        "second_order",
        "direction_flow_second_order",
    }
    removed = tables["scale_removing"]["growth_exponent"].set_index("quantity")
    assert removed.loc["carry", "estimate"] == pytest.approx(0.0, abs=1e-6)
    assert abs(removed.loc["exponent_late", "estimate"]) < 0.05


@pytest.fixture
def pair(planted):
    """A model of two sublayers that read each other, their displacements b_1 and b_2, and its states h_0..h_8."""
    generator = torch.Generator().manual_seed(0)
    written = [
        lambda h, matrix=matrix: 3.0 * torch.relu(direction(h) @ matrix) @ matrix.T
        for matrix in torch.randn(2, 32, 32, generator=generator, dtype=torch.float64) / 32**0.5
    ]
    sublayers = [Sublayer(lambda h, b=b: h + b(h)) for b in written]
    model = planted(lambda h: sublayers[1](sublayers[0](h))).double()
    model.sublayers = nn.ModuleList(sublayers)
    with torch.no_grad():
        return model, written, unroll(model.step, model.embed(torch.arange(12).view(2, 6)), 8)


def test_the_flow_of_second_order_is_much_nearer_than_that_of_first(pair):
    model, _, states = pair
    with torch.no_grad():
        methods = predictors(model, limiting_direction(model, states[LOOPS]))
        methods = {name: methods[name] for name in ("direction_flow", "direction_flow_second_order")}
        table = growth(methods, states, LOOPS)
    at_end = table[table["k"] == 8].set_index("method")
    error = (at_end["l2_norm_predicted"] / at_end["l2_norm_seen"] - 1).abs()
    assert 5 * error["direction_flow_second_order"] < error["direction_flow"]


def test_the_second_order_of_an_increment_falls_with_the_norm(pair):
    model, (b1, b2), (h, *_) = pair
    with torch.no_grad():
        norms = predictors(model, limiting_direction(model, h))["second_order"](h)
        found = [next(norms) for _ in range(3)]
        felt = (b2(h + 1e-4 * b1(h)) - b2(h - 1e-4 * b1(h))) / 2e-4
        b, s = b1(h) + b2(h), h.norm(dim=-1)
        first, interaction = ((direction(h) * part).sum(-1) for part in (b, felt))
        kappa = s * interaction + (b.square().sum(-1) - first.square()) / 2.0
    assert (s * interaction).abs().min() > 1e-2
    for norm in found:
        s = s + first + kappa / s
        torch.testing.assert_close(norm, s, rtol=1e-5, atol=0.0)


def test_a_random_stack_is_predicted_better_with_its_second_order(make_context):
    table = measure(make_context())["growth"]
    at_end = table[table["k"] == 64].set_index("method")
    error = (at_end["l2_norm_predicted"] / at_end["l2_norm_seen"] - 1).abs()
    assert error["direction_flow_second_order"] < 0.1 < error["diffusive"]


def test_what_a_loop_loses_of_the_norm_is_in_the_predicted_slope(planted):
    model = planted(lambda h: 0.9 * h + 3.0 * direction(h)).double()
    with torch.no_grad():
        states = unroll(model.step, model.embed(torch.arange(12).view(2, 6)), 64)
        found = growth_exponent(model, limiting_direction(model, states[LOOPS]), states, LOOPS).set_index("quantity")
    norms = [h.norm(dim=-1).mean().item() for h in states]
    assert found.loc["slope_predicted", "estimate"] == pytest.approx(norms[LOOPS + 1] - norms[LOOPS], rel=1e-6)
    assert found.loc["carry", "estimate"] == pytest.approx(0.9, rel=1e-6)


def test_the_band_is_of_hindcasts_from_loop_1_on():
    """From h_0, which no loop has made, the method is far off."""

    def one_a_loop(h):
        norms = h.norm(dim=-1)
        while True:
            norms = norms + 1.0
            yield norms

    unit = direction(torch.ones(2, 3, 8, dtype=torch.float64))
    states = [50.0 * unit, *(k * unit for k in range(1, 9))]
    table = growth({"one a loop": one_a_loop}, states, LOOPS)
    assert (table["high"] - table["low"]).tolist() == pytest.approx([0.0] * 4)
    late = [50.0 * unit, 10.0 * unit, *(k * unit for k in range(2, 9))]
    table = growth({"one a loop": one_a_loop}, late, LOOPS)
    assert (table["high"] - table["low"]).tolist() == pytest.approx([2 * loops * 3.0 for loops in range(1, 5)])

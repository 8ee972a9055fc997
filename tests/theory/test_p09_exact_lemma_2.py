"""P9's traps, and wrong formulas that must be rejected."""

import math
from dataclasses import replace

import pytest
import sympy as sp
import torch

from loopsight.growth import regime_number
from loopsight.increments import increment, loop_growth, second_order_step
from theory import far_out
from theory.cases import Case
from theory.proposition import Proof, ProofError
from theory.propositions import p09_exact_lemma_2 as p09
from theory.propositions import p10_growth_across_loops as p10
from theory.propositions import p17_rescaling_and_precision as p17


def only_the_previous_branch(branches, phi):
    tangent = sp.Matrix([-sp.sin(phi), sp.cos(phi)])
    pairs = zip(branches[:-1], branches[1:], strict=True)
    return sum((after.diff(phi) * before.dot(tangent) for before, after in pairs), sp.zeros(2, 1))


def with_its_own_branch(branches, phi):
    tangent, before, result = sp.Matrix([-sp.sin(phi), sp.cos(phi)]), sp.zeros(2, 1), sp.zeros(2, 1)
    for b in branches:
        before += b
        result += b.diff(phi) * before.dot(tangent)
    return result


@pytest.mark.parametrize(
    ("name", "mutant", "part"),
    [
        ("next_norm", lambda: sp.sqrt((p09.S + p09.A) ** 2 + p09.BETA**2 / 2), "polar_form"),
        ("next_norm", lambda: p09.S + p09.A, "polar_form"),
        ("second_order", lambda: p09.BETA**2 / 2, "second_order"),  # the lemma's own, for one sublayer
        ("second_order", lambda: p09.BETA**2 + sp.Symbol("c_u", real=True), "second_order"),
        ("accumulated", only_the_previous_branch, "second_order"),
        ("accumulated", with_its_own_branch, "second_order"),
    ],
)
def test_wrong_formulas_are_rejected(monkeypatch, name, mutant, part):
    """That the right ones are not is seen where every proposition is proved."""
    monkeypatch.setattr(p09, name, mutant)
    with pytest.raises(ProofError, match="the difference is"):
        getattr(p09, f"_prove_{part}")(Proof())


def test_the_check_notices_wrong_corrections_and_bounds(monkeypatch):
    case = Case(seed=4, d=12, tokens=3)
    assert p09.check(case).holds
    right = p09.correction

    def projected_on_the_wrong_side(sublayers, u, relative, w):
        return right(sublayers, u, relative, w - (w * u).sum(-1, keepdim=True) * u)

    def with_one_scale_for_all_tokens(sublayers, u, relative, w):
        return right(sublayers, u, torch.ones_like(relative), w / relative)

    spread = replace(case, spread=10.0)
    for mutant in (projected_on_the_wrong_side, with_one_scale_for_all_tokens):
        with monkeypatch.context() as patch:
            patch.setattr(p09, "correction", mutant)
            assert p09.check(spread).value > 1e-4
    with monkeypatch.context() as patch:
        patch.setattr(p09, "increment", lambda h, after: increment(after, h))
        assert p09.check(case).value > 1e-4


@pytest.mark.parametrize("proposition", [p09, p10, p17], ids=["P9", "P10", "P17"])
def test_the_check_notices_a_hundredth_of_b_where_states_are_a_billion_times_larger(monkeypatch, proposition):
    """Rounding is measured against the state: what the branch adds is a billionth of it."""
    right, case = proposition.sublayers_and_states, Case(seed=4, d=12, tokens=3, scale=1e6, spread=1e3)

    def grown(case):
        """Branches that answer to the largest state by a hundredth."""
        sublayers, h = right(case)
        more = [lambda x, f=f: x + (f(x) - x) * (1.0 + 0.01 * (x.norm(dim=-1, keepdim=True) > 1e9)) for f in sublayers]
        return more, h

    assert proposition.check(case).holds
    monkeypatch.setattr(proposition, "sublayers_and_states", grown)
    assert not proposition.check(case).holds
    assert proposition.check(case).value < 1e-10


def test_the_norm_of_a_state_that_is_turned_by_a_right_angle_does_not_grow_by_a():
    """a = -s and beta = s: the squared norm is (s + a)^2 + beta^2, which is s^2."""
    h, after = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([[-4.0, 3.0]]).double()
    step = increment(h, after)
    assert step.radial_part.item() == -5.0 and step.next_l2_norm.item() == pytest.approx(5.0, rel=1e-15)
    assert p09._polar(h, after) < 1e-15


def test_the_check_notices_wrong_sums_over_loops_and_wrong_sides_of_the_sandwich(monkeypatch):
    case = Case(seed=4, d=12, tokens=3)
    for wrong in (
        lambda growth: {"coherent": growth.coherent / 2.0},
        lambda growth: {"incoherent": growth.incoherent * 2.0},
        lambda growth: {"incoherent": 0.0 * growth.incoherent},
        lambda growth: {"lower": growth.upper},
        lambda growth: {"upper": growth.lower},
    ):

        def mutant(states, wrong=wrong):
            growth = loop_growth(states)
            return replace(growth, **wrong(growth))

        with monkeypatch.context() as patch:
            patch.setattr(p09, "loop_growth", mutant)
            assert p09.check(case).value > 1e-4


@pytest.fixture(scope="module")
def laboratory():
    """Four sublayers (attention and MLP, twice) and tokens at directions."""
    sublayers, h = p09.sublayers_and_states(Case(seed=4, d=12, tokens=3))
    assert len(sublayers) == 4
    return sublayers, p09.directions(h)


def loop(sublayers, h):
    return far_out.scaled_loop(sublayers, h, torch.ones((), dtype=h.dtype))


def test_the_norm_increment_is_a_tautology_and_constancy_of_b_is_not(laboratory):
    """s' - s = <u, b> + O(1/s) holds for a linear map; that b(c u) = b(u) does not."""
    sublayers, u = laboratory
    linear = p09.linear_sublayers(Case(seed=4, d=12))[0]
    small = increment(u, u + 1e-3 * (linear(u) - u))  # a state a thousand times larger than its displacement
    assert ((small.next_l2_norm - small.l2_norm - small.radial_part) / small.radial_part).abs().max() < 0.1
    assert p09._constancy(linear, 10.0 * u) > 0.1
    assert p09._constancy(sublayers[0], 10.0 * u) < 1e-13
    assert regime_number(lambda x: loop(sublayers, x), 1e3 * u, 10.0).max() < 0.1
    assert regime_number(linear, u, 10.0).min() == pytest.approx(9.0)


def test_both_parts_of_the_check_that_need_normalised_branches_fail_without(laboratory):
    linear = p09.linear_sublayers(Case(seed=4, d=12))
    h = 3.0 * laboratory[1]
    assert p09._constancy(linear[0], h) > 1e-2
    assert p09._second_order(linear, h) > 1e-2
    assert p09._polar(h, linear[0](h)) < 1e-14 and p09._loops(linear, h) < 1e-14


def test_bounds_are_checked_on_steps_that_turn_back_too():
    """Where s + a < 0 the bounds are void: the mirrored step has the same beta and a positive s + a."""
    case = Case(seed=3, d=12, tokens=6, scale=1e-3)
    sublayers, h = p09.sublayers_and_states(case)
    after = p09.sequence(sublayers)(h)
    mirrored = p09.forward(h, after)
    before, now = p09.increment(h, after), p09.increment(h, mirrored)
    turned = before.carried.isnan()
    assert turned.any() and not now.carried.isnan().any()
    torch.testing.assert_close(now.perpendicular_part, before.perpendicular_part)
    torch.testing.assert_close(mirrored[~turned], after[~turned])
    assert math.isnan(p09._bounds(h, after)) and p09._bounds(h, mirrored) < 1e-12
    assert p09.check(case).holds


def errors(sublayers, u, scales, predicted):
    """Largest error of the predicted norm gained, at every scale."""
    return [(predicted(s * u) - loop(sublayers, s * u).norm(dim=-1) + s * u.norm(dim=-1)).abs().max() for s in scales]


@pytest.mark.parametrize("spread", [(1.0, 1.0, 1.0), (1.0, 3.0, 5.0)])
def test_several_sublayers_need_the_term_with_c(laboratory, spread):
    """Error of order 1/s^2 with <u, c>, of order 1/s with beta^2 / 2s alone."""
    sublayers, u = laboratory
    u = u * torch.tensor(spread).double()[:, None]

    def full(h):
        return second_order_step(sublayers, h).radial_increment(h)

    def without(h):
        step = second_order_step(sublayers, h)
        return step.radial_increment(h) - (step.correction * h).sum(-1) / h.norm(dim=-1)

    scales = (1e2, 1e3, 1e4)
    second, first = errors(sublayers, u, scales, full), errors(sublayers, u, scales, without)
    for falls, factor in ((second, 100), (first, 10)):
        assert (falls[0] / falls[1]).item() == pytest.approx(factor, rel=0.3)
        assert (falls[1] / falls[2]).item() == pytest.approx(factor, rel=0.3)


def test_the_single_sublayer_bound_is_violated_by_several(laboratory):
    """0 <= |F| - (s + a) <= beta^2 / 2(s + a) with the summed branches instead of the step's own b."""
    sublayers, u = laboratory
    for scale in (1e2, 1e3, 1e4):
        h = scale * u
        bbar = second_order_step(sublayers, h).displacement
        low, high = increment(h, h + bbar).excess_bounds
        excess = loop(sublayers, h).norm(dim=-1) - increment(h, h + bbar).carried
        assert ((excess < low) | (excess > high)).any()
        own = increment(h, loop(sublayers, h))
        assert p09._polar(h, loop(sublayers, h)) < 1e-14 and own.carried.isfinite().all()


def test_directions_turn_back_where_s_plus_a_is_negative(laboratory):
    _, u = laboratory
    step = increment(u, u - 3.0 * u + 0.1)
    assert step.carried.isnan().all() and (step.angle > 1.5).all()
    torch.testing.assert_close(step.next_l2_norm, (0.1 - 2.0 * u).norm(dim=-1))


def test_at_small_norms_the_regime_number_says_so(laboratory):
    sublayers, u = laboratory
    number = [regime_number(lambda x: loop(sublayers, x), scale * u).max() for scale in (1.0, 1e4)]
    assert number[0] > 0.1 and number[1] < 1e-3

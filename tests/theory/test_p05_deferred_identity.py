"""P5's traps and laws at finite scale, and wrong formulas in P5's place."""

import dataclasses

import pytest
import sympy as sp
import torch
import torch.nn.functional as F

from loopsight.derivatives import directional_derivative
from theory.cases import Case
from theory.far_out import linear_sublayers
from theory.proposition import ProofError
from theory.propositions import p05_deferred_identity as p05
from theory.random_model import Architecture, RandomModel, random_model
from theory.symbols import h, j

CASE = Case(seed=2, d=12, vocab=9, tokens=4)


def model(**changes) -> RandomModel:
    return random_model(dataclasses.replace(Architecture(seed=5, batch=1, tokens=4, loops=4), **changes))


def test_a_branch_that_answers_to_the_scale_is_rejected(monkeypatch):
    monkeypatch.setattr(p05, "jacobian_times_state", lambda: h[j])
    with pytest.raises(ProofError, match="norm"):
        p05.prove()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda weights: sum(weights, sp.Integer(0)),
        lambda weights: sum((number * w for number, w in enumerate(weights)), sp.Integer(0)),
        lambda weights: len(weights) * weights[-1],
    ],
    ids=["every loop once", "counted from zero", "the last loop only"],
)
def test_wrong_coefficients_are_rejected(monkeypatch, wrong):
    monkeypatch.setattr(p05, "coefficient", wrong)
    with pytest.raises(ProofError, match="three loops exactly"):
        p05.prove()


def test_the_check_detects_an_epsilon_and_a_wrong_gain(monkeypatch):
    assert p05.identity_residual(**p05.identity_terms(CASE, model())) < 1e-14
    assert p05.identity_residual(**p05.identity_terms(CASE, model(eps=1e-2))) > 1e-6
    damped = model(between="damping")
    assert p05.identity_residual(**p05.identity_terms(CASE, damped)) < 1e-14
    exact = p05.residual_steps
    monkeypatch.setattr(p05, "residual_steps", lambda model: [(step, 1.0) for step, _ in exact(model)])
    assert p05.identity_residual(**p05.identity_terms(CASE, damped)) > 1e-3


def test_trap_where_loops_cancel_their_rounding_does_not():
    """Loop weights of either sign left a thousandth of a gradient, and all of its rounding."""
    assert p05.check(Case(seed=310, d=3, vocab=2, tokens=1, scale=1e5, loss="squared")).holds


def test_trap_a_whole_loop_is_no_residual_step():
    """One gradient per loop instead of one per residual step: wrong by more than the thing itself, sign included."""
    errors, signs = [], 0
    for seed in range(8):
        terms = p05.identity_terms(CASE, model(seed=seed))
        states, gradients = (terms[name][::4] for name in ("states", "gradients"))
        true = (gradients[0] * states[0]).sum()
        naive = -(gradients[1:] * states.diff(dim=0)).sum()
        errors.append(((naive - true) / true).abs())
        signs += bool(true * naive < 0)
    assert max(errors) > 1 and signs > 0


def test_trap_only_a_tokens_scale_is_separable_and_not_its_direction():
    """D sublayer moves other tokens when one token moves in a random direction, and not when it moves along itself."""
    m = model()
    attention, states = m.sublayers()[0], m.embed()
    first = torch.zeros_like(states)
    first[:, 0] = states[:, 0]
    along = directional_derivative(attention, states, first)[1]
    torch.testing.assert_close(along, first, rtol=0, atol=1e-13)
    first[:, 0] = torch.randn(states.shape[-1], dtype=states.dtype, generator=CASE.generator())
    moved = directional_derivative(attention, states, first)[1]
    assert moved[:, 1:].abs().max() > 1e-2


def slope(m: RandomModel, weights: tuple[float, ...], scale: float) -> float:
    """dL / dlog s of the joint scale of h_0."""
    states = scale * F.normalize(m.embed(), dim=-1)
    step, readout = m.step(), m.readout()

    def loss(log_factor: torch.Tensor) -> torch.Tensor:
        y, value = log_factor.exp() * states, log_factor.new_zeros(())
        for weight in weights:
            y = step(y)
            value = value + weight * m.cross_entropy(readout(y))
        return value

    return torch.func.grad(loss)(torch.zeros((), dtype=torch.float64)).item()


def limit(m: RandomModel, weights: tuple[float, ...]) -> float:
    direction, readout = F.normalize(m.embed(), dim=-1), m.readout()
    displacement = sum(sublayer(direction) - direction for sublayer in m.sublayers())
    gradient = torch.func.grad(lambda h: m.cross_entropy(readout(h)))(direction)
    return -sum(k * w for k, w in enumerate(weights, 1)) * (gradient * displacement).sum().item()


WEIGHTS = {
    "terminal": (0.0, 0.0, 0.0, 1.0),
    "dense": (0.25, 0.25, 0.25, 0.25),
    "first": (1.0, 0.0, 0.0, 0.0),
    "signed": (0.7, -0.4, 0.3, 0.9),
}


@pytest.mark.parametrize("placement", WEIGHTS)
def test_the_coefficient_law_is_reached_as_one_over_the_scale(placement):
    m, weights = model(), WEIGHTS[placement]
    errors = [abs(scale * slope(m, weights, scale) / limit(m, weights) - 1) for scale in (1e3, 1e4, 1e5)]
    assert errors[-1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3) and errors[1] / errors[2] == pytest.approx(10, rel=0.1)


def test_dense_supervision_makes_the_deferred_slope_weaker():
    m = model()
    ratio = slope(m, WEIGHTS["dense"], 1e6) / slope(m, WEIGHTS["terminal"], 1e6)
    assert ratio == pytest.approx((4 + 1) / (2 * 4), rel=1e-3)


def test_trap_near_by_dense_supervision_may_show_more_and_summed_losses_always_do_in_the_end():
    """The law is of large scales and of weights of the same sum."""
    models = [model(seed=seed) for seed in range(12)]
    ratios = [slope(m, WEIGHTS["dense"], 3.0) / slope(m, WEIGHTS["terminal"], 3.0) for m in models]
    assert max(map(abs, ratios)) > 1
    summed = slope(models[0], (1.0,) * 4, 1e6) / slope(models[0], WEIGHTS["terminal"], 1e6)
    assert summed == pytest.approx((4 + 1) / 2, rel=1e-3)


def test_the_coefficient_law_refuses_branches_that_see_the_scale(monkeypatch):
    """Written in units of s, it holds for every map: that the model is that map is what fails."""
    m = model()
    assert p05.coefficient_residual(CASE, m) < 1e-13
    monkeypatch.setattr(RandomModel, "sublayers", lambda m: linear_sublayers(CASE))
    assert p05.coefficient_residual(CASE, m) > 1e-2
    with monkeypatch.context() as patch:
        patch.setattr(p05, "scaling_error", lambda sublayers, h: 0.0)
        assert p05.coefficient_residual(CASE, m) < 1e-13


def test_trap_small_scales_are_far_from_the_asymptote():
    m = model()
    assert abs(10 * slope(m, WEIGHTS["terminal"], 10) / limit(m, WEIGHTS["terminal"]) - 1) > 0.1


def test_a_raw_readouts_slope_grows_with_the_scale():
    m = model(readout="raw")
    slopes = [abs(slope(m, WEIGHTS["dense"], scale)) for scale in (1e2, 1e3)]
    assert slopes[1] / slopes[0] == pytest.approx(10, rel=0.3)


def test_the_slope_is_bounded_by_gradients_times_displacements():
    for seed in range(5):
        terms = p05.identity_terms(CASE, model(seed=seed))
        radial = (terms["gradients"] * terms["states"]).sum(-1).abs()
        bound = (terms["gradients"][1:].norm(dim=-1) * terms["displacements"].norm(dim=-1)).sum(0)
        assert (radial[0] <= bound).all()


def test_descent_raises_the_scale_exactly_when_the_update_hurts():
    """One sublayer, terminal loss: the sign of -dL/dlog s is that of <grad L(F(h)), b>."""
    agree = opposite = 0
    for seed in range(60):
        m = model(seed=seed, layers=1)
        for sublayer in m.sublayers():
            h_0, readout = m.embed(), m.readout()
            after = sublayer(h_0)
            gradient = torch.func.grad(lambda h, m=m, readout=readout: m.cross_entropy(readout(h)))(after)
            hurts = (gradient * (after - h_0)).sum()
            rescaled = [m.cross_entropy(readout(sublayer(c * h_0))) for c in (1 + 1e-5, 1 - 1e-5)]
            falls = rescaled[1] - rescaled[0]
            agree += bool(hurts * falls > 0)
            opposite += bool(hurts * falls < 0)
    assert opposite == 0 and agree > 100

"""P2's traps, and wrong formulas in the place of its own."""

import random

import pytest
import torch

from loopsight.radial import epsilon_leak, radial_gradient_fraction
from theory.cases import Case
from theory.proposition import ProofError
from theory.propositions import p02_epsilon_leak as p02
from theory.propositions.p02_epsilon_leak import NORMALISATIONS, S2, d, eps, leak_residual, s


@pytest.mark.parametrize("formula", [eps / (S2 / d + 2 * eps), (S2 / d) / (S2 / d + eps), eps / (S2 + eps)])
def test_a_wrong_leak_is_rejected(monkeypatch, formula):
    monkeypatch.setattr(p02, "leak", lambda: formula)
    with pytest.raises(ProofError, match="rho y"):
        p02.prove()


def test_a_wrong_temperature_is_rejected(monkeypatch):
    monkeypatch.setattr(p02, "temperature", lambda: s**2 / (s**2 + eps))
    with pytest.raises(ProofError, match="temperature"):
        p02.prove()


def mean_of_squares(h):
    return h.square().mean(-1)


MUTANTS = {
    "eps / (m + 2 eps)": lambda h, eps, form, centred: eps / (mean_of_squares(h) + 2 * eps),
    "m / (m + eps)": lambda h, eps, form, centred: mean_of_squares(h) / (mean_of_squares(h) + eps),
    "eps / (rms + eps)": lambda h, eps, form, centred: epsilon_leak(h, eps, "added_to_rms"),
    "|h|^2 for m": lambda h, eps, form, centred: eps / (h.square().sum(-1) + eps),
    "no leak": lambda h, eps, form, centred: torch.zeros_like(h[..., 0]),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e6])
def test_the_numeric_check_rejects_wrong_leaks(mutant, scale):
    case = Case(scale=scale, tokens=3, spread=2.0)
    assert leak_residual(case, "rmsnorm", 0.1) < 1e-13
    assert leak_residual(case, "rmsnorm", 0.1, MUTANTS[mutant]) > 1e-4


RMSNORM = NORMALISATIONS["rmsnorm"][0]


@pytest.mark.parametrize(
    ("readout", "holds"),
    [
        (lambda h, eps: RMSNORM(h + 0.5, eps), False),
        (lambda h, eps: RMSNORM(h, eps + 0.2), False),
        (lambda h, eps: RMSNORM(h, eps) + 0.2 * h, False),
        (lambda h, eps: RMSNORM(h, eps).tanh() + 0.5, True),
    ],
    ids=["a shift", "an epsilon that is not counted", "a raw part", "anything after the norm"],
)
def test_eulers_identity_needs_all_that_competes_with_the_state_to_scale(monkeypatch, readout, holds):
    monkeypatch.setitem(p02.NORMALISATIONS, "rmsnorm", (readout, "inside_root", False))
    for seed in range(10):
        residual = p02.euler_residual(Case(seed=seed), "rmsnorm", 0.3, 2)
        assert residual < 1e-14 if holds else residual > 1e-4


@pytest.mark.parametrize(("name", "degree"), [("rmsnorm", 2), ("layernorm", 2), ("added", 1)])
def test_epsilon_counts_by_its_degree(name, degree):
    """A mean square counts twice, a root mean square once, at any scale of the state."""
    case = Case(scale=30.0, tokens=3, spread=2.0)
    for counted in (0, 1, 2, 3):
        residual = p02.euler_residual(case, name, 0.3, counted)
        assert residual < 1e-14 if counted == degree else residual > 1e-3


def test_the_check_notices_an_epsilon_that_counts_otherwise(monkeypatch):
    cases = [case for case in map(lambda seed: Case(seed=seed), range(8)) if p02.relative_eps(case) > 1e-4]
    exact = p02.euler_residual
    assert all(p02.check(case).holds for case in cases)
    monkeypatch.setattr(p02, "euler_residual", lambda case, name, size, degree: exact(case, name, size, 3 - degree))
    for case in cases:
        assert p02.check(case).holds == (random.Random(case.seed).choice(list(NORMALISATIONS)) == "clamp")


def test_layernorm_leaks_by_its_variance_and_not_by_its_mean_square():
    def mean_square(h, eps, form, centred):
        return epsilon_leak(h, eps, form, centred=False)

    case = Case(d=4)  # few channels: a mean to speak of
    assert leak_residual(case, "layernorm", 0.1) < 1e-13 < 1e-4 < leak_residual(case, "layernorm", 0.1, mean_square)


def test_dividing_by_the_left_side_would_measure_rounding():
    """<g, h> at rho = 1e-12 carries rounding of |q| |y|: relative to itself it is off by far more than 1e-12."""
    worst_relative, worst_scaled = 0.0, 0.0
    for seed in range(20):
        case = Case(seed=seed, d=48, tokens=6)
        loss, normalise, size = case.loss_of(case.readout("raw")), NORMALISATIONS["rmsnorm"][0], torch.tensor(1e-12)
        h = case.states().requires_grad_()
        y = normalise(h, size.double())
        gradient, q = torch.autograd.grad(loss(y), (h, y))
        seen = q.norm(dim=-1) > 1e-3
        left, right = (gradient * h).sum(-1)[seen], 1e-12 * (q * y).sum(-1)[seen]
        worst_relative = max(worst_relative, ((left - right) / right).abs().max().item())
        worst_scaled = max(worst_scaled, ((left - right).abs() / (q.norm(dim=-1) * y.norm(dim=-1))[seen]).max().item())
    assert worst_scaled < 1e-14 and worst_relative > 1e-5


def test_y_is_taken_before_the_bias():
    """With the bias in y, the identity is off: its gradient is not scaled by the normalisation."""
    case, size = Case(seed=3, tokens=4), torch.tensor(0.1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    gain, bias = 1 + 0.3 * torch.randn(2, case.d, generator=generator, dtype=torch.float64)
    loss, h = case.loss_of(case.readout("raw")), case.states().requires_grad_()
    y = NORMALISATIONS["rmsnorm"][0](h, size)
    gained = gain * y
    shifted = gained + bias
    gradient, q, q_shifted = torch.autograd.grad(loss(shifted), (h, y, shifted))
    along, rho = (gradient * h).sum(-1), epsilon_leak(h.detach(), 0.1)
    torch.testing.assert_close(along, rho * (q * y).sum(-1), rtol=1e-10, atol=1e-13)
    # The gain may be in y, as it is linear; the bias may not.
    torch.testing.assert_close(along, rho * (q_shifted * gained).sum(-1), rtol=1e-10, atol=1e-13)
    assert (along - rho * (q_shifted * shifted).sum(-1)).abs().max() > 1e-3


def test_the_gradient_fraction_decays_with_the_square_of_the_scale_though_the_gradient_decays_too():
    fractions, gradients = [], []
    for scale in (1.0, 10.0, 100.0):
        case = Case(tokens=1, scale=scale)
        loss = case.loss_of(case.readout("raw"))
        epsilon = torch.tensor(1e-6, dtype=torch.float64)

        def readout(h, loss=loss, epsilon=epsilon):
            return loss(NORMALISATIONS["rmsnorm"][0](h, epsilon))

        h = case.states()
        fractions.append(radial_gradient_fraction(readout, h).item())
        gradients.append(torch.func.grad(readout)(h).norm().item())
    assert [fractions[0] / f for f in fractions[1:]] == pytest.approx([1e2, 1e4], rel=1e-3)
    assert [gradients[0] / g for g in gradients[1:]] == pytest.approx([1e1, 1e2], rel=1e-3)


@pytest.mark.parametrize("degree", [0.0, 0.3, 1.0])
def test_a_readout_of_another_degree_is_rejected(degree):
    case = Case(tokens=3, scale=10.0, spread=5.0)
    assert p02.degree_residual(case, degree, degree) < 1e-13
    assert p02.degree_residual(case, degree, degree + 0.1) > 1e-3


def test_satisfied_margins_do_not_pass_for_measurements():
    """Two classes and one token: half of the cases have no gradient, and another seed is taken."""
    skipped = 0
    for seed in range(20):
        case = Case(seed=seed, vocab=2, tokens=1, loss="margin")
        found = p02.seen_case(case, lambda case: (case.loss_of(case.readout("raw")), case.states()))
        skipped += found.seed != seed
        assert p02.check(case).value > 0 or random.Random(seed).choice(list(NORMALISATIONS)) == "clamp"
    assert skipped > 3


def test_gradients_whose_squares_underflow_are_not_divided_by():
    """Found by ten thousand examples: a saturated softmax leaves gradients of 1e-200."""
    assert p02.check(Case(seed=1, d=6, vocab=3, tokens=6, spread=10.0**2.5)).holds

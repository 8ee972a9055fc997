"""P10's traps, and wrong formulas that must be rejected."""

import pytest
import sympy as sp
import torch

from loopsight.growth import asymptotic_slope, asymptotic_step
from loopsight.increments import loop_growth, second_order_step
from loopsight.protocol import unroll
from theory.cases import Case
from theory.far_out import directions, linear_sublayers, sublayers_and_states
from theory.proposition import ProofError
from theory.propositions import p10_growth_across_loops as p10
from theory.random_model import Architecture, random_model


def two_sublayers(kappa: float, gamma: float):
    """h + e_1 + gamma e_2, then - gamma e_2 - kappa u_2 e_2: a = 1 and nu = -kappa at e_1, c across it -gamma kappa."""
    first, second = torch.eye(2, dtype=torch.float64)

    def step(h: torch.Tensor) -> torch.Tensor:
        h = h + first + gamma * second
        return h - gamma * second - kappa * directions(h)[..., 1:] * second

    return step


@pytest.mark.parametrize(("kappa", "gamma", "power"), [(1.0, 1.0, -1.0), (2.0, 0.5, -1.0), (1.0, 0.0, -2.0)])
def test_trap_several_sublayers_are_no_faster_than_one_over_k(kappa, gamma, power):
    """The exponent of b alone is nu / a - 1 = -kappa - 1."""
    step, h = two_sublayers(kappa, gamma), torch.tensor([[10.0, 3.0]], dtype=torch.float64)
    result = asymptotic_slope(step, h)
    assert result.exponent.item() == pytest.approx(-kappa - 1.0, rel=1e-4)
    states = unroll(step, h, 4000)
    early, late = ((directions(states[k]) - result.direction).norm() for k in (1000, 4000))
    assert (late / early).log2().item() / 2 == pytest.approx(power, abs=0.1)
    if gamma:  # the push leaves a tilt of -c_perp / (nu s)
        assert states[-1][0, 1].item() == pytest.approx(-gamma, rel=0.05)


@pytest.mark.parametrize(("b", "gained"), [(1j, "sqrt"), (-2.0, "shrinks"), (1 + 2j, "a")])
def test_trap_without_a_direction_that_is_kept_and_written_to_the_words_do_not_hold(b, gained):
    """In the plane as complex numbers, z -> z + b z / |z|."""
    z = [torch.tensor(1000.0 + 0j, dtype=torch.complex128)]
    for _ in range(300):
        z.append(z[-1] + b * z[-1] / z[-1].abs())
    norms = torch.stack(z).abs()
    expected = {"sqrt": (1000.0**2 + 300.0) ** 0.5, "shrinks": 1000.0 - 600.0, "a": norms[-2].item() + 1.0}[gained]
    assert norms[-1].item() == pytest.approx(expected, rel=1e-5)
    if gained == "a":
        turned = (z[-1] / z[100]).angle().item()
        assert turned == pytest.approx(2.0 * (norms[-1] / norms[100]).log().item(), rel=1e-2)


@pytest.mark.parametrize("s", [1.0, 10.0, 1e4])
def test_what_holds_of_any_map_is_the_polar_identity_and_not_its_first_term(s):
    """h + M h misses s' - s = a by a share of s, however large the state."""
    linear = linear_sublayers(Case(seed=0, d=8))[0]
    h = s * directions(Case(seed=0, d=8).states())
    after = linear(h)
    part = ((after - h) * h).sum(-1) / s
    across = (after - h - part[:, None] * h / s).norm(dim=-1)
    torch.testing.assert_close(after.norm(dim=-1), torch.hypot(s + part, across), rtol=1e-12, atol=0)
    assert ((after.norm(dim=-1) - s - part) / s).max() > 1e-2


@pytest.mark.parametrize("mutant", [p10.NU / p10.RATE, p10.NU - 1, 1 - p10.NU / p10.RATE, sp.Integer(-1)])
def test_wrong_exponents_are_rejected(monkeypatch, mutant):
    monkeypatch.setattr(p10, "exponent", lambda: mutant)
    with pytest.raises(ProofError, match="logarithmic slope in k"):
        p10.prove()


def test_every_part_of_the_check_fails_where_its_hypothesis_does():
    case = Case(seed=1)
    sublayers, h = sublayers_and_states(case)
    assert p10.flow_error(sublayers, h) < 1e-13
    assert p10.flow_error(linear_sublayers(case), 3.0 * h) > 1e-2
    assert p10.approach_error(sublayers[0], case, degree=0) < 1e-13
    assert p10.approach_error(sublayers[0], case, degree=1) > 1e-2
    signs = p10.all_signs(len(sublayers))
    assert p10.diffusion_error(sublayers, h, signs) < 1e-13
    assert p10.diffusion_error(sublayers, h, signs.abs()) > 1e-2  # the same sign every time: shared, not fresh


def test_trap_a_cotangent_along_the_state_tests_nothing(monkeypatch):
    """Drawn from the seed of the states it was parallel to them, and a recurrence without its derivative passed."""
    case = Case(seed=1)
    sublayer = sublayers_and_states(case)[0][0]
    states = case.states()[None]
    w = p10.cotangent(states, case.seed)
    assert torch.nn.functional.cosine_similarity(w, states, dim=-1).abs().max() < 0.9
    exact = p10.pullback
    monkeypatch.setattr(p10, "pullback", lambda f, x, w: w if f is sublayer else exact(f, x, w))  # Db = 0
    assert p10.approach_error(sublayer, case, degree=0) > 1e-3
    monkeypatch.setattr(p10, "cotangent", lambda like, seed: case.states()[None])
    assert p10.approach_error(sublayer, case, degree=0) < 1e-10


def mlp(seed: int):
    """One residual step of a model of its own."""
    return random_model(Architecture(seed=seed, d=32, layers=1, tokens=1, batch=1)).sublayers()[1]


def slope_in_loops(states) -> float:
    """Of log|h_k| against log k between loops 40 and 160."""
    early, late = states[40].norm(), states[160].norm()
    return ((late / early).log() / torch.tensor(4.0).log()).item()


def test_shared_weights_grow_ballistically_and_fresh_ones_diffusively():
    h = torch.randn(1, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shared, fresh = [], []
    for seed in range(2):
        states = unroll(mlp(1000 * seed), h, 160)
        shared.append(slope_in_loops(states))
        drawn = [h]
        for k in range(160):
            drawn.append(mlp(1000 * seed + k)(drawn[-1]))
        fresh.append(slope_in_loops(drawn))
        ballistic, diffusive = loop_growth(states), loop_growth(drawn)
        assert (ballistic.coherent[-1] > 10.0 * ballistic.incoherent[-1]).all()
        assert (diffusive.coherent[-1] < 2.0 * diffusive.incoherent[-1]).all()
    assert min(shared) > 0.9 and max(fresh) < 0.75  # above 1 while the direction still turns to where it grows faster


@pytest.fixture(scope="module")
def model():
    return random_model(Architecture(seed=3, d=16, layers=2, tokens=3, batch=1))


def test_the_next_increments_are_predicted_from_one_state_and_better_to_second_order(model):
    states = unroll(model.step(), model.embed(), 40)
    for h, after in zip(states[20:-1], states[21:], strict=True):
        gained = after.norm(dim=-1) - h.norm(dim=-1)
        step = second_order_step(model.sublayers(), h)
        first, second = step.first_order_increment(h) - gained, step.radial_increment(h) - gained
        assert second.abs().max() < 0.2 * first.abs().max() < 0.1 * gained.abs().max()


def test_a_linear_recurrence_is_not_predicted():
    linear = linear_sublayers(Case(seed=0, d=12))[0]
    h = directions(Case(seed=0, d=12).states())
    predicted = asymptotic_step(linear, h).radial_increment(h)
    assert ((predicted - linear(h).norm(dim=-1) + h.norm(dim=-1)).abs() > 0.1).any()


def test_the_asymptotic_slope_is_the_recurrences_in_the_end():
    model = random_model(Architecture(seed=6, d=16, layers=1, tokens=3, batch=1))
    result = asymptotic_slope(model.step(), model.embed())
    assert result.converged.all()
    norms = [h.norm(dim=-1) for h in unroll(model.step(), model.embed(), 1000)]
    torch.testing.assert_close(norms[-1] - norms[-2], result.slope, rtol=1e-2, atol=0)
    assert (norms[5] - norms[4] - result.slope).abs().min() > 0.05 * result.slope.max()  # not by loop 5


def test_a_random_models_direction_need_not_converge_and_the_result_says_so():
    model = random_model(Architecture(seed=1, d=16, layers=1, tokens=3, batch=1))
    result = asymptotic_slope(model.step(), model.embed(), max_iterations=300)
    assert not result.converged.any() and result.exponent.isnan().all()

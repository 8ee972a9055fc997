"""P8's traps, and wrong formulas that must be rejected."""

import pytest
import sympy as sp
import torch

from loopsight.derivatives import differentiable_kernels
from loopsight.growth import asymptotic_slope
from loopsight.protocol import unroll
from theory.cases import Case
from theory.far_out import directions, sequence
from theory.laboratory import model_and_states
from theory.proposition import ProofError
from theory.propositions import p08_removing_scale as p08
from theory.random_model import rms_normalise
from theory.symbols import d, eps


@pytest.mark.parametrize(
    ("name", "mutant", "step"),
    [
        ("leak", eps / (p08.S2 / d + 2 * eps), r"DN\(h\)\[h\]"),
        ("leak", sp.sqrt(eps) / (sp.sqrt(p08.S2 / d) + sp.sqrt(eps)), r"DN\(h\)\[h\]"),
        ("settled_norm", p08.ALPHA * sp.Symbol("a", positive=True) / (1 - p08.ALPHA), "s*"),  # at the loop's entrance
        ("settled_norm", sp.Symbol("a", positive=True) / p08.ALPHA, "s*"),
    ],
)
def test_wrong_formulas_are_rejected(monkeypatch, name, mutant, step):
    monkeypatch.setattr(p08, name, lambda: mutant)
    with pytest.raises(ProofError, match=step):
        p08.prove()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda start, added, loops: p08.ALPHA**loops * start + added / (1 - p08.ALPHA),
        lambda start, added, loops: p08.ALPHA**loops * start + loops * added,
    ],
    ids=["the whole series at once", "a sum that is not damped"],
)
def test_wrong_bounds_are_rejected(monkeypatch, wrong):
    monkeypatch.setattr(p08, "damped_bound", wrong)
    with pytest.raises(ProofError, match="bound of|a loop takes it"):
        p08.prove()


def test_the_check_notices_a_loop_that_is_damped_less_than_said_and_a_branch_that_grows(monkeypatch):
    damped, h = model_and_states(Case(seed=3), between="damping", damping=0.5)
    assert p08.excess(damped, 0.5, h) < 1e-14
    assert p08.excess(damped, 0.4, 1e3 * h) > 0.1
    exact = p08.excess
    with monkeypatch.context() as patch:
        patch.setattr(p08, "excess", lambda model, damping, h: exact(model, damping / 2, 1e3 * h))
        assert p08.check(Case(seed=3)).value > 0.1
    linear = [lambda x: 2.0 * x]  # adds as much as the state is, and at its direction 1
    monkeypatch.setattr(type(damped), "sublayers", lambda model: linear)
    assert p08.excess(damped, 0.5, 1e3 * h) > 0.1


def test_the_check_notices_a_wrong_leak():
    case = Case(seed=3)
    leaky, h = model_and_states(case, between="rmsnorm", eps=1e-2)
    square = h.square().mean(-1, keepdim=True)
    assert p08.removal(leaky, leaky.step(), h, 1e-2 / (square + 1e-2)) < 1e-13
    assert p08.removal(leaky, leaky.step(), h, 1e-2 / (square + 2e-2)) > 1e-6


def test_the_claim_is_about_the_loops_output_not_its_input():
    """What enters the block stack, after N, has a scale that the block stack does see: there the claim is false."""
    model, h = model_and_states(Case(seed=0), between="rmsnorm")
    loop, normed = sequence(model.sublayers()), model.between()(h)
    with differentiable_kernels():
        _, at_output = torch.func.jvp(model.step(), (h,), (h,))
        _, at_input = torch.func.jvp(loop, (normed,), (normed,))
    assert at_output.norm() < 1e-13 * h.norm()
    assert at_input.norm() > 0.1 * normed.norm()


def test_with_a_norm_between_loops_the_state_is_bounded_across_loops():
    model, h = model_and_states(Case(seed=1, scale=1e6), between="rmsnorm")
    bare = sequence(model.sublayers())
    bounded, free = (unroll(step, h, 60) for step in (model.step(), bare))
    late = bounded[-1].norm(dim=-1)
    assert late.max() < 100.0
    torch.testing.assert_close(bounded[-2].norm(dim=-1), late, rtol=0.2, atol=0)
    assert (free[-1].norm(dim=-1) - free[0].norm(dim=-1)).abs().max() > 10.0


def test_several_damped_sublayers_contract_by_alpha_up_to_the_inverse_square_of_the_scale():
    """Activity of the joint scale: |A - alpha| falls with s^-2, so alpha is exact for one sublayer only."""
    model, h = model_and_states(Case(seed=4, d=12, tokens=3), between="damping")
    assert len(model.sublayers()) > 1
    gaps = []
    for scale in (1e3, 1e4, 1e5):
        x = scale * directions(h)
        with differentiable_kernels():
            _, derivative = torch.func.jvp(model.step(), (x,), (x,))
        gaps.append(abs((derivative.norm() / x.norm()).item() - model.architecture.damping))
    assert 0 < gaps[0] < 1e-2
    assert gaps[1] == pytest.approx(gaps[0] / 100, rel=0.2) and gaps[2] == pytest.approx(gaps[1] / 100, rel=0.2)


def test_damping_does_not_settle_at_a_over_one_minus_alpha_where_the_direction_turns():
    """b(u) = (1 + 2 i) u in the plane turns every direction: above a / (1 - alpha), below |b| / (1 - alpha)."""
    alpha, h = 0.88, 1.0 + 0.0j
    for _ in range(2000):
        h = alpha * h + (1 + 2j) * h / abs(h)
    assert abs(alpha * h + (1 + 2j) * h / abs(h)) == pytest.approx(abs(h), rel=1e-12)
    assert abs(h) == pytest.approx(10.0145, abs=1e-4)
    assert 1 / (1 - alpha) < abs(h) < abs(1 + 2j) / (1 - alpha)


@pytest.mark.parametrize(("nu", "stays"), [(-5.0, True), (-20.0, False)])
def test_a_rest_point_whose_tilt_grows_is_left(nu, stays):
    """alpha + (1 - alpha) nu / a at alpha = 0.8, a = 1: -0.2, and -3.2."""
    matrix = torch.diag(torch.tensor([1.0, nu], dtype=torch.float64))
    h = torch.tensor([[5.0, 1e-6]], dtype=torch.float64)

    def step(x):
        return 0.8 * x + directions(x) @ matrix.T

    assert (unroll(step, h, 60)[-1][0, 1].abs() < 1e-6) == stays


def damped(matrix: torch.Tensor, alpha: float):
    return lambda h: alpha * h + rms_normalise(h, 0.0) @ matrix.T


def test_damping_settles_in_the_undamped_direction_at_a_over_one_minus_alpha_and_geometrically():
    """The observed state, after the block: a / (1 - alpha); what enters the block, alpha times that."""
    alpha, width = 0.8, 8
    axes = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)).double())[0]
    matrix = axes * torch.tensor([1.0, 0.6, *[0.1] * (width - 2)]).double() @ axes.T
    h = torch.randn(1, width, generator=torch.Generator().manual_seed(1)).double()
    undamped = asymptotic_slope(damped(matrix, 1.0), h)
    settled = unroll(damped(matrix, alpha), h, 200)
    expected = undamped.slope / (1 - alpha)
    torch.testing.assert_close(settled[-1].norm(dim=-1), expected, rtol=1e-8, atol=0)
    torch.testing.assert_close((directions(settled[-1]) * undamped.direction).sum(-1).abs(), torch.ones(1).double())
    # The tilt contracts by alpha + (1 - alpha) nu / a, here 0.8 + 0.2 * 0.6.
    tilts = [(directions(x) @ axes[:, 1]).abs().item() for x in settled[60:62]]
    assert tilts[1] / tilts[0] == pytest.approx(alpha + (1 - alpha) * 0.6, rel=1e-3)

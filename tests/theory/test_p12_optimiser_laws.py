"""P12's traps and mutants: which optimisers obey the laws, and which statements about Adam are false."""

import math
import random

import pytest
import sympy as sp
import torch

from loopsight.optimiser_laws import adam_step_bound, heavy_ball_square_norms, sgd_square_norm
from theory.cases import Case
from theory.proposition import ProofError
from theory.propositions import p12_optimiser_laws as p12
from theory.random_model import Architecture, random_model

CASE = Case(seed=3)


@pytest.mark.parametrize("law", ["sgd", "decay", "momentum"])
def test_the_laws_hold_for_torchs_optimisers_over_many_steps(law):
    assert len(p12.run(p12.blind_model(CASE), law, 8, p12.SCHEDULE).norms) == 9
    assert p12.law_residual(p12.blind_model(CASE), law, 8) < 1e-13


def test_trap_a_heavy_balls_memory_keeps_the_learning_rates_of_its_steps(monkeypatch):
    """With rates that rise, today's rate in the place of the past ones is far off; with rates of their own, exact."""
    monkeypatch.setattr(p12, "SCHEDULE", (1.0, 2.0, 3.0, 4.0, 5.0))
    assert p12.law_residual(p12.blind_model(CASE), "momentum", 5) < 1e-13

    def with_todays_rate(n, v, *, lr, momentum):
        norms = [n]
        for t, rate in enumerate(lr):
            memory = sum(momentum**j * v[t - j] for j in range(1, t + 1))
            norms.append(norms[-1] + rate**2 * (v[t] + 2 * memory))
        return norms[1:]

    monkeypatch.setattr(p12, "heavy_ball_square_norms", with_todays_rate)
    assert p12.law_residual(p12.blind_model(CASE), "momentum", 5) > 0.05
    monkeypatch.setattr(p12, "SCHEDULE", (1.0,))
    assert p12.law_residual(p12.blind_model(CASE), "momentum", 5) < 1e-13


@pytest.mark.parametrize("law", ["sgd", "decay", "momentum"])
def test_trap_the_laws_are_about_tensors_of_one_learning_rate(law, monkeypatch):
    optimiser_for = p12.optimiser_for

    def with_rates_of_their_own(law, tensors, lr):
        solver = optimiser_for(law, [tensors[0]], lr)
        solver.add_param_group({"params": tensors[1:]})
        step = solver.step

        def at_half_the_rate():
            solver.param_groups[1]["lr"] /= 2.0
            step()

        solver.step = at_half_the_rate
        return solver

    monkeypatch.setattr(p12, "optimiser_for", with_rates_of_their_own)
    assert p12.law_residual(p12.blind_model(CASE), law) > 1e-3


@pytest.mark.parametrize(
    "change", [{"readout": "raw"}, {"readout": "tanh"}, {"tied": True}, {"eps": 1e-2}], ids=lambda x: str(x)
)
def test_the_sgd_law_fails_where_the_loss_sees_the_norm(change):
    assert p12.law_residual(p12.blind_model(CASE, between="none", **change), "sgd") > 1e-8


def test_with_nesterovs_momentum_the_heavy_ball_law_fails(monkeypatch):
    def nesterov(law, tensors, lr):
        return torch.optim.SGD(tensors, lr=lr, momentum=p12.MOMENTUM, nesterov=True)

    monkeypatch.setattr(p12, "optimiser_for", nesterov)
    assert p12.law_residual(p12.blind_model(CASE), "momentum") > 1e-3


def test_clipping_by_the_global_norm_keeps_the_sgd_law_with_the_clipped_gradient():
    model = p12.blind_model(CASE)
    w = {name: model.parameters[name].clone().requires_grad_() for name in p12.writers(model.architecture)}
    loss = model.loss({**model.parameters, **w}, p12.loop_weights(model.architecture))
    loss.backward()
    n, full = p12._square(w.values()), p12._square([x.grad for x in w.values()])
    torch.nn.utils.clip_grad_norm_(list(w.values()), 0.1 * full**0.5)
    clipped = p12._square([x.grad for x in w.values()])
    lr = (n / clipped) ** 0.5
    torch.optim.SGD(list(w.values()), lr=lr).step()
    after = p12._square(w.values())
    assert after == pytest.approx(sgd_square_norm(n, clipped, lr=lr), rel=1e-12)
    assert after != pytest.approx(sgd_square_norm(n, full, lr=lr), rel=1e-1)


@pytest.mark.parametrize("tied", [True, False])
def test_under_plain_sgd_a_blind_norm_only_grows_and_a_tied_one_falls(tied, monkeypatch):
    monkeypatch.setattr(p12, "loop_weights", lambda a: (1.0 / a.loops,) * a.loops)
    model = random_model(Architecture(d=24, vocab=24, layers=1, batch=4, tied=tied, gain=False))
    w = {name: model.parameters[name].clone().requires_grad_() for name in p12.writers(model.architecture)}
    optimiser, norms = torch.optim.SGD(w.values(), lr=0.05), [p12._square(w.values())]
    for _ in range(8):
        optimiser.zero_grad()
        model.loss({**model.parameters, **w}).backward()
        optimiser.step()
        norms.append(p12._square(w.values()))
    grew = [after > before for before, after in zip(norms, norms[1:], strict=False)]
    assert not any(grew) if tied else all(grew)


def test_adam_takes_steps_longer_than_one_learning_rate():
    """ "One learning rate per coordinate and step" is false; the sharp bound is attained."""
    steps, betas = 200, (0.9, 0.999)
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([x], lr=1.0, betas=betas, eps=0.0)
    for n in range(1, steps + 1):
        before = x.detach().clone()
        x.grad = torch.tensor([(betas[0] / betas[1]) ** (steps - n), 1.0], dtype=torch.float64)
        optimiser.step()
        if n == 1:
            assert (x.detach() - before).abs().tolist() == pytest.approx([1.0, 1.0], rel=1e-14)
    attained, constant = (x.detach() - before).abs().tolist()
    assert attained == pytest.approx(adam_step_bound(*betas, step=steps), rel=1e-12)
    assert attained > 2.5 > 1.0 == pytest.approx(constant, rel=1e-12)


def test_adams_cross_term_is_not_zero_where_sgds_is():
    model = p12.blind_model(CASE)
    adam, sgd = p12.run(model, "adam"), p12.run(model, "sgd")
    assert adam is not None and sgd is not None
    assert max(map(abs, adam.crosses)) / adam.norms[0] > 1e-4
    assert max(map(abs, sgd.crosses)) / sgd.norms[0] < 1e-14


def test_fluctuating_gradients_have_the_stationary_moments_and_not_those_of_their_mean():
    """E n (1 - q) = lr^2 E|g|^2 and E n^2 (1 - q^2) = 2 q lr^2 E G^2 + lr^4 E|g|^4."""
    lr, wd, steps = 0.5, 0.2, 20_000
    q = (1 - lr * wd) ** 2
    gs = torch.randn(steps, generator=torch.Generator().manual_seed(0), dtype=torch.float64).square().tolist()
    n, sums = 1.0, [0.0] * 5
    for scale_free in gs:  # G^2, independent of n
        move = scale_free / n
        for place, value in enumerate((n, n * n, move, move * move, scale_free)):
            sums[place] += value / steps
        n = sgd_square_norm(n, move, lr=lr, wd=wd)
    mean_n, mean_n2, mean_g2, mean_g4, mean_scale_free = sums
    assert mean_n * (1 - q) == pytest.approx(lr**2 * mean_g2, rel=2e-2)
    assert mean_n2 * (1 - q**2) == pytest.approx(2 * q * lr**2 * mean_scale_free + lr**4 * mean_g4, rel=2e-2)
    naive = math.sqrt(lr * mean_scale_free / (wd * (2 - lr * wd)))
    assert mean_n != pytest.approx(naive, rel=3e-2)


def test_a_wrong_equilibrium_is_rejected(monkeypatch):
    """The textbook's eta G^2 / (2 lambda) is the limit of small eta lambda only."""
    monkeypatch.setattr(p12, "equilibrium_square_norm", lambda g: sp.sqrt(p12.eta * g**2 / (2 * p12.lam)))
    with pytest.raises(ProofError, match="fixed point"):
        p12.prove()


def test_the_sgd_law_without_blindness_is_rejected(monkeypatch):
    monkeypatch.setattr(p12, "squared", lambda vector, squared=p12.squared: squared(vector, blind=False))
    with pytest.raises(ProofError, match="SGD"):
        p12.prove()


@pytest.mark.parametrize(
    ("name", "mutant", "step"),
    [
        ("geometric_sum", lambda r: (1 - r ** (p12.T + 1)) / (1 - r), "at T = 1"),
        ("geometric_sum", lambda r: 1 / (1 - r), "at T = 1"),
        ("geometric_sum", lambda r: p12.T + 0 * r, "each T adds"),
        ("bound_of_step", lambda: p12.sp.sqrt((1 - p12.beta2**p12.T) / (1 - p12.beta2)), "at most C_T"),
    ],
)
def test_wrong_parts_of_adams_bound_are_rejected(monkeypatch, name, mutant, step):
    monkeypatch.setattr(p12, name, mutant)
    with pytest.raises(ProofError, match=step):
        p12.prove()


def test_the_proved_bound_is_the_one_that_is_computed():
    for beta1, beta2, step in ((0.9, 0.999, 7), (0.9, 0.95, 40), (0.5, 0.9, 1)):
        proved = p12.bound_of_step().subs({p12.beta1: beta1, p12.beta2: beta2, p12.T: step})
        assert float(proved) == pytest.approx(adam_step_bound(beta1, beta2, step=step), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("sgd_square_norm", lambda n, g, *, lr, wd=0.0: (1 - 2 * lr * wd) * n + lr**2 * g),
        ("sgd_square_norm", lambda n, g, *, lr, wd=0.0: (1 - lr * wd) ** 2 * (n + lr**2 * g)),
        ("heavy_ball_square_norms", lambda n, v, *, lr, momentum: heavy_ball_square_norms(n, v, lr=lr, momentum=0.0)),
        (
            "heavy_ball_square_norms",
            lambda n, v, *, lr, momentum: heavy_ball_square_norms(n, v, lr=lr[0], momentum=momentum),
        ),
        ("adam_step_bound", lambda b1, b2, step: adam_step_bound(b1, b2)),
        ("adam_step_bound", lambda b1, b2, step: 1.0),
    ],
)
def test_broken_laws_do_not_survive_the_check(monkeypatch, name, mutant):
    cases = [Case(seed=seed) for seed in range(6)]
    monkeypatch.setattr(p12, name, mutant)
    assert not all(p12.check(case).holds for case in cases)


def test_the_bound_of_adam_is_attained_without_momentum_too():
    """beta1 = 0: all the mass in the last gradient. Zeros before it would make torch's Adam 0 / 0."""
    seen = set()
    for seed in range(40):
        seen.add(random.Random(seed).choice([0.9, 0.9, 0.0, 0.8]))
        assert p12.adam_excess(Case(seed=seed)) < 1e-12
    assert 0.0 in seen
